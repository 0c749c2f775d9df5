"""Sizes, crops, augmentations, and the translators that need no training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daynight.config import SegTrainOptions
from daynight.data import transforms
from daynight.data.images import LabelledPhotographs
from daynight.data.labels import Classes
from daynight.data.sampling import generator
from daynight.data.sets import load
from daynight.data.translated import Darken, Draw, Folder

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0),) * 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=20, width=30, seed=0):
    return torch.rand(3, height, width, generator=seeded(seed)) * 2 - 1


@pytest.mark.parametrize(
    "height, width, size, expected",
    [
        (1024, 2048, "512", (512, 1024)),  # Cityscapes, the paper's
        (2048, 1024, "512", (1024, 512)),
        (360, 640, "270", (270, 480)),
        (360, 480, "720", (720, 960)),
        (100, 333, "64", (64, 213)),
        (1024, 2048, "512x512", (512, 512)),
        (5, 7, "3x11", (3, 11)),
        (375, 1242, "native", (375, 1242)),
        (7, 7, "7", (7, 7)),
    ],
)
def test_target_size(height, width, size, expected):
    assert transforms.target_size(height, width, size) == expected


@pytest.mark.parametrize("shape", [(7, 5), (13, 29), (40, 60), (3, 100), (1, 1)])
def test_labels_are_never_averaged(shape):
    ids = np.array([0, 7, 18, 255], np.uint8)
    label = ids[torch.randint(4, (20, 30), generator=seeded()).numpy()]
    resized = transforms.resize_label(label, *shape)
    assert resized.shape == shape and resized.dtype == np.uint8
    assert {*np.unique(resized)} <= {*ids}


def test_labels_shrink_to_the_middle_of_what_they_cover():
    label = np.arange(36, dtype=np.uint8).reshape(6, 6)
    assert transforms.resize_label(label, 2, 2).tolist() == [[7, 10], [25, 28]]
    doubled = transforms.resize_label(np.array([[1, 2]], np.uint8), 2, 4)
    assert doubled.tolist() == [[1, 1, 2, 2]] * 2
    assert transforms.resize_label(label, 6, 6) is label


def test_images_are_anti_aliased_when_they_shrink():
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    small = np.asarray(transforms.resize_image(Image.fromarray(stripes), 4, 4))
    assert small.shape == (4, 4, 3)
    assert (abs(small[:, 1:-1].astype(int) - 100) <= 15).all()


def test_images_to_tensors_and_back_lose_nothing():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = transforms.to_tensor(Image.fromarray(levels))
    assert tensor.shape == (3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(np.asarray(transforms.to_image(tensor)), levels)
    beyond = np.asarray(transforms.to_image(torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1)))
    assert beyond.flatten().tolist() == [0, 128, 255]


def test_random_boxes_lie_inside_and_reach_every_place():
    g = seeded()
    boxes = {transforms.random_box(5, 4, (3, 3), g) for _ in range(200)}
    assert boxes == {(top, left) for top in range(3) for left in range(2)}
    assert {transforms.random_box(2, 4, (3, 3), g) for _ in range(50)} == {(0, 0), (0, 1)}


def test_cut_continues_the_edge_or_fills():
    tensor = torch.arange(6.0).view(1, 2, 3)
    assert transforms.cut(tensor, (0, 1), (2, 2)).tolist() == [[[1, 2], [4, 5]]]
    assert transforms.cut(tensor, (0, 0), (3, 5)).tolist() == [[[0, 1, 2, 2, 2], [3, 4, 5, 5, 5], [3, 4, 5, 5, 5]]]
    filled = transforms.cut(tensor.long(), (0, 0), (3, 4), 255)
    assert filled.tolist() == [[[0, 1, 2, 255], [3, 4, 5, 255], [255] * 4]] and filled.dtype == torch.int64


# ---- images and what belongs to them


def coloured(path: Path, label: np.ndarray):
    """An image whose red says which class stands there, and whose green and blue where it is."""
    rows, columns = np.indices(label.shape)
    pixels = np.stack([label * 100, rows * 5, columns * 4], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for i in range(3):
        # blocks of 4×4, so that half size by any rule takes one class
        label = torch.randint(3, (12, 15), generator=seeded(i)).numpy().astype(np.uint8).repeat(4, 0).repeat(4, 1)
        coloured(tmp_path / f"day/images/train/{i}.png", label)
        coloured(tmp_path / f"night/images/train/{i}.png", label)
        coloured(tmp_path / f"translated/images/train/{i}.png", (label + 1) % 3)
        (tmp_path / "day/labels/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(tmp_path / f"day/labels/train/{i}.png")
    table = [{"name": name, "color": list(color)} for name, color in zip(CLASSES.names, CLASSES.colors, strict=True)]
    (tmp_path / "day/classes.json").write_text(json.dumps(table))
    return tmp_path


def classes_seen(image):
    """Train ids from the red of `coloured`."""
    return ((image[0] * 127.5 + 127.5) / 100).round().long()


def test_labelled_photographs_agree_at_any_size(root):
    for size in ("native", "24"):
        photographs = LabelledPhotographs(load(str(root / "day"), root, "--day", labelled=True), size)
        assert len(photographs) == 3
        for i in range(3):
            image = photographs.image(i)
            label = photographs.label(i, *image.shape[1:]).long()
            assert label.shape == (1, *image.shape[1:]) and label.dtype == torch.int64
            # anti-aliasing mixes across blocks: inside a block of 4 (2 at half size) most pixels are sure
            assert (classes_seen(image) == label[0]).float().mean() > (0.7 if size == "24" else 0.999)
    assert image.shape == (3, 24, 30)


@pytest.mark.parametrize("flip", [False, True])
def test_image_label_and_translation_are_cut_at_one_place(root, flip):
    options = SegTrainOptions(
        day=str(root / "day"), size="native", crop="20x25", flip=flip, steps=10, translated=str(root / "translated")
    )
    days = {"day": load(options.day, root, "--day", labelled=True)}
    draw = Draw(options, days, [], Folder(root / "translated", days, options.size))
    mirrored, places = set(), set()
    for slot in range(24):
        sample = draw(generator(0, 0, slot), 0)
        assert sample["day"].shape == sample["fake_day"].shape == (3, 20, 25)
        assert sample["labels"].shape == (20, 25)
        assert torch.equal(classes_seen(sample["day"]), sample["labels"])
        assert torch.equal(classes_seen(sample["fake_day"]), (sample["labels"] + 1) % 3)
        assert torch.equal(sample["day"][1:], sample["fake_day"][1:])
        mirrored.add(bool(sample["day"][2, 0, 0] > sample["day"][2, 0, -1]))
        places.add(tuple(sample["day"][1:, 0, 0].tolist()))
    assert mirrored == ({False, True} if flip else {False})
    assert len(places) > 12


def test_beyond_the_image_labels_are_ignored(root):
    options = SegTrainOptions(day=str(root / "day"), size="native", crop="60x64", steps=10)
    days = {"day": load(options.day, root, "--day", labelled=True)}
    sample = Draw(options, days, [], None)(seeded(), 0)
    assert sample["day"].shape == (3, 60, 64)
    assert (sample["labels"][48:] == 255).all() and (sample["labels"][:, 60:] == 255).all()
    assert torch.equal(classes_seen(sample["day"])[:48, :60], sample["labels"][:48, :60])


def test_weak_and_strong_views_are_of_one_night_crop(root):
    options = SegTrainOptions(
        day=str(root / "day"), night=[str(root / "night")], size="native", crop="16", steps=10, ssl=True, ssl_start=0.2,
        weak_noise=0, strong_noise=0, jitter=0,
    )  # fmt: skip
    days = {"day": load(options.day, root, "--day", labelled=True)}
    nights = [load(options.night[0], root, "--night")]
    draw = Draw(options, days, nights, Darken())
    assert "weak_night" not in draw(seeded(), 1)  # before Eq. 15 begins
    sample = draw(seeded(), 2)
    assert torch.allclose(sample["weak_night"], sample["strong_night"], atol=1e-5)
    options.weak_noise, options.strong_noise, options.jitter = 0.02, 0.1, 0.4
    noisy = Draw(options, days, nights, Darken())(seeded(), 2)
    weak, strong = ((noisy[name] - sample[name]).abs().mean().item() for name in ("weak_night", "strong_night"))
    assert 0.005 < weak < 0.02 < 0.05 < strong
    assert torch.equal(noisy["labels"], sample["labels"]) and torch.equal(noisy["day"], sample["day"])


# ---- augmentations

DRAWN = {
    "noise": lambda image, g: transforms.add_noise(image, 0.1, g),
    "jitter": lambda image, g: transforms.jitter(image, 0.4, g),
    "darken": transforms.darken,
}


@pytest.mark.parametrize("name", DRAWN)
def test_augmentations_follow_their_generator_and_stay_in_range(name):
    image = picture()
    for seed in range(20):
        result = DRAWN[name](image, seeded(seed))
        assert result.shape == image.shape and result.dtype == torch.float32
        assert result.min() >= -1 - 1e-6 and result.max() <= 1 + 1e-6
        torch.rand(7)  # the global generator has no say
        assert torch.equal(result, DRAWN[name](image, seeded(seed)))
        assert not torch.equal(result, DRAWN[name](image, seeded(seed + 1000)))
    assert torch.equal(image, picture())


def test_noise_has_the_strength_asked_for():
    noise = transforms.add_noise(torch.zeros(3, 100, 100), 0.1, seeded())
    assert noise.mean().abs() < 0.005 and noise.std().item() == pytest.approx(0.1, rel=0.03)
    assert torch.equal(transforms.add_noise(picture(), 0, seeded()), picture())


def test_jitter_of_strength_0_changes_nothing():
    assert torch.allclose(transforms.jitter(picture(), 0, seeded()), picture(), atol=1e-5)


def test_jitter_factors_lie_within_their_strength():
    # of an even grey only the brightness can change
    grey = torch.full((3, 4, 4), -0.2)  # 0.4 of 1
    factors = [transforms.jitter(grey, 0.4, seeded(i)).add(1).mean().item() / 0.8 for i in range(200)]
    assert 0.6 - 1e-4 <= min(factors) < 0.65 and 1.35 < max(factors) <= 1.4 + 1e-4
    # and the order of a colour's channels holds while the hue turns by a tenth of the circle at most
    red = torch.tensor([0.4, -0.6, -0.6]).view(3, 1, 1).expand(3, 4, 4)
    assert all(transforms.jitter(red, 0.4, seeded(i))[:, 0, 0].argmax() == 0 for i in range(50))


def test_darken_darkens():
    image = picture(40, 60)
    means = [transforms.darken(image, seeded(i)).mean().item() for i in range(30)]
    assert max(means) < image.mean().item() - 0.2
    assert max(means) - min(means) > 0.1  # no two nights are alike
    # what was brighter stays brighter
    steps = torch.linspace(-1, 1, 5).view(1, 1, 5).expand(3, 400, 5)
    night = transforms.darken(steps, seeded()).mean((0, 1))
    assert (night.diff() > 0).all()


@pytest.mark.parametrize("shape, night_shape, beta", [((24, 40), (24, 40), 0.1), ((25, 33), (30, 20), 0.2)])
def test_fourier_keeps_phases_and_takes_low_amplitudes(shape, night_shape, beta):
    # soft contrasts, so that nothing is clipped
    day, night = picture(*shape) * 0.2, picture(*night_shape, seed=1) * 0.2 - 0.3
    result = transforms.fourier(day, night, beta)
    resized = torch.nn.functional.interpolate(night[None], shape, mode="bilinear", antialias=True)[0]
    assert result.abs().max() < 1

    reach = int(min(shape) * beta)
    spectra = [np.fft.fft2(x.numpy().astype(float) + 1) for x in (day, resized, result)]
    assert reach >= 2
    for y in range(shape[0]):
        for x in range(shape[1]):
            low = min(y, shape[0] - y) <= reach and min(x, shape[1] - x) <= reach
            there, dark, mixed = (spectrum[:, y, x] for spectrum in spectra)
            assert np.allclose(abs(mixed), abs(dark if low else there), atol=2e-3, rtol=1e-3), (y, x)
            assert np.allclose(mixed * abs(there), there * abs(mixed), atol=1e-2, rtol=1e-2), (y, x)


def test_fourier_takes_the_nights_brightness():
    day, night = picture(64, 64) * 0.2 + 0.3, picture(64, 64, seed=1) * 0.2 - 0.7
    assert transforms.fourier(day, night).mean((1, 2)).tolist() == pytest.approx(night.mean((1, 2)).tolist(), abs=1e-3)
    assert torch.allclose(transforms.fourier(day, day), day, atol=1e-5)
