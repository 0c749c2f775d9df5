"""Draws small trees in the layouts of the data sets that daynight reads. Every image is valid, seeded by its path."""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 96)  # height, width
CLASSES = (("sky", (70, 130, 180)), ("road", (128, 64, 128)), ("car", (0, 0, 142)))
# of these Cityscapes label ids, 0 is ignored and the others are the train ids below
LABEL_IDS = (0, 7, 11, 23, 26)
TRAIN_IDS = (255, 0, 2, 10, 13)
TIMES = ("night", "daytime", "night", "dawn/dusk", "undefined", None)  # None: no entry


def image(path: Path, size: tuple[int, int] = SIZE, brightness: int = 255) -> Path:
    """A smooth random picture: 6×12 random colours, enlarged. Random pixels would make large files."""
    small = _random(path).integers(0, brightness + 1, (6, 12, 3), np.uint8)
    return _save(Image.fromarray(small).resize(size[::-1], Image.Resampling.BILINEAR), path)


def label(path: Path, values, size: tuple[int, int] = SIZE) -> Path:
    """A label map of vertical stripes, one a value, in an order of chance."""
    order = _random(path).permutation(np.asarray(values, np.uint8))
    stripes = order[np.arange(size[1]) * len(order) // size[1]]
    return _save(Image.fromarray(np.broadcast_to(stripes, size).copy()), path)


def cityscapes(root: Path, size=SIZE, kinds=("labelIds",), train=4, val=2, train_extra=2, brightness=255) -> Path:
    for split, city, count in (
        ("train", "aachen", train),
        ("val", "lindau", val),
        ("train_extra", "erlangen", train_extra),
    ):
        for i in range(count):
            frame = f"{city}_{i:06}_000019"
            image(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", size, brightness)
            for kind in kinds if split != "train_extra" else ():
                _label_of_kind(root / "gtFine" / split / city / f"{frame}_gtFine_{kind}.png", kind, size)
    return root


def bdd100k(root: Path, size=SIZE, generation="2018", train=TIMES, val=TIMES[:2], ten_k=0, older_masks=False) -> Path:
    """BDD100K with one image for each time of day in train and val.

    generation of the JSON: "2018", "det_20", "detection20", "per image" or None. ten_k: images in each split of the 10k
    set; the first of each split is the first of that split of the 100k, the others have no time of day.
    """
    for split, times in (("train", train), ("val", val)):
        names = [f"{split}-{i:03}" for i in range(len(times))]
        for name, time in zip(names, times, strict=True):
            image(root / "images" / "100k" / split / f"{name}.jpg", size, 60 if time == "night" else 255)
        entries = [
            {"name": f"{name}.jpg", "attributes": {"weather": "clear", "timeofday": time}}
            for name, time in zip(names, times, strict=True)
            if time
        ]
        if generation == "2018":
            _write(root / "labels" / f"bdd100k_labels_images_{split}.json", entries)
        elif generation == "det_20":
            _write(root / "labels" / "det_20" / f"det_{split}.json", entries)
        elif generation == "detection20":
            _write(root / "labels" / "detection20" / f"det_v2_{split}_release.json", entries)
        elif generation == "per image":
            for entry in entries:
                stem = entry["name"].removesuffix(".jpg")
                entry = {"name": stem, "frames": [{"objects": []}], "attributes": entry["attributes"]}
                _write(root / "labels" / "100k" / split / f"{stem}.json", entry)
        for i in range(ten_k):
            stem = f"{split}-000" if i == 0 else f"{split}-10k-{i:03}"
            image(root / ("seg/images" if older_masks else "images/10k") / split / f"{stem}.jpg", size)
            mask = (
                f"seg/labels/{split}/{stem}_train_id.png" if older_masks else f"labels/sem_seg/masks/{split}/{stem}.png"
            )
            label(root / mask, TRAIN_IDS, size)
    return root


def dark_zurich(root: Path, size=SIZE, kind="labelTrainIds", train=3, val=2) -> Path:
    for time, brightness in (("day", 255), ("twilight", 120), ("night", 60)):
        for i in range(train):
            image(root / f"rgb_anon/train/{time}/GOPR0345/GOPR0345_frame_{i:06}_rgb_anon.png", size, brightness)
    for i in range(val):
        frame = f"GOPR0356_frame_{i:06}"
        image(root / f"rgb_anon/val/night/GOPR0356/{frame}_rgb_anon.png", size, 60)
        image(root / f"rgb_anon/val_ref/day/GOPR0356_ref/{frame}_ref_rgb_anon.png", size)
        _label_of_kind(root / f"gt/val/night/GOPR0356/{frame}_gt_{kind}.png", kind, size)
    return root


def acdc(root: Path, size=SIZE, kind="labelTrainIds", train=2, val=2) -> Path:
    for condition in ("night", "fog"):
        for split, count in (("train", train), ("val", val)):
            for i in range(count):
                frame = f"GOPR0351_frame_{i:06}"
                image(root / f"rgb_anon/{condition}/{split}/GOPR0351/{frame}_rgb_anon.png", size, 60)
                image(root / f"rgb_anon/{condition}/{split}_ref/GOPR0351/{frame}_ref_rgb_anon.png", size)
                _label_of_kind(root / f"gt/{condition}/{split}/GOPR0351/{frame}_gt_{kind}.png", kind, size)
    return root


def nighttime_driving(root: Path, size=SIZE, count=3) -> Path:
    """Both label files of each image; the first image's differ, where train ids say road and label ids say car."""
    for i in range(count):
        frame = f"{i}_frame_{i:04}"
        image(root / f"leftImg8bit/test/night/{frame}_leftImg8bit.png", size, 60)
        folder = root / "gtCoarse_daytime_trainvaltest/test/night"
        label(folder / f"{frame}_gtCoarse_labelTrainIds.png", [0] if i == 0 else [10], size)
        label(folder / f"{frame}_gtCoarse_labelIds.png", [26] if i == 0 else [23], size)
    return root


def idd(root: Path, size=SIZE, kinds=("labelcsTrainIds",), train=3, val=2) -> Path:
    """Frames of numbered drives; those of its second part are JPEGs. Polygons are always there."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            frame, suffix = (f"{i}/{5506 + i:06}", "png") if i < 2 else (f"201/frame{i:04}", "jpg")
            image(root / f"leftImg8bit/{split}/{frame}_leftImg8bit.{suffix}", size)
            _write(root / f"gtFine/{split}/{frame}_gtFine_polygons.json", {"objects": []})
            for kind in kinds:
                _label_of_kind(root / f"gtFine/{split}/{frame}_gtFine_{kind}.png", kind, size)
    return root


def mapillary_vistas(root: Path, size=SIZE, versions=("1.2",), train=3, val=2, test=1) -> Path:
    """Palette files of road, sky, car, a sign's back and a group of vehicles (other vehicle in 1.2).

    1.2 alone lies as it was published first, without a folder of its version.
    """
    ids = {"1.2": (13, 27, 55, 49, 59), "2.0": (21, 61, 108, 97, 115)}
    flat = tuple(versions) == ("1.2",)
    for split, count in (("training", train), ("validation", val), ("testing", test)):
        for i in range(count):
            image(root / split / "images" / f"{i:03}.jpg", size)
            for version in versions if split != "testing" else ():
                folder = root / split / ("labels" if flat else f"v{version}/labels")
                _with_palette(label(folder / f"{i:03}.png", ids[version], size), ids[version])
    for version in versions:
        config = {"labels": [{"name": "animal--bird"}, {"name": "construction--barrier--curb"}]}
        _write(root / ("config.json" if flat else f"config_v{version}.json"), config)
    return root


def folder(root: Path, size=SIZE, classes=CLASSES, train=4, val=2, labelled=True, brightness=255) -> Path:
    """The project's own layout; every image but the first lies one folder deeper. classes=None: no classes.json."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            stem = f"{split}/{i:03}" if i == 0 else f"{split}/street/{i:03}"
            image(root / "images" / f"{stem}.jpg", size, brightness)
            if labelled:
                label(root / "labels" / f"{stem}.png", [*range(len(classes or CLASSES)), 255], size)
    if classes:
        _write(root / "classes.json", [{"name": name, "color": list(color)} for name, color in classes])
    return root


def bare(root: Path, size=SIZE, count=3, brightness=60) -> Path:
    for i in range(count):
        image(root / ("deep/er" if i else "") / f"{i}.{('jpg', 'PNG', 'webp')[i % 3]}", size, brightness)
    return root


def _label_of_kind(path: Path, kind: str, size) -> Path:
    if kind in ("color", "labelColor", "labelColors"):
        return image(path, size)
    return label(path, LABEL_IDS if kind == "labelIds" else TRAIN_IDS, size)


def _with_palette(path: Path, ids: tuple[int, ...]) -> None:
    """Show the first three ids in the colours of Cityscapes' road, sky and car."""
    picture, palette = Image.open(path), [9] * 768
    for i, color in zip(ids, ((128, 64, 128), (70, 130, 180), (0, 0, 142)), strict=False):
        palette[3 * i : 3 * i + 3] = color
    picture = Image.fromarray(np.asarray(picture), "P")
    picture.putpalette(palette)
    picture.save(path)


def _random(path: Path) -> np.random.Generator:
    # of the name alone, so that the folder that pytest happens to give changes nothing
    return np.random.default_rng(zlib.crc32(path.name.encode()))


def _save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
