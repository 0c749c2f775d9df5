"""examples/night/rank.py: its measures by hand, and the program on small models."""

import importlib.util
import math
import sys

import pytest
import torch
from test_cli import clean, shell  # noqa: F401 (clean is a fixture)
from test_table1 import EXAMPLES, data, table  # noqa: F401 (fixtures)

sys.path.insert(0, str(EXAMPLES / "night"))
spec = importlib.util.spec_from_file_location("rank_models", EXAMPLES / "night/rank.py")
rank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank)


def test_spearman_by_hand():
    assert rank.spearman([1.0, 2.0, 3.0], [10.0, 20.0, 90.0]) == pytest.approx(1)
    assert rank.spearman([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(-1)
    # 1 - 6 Σd² / n(n² - 1), d = 1, 1, 0, 0
    assert rank.spearman([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0]) == pytest.approx(1 - 6 * 2 / 60)


def test_density_is_one_where_all_pixels_are_alike_and_lower_in_clusters():
    g = torch.Generator().manual_seed(0)
    alike = torch.full((4, 30, 30), 0.25)
    assert rank.density(alike, g) == pytest.approx(1, abs=1e-5)
    clusters = torch.zeros(4, 30, 30)
    for i in range(4):
        clusters[i, :, i::4] = 1
    # each pixel is like a quarter of the others
    assert rank.density(clusters, g) == pytest.approx(math.log(125) / math.log(499), abs=0.02)


def test_models_are_measured_once_and_ranked(table, data, tmp_path):  # noqa: F811
    night = table("night")
    night.train_all(["baseline", "ssl", "cyclegan+fl+day"], 1)
    models = [night.out / f"runs/{row}-0" for row in ("baseline", "ssl", "cyclegan+fl+day")]
    words = ["--day", data / "camvid_day", "--night", data / "bdd", "--truth", data / "bdd_night", "--size", "32"]
    words += ["--translator", night.out / "translators/cyclegan+fl", "--judge", models[0], "--out", tmp_path / "rank"]
    words = [sys.executable, EXAMPLES / "night/rank.py", *models, *words, "--images", 3, "--steps", 2]
    first = shell(*map(str, words), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert first.returncode == 0, first
    rows = [line.split(" | ") for line in first.stdout.splitlines() if line.startswith("| ")]
    named = {row[0][2:]: row for row in rows}
    assert {"baseline-0", "ssl-0", *rank.MEASURES} <= named.keys() and named["ssl-0"][1] == "SSL"
    truths = [float(row[2]) for row in rows[1:4]]
    assert truths == sorted(truths, reverse=True)
    assert all(float(named[x][-1].rstrip(" |")) <= max(truths) - min(truths) + 0.1 for x in rank.MEASURES)  # the regret
    for column, measure in enumerate(rank.MEASURES, 3):  # the regret, of the first by each measure
        values = [float(row[column].rstrip(" |")) for row in rows[1:4]]
        first_by = [truth for truth, value in zip(truths, values, strict=True) if value == max(values)]
        if len(first_by) == 1:
            assert float(named[measure][-1].rstrip(" |")) == pytest.approx(max(truths) - first_by[0], abs=0.11)
    again = shell(*map(str, words), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert again.returncode == 0 and ": day " in first.stdout and ": day " not in again.stdout  # nothing is done twice
    assert first.stdout.endswith(again.stdout)
