"""examples/benchmark.py: its references do the work that ours do, and a run on toy networks says what it measured."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import clean  # noqa: F401 (a fixture)

from daynight import losses
from daynight.inference import tiles as inference
from daynight.models.deeplab import DeepLabV2
from daynight.models.perceptual import FeatureNetwork

spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[2] / "examples/benchmark.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
CPU = torch.device("cpu")


@functools.cache
def vgg():
    return FeatureNetwork("vgg11", ("features.4",), pretrained=False)


def check_translator(_folder):
    torch.manual_seed(0)
    benchmark.check_translator(vgg(), CPU)


def check_segmentation(_folder):
    torch.manual_seed(0)
    benchmark.check_segmentation(DeepLabV2(*zip(*benchmark.CLASSES, strict=True), "test_resnet", hidden=8), CPU)


def check_translate(folder):
    torch.manual_seed(0)
    benchmark.check_translate(folder, CPU)


def twice(function):
    return lambda *arguments: 2 * function(*arguments)


@pytest.mark.parametrize(
    "check, broken",
    [
        (check_translator, [(losses, name) for name in ("cycle", "feature", "adversarial_discriminator")]),
        (check_segmentation, [(losses, "cross_entropy"), (losses, "consistency"), (benchmark, "drawn_twice")]),
        (check_translate, [(inference, "to_levels")]),
    ],
)
def test_the_references_do_the_same_work(check, broken, tmp_path, monkeypatch):
    """And where one of the two does not, the program ends."""
    check(tmp_path / "equal")
    for number, (module, name) in enumerate(broken):
        with monkeypatch.context() as patch:
            if name == "drawn_twice":  # the student that is trained is not the one that predicts
                patch.setattr(
                    benchmark.OurSegmentation, "follow", lambda self: self.student.head.fc8[0].bias.data[0].add_(1)
                )
            elif name == "to_levels":
                patch.setattr(module, name, lambda tensor, of=inference.to_levels: of(-tensor))
            else:
                patch.setattr(module, name, twice(getattr(module, name)))
            with pytest.raises(SystemExit, match="differ by"):
                check(tmp_path / f"{number}")


def test_the_matrix_of_the_reference_by_hand():
    """Logits that favour one class a column, at the labels' size: 2×2 pixels, of which one has no label."""
    logits = torch.zeros(1, 19, 2, 2)
    logits[0, 3, :, 0] = logits[0, 7, :, 1] = 1.0
    matrix = benchmark.plain_score(logits, np.array([[3, 3], [255, 7]], np.uint8))
    assert {place: int(matrix[place]) for place in zip(*np.nonzero(matrix), strict=True)} == {
        (3, 3): 1,
        (3, 7): 1,
        (7, 7): 1,
    }


def test_a_product_of_matrices_has_a_rate_and_a_share_of_the_roof(monkeypatch):
    """4×5 by 5×6 are 240 operations, here in 0.5 s; the reference takes twice as long."""
    a, b = torch.ones(4, 5), torch.ones(5, 6)
    seconds = {1: 1.0, 2: 0.5}
    slow, fast = (benchmark.Variant(f"{n}", lambda n=n: (a @ b, n)[1]) for n in seconds)
    monkeypatch.setattr(benchmark, "seconds_of", lambda run, device: seconds[run()])
    row = benchmark.measured(benchmark.Row("", "", [slow, fast]), 3, CPU, {"no": {"conv": 1e-6}}, False)
    entry = row["variants"][1]
    assert entry["gflop"] == pytest.approx(240e-9) and entry["gflops"] == pytest.approx(480e-9)
    assert entry["of_roof"] == pytest.approx(0.48) and entry["ratio"] == 2 and entry["ratio_spread"] == [2, 2]


def test_a_run_on_toy_networks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(benchmark, "roof", lambda *_: {"gemm": 50.0, "conv": 100.0})
    rows = "--rows original ssl translate scoring loader --precision no".split()
    benchmark.main(["--quick", "--small", "4", "1", "--rounds", "1", *rows, "--json", str(tmp_path / "figures.json")])
    result, shown = json.loads((tmp_path / "figures.json").read_text()), capsys.readouterr().out
    assert result["quick"] and "QUICK" in shown and len(result["rows"]) == 5
    for row in result["rows"]:
        assert row["work"] in shown and row["against"] in shown
        plain, *ours = row["variants"]
        assert plain["variant"] == "plain" and plain["ratio"] == 1 and ours
        for entry in row["variants"]:
            assert entry["seconds"] > 0 and entry["of_roof"] == pytest.approx(entry["gflops"] / 100)
    # without the identity loss, which is two generator forwards and backwards of six
    plain, ours = result["rows"][0]["variants"]
    assert 0.6 < ours["gflop"] / plain["gflop"] < 0.85
    # the shared backbone and 3×3 layers of the head
    plain, ours = result["rows"][1]["variants"]
    assert ours["gflop"] < 0.85 * plain["gflop"]


def test_the_rows_of_a_gpu_on_a_cpu(tmp_path, capsys, monkeypatch):
    """All but CUDA itself, with the table for benchmark.md; what the time does not suffice for is named."""
    monkeypatch.setattr(benchmark, "roof", lambda *_: {"gemm": 50.0, "conv": 100.0})
    monkeypatch.setattr(benchmark, "feature_network", lambda device: vgg())
    words = ["--gpu", "--quick", "--small", "4", "1", "--rounds", "1", "--json", str(tmp_path / "gpu.json")]
    benchmark.main([*words, "--rows", "translator", "ssl", "translate", "captured", "scoring"])
    result, shown = json.loads((tmp_path / "gpu.json").read_text()), capsys.readouterr().out
    assert len(result["rows"]) == 4 and result["left out"] == {}
    names = [[(v["variant"], v["precision"]) for v in row["variants"]] for row in result["rows"]]
    plain = [("plain", "no"), ("plain", "bf16")]
    assert names[0] == plain + [(name, p) for p in ("no", "bf16") for name in ("ours", "ours, captured")]
    assert names[1] == [*plain, ("ours", "no"), ("ours", "bf16")] and ("ours, tiles", "bf16") in names[2]
    for row in result["rows"]:
        for v in row["variants"]:
            assert f"| {row['work']} | {v['variant']} | {v['precision']} |" in shown
            assert v["seconds"] > 0 and v["launches"] == v["waits"] == 0 and v["peak"] is None
    assert [(x["eager"], x["captured"]) for x in result["captured"]] == [
        (0, 0)
    ] * 2 and "captured ones 0.0e+00" in shown
    benchmark.main([*words[:-2], "--minutes", "0"])
    assert "translator8: not reached in 0 minutes" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device; with --quick"):
        benchmark.main(["--gpu"])


@pytest.mark.slow
def test_growth(tmp_path, capsys):
    """Each in a process of its own, whose memory is not that of this one."""
    benchmark.main(["--rows", "growth", "--counts", "2", "4", "--json", str(tmp_path / "figures.json")])
    entries, shown = json.loads((tmp_path / "figures.json").read_text())["growth"], capsys.readouterr().out
    assert [(e["command"], e["images"]) for e in entries] == [(n, k) for k in (2, 4) for n in ("translate", "eval")]
    assert all(0 < e["seconds"] < 60 and 100 < e["peak"] < 4000 and f"{e['peak']:.0f}" in shown for e in entries)
