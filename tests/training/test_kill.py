"""What ends a command early, for real, in processes of their own: killed, told to stop, hung, out of space.

The same command again ends with what one that nobody disturbed ends with.
"""

import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from daynight.data import images
from daynight.system.files import Lock

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import kill  # noqa: E402

# nohup and a shell's & have the tests, and what they start, ignore these
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

TRAININGS = ["translate-train", "seg-train"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    kill.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(streets):
    """What is in the output folder of a command that nobody disturbed."""
    made = {}

    def contents(command):
        if command not in made:
            made[command] = end(command, streets / f"{command}-whole")
        return made[command]

    return contents


@pytest.fixture
def place(streets, request):
    """A new folder beside the data to type commands in; what they leave running is killed."""
    yield streets / re.sub(r"\W+", "-", request.node.name)
    for child in multiprocessing.active_children():
        child.kill()


def log(place):
    return place.with_name(f"{place.name}.log").read_text()


def start(command, place, words="", first=None):
    return kill.start(f"{kill.COMMANDS[command]} {words}", place, first=first)


def end(command, place, words=""):
    """What is in the output folder of a command that runs to its end, apart from the record of its options."""
    child = start(command, place, words)
    child.join(120)
    assert child.exitcode == 0, log(place)
    return {name: content for name, content in kill.contents(place / "out").items() if name != "options.json"}


def until(condition, child):
    """Wait until something is so, while `child` runs."""
    while not condition():
        assert child.poll() is None if isinstance(child, subprocess.Popen) else child.is_alive()
        time.sleep(0.001)


def assert_intact(place, *checkpoints):
    """These checkpoints are there and whole, and nothing is half-written."""
    assert kill.newest(place / "out") == max(checkpoints, default=0) and not kill.written(place / "out")
    assert {path.name for path in (place / "out").glob("checkpoint-*")} == {f"checkpoint-{n:07d}" for n in checkpoints}


# kill -9


@pytest.mark.parametrize(
    ("command", "kills"),
    [("translate-train", 5), ("seg-train", 5), ("translate", 5), ("audit", 3), ("predict", 2), ("eval", 2)]
    + [pytest.param(command, 20, marks=pytest.mark.slow) for command in kill.COMMANDS],
)
def test_killed_at_any_moment(command, kills, streets, place):
    tally = kill.kill(command, kills, streets, seed=kills)
    assert (tally.kills, tally.wrong) == (kills, []) and tally.ends > 0


def test_the_lock_dies_with_its_process_though_its_loaders_live_on(undisturbed, place):
    child = start("seg-train", place, "--num-workers 2")
    until((place / "out/checkpoint-0000002").is_dir, child)
    child.kill()
    child.join(60)
    os.killpg(child.pid, 0)  # raises where no loader is left
    assert end("seg-train", place) == undisturbed("seg-train")
    while True:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)


@pytest.mark.parametrize("command", kill.COMMANDS)
def test_a_second_process_is_refused(command, place):
    with Lock(place / "out"):
        child = start(command, place)
        child.join(60)
        assert child.exitcode == 2
        option = "--save" if command == "eval" else "--out"
        assert log(place).splitlines()[-1] == f"daynight: {option} out: another process is working on it"
        assert [path.name for path in (place / "out").iterdir()] == [".daynight.lock"]
    assert not list((place / "out").iterdir())


# signals


def act_at(step, act):
    """Have a training `act()` when the update of a step, counted from 1, is done; None: of each."""
    from daynight.training.run import Run

    log = Run.log

    def log_and_act(self, now, **values):
        log(self, now, **values)
        if step in (now + 1, None):
            act()

    Run.log = log_and_act


def hang():
    print("hangs", flush=True)
    time.sleep(1000)


def hang_in_c():
    """Without letting another thread run."""
    ctypes.PyDLL(None).sleep(1000)


@pytest.mark.parametrize(
    ("command", "number"),
    [("translate-train", signal.SIGTERM), ("seg-train", signal.SIGINT), ("seg-train", signal.SIGHUP)],
)
def test_a_signal_to_all_processes_of_a_training_saves(command, number, undisturbed, place):
    """As Ctrl-C and launchers send it: to the workers that read images too, while the training waits for them."""
    child = start(command, place, "--num-workers 2")
    until((place / "out/checkpoint-0000002").is_dir, child)
    os.killpg(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number, log(place)
    last = log(place).splitlines()[-1]
    assert re.fullmatch(rf"{number.name} after step \d+: saved; the same command goes on from there", last), log(place)
    assert kill.newest(place / "out") == int(last.split()[3].rstrip(":"))
    assert end(command, place) == undisturbed(command)


def test_a_second_sigint_ends_at_once_and_a_second_sigterm_waits(undisturbed, place):
    child = start("seg-train", place, first=partial(act_at, 5, hang))
    until(lambda: "hangs" in log(place), child)
    for number in (signal.SIGTERM, signal.SIGTERM):
        os.kill(child.pid, number)
        child.join(0.3)
        assert child.is_alive()
    os.kill(child.pid, signal.SIGINT)
    child.join(10)
    assert child.exitcode == 130
    assert_intact(place, 2, 4)
    assert end("seg-train", place) == undisturbed("seg-train")


def translate_slowly():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
    save = images.save_image

    def save_slowly(*image):
        time.sleep(0.3)
        save(*image)

    images.save_image = save_slowly


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_translation_between_images(number, undisturbed, place):
    child = start("translate", place, first=translate_slowly)
    until(lambda: list(place.glob("out/images/train/0*.png")), child)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number
    assert "Traceback" not in log(place)
    assert_intact(place)
    assert end("translate", place) == undisturbed("translate")


def ignore_hangup():
    """As nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize("command", ["seg-train", "translate"])
def test_what_nohup_has_ignored_is_ignored(command, undisturbed, place):
    child = start(command, place, first=ignore_hangup)
    until(lambda: "out/" in log(place) or (place / "out/.daynight.lock").exists(), child)
    os.kill(child.pid, signal.SIGHUP)
    child.join(60)
    assert child.exitcode == 0, log(place)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs the signals that a process handles")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_is_one_line(number, tmp_path):
    """From 20 ms after the start on, in a process that imports everything itself."""
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    for file in ("images/a.png", "model/config.json"):  # what is looked for before the imports
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    for after in (0, 0.5, 1, 1.5):
        words = [sys.executable, "-m", "daynight", *"predict --in images --model model --out out".split()]
        command = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        caught = Path(f"/proc/{command.pid}/status")
        until(lambda file=caught: int(file.read_text().split("SigCgt:")[1].split()[0], 16) >> 14 & 1, command)
        time.sleep(after)
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
        assert (command.returncode, err) == (128 + number, f"daynight: {said}\n"), after


# hanging


def test_a_pause_is_not_a_hang(undisturbed, place):
    """However much longer than --stall-minutes: `docker pause`, SIGSTOP."""
    child = start("seg-train", place, "--stall-minutes 0.05")
    until((place / "out/checkpoint-0000002").is_dir, child)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(child.pid, signal.SIGCONT)
    child.join(60)
    assert child.exitcode == 0, log(place)
    contents = kill.contents(place / "out")
    assert {name: content for name, content in contents.items() if name != "options.json"} == undisturbed("seg-train")


def hang_at_first():
    from daynight import segmentation

    segmentation.read_sets = lambda *_: hang()


def test_a_training_that_hangs_before_its_first_step_ends(place):
    child = start("seg-train", place, "--stall-minutes 0.05", hang_at_first)
    child.join(30)
    assert child.exitcode == 1
    line = "no step ended for 0.05 minutes (--stall-minutes); there is no checkpoint yet"
    assert log(place).splitlines()[-1] == f"daynight: {line}" and "in hang\n" in log(place)


@pytest.mark.parametrize(
    ("act", "said"),
    # the timer for C is half a minute at least
    [(hang, "daynight: no step ended"), pytest.param(hang_in_c, "Timeout", marks=pytest.mark.slow)],
)
def test_a_training_that_hangs_ends_and_says_where(act, said, undisturbed, place):
    child = start("seg-train", place, "--stall-minutes 0.05", partial(act_at, 5, act))
    child.join(60)
    assert child.exitcode == 1
    assert said in log(place) and f"in {act.__name__}\n" in log(place)
    if act is hang:
        line = "no step ended for 0.05 minutes (--stall-minutes); the newest checkpoint is out/checkpoint-0000004"
        assert log(place).splitlines()[-1] == f"daynight: {line}"
    assert_intact(place, 2, 4)
    assert end("seg-train", place) == undisturbed("seg-train")


@pytest.mark.parametrize(("minutes", "nap"), [(0.05, 0.4), (0, 0)])
def test_a_training_whose_steps_end_is_left_alone(minutes, nap, undisturbed, place):
    """Though all of them together take longer."""
    child = start("seg-train", place, f"--stall-minutes {minutes}", partial(act_at, None, partial(time.sleep, nap)))
    child.join(60)
    assert child.exitcode == 0, log(place)


# the disk


def limit_files():
    """As a full disk, after so many bytes of a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def fill_disk():
    os.remove("out/metrics.jsonl")
    os.symlink("/dev/full", "out/metrics.jsonl")


@pytest.mark.parametrize(
    ("act", "cause", "left"),
    [
        (limit_files, "File too large", "the newest checkpoint is out/checkpoint-0000004"),
        (fill_disk, "No space left on device", "the newest checkpoint is out/checkpoint-0000004"),
        (partial(shutil.rmtree, "out"), "No such file or directory", "there is no checkpoint yet"),
    ],
    ids=["in a checkpoint", "in metrics.jsonl", "gone"],
)
def test_a_disk_that_takes_no_more_ends_a_training(act, cause, left, undisturbed, place):
    child = start("seg-train", place, first=partial(act_at, 5, act))
    child.join(60)
    assert child.exitcode == 1
    line = log(place).splitlines()[-1]
    assert re.fullmatch(rf"daynight: --out out: cannot be written to at step 6 \(.*{cause}.*\); {left}", line), line
    if act in (limit_files, fill_disk):
        assert_intact(place, 2, 4)
    if act is not fill_disk:
        assert end("seg-train", place) == undisturbed("seg-train")


def lose_folder():
    """The output folder of a translation goes away after a few images."""
    from daynight.data.images import Writer

    save, count = Writer.save, iter(range(1000))

    def save_and_lose(self, *arguments):
        if next(count) == 5:
            shutil.rmtree("out")
        save(self, *arguments)

    Writer.save = save_and_lose


def test_a_lost_folder_ends_what_writes_images(undisturbed, place):
    child = start("translate", place, first=lose_folder)
    child.join(60)
    assert child.exitcode == 1
    assert re.match(r"daynight: out/.*\.png: cannot be written \(No such file", log(place).splitlines()[-1]), log(place)
    assert end("translate", place) == undisturbed("translate")


# loaders


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("command", TRAININGS)
def test_the_number_of_loader_workers_changes_nothing(command, workers, undisturbed, place):
    assert end(command, place, f"--num-workers {workers}") == undisturbed(command)


def small_shared_memory():
    """As in a container that was given little of it."""
    NEWNS = 0x20000
    ctypes.CDLL(None).unshare(NEWNS)
    os.system("mount --make-rprivate / && mount -t tmpfs -o size=64k none /dev/shm")


@pytest.mark.skipif(
    os.geteuid() != 0 or os.system("unshare -m mount -t tmpfs none /mnt 2>/dev/null") != 0, reason="needs mount"
)
def test_a_small_dev_shm_is_named_with_the_options_that_help(place):
    child = start("translate-train", place, "--crop 128 --num-workers 2", small_shared_memory)
    child.join(60)
    assert child.exitcode == 1
    line = "/dev/shm is too small for image readers; give --num-workers 0, or docker run --shm-size 8g"
    assert log(place).splitlines()[-1] == f"daynight: {line}" and "Traceback" not in log(place)
