"""Runs: a training that was stopped goes on as if it had not been, and refuses what would make it another."""

import errno
import fcntl
import gc
import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from daynight import segmentation, translation
from daynight.config import SegTrainOptions, TranslateTrainOptions
from daynight.demo import streets
from daynight.reports.card import last_metrics
from daynight.system.errors import InputError, RunError
from daynight.system.files import is_marked
from daynight.training.checkpoint import Checkpoint
from daynight.training.log import Log
from daynight.training.page import Report
from daynight.training.run import Run, ramp

STEPS = 7


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # networks this small only wait for one another's threads: four times as slow on two busy cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    for name, night in (("day", False), ("night", True)):
        streets.write(root / name, 0, night, train=4, val=1, size=(32, 64))
    return root


def translate_options(data, out, **changes):
    options = TranslateTrainOptions(
        day=str(data / "day"), night=[str(data / "night")], out=str(out), size="native", crop="32", width=4, blocks=1,
        steps=STEPS, batch_size=2, history=3, lr=1e-3, feature_network="test_resnet", feature_weights="random",
        feature_layer=["layer1", "layer2"], save_every=2, log_every=3, precision="no",
    )  # fmt: skip
    return replace(options, **changes)


def seg_options(data, out, **changes):
    # ρ is low: a teacher of seven steps is sure of nothing, and Eq. 15 would be 0
    options = SegTrainOptions(
        day=str(data / "day"), night=[str(data / "night")], out=str(out), size="native", crop="32", steps=STEPS,
        batch_size=2, backbone="test_resnet", backbone_weights="random", output_stride=8, head_width=8, lr=1e-3,
        train_on="day", rho="0.01,0.05", save_every=2, log_every=3, precision="no",
    )  # fmt: skip
    return replace(options, **changes)


def train(options):
    (translation if isinstance(options, TranslateTrainOptions) else segmentation).train(options)


class Killed(BaseException):
    """The machine went away."""


def stop_after(monkeypatch, step, how, options, ends=None):
    """Train until `how()` is called after `step`'s update."""
    log = Run.log

    def log_and_stop(self, now, **values):
        log(self, now, **values)
        if now == step:
            how()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_stop)
        with pytest.raises(ends or Killed) as stopped:
            train(options)
    value = stopped.value
    del stopped
    value.__traceback__ = None
    gc.collect()  # a process that ends lets go of the lock: here the frames hold it
    return value


def kill():
    raise Killed


def checkpoints(folder):
    return sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)


def assert_same_weights(one, other):
    final = f"checkpoint-{STEPS:07d}"
    paths = [*(one / final).glob("*.safetensors"), *one.glob("*/model.safetensors")]
    files = [path.relative_to(one) for path in paths]
    assert len(files) >= 2 and (one / final / "state.safetensors").is_file()
    for file in files:
        tensors, others = load_file(one / file), load_file(other / file)
        assert tensors.keys() == others.keys() and tensors
        assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == [], file
        with safe_open(one / file, "pt") as left, safe_open(other / file, "pt") as right:
            assert left.metadata() == right.metadata()


def assert_same_end(one, other):
    assert_same_weights(one, other)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Uninterrupted runs, and the options that made them."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        "translation": translate_options(data, root / "translation"),
        "supervised": seg_options(data, root / "supervised"),
        # Eq. 15 from the second step on; translated by a run, by `darken`, and more unlabelled day images
        "ssl": seg_options(
            data, root / "ssl", ssl=True, train_on="both", translator=str(root / "translation"), flip=True
        ),
        "ssl-more": seg_options(
            data, root / "ssl-more", ssl=True, train_on="both", translator="darken", unlabelled_day=str(data / "day")
        ),
    }
    for options in made.values():
        train(options)
    return root, made


KINDS = ["translation", "supervised", "ssl", "ssl-more"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_bit_for_bit(kind, runs, tmp_path, monkeypatch):
    root, made = runs
    options = replace(made[kind], out=str(tmp_path / "run"))
    # after the fifth step: the checkpoint of the fourth is left, amid steps that are not logged yet
    stop_after(monkeypatch, 4, kill, options)
    assert checkpoints(tmp_path / "run") == ["checkpoint-0000002", "checkpoint-0000004"]
    torch.manual_seed(99)  # another process would begin otherwise too
    train(replace(options, num_workers=1 if kind == "ssl-more" else None))
    assert checkpoints(tmp_path / "run") == ["checkpoint-0000006", "checkpoint-0000007"]
    assert_same_end(root / kind, tmp_path / "run")


@pytest.mark.parametrize("kind", ["translation", "ssl"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(number, kind, runs, tmp_path, monkeypatch):
    root, made = runs
    options, handler = replace(made[kind], out=str(tmp_path / "run"), save_every=100), signal.getsignal(number)
    ended = stop_after(monkeypatch, 2, lambda: signal.raise_signal(number), options, SystemExit)
    assert ended.code == 128 + number
    assert checkpoints(tmp_path / "run") == ["checkpoint-0000003"]
    assert signal.getsignal(number) is handler
    train(options)
    assert_same_end(root / kind, tmp_path / "run")


@pytest.mark.parametrize(
    "end", ["", '{"step": 7, "ce_d', "\0" * 50, "\0\n"], ids=["whole", "half", "zeros", "a line of zeros"]
)
def test_lines_of_lost_steps_are_not_written_twice(end, runs, tmp_path, monkeypatch):
    """Nor what a process that dies, or a machine that loses power, leaves of a line."""
    root, made = runs
    options = replace(made["supervised"], out=str(tmp_path / "run"), save_every=4)
    stop_after(monkeypatch, 5, kill, options)  # steps 5 and 6 are lost, and the line of step 6 with them
    assert [line["step"] for line in metrics(tmp_path / "run")] == [3, 6]
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write(end)
    train(options)
    assert_same_end(root / "supervised", tmp_path / "run")


@pytest.mark.parametrize(
    "kind, file", [("translation", "process-0"), ("translation", "state"), ("ssl", "state"), ("ssl", None)]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kind, file, runs, tmp_path, monkeypatch, capsys):
    root, made = runs
    folder, options = tmp_path / "run", replace(made[kind], out=str(tmp_path / "run"))
    stop_after(monkeypatch, 4, kill, options)
    if file:
        path = folder / f"checkpoint-0000004/{file}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    else:
        (folder / "checkpoint-0000004/state.safetensors").unlink()
    train(options)
    output = capsys.readouterr()
    assert "checkpoint-0000004 is not whole" in output.err and "at step 2 of 7" in output.out
    assert_same_end(root / kind, folder)


@pytest.fixture
def two_checkpoints(data, tmp_path):
    """A run of a network of two weights with checkpoints after steps 2 and 4, and what they hold."""
    run, model, history = Run(seg_options(data, tmp_path / "run")), torch.nn.Linear(1, 1), translation.History(2)
    run.open({})
    optimizer, held = torch.optim.Adam(model.parameters()), {}
    checkpoint = Checkpoint(
        run.folder, run.accelerator, {}, None, local={"history": history}, model=model, optimizer=optimizer
    )
    for step in (2, 4):
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        history.images.append(torch.full((1, 1), float(step)))
        checkpoint.save(step, {})
        held[step] = [x.clone() for x in (model.weight, optimizer.state[model.weight]["exp_avg"], history.images[-1])]

    def holds(step):
        ours = model.weight, optimizer.state[model.weight]["exp_avg"], history.images[-1]
        return all(map(torch.equal, ours, held[step]))

    return checkpoint, holds


def test_values_since_the_last_line_are_as_many_as_there_are_steps(data, tmp_path):
    """In a checkpoint they once were text in its header, which safetensors limits to 100 MB."""
    run, steps = Run(seg_options(data, tmp_path / "run", log_every=10_000_000, steps=10_000_000)), 60_000
    run.open({})
    one = torch.rand(40, 2, generator=torch.manual_seed(0))
    run.logger.values.update({f"accepted/{i}": [pair] * steps for i, pair in enumerate(one)})
    checkpoint = Checkpoint(run.folder, run.accelerator, {}, None, model=torch.nn.Linear(1, 1))
    checkpoint.save(steps, *run.logger.state(steps))
    step, values, page = checkpoint.restore()
    later = Log(run.folder, run.accelerator, 10_000_000, 10_000_000)
    later.resume(step, values, page)
    for log in (run.logger, later):
        log.add(steps, {f"accepted/{i}": pair / 3 for i, pair in enumerate(one)})
    assert step == steps and later.means(steps + 1) == run.logger.means(steps + 1) and len(values) == 40


def test_a_long_file_of_metrics_is_read_from_its_end(data, tmp_path, monkeypatch):
    """Card, resume and page: parsing all of 700,000 lines takes a minute each."""
    folder, parse, parsed = tmp_path / "run", json.loads, []
    folder.mkdir()
    lines = [json.dumps({"step": step, "ce_day": 1 / step}) + "\n" for step in range(1, 100_001)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    run = Run(seg_options(data, folder, steps=100_000, log_every=1))
    page = Report(folder)
    page.write(99_000, 100_000, None)
    state, whole = json.dumps(page.state()), (folder / "index.html").read_text()
    monkeypatch.setattr(json, "loads", lambda text, **settings: parsed.append(0) or parse(text, **settings))
    assert f"| ce_day | {1 / 99_000:.4g} |" in last_metrics(folder / "metrics.jsonl", 99_000)
    log = Log(folder, run.accelerator, 100_000, 1)
    log.resume(99_000, {}, json.loads(state))
    assert [line["step"] for line in log.lines(99_000, 500)] == list(range(98_501, 99_001))
    log.write_page(99_000, None)
    assert len(parsed) < 5_000
    assert (folder / "metrics.jsonl").read_text() == "".join(lines[:99_000])
    assert (folder / "index.html").read_text().split("<footer>")[0] == whole.split("<footer>")[0]


@pytest.mark.parametrize("file", ["state", "process-0"])
def test_a_checkpoint_cut_at_any_byte_falls_back_to_the_one_before(file, two_checkpoints, capsys):
    checkpoint, holds = two_checkpoints
    path = checkpoint.folder / f"checkpoint-0000004/{file}.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert checkpoint.restore()[0] == 2 and holds(2), length
        error = capsys.readouterr().err
        assert error.startswith(f"warning: {path.parent} is not whole (") and error.count("\n") == 1
    path.write_bytes(whole)
    assert checkpoint.restore()[0] == 4 and holds(4)
    assert capsys.readouterr().err == ""


def test_a_damaged_header_is_no_traceback(two_checkpoints):
    checkpoint, holds = two_checkpoints
    path = checkpoint.folder / "checkpoint-0000004/state.safetensors"
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        assert checkpoint.restore()[0]
    path.unlink()
    assert checkpoint.restore()[0] == 2 and holds(2)


def test_without_a_whole_checkpoint_nothing_is_overwritten(runs, tmp_path, monkeypatch):
    _, made = runs
    folder, options = tmp_path / "run", replace(made["translation"], out=str(tmp_path / "run"))
    stop_after(monkeypatch, 2, kill, options)
    assert checkpoints(folder) == ["checkpoint-0000002"]
    path = folder / "checkpoint-0000002/process-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = {p: p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}
    with pytest.raises(InputError, match="none of its checkpoints is whole"):
        train(options)
    assert {p: p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()} == before


def test_checkpoints_are_the_newest_two_of_the_steps_so_far(two_checkpoints):
    """One that could not be read, of a later step, takes the place of none; nor does half of one that was deleted."""
    checkpoint, holds = two_checkpoints
    (checkpoint.folder / "checkpoint-0000004/state.safetensors").unlink()
    assert checkpoint.restore()[0] == 2 and holds(2)
    checkpoint.save(3, {})
    assert checkpoints(checkpoint.folder) == ["checkpoint-0000002", "checkpoint-0000003"]
    checkpoint.save(10_000_000, {})
    checkpoint.save(10_000_001, {})
    assert checkpoints(checkpoint.folder) == ["checkpoint-10000000", "checkpoint-10000001"]
    assert checkpoint.restore()[0] == 10_000_001


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")
def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_the_old_one_goes(two_checkpoints, monkeypatch):
    checkpoint, _ = two_checkpoints
    folder, done, rename = checkpoint.folder.resolve(), [], os.rename
    (folder / "metrics.jsonl").write_text("")
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(
        os, "rename", lambda old, new: (done.append(f"{Path(old).name} → {new.name}"), rename(old, new))
    )
    checkpoint.save(6, {})
    part = folder / ".daynight-checkpoint-0000006.part"
    written = [Path(path) for path in done[:2]]
    assert {path.parents[1] for path in written} == {part} and all(is_marked(path.parent.name) for path in written)
    assert done[2:] == [
        f"{folder}/metrics.jsonl",
        f"{part}",
        ".daynight-checkpoint-0000006.part → checkpoint-0000006",
        f"{folder}",
        "checkpoint-0000002 → .daynight-checkpoint-0000002.part",
    ]


def test_file_systems_that_cannot_lock_or_flush_a_folder_will_do(data, tmp_path, monkeypatch, capsys):
    fsync = os.fsync

    def flush(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def lock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(fcntl, "flock", lock)
    train(seg_options(data, tmp_path / "run", steps=1))
    assert checkpoints(tmp_path / "run") == ["checkpoint-0000001"]
    assert "without locks" in capsys.readouterr().err


def test_what_a_run_leaves_that_was_killed_as_it_began_is_no_other_work(data, tmp_path):
    folder, options = tmp_path / "run", seg_options(data, tmp_path / "run", steps=1)
    parts = ".daynight-a1b2c3d4.part/part", ".daynight-checkpoint-0000001.part/state.safetensors"
    for name in (".daynight.lock", *parts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("begun")
    train(options)
    (folder / "teacher/.daynight-a1b2c3d4.part").mkdir()
    (folder / "teacher/.daynight-a1b2c3d4.part/.tmpa1B2c3").write_text("begun by safetensors")
    train(options)
    assert not list(folder.rglob(".*"))
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def test_a_run_killed_right_after_its_last_checkpoint_is_tidied(runs, tmp_path):
    root, made = runs
    folder = tmp_path / "run"
    shutil.copytree(root / "ssl", folder)
    shutil.rmtree(folder / "teacher")
    shutil.copytree(folder / "checkpoint-0000006", folder / "checkpoint-0000004")
    train(replace(made["ssl"], out=str(folder)))
    assert checkpoints(folder) == ["checkpoint-0000006", "checkpoint-0000007"]
    assert_same_end(root / "ssl", folder)


def test_a_checkpoint_that_was_not_finished_is_none(runs, tmp_path, monkeypatch):
    root, made = runs
    folder, options = tmp_path / "run", replace(made["supervised"], out=str(tmp_path / "run"))
    stop_after(monkeypatch, 4, kill, options)
    part = folder / ".daynight-checkpoint-0000006.part"
    part.mkdir()
    (part / "state.safetensors").write_bytes(b"begun")
    train(options)
    assert_same_end(root / "supervised", folder)
    assert checkpoints(folder) == ["checkpoint-0000006", "checkpoint-0000007"]


ODD = ["0000004 copy.png", "０００.png", "preview.png", "4.png", "0000003.png"]
FOREIGN = ["a remark", "[1]", "7", '{"ce_day": 1.0}', '{"step": "4"}', '{"step": null}', "[" * 10_000, "\0"]


def test_what_is_not_of_a_run_does_not_stop_it_and_stays(runs, tmp_path, monkeypatch):
    """As a person, a file manager or a full disk leaves it in the folder of a run."""
    root, made = runs
    folder, options = tmp_path / "run", replace(made["supervised"], out=str(tmp_path / "run"))
    stop_after(monkeypatch, 4, kill, options)
    for name in ODD:
        (folder / "previews" / name).write_text("")
    (folder / "previews/0000002.png").write_bytes((folder / "previews/0000004.png").read_bytes()[:20])
    for name in ("checkpoint-²", "checkpoint-0000012 (copy)", "checkpoint-00000000007", "checkpoint-"):
        (folder / name).mkdir()
        (folder / name / "thesis.tex").write_text("years of work")
    (folder / "checkpoint-0000012").write_text("a file")  # which steps 5 to 7 do not need
    (folder / "checkpoint-0000001").symlink_to("nowhere")
    (folder / "checkpoint-0000003").symlink_to("previews")
    ours = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("\n".join(FOREIGN) + "\n" + ours + "a last remark\n")
    before = {path: os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
              for path in [*folder.glob("previews/*"), *folder.glob("checkpoint-*")]}  # fmt: skip
    train(options)
    assert_same_weights(root / "supervised", folder)
    left = (folder / "metrics.jsonl").read_text().splitlines()
    assert left == FOREIGN + (root / "supervised/metrics.jsonl").read_text().splitlines()
    assert {name for name in checkpoints(folder) if (folder / name / "state.safetensors").is_file()} == {
        "checkpoint-0000006", "checkpoint-0000007"
    }  # fmt: skip
    for path, content in before.items():
        if path.name not in ("checkpoint-0000002", "checkpoint-0000004"):
            now = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
            assert now == content, path
    assert re.findall(r'src="(previews/[^"]+)"', (folder / "index.html").read_text()) == [
        f"previews/{step:07d}.png" for step in (7, 6, 4, 0)
    ]
    train(options)


@pytest.mark.parametrize("odd", ["file", "link", "linked folder"])
def test_a_taken_name_of_a_checkpoint_is_told_before_the_steps(odd, runs, tmp_path, monkeypatch):
    _, made = runs
    folder, options = tmp_path / "run", replace(made["supervised"], out=str(tmp_path / "run"))
    stop_after(monkeypatch, 2, kill, options)
    path = folder / "checkpoint-0000006"
    path.write_text("a file") if odd == "file" else path.symlink_to("nowhere" if odd == "link" else "previews")
    with pytest.raises(InputError, match="^--out .*: checkpoint-0000006 is no folder of this run; move it away$"):
        train(options)
    assert path.is_symlink() or path.read_text() == "a file"
    path.unlink()
    train(options)


def test_a_finished_run_stays_as_it_is(runs, tmp_path):
    root, made = runs
    shutil.copytree(root / "ssl", tmp_path / "run")
    train(replace(made["ssl"], out=str(tmp_path / "run")))
    assert_same_end(root / "ssl", tmp_path / "run")


def test_a_run_holds_what_it_should(runs):
    root, made = runs
    for kind, products in (("translation", ["day2night", "night2day"]), ("ssl", ["teacher"])):
        assert checkpoints(root / kind) == ["checkpoint-0000006", "checkpoint-0000007"]
        for product in products:
            names = {path.name for path in (root / kind / product).iterdir()}
            assert names == {"README.md", "config.json", "model.safetensors"}
        assert [line["step"] for line in metrics(root / kind)] == [3, 6, 7]
        record = json.loads((root / kind / "options.json").read_text())
        assert record["options"]["lr"] == 1e-3 and record["options"]["batch-size"] == 2
        assert {"daynight", "revision", "torch", "cuda", "timm"} <= record["versions"].keys()
        assert record["data"].keys() >= {"--day", "--night"}
        assert [path.name for path in sorted((root / kind / "previews").iterdir())] == [
            "0000000.png", "0000002.png", "0000004.png", "0000006.png", "0000007.png",
        ]  # fmt: skip
        assert not [path.name for path in (root / kind).rglob(".*")]


@pytest.mark.parametrize("kind, halves", [("ssl", ("day", "night")), ("ssl-more", ("unlabelled_day", "night"))])
def test_eq_15_takes_part(kind, halves, runs):
    names = {"day": "fake_day", "unlabelled_day": "fake_unlabelled_day", "night": "strong_night"}
    for line in metrics(runs[0] / kind):
        assert {key for key in line if key.startswith("ssl_")} == {f"ssl_{names[half]}" for half in halves}
        assert all(line[f"ssl_{names[half]}"] > 0 and line[f"mask_{names[half]}"] > 0.1 for half in halves)
    assert not [key for key in metrics(runs[0] / "supervised")[0] if key.startswith("ssl_")]


def test_the_health_of_the_teacher_is_in_the_metrics(runs):
    for line in metrics(runs[0] / "ssl"):
        kinds = {kind: {} for kind in ("accepted", "learned", "predicted", "labelled")}
        for name, value in line.items():
            kind, slash, label = name.partition("/")
            if slash and kind in kinds:
                kinds[kind][label] = value
        assert all(len(kinds[kind]) == 11 for kind in ("learned", "predicted", "labelled"))
        assert all(sum(kinds[kind].values()) == pytest.approx(1) for kind in ("learned", "predicted", "labelled"))
        # what is not predicted has no share that could be accepted
        assert kinds["accepted"].keys() == {label for label, share in kinds["predicted"].items() if share}
        for label, share in kinds["accepted"].items():
            learned = kinds["learned"][label] * line["mask_strong_night"]
            assert share * kinds["predicted"][label] == pytest.approx(learned, rel=1e-4)
        assert 0 < line["entropy"] < 1


def test_metrics_are_means_of_the_steps_since_the_last_line(data, runs, tmp_path):
    root, made = runs
    train(replace(made["supervised"], out=str(tmp_path / "run"), log_every=1))
    single = [line["ce_day"] for line in metrics(tmp_path / "run")]
    means = [line["ce_day"] for line in metrics(root / "supervised")]
    assert means == pytest.approx([np.mean(single[:3]), np.mean(single[3:6]), single[6]], rel=1e-6)


# ---- refusals


@pytest.mark.parametrize(
    "kind, changes, option",
    [
        ("supervised", {"lr": 0.5}, "--lr 0.5"),
        ("supervised", {"steps": 9}, "--steps 9"),
        ("supervised", {"seed": 1}, "--seed 1"),
        ("supervised", {"batch_size": 4}, "--batch-size 4"),
        ("supervised", {"flip": True}, "--flip True"),
        ("translation", {"feature_layer": ["layer1"]}, "--feature-layer"),
        ("translation", {"gan": "lsgan"}, "--gan lsgan"),
        ("supervised", {"resume": False}, "--no-resume"),
    ],
)
def test_another_option_than_before_is_refused_by_name(kind, changes, option, runs):
    root, made = runs
    before = {path: path.stat().st_mtime_ns for path in (root / kind).rglob("*")}
    with pytest.raises(InputError, match=option) as refused:
        train(replace(made[kind], **changes))
    assert "\n" not in str(refused.value) and str(root / kind) in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in (root / kind).rglob("*")} == before


def test_what_does_not_change_the_run_may_differ(runs):
    root, made = runs
    train(replace(made["supervised"], save_every=5, log_every=1, stall_minutes=5, num_workers=0, debug=True))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"options": {}}', '{"options": {}, "data": 1}', '{"options": 1}'])
def test_a_damaged_record_of_a_run_is_refused_by_name(content, runs, tmp_path):
    root, made = runs
    shutil.copytree(root / "supervised", tmp_path / "run")
    (tmp_path / "run/options.json").write_text(content)
    with pytest.raises(InputError, match="options.json: not the options of a run"):
        train(replace(made["supervised"], out=str(tmp_path / "run")))


@pytest.mark.parametrize("option, folder", [("--day", "day"), ("--night", "night")])
def test_changed_data_are_refused(option, folder, data, runs, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    options = translate_options(tmp_path / "data", tmp_path / "run", steps=1, lambda_feature=0)
    train(options)
    shutil.copy(data / folder / "images/train/00000.png", tmp_path / "data" / folder / "images/train/00009.png")
    with pytest.raises(InputError, match=f"^{option} .*: not what the run"):
        train(options)


def test_a_folder_that_holds_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="--out .*not empty"):
        train(seg_options(data, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="--out .*a file"):
        train(seg_options(data, tmp_path / "run/thesis.tex"))


def test_two_processes_never_work_on_one_run(data, tmp_path):
    options = seg_options(data, tmp_path / "run")
    first = Run(options)
    first.open({})
    with first.lock, pytest.raises(InputError, match="another process"):
        Run(options).open({})
    Run(options).open({})


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_a_loss_that_is_no_number_ends_the_run_naming_its_first_step(log_every, runs, tmp_path, monkeypatch):
    root, made = runs
    folder, options = tmp_path / "run", replace(made["supervised"], out=str(tmp_path / "run"), log_every=log_every)
    losses, cross_entropy = iter(range(1, 8)), segmentation.losses.cross_entropy
    with monkeypatch.context() as patch:
        fifth_is_nan = lambda *given: cross_entropy(*given) * (float("nan") if next(losses) == 5 else 1)  # noqa: E731
        patch.setattr(segmentation.losses, "cross_entropy", fifth_is_nan)
        with pytest.raises(
            RunError, match="^ce_day is nan at step 5; the newest checkpoint is .*-0000004; a lower --lr"
        ):
            train(options)
    assert checkpoints(folder) == ["checkpoint-0000002", "checkpoint-0000004"]
    train(replace(options, log_every=3))
    assert_same_weights(root / "supervised", folder)


def test_weights_that_are_no_numbers_are_never_saved(runs, tmp_path):
    """The loss of the step that spoils them is still a number."""
    root, made = runs
    folder, options = tmp_path / "run", replace(made["translation"], out=str(tmp_path / "run"))

    def spoil(optimizer, *_):
        if optimizer.state and max(state["step"] for state in optimizer.state.values()) == 4:
            optimizer.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

    hook = register_optimizer_step_post_hook(spoil)
    try:
        with pytest.raises(RunError, match="^weights of generators are nan after step 4; the newest .*-0000002"):
            train(options)
    finally:
        hook.remove()
    assert checkpoints(folder) == ["checkpoint-0000002"]
    train(options)
    assert_same_end(root / "translation", folder)


# ---- learning


def test_training_lowers_the_loss(data, tmp_path):
    train(seg_options(data, tmp_path / "run", steps=30, lr=3e-3, log_every=5))
    losses = [line["ce_day"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


def test_the_translator_learns_to_return(data, tmp_path):
    train(translate_options(data, tmp_path / "run", steps=30, lambda_feature=0, lr=2e-3, log_every=5))
    losses = [line["cycle_day"] + line["cycle_night"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def test_without_night_images_the_labels_of_day_suffice(data, tmp_path):
    # only day data are there
    train(seg_options(data, tmp_path / "run", night=["nowhere"], steps=1))
    assert (tmp_path / "run/teacher/model.safetensors").is_file()


def test_the_page_loads_itself_again_while_the_run_goes_on(runs, tmp_path, monkeypatch):
    _, made = runs
    options, page = replace(made["ssl"], out=str(tmp_path / "run")), tmp_path / "run/index.html"
    stop_after(monkeypatch, 4, kill, options)
    assert "step 4 of 7" in page.read_text() and 'http-equiv="refresh"' in page.read_text()
    stop_after(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT), options, SystemExit)
    assert "step 5 of 7" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()
    train(options)
    text = page.read_text()
    assert "step 7 of 7" in text and 'http-equiv="refresh"' not in text and "Health of the teacher" in text
    assert re.findall(r'src="(previews/[^"]+)"', text) == [f"previews/{step:07d}.png" for step in (7, 6, 4, 2, 0)]


def test_previews_are_pictures(runs):
    root, _ = runs
    for kind in ("translation", "ssl"):
        with Image.open(root / kind / "previews/0000007.png") as image:
            assert image.mode == "RGB" and np.asarray(image).std() > 5


def test_ramp_is_linear_between_its_ends():
    assert [ramp(k, 5, 0.5, 0.9) for k in range(5)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert ramp(0, 50_000, 50, 100) == 50 and ramp(49_999, 50_000, 50, 100) == 100
    assert ramp(0, 1, 3, 7) == 3


def test_ramp_is_zero_before_its_beginning_and_joins_the_line_there():
    assert ramp(9_999, 50_000, 50, 100, since=0.2) == 0
    assert ramp(10_000, 50_000, 50, 100, since=0.2) == pytest.approx(60, abs=0.01)
    assert ramp(49_999, 50_000, 50, 100, since=0.2) == 100


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("make", [translate_options, partial(seg_options, ssl=True, train_on="both")])
def test_compiled_networks_learn_the_same(make, data, tmp_path):
    changes = {"translator": "darken"} if make is not translate_options else {}
    options = make(data, tmp_path / "plain", steps=3, validate_every=2, **changes)
    train(options)
    train(replace(options, out=str(tmp_path / "compiled"), compile=True))
    lines = [metrics(tmp_path / name) for name in ("plain", "compiled")]
    for plain, compiled in zip(*lines, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-3)


def test_a_run_of_a_version_with_other_options_is_refused_in_a_line(data, tmp_path, monkeypatch):
    options = seg_options(data, tmp_path / "run")
    stop_after(monkeypatch, 2, kill, options)
    path = tmp_path / "run/options.json"
    record = json.loads(path.read_text())
    record["options"]["darken"] = 0.5
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="began with a version of daynight that has --darken; .* give another --out"):
        train(options)
