"""`export`: a teacher or a generator as one ONNX file, from an image's pixels to labels or to pixels."""

import copy
import io
import json
import math
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from daynight.config import ExportOptions, pair
from daynight.data.transforms import resize_image
from daynight.inference.tiles import tiled
from daynight.models.backbones import larger
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator, InstanceNorm, RowConv, UpConv
from daynight.models.hub import find_model, identity, load_model
from daynight.system import __version__
from daynight.system.console import discard, say
from daynight.system.errors import InputError, RunError
from daynight.system.files import replace

OPSET = 18
SMALLEST = 16  # the side of an image, in pixels
SAME_LABELS, LEVELS = 99.9, 0.5  # the check: at least this % of equal labels; at most this mean difference, 0-255


class Deployed(nn.Module):
    """N×H×W×3 RGB, uint8 → a teacher's train ids, N×H×W, or a generator's translation, N×H×W×3; uint8.

    `network` takes and gives the same tensors as `DeepLabV2` (`labels`) or `Generator`. It runs at `size`, and the
    result has the image's size, as in `predict` and `translate`.
    """

    def __init__(self, network, size: str, labels: bool):
        super().__init__()
        self.network, self.size, self.labels = network, size, labels

    def forward(self, image):
        height, width = image.shape[1:3]
        pixels = self.resized(image.permute(0, 3, 1, 2).float(), *shape_at(height, width, self.size))
        result = self.network(pixels / 127.5 - 1)
        if not self.labels:
            levels = self.resized((result * 127.5 + 127.5).round().clamp(0, 255), height, width)
            return levels.to(torch.uint8).permute(0, 2, 3, 1)
        if self.size != "native":
            result = F.interpolate(result, (height, width), mode="bilinear", align_corners=False)
        return result.argmax(1).to(torch.uint8)

    def resized(self, pixels, height: int, width: int):
        """N×C×H×W in whole levels → N×C×height×width, as Pillow's bilinear resize (antialiased where it shrinks); some
        pixels differ by one level. These are matrix products, which every runtime has."""
        if self.size == "native":
            return pixels
        pixels = (pixels @ resampled(pixels.shape[3], width, triangle).T + 0.5).floor()
        return (resampled(pixels.shape[2], height, triangle) @ pixels + 0.5).floor()


class Traceable(nn.Module):
    """A `Generator` made of operations that ONNX has. It computes sizes, so a trace holds for any size."""

    def __init__(self, generator: Generator, crop: tuple[int, int] | None):
        super().__init__()
        self.layers, self.crop = copy.deepcopy(generator.layers), crop
        for module in self.layers.modules():
            if isinstance(module, InstanceNorm):
                module.forward = F.instance_norm
            if isinstance(module, RowConv | UpConv):
                module.forward = module.plain

    def whole(self, images):
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4), mode="reflect")
        return self.layers(images)[..., :height, :width]

    def forward(self, images):
        if self.crop is None:
            return self.whole(images)
        (rows, tall, down), (columns, wide, across) = map(tiles, images.shape[2:], self.crop)
        parts = images[:, :, rows][..., columns]  # N×3×(tiles down · tall)×(tiles across · wide)
        shape = (images.shape[0], 3, rows.shape[0] // tall, tall, columns.shape[0] // wide, wide)
        parts = parts.reshape(shape).permute(0, 2, 4, 1, 3, 5)
        results = self.whole(parts.reshape(-1, 3, tall, wide)).reshape(parts.shape).permute(0, 3, 1, 4, 2, 5)
        total = down @ results.reshape(shape[0], 3, shape[2] * tall, shape[4] * wide) @ across.T
        return total / (down.sum(1)[:, None] * across.sum(1))


def tiles(length: int, crop: int):
    """The tiles of `tiled` along one side: the positions of their pixels (T), the length of a tile, and the matrix
    length×T that adds the tiles up under their windows."""
    part, _ = ordered(length, crop)
    _, step = ordered(part // 2, 1)
    starts = torch.arange((length - part + step - 1) // step + 1) * step
    starts = torch.minimum(starts, torch.ones_like(starts) * (length - part))
    places = (starts[:, None] + torch.arange(part)).flatten()
    window = (math.pi * (torch.arange(part) + 1) / (part + 1)).sin() ** 2
    return places, part, (torch.arange(length)[:, None] == places) * window.repeat(starts.shape[0])


def resampled(length: int, target: int, kernel):
    """The weight of each of `length` pixels in each of `target` pixels, by their distance: target×length."""
    apart = (2 * torch.arange(length) + 1) * target - ((2 * torch.arange(target) + 1) * length)[:, None]
    weights = kernel(apart.abs() / (2 * ordered(length, target)[1]))
    return weights / weights.sum(1, keepdim=True)


def triangle(x):
    return (1 - x).clamp(min=0)


def cubic(x):
    """Keys' cubic of a = -1/2, as antialiased bicubic resampling has it."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def shape_at(height: int, width: int, size: str) -> tuple[int, int]:
    """`target_size`, by arithmetic that a trace records."""
    if size == "native":
        return height, width
    if "x" in size:
        return pair(size)
    scaled, (short, _) = int(size), ordered(height, width)
    return tuple((2 * scaled * length + short) // (2 * short) for length in (height, width))


def ordered(a: int, b: int) -> tuple[int, int]:
    """The smaller and the larger, by arithmetic that a trace records."""
    return a + b - larger(a, b), larger(a, b)


def export(options: ExportOptions) -> None:
    """Write a network as an ONNX file, if ONNX Runtime and the original network agree on a drawn picture.

    Raises `InputError` for bad options, `RunError` if the network cannot be exported or the check fails.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"export needs {error.name}, which is not installed: pip install 'daynight[onnx]'") from None
    # a run's teacher or day2night, or the network of a model folder
    part = "day2night" if (Path(options.model) / "day2night").is_dir() else "teacher"
    folder = find_model(options.model, part, "--model")
    labels = '"Generator"' not in (folder / "config.json").read_text(encoding="utf-8", errors="replace")
    network = load_model(options.model, part, "--model", DeepLabV2 if labels else Generator)
    size, tiles = options.size or network.config["size"], None if labels or options.whole else network.config["crop"]
    if size != "native" and min(pair(size)) < SMALLEST:
        raise InputError(f"--size {size}: wanted: at least {SMALLEST} pixels")
    # a model of the Hub lies in its cache
    place, name = (folder.parent, folder.absolute().name) if os.path.exists(options.model) else ("", part)
    out = Path(options.out or Path(place, f"{name}.onnx"))
    record = {"daynight": __version__, "model": identity(folder), "size": size}
    if labels:
        pairs = zip(network.config["names"], network.config["colors"], strict=True)
        record["classes"] = json.dumps([{"name": name, "color": color} for name, color in pairs], ensure_ascii=False)
    elif tiles:
        record["tiles"] = tiles
    if os.path.lexists(out) and record_of(onnx, out) != record:
        there = "a folder stands there" if out.is_dir() else "exists, and is not this export of this model"
        raise InputError(f"--out {out}: {there}; give another file's name")

    say(f"{folder} → {out}")
    crop = tiles and pair(tiles)
    original = network if not crop else lambda images: tiled(network, images, crop)
    try:
        content = trace(Deployed(network if labels else Traceable(network, crop), size, labels))
    # the exporter raises exceptions of many kinds for operations that it does not know
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"--model {options.model}: cannot be exported ({type(error).__name__}: {reason})") from error
    model = onnx.load_from_string(content)
    result = "labels: N×H×W, uint8, train ids" if labels else "translation: N×H×W×3, RGB, uint8"
    inside = "at the image's size" if size == "native" else f"at {size}, as --size"
    model.doc_string = f"image: N×H×W×3, RGB, uint8, from {SMALLEST}×{SMALLEST} → {result}; the network runs {inside}"
    onnx.helper.set_model_props(model, record)
    content = model.SerializeToString()
    check(onnxruntime, content, Deployed(original, size, labels), street())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out.resolve(), lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    say(f"{out}: {len(content) / 2**20:.1f} MiB, ONNX opset {OPSET}; {model.doc_string}")


def record_of(onnx, file: Path) -> dict[str, str] | None:
    """What an ONNX file says of itself; None where it is none."""
    with suppress(Exception):  # what is no ONNX file leads to exceptions of several kinds
        if file.is_file():
            return {prop.key: prop.value for prop in onnx.load(file, load_external_data=False).metadata_props}


def street() -> Image.Image:
    """A drawn street, always the same: sky, houses with shutters, road, cars, grain."""
    height, width, horizon = 347, 619, 200
    levels = np.full((height, width, 3), 95.0)
    levels[:horizon] = np.linspace((100, 160, 235), (190, 220, 240), horizon)[:, None]
    for i, left in enumerate(range(0, width, 75)):
        top = 40 + 37 * i % 90
        levels[top : horizon + 10, left : left + 60] = 110 + 13 * i, 90 + 31 * i % 80, 80
        levels[top + 10 : horizon : 3, left + 12 : left + 30] = 40
        levels[230 + top // 3 :, left : left + 40 * (i % 3)][:40] = 170 - 20 * i, 30, 20 * i
    levels += np.random.default_rng(0).normal(0, 6, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def trace(deployed: Deployed) -> bytes:
    """The module as an ONNX file.

    This uses the tracing exporter although it is deprecated: for networks that pad as TensorFlow does, the newer one
    takes minutes (EfficientNet-lite0: 100 s of CPU time instead of 1 s) and may refuse sizes unlike its example's.
    """
    file, result, axes = io.BytesIO(), "labels" if deployed.labels else "translation", {0: "N", 1: "H", 2: "W"}
    settings = {"dynamo": False, "opset_version": OPSET, "input_names": ["image"], "output_names": [result]}
    example = torch.zeros(2, 99, 181, 3, dtype=torch.uint8)
    # it warns of constants in the trace and of its own deprecation
    with warnings.catch_warnings(), silent(), torch.no_grad(), resampling():
        warnings.simplefilter("ignore")
        torch.onnx.export(deployed.eval(), (example,), file, dynamic_axes={"image": axes, result: axes}, **settings)
    return file.getvalue()


@contextmanager
def resampling():
    """Let `F.interpolate` resample as matrix products where ONNX has no operator: position embeddings, bicubic with
    antialiasing."""
    interpolate = F.interpolate

    def as_products(x, size=None, *arguments, mode="nearest", antialias=False, **settings):
        if mode != "bicubic" or not antialias:
            return interpolate(x, size, *arguments, mode=mode, antialias=antialias, **settings)
        return resampled(x.shape[2], size[0], cubic) @ x @ resampled(x.shape[3], size[1], cubic).T

    F.interpolate = as_products
    try:
        yield
    finally:
        F.interpolate = interpolate


@contextmanager
def silent():
    """Print nothing on standard output, not even from C++: an exporter that fails prints the graph with all nodes."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        discard(1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def check(onnxruntime, content: bytes, original: Deployed, image: Image.Image) -> None:
    """Compare ONNX Runtime with PyTorch on an image at two sizes. Raises `RunError` if they differ."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    for scale in (1, 0.7):
        scaled = resize_image(image, round(scale * image.height), round(scale * image.width))
        pixels, where = np.array(scaled)[None], f"at {scaled.height}×{scaled.width} pixels"
        with torch.no_grad():
            wanted = original(torch.from_numpy(pixels)).numpy()
        try:
            session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"image": pixels})
            if found.shape != wanted.shape:
                raise ValueError(f"its result has the shape {found.shape}, wanted: {wanted.shape}")
        # ONNX Runtime has a class of its own for each kind of failure
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise RunError(f"ONNX Runtime fails {where} ({reason}); nothing was written") from error
        if original.labels:
            same = 100 * (found == wanted).mean()
            good, what = same >= SAME_LABELS, f"{same:.3f} % of the labels are the same, wanted: {SAME_LABELS} %"
        else:
            apart = np.abs(found.astype(int) - wanted).mean()
            good, what = apart <= LEVELS, f"{apart:.3f} levels of 255 apart on average, wanted: at most {LEVELS}"
        if not good:
            raise RunError(f"ONNX Runtime and PyTorch differ {where}: {what}; nothing was written")
        say(f"  ONNX Runtime against PyTorch {where}: {what}")
