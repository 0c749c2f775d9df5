"""examples/index.py: rank correlations against numbers reckoned by hand, and the whole script on a small scale."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import clean  # noqa: F401 (a fixture)

from daynight.demo import streets

SCRIPT = Path(__file__).parents[2] / "examples/index.py"
spec = importlib.util.spec_from_file_location("index", SCRIPT)
index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(index)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1, 2, 3], [10, 20, 90], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        # 1 - 6 Σd² / (n (n² - 1)), d = 2, 1, 1
        ([1, 2, 3, 4], [3, 1, 2, 4], 1 - 6 * 6 / 60),
        # equal values share a rank: of 1, 2.5, 2.5, 4 and 1, 2, 3, 4
        ([1, 2, 2, 5], [1, 2, 3, 4], 4.5 / (4.5 * 5) ** 0.5),
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_spearman(a, b, expected):
    assert index.spearman(np.array(a, float), np.array(b, float)) == pytest.approx(expected)


def test_what_would_be_chosen():
    """Within each run the index is right and day is wrong; over both it is the other way round."""
    names = {name: np.arange(3.0) for name in index.MEASURES}
    runs = [
        names
        | {"truth": np.array([3.0, 1.0, 2.0]) + 10 * i, "index": np.array([3.0, 1.0, 2.0]) - 10 * i, "day_miou": x}
        for i, x in enumerate((np.array([1.0, 3.0, 2.0]), np.array([11.0, 13.0, 12.0])))
    ]
    rows = {row["measure"]: row for row in index.compare(runs)}
    assert rows["index"]["within"] == [1, 1, 1] and rows["day_miou"]["within"] == [-1, -1, -1]
    assert rows["index"]["all"][0] < 0 < rows["day_miou"]["all"][0]
    assert rows["truth"]["gain"] == rows["index"]["gain"] == [1, 1, 1]
    assert rows["step"]["gain"] == [0, 0, 0] and rows["day_miou"]["gain"] == [-1, -1, -1]


def test_the_whole_script(tmp_path, monkeypatch, capsys):
    def script(line):
        monkeypatch.setattr(sys, "argv", ["index.py", *line.split()])
        index.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, night in (("day", False), ("night", True)):
        streets.write(tmp_path / name, 0, night, train=4, val=2, size=(32, 64))
    config = {"size": "native", "crop": "32", "backbone": "test_resnet", "backbone-weights": "random", "head-width": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    script(
        "--out out --day day --night night --config config.json --seeds 1 --steps 4 --every 2 --rows baseline -- "
        "--batch-size 2"
    )
    found = json.loads((tmp_path / "out/index.json").read_text())
    assert found["runs"] == ["out/baseline-0"]
    assert [row["measure"] for row in found["measures"]] == [*index.MEASURES, "truth"]
    # what is there is read again, by other classes
    assert script("--runs out/baseline-0 --classes sky road")[-1].startswith("| truth | 1.00")
    with pytest.raises(SystemExit, match="2"):
        script("--runs day")
    assert capsys.readouterr().err.startswith("index.py: day: wanted: a run of seg-train")
