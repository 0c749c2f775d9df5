"""Measure translators without night labels: how much held-out day images look like night, and how much they keep.

    python examples/night/measure.py RUN… --day ../shared/camvid_day --night ../shared/bdd \\
        --weights ../shared/weights/tf_efficientnet_lite0.safetensors [--judge RUN] [--out DIR] [--images N]

RUN is a run of translate-train, or RUN/best. Each run translates in tiles, as `daynight translate` does, and without
tiles. Day and night images come from the held-out splits. The table also has the day images as they are, both free
translators (fourier takes amplitudes of training nights), and training nights instead of translations, as the
best KID possible. All is measured at the size of the training, before rounding to 8 bits (the judge: after). Prints a
table, writes measures.json and grid.png. The columns:

KID ×10³: distance to the held-out nights (`daynight.evaluation.metrics.kid`), by FEATURES' last layer averaged over the
  full image, whose aspect is kept. Frames of one video, as in CamVid, are not independent: the true error is larger.
  The feature loss of this folder's translators uses earlier layers of the same network, so look at grid.png, too.
cycle: mean |x - night2day(day2night(x))|, x in [-1, 1].
kept: share of pixels that the judge, a day model, labels as before. mIoU: the judge's on translations, by the day
  labels at this size. feature: Eq. 10 by FEATURES' other layers, each divided by its mean square over real images.
contrast, inverted: see `contrast`. checkerboard: `checkerboard` of period 2 and 4; levels in brackets.
colour, pixels: how much translations without tiles, at the training's size and at the image's own, differ from those of
  the same places in crops as large as in training: see `shift`.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from daynight import losses
from daynight.config import pair
from daynight.data.images import LabelledPhotographs, Photographs, save_image
from daynight.data.sampling import generator
from daynight.data.sets import ImageSet, load
from daynight.data.transforms import darken, fourier, to_image
from daynight.evaluation.metrics import accuracy, confusion_matrix, kid, mean_iou
from daynight.inference.tiles import logits_of, tiled
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import load_model, pretrained
from daynight.models.perceptual import FeatureNetwork
from daynight.reports.previews import grid
from daynight.system.console import say
from daynight.system.errors import InputError
from daynight.system.files import write_json
from daynight.system.processes import make_accelerator

NETWORK = "tf_efficientnet_lite0"
FEATURES = ("blocks.2", "blocks.4", "bn2")  # strides 8, 16 and 32; the last is what the classifier averages, 1,280 wide
SHIFTED = 24  # images for `shift`, which needs several translations of each
SHOWN = 6  # rows of the grid


def local_contrast(image):
    """Luma, 0 to 1, minus its Gaussian mean (σ: a sixteenth of the height): 3×H×W in [-1, 1] → H×W."""
    luma = TF.rgb_to_grayscale(image * 0.5 + 0.5)
    sigma = image.shape[1] / 16
    length = 2 * int(3 * sigma) + 1
    mean = TF.gaussian_blur(TF.gaussian_blur(luma, [length, 1], [sigma, sigma]), [1, length], [sigma, sigma])
    return (luma - mean)[0]


def contrast(day, translated, least: float = 4 / 255) -> tuple[float, float]:
    """Check that bright places stay brighter than their surroundings: two images, 3×H×W in [-1, 1] → the correlation
    of their local contrasts a and b over all pixels, and the share of windows where it is negative.

    The correlation is Σab / √(Σa² Σb²): 1 for any gain, -1 for the image's negative. Windows are squares of an eighth
    of the height. A window does not count if its contrast by day is below `least` (root mean square).
    """
    a, b = local_contrast(day), local_contrast(translated)
    whole = (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-12)
    side = a.shape[0] // 8
    a, b = (x.unfold(0, side, side).unfold(1, side, side) for x in (a, b))
    counts = a.square().mean((2, 3)).sqrt() >= least
    inverted = ((a * b).sum((2, 3)) < 0) & counts
    return float(whole), float(inverted.sum() / counts.sum().clamp(min=1))


def checkerboard(image, period: int) -> tuple[float, float]:
    """Measure how much a pattern of `period` pixels stands out (a deconvolution leaves 2, the one before it 4): 3×H×W
    in [-1, 1] → the energy of the luma's spectrum on the lines f_x = 1/period and f_y = 1/period, divided by that 2 to
    5 lines beside them (1: no pattern); and the root mean square of the pattern, in levels of 255."""
    height, width = (n // period * period for n in image.shape[1:])
    luma = TF.rgb_to_grayscale(image)[0, :height, :width]
    # without a window the jump between opposite borders would spread over all lines
    window = torch.outer(torch.hann_window(height), torch.hann_window(width))
    energy = torch.fft.fft2((luma - luma.mean()) * window).abs().square()
    lines = [(x, len(x) // period) for x in (energy.sum(0), energy.sum(1))]
    there = sum(x[i] for x, i in lines)
    around = sum(x[i + k] + x[i - k] for x, i in lines for k in range(2, 6)) / 8
    # Hann's window leaves two thirds of a line in its place; each has a mirror image, except for period 2
    total = 1.5 * (there - around).clamp(min=0) * (1 if period == 2 else 2)
    levels = 127.5 * (total / (height * width * window.square().sum())).sqrt()
    return float(there / around.clamp(min=1e-12)), float(levels)


@torch.inference_mode()
def shift(day2night, image, native, crop: tuple[int, int], device="cpu") -> dict[str, tuple[list[float], float]]:
    """Compare a translation without tiles with those of crops that cover the image. Takes an image at the training's
    size and at its own, each 3×H×W in [-1, 1]. Returns for "whole" and "native" (resized to the training's size) the
    mean absolute difference, in levels of 255, of a crop's mean colour (red, green, blue) and of its pixels."""
    shape = image.shape[1:]
    crop = [min(pair) for pair in zip(crop, shape, strict=True)]
    tops, lefts = (
        torch.linspace(0, n - c, -(-n // c)).int().tolist() for n, c in zip(shape, crop, strict=True)
    )  # fmt: skip

    def cuts(x):
        return torch.stack([x[:, top : top + crop[0], left : left + crop[1]] for top in tops for left in lefts])

    wanted = day2night(cuts(image).to(device))
    whole, large = (day2night(x[None].to(device)) for x in (image, native))
    large = F.interpolate(large, shape, mode="bilinear", antialias=True, align_corners=False)
    differences = {name: 127.5 * (cuts(x[0]) - wanted) for name, x in (("whole", whole), ("native", large))}
    return {name: (x.mean((2, 3)).abs().mean(0).tolist(), float(x.abs().mean())) for name, x in differences.items()}


class Measures:
    """The held-out images and the networks that measure them. truth: the day labels, if they can score the judge."""

    def __init__(self, days: list, nights: list, weights: str, judge: DeepLabV2 | None, truth: list, accelerator):
        self.days, self.judge, self.truth, self.accelerator = days, judge, truth, accelerator
        network = pretrained(lambda **how: FeatureNetwork(NETWORK, FEATURES, **how), NETWORK, weights, "--weights")
        self.network = network.to(accelerator.device)
        network.calibrate(image[None].to(accelerator.device) for image in days + nights)
        (self.content, _), (_, self.night) = self.features(days), self.features(nights)
        self.seen = judge and [self.labels(day) for day in days]

    @torch.inference_mode()
    def features(self, images: list) -> tuple[list, torch.Tensor]:
        """Compute the activations of each image for Eq. 10, and the N×D vectors for KID."""
        found = [self.network(image[None].to(self.accelerator.device)) for image in images]
        return [f[:-1] for f in found], torch.cat([f[-1].mean((2, 3)) for f in found])

    def labels(self, image) -> torch.Tensor:
        logits = logits_of(self.judge, [to_image(image)], self.judge.config["size"], self.accelerator)
        return logits[0].max(0)[1].to(torch.uint8).cpu()

    def of(self, translated: list) -> dict:
        """Compute the columns of every translator, from its translations of the day images; shares from 0 to 100."""
        content, vectors = self.features(translated)
        scales, contents = self.network.norm.scales[:-1], zip(self.content, content, strict=True)
        correlation, inverted = zip(*map(contrast, self.days, translated), strict=True)
        entry = {
            "kid": kid(vectors, self.night),
            "feature": mean(float(losses.feature(a, b, scales)) for a, b in contents),
            "contrast": mean(correlation),
            "inverted": 100 * mean(inverted),
        }
        for period in (2, 4):
            ratio, levels = zip(*(checkerboard(image, period) for image in translated), strict=True)
            entry[f"checkerboard_{period}"] = mean(ratio), mean(levels)
        if self.judge:
            names, seen = self.judge.config["names"], [self.labels(image) for image in translated]
            before, by_truth = (
                sum(confusion_matrix(a, b, len(names)) for a, b in zip(labels, seen, strict=True))
                for labels in (self.seen, self.truth or self.seen)
            )
            of_class = (100 * before.diagonal() / before.sum(1)).tolist()
            entry["kept"] = 100 * accuracy(before)
            entry["kept_of"] = {name: share for name, share in zip(names, of_class, strict=True) if share == share}
            if self.truth:
                entry["miou"] = 100 * mean_iou(by_truth)
        return entry


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def spread(length: int, count: int) -> list[int]:
    """Choose at most `count` of `length` numbers, evenly spaced: neighbours in a video are nearly the same image."""
    return torch.linspace(0, length - 1, min(length, count)).round().int().tolist()


def read(image_set: ImageSet, size: str, count: int) -> list[torch.Tensor]:
    photographs = Photographs(image_set.images, size)
    return [photographs.image(i) for i in spread(len(photographs), count)]


class Learned:
    """A run of translate-train. Raises `InputError` if it is something else."""

    def __init__(self, run: str, device):
        # each by its own folder, so that `load_model` never loads the other network instead of a missing one
        parts = (load_model(f"{Path(run).resolve()}/{p}", p, "RUN", Generator) for p in ("day2night", "night2day"))
        (self.day2night, self.night2day), self.device = (model.to(device) for model in parts), device
        crop = self.day2night.config["crop"]
        if not crop:
            raise InputError(f"RUN {run}: does not tell its crop; give a run of daynight translate-train")
        self.crop = pair(crop)

    @torch.inference_mode()
    def of(self, days: list, natives: dict, whole: bool) -> tuple[list, dict]:
        """Translate the day images, in tiles or whole, and compute the columns that only a network has. natives: some
        of the images, by their number, at their own size."""
        there, back = (
            model if whole else partial(tiled, model, crop=self.crop) for model in (self.day2night, self.night2day)
        )
        translated = [there(images=day[None].to(self.device)) for day in days]
        cycles = [losses.cycle(day, back(images=x)[0].cpu()) for day, x in zip(days, translated, strict=True)]
        columns = {"cycle": mean(map(float, cycles))}
        if not whole:
            return [x[0].cpu() for x in translated], columns
        shifts = [shift(self.day2night, days[i], x, self.crop, self.device) for i, x in natives.items()]
        for name in ("whole", "native"):
            colours, pixels = zip(*(found[name] for found in shifts), strict=True)
            columns[name] = {
                "colour": [mean(channel) for channel in zip(*colours, strict=True)],
                "pixels": mean(pixels),
            }
        return [x[0].cpu() for x in translated], columns


def measure(given: argparse.Namespace) -> tuple[dict, dict]:
    """Measure all translators; return the content of measures.json and the columns of the grid."""
    if given.images < 3:
        raise InputError(f"--images {given.images}: KID and its error need at least 3")
    accelerator, root = make_accelerator("no"), Path("data")
    runs = {run: Learned(run, accelerator.device) for run in given.runs}
    sizes = {run.day2night.config["size"] for run in runs.values()}
    if len(sizes) > 1:
        raise InputError(f"RUN: trained at sizes {', '.join(sorted(sizes))}; measure those of one size at a time")
    size = sizes.pop()
    judge = given.judge and load_model(given.judge, "teacher", "--judge", DeepLabV2).to(accelerator.device)
    day_set = load(given.day, root, "--day", splits=None, time="day")
    night_set = load(given.night, root, "--night", splits=None, time="night")
    training = load(given.night, root, "--night", time="night")
    for image_set in (day_set, night_set, training):
        say(str(image_set))
    days, nights, others = (read(s, size, given.images) for s in (day_set, night_set, training))
    if min(len(days), len(nights), len(others)) < 3:
        raise InputError("--day, --night: KID and its error need at least 3 images of each split named above")
    numbers, own = spread(len(day_set.images), given.images), LabelledPhotographs(day_set, "native")
    natives = {i: own.image(numbers[i]) for i in spread(len(numbers), SHIFTED)}
    truth = []
    if judge and day_set.label_kind and list(day_set.classes.names) == judge.config["names"]:
        labelled = LabelledPhotographs(day_set, size)
        truth = [labelled.label(i, *labelled.levels(i).shape[1:])[0].long() for i in numbers]
    measures = Measures(days, nights, given.weights, judge, truth, accelerator)

    rows, pictures = [], {}

    def add(name: str, translated: list, columns: dict) -> None:
        rows.append({"translator": name} | measures.of(translated) | columns)
        pictures[name] = [to_image(translated[i]) for i in spread(len(days), SHOWN)]
        say(f"measured: {name}")

    add("day", days, {})
    add("darken", [darken(x, generator(0, i, "darken")) for i, x in enumerate(days)], {})
    add("fourier", [fourier(x, others[i % len(others)]) for i, x in enumerate(days)], {})
    for name, run in runs.items():
        add(name, *run.of(days, natives, whole=False))
        add(f"{name}, whole", *run.of(days, natives, whole=True))
    if training.split != night_set.split:
        rows.append({"translator": "training nights", "kid": kid(measures.features(others)[1], measures.night)})
    sets = {"day": day_set, "night": night_set, "training nights": training}
    found = {name: {"set": str(s), "fingerprint": s.fingerprint()[""]} for name, s in sets.items()}
    found |= {"size": size, "images": given.images, "judge": given.judge, "network": NETWORK, "layers": FEATURES}
    return found | {"translators": rows}, pictures


# heading: how a cell below it is made
COLUMNS = {
    "KID ×10³": lambda e: "{:.1f} ± {:.1f}".format(*(1000 * x for x in e["kid"])),
    "cycle": lambda e: f"{e['cycle']:.3f}",
    "kept %": lambda e: f"{e['kept']:.1f}",
    "mIoU": lambda e: f"{e['miou']:.1f}",
    "feature": lambda e: f"{e['feature']:.2f}",
    "contrast": lambda e: f"{e['contrast']:.2f}",
    "inverted %": lambda e: f"{e['inverted']:.1f}",
    "checkerboard 2, 4": lambda e: ", ".join("{:.1f} ({:.2f})".format(*e[f"checkerboard_{p}"]) for p in (2, 4)),
    "colour: whole, native": lambda e: ", ".join(f"{mean(e[n]['colour']):.1f}" for n in ("whole", "native")),
    "pixels: whole, native": lambda e: ", ".join(f"{e[n]['pixels']:.1f}" for n in ("whole", "native")),
}


def table(rows: list[dict]) -> str:
    """Write the rows as a Markdown table; "–" where a row lacks a value."""

    def cell(entry, column):
        try:
            return column(entry)
        except KeyError:
            return "–"

    lines = [["translator", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    lines += [[entry["translator"], *(cell(entry, column) for column in COLUMNS.values())] for entry in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run of daynight translate-train")
    parser.add_argument("--day", required=True)
    parser.add_argument("--night", required=True)
    parser.add_argument("--weights", required=True, help=f"weights of {NETWORK}: a .safetensors file in timm's names")
    parser.add_argument("--judge", help="a run of daynight seg-train on day images")
    parser.add_argument("--out", type=Path, default=Path("runs/night/measures"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=100, help="images of a set at most, evenly spaced; default: 100")
    given = parser.parse_args()
    try:
        if given.out.is_file():
            raise InputError(f"--out {given.out}: a file stands there; wanted: a folder")
        found, pictures = measure(given)
        try:
            given.out.mkdir(parents=True, exist_ok=True)
            write_json(given.out / "measures.json", found)
            save_image(grid(list(zip(*pictures.values(), strict=True)), list(pictures)), given.out / "grid.png")
        except OSError as error:
            raise InputError(f"--out {given.out}: cannot be written ({error.strerror})") from error
    except InputError as error:
        print(f"measure.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    print(table(found["translators"]))


if __name__ == "__main__":
    main()
