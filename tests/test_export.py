"""`daynight export`: what ONNX Runtime makes of the file is what `predict` and `translate` make of the same images."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)

from daynight import __version__, export
from daynight.data import streets
from daynight.data.transforms import to_tensor
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.weights import identity, save_model

NAMES, COLORS = zip(*streets.CLASSES, strict=True)
SIZES = [(96, 192), (65, 131), (37, 64), (120, 70)]  # with what is no multiple of 4, smaller than a crop, upright


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of either training with random weights, and images of several sizes."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    teacher = DeepLabV2(list(NAMES), list(COLORS), "test_resnet", hidden=8, size="48")
    with torch.no_grad():
        # every class as likely as any other, else one is everywhere
        logits = teacher.eval()(to_tensor(Image.fromarray(streets.scene(0, False)[0]))[None])
        for layer in teacher.head.fc8:
            layer.weight /= logits.std((0, 2, 3))[:, None, None, None]
        teacher.head.fc8[0].bias -= (logits.mean((0, 2, 3)) / logits.std((0, 2, 3)))
    save_model(teacher, home / "seg/teacher")
    # a folder for each size: what `translate --size` writes is of that size
    for size in ("48", "native", "40x100"):
        for part, upsample in (("day2night", "bilinear"), ("night2day", "deconv")):
            generator = Generator(1, 4, upsample, size, "24x32")
            with torch.no_grad():
                for parameter in generator.parameters():
                    parameter.mul_(3)  # else the translation is grey
            save_model(generator, home / f"gan-{size}" / part)
    (home / "frames").mkdir()
    for number, (height, width) in enumerate(SIZES):
        drawn = Image.fromarray(streets.scene(number, False, (128, 256))[0])
        drawn.resize((width, height)).save(home / f"frames/{number}.png")
    return home


def run(home, line, result):
    """Export and label or translate by one command each: (by ONNX Runtime, by daynight) of each image."""
    written = daynight(f"export {line} --out {result}.onnx", home)
    assert written.code == 0 and written.err == "", written
    session = onnxruntime.InferenceSession(home / f"{result}.onnx")
    for number in range(len(SIZES)):
        image = np.array(Image.open(home / f"frames/{number}.png"))
        (found,) = session.run(None, {"image": image[None]})
        yield image, found


@pytest.mark.parametrize(("size", "same"), [("", 0.999), ("--size native", 0.9999), ("--size 40x100", 0.999)])
def test_a_teacher_labels_as_predict_does(home, size, same):
    result = f"labels{size.replace(' ', '')}"
    assert daynight(f"predict --in frames --out {result} --model seg {size}", home).code == 0
    for number, (image, found) in enumerate(run(home, f"--model seg {size}", result)):
        wanted = np.array(Image.open(home / result / f"ids/{number}.png"))
        assert found.dtype == np.uint8 and found.shape == (1, *image.shape[:2])
        assert len(np.unique(wanted)) > 2
        print((found[0] == wanted).mean())
        assert (found[0] == wanted).mean() >= same


@pytest.mark.parametrize(
    ("size", "options"),
    [("48", ""), ("native", ""), ("40x100", ""), ("48", "--whole"), ("native", "--part night2day --whole")],
)
def test_a_generator_translates_as_translate_does(home, size, options):
    result, reverse = f"translated-{size}{options.replace(' ', '')}", options.replace("--part night2day", "--reverse")
    assert daynight(f"translate --in frames --out {result} --model gan-{size} {reverse}", home).code == 0
    for number, (image, found) in enumerate(run(home, f"--model gan-{size} {options}", result)):
        wanted = np.array(Image.open(home / result / f"{number}.png"))
        assert found.dtype == np.uint8 and found.shape == (1, *image.shape)
        print(wanted.std(), wanted.shape, np.abs(found[0].astype(int) - wanted).mean())
        assert wanted.std() > 5
        assert np.abs(found[0].astype(int) - wanted).mean() < 0.1
