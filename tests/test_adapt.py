"""`adapt`: a plan that fits, every stage a run, one page; the same results however often it is ended on the way."""

import json

import pytest
import trees
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)

from daynight.adapt import adapt, plan, stages
from daynight.adapt.stages import line_of
from daynight.config import SegTrainOptions

TINY = {
    "name": "tiny",
    "device": "cpu",
    "recipe": "paper",
    "scale": [1, 1],
    "translate-train": {
        "size": "32", "crop": "32", "width": 2, "blocks": 1, "steps": 2, "validate-images": 2,
        "feature-network": "test_resnet", "feature-weights": "random", "feature-layer": ["layer2"],
    },
    "seg-train": {
        "size": "32", "crop": "32", "batch-size": 2, "steps": 2, "lr": 0.01, "validate-images": 2, "head-width": 8,
        "backbone": "test_resnet", "backbone-weights": "random",
    },
}  # fmt: skip
LARGE = TINY | {"name": "large", "scale": [10**6, 10**7]}
UNKNOWN = TINY | {"name": "unknown", "seg-train": TINY["seg-train"] | {"backbone": "nosuchnetwork"}}
LINE = "adapt --day day --night dark --table table.json --hours 5"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data and `run`, which was ended after three stages, lost what is behind its last checkpoint, and
    went on; what the last line said; and the results of the same line without an end."""
    home = tmp_path_factory.mktemp("adapt")
    trees.folder(home / "data/day", train=6, val=2)
    trees.bare(home / "data/dark")
    trees.folder(home / "data/labels", train=0, val=3, brightness=60)
    table(home, TINY, LARGE, UNKNOWN)
    whole = daynight(f"{LINE} --night-labels labels --out whole", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stages.COMMANDS, "translate", lambda options: exec("raise KeyboardInterrupt"))
        ended = daynight(f"{LINE} --out run", home)
    assert ended.code == 130 and (home / "run/translator/day2night").is_dir()
    assert not (home / "run/results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt, "make_plan", None)  # the plan stays
        first = daynight(f"{LINE} --out run", home)
        (home / "page.html").write_bytes((home / "run/index.html").read_bytes())
        second = daynight(f"{LINE} --night-labels labels --out run", home)
    return home, whole, first, second


def table(home, *sizes):
    (home / "table.json").write_text(json.dumps({"#": "a remark", "adapt": sizes}))


def test_the_plan_comes_first_and_fits(made):
    home, whole, _, _ = made
    assert whole.code == 0, whole
    before, _, after = whole.out.partition("the plan, sizes 'tiny':")
    assert "day: 6 files opened" in before and "eval scores folder, val" in before and "\n1. " not in before
    assert "'large' needs" in before and "the size 'unknown' is passed over: --backbone nosuchnetwork" in whole.err
    found = json.loads((home / "whole/plan.json").read_text())
    assert sum(found["seconds"].values()) <= 5 * 3600
    assert all(stage in after.partition("\n1. ")[0] for stage in found["seconds"])


def test_every_stage_is_a_run_and_shows_its_command_line(made):
    home, whole, _, _ = made
    lines = [line for line in whole.out.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert [line.partition("daynight ")[2].split()[0] for line in lines] == [
        *("seg-train", "seg-train", "translate-train", "translate", "seg-train")
    ]
    assert "--ssl" in lines[4] and "--translated whole/translated" in lines[4]
    for line in (lines[0], lines[2], lines[4]):  # typed by hand, each finds its run done
        again = daynight(line.partition("daynight ")[2], home)
        assert again.code == 0 and "at step 2 of 2" in again.out, again


def test_a_run_that_was_ended_gives_the_same(made):
    home, whole, first, second = made
    assert first.code == second.code == 0, (first, second)
    files = [p.relative_to(home / "whole") for p in (home / "whole").rglob("*.safetensors") if p.name[0] == "m"]
    assert len(files) >= 5
    for name in files:
        assert (home / "run" / name).read_bytes() == (home / "whole" / name).read_bytes(), name
    ours, theirs = (json.loads((home / name / "results.json").read_text()) for name in ("run", "whole"))
    assert [x | {"model": ""} for x in ours] == [x | {"model": ""} for x in theirs]


def test_the_page_answers(made):
    home, _, _, _ = made
    results = json.loads((home / "run/results.json").read_text())
    assert {(x["row"], x["dataset"]) for x in results} == {
        (row, time) for row in ("baseline", "darken", "ssl") for time in ("day", "night")
    }
    page = (home / "run/index.html").read_text()
    for text in ("day labels alone", "with darkened days", "the full method", "truth", "translated", "Health"):
        assert text in page
    night = {x["row"]: x["miou"] for x in results if x["dataset"] == "night"}
    assert f"Use run/{max(night, key=night.get)} " in page and "Label 15 nights" not in page
    assert f"{night['ssl']:.1f}" in page
    # without labels nothing is ranked
    unlabelled = (home / "page.html").read_text()
    assert "Use run/" not in unlabelled and "no measure that needs none is trusted yet" in unlabelled
    assert "Label 15 nights" in unlabelled and "truth" not in unlabelled


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--out run --hours 4", "--hours 4: the plan in run is for 5"),
        ("--out run --seed 1", "--out run: was made with seed 0, not 1"),
        ("--out other --day dark", "no labels"),
        ("--out other --night-labels dark", "no labels"),
        ("--out other --night day", "day images too"),
        ("--out other --table nowhere.json", "--table nowhere.json: cannot be read"),
        ("--out data/dark/new", "--out data/dark/new: lies among the images"),
    ],
)
def test_what_is_refused_before_anything_starts(made, given, words):
    home, _, _, _ = made
    assert words in daynight(f"{LINE} {given}", home).line
    assert not (home / "other").exists() and not (home / "data/dark/new").exists()


def test_too_little_time_names_the_least(made):
    home, _, _, _ = made
    table(home, TINY | {"scale": [1000, 2000]})
    line = LINE.replace("--hours 5", "--hours 0.001")
    refused = daynight(f"{line} --out other", home).line
    assert "--hours 0.001: nothing sensible fits; the least on this machine is " in refused
    assert not (home / "other").exists()
    least = refused.split()[-1]
    table(home, TINY)
    shown = daynight(f"{LINE.replace('--hours 5', f'--hours {float(least) + 1}')} --out other --dry-run", home)
    assert shown.code == 0 and "the plan, sizes 'tiny'" in shown.out and not (home / "other").exists()


@pytest.mark.parametrize("bad", [{}, {"adapt": [{"device": "cpu"}]}, {"adapt": [TINY | {"seg-train": {"stepz": 1}}]}])
def test_a_table_that_is_none(made, bad):
    home, _, _, _ = made
    (home / "bad.json").write_text(json.dumps(bad))
    line = LINE.replace("table.json", "bad.json")
    assert "--table bad.json: " in daynight(f"{line} --out other", home).line


def test_without_the_extra_it_says_what_to_install(made, monkeypatch):
    """Neither the Hub nor the package `lite` is there: one line, before anything starts."""
    home, _, _, _ = made
    lite = {"feature-network": "tf_efficientnet_lite0", "feature-weights": "lite", "feature-layer": ["blocks.1"]}
    table(home, TINY | {"translate-train": TINY["translate-train"] | lite})

    def absent(network, option):
        raise plan.InputError("not installed")

    monkeypatch.setattr(plan, "lite", absent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = daynight(f"{LINE} --out other", home)
    assert result.code == 2 and "lite" in result.err.splitlines()[-1] and not (home / "other").exists()


def test_the_packaged_sizes_are_of_options_that_there_are():
    for device in ("cpu", "cuda"):
        options = type("Options", (), {"table": None})
        assert [size["name"] for size in plan.sizes(options, device)][-1] == {"cpu": "small", "cuda": "quick"}[device]


def test_a_command_line_gives_its_options_back():
    options = SegTrainOptions(day="my day", night=["a", "b"], ssl=True, resume=False, steps=3, rho="0.1,0.2")
    line = line_of("seg-train", options)
    assert line == ("daynight seg-train --day 'my day' --night a --night b --steps 3 --no-resume --ssl --rho 0.1,0.2")
