"""The drawn streets: the same for the same seed, dark by night, labelled by what stands there and not by its light."""

import json

import numpy as np
import pytest
from PIL import Image

from daynight.demo import streets

KNOWN = {*range(len(streets.CLASSES)), 255}


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("night", [False, True])
def test_a_seed_gives_one_scene(night):
    image, label = streets.scene(3, night)
    again, label_again = streets.scene(3, night)
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    other, other_label = streets.scene(4, night)
    assert not np.array_equal(image, other) and not np.array_equal(label, other_label)


def test_a_seed_gives_another_street_by_night():
    assert (streets.scene(3, False)[1] != streets.scene(3, True)[1]).mean() > 0.05


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (64, 64), (96, 192), (128, 320)])
@pytest.mark.parametrize("night", [False, True])
def test_shapes_types_and_hard_labels(size, night):
    image, label = streets.scene(0, night, size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert {*np.unique(label).tolist()} <= KNOWN


@pytest.mark.parametrize("night", [False, True])
def test_every_class_is_drawn_often_enough(night):
    labels = [streets.scene(seed, night)[1] for seed in range(40)]
    pixels = np.array([np.bincount(label.ravel(), minlength=256) for label in labels])
    for number, (name, _) in enumerate(streets.CLASSES):
        assert (pixels[:, number] >= 20).mean() >= 0.5, name
        assert pixels[:, number].sum() >= 0.004 * pixels.sum(), name
    assert pixels[:, 255].sum() < 0.1 * pixels.sum()


def test_labels_lie_on_what_is_drawn():
    # by day the sky is bluer than the road and foliage greener than all: a shifted or mixed-up label map is not
    names = [name for name, _ in streets.CLASSES]
    image, label = (np.concatenate(parts) for parts in zip(*map(streets.scene, range(20), [False] * 20), strict=True))
    mean = {name: image[label == number].mean(0) for number, name in enumerate(names)}
    green = {name: colour[1] - (colour[0] + colour[2]) / 2 for name, colour in mean.items()}
    assert max(green, key=green.get) == "vegetation"
    assert mean["sky"][2] - mean["sky"][0] > 30 > mean["road"][2] - mean["road"][0]


def test_night_is_dark_but_not_black():
    days = [streets.scene(seed, False)[0] for seed in range(20)]
    nights = [streets.scene(seed, True) for seed in range(20)]
    share = np.mean([night.mean() for night, _ in nights]) / np.mean([day.mean() for day in days])
    assert 0.25 < share < 0.35
    # the brightest of every street by night is a light, and the sky is no lighter than the houses
    sky, building = (next(i for i, (name, _) in enumerate(streets.CLASSES) if name == n) for n in ("sky", "building"))
    for night, label in nights:
        assert night.max() > 200
        assert night[label == sky].mean() < night[label == building].mean()


def test_write_gives_the_folder_layout_and_the_same_bytes_again(tmp_path):
    streets.write(tmp_path, 1, False, 3, 2, (32, 64))
    first = files(tmp_path)
    names = ["train/00000", "train/00001", "train/00002", "val/00000", "val/00001"]
    pictures = {f"{kind}/{name}.png" for kind in ("images", "labels") for name in names}
    assert {*first} == pictures | {"classes.json"}
    table = json.loads(first["classes.json"])
    assert [(row["name"], tuple(row["color"])) for row in table] == streets.CLASSES
    image, label = (Image.open(tmp_path / kind / "train/00000.png") for kind in ("images", "labels"))
    assert image.mode == "RGB" and label.mode == "L" and image.size == label.size == (64, 32)
    assert {*np.unique(np.asarray(label)).tolist()} <= KNOWN
    streets.write(tmp_path, 1, False, 3, 2, (32, 64))
    assert files(tmp_path) == first


def test_no_scene_is_written_twice(tmp_path):
    for seed in (0, 1):
        for night in (False, True):
            streets.write(tmp_path / f"{seed}{night}", seed, night, 4, 4, (32, 64))
    labels = [data for name, data in files(tmp_path).items() if "/labels/" in name]
    assert len(labels) == 32 == len({*labels})


def test_more_scenes_leave_the_earlier_ones(tmp_path):
    streets.write(tmp_path / "few", 2, True, 1, 1, (32, 64))
    streets.write(tmp_path / "many", 2, True, 3, 2, (32, 64))
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert few.items() <= many.items() and len(many) > len(few)


def test_what_is_being_written_is_never_seen_half_done(tmp_path, monkeypatch):
    def broken(self, file, format):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError):
        streets.write(tmp_path, 0, False, 1, 0, (32, 64))
    assert not [name for name in files(tmp_path) if name.endswith((".png", ".json"))]


def test_extra_scenes_are_others_and_have_no_labels(tmp_path):
    streets.write(tmp_path, 0, night=False, train=2, val=1, size=(32, 64), extra=3)
    extra = sorted((tmp_path / "images/train_extra").iterdir())
    others = [path.read_bytes() for split in ("train", "val") for path in (tmp_path / "images" / split).iterdir()]
    assert len(extra) == 3 and not (tmp_path / "labels/train_extra").exists()
    assert not {path.read_bytes() for path in extra} & set(others)


def test_what_is_there_stays(tmp_path):
    streets.write(tmp_path, 0, False, train=1, val=1, extra=1)
    before = files(tmp_path)
    paths = [tmp_path / name for name in before]
    paths[0].write_text("changed by somebody")
    times = [path.stat().st_mtime_ns for path in paths]
    streets.write(tmp_path, 0, False, train=1, val=1, extra=1)
    assert times == [path.stat().st_mtime_ns for path in paths] and paths[0].read_text() == "changed by somebody"
