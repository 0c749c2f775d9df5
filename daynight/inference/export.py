"""`export`: a teacher or a generator as one ONNX file, from a camera's pixels to labels or to pixels."""

import copy
import io
import json
import math
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from daynight import __version__
from daynight.config import ExportOptions, pair
from daynight.data.images import Images
from daynight.data.transforms import resize_image
from daynight.demo import streets
from daynight.inference.tiles import tiled
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator, InstanceNorm, RowConv, UpConv
from daynight.models.hub import find_model, identity, load_model
from daynight.system.console import say
from daynight.system.errors import InputError, RunError
from daynight.system.files import replace

OPSET = 18
SMALLEST = 16  # the side of an image, in pixels
SAME_LABELS, LEVELS = 0.999, 0.5  # what the check asks for: share of pixels, mean difference in levels of 0 to 255


class Deployed(nn.Module):
    """N×H×W×3 RGB, uint8 → the train ids of a teacher, N×H×W, or what a generator makes of it, N×H×W×3; uint8.

    `network` takes and gives what `DeepLabV2` (`labels`) or `Generator` does. As in `predict` and `translate` it runs
    at `size`, and the result is of the image's size.
    """

    def __init__(self, network, size: str, labels: bool):
        super().__init__()
        self.network, self.size, self.labels = network, size, labels

    def forward(self, image):
        height, width = image.shape[1:3]
        pixels = image.permute(0, 3, 1, 2).float()
        if self.size != "native":
            pixels = resized(pixels, *shape_at(height, width, self.size))
        result = self.network(pixels / 127.5 - 1)
        if self.labels:
            if self.size != "native":
                result = F.interpolate(result, (height, width), mode="bilinear", align_corners=False)
            return result.argmax(1).to(torch.uint8)
        levels = (result * 127.5 + 127.5).round().clamp(0, 255)
        if self.size != "native":
            levels = resized(levels, height, width)
        return levels.to(torch.uint8).permute(0, 2, 3, 1)


class Traceable(nn.Module):
    """A `Generator` by operations that ONNX has, its sizes by arithmetic: what a trace records holds for any size."""

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
    """Of one side, the tiles of `inference.tiled`: the places in the image of all their pixels (T), their length, and
    the matrix length×T that adds them up under their windows."""
    part = smaller(length, crop)
    step = larger(part // 2, 1)
    starts = torch.arange((length - part + step - 1) // step + 1) * step
    starts = torch.minimum(starts, torch.ones_like(starts) * (length - part))
    places = (starts[:, None] + torch.arange(part)).flatten()
    window = (math.pi * (torch.arange(part) + 1) / (part + 1)).sin() ** 2
    return places, part, (torch.arange(length)[:, None] == places) * window.repeat(starts.shape[0])


def smaller(a: int, b: int) -> int:
    return (a + b - abs(a - b)) // 2


def larger(a: int, b: int) -> int:
    return (a + b + abs(a - b)) // 2


def shape_at(height: int, width: int, size: str) -> tuple[int, int]:
    """`target_size`, by arithmetic."""
    if "x" in size:
        return pair(size)
    scaled, short = int(size), smaller(height, width)
    return tuple((2 * scaled * length + short) // (2 * short) for length in (height, width))


def resized(pixels, height: int, width: int):
    """N×C×H×W in whole levels → N×C×height×width: Pillow's bilinear, anti-aliased where it shrinks, but for a level
    here and there. As products with matrices, which every runtime has."""
    pixels = (pixels @ triangles(pixels.shape[3], width).T + 0.5).floor()
    return (triangles(pixels.shape[2], height) @ pixels + 0.5).floor()


def triangles(length: int, target: int):
    """The weights of `length` pixels in each of `target`, target×length."""
    apart = (2 * torch.arange(length) + 1) * target - ((2 * torch.arange(target) + 1) * length)[:, None]
    weights = (1 - apart.abs() / (2 * larger(length, target))).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def export(options: ExportOptions) -> None:
    """Write an ONNX file and compare it, in ONNX Runtime, with the original: nothing is written where they differ.

    Raises `InputError` for what was given, `RunError` where the network cannot be exported or the check fails.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"export needs {error.name}, which is not installed: pip install 'daynight[onnx]'") from None
    name, folder, network = load(options.model, options.part)
    labels, size = isinstance(network, DeepLabV2), options.size or network.config["size"]
    if size != "native" and min(pair(size)) < SMALLEST:
        raise InputError(f"--size {size}: wanted: at least {SMALLEST} pixels")
    out = Path(options.out or f"{name}.onnx")
    if out.is_dir():
        raise InputError(f"--out {out}: a folder stands there; wanted: a file's name")
    image = (
        Images([Path(options.image)])[0] if options.image else Image.fromarray(streets.scene(0, False, (347, 619))[0])
    )
    if min(image.size) < 2 * SMALLEST:
        raise InputError(f"--image {options.image}: wanted: at least {2 * SMALLEST} pixels a side")
    crop = None if labels or options.whole else network.config["crop"]
    crop = crop and pair(crop)

    say(f"{folder} → {out}")
    original = network if labels or not crop else lambda images: tiled(network, images, crop)
    exported = network if labels else Traceable(network, crop)
    try:
        content = trace(Deployed(exported, size, labels))
    # the exporter answers what it does not know with exceptions of many kinds
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"--model {options.model}: cannot be exported ({type(error).__name__}: {reason})") from error
    model = onnx.load_from_string(content)
    model.doc_string = describe(labels, size)
    record = {"daynight": __version__, "model": identity(folder), "size": size}
    if labels:
        pairs = zip(network.config["names"], network.config["colors"], strict=True)
        record["classes"] = json.dumps([{"name": name, "color": color} for name, color in pairs], ensure_ascii=False)
    elif crop:
        record["tiles"] = network.config["crop"]
    onnx.helper.set_model_props(model, record)
    content = model.SerializeToString()
    check(onnxruntime, content, Deployed(original, size, labels), image)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    say(f"{out}: {len(content) / 2**20:.1f} MiB, ONNX opset {OPSET}; {model.doc_string}")


def load(model: str, part: str | None) -> tuple[str, Path, nn.Module]:
    """A name for a network, its folder, and the network: a part of a run, or what a model folder holds."""
    given = part or ("day2night" if (Path(model) / "day2night").is_dir() else "teacher")
    folder = find_model(model, given, "--model")
    generator = '"Generator"' in (folder / "config.json").read_text(encoding="utf-8", errors="replace")
    kind = Generator if given != "teacher" or (part is None and generator) else DeepLabV2
    name = given if folder == Path(model) / given else Path(model).absolute().name
    return name, folder, load_model(model, given, "--model", kind)


def describe(labels: bool, size: str) -> str:
    result = "labels: N×H×W, uint8, train ids" if labels else "translation: N×H×W×3, RGB, uint8"
    inside = "at the image's size" if size == "native" else f"at {size}, as --size"
    return f"image: N×H×W×3, RGB, uint8, from {SMALLEST}×{SMALLEST} → {result}; the network runs {inside}"


def trace(deployed: Deployed) -> bytes:
    """The module as an ONNX file.

    By the tracing exporter, deprecated as it is: where networks pad as TensorFlow does, the newer one takes minutes
    (EfficientNet-lite0: 100 s of CPU time against 1 s) and may refuse sizes that are none of its example's kind.
    """
    file, result = io.BytesIO(), "labels" if deployed.labels else "translation"
    axes = {0: "N", 1: "H", 2: "W"}
    example = torch.zeros(2, 99, 181, 3, dtype=torch.uint8)
    # it warns of constants in the trace and of its age
    with warnings.catch_warnings(), silent(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            deployed.eval(),
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=[result],
            dynamic_axes={"image": axes, result: axes},
        )
    return file.getvalue()


@contextmanager
def silent():
    """Nothing on standard output, from C++ neither: where the exporter fails, it prints the whole graph."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def check(onnxruntime, content: bytes, original: Deployed, image: Image.Image) -> None:
    """Compare ONNX Runtime with PyTorch on an image at two sizes. Raises `RunError` where they differ."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    limit = f"{100 * SAME_LABELS} %" if original.labels else f"at most {LEVELS}"
    for scale in (1, 0.7):
        scaled = resize_image(image, round(scale * image.height), round(scale * image.width))
        pixels, where = np.array(scaled)[None], f"at {scaled.height}×{scaled.width} pixels"
        with torch.no_grad():
            wanted = original(torch.from_numpy(pixels)).numpy()
        try:
            session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"image": pixels})
        # ONNX Runtime has exceptions of its own, one a kind of failure
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise RunError(f"ONNX Runtime fails {where} ({reason}); nothing was written") from error
        if found.shape != wanted.shape:
            good, what = False, f"{found.shape} where {wanted.shape} is wanted"
        elif original.labels:
            share = (found == wanted).mean()
            good, what = share >= SAME_LABELS, f"{100 * share:.3f} % of the labels are the same"
        else:
            difference = np.abs(found.astype(int) - wanted).mean()
            good, what = difference <= LEVELS, f"{difference:.3f} levels of 255 apart on average"
        if not good:
            raise RunError(f"ONNX Runtime and PyTorch differ {where}: {what}; wanted: {limit}; nothing was written")
        say(f"  ONNX Runtime against PyTorch {where}: {what}")
