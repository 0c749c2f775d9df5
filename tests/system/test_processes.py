"""Commands of several processes: they write what one process would, and none is left waiting for another.

All are real processes that run the command line, under a launcher or with the variables that one sets; the latter are
forked from a server that has imported torch once.
"""

import fcntl
import importlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import trees
from safetensors.torch import load_file, save_file
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_scoring import CLASSES, draw_model

from daynight import cli
from daynight.data import images
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system.processes import gathered
from daynight.system.watchdog import at_once, heed
from daynight.training.run import Run

# nohup and a shell's & have the tests, and what they start, ignore these
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

EXAMPLES = Path(__file__).parents[2] / "examples"
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([f"daynight.{name}" for name in ("cli", "translation", "segmentation", "evaluation")])

SMALL = "--crop 32 --size native --lr 1e-3"
TRANSLATION = (
    f"translate-train --day cs --night dz {SMALL} --width 4 --blocks 1 --feature-network test_resnet "
    "--feature-layer layer1 --feature-layer layer2 --feature-weights random"
)
SEGMENTATION = (
    f"seg-train --day cs --night dz {SMALL} --head-width 8 --backbone test_resnet "
    "--backbone-weights backbone.safetensors"
)
SIX = "--steps 6 --batch-size 4 --log-every 4"
TRAININGS = {
    "translation": f"{TRANSLATION} {SIX} --history 0",
    # ρ is low: a teacher of a few steps is sure of nothing, and Eq. 15 would be 0
    "segmentation": f"{SEGMENTATION} {SIX} --ssl --translator translation --rho 0.01,0.05",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data sets, a backbone whose norm stays frozen, models, and both trainings by one process."""
    home = tmp_path_factory.mktemp("home")
    trees.cityscapes(home / "data/cs", val=5)
    trees.dark_zurich(home / "data/dz")
    trees.nighttime_driving(home / "data/nd")
    trees.folder(home / "data/own", val=2)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), home / "backbone.safetensors")
    draw_model(home / "model", CLASSES, 0)
    for part in ("day2night", "night2day"):
        save_model(Generator(1, 4, size="native"), home / "translator" / part)
    (home / "outputs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the server's
        for kind, line in TRAININGS.items():
            assert run(f"{line} --out {kind}", 1, home, every=in_float64).codes == [0]
    return home


class Result(NamedTuple):
    codes: list[int]
    out: str
    errs: list[str]


def run(line, count, home, limit=60, environments=None, every=None, only=None, awaited=None) -> Result:
    """`count` processes of a command line. `every` is called first in each of them, `only[rank]` in one. The first
    `awaited` are waited for, and the others are killed then.

    A process that still waits for another after `limit` seconds fails the test.
    """
    port = free_port()
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common["OMP_NUM_THREADS"] = 1  # as launchers set it, or Accelerate says that it does
    processes, outputs = [], [f"{home}/outputs/{port}-{rank}" for rank in range(count)]
    for rank, output in enumerate(outputs):
        environment = common | {"RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
        environment |= (environments or {}).get(rank, {})
        calls = [call for call in (every, (only or {}).get(rank)) if call]
        processes.append(forks.Process(target=child, args=(line, home, environment, output, calls)))
        processes[-1].start()
    until = time.monotonic() + limit
    for process in processes[:awaited]:
        process.join(max(0, until - time.monotonic()))
    left = [rank for rank, process in enumerate(processes[:awaited]) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    outs, errs = ([Path(f"{output}.{kind}").read_text() for output in outputs] for kind in ("out", "err"))
    assert not left, (left, outs, errs)
    assert not any(outs[1:]), outs
    if count > 1 and any(outs):
        assert outs[0].startswith(f"{count} processes\n")
    return Result([process.exitcode for process in processes], outs[0], errs)


def child(line, home, environment, output, calls):
    os.chdir(home)
    os.environ.update({name: str(value) for name, value in environment.items()})
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{kind}", os.O_CREAT | os.O_WRONLY), descriptor)
    sys.argv = ["daynight", *line.split()]
    for call in calls:
        call()
    cli.main()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_float64():
    """A GAN of this size makes any rounding of float32 large in a few steps."""
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)


def get(number, step):
    """Get a signal when `step` steps are done."""
    log = Run.log

    def log_and_get(self, now, **values):
        log(self, now, **values)
        if now + 1 == step:
            os.kill(os.getpid(), number)

    Run.log = log_and_get


def tensors(folder):
    paths = [*folder.glob("checkpoint-0000006/*.safetensors"), *folder.glob("*/model.safetensors")]
    return {f"{p.relative_to(folder)} {n}": x for p in paths for n, x in load_file(p).items()}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def assert_same_run(one, other):
    expected, found = tensors(one), tensors(other)
    assert "state.safetensors" in str(expected.keys()) and "model.safetensors" in str(expected.keys())
    # a process more has a history more, an empty one here
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-10, msg=name)
    assert len(metrics(one)) == len(metrics(other)) == 2
    for line, other_line in zip(metrics(one), metrics(other), strict=True):
        assert other_line == pytest.approx(line, rel=1e-6) and len(line) > 6


# training


@pytest.mark.parametrize("kind", TRAININGS)
def test_two_processes_train_as_one(kind, home):
    assert run(f"{TRAININGS[kind]} --out two-{kind}", 2, home, every=in_float64).codes == [0, 0]
    assert_same_run(home / kind, home / f"two-{kind}")


@pytest.mark.parametrize("kind", TRAININGS)
def test_from_one_process_to_two_and_back(kind, home):
    """And one process's signal ends both after the same step."""
    folder, line = home / f"changing-{kind}", f"{TRAININGS[kind]} --out changing-{kind}"
    assert run(line, 1, home, every=in_float64, only={0: partial(get, signal.SIGTERM, 1)}).codes == [143]
    two = run(line, 2, home, every=in_float64, only={1: partial(get, signal.SIGTERM, 3)})
    assert two.codes == [143, 143] and "at step 1 of 6" in two.out and "SIGTERM after step 3" in two.out
    assert checkpoints(folder) == ["checkpoint-0000001", "checkpoint-0000003"]
    one = run(line, 1, home, every=in_float64)
    assert one.codes == [0] and "at step 3 of 6" in one.out
    assert_same_run(home / kind, folder)


@pytest.mark.parametrize("line", [f"{TRANSLATION} --history 2", f"{SEGMENTATION} --translator darken --ssl"])
def test_two_processes_resume_bit_for_bit(line, home):
    """Each with its own image history, and values that are not logged yet."""
    name = line.split()[0]
    assert run(f"{line} {SIX} --out {name}-whole", 2, home).codes == [0, 0]
    stopped = run(f"{line} {SIX} --out {name}-resumed", 2, home, only={0: partial(get, signal.SIGINT, 3)})
    assert stopped.codes == [130, 130]
    assert run(f"{line} {SIX} --out {name}-resumed", 2, home).codes == [0, 0]
    whole, resumed = home / f"{name}-whole", home / f"{name}-resumed"
    expected, found = tensors(whole), tensors(resumed)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
    assert metrics(resumed) == metrics(whole)
    assert sum("process-1.safetensors day_history" in n for n in expected) == 2 * ("--history" in line)


def test_a_dead_process_takes_the_others_along(home):
    line = f"{SEGMENTATION} {SIX} --save-every 2 --out killed"
    died = run(line, 2, home, limit=30, only={1: partial(get, signal.SIGKILL, 3)})
    assert died.codes == [1, -9] and died.errs[0].count("\n") == 1, died
    assert checkpoints(home / "killed") == ["checkpoint-0000002"]
    again = run(line, 2, home)
    assert again.codes == [0, 0] and "at step 2 of 6" in again.out


def test_what_one_process_cannot_read_none_goes_on_from(home):
    line = f"{TRANSLATION} {SIX} --save-every 2 --out damaged"
    assert run(line, 2, home, only={0: partial(get, signal.SIGTERM, 4)}).codes == [143, 143]
    path = home / "damaged/checkpoint-0000004/process-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    again = run(line, 2, home)
    assert again.codes == [0, 0] and "at step 2 of 6" in again.out
    assert "checkpoint-0000004 is not whole" in again.errs[0]


# what is refused


@contextmanager
def locked(folder):
    with open(folder / ".daynight.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refused(line, home, word, codes=(2, 2), environments=None, who=0):
    result = run(line, 2, home, limit=30, environments=environments)
    assert result.codes == list(codes), result
    assert word in result.errs[who] and result.errs[who].count("\n") == 1, result
    return result


def test_a_refusal_reaches_all(home):
    """What the first process alone looks at: options, locks, what a folder was made with."""
    line = f"{SEGMENTATION} {SIX} --out refusing"
    assert run(line, 2, home).codes == [0, 0]
    assert run("translate --in nd --out nd-night --model translator", 2, home).codes == [0, 0]
    assert run("predict --in nd --out nd-labels --model model", 2, home).codes == [0, 0]
    for other, word in (
        (f"{line} --seed 1", "--seed"),
        (f"{line} --no-resume", "--no-resume"),
        ("translate --in nd --out nd-night --model translator --reverse", "--out nd-night"),
        ("predict --in nd --out nd-labels --model model --ids labelIds", "--out nd-labels"),
    ):
        assert refused(other, home, word).errs[1] == ""
    with locked(home / "refusing"):
        assert refused(line, home, "another process is working").errs[1] == ""


def test_what_each_process_refuses(home):
    for other, word in (
        (f"{SEGMENTATION} {SIX} --batch-size 3 --out no", "multiple of the 2 processes"),
        (f"{TRANSLATION} {SIX} --day nowhere --out no", "nowhere"),
        ("eval --dataset nowhere --model model", "nowhere"),
    ):
        result = refused(other, home, word)
        assert result.errs[1].startswith("daynight, process 1: ")
    assert not (home / "no").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_one_machine_lacks(rank, home):
    codes = [1, 1]
    codes[rank] = 2
    environments = {rank: {"DAYNIGHT_DATA": "nowhere"}}
    result = refused(f"{SEGMENTATION} {SIX} --out no", home, "nowhere", codes, environments, who=rank)
    assert "another process of this command has ended" in result.errs[1 - rank]


@pytest.mark.parametrize(
    ("line", "variable", "words"),
    [
        ("seg-train", "ACCELERATE_MIXED_PRECISION=fp16", "wanted: no or bf16, or --precision"),
        ("translate-train", "ACCELERATE_MIXED_PRECISION=FP8", "wanted: no or bf16, or --precision"),
        ("predict --in nd --out no", "ACCELERATE_MIXED_PRECISION=fp16", "wanted: no or bf16, or --precision"),
        ("translate-train", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "wanted: 1"),
        ("seg-train", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=auto", "wanted: 1"),
        ("eval --dataset nd", "ACCELERATE_USE_FSDP=True", "wanted: false"),
        ("translate --in nd --out no", "ACCELERATE_USE_DEEPSPEED=true", "wanted: false"),
        ("demo", "ACCELERATE_USE_MEGATRON_LM=1", "wanted: false"),
        ("seg-train", "ACCELERATE_USE_PARALLELISM_CONFIG=true", "wanted: false"),
        ("seg-train", "ACCELERATE_DYNAMO_BACKEND=INDUCTOR", "wanted: no, or --compile"),
        ("seg-train", "ACCELERATE_USE_CPU=maybe", "ACCELERATE_USE_CPU=maybe); without a launcher, unset these"),
        ("seg-train", "LOCAL_RANK=0", "(LOCAL_RANK=0); without a launcher, unset these"),
        ("predict --in nd --out no", "RANK=x LOCAL_RANK=y", "LOCAL_RANK=y, RANK=x"),
    ],
)
def test_what_a_launcher_must_not_ask_is_refused_by_name(line, variable, words, home):
    environment = dict(one.split("=") for one in variable.split())
    result = run(line, 1, home, environments={0: environment})
    assert result.codes == [2] and result.errs[0].count("\n") == 1, result
    assert words in result.errs[0] and variable.split("=")[0] in result.errs[0]


@pytest.mark.parametrize("asked", ["no", "NO", "bf16", "BF16", " bf16", ""])
def test_the_precisions_of_a_launcher(asked, home, tmp_path):
    """In any spelling; what it says of fp16 does not count beside --precision."""
    line = f"{SEGMENTATION} --steps 1 --batch-size 1 --out {tmp_path}/run"
    environment = {
        "ACCELERATE_MIXED_PRECISION": asked,
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_FSDP": "False",
    }
    assert run(line, 1, home, environments={0: environment}).codes == [0]
    environment["ACCELERATE_MIXED_PRECISION"] = "fp16"
    assert run(f"{line}-2 --precision no", 1, home, environments={0: environment}).codes == [0]


# at the start


LEFT_OVER = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
COMMANDS = {
    "predict": "predict --in nd --out nobody --model model",
    "eval": "eval --dataset nd --model model",
    "translate": "translate --in nd --out nobody --model translator",
    "seg-train": f"{SEGMENTATION} {SIX} --out nobody",
    "translate-train": f"{TRANSLATION} {SIX} --out nobody",
}


def soon():
    """The patience of half an hour, in a second."""
    from daynight.system import processes, watchdog

    processes.CONNECT = processes.PATIENCE = 1
    watchdog.GRACE = 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_variables_of_a_launcher_that_is_gone_are_named(command, home):
    left = LEFT_OVER | {"MASTER_PORT": free_port()}
    result = run(COMMANDS[command], 1, home, limit=120, environments={0: left}, every=soon)
    assert result.codes == [1] and result.errs[0].count("\n") == 1, result
    assert "the other processes did not come within 1 s (" in result.errs[0]
    assert all(f"{name}={value}" in result.errs[0] for name, value in left.items())


def get_later(number):
    from daynight.system import watchdog

    watchdog.GRACE = 0.5
    threading.Timer(2, os.kill, (os.getpid(), number)).start()


def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)


def freeze_when_connected():
    from daynight.system import processes

    make = processes.make_accelerator

    def make_and_freeze(*arguments, **settings):
        accelerator = make(*arguments, **settings)
        freeze()
        return accelerator

    for name in ("training.run", "inference.predict", "inference.translate", "evaluation.scoring"):
        importlib.import_module(f"daynight.{name}").make_accelerator = make_and_freeze


def die_at_first():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("act", [freeze, die_at_first, freeze_when_connected])
@pytest.mark.parametrize("command", ["predict", "eval", "seg-train"])
def test_a_process_that_is_stopped_or_killed_at_the_start_is_not_awaited_for_ever(act, command, home):
    line = COMMANDS[command] + " --stall-minutes 0.05" * (command == "seg-train" and act is freeze_when_connected)
    result = run(line, 2, home, limit=40, every=soon, only={1: act}, awaited=1)
    assert result.codes[0] == 1, result
    said = "did not come within 1 s" if act is not freeze_when_connected else "has not moved for 1 s"
    assert said in result.errs[0].splitlines()[-1] or "no step ended for 0.05 minutes" in result.errs[0], result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("awaited", ["connection", "start"])
def test_a_signal_ends_what_waits_for_another_process(awaited, number, home):
    """Though the main thread is in C, and no handler is called."""
    act = freeze if awaited == "connection" else freeze_when_connected

    result = run(COMMANDS["predict"], 2, home, limit=20, only={0: partial(get_later, number), 1: act}, awaited=1)
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert result.codes[0] == 128 + number and result.errs[0] == f"daynight: {said}\n", result


def test_a_signal_whose_exception_is_lost_in_c_ends_the_command_a_little_later():
    with at_once():
        heed()
        with pytest.raises(SystemExit):  # as pybind11 or Rust may swallow it
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            gathered(None)
        assert ended.value.code == 143
    assert gathered(None) == [None]


# sharing out


def tell():
    """Say on stderr what is written."""
    save = images.save_image

    def save_and_tell(image, path, *settings):
        save(image, path, *settings)
        sys.stderr.write(f"{path}\n")  # in one piece: threads do it beside each other

    images.save_image = save_and_tell


def die():
    """At the second image."""
    save, count = images.save_image, []

    def save_or_die(image, path, *settings):
        count.append(path)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(image, path, *settings)

    images.save_image = save_or_die


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def timeless(page):
    """The bytes of a page without the minute in its last line."""
    parts = re.split(rb" on \d{4}-\d\d-\d\d at \d\d:\d\d", page)
    assert len(parts) == 2
    return b"".join(parts)


@pytest.mark.parametrize("line", ["translate --in cs --model translator", "predict --in cs --model model"])
def test_images_are_shared_out(line, home):
    """None twice, none missing; also where a process has died, and some are there already."""
    name = line.split()[0]
    assert run(f"{line} --out {name}-1", 1, home).codes == [0]
    expected = contents(home / f"{name}-1")
    kinds = 3 if name == "predict" else 1
    assert sum(path.suffix == ".png" and "gtFine" not in str(path) for path in expected) == 11 * kinds
    for count in (2, 3):
        result = run(f"{line} --out {name}-{count}", count, home, every=tell)
        assert result.codes == [0] * count and "11 images, 0 there" in result.out
        written = [set(err.split()) for err in result.errs]
        assert sum(map(len, written)) == len(set.union(*written)) == 11 * kinds
        assert {len(of_one) // kinds for of_one in written} <= {11 // count, 11 // count + 1}
        assert contents(home / f"{name}-{count}") == expected
    died = run(f"{line} --out {name}-died", 2, home, limit=30, only={1: die})
    assert died.codes == [1, -9]
    left = contents(home / f"{name}-died")
    whole = {path for path in left.keys() & expected.keys() if left[path] == expected[path]}
    assert 5 < len(whole) < len(expected)
    again = run(f"{line} --out {name}-died", 3, home)
    assert again.codes == [0, 0, 0]
    again = contents(home / f"{name}-died")
    assert again == expected


@pytest.mark.parametrize("count", [2, 3])
def test_scores_are_those_of_one_process(count, home):
    """Of five, three and two images: in unequal shares, and with none at all for the third."""
    line = "eval --dataset cs --dataset nd --dataset own --model model"
    for processes in (1, count):
        result = run(f"{line} --json scores-{processes}.json --save saved-{processes}", processes, home)
        assert result.codes == [0] * processes, result
    one, several = (json.loads((home / f"scores-{processes}.json").read_text()) for processes in (1, count))
    assert several == one and [entry["images"] for entry in one] == [5, 3, 2]
    assert 0 < one[0]["accuracy"] < 50
    assert f"{-(-5 // count)} images in" in result.out
    saved, expected = (contents(home / f"saved-{processes}") for processes in (count, 1))
    # the pages may have been written in two different minutes, which they say
    assert timeless(saved.pop(Path("index.html"))) == timeless(expected.pop(Path("index.html")))
    assert saved == expected and len(saved) >= 2 * 10


# launchers

TORCHRUN = "torchrun --standalone --nproc_per_node 2 -m daynight"
ACCELERATE = "accelerate launch --multi_gpu --num_processes 2 -m daynight"
# what a run that is stopped is given: more steps than it will take
LONG = "--steps 100000 --batch-size 2 --log-every 1"


class Launch:
    """A launcher and all that it starts, wherever their output goes and whatever session they are in."""

    def __init__(self, line, home, **environment):
        self.home, self.mark = home, f"LAUNCH_{free_port()}"
        self.output = home / "outputs" / self.mark
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment |= {"PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", self.mark: ""}
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(
                line.split(), cwd=home, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def said(self):
        return self.output.read_text()

    def left(self):
        """The processes that are alive."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"\0{self.mark}=".encode() in b"\0" + path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                pass
        return found

    def until(self, condition, limit=120):
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, (self.said, self.left())
            time.sleep(0.1)

    def logs(self, run, count):
        """Wait until the run has logged more steps than `count`."""
        path = self.home / run / "metrics.jsonl"
        self.until(lambda: path.is_file() and len(path.read_text().splitlines()) > count)

    def end(self):
        self.until(lambda: self.process.poll() is not None and not self.left())
        return self.process.returncode


@pytest.fixture
def launch(home):
    launched = []

    def start(line, **environment):
        launched.append(Launch(line, home, **environment))
        return launched[-1]

    yield start
    for one in launched:
        for number in one.left():
            os.kill(number, signal.SIGKILL)
        one.process.wait()


def last_step(home, run):
    """The step of a stopped run's newest checkpoint, which is its last: nothing is lost."""
    step = metrics(home / run)[-1]["step"]
    assert checkpoints(home / run)[-1] == f"checkpoint-{step:07d}"
    return step


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_sigterm_to_a_launcher_saves_and_leaves_no_process(launcher, launch, home):
    """A training by one launcher goes on under the other; its loaders' workers get the signal too."""
    step = last_step(home, "launched") if (home / "launched").is_dir() else 0
    training = launch(f"{launcher} {TRANSLATION} {LONG} --num-workers 1 --out launched")
    training.logs("launched", step + 1)
    training.process.terminate()
    assert training.end() != 0
    assert "2 processes\n" in training.said and "SIGTERM after step" in training.said
    assert last_step(home, "launched") > step
    assert f"at step {step} of" in training.said or not step
    assert (home / f"launched/checkpoint-{last_step(home, 'launched'):07d}/process-1.safetensors").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_launcher_that_dies_leaves_no_process(number, launch, home):
    """`accelerate launch` of one process, as in the README, passes no signal on."""
    training = launch(f"accelerate launch -m daynight {SEGMENTATION} {LONG} --out alone-{number}")
    training.logs(f"alone-{number}", 1)
    training.process.send_signal(number)
    training.end()
    assert "SIGTERM after step" in training.said and last_step(home, f"alone-{number}") > 1


def test_two_nodes(launch, home):
    """Two launchers with the configuration of examples/cluster; a signal to one stops both."""
    line = (
        f"accelerate launch --config_file {EXAMPLES}/cluster/nodes.yaml --num_processes 2 --main_process_ip 127.0.0.1 "
        f"--main_process_port {free_port()} --machine_rank {{}} -m daynight {SEGMENTATION} {LONG} --out nodes"
    )
    nodes = [launch(line.format(rank)) for rank in (0, 1)]
    nodes[0].logs("nodes", 1)
    nodes[1].process.terminate()
    assert all(node.end() != 0 for node in nodes)
    assert "2 processes\n" in nodes[0].said and "SIGTERM after step" in nodes[0].said
    assert last_step(home, "nodes") > 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_every_command_under_every_launcher(launcher, launch, home):
    name = launcher.split()[0]
    for line in (
        f"{TRANSLATION} {SIX} --out {name}/translator",
        f"translate --in cs --out {name}/cs_night --model {name}/translator",
        f"{SEGMENTATION} {SIX} --translated {name}/cs_night --ssl --out {name}/segmentation",
        f"predict --in dz --out {name}/dz --model {name}/segmentation",
        f"eval --dataset cs --model {name}/segmentation --json {name}/scores.json",
    ):
        launched = launch(f"{launcher} {line}")
        assert launched.end() == 0, launched.said
        assert "2 processes\n" in launched.said
    assert json.loads((home / name / "scores.json").read_text())[0]["images"] == 5


SLURM = {
    "scontrol": 'case $1 in show) echo first; echo second;; requeue) echo "requeued $2" >>said;; esac',
    "squeue": "echo $STATE",
    "scancel": 'echo "$@" >>said; kill -TERM $(cat tasks)',
    "srun": """
        while [ "$1" != bash ]; do shift; done
        for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 "$@" & echo $! >>tasks; done
        status=0
        for task in $(cat tasks); do wait $task || status=$?; done
        exit $status
    """,
    "daynight": """
        trap 'kill $!; exit 143' TERM
        echo "$RANK of $WORLD_SIZE, $LOCAL_RANK, $MASTER_ADDR $MASTER_PORT: $*" >>said
        [ "$1" = stay ] || exit ${1:-0}
        sleep 60 & wait
    """,
}


@pytest.mark.parametrize(
    "state, command, code, requeued",
    [("RUNNING", "stay", 143, True), ("CANCELLED", "stay", 143, False), ("RUNNING", "0", 0, False),
     ("RUNNING", "2", 2, False)],
)  # fmt: skip
def test_the_slurm_script(state, command, code, requeued, tmp_path):
    """SIGTERM to the script reaches the tasks, and the job is queued again where these have work left."""
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STATE": state, "SLURM_JOB_ID": "7"}
    words = ["bash", EXAMPLES / "cluster/job.slurm", command, "--out", "two words"]
    job, said = subprocess.Popen(words, cwd=tmp_path, env=os.environ | environment), tmp_path / "said"
    end = time.monotonic() + 20
    while not said.is_file() or said.read_text().count(" of 2") < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    if command == "stay":
        job.terminate()
    assert job.wait(20) == code
    lines = said.read_text().splitlines()
    assert sorted(lines[:2]) == [f"{rank} of 2, {rank}, first 20007: {command} --out two words" for rank in (0, 1)]
    assert lines[2:] == ["--signal=TERM 7"] * (command == "stay") + ["requeued 7"] * requeued
