"""`daynight export`: what ONNX Runtime makes of the file is what `predict` and `translate` make of the same images."""

import copy
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from torch.nn import functional as F

from daynight import __version__
from daynight.data.transforms import to_tensor
from daynight.demo import streets
from daynight.inference import export
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import identity, save_model

NAMES, COLORS = zip(*streets.CLASSES, strict=True)
SIZES = [(96, 192), (65, 131), (37, 64), (120, 70)]  # with what is no multiple of 4, smaller than a crop, upright


def random_teacher(backbone="test_resnet", size="48", head="aspp") -> DeepLabV2:
    """Of random weights, but by day every class is as likely as any other: else one is everywhere."""
    teacher = DeepLabV2(list(NAMES), list(COLORS), backbone, hidden=8, size=size, head=head, pretrained=False).eval()
    last = list(teacher.head.fc8) if head == "aspp" else [teacher.head.classes]
    with torch.no_grad():
        logits = teacher(to_tensor(Image.fromarray(streets.scene(0, False)[0]))[None])
        for layer in last:
            layer.weight /= logits.std((0, 2, 3))[:, None, None, None]
        last[0].bias -= logits.mean((0, 2, 3)) / logits.std((0, 2, 3))
    return teacher


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of either training with random weights, and images of several sizes."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    save_model(random_teacher(), home / "seg/teacher")
    # a folder for each size: what `translate --size` writes is of that size
    for size, crop in (("48", "24x32"), ("native", "40x80"), ("40x100", "24x32")):
        for part, upsample in (("day2night", "bilinear"), ("night2day", "deconv")):
            generator = Generator(1, 4, upsample, size, crop)
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


# where it stretches, Pillow resizes in an order of its own, which moves some pixels by a level
@pytest.mark.parametrize(("size", "same"), [("", 0.999), ("--size native", 0.9999), ("--size 40x100", 0.995)])
def test_a_teacher_labels_as_predict_does(home, size, same):
    result = f"labels{size.replace(' ', '')}"
    assert daynight(f"predict --in frames --out {result} --model seg {size}", home).code == 0
    for number, (image, found) in enumerate(run(home, f"--model seg {size}", result)):
        wanted = np.array(Image.open(home / result / f"ids/{number}.png"))
        assert found.dtype == np.uint8 and found.shape == (1, *image.shape[:2])
        assert len(np.unique(wanted)) > 2
        assert (found[0] == wanted).mean() >= same


@pytest.mark.parametrize(
    "backbone",
    ["test_vit", "test_vit3", "test_mambaout", "test_convnext+fuse"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3")]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("swin_tiny_patch4_window7_224", "resnet18")],
)
def test_a_teacher_on_another_backbone_labels_as_predict_does(home, backbone):
    """At sizes that are no multiple of anything, by positions that are resampled."""
    backbone, _, head = backbone.partition("+")
    torch.manual_seed(0)
    save_model(random_teacher(backbone, "native", head or "aspp"), home / backbone)
    assert daynight(f"predict --in frames --out labels-{backbone} --model {backbone}", home).code == 0
    classes = set()
    for number, (_, found) in enumerate(run(home, f"--model {backbone}", f"labels-{backbone}")):
        wanted = np.array(Image.open(home / f"labels-{backbone}/ids/{number}.png"))
        assert (found[0] == wanted).mean() >= 0.999
        classes.update(np.unique(wanted).tolist())
    assert len(classes) > 2


@pytest.mark.parametrize(("length", "target"), [(16, 37), (37, 16), (14, 14), (24, 25), (37, 9)])
def test_matrices_resample_as_pytorch_does(length, target):
    x = torch.rand(1, 2, length, length, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, (target, target), mode="bicubic", antialias=True, align_corners=False)
    down = export.resampled(length, target, export.cubic)
    assert torch.allclose(down @ x @ down.T, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "options", "levels"),
    [("48", "", 0.1), ("native", "", 0.01), ("40x100", "", 2), ("native", "--reverse --whole", 0.01)],
)
def test_a_generator_translates_as_translate_does(home, size, options, levels):
    """A part of a run is a model folder."""
    result, ours = f"translated-{size}{options.replace(' ', '')}", options.replace("--reverse", "")
    part = "/night2day" if "--reverse" in options else ""
    assert daynight(f"translate --in frames --out {result} --model gan-{size} {options}", home).code == 0
    for number, (image, found) in enumerate(run(home, f"--model gan-{size}{part} {ours}", result)):
        wanted = np.array(Image.open(home / result / f"{number}.png"))
        assert found.dtype == np.uint8 and found.shape == (1, *image.shape)
        assert wanted.std() > 5
        assert np.abs(found[0].astype(int) - wanted).mean() < levels


def test_what_the_file_says_of_itself(home, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check", lambda *_: None)
    files = {}
    for model, name in (("seg", "teacher"), ("seg/teacher", "teacher"), ("gan-48/night2day", "night2day")):
        result = daynight(f"export --model {home / model}", tmp_path)
        assert result.code == 0 and f"{name}.onnx" in result.out, result
        files[model] = onnx.load(
            (home / model).parent / f"{name}.onnx" if "/" in model else home / model / f"{name}.onnx"
        )
    onnx.checker.check_model(files["seg"], full_check=True)
    record = {entry.key: entry.value for entry in files["seg"].metadata_props}
    classes = json.loads(record.pop("classes"))
    assert [(one["name"], tuple(one["color"])) for one in classes] == streets.CLASSES
    assert record == {"daynight": __version__, "model": identity(home / "seg/teacher"), "size": "48"}
    record = {entry.key: entry.value for entry in files["gan-48/night2day"].metadata_props}
    assert record["model"] == identity(home / "gan-48/night2day") and record["tiles"] == "24x32"
    assert all("RGB" in file.doc_string and "at 48" in file.doc_string for file in files.values())
    for file, output in ((files["seg"], "labels"), (files["gan-48/night2day"], "translation")):
        ((given,), (result,)) = file.graph.input, file.graph.output
        assert (given.name, result.name) == ("image", output)
        assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["N", "H", "W", 3]


def test_images_of_a_batch_do_not_meet(home, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check", lambda *_: None)
    street = np.stack([streets.scene(number, False, (60, 90))[0] for number in range(3)])
    for model in ("seg", "gan-48"):
        assert daynight(f"export --model {home / model} --out {model}.onnx", tmp_path).code == 0
        session = onnxruntime.InferenceSession(tmp_path / f"{model}.onnx")
        together = session.run(None, {"image": street})[0].astype(int)
        alone = np.concatenate([session.run(None, {"image": image[None]})[0] for image in street])
        assert np.abs(together - alone).mean() < 0.001


@pytest.mark.parametrize(
    ("model", "bias"), [("seg", lambda n: n.head.fc8[0].bias), ("gan-48", lambda n: n.layers[-2].bias)]
)
def test_a_file_that_differs_from_the_original_is_not_written(model, bias, home, tmp_path, monkeypatch):
    trace = export.trace

    def another(deployed):
        deployed = copy.deepcopy(deployed)
        values = bias(deployed.network).data
        values += torch.linspace(-0.5, 0.5, len(values))
        return trace(deployed)

    line = f"export --model {home / model} --out one.onnx"
    assert daynight(line, tmp_path).code == 0
    whole = (tmp_path / "one.onnx").read_bytes()
    monkeypatch.setattr(export, "trace", another)
    result = daynight(line, tmp_path)
    assert result.code == 1 and result.err.count("\n") == 1 and "347×619" in result.err and "wanted" in result.err, (
        result
    )
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]
    assert (tmp_path / "one.onnx").read_bytes() == whole


def padded_by_one(self, images):
    return self.layers(F.pad(images, (0, 1, 0, 1), mode="reflect"))[..., :-1, :-1]


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("whole", padded_by_one),
        ("forward", lambda self, images: images + images[:, :, 50:51]),
    ],
)
def test_the_second_size_is_checked_too(name, replacement, home, tmp_path, monkeypatch):
    """Traces that hold for 63×99 pixels alone: another shape comes out, or nothing does."""
    monkeypatch.setattr(export, "street", lambda: Image.fromarray(streets.scene(0, False, (63, 99))[0]))
    monkeypatch.setattr(export, "LEVELS", 255)
    monkeypatch.setattr(export.Traceable, name, replacement)
    result = daynight(f"export --model {home / 'gan-native'} --whole", tmp_path)
    assert "at 63×99" in result.out and result.code == 1, result
    assert "at 44×69" in result.err and "nothing was written" in result.err, result
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_the_exporter_does_not_know(home, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(export.DeepLabV2, "forward", lambda self, images: torch.special.bessel_j0(images))
    result = daynight(f"export --model {home / 'seg'}", tmp_path)
    assert result.code == 1 and result.err.count("\n") == 1 and "bessel_j0" in result.err, result
    assert result.out.count("\n") == 1 and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # PyTorch's own, of the graph


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--model gone", ["--model gone"]),
        ("--model seg/night2day", ["--model seg/night2day"]),
        ("--model seg --size 8", ["--size 8", "16"]),
        ("--model seg --size 8x100", ["--size 8x100", "16"]),
        ("--model seg --out frames", ["--out frames", "folder"]),
        ("--model seg --out frames/0.png/x.onnx", ["--out frames/0.png/x.onnx"]),
    ],
)
def test_bad_input(line, words, home):
    before = sorted(home.rglob("*"))
    result = daynight(f"export {line}", home)
    assert all(word in result.line for word in words), result
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_without_a_library_it_says_what_to_install(library, home, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert (
        f"{library}, which is not installed: pip install 'daynight[onnx]'" in daynight("export --model seg", home).line
    )
