"""examples/backbones.py: what it says of a backbone."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("backbones", Path(__file__).parents[2] / "examples/backbones.py")
backbones = importlib.util.module_from_spec(spec)
spec.loader.exec_module(backbones)


def test_a_row_is_of_the_network():
    row = backbones.measure("test_vit", 64, 96)
    assert row["stride"] == "16" and 0.3 < row["parameters"] < 0.4
    assert row["seconds"] > 0 and row["memory"] >= 0
    assert backbones.measure("test_maxvit", 64, 64)["stride"] == "32, tiles of 160"
    assert backbones.exports("test_resnet") == "yes"


def test_the_table_names_what_the_page_names():
    page = (Path(__file__).parents[2] / "examples/backbones.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.count("|") > 5]
    assert rows == list(backbones.NAMES)
