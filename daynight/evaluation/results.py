"""The results of `eval`: the entries of `--json`, the table, runs that differ by seed alone, the page of `--save`."""

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from daynight.config import TrainingOptions, free
from daynight.data.formats import open_image
from daynight.data.images import Images
from daynight.data.labels import read_label
from daynight.data.sets import TIMES, ImageSet
from daynight.evaluation.metrics import accuracy, bootstrap, counts, interval, iou, mean_iou, mean_iou_of
from daynight.inference.folders import png_names
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.system.console import number, plain
from daynight.system.errors import InputError
from daynight.system.files import read_json, write_text

RULES = {
    "present": "the classes that occur in the labels",
    "official": "the classes with TP+FP+FN > 0, as cityscapesScripts does,",
    "all": "all classes, absent ones counting 0,",
}
PANELS = 24  # of each data set on the page


class Result(NamedTuple):
    """One run on one data set. entry: as in `--json`.

    matrix: classes × (classes + 1) pixels; the last column counts pixels whose prediction is no class. of_images:
    images×3×classes, each image's `counts`. resampled: the mIoU of bootstrap samples, 0 to 100, paired by image.
    """

    entry: dict
    matrix: torch.Tensor
    of_images: torch.Tensor
    resampled: torch.Tensor

    @property
    def column(self) -> tuple:
        """Scores are comparable only if this is equal."""
        entry = self.entry
        return entry["dataset"], entry["split"], entry["mean"], entry["label_set"], tuple(entry["classes"])


def summarise(entry: dict, matrix: torch.Tensor, of_images: torch.Tensor) -> Result:
    """Adds the scores in percent, None where nothing is labelled. `miou_interval` is the 95 % interval over images."""

    def percent(value: float) -> float | None:
        return None if value != value else 100 * float(value)

    resampled, miou = 100 * bootstrap(of_images, entry["mean"]), percent(mean_iou(matrix, entry["mean"]))
    scores = {
        "miou": miou,
        "accuracy": percent(accuracy(matrix)),
        "iou": {name: percent(value) for name, value in zip(entry["classes"], iou(matrix).tolist(), strict=True)},
        "miou_interval": None if miou is None else list(interval(resampled)),
    }
    last = {key: entry.pop(key) for key in ("label_set", "scales", "flip")}
    return Result(entry | scores | last, matrix, of_images, resampled)


def fingerprint(labelled: torch.Tensor) -> str:
    """12 hex digits of images×classes labelled pixels (int64). They differ if the labels differ."""
    return hashlib.sha256(repr(labelled.tolist()).encode()).hexdigest()[:12]


def same_but_seed(names: list[str]) -> list[list[str]]:
    """Groups of at least two of these runs, whose options differ only by `--seed` and by what a resume may change."""
    groups, others = {}, free(TrainingOptions) | {"seed"}
    for name in names:
        # a folder of predictions, a model alone, or a file that is not of a run
        with suppress(InputError, KeyError, AttributeError):
            content = read_json(Path(name) / "options.json")
            options = {key: value for key, value in content["options"].items() if key.replace("-", "_") not in others}
            data = {key: value for key, value in content["data"].items() if not key.endswith(TIMES)}
            groups.setdefault(json.dumps([options, data], sort_keys=True), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def folder_name(path: Path | str) -> str:
    """The last part of a path, also of ".."."""
    return Path(os.path.abspath(path)).name or "root"


def short_names(paths: list[str]) -> dict[str, str]:
    """A name for each path: its last part if these are all different, else the path itself."""
    last = {path: Path(path).name for path in paths}
    return last if len(set(last.values())) == len(last) else {path: path for path in paths}


def of_run(run: Result) -> tuple[str, str, str]:
    """Three cells: mIoU, its 95 % interval over images, accuracy."""
    low, high = map(number, run.entry["miou_interval"] or (None, None))
    return number(run.entry["miou"]), f"{low} to {high}", number(run.entry["accuracy"])


def of_seeds(*runs: Result) -> tuple[str, str, str]:
    """The same cells: mean ± standard deviation of runs that differ by seed alone."""
    values = [[run.entry[key] for run in runs] for key in ("miou", "accuracy")]
    miou, pixels = (f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in values)
    return miou, "", pixels


def of_difference(first: Result, other: Result) -> tuple[str, str, str]:
    """The same cells: the other run's minus the first's."""
    low, high = interval(other.resampled - first.resampled)
    miou, pixels = (f"{other.entry[key] - first.entry[key]:+.1f}" for key in ("miou", "accuracy"))
    return miou, f"{low:+.1f} to {high:+.1f}", pixels


def tables(results: list[Result]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The results, for the console and the page: a header; a row for each run and then for each group of seeds; a row
    for each run's difference from the first. Each data set has three cells, blank where a run has no score."""
    columns = list(dict.fromkeys(result.column for result in results))
    found = {(result.entry["model"], result.column): result for result in results}
    names = list(dict.fromkeys(result.entry["model"] for result in results))
    short, header = short_names(names), ["model"]
    for dataset, split, *_, classes in columns:
        alike = [column for column in columns if column[:2] == (dataset, split)]
        title = " ".join(filter(None, [dataset, split, f"({len(classes)} classes)" * (len(alike) > 1)]))
        header += [f"{title}\nmIoU", "95 %", "acc."]

    def row(title: str, cells: Callable[..., tuple], *names: str) -> list[str]:
        line = [title]
        for column in columns:
            runs = [found[name, column] for name in names if (name, column) in found]
            blank = len(runs) < len(names) or (len(runs) > 1 and None in [run.entry["miou"] for run in runs])
            line += ("", "", "") if blank else cells(*runs)
        return line

    rows = [row(name, of_run, name) for name in names]
    for group in same_but_seed(names):
        rows.append(row(f"{os.path.commonprefix(group)}* ({len(group)} seeds)", of_seeds, *group))
    first, *others = names
    return header, rows, [row(f"{short[name]} − {short[first]}", of_difference, first, name) for name in others]


def table(results: list[Result]) -> Table:
    """Results as in Table 1. If there is only one run, the classes follow below."""
    header, rows, more = tables(results)
    title = f"mIoU ({results[0].entry['mean']} classes), its 95 % interval over images, pixel accuracy; %"
    shown = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        shown.add_column(plain(name), justify="right" if i else "left")
    if len(rows) == 1:
        for name in dict.fromkeys(name for result in results for name in result.entry["classes"]):
            cells = [cell for result in results for cell in (number(result.entry["iou"].get(name)), "", "")]
            more.append([f"  {name}", *cells])
    for part in (rows, more):
        for row in part:
            shown.add_row(*map(plain, row))
        shown.add_section()
    return shown


def both_means(results: list[Result]) -> list[str]:
    """A line for each result whose mIoU differs between the rules "present" and "official", with both."""
    lines = []
    for entry, matrix, *_ in results:
        _, labelled, predicted = counts(matrix)
        present, official = (number(100 * mean_iou(matrix, rule)) for rule in ("present", "official"))
        if present != official:
            name = " ".join(filter(None, [entry["dataset"], entry["split"]]))
            occur, seen = (int((found > 0).sum()) for found in (labelled, labelled + predicted))
            more = f"over the {seen} that occur or are predicted, as cityscapesScripts counts: {official}"
            lines.append(f"{name}, {entry['model']}: mIoU over the {occur} classes that occur: {present}; {more}")
    return lines


def write_page(results: list[Result], sets: list[ImageSet], folder: Path) -> None:
    """Write `index.html` into the folder that holds the colour predictions of every run and data set."""
    header, rows, differences = tables(results)
    models = short_names([result.entry["model"] for result in results])
    titles = short_names([image_set.name for image_set in sets])
    parts = [
        page.section(
            "Results",
            page.table(header, rows),
            *[page.table(["difference", *header[1:]], differences)] * bool(differences),
            f"mIoU over {RULES[results[0].entry['mean']]} and pixel accuracy, in percent. 95 %: bootstrap over the "
            "images; for a difference, over the same images for both runs.",
            *both_means(results),
        )
    ]
    for image_set in sets:
        of_set = [result for result in results if result.entry["dataset"] == image_set.name]
        entries = {models[result.entry["model"]]: result.entry for result in of_set}
        classes = list(dict.fromkeys(name for entry in entries.values() for name in entry["classes"]))
        ious = {model: [entry["iou"].get(name) for name in classes] for model, entry in entries.items()}
        matrices = [page.heatmap(r.matrix.numpy(), r.entry["classes"], models[r.entry["model"]]) for r in of_set]
        order = "the runs differ most: most" if len(of_set) > 1 else "the run fails most: worst"
        count = len(image_set.images)
        shown = f" The first {PANELS} of {count:,}; all are in {folder.name}." if count > PANELS else ""
        parts.append(
            page.section(
                titles[image_set.name],
                f"{image_set}. Label set {of_set[0].entry['label_set']}.",
                page.bars(classes, ious, "IoU of each class, %"),
                page.strip("Confusion: of each true class, the share predicted as each, %", *matrices),
                page.legend(dict(zip(image_set.classes.names, image_set.classes.colors, strict=True))),
                f"Images where {order} first, by each image's mIoU.{shown}",
                *panels(of_set, image_set, folder),
            )
        )
    write_text(folder / "index.html", page.page("daynight eval", *parts))


def panels(results: list[Result], image_set: ImageSet, folder: Path) -> Iterator[page.Html]:
    """The images on which the runs differ most, or the only run is worst: image, truth, and each run's prediction."""
    scores = 100 * torch.stack([mean_iou_of(result.of_images) for result in results])
    spread = scores.amax(0) - scores.amin(0) if len(results) > 1 else 100 - scores[0]
    images, classes, names = Images(image_set.images), image_set.classes, png_names(image_set.images)
    for i in spread.nan_to_num(-1).sort(descending=True, stable=True).indices[:PANELS].tolist():
        image, inside = images[i], image_set.images[i].relative_to(image_set.root)
        truth = read_label(image_set.labels[i], image_set.label_kind, classes, (image.height, image.width))
        figures = [page.figure(image, "image"), page.figure(label_image(truth, classes), "truth")]
        for result, score in zip(results, scores[:, i].tolist(), strict=True):
            model = folder_name(result.entry["model"])
            place = folder / model / folder_name(image_set.name) / "color"
            with open_image(place / names[image_set.images[i]].relative_to(image_set.root)) as prediction:
                figures.append(page.figure(prediction, f"{model}: {score:.1f}"))
        yield page.strip(inside.as_posix(), *figures)
