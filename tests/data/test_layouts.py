import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import trees
from PIL import Image
from test_cli import daynight

from daynight.data.labels import CITYSCAPES, Classes, LabelKind, read_label
from daynight.data.layouts.tree import locate, resolve
from daynight.data.sets import companions, counterparts, describe, fingerprint, image_files, load
from daynight.system.errors import InputError


@pytest.fixture(autouse=True)
def no_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def message(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(paths, root) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def read_all(image_set):
    """The labels as the trainings read them: each of its own image's size and classes."""
    return [read_label(path, image_set.label_kind, image_set.classes, trees.SIZE) for path in image_set.labels]


def test_resolve_takes_a_path_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    (data / "cs").mkdir(parents=True)
    assert resolve("cs/", data, "--day") == data / "cs"
    assert resolve(str(data / "cs"), tmp_path / "elsewhere", "--day") == data / "cs"
    (tmp_path / "cs").mkdir()
    assert resolve("cs/", data, "--day").absolute() == tmp_path / "cs"


def test_resolve_says_what_was_expected(tmp_path):
    said = message(resolve, "cs/", tmp_path / "data", "--day")
    for words in ("--day:", "'cs/'", str(tmp_path / "data" / "cs"), "Cityscapes", "--data-root", "DAYNIGHT_DATA"):
        assert words in said
    assert "no data set 'mine'" in message(resolve, "mine", tmp_path, "--night")
    assert "no data set ''" in message(resolve, "", tmp_path, "--night")
    assert "no data set" in message(resolve, "x" * 5000, tmp_path, "--night")
    (tmp_path / "file").write_text("")
    assert "is a file" in message(resolve, "file", tmp_path, "--night")


def test_cityscapes(tmp_path):
    root = trees.cityscapes(tmp_path / "cs")
    train = load("cs/", tmp_path, "--day", labelled=True)
    assert str(train) == "cs/: Cityscapes, train, 4 images, 4 labels (labelIds), 19 classes"
    assert (train.layout, train.split, train.label_kind, train.notes) == ("Cityscapes", "train", "labelIds", ())
    assert train.classes is CITYSCAPES and train.root == root
    assert names(train.images, root)[0] == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert names(train.labels, root)[0] == "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert {int(v) for label in read_all(train) for v in label.flat} == set(trees.TRAIN_IDS)

    assert load("cs", tmp_path, "--dataset", splits=None, labelled=True).split == "val"
    both = load("cs", tmp_path, "--day", splits=("train", "train_extra"), time="day")
    assert (both.split, len(both.images), both.labels.count(None)) == ("train+train_extra", 6, 2)
    assert both.images == tuple(sorted(both.images))
    shutil.rmtree(root / "leftImg8bit" / "train_extra")
    assert load("cs", tmp_path, "--day", splits=("train", "train_extra")).split == "train"


def test_cityscapes_with_the_other_labels_or_both(tmp_path):
    trees.cityscapes(tmp_path / "other", kinds=("labelTrainIds",))
    assert load("other", tmp_path, "--day", labelled=True).label_kind == "labelTrainIds"
    trees.cityscapes(tmp_path / "both", kinds=("labelIds", "labelTrainIds"))
    assert load("both", tmp_path, "--day", labelled=True).label_kind == "labelIds"
    chosen = load("both", tmp_path, "--day", labelled=True, labels="labelTrainIds")
    assert chosen.label_kind == "labelTrainIds" and chosen.labels[0].name.endswith("_gtFine_labelTrainIds.png")


def test_a_split_that_is_not_there(tmp_path):
    trees.cityscapes(tmp_path / "cs")
    said = message(load, "cs", tmp_path, "--dataset", splits=("test",))
    assert "--dataset" in said and "'test'" in said and "train, train_extra, val" in said


def test_images_without_a_label_are_counted_and_left_out(tmp_path):
    root = trees.cityscapes(tmp_path / "cs")
    next(root.glob("gtFine/train/*/*000001_000019_gtFine_labelIds.png")).unlink()
    train = load("cs", tmp_path, "--day", labelled=True)
    assert len(train.images) == len(train.labels) == 3
    assert all(image.name[:20] == label.name[:20] for image, label in zip(train.images, train.labels, strict=True))
    assert "1 of 4 images" in train.notes[0] and "label" in train.notes[0]
    shutil.rmtree(root / "gtFine")
    (root / "gtFine").mkdir()
    said = message(load, "cs", tmp_path, "--day", labelled=True)
    assert "no labels" in said and "gtFine/<split>/**/*_gtFine_labelIds.png" in said
    assert "belongs" not in said
    assert "no labels" in str(load("cs", tmp_path, "--day"))


@pytest.mark.parametrize("generation", ["2018", "det_20", "detection20", "per image"])
def test_bdd100k_by_time_of_day(tmp_path, generation):
    root = trees.bdd100k(tmp_path / "bdd", generation=generation)
    night = load("bdd", tmp_path, "--night", time="night")
    assert names(night.images, root) == [f"images/100k/train/train-{i:03}.jpg" for i in (0, 2)]
    assert (night.layout, night.split, night.label_kind) == ("BDD100K", "train", None)
    assert night.notes == ("bdd: 2 of 6 images are tagged night; 2 without a time of day are left out",)
    for time, number in (("day", 1), ("twilight", 3)):
        found = load("bdd", tmp_path, "--day", time=time)
        assert names(found.images, root) == [f"images/100k/train/train-00{number}.jpg"]
    assert len(load("bdd", tmp_path, "--day").images) == 6


def test_bdd100k_without_time_of_day(tmp_path):
    trees.bdd100k(tmp_path / "bdd", generation=None)
    said = message(load, "bdd", tmp_path, "--night", time="night")
    for words in ("--night", "bdd100k_labels_images_train.json", "det_20/det_train.json", "100k/train/*.json"):
        assert words in said
    assert (
        "bdd: no time of day; expected labels/bdd100k_labels_images_<split>.json" in describe("bdd", tmp_path, "")[-1]
    )
    trees.bdd100k(tmp_path / "day", train=("daytime", None))
    said = message(load, "day", tmp_path, "--night", time="night")
    assert "no night images" in said and "1 without a time of day" in said


@pytest.mark.parametrize("content", ["{", "[1]", '[{"attributes": {"timeofday": "night"}}]'])
def test_bdd100k_with_broken_json(tmp_path, content):
    file = trees.bdd100k(tmp_path / "bdd") / "labels" / "bdd100k_labels_images_train.json"
    file.write_text(content)
    assert str(file) in message(load, "bdd", tmp_path, "--night", time="night")


def test_bdd100k_entries_without_attributes_have_no_time_of_day(tmp_path):
    root = trees.bdd100k(tmp_path / "bdd", train=("night", "night"))
    file = root / "labels" / "bdd100k_labels_images_train.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entries[0], "attributes": None}, entries[1]]))
    night = load("bdd", tmp_path, "--night", time="night")
    assert len(night.images) == 1 and "1 without a time of day" in night.notes[0]


@pytest.mark.parametrize("older_masks", [False, True])
def test_bdd100k_labels_are_of_the_10k(tmp_path, older_masks):
    root = trees.bdd100k(tmp_path / "bdd", ten_k=3, older_masks=older_masks)
    train = load("bdd", tmp_path, "--day", labelled=True)
    assert str(train) == "bdd: BDD100K 10k, train, 3 images, 3 labels (trainIds), 19 classes"
    assert train.label_kind == "trainIds" and len(read_all(train)) == 3
    val = load("bdd", tmp_path, "--dataset", splits=None, labelled=True, labels="labelTrainIds")
    assert (val.layout, val.split, len(val.images)) == ("BDD100K 10k", "val", 3)
    assert "--labels labelIds" in message(load, "bdd", tmp_path, "--dataset", labelled=True, labels="labelIds")
    # of the 10k's train, only the first image is known to the 100k's JSON
    night = load("bdd", tmp_path, "--night", time="night", labelled=True)
    assert [image.stem for image in night.images] == ["train-000"] and "2 without a time of day" in night.notes[0]
    assert len(image_files(root)) == 6 + 2 + 3 + 3


def test_bdd100k_without_the_10k_or_without_the_100k(tmp_path):
    trees.bdd100k(tmp_path / "bdd")
    said = message(load, "bdd", tmp_path, "--day", labelled=True)
    assert "images/10k/<split>" in said and "labels/sem_seg/masks" in said
    root = trees.bdd100k(tmp_path / "only", ten_k=2)
    shutil.rmtree(root / "images" / "100k")
    assert load("only", tmp_path, "--night").layout == "BDD100K 10k"


def test_bdd100k_images_that_the_10k_scores_do_not_enter_a_training(tmp_path):
    root = trees.bdd100k(tmp_path / "bdd", ten_k=1)
    trees.image(root / "images" / "10k" / "val" / "train-002.jpg")
    night = load("bdd", tmp_path, "--night", time="night")
    assert [image.stem for image in night.images] == ["train-000"]
    assert any("1 image left out" in note for note in night.notes)


def test_bdd_night_is_what_the_tags_call_night_of_the_10k(tmp_path):
    """Of val's three 10k images the first is that of the 100k, at night; the others have no time of day."""
    root = trees.bdd100k(tmp_path / "bdd", ten_k=3)
    night = load("bdd-night", tmp_path, "--dataset", splits=None, labelled=True)
    assert str(night) == "bdd-night: BDD100K 10k, val, 1 image, 1 label (trainIds), 19 classes"
    assert night.notes[0] == "bdd-night: 1 of 3 images are tagged night; 2 without a time of day are left out"
    assert "not the 87 images" in night.notes[1] and "--list" in night.notes[1]
    assert names(night.images, root) == ["images/10k/val/val-000.jpg"]
    assert load(f"{root}-night/", tmp_path, "--dataset", splits=None, labelled=True).images == night.images
    assert describe("bdd-night", tmp_path, "--dataset") == [str(night), *night.notes]
    assert "night images only" in message(load, "bdd-night", tmp_path, "--day", time="day")
    assert "no data set 'bdd'" in message(load, "bdd-night", tmp_path / "elsewhere", "--dataset")
    trees.cityscapes(tmp_path / "cs")
    assert "no data set 'cs-night'" in message(load, "cs-night", tmp_path, "--dataset")

    shutil.rmtree(root / "labels" / "sem_seg")
    assert "no labels" in message(load, "bdd-night", tmp_path, "--dataset", splits=None, labelled=True)
    shutil.rmtree(root / "images" / "10k")
    assert "images/10k/<split>/" in message(load, "bdd-night", tmp_path, "--dataset", splits=None, labelled=True)
    trees.bare(tmp_path / "bdd-night")
    assert load("bdd-night", tmp_path, "--night").layout == "images"


def test_dark_zurich(tmp_path):
    root = trees.dark_zurich(tmp_path / "dz")
    night = load("dz", tmp_path, "--night", time="night")
    assert night.layout == "Dark Zurich" and len(night.images) == 3
    assert all("train/night" in name for name in names(night.images, root))
    day = load("dz", tmp_path, "--day", time="day")
    assert len(day.images) == 3 and all("train/day" in name for name in names(day.images, root))
    assert len(load("dz", tmp_path, "--night").images) == 9
    for twilight in (
        load("dz", tmp_path, "--night", time="twilight"),
        load("dz/rgb_anon/train/twilight", tmp_path, "--night", time="night"),
    ):
        assert {path.parts[-3] for path in twilight.images} == {"twilight"} and len(twilight.images) == 3

    val = load("dz", tmp_path, "--dataset", splits=None, labelled=True)
    assert (val.split, val.label_kind) == ("val", "labelTrainIds")
    assert names(val.labels, root)[0] == "gt/val/night/GOPR0356/GOPR0356_frame_000000_gt_labelTrainIds.png"
    reference = load("dz", tmp_path, "--day", splits=("val",), time="day")
    assert names(reference.images, root)[0].startswith("rgb_anon/val_ref/day/GOPR0356_ref/")
    assert len(image_files(root)) == 9 + 2

    trees.dark_zurich(tmp_path / "ids", kind="labelIds")
    assert load("ids", tmp_path, "--dataset", splits=None, labelled=True).label_kind == "labelIds"
    shutil.rmtree(root / "rgb_anon" / "train" / "night")
    assert "no night images" in message(load, "dz", tmp_path, "--night", time="night")


def test_acdc_is_night_without_its_day_references(tmp_path):
    root = trees.acdc(tmp_path / "acdc")
    night = load("acdc", tmp_path, "--night", time="night")
    assert (night.layout, night.split) == ("ACDC", "train")
    assert names(night.images, root) == [
        f"rgb_anon/night/train/GOPR0351/GOPR0351_frame_00000{i}_rgb_anon.png" for i in (0, 1)
    ]
    val = load("acdc", tmp_path, "--dataset", splits=None, labelled=True)
    assert (val.split, len(val.images), val.label_kind) == ("val", 2, "labelTrainIds")
    assert names(val.labels, root)[0] == "gt/night/val/GOPR0351/GOPR0351_frame_000000_gt_labelTrainIds.png"
    assert len(image_files(root)) == 4
    assert "night images only" in message(load, "acdc", tmp_path, "--day", time="day")
    shutil.rmtree(root / "rgb_anon" / "night")
    assert "rgb_anon/night/<split>" in message(load, "acdc", tmp_path, "--night", time="night")


def test_nighttime_driving_says_which_labels(tmp_path):
    trees.nighttime_driving(tmp_path / "nd")
    older = load("nd", tmp_path, "--dataset", splits=None, labelled=True)
    assert str(older) == "nd: Nighttime Driving, test, 3 images, 3 labels (labelTrainIds), 19 classes"
    assert older.label_kind == "labelTrainIds" and "--labels labelIds" in older.notes[0]
    newer = load("nd", tmp_path, "--dataset", splits=None, labelled=True, labels="labelIds")
    assert newer.label_kind == "labelIds" and newer.notes == ()
    differing = [(a != b).any() for a, b in zip(read_all(older), read_all(newer), strict=True)]
    assert differing == [True, False, False]
    assert len(load("nd", tmp_path, "--night", splits=None, time="night").images) == 3
    assert "night images only" in message(load, "nd", tmp_path, "--day", splits=None, time="day")


def test_idd(tmp_path):
    root = trees.idd(tmp_path / "idd")
    train = load("idd", tmp_path, "--day", labelled=True, time="day")
    assert str(train) == "idd: IDD, train, 3 images, 3 labels (labelTrainIds), 19 classes" and train.notes == ()
    assert train.classes is CITYSCAPES and {path.suffix for path in train.images} == {".png", ".jpg"}
    assert names(train.labels, root)[0] == "gtFine/train/0/005506_gtFine_labelcsTrainIds.png"
    assert train.stem(train.images[0]) == "005506"
    assert {int(v) for label in read_all(train) for v in label.flat} == set(trees.TRAIN_IDS)
    assert load("idd", tmp_path, "--dataset", splits=None, labelled=True, labels="labelTrainIds").split == "val"
    assert "labels of this layout are train ids" in message(load, "idd", tmp_path, "--dataset", labels="labelIds")
    assert describe("idd", tmp_path, "--dataset") == [
        "idd: IDD, train, 3 images, 3 labels (labelTrainIds), 19 classes",
        "idd: IDD, val, 2 images, 2 labels (labelTrainIds), 19 classes",
        "idd: eval scores IDD, val",
    ]
    renamed = load(str(trees.idd(tmp_path / "renamed", kinds=("labelTrainIds",))), tmp_path, "--day", labelled=True)
    assert renamed.label_kind == "labelTrainIds" and len(read_all(renamed)) == 3


@pytest.mark.parametrize("kind", ["level3Ids", None])
def test_idd_without_the_classes_of_cityscapes(tmp_path, kind):
    """As it is downloaded there are polygons only; the ids of its levels are classes of its own."""
    root = trees.idd(tmp_path / "idd", kinds=(f"label{kind}",) if kind else ())
    said = message(load, "idd", tmp_path, "--day", labelled=True)
    assert "IDD's own classes" in said and "--id-type csTrainId" in said and "gtFine_labelcsTrainIds.png" in said
    unlabelled = load("idd", tmp_path, "--day")
    assert set(unlabelled.labels) == {None} and "not used" in unlabelled.notes[-1]
    shutil.rmtree(root / "gtFine")
    assert str(load("idd", tmp_path, "--day")) == "idd: IDD, train, 3 images, no labels"


def test_cityscapes_with_numbered_folders_is_not_idd(tmp_path):
    root = tmp_path / "mine"
    trees.image(root / "leftImg8bit/train/0/000001_leftImg8bit.png")
    trees.label(root / "gtFine/train/0/000001_gtFine_labelIds.png", trees.LABEL_IDS)
    found = load("mine", tmp_path, "--day", labelled=True)
    assert (found.layout, found.label_kind) == ("Cityscapes", "labelIds")


@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_mapillary_vistas(tmp_path, version):
    """The stripes are ids of road, sky, car, a sign's back and a vehicle group: the last two have no class."""
    root = trees.mapillary_vistas(tmp_path / "vistas", versions=(version,))
    train = load("vistas", tmp_path, "--day", labelled=True, time="day")
    assert str(train) == f"vistas: Mapillary Vistas, train, 3 images, 3 labels (Vistas {version} ids), 19 classes"
    assert names(train.images, root)[0] == "training/images/000.jpg" and train.classes is CITYSCAPES
    folder = {"1.2": "training/labels", "2.0": "training/v2.0/labels"}[version]
    assert names(train.labels, root)[0] == f"{folder}/000.png"
    assert {int(v) for label in read_all(train) for v in label.flat} == {0, 10, 13, 255}
    assert describe("vistas", tmp_path, "--dataset") == [
        "vistas: Mapillary Vistas, test, 1 image, no labels",
        f"vistas: Mapillary Vistas, train, 3 images, 3 labels (Vistas {version} ids), 19 classes",
        f"vistas: Mapillary Vistas, val, 2 images, 2 labels (Vistas {version} ids), 19 classes",
        "vistas: eval scores Mapillary Vistas, val",
    ]
    assert "leave --labels labelIds out" in message(load, "vistas", tmp_path, "--dataset", labels="labelIds")
    assert "'training'" in message(load, "vistas", tmp_path, "--dataset", splits=("training",))
    trees.label(train.labels[0], [66 if version == "1.2" else 124])
    assert f"no Mapillary Vistas {version} id" in message(read_all, train)


def test_mapillary_vistas_with_labels_of_both_versions(tmp_path):
    root = trees.mapillary_vistas(tmp_path / "vistas", versions=("1.2", "2.0"))
    train = load("vistas", tmp_path, "--day", labelled=True)
    assert train.label_kind == "Vistas 1.2 ids" and "training/v1.2/labels" in names(train.labels, root)[0]
    label = "{}/v{}/labels/00{}.png"
    labels = {
        label.format(s, v, i) for s, n in (("training", 3), ("validation", 2)) for v in (1.2, "2.0") for i in range(n)
    }
    assert set(names(companions(root), root)) == labels | {"config_v1.2.json", "config_v2.0.json"}


def test_idd_and_mapillary_vistas_on_the_command_line(tmp_path):
    trees.idd(tmp_path / "data/idd")
    trees.mapillary_vistas(tmp_path / "data/vistas", versions=("1.2", "2.0"))
    result = daynight("eval --dry-run --dataset idd --dataset vistas", tmp_path)
    assert result.code == 0, result
    for line in ("idd: eval scores IDD, val", "vistas: eval scores Mapillary Vistas, val"):
        assert line in result.out
    assert "2 labels (Vistas 1.2 ids), 19 classes" in result.out and result.out.count("share of pixels") == 2


def test_folders_like_those_of_mapillary_vistas_are_of_other_classes(tmp_path):
    """Nothing says what the ids of such labels mean, so they are never mapped."""
    root = trees.mapillary_vistas(tmp_path / "mine", versions=("1.2",))
    (root / "config.json").write_text('{"labels": []}')
    said = message(load, "mine", tmp_path, "--day", labelled=True)
    assert "no classes.json" in said and "id2label.json" in said
    night = load("mine", tmp_path, "--night", time="night")
    assert (night.split, len(night.images), set(night.labels)) == ("train", 3, {None})


def test_a_part_of_mapillary_vistas(tmp_path):
    root = trees.mapillary_vistas(tmp_path / "vistas", versions=("2.0",))
    assert len(load("vistas/training/images", tmp_path, "--night").images) == 3
    said = message(load, "vistas/training/v2.0", tmp_path, "--night")
    assert "holds labels of Mapillary Vistas" in said and said.endswith(f"give {root}")


def test_folder(tmp_path):
    root = trees.folder(tmp_path / "mine")
    train = load("mine", tmp_path, "--day", labelled=True)
    assert str(train) == "mine: folder, train, 4 images, 4 labels (trainIds), 3 classes"
    assert train.label_kind == "trainIds" and train.classes.names == ("sky", "road", "car")
    assert names(train.labels, root) == ["labels/train/000.png"] + [f"labels/train/street/00{i}.png" for i in (1, 2, 3)]
    assert len(read_all(train)) == 4
    assert load("mine", tmp_path, "--night", time="night").images == train.images
    assert load("mine", tmp_path, "--dataset", splits=None, labelled=True).split == "val"


def test_folder_without_classes(tmp_path):
    trees.folder(tmp_path / "mine", classes=None)
    assert "classes.json" in message(load, "mine", tmp_path, "--day", labelled=True)
    unlabelled = load("mine", tmp_path, "--night")
    assert set(unlabelled.labels) == {None} and unlabelled.classes is None and "classes.json" in unlabelled.notes[0]


def test_folder_without_labels(tmp_path):
    trees.folder(tmp_path / "mine", labelled=False)
    assert str(load("mine", tmp_path, "--night")) == "mine: folder, train, 4 images, no labels"
    said = message(load, "mine", tmp_path, "--day", labelled=True)
    assert "labels/<split>/**/*.png" in said


def test_folder_without_splits(tmp_path):
    root = tmp_path / "mine"
    for i in range(2):
        trees.image(root / "images" / f"{i}.jpg")
        trees.label(root / "labels" / f"{i}.png", [0, 1])
    (root / "classes.json").write_text('[{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [1, 1, 1]}]')
    for splits in (("train",), None):
        found = load("mine", tmp_path, "--day", splits=splits, labelled=True)
        assert found.split is None and len(found.images) == 2
        assert str(found) == "mine: folder, 2 images, 2 labels (trainIds), 2 classes"


def test_evaluation_splits(tmp_path):
    root = trees.folder(tmp_path / "mine", train=1, val=1)
    shutil.copytree(root / "images" / "val", root / "images" / "test")
    assert load("mine", tmp_path, "--dataset", splits=None).split == "val"
    shutil.rmtree(root / "images" / "val")
    assert load("mine", tmp_path, "--dataset", splits=None).split == "test"
    (root / "images" / "test").rename(root / "images" / "rainy")
    said = message(load, "mine", tmp_path, "--dataset", splits=None)
    assert "neither val nor test" in said and "rainy, train" in said
    shutil.rmtree(root / "images" / "rainy")
    assert load("mine", tmp_path, "--dataset", splits=None).split == "train"


def test_a_bare_tree(tmp_path):
    root = trees.bare(tmp_path / "night")
    found = load("night", tmp_path, "--night", time="night")
    assert str(found) == "night: images, 3 images, no labels"
    assert names(found.images, root) == ["0.jpg", "deep/er/1.PNG", "deep/er/2.webp"]
    assert found.classes is None and found.split is None
    assert image_files(root) == found.images and companions(root) == ()
    said = message(load, "night", tmp_path, "--day", labelled=True)
    assert "no labels" in said and "classes.json" in said


def test_no_image(tmp_path):
    (tmp_path / "empty").mkdir()
    said = message(load, "empty", tmp_path, "--night", time="night")
    assert "--night: no images in" in said and str(tmp_path / "empty") in said
    assert str(tmp_path / "empty") in message(image_files, tmp_path / "empty")
    (tmp_path / "cs" / "leftImg8bit").mkdir(parents=True)
    assert "leftImg8bit/<split>/" in message(load, "cs", tmp_path, "--day")


def test_unpacked_one_level_too_deep(tmp_path):
    inner = trees.cityscapes(tmp_path / "cs" / "cityscapes")
    train = load("cs", tmp_path, "--day", labelled=True)
    assert train.root == inner and len(train.images) == 4
    assert train.notes == (f"cs: Cityscapes found deeper, in {inner}",)
    assert len(image_files(tmp_path / "cs")) == 8
    trees.folder(tmp_path / "cs" / "other")
    said = message(load, "cs", tmp_path, "--day")
    assert "several data sets (cityscapes, other)" in said
    shutil.copytree(inner, tmp_path / "cs" / "other", dirs_exist_ok=True)
    assert "several data sets" in message(load, "cs", tmp_path, "--day")

    inner = trees.bdd100k(tmp_path / "bdd" / "bdd100k" / "bdd100k")
    assert load("bdd", tmp_path, "--night", time="night").root == inner
    trees.bare(tmp_path / "night" / "clips" / "images")
    assert load("night", tmp_path, "--night").layout == "images"


@pytest.mark.parametrize(
    "draw, moves",
    [
        (trees.cityscapes, {"leftImg8bit": "leftImg8bit_trainvaltest", "gtFine": "gtFine_trainvaltest"}),
        (trees.dark_zurich, {"rgb_anon/train": "Dark_Zurich_train_anon", "rgb_anon": "val_anon", "gt": "val_anon"}),
        (trees.acdc, {"rgb_anon": "rgb_anon_trainvaltest", "gt": "gt_trainval"}),
        (trees.acdc, {"gt": "gt_trainval"}),
        (trees.bdd100k, {"images": "bdd100k_images_100k/bdd100k", "labels": "bdd100k_labels_release/bdd100k"}),
        (trees.bdd100k, {"labels": "bdd100k_labels_release/bdd100k"}),
    ],
)
def test_zips_unpacked_into_folders_of_their_own(tmp_path, draw, moves):
    """The message says what was found and what is expected; moved there, the parts make a data set again."""
    root = draw(tmp_path / "x")
    for part, folder in moves.items():
        (root / folder / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).rename(root / folder / part)
    call = {"labelled": True, "splits": ("val",)} if draw is not trees.bdd100k else {"time": "night"}
    said = message(load, "x", tmp_path, "--dataset", **call)
    for part, folder in moves.items():
        top = part.split("/")[0]
        assert f" {top}/" in said and (folder in said or len(moves) == 1)
        shutil.copytree(root / folder / top, root / top, dirs_exist_ok=True)
        shutil.rmtree(root / folder / top)
    assert load("x", tmp_path, "--dataset", **call).images


def test_bdd100k_as_its_later_zips_unpack(tmp_path):
    root = trees.bdd100k(tmp_path / "x", generation="per image")
    (root / "images").rename(tmp_path / "images")
    (root / "labels").rename(root / "bdd100k_labels")
    (tmp_path / "images").rename(root / "bdd100k_images_100k")
    said = message(load, "x", tmp_path, "--night", time="night")
    assert "(bdd100k_images_100k, bdd100k_labels)" in said and "expected as images/100k/<split>/" in said
    shutil.rmtree(root / "bdd100k_labels")
    assert "expected images/100k/<split>/" in message(load, "x", tmp_path, "--night", time="night")


@pytest.mark.parametrize(
    "draw, kinds, words",
    [
        (trees.idd, {"kinds": ("labelColors",)}, ("gtFine_labelColors.png", "gtFine_labelcsTrainIds.png")),
        (trees.cityscapes, {"kinds": ("color",)}, ("gtFine_color.png", "gtFine_labelIds.png")),
        (trees.dark_zurich, {"kind": "labelColor"}, ("gt_labelColor.png", "gt_labelTrainIds.png")),
        (trees.acdc, {"kind": "labelColor"}, ("gt_labelColor.png", "gt_labelTrainIds.png")),
    ],
)
def test_labels_in_colours_alone_are_refused(tmp_path, draw, kinds, words):
    draw(tmp_path / "x", **kinds)
    said = message(load, "x", tmp_path, "--dataset", splits=None, labelled=True)
    assert "colour-coded" in said and all(word in said for word in words)
    unlabelled = load("x", tmp_path, "--night", splits=None)
    assert set(unlabelled.labels) == {None} and "colour-coded" in unlabelled.notes[-1]
    assert not companions(tmp_path / "x")


@pytest.mark.parametrize(
    "older_masks, moved",
    [(False, ("labels/sem_seg/", "masks", "colormaps")), (True, ("seg/", "labels", "color_labels"))],
)
def test_bdd100k_labels_in_colours(tmp_path, older_masks, moved):
    folder, ids, colors = moved
    root = trees.bdd100k(tmp_path / "bdd", ten_k=1, older_masks=older_masks)
    (root / folder / ids).rename(root / folder / colors)
    for path in (root / folder / colors).rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_train_id", "_train_color")))
    said = message(load, "bdd", tmp_path, "--dataset", splits=None, labelled=True)
    assert f"colour-coded ({folder}{colors}/val/val-000" in said and f"{folder}{ids}/" in said
    said = message(load, f"bdd/{folder}{colors}/val", tmp_path, "--dataset", splits=None, labelled=True)
    assert "holds labels of BDD100K" in said and said.endswith(f"give {root}")


def test_describe_cityscapes(tmp_path):
    root = trees.cityscapes(tmp_path / "cs")
    (root / "leftImg8bit" / "test").mkdir()
    assert describe("cs", tmp_path, "--dataset") == [
        "cs: Cityscapes, test, no images",
        "cs: Cityscapes, train, 4 images, 4 labels (labelIds), 19 classes",
        "cs: Cityscapes, train_extra, 2 images, no labels",
        "cs: Cityscapes, val, 2 images, 2 labels (labelIds), 19 classes",
        "cs: eval scores Cityscapes, val",
    ]
    shutil.rmtree(root / "leftImg8bit")
    (root / "leftImg8bit").mkdir()
    assert describe("cs", tmp_path, "--dataset") == [
        f"cs: Cityscapes, {split}, no images, but labels" for split in ("train", "val")
    ]
    assert "leftImg8bit/<split>/" in message(load, "cs", tmp_path, "--dataset", splits=None)


def test_describe_says_which_labels(tmp_path):
    trees.nighttime_driving(tmp_path / "nd")
    assert describe("nd", tmp_path, "--dataset") == [
        "nd: Nighttime Driving, test, 3 images, 3 labels (labelTrainIds), 19 classes",
        "nd: labels are the labelTrainIds of 2018; --labels labelIds takes those corrected in 2019",
        "nd: eval scores Nighttime Driving, test",
    ]


def test_describe_bdd100k(tmp_path):
    trees.bdd100k(tmp_path / "bdd", ten_k=2)
    assert describe("bdd", tmp_path, "--dataset") == [
        "bdd: BDD100K, train, 6 images, no labels",
        "  dawn/dusk: 1 image",
        "  daytime: 1 image",
        "  night: 2 images",
        "  no entry: 1 image",
        "  undefined: 1 image",
        "bdd: BDD100K, val, 2 images, no labels",
        "  daytime: 1 image",
        "  night: 1 image",
        "bdd: BDD100K 10k, train, 2 images, 2 labels (trainIds), 19 classes",
        "  night: 1 image",
        "  no entry: 1 image",
        "bdd: BDD100K 10k, val, 2 images, 2 labels (trainIds), 19 classes",
        "  night: 1 image",
        "  no entry: 1 image",
        "bdd: eval scores BDD100K 10k, val",
    ]


def test_describe_dark_zurich(tmp_path):
    trees.dark_zurich(tmp_path / "dz" / "unpacked")
    assert describe("dz", tmp_path, "--dataset") == [
        f"dz: Dark Zurich found deeper, in {tmp_path}/dz/unpacked",
        "dz: Dark Zurich, train, 9 images, no labels",
        "  day: 3 images",
        "  night: 3 images",
        "  twilight: 3 images",
        "dz: Dark Zurich, val, 2 images, 2 labels (labelTrainIds), 19 classes",
        "  night: 2 images",
        "dz: eval scores Dark Zurich, val",
    ]


@pytest.mark.parametrize("given", ["leftImg8bit", "images/100k", "images", "rgb_anon"])
def test_the_folder_of_the_images_stands_for_its_data_set(tmp_path, monkeypatch, given):
    """Else the splits would be mixed. The images of one split are a bare tree."""
    draw = {"l": trees.cityscapes, "i": trees.bdd100k, "r": trees.dark_zurich}[given[0]]
    root = draw(tmp_path / "x")
    found = load(f"x/{given}", tmp_path, "--night")
    assert found.root == root and found.images == load("x", tmp_path, "--night").images
    assert str(root) in found.notes[0]
    split = str(next(folder for folder in found.images[0].parents if folder.name == "train"))
    assert set(load(split, tmp_path, "--night").images) == set(found.images)
    assert "no labels" in message(load, split, tmp_path, "--day", labelled=True)
    monkeypatch.chdir(root / given)
    assert load(".", tmp_path, "--night").images == found.images


def test_links_are_followed_and_loops_end(tmp_path):
    root = trees.bare(tmp_path / "night")
    (root / "deep" / "loop").symlink_to(root)
    elsewhere = trees.bare(tmp_path / "elsewhere")
    (root / "linked").symlink_to(elsewhere)
    assert len(image_files(root)) == 6
    (tmp_path / "link").symlink_to(root)
    assert len(load("link", tmp_path, "--night").images) == 6


def test_a_link_to_nothing_is_named(tmp_path):
    root = trees.bare(tmp_path / "night")
    (root / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "gone.jpg" in message(load, "night", tmp_path, "--night")


def test_hidden_files_are_ignored(tmp_path):
    root = trees.bare(tmp_path / "night")
    trees.image(root / "deep" / ".hidden.png")
    trees.image(root / ".cache" / "a.png")
    (root / "._0.jpg").write_bytes(b"\0\5\x16\7")
    (root / "readme.txt").write_text("")
    assert len(image_files(root)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    root = trees.bare(tmp_path / "night")
    (root / "deep").chmod(0)
    said = message(load, "night", tmp_path, "--night")
    (root / "deep").chmod(0o700)
    assert str(root / "deep") in said


def test_a_fingerprint_follows_names_lengths_contents_and_times(tmp_path):
    root = trees.folder(tmp_path / "mine")
    whole = load("mine", tmp_path, "--day", labelled=True)
    first = whole.fingerprint()
    assert all(len(digest) >= 12 for digest in first.values())
    shutil.copytree(root, tmp_path / "moved")
    assert load("moved", tmp_path, "--day", labelled=True).fingerprint() == first

    def differs():
        found = load("mine", tmp_path, "--day", labelled=True).fingerprint()
        return {end for end, digest in found.items() if digest != first[end]}

    label = root / "labels" / "train" / "000.png"
    os.utime(label, ns=(1, 1))
    assert differs() == {" (times)"}
    label.write_bytes(label.read_bytes()[:-1] + b"\0")
    assert differs() == {" (contents)", " (times)"}
    label.write_bytes(label.read_bytes() + b"\0")
    assert differs() == {"", " (contents)", " (times)"}
    trees.folder(root)
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (root / folder / f"train/000.{suffix}").rename(root / folder / f"train/zzz.{suffix}")
    assert "" in differs()
    assert all(whole.only([]).fingerprint()[end] != digest for end, digest in first.items() if "class" not in end)


def test_a_fingerprint_follows_what_ids_mean(tmp_path):
    root = trees.mapillary_vistas(tmp_path / "vistas")
    whole, end = load("vistas", tmp_path, "--day", labelled=True), " (classes.json, label ids)"
    first = whole.fingerprint()
    ids = {i: t for i, t in enumerate(whole.label_kind.train_ids.tolist()) if t != 255}
    kinds = LabelKind(whole.label_kind, "id", 66, ids | {13: 1}), LabelKind("other", "id", 66, ids)
    names, colors = whole.classes.names, whole.classes.colors
    orders = Classes(names[::-1], colors[::-1]), Classes(names, colors[::-1]), Classes(names[::-1], colors)
    changed = [replace(whole, label_kind=kind) for kind in kinds]
    changed += [replace(whole, classes=classes) for classes in orders]
    found = [first, *(image_set.fingerprint() for image_set in changed)]
    config = root / "config.json"
    config.write_text(json.dumps({"labels": json.loads(config.read_text())["labels"][::-1]}))
    found.append(whole.fingerprint())
    assert len({f[end] for f in found}) == len(found) == 7
    assert len({f[" (contents)"] for f in found}) == 1


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_pixel_anywhere_in_a_large_image_is_part_of_its_fingerprint(suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    path, found = tmp_path / f"a.{suffix}", set()
    for row, column in ((0, 0), (0, 0), (70, 333), (150, 9), (222, 1), (299, 399)):
        pixels[row, column] ^= 255 if found else 0
        Image.fromarray(pixels).save(path, **({"compress_level": 0} if suffix == "png" else {}))
        assert path.stat().st_size > 2**18
        digests = fingerprint(tmp_path, [path])
        found.add((digests[""], digests[" (contents)"]))
    assert len(found) == 6 and len({names for names, _ in found}) == 1


def test_companions(tmp_path):
    root = trees.cityscapes(tmp_path / "cs")
    (root / "LICENSE.txt").write_text("terms")
    trees.image(root / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_color.png")
    found = names(companions(root), root)
    assert len(found) == 1 + 6 and found[0] == "LICENSE.txt"
    assert not any("color" in name for name in found)

    root = trees.folder(tmp_path / "mine")
    assert names(companions(root), root)[0] == "classes.json" and len(companions(root)) == 1 + 6
    for generation in ("2018", "det_20", "per image"):
        root = trees.bdd100k(tmp_path / generation, generation=generation, ten_k=1)
        assert names(companions(root), root) == [f"labels/sem_seg/masks/{s}/{s}-000.png" for s in ("train", "val")]


def test_images_and_companions_make_a_labelled_data_set(tmp_path):
    """What `translate` relies on."""
    draws = (trees.cityscapes, trees.dark_zurich, trees.acdc, trees.nighttime_driving, trees.folder)
    draws += (trees.idd, trees.mapillary_vistas)
    for draw in draws:
        root = draw(tmp_path / draw.__name__)
        copy = tmp_path / f"{draw.__name__}_night"
        for path in image_files(root) + companions(root):
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        before, after = (load(str(tree), tmp_path, "--in", splits=None, labelled=True) for tree in (root, copy))
        assert type(locate(copy)) is type(locate(root))
        assert names(after.labels, copy) == names(before.labels, root)


def test_counterparts(tmp_path):
    day = load(str(trees.folder(tmp_path / "mine")), tmp_path, "--day", labelled=True)
    night = tmp_path / "mine_night"
    assert counterparts(day.images, day.root, night) == ([], list(day.images))
    for image in day.images:
        trees.image(night / image.relative_to(day.root).with_suffix(".png"))
    found, missing = counterparts(day.images, day.root, night)
    assert names(found, night) == [name.replace(".jpg", ".png") for name in names(day.images, day.root)] and not missing
    found[2].unlink()
    assert counterparts(day.images, day.root, night) == ([*found[:2], found[3]], [day.images[2]])
