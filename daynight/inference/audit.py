"""`translate --audit`: what a translation changed, as a segmentation model sees it before and after."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from daynight.data.cache import digest
from daynight.data.images import Images
from daynight.data.labels import Classes
from daynight.data.sets import states
from daynight.data.transforms import resize_image
from daynight.inference.folders import Folders, unfinished
from daynight.inference.tiles import segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.system.console import say
from daynight.system.files import read_json, write_json, write_text
from daynight.system.processes import gathered

RESULT, PAGE, PARTS = "audit.json", "audit.html", ".audit"
SMALLEST = 0.001  # of an image's pixels: a class with fewer is not in the worst-first table
ROWS, PANELS = 100, 24  # rows of that table, and images, on the page


class Judge:
    """The segmentation model of `--audit`. record: tells one audit of a translation from another.

    Raises `InputError` where there is no such model.
    """

    def __init__(self, name: str, accelerator):
        self.name, self.accelerator = name, accelerator
        self.model = load_model(name, "teacher", "--audit", DeepLabV2).to(accelerator.device)
        self.classes = Classes(*classes_of(self.model))
        self.record = {"model": identity(find_model(name, "teacher", "--audit"))}

    def compare(self, images: Sequence[Path], translations: Sequence[Path], threads: int = 2) -> Iterator[tuple]:
        """Yields each image's number, the image and its translation (RGB, both of the translation's size), and the
        train ids of the one and of the other (H×W, uint8, on the device)."""
        pairs = Pairs([path for pair in zip(images, translations, strict=True) for path in pair])
        found = segment(self.model, pairs, self.model.config["size"], None, self.accelerator, threads)
        for (i, image, before, _), (_, translation, after, _) in zip(found, found, strict=True):
            yield i // 2, image, translation, before, after


class Pairs(Images):
    """`pairs[2 * i]` is image i, `pairs[2 * i + 1]` its translation: RGB, both of the translation's size."""

    def __getitem__(self, i: int) -> Image.Image:
        image = super().__getitem__(i)
        translation = image if i % 2 else super().__getitem__(i + 1)
        return resize_image(image, translation.height, translation.width)


def audit(judge: Judge, folders: Folders, threads: int) -> None:
    """Compare the judge's predictions for each image and for its translation; write `audit.json` and `audit.html`
    beside the translations.

    The processes share the images out. An audit that was interrupted goes on; one by another judge is replaced.
    """
    parts, result = folders.out / PARTS, folders.out / RESULT
    content = read_json(result) if result.is_file() else {}
    known = {entry.get("key"): entry for entry in content["images"]} if content.get("audit") == judge.record else {}
    gathered(None)  # every translation is there
    before, after = states(folders.root, folders.images), states(folders.out, [*map(folders.place, folders.images)])
    # of names and contents
    keys = [digest("".join(image[:2] + other[:2])) for image, other in zip(before, after, strict=True)]
    key_of = dict(zip(folders.images, keys, strict=True))

    def part_of(path: Path) -> Path:
        return parts / judge.record["model"] / f"{key_of[path]}.json"

    def is_done(path: Path) -> bool:
        return key_of[path] in known or part_of(path).is_file()

    def results(paths):
        return judge.compare(paths, list(map(folders.place, paths)), threads)

    for path, _, _, before, after in unfinished(f"audit by {judge.name}", folders.images, is_done, results):
        part_of(path).parent.mkdir(parents=True, exist_ok=True)
        entry = {"image": path.relative_to(folders.root).as_posix(), "key": key_of[path]}
        write_json(part_of(path), entry | changes_of(before, after, judge.classes.names))
    gathered(None)
    if judge.accelerator.is_main_process:
        found = [known.get(key_of[path]) or read_json(part_of(path)) for path in folders.images]
        if found != content.get("images"):
            # deleted first: if this process is killed between the two files, the next audit writes both
            result.unlink(missing_ok=True)
            report(judge, folders, found)
        shutil.rmtree(parts, ignore_errors=True)


def changes_of(before: torch.Tensor, after: torch.Tensor, names: Sequence[str]) -> dict:
    """Two H×W predictions (train ids) → the number of pixels; for each class before, the pixels of each class after;
    and the percentage that keep their class."""
    pairs = before.flatten().int() * len(names) + after.flatten()
    matrix = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), len(names)).cpu()
    changes = {
        name: {other: count for other, count in zip(names, row, strict=True) if count}
        for name, row in zip(names, matrix.tolist(), strict=True)
        if any(row)
    }
    pixels = before.numel()
    return {"pixels": pixels, "changes": changes, "kept": 100 * int(matrix.trace()) / pixels}


def report(judge: Judge, folders: Folders, images: list[dict]) -> None:
    """Write `audit.json` and, with pictures of the worst images, `audit.html`; `images` as of `changes_of`."""
    names = judge.classes.names
    total = {name: Counter() for name in names}
    for entry in images:
        for name, became in entry["changes"].items():
            total[name].update(became)
    matrix = np.array([[became[other] for other in names] for became in total.values()])
    pixels = int(matrix.sum())
    classes = {name: summary(name, became) for name, became in total.items()}
    rows = [
        {"image": entry["image"], "class": name, "share": 100 * row["pixels"] / entry["pixels"]} | row
        for entry in images
        for name, became in entry["changes"].items()
        if (row := summary(name, became))["pixels"] >= SMALLEST * entry["pixels"]
    ]
    rows.sort(key=lambda row: (row["kept"], -row["pixels"], row["image"], row["class"]))
    kept = 100 * int(matrix.trace()) / pixels
    said = f"{kept:.1f} % of the pixels keep the class that {judge.name} gave them before"
    columns, sides = ["class", "pixels before, %", "kept, %", "became"], ("before", "after")
    worst = [[row["image"], *cells(row["class"], row["share"], row)] for row in rows[:ROWS]]
    more = f" The first {ROWS} of {len(rows):,}; all are in {RESULT}." if len(rows) > ROWS else ""
    parts = [
        page.section(
            "Classes",
            f"{len(images):,} images. {said}. A model that has not seen night misreads much of what a good "
            "translation keeps.",
            page.table(columns, [cells(name, 100 * row["pixels"] / pixels, row) for name, row in classes.items()]),
            page.heatmap(matrix, names, "Of each class before, the share predicted as each after, %", sides),
        ),
        page.section(
            "Worst first",
            "One row for each image and class; the smallest share kept comes first. Classes with less than "
            f"{100 * SMALLEST:g} % of an image are left out.{more}",
            page.table(["image", *columns], worst),
        ),
        page.section(
            "Where they differ",
            page.legend(dict(zip(names, judge.classes.colors, strict=True))),
            *panels(judge, folders, rows),
        ),
    ]
    write_text(folders.out / PAGE, page.page("daynight translate --audit", *parts))
    head = {"audit": judge.record, "kept": kept, "classes": classes, "worst": rows[:ROWS]}
    write_json(folders.out / RESULT, head | {"images": images})
    least = sorted((row["kept"], name) for name, row in classes.items() if row["pixels"])[:3]
    say(f"{said}; least kept: {', '.join(f'{name} {share:.0f} %' for share, name in least)}")
    say(f"look at {folders.out / PAGE}")


def summary(name: str, became: dict[str, int]) -> dict:
    """One class: its pixels before, the percentage kept, and which other class most pixels became, with the
    percentage; None where there is nothing."""
    pixels = sum(became.values())
    most, other = max(((count, other) for other, count in became.items() if other != name), default=(0, ""))
    return {
        "pixels": pixels,
        "kept": 100 * became.get(name, 0) / pixels if pixels else None,
        "became": [other, 100 * most / pixels] if most else None,
    }


def cells(name: str, share: float, row: dict) -> list:
    """A class in a table: its name, its share of the pixels in percent, and its `summary`."""
    return [name, share, row["kept"], "{} {:.0f} %".format(*row["became"]) if row["became"] else ""]


def panels(judge: Judge, folders: Folders, rows: list[dict]) -> Iterator[page.Html]:
    """The pictures of the images that come first in the worst-first table, each once."""
    first = {}
    for row in rows:
        if len(first) < PANELS:
            first.setdefault(row["image"], row)
    found = judge.compare([folders.root / name for name in first], [folders.out / name for name in first])
    for row, (_, image, translation, before, after) in zip(first.values(), found, strict=True):
        before, after = before.cpu().numpy(), after.cpu().numpy()
        grey = np.asarray(translation.convert("L").convert("RGB")) // 2
        after_image = label_image(after, judge.classes)
        pictures = {
            "before": image,
            "after": translation,
            "predicted before": label_image(before, judge.classes),
            "predicted after": after_image,
            "where they differ": Image.fromarray(np.where((before != after)[..., None], after_image, grey)),
        }
        became = f", {row['became'][1]:.0f} % became {row['became'][0]}" if row["became"] else ""
        caption = f"{row['image']}: of {row['class']} {row['kept']:.0f} % kept{became}"
        yield page.strip(caption, *[page.figure(picture, title, 320) for title, picture in pictures.items()])
