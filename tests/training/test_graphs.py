"""A step as a CUDA graph, on a CPU: `Tape` notes the operations of a step, and repeats them on the same memory."""

import json
import shutil

import pytest
import torch
import trees
from safetensors.torch import load_file
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from daynight import translation
from daynight.training.graphs import WARM_UP, Captured

aten = torch.ops.aten
# what makes the host wait for a GPU, which ends the capture of a graph
WAITS = {aten._local_scalar_dense.default, aten.lift_fresh.default, aten.nonzero.default, aten.equal.default}


class Tape(TorchDispatchMode):
    """As a graph, it knows tensors by their place in memory, and nothing of Python."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in WAITS:
            raise RuntimeError(f"{operation} waits for the device")
        results = operation(*args, **(kwargs or {}))
        self.calls.append((operation, *tree_map(lambda x: x, (args, kwargs or {}, results))))
        return results

    @torch.no_grad()
    def play(self):
        for operation, args, kwargs, results in self.calls:
            for place, x in zip(tree_leaves(results), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(x, torch.Tensor) and place.data_ptr() != x.data_ptr():
                    place.copy_(x)


class Recorder:
    """In the place of graphs.Recorder. What is recorded has been computed once, so the first replay does nothing."""

    replays = 0

    def run(self, function):
        return function()

    def record(self, function):
        with Tape() as tape:
            results = function()

        def replay():
            if Recorder.replays:
                tape.play()
            Recorder.replays += 1
            return results

        Recorder.replays = 0
        return replay


class Eager(Recorder):
    """The same without a tape: what `Recorder` must equal to the bit."""

    def record(self, function):
        return function


class Unable(Recorder):
    def record(self, function):
        with Tape():
            function()
            return torch.ones(()).item()


def test_inputs_are_copied_and_results_kept_by_nobody():
    seen = torch.zeros(())

    def function(x, number):
        seen.add_(number)
        return {"twice": (x * 2,)}, x + number

    captured, given, results = Captured(function, Recorder()), [], []
    for i in range(WARM_UP + 4):
        given.append(torch.full((3,), i + 1.0))
        results.append(captured(given[-1], i))
    assert [x.tolist() for x in given] == [[i + 1] * 3 for i in range(WARM_UP + 4)]
    for i, (twice, more) in enumerate(results):
        assert twice["twice"][0].tolist() == [2 * (i + 1)] * 3 and more.tolist() == [2 * i + 1] * 3
    assert seen == sum(range(WARM_UP + 4))


LINE = (
    "translate-train --day day --night dark --size native --crop 32 --width 4 --blocks 1 --batch-size 2 --history 3 "
    "--feature-network test_resnet --feature-layer layer1 --feature-weights random --validate-every 4 "
    "--lr-drop 0.5 --log-every 2 --save-every 4 --steps"
)


@pytest.fixture
def home(tmp_path):
    trees.folder(tmp_path / "data/day", train=2, val=1)
    trees.bare(tmp_path / "data/dark")
    return tmp_path


@pytest.fixture
def train(home, monkeypatch):
    def train(out, recorder, steps=8):
        monkeypatch.setattr(translation, "recorder", lambda accelerator, wanted: recorder if wanted else None)
        return daynight(f"{LINE} {steps} --out {out}", home)

    return train


def results_of(run):
    """All that a run leaves behind, but for times."""
    tensors = {}
    for file in (run / "checkpoint-0000008").glob("*.safetensors"):
        tensors |= {f"{file.name}/{name}": x for name, x in load_file(file).items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pictures = {path.name: path.read_bytes() for path in (run / "previews").iterdir()}
    return tensors, lines, pictures


def assert_equal(a, b):
    assert a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(x, b[0][name]) for name, x in a[0].items())


def test_a_training_on_a_graph_is_the_training_without(home, train):
    """Weights, averages, optimisers, the history, the log and the previews; also after a resume, which records anew."""
    for name, recorder in (("graph", Recorder()), ("eager", Eager())):
        result = train(name, recorder)
        assert (result.code, result.err) == (0, "")
    found = results_of(home / "graph")
    assert_equal(found, results_of(home / "eager"))
    assert len(found[0]) > 100 and len(found[1]) == 4
    shutil.copytree(home / "graph", home / "again")
    shutil.rmtree(home / "again/checkpoint-0000008")
    assert "at step 4 of 8" in train("again", Recorder()).out
    assert_equal(results_of(home / "again"), found)


def test_a_run_goes_on_with_or_without_a_graph(home, train):
    """Numbers of a graph have float32: the results are close."""
    assert train("plain", None).code == 0
    expected = results_of(home / "plain")[0]
    for first, second in ((Recorder(), None), (None, Recorder())):
        name = "first" if first else "second"
        assert train(name, first).code == 0
        shutil.rmtree(home / name / "checkpoint-0000008")
        result = train(name, second)
        assert result.code == 0 and "at step 4 of 8" in result.out
        found = results_of(home / name)[0]
        assert all(torch.allclose(x, expected[n], atol=2e-4) for n, x in found.items() if "average" in n)


def test_a_capture_that_fails_is_said_and_the_run_goes_on(home, train):
    result = train("run", Unable())
    assert result.code == 0 and "Traceback" not in result.err
    assert result.err.count("cannot be recorded as a CUDA graph (aten._local_scalar_dense.default waits") == 2
    assert "--no-graph" in result.err
    assert len(results_of(home / "run")[1]) == 4


def test_no_graph_switches_it_off(home, monkeypatch):
    wishes = []
    monkeypatch.setattr(translation, "recorder", lambda accelerator, wanted: wishes.append(wanted))
    for words in ("", "--no-graph"):
        assert daynight(f"{LINE} 1 --out run{words} {words}", home).code == 0
    assert wishes == [True, False]
