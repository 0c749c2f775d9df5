"""Time daynight beside plain forms of the code that its peers run; count the arithmetic and the share of the roof.

    OMP_NUM_THREADS=1 taskset -c 0 python examples/benchmark.py [--quick] [--rows ROW …] [--json FILE]
    python examples/benchmark.py --gpu --json gpu.json

Variants run in turns in one process (A B C A B C …). Times are medians, and ratios are medians over rounds. If others
use the machine too, trust the ratio in CPU time. torch.utils.flop_counter counts the FLOPs of convolutions and matrix
products, two for each multiplication. The roof is the fastest convolution found here in the same precision. bf16 is
left out if it is slow on this machine, unless --precision asks for it. If there is a GPU, everything runs on it.
--quick uses 128×128, small images and few rounds: it shows that all works, and its figures are not for quoting.

--gpu times all rows on one GPU within --minutes: reference and ours in fp32 and bf16, our translator also as CUDA
graphs. It also counts launches and waits of the host and memory beyond the weights, and trains 50 steps twice eagerly
and once captured to compare weights. It prints the table of benchmark.md and names what the time did not suffice for.
--gpu --quick runs the same paths on a CPU, without graphs.

The references ("plain") do here what the peers do: the original CycleGAN's step, one forward for each view, PIL in a
loop, cityscapesScripts' matrix in Python. Each is compared with ours on the same weights before anything is timed.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from daynight.config import SegTrainOptions, TranslateTrainOptions, numbers
from daynight.data.cache import Cache
from daynight.data.formats import open_image
from daynight.data.images import Images, Photographs, Writer
from daynight.data.sampling import generator
from daynight.data.transforms import cut, random_box, scaled, to_tensor
from daynight.evaluation.metrics import confusion_matrix
from daynight.inference import tiles as inference
from daynight.models.deeplab import DeepLabV2
from daynight.models.ema import EMA
from daynight.models.generator import Generator, init
from daynight.models.hub import save_model
from daynight.models.perceptual import FeatureNetwork
from daynight.segmentation import student_terms
from daynight.system.console import say, show
from daynight.system.files import write_json
from daynight.training.graphs import WARM_UP, Captured, Recorder
from daynight.training.run import ramp
from daynight.translation import Discriminators, Generators, History, Step

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
CLASSES = [(f"class {i}", (i, i, i)) for i in range(19)]
# measures a command without its imports; VmHWM, because ru_maxrss of a child starts at its parent's
COMMAND = """
import json, resource, sys, time
from daynight import cli, translation
from daynight.evaluation import scoring as evaluation
began = time.monotonic()
try:
    cli.main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    except OSError:
        pass
    print(json.dumps({"seconds": time.monotonic() - began, "peak": peak / 1024}), file=open("measured.json", "w"))
"""


@dataclass
class Variant:
    """`run` does `items` pieces of the work. `goal`: it must be at least so many times as fast as the reference."""

    name: str
    run: Callable[[], object]
    precision: str = "no"
    items: int = 1
    goal: float | None = None


@dataclass
class Row:
    """The first variant is the reference; a round runs each variant once."""

    work: str
    against: str
    variants: list[Variant]


class PlainResidual(nn.Sequential):
    def __init__(self, channels: int):
        half = lambda: [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]  # noqa: E731
        super().__init__(*half(), nn.ReLU(True), *half())

    def forward(self, x):
        return x + super().forward(x)


def plain_generator(width: int, blocks: int) -> nn.Sequential:
    """The original CycleGAN's generator: transposed convolutions, a bias everywhere, instance norm as a layer."""
    normed = lambda conv: [conv, nn.InstanceNorm2d(conv.out_channels), nn.ReLU(True)]  # noqa: E731
    layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(3, width, 7))]
    for c in (width, 2 * width):
        layers += normed(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1))
    layers += [PlainResidual(4 * width) for _ in range(blocks)]
    for c in (4 * width, 2 * width):
        layers += normed(nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1))
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()).apply(init)


def plain_discriminator(width: int) -> nn.Sequential:
    layers = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    for c, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
        layers += [nn.Conv2d(c, 2 * c, 4, stride, padding=1), nn.InstanceNorm2d(2 * c), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1)).apply(init)


@torch.no_grad()
def copy_weights(ours: nn.Module, plain: nn.Module) -> None:
    """Copy our weights, convolution by convolution; a bias that ours lacks becomes 0."""
    pairs = [[m for m in x.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)] for x in (ours, plain)]
    for a, b in zip(*pairs, strict=True):
        b.weight.copy_(a.weight)
        b.bias.copy_(torch.zeros_like(b.bias) if a.bias is None else a.bias)


class PlainTranslator:
    """A step of the original CycleGAN with least squares. `identity`: λ of its identity loss, relative to the cycle's.
    With `features` it adds Eq. 10 in its simplest form: a pass for every image, nothing shared."""

    def __init__(self, features: FeatureNetwork | None, identity: float, device, width: int, blocks: int):
        self.day2night, self.night2day = (plain_generator(width, blocks).to(device) for _ in range(2))
        self.day, self.night = (plain_discriminator(width).to(device) for _ in range(2))
        self.features, self.identity, self.pools = features, identity, ([], [])
        of = lambda *models: [w for m in models for w in m.parameters()]  # noqa: E731
        self.optimizer_g = torch.optim.Adam(of(self.day2night, self.night2day), lr=2e-4, betas=(0.5, 0.999))
        self.optimizer_d = torch.optim.Adam(of(self.day, self.night), lr=2e-4, betas=(0.5, 0.999))

    def activations(self, images):
        network, last = self.features, int(self.features.layers[0].split(".")[1])
        x = network.normalise(images)
        for layer in network.network.features[: last + 1]:
            x = layer.forward(x)  # without our hooks
        return x

    def feature_loss(self, real, fake):
        return F.mse_loss(self.activations(fake), self.activations(real)) / self.features.norm.scales[0]

    def from_pool(self, pool: list, fakes):
        shown = []
        for fake in fakes.detach():
            if len(pool) < 50:
                pool.append(fake)
            elif random.random() > 0.5:
                i = random.randrange(50)
                fake, pool[i] = pool[i], fake
            shown.append(fake)
        return torch.stack(shown)

    def __call__(self, day, night) -> dict[str, torch.Tensor]:
        against = lambda logits, value: F.mse_loss(logits, torch.full_like(logits, value))  # noqa: E731
        fake_night, fake_day = self.day2night(day), self.night2day(night)
        cycle_day, cycle_night = self.night2day(fake_night), self.day2night(fake_day)
        for model in (self.day, self.night):
            model.requires_grad_(False)
        terms = {
            "gan_night": against(self.night(fake_night), 1.0),
            "gan_day": against(self.day(fake_day), 1.0),
            "cycle_day": 10 * F.l1_loss(cycle_day, day),
            "cycle_night": 10 * F.l1_loss(cycle_night, night),
        }
        if self.identity:
            terms["identity_night"] = 10 * self.identity * F.l1_loss(self.day2night(night), night)
            terms["identity_day"] = 10 * self.identity * F.l1_loss(self.night2day(day), day)
        if self.features:
            terms["feature_day"] = self.feature_loss(day, fake_night)
            terms["feature_night"] = self.feature_loss(night, fake_day)
        self.optimizer_g.zero_grad()
        sum(terms.values()).backward()
        self.optimizer_g.step()

        self.optimizer_d.zero_grad()
        pairs = (("d_day", self.day, day, fake_day, 0), ("d_night", self.night, night, fake_night, 1))
        for name, model, real, fake, number in pairs:
            model.requires_grad_(True)
            shown = self.from_pool(self.pools[number], fake)
            terms[name] = (against(model(real), 1.0) + against(model(shown), 0.0)) / 2
            terms[name].backward()
        self.optimizer_d.step()
        return terms


class Machine:
    """What a step and `inference` use of an Accelerator."""

    clip_grad_norm_ = staticmethod(nn.utils.clip_grad_norm_)

    def __init__(self, device, precision: str):
        self.device, self.autocast = device, autocast(device, precision)

    def prepare(self, *parts):
        for part in parts:
            if isinstance(part, nn.Module):
                part.forward = self.wrapped(part.forward)
        return parts

    def wrapped(self, forward: Callable) -> Callable:
        def call(*images):
            with self.autocast():
                results = forward(*images)
            return tree_map(torch.Tensor.float, results)

        return call

    def backward(self, loss) -> None:
        loss.backward()


class OurTranslator:
    """A step of `daynight.translation.train`, of its own parts. `captured`: as CUDA graphs, where there is a GPU."""

    def __init__(
        self, features: FeatureNetwork | None, precision: str, device, width: int, blocks: int, upsample="bilinear",
        gan="bce", captured=False,
    ):  # fmt: skip
        self.options = TranslateTrainOptions(gan=gan)
        self.generators = Generators(*(Generator(blocks, width, upsample) for _ in range(2))).to(device)
        self.discriminators = Discriminators(width).to(device)
        averages = {n: EMA(m, self.options.ema_decay) for n, m in self.generators.named_children()}
        networks = self.generators, self.discriminators
        adam = dict(lr=self.options.lr, betas=(0.5, 0.999), fused=True)
        optimizers = [torch.optim.Adam(network.parameters(), **adam) for network in networks]
        parts = Step(Machine(device, precision), *networks, optimizers, averages, features, self.options)
        graph = Recorder() if captured and device.type == "cuda" else None
        self.generate, self.discriminate = Captured(parts.generate, graph), Captured(parts.discriminate, graph)
        self.history = {name: History(self.options.history) for name in ("day", "night")}
        self.step = 0

    def __call__(self, day, night) -> dict[str, torch.Tensor]:
        (fake_night, fake_day), terms = self.generate(day, night, self.step, self.options.lr)
        draws = [generator(0, self.step, f"history {slot}") for slot in range(len(day))]
        shown = [self.history[n].exchange(x, draws) for n, x in (("day", fake_day), ("night", fake_night))]
        d_terms = self.discriminate(day, night, *shown, self.options.lr)
        self.step += 1
        return terms | d_terms


class Segmentation:
    """The common start of both steps with Eq. 15: the same student, and the same place in the ramps."""

    def __init__(self, student: DeepLabV2, precision: str, device):
        self.student, self.autocast = deepcopy(student).train().to(device), autocast(device, precision)
        self.options, self.device, self.step = SegTrainOptions(), device, 40_000
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=self.options.lr, fused=self.ours)
        self.average = EMA(self.student, self.options.ema_decay)

    ours = True

    def dropout(self, view: str, size: int) -> list[torch.Generator]:
        return [generator(0, self.step, f"dropout {view} {slot}", self.device) for slot in range(size)]

    def ramps(self) -> tuple[float, float]:
        options = self.options
        return tuple(ramp(self.step, options.steps, *numbers(x)) for x in (options.rho, options.lambda_ssl))

    def __call__(self, batch: dict) -> dict[str, torch.Tensor]:
        rho, weight = self.ramps()
        terms = self.losses(batch, rho, weight)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        self.follow()
        self.step += 1
        return terms


class OurSegmentation(Segmentation):
    """A step of `daynight.segmentation.train`."""

    def losses(self, batch, rho, weight):
        noisy = {"fake_day": "day", "strong_night": "weak_night"}
        dropout = [g for name in noisy for g in self.dropout(name, len(batch["day"]))]
        with self.autocast():
            return student_terms(
                self.student, self.average.model, batch, ["day", "fake_day"], noisy, None, dropout, rho, weight
            )[0]

    def follow(self):
        self.average.update(self.student, self.step)


class PlainSegmentation(Segmentation):
    """A step with one forward for each view, and with a plain optimiser and average."""

    ours = False

    def predict(self, model, images, dropout=()):
        features = model.backbone(model.normalise(images))
        features = features[-1] if isinstance(features, list) else features
        logits = model.head.classify(model.head.shared([features]), dropout)
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def losses(self, batch, rho, weight):
        terms = {}
        for name in ("day", "fake_day"):
            terms[f"ce_{name}"] = F.cross_entropy(
                self.predict(self.student, batch[name]), batch["labels"], ignore_index=255
            )
        for name, seen in (("fake_day", "day"), ("strong_night", "weak_night")):
            with torch.no_grad():
                target = self.predict(self.average.model, batch[seen]).softmax(1)
            mine = self.predict(self.student, batch[name], self.dropout(name, len(batch[name]))).softmax(1)
            mask = target.max(1, keepdim=True).values >= rho
            terms[f"ssl_{name}"] = weight * (mask * (target - mine) ** 2).mean()
        return terms

    @torch.no_grad()
    def follow(self):
        alpha = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, new in zip(self.average.model.parameters(), self.student.parameters(), strict=True):
            mean.mul_(alpha).add_(new, alpha=1 - alpha)


def plain_translate(model, paths: list[Path], out: Path, device) -> None:
    """Translate one image after another; write PNG with Pillow's defaults."""
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for path in paths:
            image = np.asarray(open_image(path).convert("RGB"))
            batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
            result = (model(batch)[0] * 127.5 + 127.5).round().clamp(0, 255).byte()
            Image.fromarray(result.permute(1, 2, 0).cpu().numpy()).save(out / path.name)


def our_translate(model, paths: list[Path], out: Path, machine, crop=None) -> None:
    """Translate as `daynight translate` does, with --whole or in tiles of `crop`."""
    threads = inference.reading_threads(None, machine)
    with Writer() as writer:
        for i, _, image in inference.translations(model, Images(paths), "native", crop, None, machine, threads):
            writer.save(image, out / paths[i].name)


def plain_score(logits, labels: np.ndarray) -> np.ndarray:
    """Interpolate, take the argmax, and count the pixels of each pair of label and prediction as cityscapesScripts does
    without its C extension."""
    with torch.no_grad():
        whole = F.interpolate(logits, labels.shape, mode="bilinear", align_corners=False)
        predictions = whole.argmax(1)[0].cpu().numpy()
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    pairs, pixels = np.unique(labels.astype(np.int32) * 256 + predictions.astype(np.int32), return_counts=True)
    for pair, count in zip(pairs, pixels, strict=True):
        label, prediction = divmod(int(pair), 256)
        if label != 255:
            matrix[label][prediction] += int(count)
    return matrix


def our_score(logits, image: Image.Image, labels: np.ndarray, machine, count: int = 1) -> torch.Tensor:
    """Score a network's logits, `count` times, as `daynight eval` does."""
    total, model = 0, lambda images: logits.expand(len(images), *logits.shape[1:])
    for _, _, predictions, _ in inference.segment(model, [image] * count, "1x1", None, machine, 0):
        truth = torch.from_numpy(labels).to(predictions.device)
        total = total + confusion_matrix(truth, predictions, len(CLASSES))
    return total


def autocast(device, precision: str) -> Callable:
    cached = device.type != "cuda"  # as in trainings
    return lambda: torch.autocast(device.type, torch.bfloat16, precision == "bf16", cached)


def drawn(size: tuple[int, int], seed: int) -> Image.Image:
    """Draw smooth shapes and the noise of a sensor: as hard for PNG as a photograph."""
    rng, (height, width) = np.random.default_rng(seed), size
    smooth = Image.fromarray(rng.integers(0, 256, (max(2, height // 32), max(2, width // 32), 3), np.uint8))
    levels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))


def images_in(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i:05}.png" for i in range(count)]
    for i, path in enumerate(paths):
        if i < 64:
            drawn(size, i).save(path)
        else:
            os.link(paths[i % 64], path)
    return paths


def seconds_of(run: Callable, device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def roof(device, precision: str, repeats: int = 5) -> dict[str, float]:
    """Measure the GFLOP/s of a product of two 2048×2048 matrices, and of the fastest of some forward convolutions."""
    dtype, best = DTYPES[precision], lambda run: min(seconds_of(run, device) for _ in range(repeats))
    with torch.no_grad():
        a = torch.randn(2048, 2048, device=device).to(dtype)
        rates = {"gemm": 2 * 2048**3 / best(lambda: a @ a) / 1e9, "conv": 0.0}
        for channels, side in ((256, 64), (512, 32), (128, 128)):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(8 if device.type == "cuda" else 1, channels, side, side, device=device).to(dtype)
                w = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
                x, w = x.to(memory_format=layout), w.to(memory_format=layout)
                flops = 2 * 9 * channels**2 * side**2 * len(x)
                rates["conv"] = max(rates["conv"], flops / best(lambda x=x, w=w: F.conv2d(x, w, padding=1)) / 1e9)
    return rates


def fast_precisions(device) -> list[str]:
    """float32, and bf16 if it is faster (a CPU without units for it is a hundred times slower)."""
    times = []
    for dtype in DTYPES.values():
        x = torch.randn(1, 64, 32, 32, device=device).to(dtype)
        w = torch.randn(64, 64, 3, 3, device=device).to(dtype)
        times.append(min(seconds_of(lambda x=x, w=w: F.conv2d(x, w, padding=1), device) for _ in range(3)))
    return ["no", "bf16"] if device.type == "cuda" or times[1] < times[0] else ["no"]


def agree(what: str, plain, ours, tolerance: float = 1e-3) -> None:
    """End the program if the reference does other work than ours. Compares values of the same key, or arrays."""
    keys = plain.keys() & ours.keys() if isinstance(plain, dict) else ()
    pairs = [(plain[k], ours[k]) for k in keys] if keys else [(plain, ours)]
    pairs = [[torch.as_tensor(x).detach().double().cpu() for x in pair] for pair in pairs]
    worst = max(float(((a - b).abs() / b.abs().clamp(min=1e-9)).max()) for a, b in pairs)
    if not worst <= tolerance:
        sys.exit(f"{what}: the reference and ours differ by {worst:.1e} of the value; they must do equal work")


def translators(features, identity: float, device, width: int, blocks: int):
    """Make both steps with the same weights, upsampling and adversarial loss."""
    plain = PlainTranslator(features, identity, device, width, blocks)
    ours = OurTranslator(features, "no", device, width, blocks, "deconv", "lsgan")
    for name in ("day2night", "night2day"):
        copy_weights(getattr(ours.generators, name), getattr(plain, name))
    for name in ("day", "night"):
        copy_weights(getattr(ours.discriminators, name), getattr(plain, name))
    return plain, ours


def check_translator(features, device) -> None:
    """Compare the losses of a step and, after its updates, of the next; gradients stay below our limit for clipping."""
    plain, ours = translators(features, 0, device, 8, 1)
    day, night = torch.rand(2, 2, 3, 64, 64, device=device) * 2 - 1
    for _ in range(2):
        agree("translator step", plain(day, night), ours(day, night))


def check_segmentation(student, device) -> None:
    batch = views(2, 64, device)
    plain, ours = (kind(student, "no", device) for kind in (PlainSegmentation, OurSegmentation))
    for step in (plain, ours):
        step.ramps = lambda: (0.0, 1.0)  # a network with random weights is certain of nothing
    for _ in range(2):
        agree("SSL step", plain(batch), ours(batch))


def check_translate(folder: Path, device) -> None:
    plain, ours = plain_generator(8, 1).to(device), Generator(1, 8, "deconv").to(device)
    copy_weights(ours, plain)
    paths = images_in(folder / "in", 2, (64, 96))
    plain_translate(plain, paths, folder / "plain", device)
    our_translate(ours, paths, folder / "ours", Machine(device, "no"))
    for path in paths:
        a, b = (np.asarray(open_image(folder / name / path.name)).astype(int) for name in ("plain", "ours"))
        agree("translate", np.abs(a - b).max() > 1, 0, 0)  # rounding may differ by a level


def views(batch_size: int, side: int, device) -> dict[str, torch.Tensor]:
    names = ("day", "fake_day", "weak_night", "strong_night")
    batch = {name: torch.rand(batch_size, 3, side, side, device=device) * 2 - 1 for name in names}
    return batch | {"labels": torch.randint(0, len(CLASSES), (batch_size, side, side), device=device)}


def feature_network(device) -> FeatureNetwork:
    return FeatureNetwork(pretrained=False).to(device)  # random weights take as long


def plains(run: Callable, given, device) -> list[Variant]:
    """The reference in fp32; with --gpu also in bf16."""

    def in_bf16():
        with autocast(device, "bf16")():
            run()

    return [Variant("plain", run)] + [Variant("plain", in_bf16, "bf16")] * given.gpu


def translator_row(with_features: bool, given, device, precisions, batch: int = 1) -> Row:
    side, size = given.side, given.small or (64, 9)
    features = feature_network(device) if with_features else None
    check_translator(features, device)
    day, night = torch.rand(2, batch, 3, side, side, device=device) * 2 - 1
    plain = PlainTranslator(features, 0 if with_features else 0.5, device, *size)
    variants = plains(lambda: plain(day, night), given, device)
    goals = {"no": 1.0, "bf16": 1.7} if with_features else {"bf16": 2.6}
    for precision in precisions:
        for captured in (False, True)[: 1 + given.gpu]:
            ours = OurTranslator(features, precision, device, *size, captured=captured)
            goal = (4 if batch == 1 else 1.8) if captured else None if given.gpu else goals.get(precision)
            name = "ours, captured" if captured else "ours"
            variants.append(Variant(name, lambda ours=ours: ours(day, night), precision, goal=goal))
    against = "original without identity loss + naive VGG loss" if with_features else "original with identity loss"
    of = f"{'with' if with_features else 'without'} feature loss, {side}²" + f", batch {batch}" * (batch > 1)
    return Row(f"translator step {of}", against, variants)


def segmentation_row(given, device, precisions) -> Row:
    side, size = given.side, (1 if given.quick or not given.gpu else 8)
    small = {"backbone": "test_resnet", "hidden": 8} if given.small else {}
    student = DeepLabV2(*zip(*CLASSES, strict=True), **small, pretrained=False)
    check_segmentation(
        student if given.small else DeepLabV2(*zip(*CLASSES, strict=True), "test_resnet", hidden=8), device
    )
    batch, plain = views(size, side, device), PlainSegmentation(student, "no", device)
    variants = plains(lambda: plain(batch), given, device)
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    laid = {name: x.to(memory_format=layout) if x.ndim == 4 else x for name, x in batch.items()}  # as in trainings
    for precision in precisions:
        ours = OurSegmentation(student, precision, device)
        goal = 3 if given.gpu else {"no": 1.18, "bf16": 2.5}[precision]
        variants.append(Variant("ours", lambda ours=ours: ours(laid), precision, goal=goal))
    return Row(f"SSL step, batch {size}, {side}²", "one forward a view", variants)


def translate_row(given, device, precisions, folder: Path) -> Row:
    size, count = ((512, 1024), 300 if given.gpu else 2)
    if given.quick:
        size, count = ((64, 128), 2) if given.small else ((128, 256), 4)
    width, blocks = given.small or (64, 9)
    check_translate(folder / "check", device)
    paths = images_in(folder / "in", count, size)
    plain = plain_generator(width, blocks).to(device)
    few = paths[:30]  # which take seconds
    variants = [Variant("plain", lambda: plain_translate(plain, few, folder / "plain", device), items=len(few))]
    ours = Generator(blocks, width).to(device)
    for precision in precisions:
        machine = Machine(device, precision)
        for crop in (None, (given.side, given.side))[: 1 + given.gpu]:
            run = lambda machine=machine, crop=crop: our_translate(ours, paths, folder / "ours", machine, crop)  # noqa: E731
            goal = 20 if given.gpu else {"bf16": 2.4}.get(precision)
            variants.append(Variant("ours, tiles" if crop else "ours", run, precision, count, goal))
    return Row(f"translate {size[0]}×{size[1]}, end to end", "batch 1, serial, default PNG", variants)


def scoring_row(given, device) -> Row:
    height, width = (256, 512) if given.quick else (1024, 2048)
    logits = torch.randn(1, len(CLASSES), height // 16, width // 16, device=device)
    labels = np.random.default_rng(0).integers(0, 20, (height // 16, width // 16), np.uint8)
    labels[labels == 19] = 255
    labels = labels.repeat(16, 0).repeat(16, 1)
    image, machine = Image.new("RGB", (width, height)), Machine(device, "no")
    agree("scoring", plain_score(logits, labels), our_score(logits, image, labels, machine), 1e-4)
    count = 8 if given.gpu else 1
    variants = [
        Variant("plain", lambda: plain_score(logits, labels)),
        Variant("ours", lambda: our_score(logits, image, labels, machine, count), "no", count, 6 if given.gpu else 2),
    ]
    return Row(f"scoring {width}×{height}, logits to matrix", "interpolate, argmax, Python matrix", variants)


def loader_row(given, folder: Path) -> Row:
    height, width, crop = (256, 512, 64) if given.quick else (1024, 2048, 256)
    paths = images_in(folder / "in", 4, (height, width))
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "in"), split="train", cache_dir=str(folder / "hf")
    )
    size = f"{height // 2}x{width // 2}"

    def plain(i: int, box: tuple[int, int]):
        image = table[i % 4]["image"].convert("RGB").resize((width // 2, height // 2), Image.Resampling.BILINEAR)
        return to_tensor(image.crop((box[1], box[0], box[1] + crop, box[0] + crop)))

    def ours(photographs: Photographs) -> Callable:
        return lambda i, box: scaled(cut(photographs.levels(i % 4), box, (crop, crop)))

    ways, kinds = (
        {"plain": plain},
        (("ours, memory map", 1e12, 100), ("ours, JPEG", 0.9 * 4 * height * width * 3 / 4, 20)),
    )
    goals = {"plain": None}
    for name, limit, goal in kinds:
        photographs = Photographs(paths, size)
        photographs.keep_in(Cache(folder / name, limit), "--day")
        ways[name], goals[name] = ours(photographs), goal
        for i in range(4):
            close = 0.25 if name == "ours, JPEG" else 0
            error = (ways[name](i, (8, 16)) - plain(i, (8, 16))).abs().mean()
            agree(name, error > close, 0, 0)

    def crops(way: Callable, count: int) -> None:
        for i in range(count):
            way(i, random_box(height // 2, width // 2, (crop, crop), generator(0, i, 0)))

    counts = {"plain": 8, "ours, memory map": 400, "ours, JPEG": 40}
    variants = [
        Variant(name, lambda name=name, way=way: crops(way, counts[name]), "no", counts[name], goals[name])
        for name, way in ways.items()
    ]
    return Row(f"loader, {crop} crop of a {width}×{height} set", "HF image folder, resize, crop", variants)


def rows(given, device, precisions, folder: Path) -> dict[str, Callable[[], Row]]:
    return {
        "translator": lambda: translator_row(True, given, device, precisions),
        "translator8": lambda: translator_row(True, given, device, precisions, 2 if given.quick else 8),
        "original": lambda: translator_row(False, given, device, precisions),
        "ssl": lambda: segmentation_row(given, device, precisions),
        "translate": lambda: translate_row(given, device, precisions, folder / "translate"),
        "scoring": lambda: scoring_row(given, device),
        "loader": lambda: loader_row(given, folder / "loader"),
    }


def measured(row: Row, rounds: int, device, roofs: dict, profiled: bool, gpu=False, until=float("inf")) -> dict:
    """Measure time per item in s, by the clock and of the CPU; GFLOP per item; GFLOP/s, also as a share of the roof.

    `gpu`: also what `counts_of` gives; short runs are repeated for half a second. No round begins after `until`."""
    flops, more, repeats = {}, {}, {}
    times, cpu = ({i: [] for i in range(len(row.variants))} for _ in range(2))
    for i, variant in enumerate(row.variants):  # this warms up as well
        with watched_memory(device) as peak, FlopCounterMode(display=False) as counter:
            variant.run()
        flops[i] = counter.get_total_flops() / variant.items / 1e9
        more[i] = {"profile": profile_of(variant.run, device)} if profiled else {}
        if gpu:
            if variant.items == 1:
                with watched_memory(device) as peak:
                    for _ in range(WARM_UP + 1):
                        variant.run()
            more[i] |= counts_of(variant, device) | {"peak": peak[-1]}
            repeats[i] = max(1, min(50, int(0.5 / seconds_of(variant.run, device)))) if device.type == "cuda" else 1
    for _ in range(rounds):
        for i, variant in enumerate(row.variants):
            began, items = time.process_time(), variant.items * repeats.get(i, 1)
            run = lambda i=i, variant=variant: [variant.run() for _ in range(repeats.get(i, 1))]  # noqa: E731
            times[i].append(seconds_of(run if gpu else variant.run, device) / items)
            cpu[i].append((time.process_time() - began) / items)
        if time.monotonic() > until:
            break
    entries = []
    for i, variant in enumerate(row.variants):
        seconds, ratios = statistics.median(times[i]), [a / b for a, b in zip(times[0], times[i], strict=True)]
        rate = flops[i] / seconds
        entries.append({
            "variant": variant.name, "precision": variant.precision, "goal": variant.goal, "seconds": seconds,
            "spread": [min(times[i]), max(times[i])], "ratio": statistics.median(ratios),
            "ratio_spread": [min(ratios), max(ratios)], "cpu_seconds": statistics.median(cpu[i]),
            "cpu_ratio": statistics.median(a / max(b, 1e-9) for a, b in zip(cpu[0], cpu[i], strict=True)),
            "gflop": flops[i], "gflops": rate, "of_roof": rate / roofs[variant.precision]["conv"],
        } | more[i])  # fmt: skip
    return {"work": row.work, "against": row.against, "variants": entries}


@contextmanager
def watched_memory(device):
    """Yields a list that gets the most GiB of GPU memory that this block takes beyond what is taken before."""
    peak = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    yield peak
    peak.append((torch.cuda.max_memory_allocated() - before) / 2**30 if device.type == "cuda" else None)


def counts_of(variant: Variant, device) -> dict[str, float]:
    """Count, per item, what the host launches (a graph is one launch) and how often it waits for the device."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")) as profiler:
        variant.run()
    calls = {event.key: event.count / variant.items for event in profiler.key_averages()}
    return {
        "launches": sum(count for name, count in calls.items() if name.startswith("cu") and "Launch" in name),
        "waits": sum(
            count for name, count in calls.items() if name in ("cudaStreamSynchronize", "cudaEventSynchronize")
        ),
    }


def captured_as_eager(given, device, precision: str) -> dict[str, float]:
    """Train two translators of one seed eagerly and a third captured: how far apart are the weights, as a share of how
    far they moved?"""
    side, steps, found = given.side, 6 if given.quick else 50, []
    pairs = torch.rand(8, 2, 1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    for captured in (False, False, True):
        torch.manual_seed(0)
        ours = OurTranslator(None, precision, device, *(given.small or (64, 9)), captured=captured)
        start = nn.utils.parameters_to_vector(ours.generators.parameters()).detach().clone()
        for step in range(steps):
            ours(*pairs[step % len(pairs)])
        found.append(nn.utils.parameters_to_vector(ours.generators.parameters()).detach())
    first, second, third = found
    moved = (first - start).norm()
    eager, graph = (float((x - first).norm() / moved) for x in (second, third))
    return {"precision": precision, "steps": steps, "eager": eager, "captured": graph}


def profile_of(run: Callable, device) -> dict[str, float]:
    """Measure each operator's share of the time; list those above 1 %."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        run()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, kind) for event in profiler.key_averages()}
    total = sum(times.values()) or 1
    return {k: t / total for k, t in sorted(times.items(), key=lambda item: -item[1]) if t > 0.01 * total}


def command(words: list[str], folder: Path) -> dict[str, float]:
    """Run a daynight command in its own process; return its `seconds` without imports and its `peak` MiB."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
    return json.loads((folder / "measured.json").read_text())


def growth(given, folder: Path) -> list[dict]:
    """Measure time and memory of `translate` and `eval` by the number of (small, drawn) images."""
    save_model(Generator(1, 4, size="native"), folder / "translator")
    save_model(DeepLabV2(*zip(*CLASSES, strict=True), "test_resnet", hidden=8, size="native"), folder / "teacher")
    images = [path.read_bytes() for path in images_in(folder / "drawn", 50, (64, 64))]
    labels = folder / "label.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 19).save(labels)
    entries = []
    for count in given.counts:
        root = folder / f"set{count}"
        for kind in ("images", "labels"):
            (root / kind / "val").mkdir(parents=True)
        write_json(root / "classes.json", [{"name": name, "color": color} for name, color in CLASSES])
        for i in range(count):
            (root / f"images/val/{i:05}.png").write_bytes(images[i % len(images)])
            os.link(labels, root / f"labels/val/{i:05}.png")
        lines = {
            "translate": ["translate", "--in", root, "--model", "translator", "--out", f"out{count}", "--whole"],
            "eval": ["eval", "--dataset", root, "--model", "teacher"],
        }
        for name, words in lines.items():
            entries.append({"command": name, "images": count} | command([*map(str, words)], folder))
    return entries


def machine(device) -> dict:
    """Describe the machine, on which the figures depend."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "cpu": name, "cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None, "torch": torch.__version__,
        "load": os.getloadavg(),
    }  # fmt: skip


def in_words(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def table(result: dict) -> Table:
    title = "QUICK: small, to see that it works" if result["quick"] else "Each beside its reference, in turns"
    columns = (
        "work",
        "variant",
        "precision",
        "time (spread)",
        "GFLOP",
        "GFLOP/s",
        "of the roof",
        "× (spread)",
        "× in CPU time",
        "goal",
    )
    paper = Table(title=title)
    for column in columns:
        paper.add_column(column, justify="left" if column in columns[:3] else "right")
    for row in result["rows"]:
        for i, v in enumerate(row["variants"]):
            low, high = map(in_words, v["spread"])
            counted = (f"{v['gflop']:.4g}", f"{v['gflops']:.3g}", f"{v['of_roof']:.0%}") if v["gflop"] else ("",) * 3
            ratio = f"{v['ratio']:.2f} ({v['ratio_spread'][0]:.2f}–{v['ratio_spread'][1]:.2f})" if i else ""
            work = row["work"] if not i else f"against {row['against']}" if i == 1 else ""
            paper.add_row(
                work, v["variant"], v["precision"], f"{in_words(v['seconds'])} ({low}–{high})", *counted, ratio,
                f"{v['cpu_ratio']:.2f}" if i else "",
                f"≥ {v['goal']:g}" if v["goal"] else "", end_section=i == len(row["variants"]) - 1,
            )  # fmt: skip
    return paper


def growth_table(entries: list[dict]) -> Table:
    paper = Table(title="Growth: 64×64 images, small networks")
    for column in ("command", "images", "s, without imports", "ms an image more", "peak MiB"):
        paper.add_column(column, justify="left" if column == "command" else "right")
    for name in dict.fromkeys(e["command"] for e in entries):
        before = None
        for e in (e for e in entries if e["command"] == name):
            more = 1000 * (e["seconds"] - before["seconds"]) / (e["images"] - before["images"]) if before else None
            paper.add_row(
                name, f"{e['images']:,}", f"{e['seconds']:.2f}", f"{more:.2f}" if before else "", f"{e['peak']:.0f}"
            )
            before = e
    return paper


def markdown(result: dict) -> list[str]:
    """The table of --gpu, as benchmark.md has it."""
    lines = ["| work | variant | precision | time | × (spread) | GFLOP | of the roof | launches | waits | GiB | goal |"]
    lines.append("|---" * 11 + "|")
    for row in result["rows"]:
        for v in row["variants"]:
            counted = [f"{v['gflop']:.4g}", f"{v['of_roof']:.0%}"] if v["gflop"] else ["–", "–"]
            low, high = v["ratio_spread"]
            cells = [row["work"], v["variant"], v["precision"], in_words(v["seconds"])]
            cells += [f"{v['ratio']:.2f} ({low:.2f}–{high:.2f})", *counted, f"{v['launches']:.0f}", f"{v['waits']:.2g}"]
            cells += ["–" if v["peak"] is None else f"{v['peak']:.2f}", f"{v['goal']:g}" if v["goal"] else ""]
            lines.append(f"| {' | '.join(cells)} |")
    for pair in result["captured"]:
        share = "{eager:.1e} of their way apart, and captured ones {captured:.1e}".format(**pair)
        lines.append(f"{pair['precision']}: after {pair['steps']} steps two eager trainings are {share}")
    return lines + [f"{name}: {why}" for name, why in result["left out"].items()]


def main(words: list[str] | None = None) -> dict:
    names = ("translator", "original", "ssl", "translate", "scoring", "loader", "growth")
    on_gpu = ("translator", "ssl", "translate", "captured", "scoring", "translator8", "original", "loader")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="all rows of one GPU, in order of their weight")
    parser.add_argument("--minutes", type=float, default=7.5, help="of --gpu: no row begins later; default: 7.5")
    parser.add_argument("--rows", nargs="+", choices=dict.fromkeys(names + on_gpu), help="default: all")
    parser.add_argument("--precision", nargs="+", choices=DTYPES, help="precisions of ours; default: the fast ones")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 2, with --gpu 5")
    parser.add_argument("--counts", type=int, nargs="+", help="images of growth; default: 10 1000 10000, quick: 10 300")
    parser.add_argument("--small", type=int, nargs=2, metavar=("WIDTH", "BLOCKS"), help="toy networks, to test")
    parser.add_argument("--profile", action="store_true", help="add the share of each operator to --json")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(words)
    until = time.monotonic() + 60 * given.minutes if given.gpu else float("inf")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.gpu and not given.quick and device.type != "cuda":
        sys.exit("--gpu: torch sees no CUDA device; with --quick the same runs on a CPU")
    given.rows = given.rows or (on_gpu if given.gpu else names)
    given.rounds = given.rounds or (2 if given.quick else 5 if given.gpu else 3)
    given.counts = given.counts or ([10, 300] if given.quick else [10, 1000, 10_000])
    given.side = 64 if given.small and given.gpu else 128 if given.quick else 256
    precisions = given.precision or (["no", "bf16"] if given.gpu else fast_precisions(device))
    torch.manual_seed(0)
    result = {"machine": machine(device), "quick": given.quick, "rounds": given.rounds, "rows": [], "growth": []}
    result |= {"captured": [], "left out": {}}
    result["roof"] = {p: roof(device, p, 2 if given.small else 5) for p in dict.fromkeys(["no", *precisions])}
    for precision, rates in result["roof"].items():
        say(f"{precision}: GEMM 2048 {rates['gemm']:.0f} GFLOP/s, fastest convolution {rates['conv']:.0f}: the roof")
    if "bf16" not in precisions:
        say("bf16: not fast here; left out")
    with tempfile.TemporaryDirectory() as temporary:
        measure(given, device, precisions, Path(temporary), result, until)
    if given.gpu:
        print("\n".join(markdown(result)))
    elif result["rows"]:
        show(table(result))
    if result["growth"]:
        show(growth_table(result["growth"]))
    if given.json:
        write_json(given.json, result)
    return result


def measure(given, device, precisions, folder: Path, result: dict, until: float) -> None:
    """Add each row to the result, and write it to --json as it grows."""
    builders = rows(given, device, precisions, folder)
    for name in given.rows:
        if time.monotonic() > until:
            result["left out"][name] = f"not reached in {given.minutes:g} minutes"
            continue
        say(f"{name} …")
        try:
            if name == "growth":
                (folder / "growth").mkdir()
                result["growth"] = growth(given, folder / "growth")
            elif name == "captured":
                result["captured"] = [captured_as_eager(given, device, precision) for precision in precisions]
            else:
                row = measured(builders[name](), given.rounds, device, result["roof"], given.profile, given.gpu, until)
                result["rows"].append(row)
        except torch.OutOfMemoryError:
            result["left out"][name] = "more memory than this GPU has"
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if given.json:
            write_json(given.json, result)


if __name__ == "__main__":
    main()
