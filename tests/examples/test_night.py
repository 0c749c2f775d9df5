"""examples/night/measure.py: each measure on images made for it, and the program on small trees."""

import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)

from daynight.data.sampling import generator
from daynight.data.transforms import darken, to_tensor
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import load_model, save_model

SCRIPT = Path(__file__).parents[2] / "examples/night/measure.py"
spec = importlib.util.spec_from_file_location("measure", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def smooth(height=96, width=128, seed=0, cells=(9, 12)):
    """3×H×W in [-0.9, 0.9]: random colours, enlarged."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, *cells, generator=g) * 1.8 - 0.9
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic", align_corners=True)[0].clamp(-1, 1)


def test_contrast_is_1_for_any_gain_and_minus_1_for_the_negative():
    day = smooth()
    assert script.contrast(day, day * 0.2 - 0.7) == pytest.approx((1, 0), abs=1e-5)
    assert script.contrast(day, -day) == pytest.approx((-1, 1), abs=1e-5)
    # what turns the upper half around, as a sky that becomes black with edges that glow, is seen there
    half = torch.cat([-day[:, :48], day[:, 48:]], 1)
    whole, inverted = script.contrast(day, half)
    assert abs(whole) < 0.5 and 0.4 < inverted < 0.6
    # other content is neither
    whole, inverted = script.contrast(day, smooth(seed=1))
    assert abs(whole) < 0.3 and 0.3 < inverted < 0.7


def test_contrast_of_what_is_darkened_stays():
    day = smooth(seed=2)
    values = [script.contrast(day, darken(day, generator(0, i, "darken"))) for i in range(20)]
    correlations, inverted = zip(*values, strict=True)
    assert min(correlations) > 0.4 and sum(inverted) / 20 < 0.02


def test_windows_without_contrast_do_not_count():
    day = smooth()
    day[:, :48] = 0.5
    noise = 0.01 * torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))
    assert script.contrast(day + noise, day - noise) == pytest.approx((1, 0), abs=0.01)
    assert script.contrast(day + noise, day - noise, least=0)[1] > 0.3
    assert script.contrast(torch.zeros(3, 96, 128), day) == pytest.approx((0, 0), abs=0.01)


def test_local_contrast_is_luma_minus_a_gaussian_mean():
    day = smooth(32, 40, cells=(5, 7))
    weights = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601
    luma = np.tensordot(weights, day.numpy() * 0.5 + 0.5, 1)
    reach, sigma = 6, 2.0
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    padded = np.pad(luma, reach, mode="reflect")
    expected = luma.copy()
    for y in range(32):
        for x in range(40):
            expected[y, x] -= (padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1] * kernel).sum()
    assert np.allclose(script.local_contrast(day).numpy(), expected, atol=1e-5)


def stripes(period, levels, axis=2, shape=(96, 128)):
    """A wave of this root mean square, in levels of 255, along x (axis 2) or y."""
    amplitude = levels / 127.5 * (1 if period == 2 else math.sqrt(2))
    n = torch.arange(shape[axis - 1])
    return (amplitude * torch.cos(2 * math.pi * n / period)).view((-1, 1) if axis == 1 else (1, -1)).expand(3, *shape)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("period", [2, 4])
def test_checkerboard_finds_a_pattern_and_how_strong_it_is(period, axis):
    noise = 0.05 * torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))
    image = smooth() * 0.8 + noise
    ratio, levels = script.checkerboard(image, period)
    assert 0.6 < ratio < 1.6 and levels < 0.5
    for wanted in (2, 8):
        ratio, levels = script.checkerboard(image + stripes(period, wanted, axis), period)
        assert ratio > 2 * wanted and levels == pytest.approx(wanted, rel=0.1)
    # of the other period there is none
    other = script.checkerboard(image + stripes(period, 8, axis), 6 - period)
    assert other == pytest.approx(script.checkerboard(image, 6 - period), rel=0.01, abs=0.01)


def test_checkerboard_of_a_deconvolution_is_above_that_of_bilinear_upsampling():
    found = {}
    for upsample in ("bilinear", "deconv"):
        torch.manual_seed(0)
        network = Generator(1, 8, upsample).eval()
        for parameter in network.parameters():
            parameter.data *= 5  # an output that spans the range
        with torch.no_grad():
            images = network(torch.stack([smooth(seed=i) for i in range(4)]))
        for period in (2, 4):
            ratio, levels = zip(*(script.checkerboard(image, period) for image in images), strict=True)
            found[upsample, period] = sum(ratio) / 4, sum(levels) / 4
    for period in (2, 4):
        assert all(d > 3 * b for d, b in zip(found["deconv", period], found["bilinear", period], strict=True)), found


def test_shift_of_what_looks_at_the_whole_image():
    image, native = smooth(), smooth(144, 192)
    tint = torch.tensor([0.5, 1.0, 0.8]).view(3, 1, 1)
    for colour, pixels in script.shift(lambda x: x * tint, image, image, (40, 50)).values():
        assert max(*colour, pixels) < 1e-4
    # as instance norm: a crop loses its own mean, the whole image its own
    crops = [image[:, top : top + 64, left : left + 64] for top in (0, 32) for left in (0, 64)]
    means = 127.5 * torch.stack([crop.mean((1, 2)) - image.mean((1, 2)) for crop in crops]).abs()
    expected = means.mean(0).tolist(), float(means.mean())
    centred = script.shift(lambda x: x - x.mean((2, 3), keepdim=True), image, image, (64, 64))
    for found in centred.values():
        assert found == (pytest.approx(expected[0], rel=1e-3), pytest.approx(expected[1], rel=1e-3))
    # what is added here and taken away there leaves the mean colour
    wave = stripes(4, 20)
    waved = script.shift(
        lambda x: x + wave[..., : x.shape[3]] * (1 if x.shape[3] == 128 else -1), image, image, (96, 64)
    )
    assert max(waved["whole"][0]) < 0.01 and waved["whole"][1] == pytest.approx(
        255 * float(wave.abs().mean()), rel=1e-3
    )
    # only what is run at its own size differs there, and it is compared at the other's
    large = script.shift(lambda x: x * 0 + 0.25 * (x.shape[3] == 192), image, native, (96, 128))
    assert large == {
        "whole": ([0, 0, 0], 0),
        "native": (pytest.approx([0.25 * 127.5] * 3), pytest.approx(0.25 * 127.5)),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Day and night, and of chance a day model and two translators."""
    root = tmp_path_factory.mktemp("measured")
    trees.folder(root / "day", train=1, val=4)
    trees.bdd100k(root / "night", train=("night", "daytime", "night", "night"), val=("night",) * 4)
    torch.manual_seed(0)
    names, colors = zip(*trees.CLASSES, strict=True)
    judge = DeepLabV2(list(names), list(colors), "test_resnet", 8, 8, size="48", pretrained=False)
    for parameter in judge.head.parameters():
        torch.nn.init.normal_(parameter)  # else it calls all by one name
    save_model(judge, root / "judge/teacher")
    for run in ("chance", "other/best"):
        for part in ("day2night", "night2day"):
            save_model(Generator(1, 4, size="48", crop="24x32"), root / run / part)
    return root


@pytest.fixture
def measure(place, monkeypatch, capsys):
    """Run it in this process: exit code, stdout, stderr."""

    def run(words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["measure.py", *words.split()])
        try:
            script.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


SETS = "--day day --night night --weights random"


def test_the_table_and_what_is_written(measure, place):
    code, out, err = measure(f"chance other/best {SETS} --judge judge --out written")
    assert code == 0, err
    found = json.loads((place / "written/measures.json").read_text())
    rows = {row["translator"]: row for row in found["translators"]}
    runs = ["chance", "chance, whole", "other/best", "other/best, whole"]
    assert list(rows) == ["day", "darken", "fourier", *runs, "training nights"]
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert [re.split(r" *\| *", line)[1] for line in table] == ["translator", "---", *rows]
    assert len({line.count("|") for line in table}) == 1

    day = rows["day"]
    assert (day["feature"], day["kept"], day["inverted"]) == (0, 100, 0) and day["contrast"] == pytest.approx(1)
    assert set(day["kept_of"].values()) == {100.0} and "cycle" not in day
    assert rows["darken"]["feature"] > 0.01 and rows["darken"]["contrast"] > 0.3
    for run in runs:
        row = rows[run]
        assert 0 < row["cycle"] < 2 and 0 <= row["kept"] < 100 and 0 <= row["miou"] <= 100
    for run in runs[1::2]:
        row = rows[run]
        assert len(row["whole"]["colour"]) == 3 and row["native"]["pixels"] == pytest.approx(row["whole"]["pixels"])
    assert rows["chance"]["kid"] != rows["other/best"]["kid"] and list(rows["training nights"]) == ["translator", "kid"]
    # at this size `eval` scores the same pixels
    assert daynight("eval --model judge --dataset day --json scores.json", cwd=place).code == 0
    assert day["miou"] == pytest.approx(json.loads((place / "scores.json").read_text())[0]["miou"])
    there, back = (load_model(str(place / "chance" / part), part, "", Generator) for part in ("day2night", "night2day"))
    errors = []
    for path in sorted((place / "day/images/val").rglob("*.jpg")):
        with torch.no_grad():
            image = to_tensor(Image.open(path))[None]
            errors.append(float((back(there(image)) - image).abs().mean()))
    assert rows["chance"]["cycle"] != rows["chance, whole"]["cycle"]
    assert rows["chance, whole"]["cycle"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    with Image.open(place / "written/grid.png") as sheet:
        assert sheet.width >= 5 * 96 and sheet.height >= 4 * 48


def test_without_a_judge_or_labels_what_they_tell_is_left_out(measure, place):
    code, out, err = measure("chance --day night --night night --weights random --out alone")
    assert code == 2 and "no day images" in err
    trees.folder(place / "unlabelled", val=4, labelled=False)
    code, out, err = measure(
        "chance --day unlabelled --night night --weights random --judge judge --out some --images 3"
    )
    assert code == 0, err
    row = json.loads((place / "some/measures.json").read_text())["translators"][0]
    assert row["kept"] == 100 and "miou" not in row
    code, out, err = measure(f"chance {SETS} --out none --images 3")
    row = json.loads((place / "none/measures.json").read_text())["translators"][0]
    assert "kept" not in row and "| day |" in out


@pytest.mark.parametrize(
    "words, names",
    [
        (f"missing {SETS}", "missing/day2night: no such folder"),
        (f"chance/day2night {SETS}", "chance/day2night/day2night: no such folder"),
        (f"chance {SETS} --images 2", "--images 2: KID and its error need at least 3"),
        (f"chance {SETS} --judge chance", "--judge chance: holds no model"),
        ("chance --day day --night missing --weights random", "--night: no data set 'missing'"),
        ("chance --day day --night night --weights missing.safetensors", "--weights: no file missing.safetensors"),
        (f"chance {SETS} --out day/classes.json", "--out day/classes.json: a file stands there"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(measure, words, names):
    code, _, err = measure(words)
    assert code == 2 and names in err and err.startswith("measure.py: ") and err.count("\n") == 1


def test_runs_of_two_sizes_or_without_a_crop(measure, place):
    for run, crop in (("small", "24"), ("converted", None)):
        for part in ("day2night", "night2day"):
            save_model(Generator(1, 4, size="32", crop=crop), place / run / part)
    assert "RUN converted: does not tell its crop" in measure(f"converted {SETS}")[2]
    assert "trained at sizes 32, 48" in measure(f"chance small {SETS}")[2]
