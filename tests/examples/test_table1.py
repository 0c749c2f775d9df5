"""examples/night/run.py: its rows, what it goes on from, and its figures against independent ones."""

import importlib.util
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)

EXAMPLES = Path(__file__).parents[2] / "examples"
spec = importlib.util.spec_from_file_location("table1", EXAMPLES / "night/run.py")
table1 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table1)

CLASSES = [(name, (40 * i, 200 - 40 * i, 90)) for i, name in enumerate([*table1.FIVE[::-1], "pole"])]
COMMON = {"size": "native", "crop": "32", "steps": 2, "batch-size": 2, "save-every": 1, "log-every": 1}
SEGMENTING = COMMON | {"backbone": "test_resnet", "head-width": 8, "rho": "0.01,0.05", "ssl-start": 0}
TRANSLATING = COMMON | {"feature-network": "test_resnet", "feature-layer": ["layer1"], "width": 4, "blocks": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    trees.folder(data / "camvid_day", classes=CLASSES, train=5, val=3)
    trees.folder(data / "camvid_dusk", classes=CLASSES, train=7, val=0)
    trees.bdd100k(data / "bdd", train=("night",) * 4 + ("daytime",) * 2, val=("night",) * 3 + ("daytime",))
    for name in ("bdd_night", "bdd_day"):
        trees.folder(data / name, classes=CLASSES, train=0, val=3, brightness=90)
    return data


@pytest.fixture
def table(data, tmp_path, monkeypatch):
    """A target's table of small networks; what it runs is run in this process, and listed."""

    def make(target):
        table = table1.Table1(data, tmp_path / "out", target)
        table.weights, table.ran = "random", []
        for name, options in (("translating", TRANSLATING), ("segmenting", SEGMENTING)):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(options))
            setattr(table, name, path)

        def run(*words):
            table.ran.append(" ".join(map(str, words)))
            if words[0] == "-m":
                result = daynight(" ".join(f"'{word}'" for word in words[2:]))
                assert result.code == 0, result
            else:
                shell(sys.executable, *map(str, words), cwd=tmp_path, OMP_NUM_THREADS="1")
            return 1.5

        monkeypatch.setattr(table1, "run", run)
        return table

    return make


def independent(folder, root, names, chosen):
    """mIoU over classes and accuracy of `daynight predict`, by NumPy, in percent."""
    out = folder / f"predicted-{root.name}"
    assert daynight(f"predict --model '{folder}' --in {root} --out '{out}'").code == 0
    pairs = []
    for label in sorted(root.rglob("labels/**/*.png")):
        inside = label.relative_to(root / "labels")
        path = out / "ids/images" / inside
        if path.is_file() and (inside.parts[0] == "val" or not (root / "images/val").is_dir()):
            pairs.append([np.array(Image.open(p)).ravel() for p in (label, path)])
    truth, found = (np.concatenate(part) for part in zip(*pairs, strict=True))
    truth, found = truth[truth != 255], found[truth != 255]
    ious = [((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum() for c in map(names.index, chosen)
            if (truth == c).any()]  # fmt: skip
    return 100 * np.mean(ious), 100 * (truth == found).mean()


def test_rows_by_night(table, data):
    night = table("night")
    for row in ("baseline", "ssl", "cyclegan+fl, longer"):
        for _ in range(2):
            folder = night.train(row, 0)
        options = json.loads((folder / "options.json").read_text())["options"]
        assert options["ssl"] == row.startswith("ssl") and options["steps"] == (6 if "longer" in row else 2)
    night.train("baseline", 1)
    # one translator and its translations serve all, and nothing is done twice
    kinds = [line.split()[2] for line in night.ran]
    assert [kinds.count(kind) for kind in ("translate-train", "translate", "seg-train")] == [1, 1, 4]
    assert not list(night.out.glob("runs/*/checkpoint-*"))

    names = [name for name, _ in CLASSES]
    for root in ("bdd_night", "camvid_day"):
        chosen = table1.FIVE if root == "bdd_night" else names
        entry = night.scores("ssl")[0][root]
        miou, accuracy = table1.figures([entry])
        expected = independent(night.out / "runs/ssl-0", data / root, names, chosen)
        assert float(miou.split()[0]) == pytest.approx(expected[0], abs=0.06)
        assert float(accuracy) == pytest.approx(expected[1], abs=0.06)
    report = night.report()
    rows = {line.split(" | ")[0][2:]: line for line in report.splitlines() if line.startswith("| ")}
    assert rows["baseline"].startswith("| baseline | 2 | ") and " ± " in rows["baseline"]
    assert rows["baseline"].endswith(" | 2 |")  # 1.5 CPU minutes
    assert "translator cyclegan+fl: 3 CPU minutes." in report
    night.figure()
    assert (night.out / "figure.png").is_file()


def test_the_recipe_best_with_a_part_and_the_teachers_that_are_left(table):
    dusk = table("dusk")
    dusk.train_all(["best", "best, mix"], 1)
    logged = [dusk.out / f"runs/{row}-0/metrics.jsonl" for row in ("best", "best, mix")]
    assert ["ce_pasted" in file.read_text() for file in logged] == [False, True]
    dusk.leave()
    (model,) = (dusk.out.parent / "models").iterdir()
    assert model.name == "dusk-best" and (model / "README.md").is_file()
    assert daynight(f"eval --model '{model}' --dataset {dusk.data}/camvid_dusk").code == 0


def test_the_recipe_best_is_the_row():
    recipe = json.loads((EXAMPLES.parent / "daynight/recipes/best.json").read_text())["seg-train"]
    words = table1.ROWS["best"].options.split()
    assert words == ["--ssl", "--head", recipe["head"]]
    common = json.loads((EXAMPLES / "night/segmentation-cpu.json").read_text())
    assert {key: common[key] for key in recipe.keys() & common.keys() if key[0] != "#"}.items() <= recipe.items()
    assert recipe["lambda-ssl"] == common["lambda-ssl"] and recipe["steps"] == common["steps"]
    translators = [
        json.loads((EXAMPLES.parent / f"daynight/recipes/{name}.json").read_text())["translate-train"].items()
        for name in ("best", "quick")
    ]
    best, quick = ({key: value for key, value in items if key[0] != "#"} for items in translators)
    assert best == quick


def test_programs_beside_each_other_each_tell_their_time():
    with ThreadPoolExecutor(2) as pool:
        long, short = pool.map(lambda n: table1.run("-c", f"sum(range({n}))"), (60_000_000, 10))
    assert long > short > 0
    with pytest.raises(SystemExit) as stopped:
        table1.run("-c", "raise SystemExit(3)")
    assert stopped.value.code == 3


def test_the_oracle_scores_each_half_by_who_has_not_seen_it(table, data):
    dusk = table("dusk")
    folder = dusk.train("oracle", 0)
    assert [entry["images"] for entry in dusk.score(folder / "0", [dusk.half(0)])] == [4]
    seen = [{p.resolve() for p in (dusk.out / f"half-{i}/images/train").iterdir()} for i in (0, 1)]
    scored = [{p.resolve() for p in (dusk.out / f"half-{i}/images/val").iterdir()} for i in (0, 1)]
    everything = {p.resolve() for p in data.glob("camvid_dusk/images/**/*.*") if p.is_file()}
    assert scored[0] | scored[1] == everything and not any(a & b for a, b in zip(seen, scored, strict=True))
    entries = dusk.scores("oracle")[0]
    assert len(entries["camvid_dusk"]["of_images"]) == 7 and len(entries["camvid_day"]["of_images"]) == 6
    shutil.rmtree(folder / "1")
    assert dusk.train("oracle", 0) == folder and len(dusk.ran) == 2


def test_the_study_measures_short_translators(table, monkeypatch):
    monkeypatch.setattr(table1, "STUDY", {"as set": "", "deconv": "--upsample deconv"})
    monkeypatch.setattr(table1, "STUDIED", 0.5)
    night = table("night")
    night.study()
    found = json.loads((night.out / "study/measures.json").read_text())
    rows = {Path(row["translator"]).name: row for row in found["translators"]}
    assert {"as set", "deconv", "day", "darken"} < rows.keys() and rows["as set"]["cycle"] != rows["deconv"]["cycle"]
    assert json.loads((night.out / "study/deconv/options.json").read_text())["options"]["steps"] == 1
    before = len(night.ran)
    night.study()
    assert len(night.ran) == before + 1  # measured again, not trained


def test_a_rival_and_its_translator(table):
    dusk = table("dusk")
    for row in ("mixup", "cycada+day"):
        dusk.train(row, 0)
    assert [line.split()[-1].split("/")[-1] for line in dusk.ran][-1] == "cycada+day-0"
    assert len(dusk.scores("mixup")) == len(dusk.scores("cycada+day")) == 1


def test_translators_of_other_days(table, data):
    night = table("night")
    for row in ("bdd days+day", "all days+day"):
        night.train(row, 0)
    links = {split: list((night.out / "camvid_day+bdd/images" / split).iterdir()) for split in ("train", "val")}
    assert {split: len(some) for split, some in links.items()} == {"train": 5 + 2, "val": 3 + 1}
    options = [json.loads((night.out / f"translators/{name}/options.json").read_text())["options"]
               for name in ("bdd days", "all days")]  # fmt: skip
    assert [Path(o["day"]).name for o in options] == ["bdd", "camvid_day+bdd"]
    # what is translated are the labelled days, whatever the translator has learned from
    labelled = {path.stem for path in (data / "camvid_day/images/train").iterdir()}
    for name in ("bdd days", "all days"):
        translated = night.out / f"translations/{name}/camvid_day/images/train"
        assert {path.stem for path in translated.iterdir()} == labelled
    assert len(night.scores("all days+day")) == 1


def test_recipes_and_rows_are_what_the_commands_take():
    for recipe in ("cpu", "gpu"):
        for name, command in (("translator", "translate-train"), ("segmentation", "seg-train")):
            path = EXAMPLES / f"night/{name}-{recipe}.json"
            assert "nowhere" in daynight(f"{command} --config {path} --day nowhere").line
