"""The results of `eval`: the entries of `--json`, the table, runs that differ by seed alone, the page of `--save`."""

import hashlib
import itertools
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from rich.table import Table

from daynight.config import TrainingOptions, free
from daynight.data.images import Images
from daynight.data.labels import read_label
from daynight.data.sets import ImageSet
from daynight.evaluation.metrics import accuracy, bootstrap, interval, iou, mean_iou
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.system.console import number
from daynight.system.files import replace

RULES = {
    "present": "the classes that occur in the labels",
    "official": "the classes with TP+FP+FN > 0, as cityscapesScripts does,",
    "all": "all classes, absent ones counting 0,",
}
PANELS = 24  # of each data set on the page


class Result(NamedTuple):
    """One run on one data set.

    entry: as in `--json`. matrix: classes × (classes + 1) pixels; the last column counts pixels whose prediction is no
    class. of_images: images×3×classes, each image's `counts`. resampled: the mIoU of bootstrap samples, 0 to 100;
    sample k draws the same images in every result on one data set.
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

    resampled = 100 * bootstrap(of_images, entry["mean"])
    scores = {
        "miou": percent(mean_iou(matrix, entry["mean"])),
        "accuracy": percent(accuracy(matrix)),
        "iou": {name: percent(value) for name, value in zip(entry["classes"], iou(matrix).tolist(), strict=True)},
    }
    scores["miou_interval"] = None if scores["miou"] is None else list(interval(resampled))
    last = {key: entry.pop(key) for key in ("label_set", "scales", "flip")}
    return Result(entry | scores | last, matrix, of_images, resampled)


def fingerprint(labelled: torch.Tensor) -> str:
    """12 hex digits of images×classes labelled pixels (int64). They differ if the labels differ."""
    return hashlib.sha256(repr(labelled.tolist()).encode()).hexdigest()[:12]


def same_but_seed(names: list[str]) -> list[list[str]]:
    """Groups of at least two of these runs, whose options differ only by `--seed` and by what a resume may change."""
    groups = {}
    for name in names:
        path = Path(name) / "options.json"
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            others = free(TrainingOptions) | {"seed"}
            options = {key: value for key, value in content["options"].items() if key.replace("-", "_") not in others}
            groups.setdefault(json.dumps([options, content["data"]], sort_keys=True), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def short_names(paths: list[str]) -> dict[str, str]:
    """A name for each path: its last part if these are all different, else the path itself."""
    last = {path: Path(path).name for path in paths}
    return last if len(set(last.values())) == len(last) else {path: path for path in paths}


def rows_of(results: list[Result]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The table of results: a header; a row for each run, then one for each group of runs that differ by seed alone
    (mean ± standard deviation); a row for each run's difference from the first. Each data set has three cells: mIoU,
    its 95 % interval, accuracy.
    """
    columns = list(dict.fromkeys(result.column for result in results))
    found = {(result.entry["model"], result.column): result for result in results}
    names = list(dict.fromkeys(result.entry["model"] for result in results))
    header = ["model"]
    for column in columns:
        dataset, split, *_, classes = column
        alike = [other for other in columns if other[:2] == (dataset, split)]
        title = " ".join(filter(None, [dataset, split, f"({len(classes)} classes)" * (len(alike) > 1)]))
        header += [f"{title}\nmIoU", "95 %", "acc."]

    def line(title: str, cells) -> list[str]:
        return [title, *(cell for column in columns for cell in cells(column))]

    def of_run(name: str, column: tuple) -> tuple[str, ...]:
        if (name, column) not in found:
            return "", "", ""
        entry = found[name, column].entry
        low_high = (number(value) for value in entry["miou_interval"] or (None, None))
        return number(entry["miou"]), " to ".join(low_high), number(entry["accuracy"])

    def of_seeds(group: list[str], column: tuple) -> tuple[str, ...]:
        entries = [found[name, column].entry for name in group if (name, column) in found]
        if len(entries) < 2 or None in [entry["miou"] for entry in entries]:
            return "", "", ""
        values = [[entry[key] for entry in entries] for key in ("miou", "accuracy")]
        miou, pixels = (f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in values)
        return miou, "", pixels

    def of_difference(name: str, column: tuple) -> tuple[str, ...]:
        first, other = (found.get((which, column)) for which in (names[0], name))
        if not first or not other or None in (first.entry["miou"], other.entry["miou"]):
            return "", "", ""
        low_high = (number(value, "+.1f") for value in interval(other.resampled - first.resampled))
        miou, pixels = (number(other.entry[key] - first.entry[key], "+.1f") for key in ("miou", "accuracy"))
        return miou, " to ".join(low_high), pixels

    short = short_names(names)
    rows = [line(name, partial(of_run, name)) for name in names]
    for group in same_but_seed(names):
        rows.append(line(f"{os.path.commonprefix(group)}* ({len(group)} seeds)", partial(of_seeds, group)))
    differences = [line(f"{short[n]} − {short[names[0]]}", partial(of_difference, n)) for n in names[1:]]
    return header, rows, differences


def table(results: list[Result]) -> Table:
    """Results as in Table 1. If there is only one run, the classes follow below."""
    header, rows, differences = rows_of(results)
    title = f"mIoU ({results[0].entry['mean']} classes), its 95 % interval over images, pixel accuracy; %"
    shown = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left")
    for part in (rows, differences):
        for row in part:
            shown.add_row(*row)
        shown.add_section()
    if len(rows) == 1:
        for name in dict.fromkeys(name for result in results for name in result.entry["classes"]):
            cells = ((number(result.entry["iou"].get(name)), "", "") for result in results)
            shown.add_row(f"  {name}", *itertools.chain.from_iterable(cells))
    return shown


def write_page(results: list[Result], sets: list[ImageSet], folder: Path) -> None:
    """Write `index.html` into the folder that holds the colour predictions of every run and data set."""
    header, rows, differences = rows_of(results)
    models = short_names([result.entry["model"] for result in results])
    titles = short_names([image_set.name for image_set in sets])
    parts = [
        page.section(
            "Results",
            page.table(header, rows),
            *[page.table(["difference", *header[1:]], differences)] * bool(differences),
            f"mIoU over {RULES[results[0].entry['mean']]} and pixel accuracy, in percent. 95 %: bootstrap over the "
            "images; for a difference, over the same images for both runs.",
        )
    ]
    for image_set in sets:
        of_set = [result for result in results if result.entry["dataset"] == image_set.name]
        entries = [result.entry for result in of_set]
        classes = list(dict.fromkeys(name for entry in entries for name in entry["classes"]))
        ious = {models[entry["model"]]: [entry["iou"].get(name) for name in classes] for entry in entries}
        matrices = [page.heatmap(r.matrix.numpy(), r.entry["classes"], models[r.entry["model"]]) for r in of_set]
        order = "the runs differ most: most" if len(of_set) > 1 else "the run fails most: worst"
        count = len(image_set.images)
        shown = f" The first {PANELS} of {count:,}; all are in {folder.name}." if count > PANELS else ""
        parts.append(
            page.section(
                titles[image_set.name],
                f"{image_set}. Label set {entries[0]['label_set']}.",
                page.bars(classes, ious, "IoU of each class, %"),
                page.strip("Confusion: of each true class, the share predicted as each, %", *matrices),
                page.legend(dict(zip(image_set.classes.names, image_set.classes.colors, strict=True))),
                f"Images where {order} first, by each image's mIoU.{shown}",
                *[page.strip(caption, *figures) for caption, figures in panels_of(of_set, image_set, folder)],
            )
        )
    text = page.page("daynight eval", *parts)
    replace(folder / "index.html", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def panels_of(results: list[Result], image_set: ImageSet, folder: Path):
    """(caption, figures) of the images on which the runs differ most, or on which the only run is worst: image, truth,
    and the prediction of each run."""
    hit, labelled, predicted = torch.stack([result.of_images for result in results]).double().unbind(2)
    scores = (100 * hit / (labelled + predicted - hit)).where(labelled > 0, torch.nan).nanmean(2)
    spread = scores.amax(0) - scores.amin(0) if len(results) > 1 else 100 - scores[0]
    images = Images(image_set.images)
    for i in spread.nan_to_num(-1).sort(descending=True, stable=True).indices[:PANELS].tolist():
        image, classes = images[i], image_set.classes
        truth = read_label(image_set.labels[i], image_set.label_kind, classes, (image.height, image.width))
        inside = image_set.images[i].relative_to(image_set.root)
        figures = [page.figure(image, "image"), page.figure(label_image(truth, classes), "truth")]
        for result, score in zip(results, scores[:, i].tolist(), strict=True):
            model = result.entry["model"]
            place = folder / Path(model).name / Path(image_set.name).name / "color" / inside.with_suffix(".png")
            with Image.open(place) as prediction:
                figures.append(page.figure(prediction, f"{Path(model).name}: {score:.1f}"))
        yield inside.as_posix(), figures
