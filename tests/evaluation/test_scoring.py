"""`eval` and `predict`: what is scored, how it is found, and what must never change a score."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from torch.nn import functional as F

from daynight.data.labels import CITYSCAPES, LABEL_ID_OF, TRAIN_ID_OF
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import load_model, save_model


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def draw_model(folder, classes, seed):
    """A model that sees many classes in any image."""
    torch.manual_seed(seed)
    names, colors = zip(*classes, strict=True)
    model = DeepLabV2(list(names), list(colors), "test_resnet", 8, 8, size="native", pretrained=False).eval()
    with torch.no_grad():
        for layer in model.head.fc8:
            layer.weight.normal_()
        batch = F.interpolate(torch.rand(4, 3, 6, 12), trees.SIZE, mode="bilinear") * 2 - 1  # as trees.image
        logits = model(batch)
        model.head.fc8[0].bias -= logits.mean((0, 2, 3))
        scale = 3 / model(batch).std()
        for layer in model.head.fc8:
            layer.weight *= scale
            layer.bias *= scale
    save_model(model, folder)


CLASSES = list(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data sets under data/, the models `a` and `b` of Cityscapes' classes, `three` of as many."""
    home = tmp_path_factory.mktemp("home")
    trees.cityscapes(home / "data/cs", val=5)
    trees.nighttime_driving(home / "data/nd")
    trees.folder(home / "data/own")
    draw_model(home / "a", CLASSES, 0)
    draw_model(home / "b", CLASSES, 1)
    draw_model(home / "three", trees.CLASSES, 2)
    return home


def score(home, words, tmp_path, **environment):
    (tmp_path / "results.json").unlink(missing_ok=True)
    result = daynight(f"eval {words} --json {tmp_path}/results.json", home, **environment)
    assert (result.code, result.err) == (0, ""), result
    return json.loads((tmp_path / "results.json").read_text()), result.out


def scores(entries):
    """What must be equal however it is reckoned: all but what is scored."""
    return [{key: value for key, value in e.items() if key not in ("model", "size", "scales", "flip")} for e in entries]


@pytest.mark.parametrize("words", ["--batch-size 1", "--batch-size 3", "--num-workers 2 --batch-size 2"])
def test_batches_and_workers_change_nothing(words, home, tmp_path):
    expected, _ = score(home, "--dataset cs --model a", tmp_path)
    assert score(home, f"--dataset cs --model a {words}", tmp_path)[0] == expected
    assert 0 < expected[0]["accuracy"] < 50


def test_predictions_score_as_their_model(home, tmp_path):
    """What `predict` writes, given back to `eval`: as train ids, as label ids, whole folder or ids alone."""
    expected, _ = score(home, "--dataset cs --dataset nd --model a", tmp_path)
    for ids in ("trainIds", "labelIds"):
        for name in ("cs", "nd"):
            assert daynight(f"predict --in {name} --out {tmp_path}/{ids}/{name} --model a --ids {ids}", home).code == 0
    for name, wanted in zip(("cs", "nd"), expected, strict=True):
        for words in (f"{tmp_path}/trainIds/{name}", f"{tmp_path}/labelIds/{name}/ids --ids labelIds"):
            (entry,), _ = score(home, f"--dataset {name} --predictions {words}", tmp_path)
            assert scores([entry]) == scores([wanted])
            assert entry["model"] == words.split()[0] and entry["size"] is None


def test_what_a_prediction_leaves_out_counts_as_missed(home, tmp_path):
    """As cityscapesScripts: void in a label is not scored, void in a prediction is a miss and no false positive."""
    root = trees.nighttime_driving(tmp_path / "nd", count=1)
    label = next(root.rglob("*_labelTrainIds.png"))
    truth = np.zeros(trees.SIZE, np.uint8)
    truth[:, 48:] = 13
    truth[:8] = 255
    write(label, truth)
    prediction = np.where(truth == 13, 26, 7)  # label ids: car, road
    prediction[:8] = 26
    prediction[8:28, :48] = 0  # half of the road is 'unlabeled'
    prediction[8:18, 48:] = 7  # a quarter of the cars is road
    write(tmp_path / "p/0_frame_0000.png", prediction)
    (entry,), _ = score(home, f"--dataset {root} --predictions {tmp_path}/p --ids labelIds", tmp_path)
    hit = {"road": 20 * 48, "car": 30 * 48}
    union = {"road": 40 * 48 + 10 * 48, "car": 40 * 48}
    assert {k: v for k, v in entry["iou"].items() if v is not None} == {k: 100 * hit[k] / union[k] for k in hit}
    assert entry["miou"] == pytest.approx(50 * (20 / 50 + 30 / 40)) and entry["accuracy"] == 100 * 50 / 80


@pytest.mark.parametrize("name", ["{}", "{}_leftImg8bit", "{}_pred", "{}_gtCoarse_labelTrainIds", "deep/er/{}_x_y"])
def test_predictions_are_found_by_the_stem(name, home, tmp_path):
    for i in range(3):
        write(tmp_path / "p" / f"{name.format(f'{i}_frame_{i:04}')}.png", np.zeros(trees.SIZE))
    (entry,), _ = score(home, f"--dataset nd --predictions {tmp_path}/p", tmp_path)
    assert entry["iou"]["road"] == pytest.approx(100 / 3)


def test_predictions_that_are_refused(home, tmp_path):
    def refused(*words):
        line = daynight(f"eval --dataset nd --predictions {tmp_path}/p", home).line
        assert all(word in line for word in words), line

    refused("--predictions", "no such folder")
    for i in range(2):
        write(tmp_path / f"p/{i}_frame_{i:04}.png", np.zeros(trees.SIZE))
    refused("--predictions", "no PNG for 1 of 3 images", "2_frame_0002")
    write(tmp_path / "p/2_frame_0002.png", np.zeros((24, 48)))
    refused("2_frame_0002.png", "24x48", "48x96", "--resize")
    (entry,), _ = score(home, f"--dataset nd --predictions {tmp_path}/p --resize", tmp_path)
    assert entry["iou"]["road"] == pytest.approx(100 / 3)
    write(tmp_path / "p/2_frame_0002.png", np.zeros((*trees.SIZE, 3)))
    refused("2_frame_0002.png", "colour-coded")
    write(tmp_path / "p/2_frame_0002.png", np.full(trees.SIZE, 20))
    refused("2_frame_0002.png", "value 20", "labelIds")
    write(tmp_path / "p/elsewhere/2_frame_0002.png", np.zeros(trees.SIZE))
    refused("--predictions", "p/2_frame_0002.png", "elsewhere/2_frame_0002.png", "both")
    assert "--size" in daynight(f"eval --dataset nd --predictions {tmp_path}/p --size 24", home).line


def images(root, *names, split="val"):
    """A data set of these images; of image k every pixel is labelled k, so that another's prediction is wrong."""
    trees.folder(root, train=0, val=0)
    for number, name in enumerate(names):
        trees.image(root / f"images/{split}/{name}.jpg")
        write(root / f"labels/{split}/{name}.png", np.full(trees.SIZE, number))


def predict_all(folder, *names):
    for number, name in enumerate(names):
        write(folder / f"{name}.png", np.full(trees.SIZE, number))


BURST = ("IMG_20230101_120000", "IMG_20230101_120000_1", "IMG_20230101_120000_1_2")


@pytest.mark.parametrize("form", ["{}", "{}_pred", "{}_x_y", "{}.jpg", "deep/{}"])
def test_a_burst_has_its_own_predictions(form, home, tmp_path):
    """The name of one image begins with another's: whatever the predictions' ending, the longest name counts."""
    images(tmp_path / "own", *BURST)
    predict_all(tmp_path / "p", *map(form.format, BURST))
    (entry,), _ = score(home, f"--dataset {tmp_path}/own --predictions {tmp_path}/p", tmp_path)
    assert entry["accuracy"] == 100


@pytest.mark.parametrize("form", ["{}", "{}_pred"])
@pytest.mark.parametrize("missing", [0, 1])
def test_no_prediction_of_another_image_is_taken(form, missing, home, tmp_path):
    images(tmp_path / "own", *BURST)
    predict_all(tmp_path / "p", *map(form.format, BURST))
    (tmp_path / "p" / f"{form.format(BURST[missing])}.png").unlink()
    refused = daynight(f"eval --dataset {tmp_path}/own --predictions {tmp_path}/p", home).line
    assert f"no PNG for 1 of 3 images of {tmp_path}/own, the first {BURST[missing]}.jpg" in refused


def test_nor_one_of_an_image_that_is_not_scored(home, tmp_path):
    """The other image is of another split, or has no label."""
    for split, labelled in (("train", True), ("val", False)):
        root, folder = tmp_path / split / "own", tmp_path / split / "p"
        images(root, "a", "b")
        trees.image(root / f"images/{split}/a_1.jpg")
        if labelled:
            trees.label(root / f"labels/{split}/a_1.png", [0])
        predict_all(folder, "a_1", "b")
        line = f"eval --dataset {root} --predictions {folder}"
        assert "no PNG for 1 of 2 images" in daynight(line, home).line
        predict_all(folder, "a")
        assert daynight(line, home).code == 0


def test_predictions_with_the_ending_of_the_data_set(home, tmp_path):
    """Cityscapes' frames, here a_000001 and a_000001_000019, with and without _leftImg8bit."""
    frames = [f"frankfurt_{frame}" for frame in ("000001", "000001_000019")]
    for name in frames:
        trees.image(tmp_path / f"cs/leftImg8bit/val/frankfurt/{name}_leftImg8bit.png")
        write(tmp_path / f"cs/gtFine/val/frankfurt/{name}_gtFine_labelTrainIds.png", np.full(trees.SIZE, 0))
    for form in ("{}", "{}_leftImg8bit", "{}_leftImg8bit_pred", "{}_pred"):
        folder, line = tmp_path / form, f"--dataset {tmp_path}/cs --predictions {tmp_path}/{form}"
        for name in frames[1:]:
            predict_all(folder, form.format(name))
        assert f"the first {frames[0]}_leftImg8bit.png" in daynight(f"eval {line}", home).line
        predict_all(folder, form.format(frames[0]))
        (entry,), _ = score(home, line, tmp_path)
        assert entry["accuracy"] == 100


def test_images_of_one_name_in_several_folders(home, tmp_path):
    """A prediction belongs to the image that shares most folder names with it; none serves two images."""
    names, line = ("x/a", "y/a", "x/deep/a"), f"--dataset {tmp_path}/own --predictions {tmp_path}/p"
    images(tmp_path / "own", *names)
    predict_all(tmp_path / "p", *names)
    (entry,), _ = score(home, line, tmp_path)
    assert entry["accuracy"] == 100
    (tmp_path / "p/y/a.png").unlink()
    assert "no PNG for 1 of 3 images" in daynight(f"eval {line}", home).line
    shutil.rmtree(tmp_path / "p")
    predict_all(tmp_path / "p", "a")
    refused = daynight(f"eval {line}", home).line
    assert "no PNG for 3 of 3 images" in refused and "or in a folder like the image's" in refused


def test_a_split_that_was_not_predicted_takes_nothing_of_another(home, tmp_path):
    """What an interrupted `predict` leaves: images of train and val have the same names, and only train is there."""
    assert daynight(f"predict --in own --out {tmp_path}/p --model three", home).code == 0
    line = f"--dataset own --predictions {tmp_path}/p"
    assert score(home, line, tmp_path)[0][0]["images"] == 2
    shutil.rmtree(tmp_path / "p/ids/images/val")
    assert "no PNG for 2 of 2 images" in daynight(f"eval {line}", home).line


def test_images_that_differ_by_their_suffix_alone(home, tmp_path):
    """`predict` keeps the suffixes in the names of its PNGs."""
    images(tmp_path / "own", "a", "b")
    trees.image(tmp_path / "own/images/val/a.png")
    assert daynight(f"predict --in {tmp_path}/own --out {tmp_path}/p --model three", home).code == 0
    assert (tmp_path / "p/ids/images/val/a.jpg.png").is_file()
    line = f"--dataset {tmp_path}/own --predictions {tmp_path}/p --model three"
    ours, of_model = score(home, line, tmp_path)[0]
    assert scores([ours]) == scores([of_model])


def test_a_model_and_predictions_stand_in_one_table(home, tmp_path):
    assert daynight(f"predict --in nd --out {tmp_path}/p --model b", home).code == 0
    found, out = score(home, f"--dataset nd --model a --predictions {tmp_path}/p", tmp_path)
    assert [entry["model"] for entry in found] == ["a", f"{tmp_path}/p"]
    (difference,) = (line for line in out.splitlines() if "p − a" in line)
    assert f"{found[1]['miou'] - found[0]['miou']:+.1f}" in difference


def probabilities(model, image, size, mirrored):
    """Of torch's own resize (antialiased, as Pillow's is), in the place of the code that is tested."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    if size != x.shape[2:]:
        x = (
            torch.from_numpy(np.array(image.resize(size[::-1], Image.Resampling.BILINEAR)))
            .permute(2, 0, 1)[None]
            .float()
        )
    x = x / 127.5 - 1
    logits = model(x.flip(3)).flip(3) if mirrored else model(x)
    return F.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=False).softmax(1)[0]


def test_scales_and_flip_are_means_of_probabilities(home, tmp_path):
    words = "--model a --size 24 --scales 0.5,1,1.5 --flip"
    assert daynight(f"predict --in nd --out {tmp_path}/p {words} --confidence", home).code == 0
    model = load_model(str(home / "a"), "teacher", "--model", DeepLabV2)
    for path in sorted((home / "data/nd/leftImg8bit").rglob("*.png")):
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            parts = [
                probabilities(model, image, size, mirrored)
                for size in ((12, 24), (24, 48), (36, 72))
                for mirrored in (False, True)
            ]
        mean = torch.stack(parts).mean(0)
        inside = path.relative_to(home / "data/nd")
        ids = pixels(tmp_path / "p/ids" / inside)
        assert (ids == mean.argmax(0).numpy()).mean() > 0.999
        confidence = pixels(tmp_path / "p/confidence" / inside)
        assert confidence.dtype == np.uint16 and abs(confidence / 65535 - mean.amax(0).numpy()).max() < 1e-3
    (entry,), _ = score(home, f"--dataset cs {words}", tmp_path)
    assert (entry["size"], entry["scales"], entry["flip"]) == ("24", [0.5, 1, 1.5], True)
    (plain,), _ = score(home, "--dataset cs --model a --size 24", tmp_path)
    assert (plain["scales"], plain["flip"]) == ([1], False) and plain["accuracy"] != entry["accuracy"]
    assert daynight(f"predict --in cs --out {tmp_path}/cs {words}", home).code == 0
    (of_predictions,), _ = score(home, f"--dataset cs --predictions {tmp_path}/cs", tmp_path)
    assert scores([of_predictions]) == scores([entry])


@pytest.mark.parametrize("value", ["0", "a", "1,,2", "", "-1", "inf"])
def test_scales_that_are_none(value, home):
    assert "--scales" in daynight(f"eval --dataset nd --model a --scales '{value}'", home).line


def test_confidence_is_the_largest_probability(home, tmp_path):
    assert daynight(f"predict --in nd --out {tmp_path}/p --model a --confidence", home).code == 0
    model = load_model(str(home / "a"), "teacher", "--model", DeepLabV2)
    for path in sorted((home / "data/nd/leftImg8bit").rglob("*.png")):
        with torch.inference_mode():
            expected = probabilities(model, Image.open(path), trees.SIZE, False).amax(0)
        found = pixels(tmp_path / "p/confidence" / path.relative_to(home / "data/nd")) / 65535
        assert abs(found - expected.numpy()).max() < 1e-4 and found.std() > 0.01


def test_classes_meet_by_name(home, tmp_path):
    """A model of 19 classes on a data set of 3: the others' pixels are misses."""
    (entry,), out = score(home, "--dataset own --model a", tmp_path)
    assert entry["classes"] == ["sky", "road", "car"]
    assert "predictions that count as misses: sidewalk, building" in out
    assert daynight(f"predict --in own --out {tmp_path}/p --model a", home).code == 0
    hit, labelled, predicted = np.zeros((3, 3))
    for path in sorted((home / "data/own/labels/val").rglob("*.png")):
        inside = path.relative_to(home / "data/own/labels")
        ids, truth = pixels(tmp_path / "p/ids/images" / inside), pixels(path)
        for k, name in enumerate(entry["classes"]):
            mine, valid = ids == CITYSCAPES.names.index(name), truth != 255
            hit[k] += (mine & (truth == k)).sum()
            labelled[k] += (truth == k).sum()
            predicted[k] += (mine & valid).sum()
    assert list(entry["iou"].values()) == pytest.approx(100 * hit / (labelled + predicted - hit))
    assert entry["accuracy"] == pytest.approx(100 * hit.sum() / labelled.sum())


def test_a_class_that_the_model_lacks_is_not_scored(home, tmp_path):
    """A model of 3 classes on 19: pixels of the other 16 are ignored, and that is said."""
    found, out = score(home, "--dataset cs --model three --model a", tmp_path)
    assert "three on cs: 3 of 19 classes; pixels not scored: sidewalk, building" in out
    # two lists of classes, two columns
    assert "cs val (3 classes)" in out and "cs val (19 classes)" in out
    assert found[0]["classes"] == ["road", "sky", "car"] and len(found[1]["classes"]) == 19
    assert "− three" in out and found[0]["label_set"] == found[1]["label_set"]


def test_a_class_map(home, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"building": "sky", "road": None}))
    words = f"--dataset own --model a --class-map {tmp_path}/map.json"
    (entry,), out = score(home, words, tmp_path)
    assert entry["classes"] == ["sky", "car"] and "pixels not scored: road" in out
    assert daynight(f"predict --in own --out {tmp_path}/p --model a", home).code == 0
    hit = union = 0
    for path in sorted((home / "data/own/labels/val").rglob("*.png")):
        ids, truth = pixels(tmp_path / "p/ids/images" / path.relative_to(home / "data/own/labels")), pixels(path)
        mine = np.isin(ids, [CITYSCAPES.names.index(name) for name in ("building", "sky")]) & np.isin(truth, [0, 2])
        hit, union = hit + (mine & (truth == 0)).sum(), union + (mine | (truth == 0)).sum()
    assert entry["iou"]["sky"] == pytest.approx(100 * hit / union)

    for content, word in (
        ('{"house": "sky"}', "'house'"),
        ('{"road": "house"}', "'house'"),
        ("[1]", "object"),
        ("{", "JSON"),
    ):
        (tmp_path / "map.json").write_text(content)
        line = daynight(f"eval {words}", home).line
        assert "--class-map" in line and word in line
    trees.folder(tmp_path / "far", classes=(("sea", (1, 2, 3)), ("shore", (4, 5, 6))))
    assert "none of its classes (sea, shore)" in daynight(f"eval --dataset {tmp_path}/far --model a", home).line


def test_intervals_and_differences(home, tmp_path):
    found, out = score(home, "--dataset cs --model a --model b", tmp_path)
    for entry in found:
        low, high = entry["miou_interval"]
        assert 0 <= low <= high <= 100 and low < high
    (row,) = (line for line in out.splitlines() if "b − a" in line)
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells[0] == f"{found[1]['miou'] - found[0]['miou']:+.1f}"
    low, high = map(float, cells[1].split(" to "))
    assert low <= float(cells[0]) <= high
    shutil.copytree(home / "a", tmp_path / "twin")
    _, out = score(home, f"--dataset cs --model a --model {tmp_path}/twin", tmp_path)
    (row,) = (line for line in out.splitlines() if "twin − a" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["+0.0", "+0.0 to +0.0", "+0.0"]


def test_runs_that_differ_by_seed_alone(home, tmp_path):
    for seed, model in enumerate("ab"):
        shutil.copytree(home / model, tmp_path / f"full-{seed}/teacher")
        options = {"options": {"steps": 5, "seed": seed, "save-every": 5 + seed, "out": "x"}, "data": {"--day": "x"}}
        (tmp_path / f"full-{seed}/options.json").write_text(json.dumps(options))
    words = f"--dataset cs --model {tmp_path}/full-0 --model {tmp_path}/full-1"
    found, out = score(home, words, tmp_path)
    values = np.array([[entry[key] for entry in found] for key in ("miou", "accuracy")])
    (row,) = (line for line in out.splitlines() if "(2 seeds)" in line)
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert [cells[0], cells[2]] == [f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for v in values]
    options["options"]["steps"] = 6
    (tmp_path / "full-1/options.json").write_text(json.dumps(options))
    assert "seeds)" not in score(home, words, tmp_path)[1]


def test_both_means_are_told_where_they_differ(home, tmp_path):
    """Of 19 classes 4 occur on cs; model a predicts others too. In own every class occurs."""
    found = {}
    for rule in ("present", "official"):
        entries, out = score(home, f"--model a --model b --dataset cs --mean {rule} --save {tmp_path}/{rule}", tmp_path)
        lines = [line for line in out.splitlines() if "cityscapesScripts" in line]
        assert len(lines) == 2 and lines[0] in (tmp_path / rule / "index.html").read_text()
        found[rule] = [entry["miou"] for entry in entries]
    for name, line, *mious in zip("ab", lines, found["present"], found["official"], strict=True):
        text = r"cs val, (\w): mIoU over the 4 classes that occur: (\S+); over the \d+ that occur or are predicted, "
        told = re.fullmatch(rf"{text}as cityscapesScripts counts: (\S+)", line)
        assert told.groups() == (name, *(f"{miou:.1f}" for miou in mious)) and mious[0] > mious[1]
    assert "cityscapesScripts" not in score(home, "--model three --dataset own", tmp_path)[1]


def test_label_sets_are_told_apart(home, tmp_path):
    (of_2018,), _ = score(home, "--dataset nd --model a", tmp_path)
    (of_2019,), _ = score(home, "--dataset nd --model a --labels labelIds", tmp_path)
    assert of_2018["label_set"] != of_2019["label_set"]
    shutil.copytree(home / "data/nd", tmp_path / "nd")
    (copied,), _ = score(home, f"--dataset {tmp_path}/nd --model b", tmp_path)
    assert copied["label_set"] == of_2018["label_set"]
    path = sorted((tmp_path / "nd").rglob("*_labelTrainIds.png"))[0]
    values = pixels(path)
    values[0, 0] = 255
    write(path, values)
    (changed,), _ = score(home, f"--dataset {tmp_path}/nd --model b", tmp_path)
    assert changed["label_set"] != of_2018["label_set"]


def test_labels_that_ignore_every_pixel_are_refused(home, tmp_path):
    """Cityscapes' labels of test are dummies. If some image has a labelled pixel, the others may be void."""
    root = trees.cityscapes(tmp_path / "cs", train=0, train_extra=0)
    for top in ("leftImg8bit", "gtFine"):
        (root / top / "val").rename(root / top / "test")
    labels = sorted(root.rglob("*_labelIds.png"))
    for path in labels:
        write(path, np.where(np.arange(96) < 48, 0, 3) * np.ones((48, 1)))  # 'unlabeled', 'out of roi'
    for words in ("--model a", f"--predictions {tmp_path}/none", "--dry-run", "--dataset own --model a"):
        (tmp_path / "none").mkdir(exist_ok=True)
        result = daynight(f"eval --dataset {root} {words} --json {tmp_path}/none.json", home)
        assert f"--dataset {root}: labels of test ignore all pixels" in result.line
        assert "mIoU" not in result.out and not (tmp_path / "none.json").exists()
    values = pixels(labels[1])
    values[0, 0] = 7
    write(labels[1], values)
    (entry,), _ = score(home, f"--dataset {root} --model a", tmp_path)
    assert entry["images"] == 2 and entry["miou"] in (0, 100)


def test_nothing_labelled_is_no_score(home, tmp_path):
    """The labels show classes, and none that the model has."""
    (tmp_path / "map.json").write_text(json.dumps({name: None for name, _ in trees.CLASSES} | {"car": "train"}))
    (entry,), out = score(home, f"--dataset nd --model three --class-map {tmp_path}/map.json", tmp_path)
    assert (entry["miou"], entry["accuracy"], entry["miou_interval"]) == (None, None, None)
    assert set(entry["iou"].values()) == {None} and "–" in out


IDS = "no id is above 18, as in train ids; --ids labelIds may be wrong"


def test_label_ids_that_look_like_train_ids(home, tmp_path):
    """A warning, for the folder; none where an id is above 18, where they are said to be train ids or are recorded."""
    for name, values in {"train": (0, 10, 13, 255), "label": (7, 23, 26, 0), "low": (7, 11, 255, 18)}.items():
        for i in range(3):
            write(tmp_path / name / f"{i}_frame_{i:04}.png", np.repeat(values, 24) * np.ones((48, 1)))
    for name, words, warned in [
        ("train", "--ids labelIds", True),
        ("low", "--ids labelIds", True),
        ("label", "--ids labelIds", False),
        ("train", "", False),
    ]:
        result = daynight(f"eval --dataset nd --predictions {tmp_path}/{name} {words}", home)
        assert result.err == f"warning: --predictions {tmp_path}/{name}: {IDS}\n" * warned and result.code == 0
    (tmp_path / "low/prediction.json").write_text(json.dumps({"ids": "labelIds"}))
    (tmp_path / "low/ids").mkdir()
    for path in (tmp_path / "low").glob("*.png"):
        path.rename(path.parent / "ids" / path.name)
    assert daynight(f"eval --dataset nd --predictions {tmp_path}/low", home).err == ""


def test_dry_run_reads_the_labels(home, tmp_path):
    (entry,), _ = score(home, "--dataset cs --model a", tmp_path)
    result = daynight("eval --dry-run --dataset cs", home)
    assert (result.code, result.err) == (0, "")
    for words in ("Cityscapes", "val", "5 images", "labelIds", "19 classes", entry["label_set"]):
        assert words in result.out
    trees.bdd100k(tmp_path / "bdd")
    result = daynight(f"eval --dry-run --dataset {tmp_path}/bdd", home)
    assert result.code == 0 and "night: 2 images" in result.out and "no labels, so nothing to score" in result.out
    shutil.copytree(home / "data/cs", tmp_path / "cs")
    broken = sorted((tmp_path / "cs/gtFine/val").rglob("*.png"))[-1]
    write(broken, np.full(trees.SIZE, 77))
    assert broken.name in daynight(f"eval --dry-run --dataset {tmp_path}/cs", home).line


def test_dry_run_describes_the_labels_that_are_asked_for(home, tmp_path):
    for kind, other in (("labelIds", "labelTrainIds"), ("labelTrainIds", "labelIds")):
        result = daynight(f"eval --dry-run --dataset nd --labels {kind}", home)
        assert (
            result.code == 0 and f"nd: Nighttime Driving, test, 3 images, 3 labels ({kind}), 19 classes" in result.out
        )
        assert f"({other})" not in result.out and "of 2018" not in result.out
        (entry,), _ = score(home, f"--dataset nd --model a --labels {kind}", tmp_path)
        assert entry["label_set"] in result.out
    result = daynight("eval --dry-run --dataset cs --split train", home)
    assert "cs: eval scores Cityscapes, train" in result.out and result.code == 0
    trees.bdd100k(tmp_path / "bdd", ten_k=2)  # the set without labels, which comes first, has the split too
    result = daynight(f"eval --dry-run --dataset {tmp_path}/bdd --split train", home)
    (entry,), _ = score(home, f"--dataset {tmp_path}/bdd --split train --model a", tmp_path)
    assert entry["label_set"] in result.out and "BDD100K 10k, train" in result.out


def test_dry_run_writes_shares_as_people_do(home, tmp_path):
    root = trees.nighttime_driving(tmp_path / "nd", count=1)
    path = next(root.rglob("*_labelTrainIds.png"))
    truth = np.full(trees.SIZE, 255)
    truth[0, 0] = 0
    for values, shown in ((truth, ["road 0.022", "sky 0", "ignored 100"]), (truth * 0, ["road 100", "ignored 0"])):
        write(path, values)
        (line,) = daynight(f"eval --dry-run --dataset {root}", home).out.splitlines()[-1:]
        assert set(shown) <= set(re.split("[,;] ", line.strip())), line
    for number in range(19):  # thirds and sevenths leave a rest of 2.8e-14
        truth[:, number * 5 : number * 5 + 5] = number
    truth[:, 95] = 18
    write(path, truth)
    (line,) = daynight(f"eval --dry-run --dataset {root}", home).out.splitlines()[-1:]
    assert "e-" not in line and line.endswith("ignored 0") and "road 5.2" in line


@pytest.mark.parametrize("left", ["train", "test"])
def test_a_split_with_labels_and_no_images_is_told(left, home, tmp_path):
    """What an interrupted unzip leaves: the labels of val and, of the images, another split."""
    root = trees.cityscapes(tmp_path / "cs", train_extra=0)
    for top in ("leftImg8bit", "gtFine"):
        (root / top / "train").rename(root / top / left) if left != "train" else None
    shutil.rmtree(root / "leftImg8bit/val")
    said = f"warning: --dataset: {root}: val has labels and no images, so {left} is read\n"
    result = daynight(f"eval --dataset {root} --model a", home)
    assert (result.code, result.err) == (0, said) and f"{root}: Cityscapes, {left}, 4 images" in result.out
    result = daynight(f"eval --dataset {root} --dry-run", home)
    assert (result.code, result.err) == (0, said) and "Cityscapes, val, no images, but labels" in result.out
    assert f"eval scores Cityscapes, {left}" in result.out
    result = daynight(f"eval --dataset {root} --model a --split {left}", home)  # as was asked
    assert (result.code, result.err) == (0, "")
    (root / "leftImg8bit/val").mkdir()
    assert f"no images in {root}, val" in daynight(f"eval --dataset {root} --model a", home).line


def test_labels_of_a_split_that_is_not_wanted_are_no_news(home, tmp_path):
    """Cityscapes' labels come with those of test, whose images few have unpacked."""
    root = trees.cityscapes(tmp_path / "cs", train_extra=0)
    shutil.copytree(root / "gtFine/val", root / "gtFine/test")
    assert score(home, f"--dataset {root} --model a", tmp_path)[0][0]["split"] == "val"


def test_label_ids_of_void_are_ignored(home, tmp_path):
    """Every void id of Cityscapes, and 255, in the labels: as if all were 255."""
    root = trees.nighttime_driving(tmp_path / "nd", count=1)
    path = next(root.rglob("*_labelIds.png"))
    truth = np.full(trees.SIZE, 7)
    truth[:24] = np.resize([i for i in range(34) if i not in LABEL_ID_OF[:19]] + [255], (24, 96))
    write(path, truth)
    (entry,), _ = score(home, f"--dataset {root} --model a --labels labelIds", tmp_path)
    assert daynight(f"predict --in {root} --out {tmp_path}/p --model a", home).code == 0
    ids = pixels(next((tmp_path / "p/ids").rglob("*.png")))[24:]
    assert entry["accuracy"] == pytest.approx(100 * (ids == 0).mean())


def test_a_page_is_saved(home, tmp_path):
    """The numbers of the results; panels by how much the runs differ, each image's own mIoU under its prediction."""
    found, _ = score(home, f"--dataset cs --dataset nd --model a --model b --save {tmp_path}/saved", tmp_path)
    text = (tmp_path / "saved/index.html").read_text()
    for entry in found:
        assert f">{entry['miou']:.1f}<" in text and f">{entry['accuracy']:.1f}<" in text
        assert entry["label_set"] in text
    expected = []
    for path in sorted((home / "data/cs/leftImg8bit/val").rglob("*.png")):
        inside = path.relative_to(home / "data/cs")
        label = str(path).replace("leftImg8bit", "gtFine").replace("_gtFine.png", "_gtFine_labelIds.png")
        truth, means = TRAIN_ID_OF[pixels(label)], []
        for model in "ab":
            color = pixels(tmp_path / "saved" / model / "cs/color" / inside)
            ids = (color[..., None, :] == np.array(CITYSCAPES.colors)).all(-1).argmax(-1)
            ious = [
                ((ids == k) & (truth == k)).sum() / (((ids == k) & (truth != 255)) | (truth == k)).sum()
                for k in np.unique(truth[truth != 255])
            ]
            means.append(100 * np.mean(ious))
        expected.append((abs(means[0] - means[1]), inside.as_posix(), means))
    assert len({round(spread, 3) for spread, *_ in expected}) == 5
    places = [text.index(name) for _, name, _ in sorted(expected, reverse=True)]
    assert places == sorted(places)
    for _, name, means in expected:
        panel = text[text.index(name) :].split("strip")[0]
        assert re.findall(r"alt=.([ab]: [\d.]+)", panel) == [f"a: {means[0]:.1f}", f"b: {means[1]:.1f}"]
