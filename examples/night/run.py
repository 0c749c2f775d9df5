"""Table 1 of the paper, row by row, on real photographs: see README.md.

python examples/night/run.py [--data DATA] [--out OUT] [--target night|dusk] [--seeds N] [--rows ROW …]

Stopped, the same line goes on where it was: trainings resume, what is finished is not done again.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from daynight.config import EvalOptions
from daynight.evaluation import compare
from daynight.metrics import bootstrap, interval
from daynight.run import make_accelerator
from daynight.weights import write_json

FIVE = ("sky", "building", "road", "tree", "car")  # by which bdd_night and bdd_day are to be read
HERE = Path(__file__).parent
# what unlabelled night there is, and what is scored; the first is the target
TARGETS = {
    "night": ("bdd", ["bdd_night", "bdd_day", "camvid_day"]),
    "dusk": ("camvid_dusk", ["camvid_dusk", "camvid_day"]),
}
TRANSLATORS = {"cyclegan": ["--lambda-feature", "0"], "cyclegan+fl": []}
# row: what it is trained on, and which translator it needs, one of those above or a free one
ROWS = {
    "baseline": (["--train-on", "day"], None),
    "darken+day": (["--train-on", "both"], "darken"),
    "cyclegan+fl+day": (["--train-on", "both"], "cyclegan+fl"),
    "ssl": (["--ssl"], "cyclegan+fl"),
    "darken+ssl": (["--ssl"], "darken"),
    "cyclegan+fl": (["--train-on", "translated"], "cyclegan+fl"),
    "cyclegan": (["--train-on", "translated"], "cyclegan"),
    "fourier+day": (["--train-on", "both"], "fourier"),
    "fourier+ssl": (["--ssl"], "fourier"),
    # as many images, not steps, as the full method has seen
    "baseline, more steps": (["--train-on", "day", "--steps", "1680"], None),
    "ssl without translation": (["--ssl", "--train-on", "day"], None),
}


def daynight(*words) -> None:
    """Run a command as a person would type it; ends this program where it fails."""
    words = [str(word) for word in words]
    print("daynight", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "daynight", *words]).returncode
    if code:
        sys.exit(code)


class Table1:
    """The rows of one target: what each needs is made first."""

    def __init__(self, data: Path, out: Path, target: str):
        self.data, self.out, (night, self.sets) = data, out / target, TARGETS[target]
        self.photographs = ["--day", data / "camvid_day", "--night", data / night]
        self.weights = data / "weights/tf_efficientnet_lite0.safetensors"

    def translations(self, name: str) -> Path:
        """The labelled day images as one of the translators sees them."""
        translator, translated = self.out / "translators" / name, self.out / "translations" / name
        if not (translated / "done").is_file():
            options = ["--config", HERE / "translator.json", "--feature-weights", self.weights, *TRANSLATORS[name]]
            daynight("translate-train", *self.photographs, "--out", translator, *options)
            into = translated / "camvid_day"
            daynight("translate", "--in", self.data / "camvid_day", "--out", into, "--model", translator)
            (translated / "done").touch()
        return translated / "camvid_day"

    def train(self, row: str, seed: int) -> Path:
        """The run of a row, finished and scored."""
        run = self.out / "runs" / f"{row}-{seed}"
        scores = run / "scores.json"
        if scores.is_file():
            return run
        options, source = ROWS[row]
        if source in TRANSLATORS:
            options = [*options, "--translated", self.translations(source)]
        elif source:
            options = [*options, "--translator", source]
        settings = ["--config", HERE / "segmentation.json", "--backbone-weights", self.weights, "--seed", seed]
        daynight("seg-train", *self.photographs, "--out", run, *settings, *options)
        self.score(run, scores)
        # the teacher and its record stay; two checkpoints of 30 MB a run do not
        for checkpoint in run.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return run

    def score(self, run: Path, file: Path) -> None:
        """What `eval` finds, and each image's counts, so that any classes can be averaged over any images later."""
        options = EvalOptions(model=[str(run)], dataset=[str(self.data / name) for name in self.sets])
        results = compare(options, make_accelerator("auto"))[1]
        write_json(file, [result.entry | {"of_images": result.of_images.tolist()} for result in results])

    def report(self) -> str:
        """The rows that are there, as Markdown: mean over seeds ± standard deviation [95 % interval over images]."""
        lines, sets = [], self.sets
        lines.append("| training | seeds | " + " | ".join(f"{name} mIoU | acc." for name in sets) + " |")
        lines.append("|---|---|" + "---|" * 2 * len(sets))
        for row in ROWS:
            files = sorted(self.out.glob(f"runs/{row}-?/scores.json"))
            seeds = [{Path(e["dataset"]).name: e for e in json.loads(file.read_text())} for file in files]
            if seeds:
                cells = [cell for name in sets for cell in figures([seed[name] for seed in seeds])]
                lines.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def figures(seeds: list[dict]) -> tuple[str, str]:
    """mIoU and accuracy of one row on one data set; of the hand-drawn labels five classes are read."""
    names = seeds[0]["classes"]
    chosen = [names.index(name) for name in (FIVE if Path(seeds[0]["dataset"]).name.startswith("bdd") else names)]
    counts = [torch.tensor(seed["of_images"]) for seed in seeds]
    miou = [100 * iou_of(c.sum(0)[:, chosen]) for c in counts]
    low, high = interval(100 * torch.stack([bootstrap(c[:, :, chosen]) for c in counts]).mean(0))
    spread = f" ± {statistics.stdev(miou):.1f}" if len(seeds) > 1 else ""
    accuracy = statistics.mean(seed["accuracy"] for seed in seeds)
    return f"{statistics.mean(miou):.1f}{spread} [{low:.1f} to {high:.1f}]", f"{accuracy:.1f}"


def iou_of(counts: torch.Tensor) -> float:
    """3×classes → mean IoU of those that occur in the labels."""
    hit, labelled, predicted = counts.double()
    return float((hit / (labelled + predicted - hit))[labelled > 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/night"))
    parser.add_argument("--target", choices=TARGETS, default="night")
    parser.add_argument("--seeds", type=int, default=1, help="how many: 0, 1, …")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    given = parser.parse_args()
    table = Table1(given.data, given.out, given.target)
    for seed in range(given.seeds):
        for row in given.rows:
            table.train(row, seed)
    report = table.report()
    (table.out / "table.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
