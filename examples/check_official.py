"""Score drawn predictions by `daynight eval` and by Cityscapes' own scripts, and compare to the last digit.

    python examples/check_official.py --venv official

cityscapesScripts 2.3.0 gets its own virtual environment, because it installs a package that hides Python's `typing`.
With --venv the environment stays and is used again. The scripts' instance level does not run with NumPy 2.4, so this
compares the pixel level. Their times are those of the package as pip installs it; its faster form needs a compiler.

The drawn labels and predictions have ids that are never scored, a class that occurs nowhere, a class that is predicted
and never labelled, and a class that is never found. They have no 255: the official code stops at such a label and
has no column for such a prediction. daynight ignores such a label and counts such a prediction as a miss.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from daynight.data.labels import CITYSCAPES, LABEL_ID_COUNT, LABEL_ID_OF, TRAIN_ID_OF, read_label
from daynight.evaluation.metrics import confusion_matrix

NOWHERE, UNLABELLED, UNFOUND = 31, 28, 32  # label ids of train, bus, motorcycle

# reads a prediction and a label from each line, answers with the seconds it took, and at the end with all scores
OFFICIAL = """
import json, sys, time
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
args = official.args
args.evalInstLevelScore = False
matrix = official.generateMatrix(args)
for line in sys.stdin:
    start = time.perf_counter()
    official.evaluatePair(*line.rstrip("\\n").split("\\t"), matrix, {}, {}, args)
    print(time.perf_counter() - start, flush=True)
scored = [i for i in args.evalLabels if not official.id2label[i].ignoreInEval]
iou = {official.id2label[i].name: official.getIouScoreForLabel(i, matrix, args) for i in scored}
print(json.dumps({"matrix": matrix.tolist(), "iou": iou, "miou": official.getScoreAverage(iou, args)}))
"""


def draw(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels in patches of 16 pixels, and predictions, two thirds of them right: label ids, H×W, uint8."""
    ids = np.arange(LABEL_ID_COUNT, dtype=np.uint8)
    patches = generator.choice(np.setdiff1d(ids, (NOWHERE, UNLABELLED)), (-(-height // 16), -(-width // 16)))
    labels = patches.repeat(16, 0).repeat(16, 1)[:height, :width]
    others = generator.choice(np.setdiff1d(ids, (NOWHERE, UNFOUND)), (height, width))
    wrong = (generator.random((height, width)) < 1 / 3) | (labels == UNFOUND)
    return labels, np.where(wrong, others, labels)


def install(folder: Path) -> Path:
    """Install the official code into a virtual environment in `folder`; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "cityscapesscripts==2.3.0"], check=True)
    return python


def write(tree: Path, predictions: Path, seed: int, count: int, height: int, width: int) -> list[tuple[Path, Path]]:
    """Write a data set in Cityscapes' layout and predictions for it; return (prediction, label) of each image."""
    generator, pairs = np.random.default_rng(seed), []
    for i in range(count):
        frame = f"drawn_{i:06}_000000"
        label, prediction = tree / f"gtFine/val/drawn/{frame}_gtFine_labelIds.png", predictions / f"{frame}.png"
        image = tree / f"leftImg8bit/val/drawn/{frame}_leftImg8bit.png"
        black = np.zeros((height, width, 3), np.uint8)
        for path, pixels in zip((label, prediction, image), (*draw(generator, height, width), black), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        pairs.append((prediction, label))
    return pairs


def labels_of(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """1×C×h×w → H×W train ids, computed as in `daynight.inference`."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].max(0)[1].to(torch.uint8)


def score_both(python: Path, pairs: list[tuple[Path, Path]], size: tuple[int, int]):
    """Score each image by both codes in turn. Returns the official results, our confusion matrix, and each part's
    seconds."""
    total, times = 0, {name: [] for name in ("official", "files", "matrix", "logits")}
    logits = torch.randn(1, len(CITYSCAPES), size[0] // 8, size[1] // 8)
    official = subprocess.Popen([python, "-c", OFFICIAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for pair in pairs:
        print(*pair, sep="\t", file=official.stdin, flush=True)
        times["official"].append(float(official.stdout.readline()))
        moments = [time.perf_counter()]
        predictions, labels = (torch.from_numpy(read_label(path, "labelIds", CITYSCAPES)) for path in pair)
        moments.append(time.perf_counter())
        total = total + confusion_matrix(labels, predictions, len(CITYSCAPES), void=True)
        moments.append(time.perf_counter())
        labels_of(logits, size)
        moments.append(time.perf_counter())
        for name, start, end in zip(("files", "matrix", "logits"), moments, moments[1:], strict=False):
            times[name].append(end - start)
    return json.loads(official.communicate()[0]), total, times


def by_train_ids(matrix: list[list[int]]) -> torch.Tensor:
    """Turn the official matrix, 34×34 by label id, into the form of ours: 19×20; the last column counts void."""
    matrix, ids = torch.tensor(matrix), torch.from_numpy(LABEL_ID_OF[: len(CITYSCAPES)].astype(np.int64))
    void = torch.from_numpy(TRAIN_ID_OF[:LABEL_ID_COUNT] == 255)
    return torch.cat([matrix[ids][:, ids], matrix[ids][:, void].sum(1, keepdim=True)], 1)


def check(folder: Path, python: Path, seed: int, count: int, size: tuple[int, int]) -> bool:
    tree, predictions, results = folder / "tree", folder / "predictions", folder / "results.json"
    pairs = write(tree, predictions, seed, count, *size)
    official, matrix, times = score_both(python, pairs, size)
    command = f"eval --dataset {tree} --predictions {predictions} --ids labelIds --mean official --json {results}"
    subprocess.run([sys.executable, "-m", "daynight", *command.split()], check=True, stdout=subprocess.DEVNULL)
    (entry,) = json.loads(results.read_text())

    expected = [None if math.isnan(value) else 100 * value for value in official["iou"].values()]
    rows = list(zip(official["iou"], expected, entry["iou"].values(), strict=True))
    equal = {
        "confusion matrix": torch.equal(by_train_ids(official["matrix"]), matrix),
        "IoU of each class": list(official["iou"]) == list(entry["iou"]) and all(a == b for _, a, b in rows),
        "mIoU": entry["miou"] == 100 * official["miou"],
    }
    for name, *values in [("%", "official", "daynight"), *rows, ("mIoU", 100 * official["miou"], entry["miou"])]:
        print(f"{name:15}", *(f"{value!s:20}" for value in values))
    print(*(f"{what}: {'equal' if same else 'DIFFERENT'}" for what, same in equal.items()), sep="\n")
    milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
    parts = {
        "evaluatePair, from two files": milliseconds["official"],
        "daynight, from the same": milliseconds["files"] + milliseconds["matrix"],
        "  of it the confusion matrix": milliseconds["matrix"],
        f"logits {size[0] // 8}x{size[1] // 8} to labels": milliseconds["logits"],
    }
    for name, value in parts.items():
        print(f"{name:30} {value:7.1f} ms an image, {value / milliseconds['official']:.2f} of evaluatePair")
    return all(equal.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, help="folder of the virtual environment; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # as many as the official code uses
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = install(options.venv or Path(folder, "venv"))
            equal = check(Path(folder), python, options.seed, options.images, tuple(options.size))
        except subprocess.CalledProcessError as error:
            print(f"check_official.py: {error}", file=sys.stderr)
            sys.exit(2)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
