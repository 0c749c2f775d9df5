"""examples/convert_cyclegan.py: a file as the original CycleGAN saves it, against a network written after its paper."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from test_cli import clean, daynight, in_process  # noqa: F401 (clean is a fixture)
from torch.nn import functional as F

from daynight.models.generator import Generator
from daynight.models.hub import load_model

PATH = Path(__file__).parents[2] / "examples/convert_cyclegan.py"


def published(blocks, width, second=5, seed=0):
    """Random weights under the names and in the shapes of the files that the original's users share."""
    draw = torch.Generator().manual_seed(seed)
    layers = {"1": (width, 3, 7, 7), "4": (2 * width, width, 3, 3), "7": (4 * width, 2 * width, 3, 3)}
    for block in range(10, 10 + blocks):
        layers |= {f"{block}.conv_block.{i}": (4 * width, 4 * width, 3, 3) for i in (1, second)}
    end = 10 + blocks
    layers |= {f"{end}": (4 * width, 2 * width, 3, 3), f"{end + 3}": (2 * width, width, 3, 3)}
    layers[f"{end + 7}"] = (3, width, 7, 7)
    state = {}
    for name, shape in layers.items():
        outputs = shape[1] if name in (f"{end}", f"{end + 3}") else shape[0]
        state[f"model.{name}.weight"] = torch.randn(shape, generator=draw) * 0.1
        state[f"model.{name}.bias"] = torch.randn(outputs, generator=draw)
    return state


def original(state, images, blocks, second=5):
    """The ResNet generator of Zhu et al. 2017, appendix 7.2: c7s1-64, d128, d256, R256…, u128, u64, c7s1-3."""

    def layer(x, name, operation=F.conv2d, **settings):
        return operation(x, state[f"model.{name}.weight"], state[f"model.{name}.bias"], **settings)

    def mirror(x, by):
        return F.pad(x, (by,) * 4, mode="reflect")

    x = F.instance_norm(layer(mirror(images, 3), "1")).relu()
    x = F.instance_norm(layer(x, "4", stride=2, padding=1)).relu()
    x = F.instance_norm(layer(x, "7", stride=2, padding=1)).relu()
    for block in range(10, 10 + blocks):
        y = F.instance_norm(layer(mirror(x, 1), f"{block}.conv_block.1")).relu()
        x = x + F.instance_norm(layer(mirror(y, 1), f"{block}.conv_block.{second}"))
    up = {"operation": F.conv_transpose2d, "stride": 2, "padding": 1, "output_padding": 1}
    x = F.instance_norm(layer(x, str(10 + blocks), **up)).relu()
    x = F.instance_norm(layer(x, str(13 + blocks), **up)).relu()
    return layer(mirror(x, 3), str(17 + blocks)).tanh()


@pytest.fixture
def run(tmp_path):
    """The script in this process: exit code, stdout, stderr."""
    spec = spec_from_file_location("convert_cyclegan", PATH)
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return lambda line: in_process(script.main, f"convert_cyclegan.py {line}", tmp_path)


def before_0_4(state):
    """What PyTorch 0.3 saved besides: statistics of instance norm."""
    for name, tensor in list(state.items()):
        if name.endswith("bias") and "17" not in name:
            head, number, _ = name.rsplit(".", 2)
            for statistic in ("running_mean", "running_var"):
                state[f"{head}.{int(number) + 1}.{statistic}"] = torch.ones_like(tensor)
    return state


@pytest.mark.parametrize(
    ("blocks", "width", "second", "change"),
    [
        (9, 4, 5, lambda state: state),
        (6, 6, 5, before_0_4),
        (2, 4, 6, lambda state: {f"module.{name}": tensor for name, tensor in state.items()}),
    ],
)
def test_it_translates_as_the_original_does(blocks, width, second, change, run, tmp_path):
    state = published(blocks, width, second)
    torch.save(change(dict(state)), tmp_path / "latest_net_G_A.pth")
    code, said, complaint = run("latest_net_G_A.pth --out model")
    assert (code, complaint) == (0, "") and f"{blocks} blocks, {width} filters" in said
    generator = load_model(str(tmp_path / "model"), "day2night", "--model", Generator)
    settings = {"blocks": blocks, "width": width, "upsample": "deconv", "size": "286", "crop": "256"}
    assert generator.config == settings
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted, found = original(state, images, blocks, second), generator(images)
    assert wanted.std() > 0.1
    assert (wanted - found).abs().max() < 1e-4


def test_translate_takes_it(run, tmp_path):
    torch.save(published(1, 4), tmp_path / "latest_net_G_A.pth", _use_new_zipfile_serialization=False)
    assert run("latest_net_G_A.pth --out model --size native --crop 32x64")[0] == 0
    trees.bare(tmp_path / "frames", count=2)
    result = daynight("translate --in frames --out night --model model --whole", tmp_path)
    assert result.code == 0, result
    image = np.array(Image.open(tmp_path / "frames/0.jpg"))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        wanted = original(published(1, 4), pixels, 1)[0].permute(1, 2, 0) * 127.5 + 127.5
    # the image is written as JPEG
    assert np.abs(np.array(Image.open(tmp_path / "night/0.jpg")) - wanted.numpy()).mean() < 6


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def normed(state):
    """Batch norm, of which CycleGAN's code has no biases before it."""
    weights = {name: tensor for name, tensor in state.items() if name.endswith("weight")}
    return weights | {
        "model.2.weight": torch.ones(4),
        "model.2.bias": torch.ones(4),
        "model.2.running_mean": torch.ones(4),
    }


BAD = {
    "unet": ({"model.model.0.weight": torch.ones(4, 3, 4, 4), "model.model.1.model.1.weight": torch.ones(1)}, ["UNet"]),
    "discriminator": ({"model.0.weight": torch.ones(4, 3, 4, 4), "model.0.bias": torch.ones(4)}, ["discriminator"]),
    "pixel": ({"net.0.weight": torch.ones(4, 3, 1, 1)}, ["discriminator"]),
    "normed": (normed(published(1, 4)), ["batch norm"]),
    "grey": (published(1, 4) | {"model.1.weight": torch.ones(4, 1, 7, 7)}, ["layers.1.weight", "shape"]),
    "short": ({name: tensor for name, tensor in published(1, 4).items() if "11" not in name}, ["layers.11.weight"]),
    "blockless": (published(0, 4), ["blocks"]),
    "flat": (published(1, 4) | {"model.1.weight": torch.tensor(1.0)}, ["layers.1.weight"]),
    "empty": ({}, ["missing"]),
    "list": ([torch.ones(3)], ["more than the tensors"]),
    "whole": ({"state_dict": published(1, 4)}, ["more than the tensors"]),
    "harm": (Harm(), ["no file of tensors alone"]),
    "text": (b"hello", ["no file of tensors alone"]),
    "nothing": (b"", ["no file of tensors alone"]),
    "half": (None, ["no file of tensors alone"]),
    "gone": (None, ["no such file"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_refuses(name, run, tmp_path):
    content, words = BAD[name]
    path = tmp_path / f"{name}.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name == "half":
        torch.save(published(1, 4), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name != "gone":
        torch.save(content, path)
    code, said, complaint = run(f"{name}.pth --out model")
    assert code == 2 and said == "" and complaint.startswith(f"convert_cyclegan.py: {name}.pth: "), complaint
    assert complaint.count("\n") == 1 and all(word in complaint for word in words), complaint
    assert "wanted: a ResNet generator" in complaint
    assert not (tmp_path / "model").exists() and not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.pth --out a.pth", ["--out a.pth", "new folder"]),
        ("a.pth --out a.pth/model", ["--out a.pth/model"]),
        ("a.pth --out model --size big", ["--size big"]),
        ("a.pth --out model --crop native", ["--crop native"]),
    ],
)
def test_bad_options(line, words, run, tmp_path):
    torch.save(published(1, 4), tmp_path / "a.pth")
    code, _, complaint = run(line)
    assert code == 2 and complaint.count("\n") == 1 and all(word in complaint for word in words), complaint
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
