"""The commands as a user types them, on small data sets in the real layouts: what they write and what they say."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from safetensors.numpy import load_file
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)

from daynight.data.labels import CITYSCAPES, LABEL_ID_OF, colorize

REPOSITORY = Path(__file__).parents[1]
TRAINING = {
    "TRANSLATE_TRAIN": dict(
        steps=3, crop=32, size="native", width=4, blocks=1, log_every=1,
        feature_network="test_resnet", feature_layer="layer1 layer2", feature_weights="random",
    ),
    "SEG_TRAIN": dict(
        steps=5, crop=32, size="native", batch_size=2, lr=0.01, log_every=1,
        backbone="test_resnet", backbone_weights="random", head_width=8,
    ),
}  # fmt: skip
SMALL = {f"DAYNIGHT_{c}_{name}".upper(): str(value) for c, values in TRAINING.items() for name, value in values.items()}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A folder in which the README's four lines have been typed, and what each of them said."""
    home, said = tmp_path_factory.mktemp("home"), {}
    draw_data(home / "data")
    said["translate-train"] = daynight("translate-train", home, **SMALL)
    said["translate"] = daynight("translate --in cs/ --out cs_night/", home)
    # away from the repository there is no folder of that name to run, and -m is what accelerate takes
    words = "accelerate launch -m daynight seg-train --ssl".split()
    said["seg-train"] = shell(*words, cwd=home, OMP_NUM_THREADS="1", **SMALL)
    said["eval"] = daynight("eval --dataset nd --json results/nd.json", home)
    return home, said


@pytest.fixture
def home(typed):
    return typed[0]


@pytest.fixture
def said(typed):
    return typed[1]


def draw_data(root):
    trees.cityscapes(root / "cs", kinds=("labelIds", "labelTrainIds"))
    trees.bdd100k(root / "bdd")
    trees.dark_zurich(root / "dz")
    trees.nighttime_driving(root / "nd")


def files(root, pattern="*"):
    """The files below a folder, hidden ones too, relative to it."""
    return sorted(path.relative_to(root) for path in root.rglob(pattern) if path.is_file())


def images(root):
    return [path for path in files(root) if path.suffix.lower() in (".png", ".jpg", ".webp") and "gt" not in str(path)]


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def times(root):
    return {path: (root / path).stat().st_mtime_ns for path in files(root)}


def entries(path):
    return json.loads(path.read_text(encoding="utf-8"))


# the four lines


def check_run(run, steps, models):
    names = {path.name for path in run.iterdir()} - {".daynight.lock", "best"}
    assert names == {
        "options.json",
        "metrics.jsonl",
        "index.html",
        "previews",
        "cache",
        f"checkpoint-{steps:07d}",
        *models,
    }
    for model in models:
        names = [path.as_posix() for path in files(run / model)]
        assert names == ["README.md", "config.json", "model.safetensors"]
    options = entries(run / "options.json")
    assert {"options", "versions", "data"} <= options.keys()
    assert {"daynight", "revision", "torch", "cuda", "timm"} <= options["versions"].keys()
    assert options["options"]["seed"] == 0 and options["options"]["steps"] == steps
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert files(run / "previews") == [Path("0000000.png"), Path(f"{steps:07d}.png")]
    return options


def test_translate_train_as_typed(home, said):
    result = said["translate-train"]
    assert result.code == 0 and result.err == ""
    for line in ("cs: Cityscapes, train+train_extra, 6 images", "bdd: BDD100K, train, 2 images", "dz: Dark Zurich"):
        assert line in result.out
    options = check_run(home / "runs/day2night", 3, ["day2night", "night2day"])
    assert options["data"].keys() >= {"--day", "--night"}
    assert options["options"]["night"] == ["bdd", "dz"]
    terms = {f"{kind}_{time}" for kind in ("gan", "cycle", "feature", "d") for time in ("day", "night")}
    assert all(line.keys() >= {"step", *terms} for line in metrics(home / "runs/day2night"))


def test_translate_as_typed(home, said):
    result = said["translate"]
    assert result.code == 0 and result.err == ""
    day, night = home / "data/cs", home / "cs_night"
    assert set(files(night)) == set(files(day)) | {Path("translation.json")}
    assert len(images(day)) == 8
    for path in files(day):
        if path in images(day):
            assert pixels(night / path).shape == pixels(day / path).shape
            assert (pixels(night / path) != pixels(day / path)).mean() > 0.5
        else:
            assert (night / path).read_bytes() == (day / path).read_bytes()


def test_seg_train_as_typed(home, said):
    said = said["seg-train"].stdout
    assert "training on both, translations from cs_night, SSL" in said
    assert "cs: Cityscapes, train, 4 images, 4 labels (labelIds), 19 classes" in said
    options = check_run(home / "runs/seg", 5, ["teacher"])
    assert options["options"]["ssl"] is True
    first, *_, last = metrics(home / "runs/seg")
    assert first.keys() == {"step", "ce_day", "ce_fake_day"}  # a fifth of the steps goes before Eq. 15
    assert last.keys() - first.keys() >= {
        "entropy", "labelled/road", "ssl_fake_day", "ssl_strong_night", "mask_fake_day", "mask_strong_night"
    }  # fmt: skip


def test_eval_as_typed(home, said):
    result = said["eval"]
    assert result.code == 0 and result.err == ""
    assert "nd: Nighttime Driving, test, 3 images, 3 labels (labelTrainIds), 19 classes" in result.out
    assert "labelTrainIds of 2018" in result.out
    (entry,) = entries(home / "results/nd.json")
    relied_on = "model dataset split images size labels mean classes miou accuracy iou".split()
    assert list(entry)[: len(relied_on)] == relied_on
    assert list(entry)[len(relied_on) :] == ["miou_interval", "label_set", "scales", "flip"]
    assert {key: entry[key] for key in relied_on[:7] + ["scales", "flip"]} == {
        "model": "runs/seg", "dataset": "nd", "split": "test", "images": 3, "size": "native",
        "labels": "labelTrainIds", "mean": "present", "scales": [1], "flip": False,
    }  # fmt: skip
    assert entry["classes"] == list(CITYSCAPES.names) == list(entry["iou"])
    row = next(line for line in result.out.splitlines() if "runs/seg" in line)
    low, high = entry["miou_interval"]
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells == [f"{entry['miou']:.1f}", f"{low:.1f} to {high:.1f}", f"{entry['accuracy']:.1f}"]
    for name, value in entry["iou"].items():
        row = next(line for line in result.out.splitlines() if line.startswith(f"│   {name} "))
        assert row.split("│")[2].strip() == ("–" if value is None else f"{value:.1f}")


def test_the_same_lines_again(home):
    """Nothing is done twice: translations stay, and a run that has ended says so."""
    before = {name: times(home / name) for name in ("cs_night", "runs/day2night", "runs/seg")}
    weights = {path: (home / path).read_bytes() for path in files(home, "*.safetensors")}
    lines = {name: (home / name / "metrics.jsonl").read_text() for name in ("runs/day2night", "runs/seg")}
    assert "at step 3 of 3" in daynight("translate-train", home, **SMALL).out
    assert "8 images, 8 there" in daynight("translate --in cs/ --out cs_night/", home).out
    again = daynight("seg-train --ssl", home, **SMALL)
    assert again.code == 0 and "at step 5 of 5" in again.out
    assert times(home / "cs_night") == before["cs_night"]
    assert {path: (home / path).read_bytes() for path in files(home, "*.safetensors")} == weights
    assert {name: (home / name / "metrics.jsonl").read_text() for name in lines} == lines
    for name in ("runs/day2night", "runs/seg"):
        assert times(home / name).keys() == before[name].keys()


def test_other_options_for_a_run_are_refused_by_name(home):
    before = times(home / "runs/seg")
    assert "--ssl" in daynight("seg-train", home, **SMALL).line
    assert "--steps" in daynight("seg-train --ssl --steps 6", home, **SMALL).line
    assert "--no-resume" in daynight("seg-train --ssl --no-resume", home, **SMALL).line
    assert "--night" in daynight("seg-train --ssl --night dz", home, **SMALL).line
    assert times(home / "runs/seg") == before


def test_the_options_of_a_run_given_back(home, tmp_path):
    line = f"seg-train --config runs/seg/options.json --out {tmp_path}/again"
    assert daynight(line, home).code == 0
    ours, theirs = (entries(run / "options.json") for run in (tmp_path / "again", home / "runs/seg"))
    assert ours["data"] == theirs["data"]
    changed = {name for name, value in ours["options"].items() if theirs["options"][name] != value}
    assert changed == {"config", "out"}
    # the same options and seed are the same run, but for the order of sums: the launcher gives its process one thread,
    # and Adam makes a step of lr out of any gradient, however near to 0
    ours, theirs = (load_file(run / "teacher/model.safetensors") for run in (tmp_path / "again", home / "runs/seg"))
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-2, atol=5e-3) for name in theirs)


@pytest.mark.skipif(not (REPOSITORY / "daynight/__main__.py").is_file(), reason="not a checkout")
def test_accelerate_from_the_repository_runs_the_folder(home, tmp_path):
    """There `daynight` is the folder, which Python runs as a script with it at the head of the path."""
    environment = SMALL | {
        "DAYNIGHT_DATA": str(home / "data"),
        "DAYNIGHT_SEG_TRAIN_OUT": str(tmp_path / "seg"),
        "DAYNIGHT_SEG_TRAIN_TRANSLATED": str(home / "cs_night"),
        "DAYNIGHT_SEG_TRAIN_STEPS": "2",
        "OMP_NUM_THREADS": "1",
    }
    result = shell(*"accelerate launch daynight seg-train --ssl".split(), cwd=REPOSITORY, **environment)
    assert "2 steps done" in result.stdout and "training on both" in result.stdout
    check_run(tmp_path / "seg", 2, ["teacher"])


# translate


def translate(home, words, **environment):
    result = daynight(f"translate --model {home}/runs/day2night {words}", home, **environment)
    assert result.code == 0 and result.err == "", result
    return result


def test_reverse_uses_the_other_generator(home, tmp_path):
    translate(home, f"--in nd --out {tmp_path}/day --reverse")
    translate(home, f"--in nd --out {tmp_path}/same --model {home}/runs/day2night/night2day")
    translate(home, f"--in nd --out {tmp_path}/night")
    for path in images(home / "data/nd"):
        assert np.array_equal(pixels(tmp_path / "day" / path), pixels(tmp_path / "same" / path))
        assert not np.array_equal(pixels(tmp_path / "day" / path), pixels(tmp_path / "night" / path))


@pytest.mark.parametrize(("size", "shape"), [("24x40", (24, 40)), ("24", (24, 48)), ("native", (48, 96))])
def test_size_resizes_labels_by_nearest_neighbour(size, shape, home, tmp_path):
    translate(home, f"--in cs --out {tmp_path}/small --size {size}")
    for path in files(home / "data/cs"):
        with Image.open(home / "data/cs" / path) as image, Image.open(tmp_path / "small" / path) as small:
            assert (small.height, small.width) == shape
            if path not in images(home / "data/cs"):
                expected = image.resize(shape[::-1], Image.Resampling.NEAREST)
                assert small.mode == image.mode and np.array_equal(np.asarray(small), np.asarray(expected))


def test_any_tree_of_images(home, tmp_path):
    """Formats, odd sizes, spaces and letters of other alphabets: each translation is where and as its image is."""
    root = trees.bare(tmp_path / "any tree")
    trees.image(root / "Straße nach Été/夜 1.jpeg", (37, 53))
    trees.image(root / "Straße nach Été/夜 2.png", (5, 7))
    trees.image(root / "a.b.c/x.tar.jpg", (61, 30))
    trees.image(root / "gray.png", (20, 31))
    Image.open(root / "gray.png").convert("L").save(root / "gray.png")
    for words in ("", "--batch-size 3 --num-workers 1"):
        out = tmp_path / f"out {len(words)}"
        translate(home, f"--in '{root}' --out '{out}' {words}")
        assert set(files(out)) == set(files(root)) | {Path("translation.json")}
        for path in files(root):
            with Image.open(root / path) as image, Image.open(out / path) as translated:
                assert (translated.size, translated.format) == (image.size, image.format)
                assert translated.mode == "RGB"


def test_batches_and_workers_change_nothing(home, tmp_path):
    translate(home, f"--in cs --out {tmp_path}/one")
    translate(home, f"--in cs --out {tmp_path}/three --batch-size 3 --num-workers 2")
    for path in images(home / "data/cs"):
        one, three = (pixels(tmp_path / name / path).astype(int) for name in ("one", "three"))
        assert abs(one - three).max() <= 1


def test_labels_that_are_links(home, tmp_path):
    """Data sets often lie on another disk and are linked to: a link must not be copied as a link to nowhere."""
    root = trees.cityscapes(tmp_path / "cs", train=1, val=0, train_extra=0)
    (label,) = files(root, "*labelIds.png")
    (root / label).rename(root / label.with_suffix(".real"))
    (root / label).symlink_to((root / label).with_suffix(".real").name)
    translate(home, f"--in {root} --out {tmp_path}/night")
    assert (tmp_path / "night" / label).read_bytes() == (root / label).read_bytes()


def test_translate_makes_only_what_is_missing(home, tmp_path):
    out = tmp_path / "night"
    translate(home, f"--in cs --out {out}")
    contents, before = {path: (out / path).read_bytes() for path in files(out)}, times(out)
    gone, cut, *_ = images(home / "data/cs")
    label = files(out, "*labelIds.png")[0]
    (out / gone).unlink()
    (out / label).unlink()
    (out / cut).write_bytes(contents[cut][:-30])
    assert "8 images, 6 there" in translate(home, f"--in cs --out {out}").out
    assert {path: (out / path).read_bytes() for path in files(out)} == contents
    assert {path for path, time in times(out).items() if time != before[path]} <= {gone, cut, label}
    assert all(times(out)[path] != before[path] for path in (gone, cut))


def test_a_full_disk_leaves_nothing_half_written(home, tmp_path, monkeypatch):
    out, save, count = tmp_path / "night", Image.Image.save, Counter()

    def fill(image, path, *arguments, **settings):
        count["saved"] += 1
        if count["saved"] > 4:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(image, path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fill)
        result = daynight(f"translate --in cs --out {out}", home)
    assert result.code in (1, 2) and "No space left" in result.err and result.err.count("\n") == 1
    made = [path for path in files(out) if path.name != "translation.json"]
    assert len(made) == 4 and all(pixels(out / path).shape == (48, 96, 3) for path in made)
    before = times(out)
    assert "8 images, 4 there" in translate(home, f"--in cs --out {out}").out
    assert all(times(out)[path] == before[path] for path in made)
    assert set(files(out)) == set(files(home / "data/cs")) | {Path("translation.json")}


@pytest.mark.parametrize(("words", "word"), [("--reverse", "model"), ("--size 24", "size")])
def test_two_models_or_sizes_never_share_a_folder(words, word, home, tmp_path):
    translate(home, f"--in nd --out {tmp_path}/night")
    before = times(tmp_path / "night")
    line = daynight(f"translate --in nd --out {tmp_path}/night {words}", home).line
    assert "--out" in line and word in line
    assert times(tmp_path / "night") == before


def test_a_part_of_a_data_set(home, tmp_path):
    """The folder of a split is a tree like any other; the folder of all images stands for the data set."""
    translate(home, f"--in data/cs/leftImg8bit/val --out {tmp_path}/val")
    assert files(tmp_path / "val", "*.png") == files(home / "data/cs/leftImg8bit/val", "*.png")
    translate(home, f"--in data/cs/leftImg8bit --out {tmp_path}/all")
    assert set(files(tmp_path / "all")) == set(files(home / "data/cs")) | {Path("translation.json")}


# predict


def predict(home, words):
    result = daynight(f"predict {words}", home)
    assert result.code == 0 and result.err == "", result
    return result


def test_predict(home, tmp_path):
    root = trees.bare(tmp_path / "in")
    trees.image(root / "Été 1/odd.png", (37, 53))
    trees.image(root / "Été 1/twin.png", (20, 30))
    trees.image(root / "Été 1/twin.jpg", (30, 20))
    out = tmp_path / "out"
    assert "6 images, 0 there" in predict(home, f"--in {root} --out {out} --batch-size 2").out
    assert files(out / "ids") == files(out / "color") == files(out / "overlay")
    assert set(out.iterdir()) == {out / name for name in ("ids", "color", "overlay", "prediction.json")}
    suffixes = {path.with_suffix("") for path in files(root)}
    assert len(suffixes) == 5
    for path in files(root):
        name = f"{path.name}.png" if path.stem == "twin" else f"{path.stem}.png"
        ids, color, overlay = (pixels(out / kind / path.with_name(name)) for kind in ("ids", "color", "overlay"))
        image = np.asarray(Image.open(root / path).convert("RGB"))
        assert ids.dtype == np.uint8 and ids.shape == image.shape[:2] and ids.max() < 19
        assert np.array_equal(color, colorize(ids, CITYSCAPES))
        blend = (image.astype(float) + color) / 2
        assert overlay.shape == image.shape and abs(overlay - blend).max() <= 1
    before = times(out)
    assert "6 images, 6 there" in predict(home, f"--in {root} --out {out}").out
    (out / "color/0.png").unlink()
    assert "6 images, 5 there" in predict(home, f"--in {root} --out {out}").out
    assert {path for path, time in times(out).items() if time != before[path]} == {
        Path(kind, "0.png") for kind in ("ids", "color", "overlay")
    }


def test_predict_label_ids(home, tmp_path):
    predict(home, f"--in cs --out {tmp_path}/train")
    predict(home, f"--in cs --out {tmp_path}/label --ids labelIds")
    assert len(files(tmp_path / "label/ids")) == 8
    for path in files(tmp_path / "label/ids"):
        ids = pixels(tmp_path / "label/ids" / path)
        assert np.array_equal(ids, LABEL_ID_OF[pixels(tmp_path / "train/ids" / path)])
    line = daynight(f"predict --in cs --out {tmp_path}/train --ids labelIds", home).line
    assert "--out" in line and "ids" in line


# eval


@pytest.fixture(scope="module")
def seg(typed):
    """A second model, of a data set with classes of its own: the model's path and the data set's."""
    home, _ = typed
    trees.folder(home / "data/own")
    result = daynight("seg-train --day own --out runs/own", home, **SMALL | {"DAYNIGHT_SEG_TRAIN_STEPS": "2"})
    assert result.code == 0, result
    return home / "runs/own"


def draw_model(folder, new, paths):
    """A model that sees many classes in some images, which one of five steps does not: its mean logits are made 0."""
    import torch

    from daynight.models.deeplab import DeepLabV2
    from daynight.models.hub import load_model, save_model

    model = load_model(str(folder), "teacher", "--model", DeepLabV2)
    with torch.no_grad():
        for layer in model.head.fc8:
            layer.weight.normal_(generator=torch.Generator().manual_seed(0))
        batch = torch.stack([torch.from_numpy(pixels(path)).permute(2, 0, 1) / 127.5 - 1 for path in paths])
        model.head.fc8[0].bias -= model(batch).mean((0, 2, 3))
    save_model(model, new)


def confusion(truths, predictions, count=19):
    """Rows: truth; columns: prediction; by Counter rather than by arithmetic."""
    matrix = np.zeros((count, count), int)
    for truth, prediction in zip(truths, predictions, strict=True):
        for (t, p), number in Counter(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True)).items():
            if t != 255:
                matrix[t, p] += number
    return matrix


@pytest.mark.parametrize("labels", ["labelIds", "labelTrainIds"])
def test_scores_are_those_of_the_predictions(labels, home, tmp_path):
    """Against the confusion matrix of what `predict` writes, by each rule of averaging."""
    model, out, root = tmp_path / "model", tmp_path / "predictions", trees.nighttime_driving(tmp_path / "nd")
    draw_model(home / "runs/seg/teacher", model, [root / path for path in images(root)])
    predict(home, f"--in {root} --out {out} --model {model}")
    truths, predictions = [], [pixels(out / "ids" / path) for path in images(root)]
    classes = np.unique(predictions)
    assert len(classes) >= 3
    for path, prediction in zip(images(root), predictions, strict=True):
        # a truth that is partly predicted, never knows the last class that is, and knows one that is not
        truth = np.where(prediction == classes[-1], 255 if labels == "labelIds" else classes[0], prediction)
        truth[:10] = next(i for i in range(19) if i not in classes)
        truth[:, :20] = 255
        truth[20:30] = classes[0]
        truths.append(truth)
        label = f"{path.stem.removesuffix('_leftImg8bit')}_gtCoarse_{labels}.png"
        values = LABEL_ID_OF[truth] if labels == "labelIds" else truth
        Image.fromarray(values).save(root / "gtCoarse_daytime_trainvaltest/test/night" / label)
    matrix = confusion(truths, predictions)
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    ious = np.divide(hits, union, out=np.zeros(19), where=union > 0)
    means = {"present": ious[matrix.sum(1) > 0].mean(), "official": ious[union > 0].mean(), "all": ious.mean()}
    assert len({round(mean, 6) for mean in means.values()}) == 3  # else the data would not tell the rules apart
    for rule, mean in means.items():
        line = f"eval --dataset {root} --model {model} --labels {labels} --mean {rule} --json {tmp_path}/{rule}.json"
        result = daynight(line, home)
        assert result.code == 0 and f"mIoU ({rule} classes)" in result.out
        (entry,) = entries(tmp_path / f"{rule}.json")
        assert entry["mean"] == rule and entry["labels"] == labels
        assert entry["miou"] == pytest.approx(100 * mean) and mean > 0
        assert entry["accuracy"] == pytest.approx(100 * hits.sum() / matrix.sum())
        for i, name in enumerate(CITYSCAPES.names):
            assert entry["iou"][name] == (pytest.approx(100 * ious[i]) if union[i] else None)


def test_models_by_data_sets(home, tmp_path):
    shutil.copytree(home / "runs/seg/teacher", tmp_path / "a model of the same weights in a folder with a long name")
    models = ["runs/seg", str(next(tmp_path.iterdir()))]
    words = " ".join(f"--model '{model}'" for model in models)
    line = f"eval --dataset nd --dataset cs --dataset dz {words} --json {tmp_path}/r.json --save {tmp_path}/save"
    result = daynight(line, home)
    assert result.code == 0 and result.err == "", result
    found = entries(tmp_path / "r.json")
    sets = [("nd", "test", 3), ("cs", "val", 2), ("dz", "val", 2)]
    assert [(e["model"], e["dataset"], e["split"], e["images"]) for e in found] == [
        (model, *which) for model in models for which in sets
    ]
    assert [e["iou"] for e in found[:3]] == [e["iou"] for e in found[3:]]
    for model, mine in zip(models, (found[:3], found[3:]), strict=True):
        (row,) = (line for line in result.out.splitlines() if line.startswith(f"│ {model} "))
        cells = [cell.strip() for cell in row.split("│")[2:-1]]
        assert cells[0::3] + cells[2::3] == [f"{e[key]:.1f}" for key in ("miou", "accuracy") for e in mine]
    assert "nd test" in result.out and "cs val" in result.out
    assert "sidewalk" not in result.out.split("mIoU (")[1]  # classes stand under one model only
    for model in models:
        for name, split, count in sets:
            scored = [p.relative_to(home / "data" / name) for p in (home / "data" / name).rglob(f"*/{split}/**/*.png")]
            for kind in ("color", "panels"):
                saved = files(tmp_path / "save" / Path(model).name / name / kind)
                assert len(saved) == count and set(saved) <= set(scored)
    color = pixels(tmp_path / "save/seg/nd/color" / images(home / "data/nd")[0])
    predict(home, f"--in nd --out {tmp_path}/p")
    assert np.array_equal(color, pixels(tmp_path / "p/color" / images(home / "data/nd")[0]))


def test_eval_at_another_size_says_so(home, tmp_path):
    daynight(f"eval --dataset nd --size 24 --json {tmp_path}/r.json", home)
    (entry,) = entries(tmp_path / "r.json")
    assert entry["size"] == "24" and entry["images"] == 3


def test_eval_of_own_classes(seg, home, tmp_path):
    result = daynight(f"eval --dataset own --model runs/own --json {tmp_path}/r.json", home)
    assert result.code == 0, result
    (entry,) = entries(tmp_path / "r.json")
    assert entry["classes"] == ["sky", "road", "car"] and entry["split"] == "val" and entry["labels"] == "trainIds"


def test_what_an_option_of_eval_does_not_fit(seg, home):
    assert "--predictions" in daynight("eval --dataset nd --ids labelIds", home).line
    assert "labelIds" in daynight("eval --dataset own --model runs/own --labels labelIds", home).line


def test_label_ids_are_for_cityscapes_alone(seg, home, tmp_path):
    line = daynight(f"predict --in own --out {tmp_path}/p --ids labelIds --model runs/own", home).line
    assert "--ids labelIds" in line and not (tmp_path / "p").exists()
    predict(home, f"--in own --out {tmp_path}/p --model runs/own")
    assert max(pixels(tmp_path / "p/ids" / path).max() for path in files(tmp_path / "p/ids")) < 3


@pytest.mark.parametrize(("one", "other"), [("--model runs/seg", "--model b/seg"), ("--dataset nd", "--dataset b/nd")])
def test_saved_results_never_share_a_folder(one, other, home, tmp_path):
    (tmp_path / "b").mkdir()
    os.symlink(home / "runs/seg", tmp_path / "b/seg")
    os.symlink(home / "data/nd", tmp_path / "b/nd")
    words = f"{one} {other.replace('b/', f'{tmp_path}/b/')}" + " --dataset cs" * ("model" in one)
    line = daynight(f"eval {words} --save {tmp_path}/save", home).line
    assert "--save" in line and not (tmp_path / "save").exists()


# seg-train


def seg_train(home, words, out, cwd=None, **environment):
    environment = SMALL | {"DAYNIGHT_SEG_TRAIN_STEPS": "2", "DAYNIGHT_DATA": str(home / "data")} | environment
    return daynight(f"seg-train --ssl-start 0 {words} --out {out}", cwd or home, **environment)


DAY, FAKE, NIGHT = ["ce_day"], ["ce_fake_day"], ["ssl_strong_night", "mask_strong_night"]
FAKE_SSL = ["ssl_fake_day", "mask_fake_day"]
FROM = "translations from"
ROWS = [
    ("", "training on day\n", DAY),
    ("--train-on day", "training on day\n", DAY),
    ("--train-on translated", f"training on translated, {FROM} cs_night\n", FAKE),
    ("--train-on both", f"training on both, {FROM} cs_night\n", DAY + FAKE),
    ("--translated cs_night", f"training on both, {FROM} cs_night\n", DAY + FAKE),
    ("--translator runs/day2night", f"training on both, {FROM} runs/day2night\n", DAY + FAKE),
    ("--translator darken", f"training on both, {FROM} darken\n", DAY + FAKE),
    ("--translator fourier", f"training on both, {FROM} fourier\n", DAY + FAKE),
    ("--translator darken --train-on translated", f"training on translated, {FROM} darken\n", FAKE),
    ("--ssl", f"training on both, {FROM} cs_night, SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
    ("--ssl --translator runs/day2night", f"{FROM} runs/day2night, SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
    ("--ssl --translator darken", f"{FROM} darken, SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
    ("--ssl --translator fourier", f"{FROM} fourier, SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
    ("--ssl --train-on translated", f"training on translated, {FROM} cs_night, SSL\n", FAKE + FAKE_SSL + NIGHT),
    ("--ssl --train-on day", "training on day, SSL\n", DAY + NIGHT),
    ("--ssl --night dz", ", SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
    (
        "--ssl --unlabelled-day cs",
        "cs: Cityscapes, train+train_extra, 6 images",
        DAY + FAKE + ["ssl_fake_unlabelled_day", "mask_fake_unlabelled_day"] + NIGHT,
    ),
    (
        "--ssl --unlabelled-day own --translator runs/day2night",
        "own: folder, train, 4 images",
        DAY + FAKE + ["ssl_fake_unlabelled_day", "mask_fake_unlabelled_day"] + NIGHT,
    ),
    ("--flip", "training on day\n", DAY),
    ("--num-workers 1 --ssl", ", SSL\n", DAY + FAKE + FAKE_SSL + NIGHT),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said", "terms"), ROWS, ids=[words or "nothing" for words, *_ in ROWS])
def test_rows(words, said, terms, home, seg, tmp_path):
    """What each way of training says, and which terms its loss has."""
    result = seg_train(home, words, tmp_path / "run")
    assert result.code == 0 and result.err == "", result
    assert said in result.out
    found = [{name for name in line if name.startswith(("ce_", "ssl_", "mask_"))} for line in metrics(tmp_path / "run")]
    assert found == [set(terms)] * 2
    assert ("bdd: BDD100K" in result.out) == ("fourier" in words or "--ssl" in words and "--night" not in words)


def test_flip_changes_what_is_learned(home, tmp_path):
    for words in ("", "--flip"):
        seg_train(home, words, tmp_path / f"run{words}")
    one, other = (load_file(tmp_path / f"run{words}/teacher/model.safetensors") for words in ("", "--flip"))
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_init_starts_from_a_teacher(home, tmp_path):
    result = seg_train(home, "--init runs/seg --lr 0", tmp_path / "run")
    assert result.code == 0, result
    ours, theirs = (load_file(run / "teacher/model.safetensors") for run in (tmp_path / "run", home / "runs/seg"))
    head = [name for name in theirs if name.startswith("head.")]
    assert head and all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in head)


def test_init_of_a_translator(home, tmp_path):
    result = daynight(f"translate-train --init runs/day2night --lr 0 --out {tmp_path}/run", home, **SMALL)
    assert result.code == 0, result
    for part in ("day2night", "night2day"):
        ours, theirs = (load_file(r / part / "model.safetensors") for r in (tmp_path / "run", home / "runs/day2night"))
        assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    line = daynight(f"translate-train --init runs/day2night --width 8 --out {tmp_path}/wide", home, **SMALL).line
    assert "--width 8" in line and "4" in line and not (tmp_path / "wide").exists()


REFUSED = [
    ("--translated cs_night --translator runs/day2night", ["--translated", "--translator"]),
    ("--translated data/nd", ["--translated", "4 of 4", "daynight translate"]),
    ("--translated nowhere", ["--translated", "nowhere"]),
    ("--translator nowhere", ["--translator nowhere", "translate-train"]),
    ("--translator runs/seg", ["--translator runs/seg"]),
    ("--init runs/own", ["--init runs/own", "classes", "--day cs"]),
    ("--init runs/day2night", ["--init runs/day2night"]),
    ("--ssl --night nd", ["--night", "nd"]),
    ("--day nd", ["--day", "nd"]),
    ("--ssl --unlabelled-day nowhere", ["--unlabelled-day", "nowhere"]),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=[words for words, _ in REFUSED])
def test_refused(words, named, home, seg, tmp_path):
    line = seg_train(home, words, tmp_path / "run").line
    assert all(word in line for word in named), line
    assert not (tmp_path / "run").exists()


# options that are given and come to nothing: to be refused, or said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--train-on day --translated nowhere", "--translated"),
        ("--train-on day --translator nowhere", "--translator"),
        ("--train-on day --translated cs_night --translator darken", "--translat"),
        ("--unlabelled-day nowhere", "--unlabelled-day"),
        ("--init runs/seg --backbone test_efficientnet", "--backbone"),
    ],
)
def test_nothing_given_is_ignored(words, named, home, tmp_path):
    assert named in seg_train(home, words, tmp_path / "run").line


def test_unlabelled_day_without_translations_leaves_nothing(home, seg, tmp_path):
    line = seg_train(home, "--ssl --unlabelled-day own", tmp_path / "run").line
    assert "4 of 4" in line
    assert not (tmp_path / "run").exists()


# where translations are looked for


@pytest.fixture
def place(home, tmp_path):
    """A working directory with the data, and no translation yet."""
    (tmp_path / "data").mkdir()
    for name in ("cs", "bdd", "dz"):
        os.symlink(home / "data" / name, tmp_path / "data" / name)
    return tmp_path


def run_there(place, words="--train-on both", out="run"):
    result = seg_train(place, words, place / out)
    assert result.code == 0, result
    return result.out


def test_translations_are_looked_for_in_this_order(home, place):
    line = seg_train(place, "--train-on both", place / "run").line
    assert "cs" in line and "daynight translate-train" in line and "--translat" in line
    assert not (place / "run").exists()

    shutil.copytree(home / "runs/day2night/day2night", place / "runs/day2night/day2night")
    assert "translations from runs/day2night\n" in run_there(place, out="run1")
    shutil.copytree(home / "cs_night", place / "data/cs_night")
    assert "translations from data/cs_night\n" in run_there(place, out="run2").replace(f"{place}/", "")
    shutil.copytree(home / "cs_night", place / "cs_night")
    assert "translations from cs_night\n" in run_there(place, out="run3")
    one = next(path for path in images(place / "cs_night") if "train/" in path.as_posix())
    (place / "cs_night" / one).unlink()
    assert "translations from data/cs_night\n" in run_there(place, out="run4").replace(f"{place}/", "")
    shutil.rmtree(place / "data/cs_night")
    assert "translations from runs/day2night\n" in run_there(place, out="run5")
    line = seg_train(place, "--translated cs_night", place / "run6").line
    assert "1 of 4" in line and one.as_posix() in line and "daynight translate" in line
    shutil.rmtree(place / "runs")
    assert "daynight translate-train" in seg_train(place, "--train-on both", place / "run7").line


def test_a_translation_in_another_format_counts(home, place):
    shutil.copytree(home / "cs_night", place / "cs_night")
    for path in images(place / "cs_night"):
        Image.open(place / "cs_night" / path).save((place / "cs_night" / path).with_suffix(".jpg"))
        (place / "cs_night" / path).unlink()
    assert "translations from cs_night\n" in run_there(place)


def test_a_run_does_not_go_on_with_other_translations(home, place):
    shutil.copytree(home / "runs/day2night/day2night", place / "runs/day2night/day2night")
    assert "translations from runs/day2night\n" in run_there(place)
    shutil.copytree(home / "cs_night", place / "cs_night")
    assert "translat" in seg_train(place, "--train-on both", place / "run").line
