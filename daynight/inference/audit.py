"""`translate --audit`: what a translation changed, as a segmentation model sees it before and after."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from daynight.data.images import Images
from daynight.data.labels import Classes
from daynight.data.transforms import resize_image
from daynight.inference.folders import Folders, unfinished
from daynight.inference.tiles import segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.system.console import say
from daynight.system.files import read_json, replace, write_json
from daynight.system.processes import gathered

RESULT, PAGE, PARTS = "audit.json", "audit.html", ".audit"
SMALLEST = 0.001  # of an image's pixels: a class with fewer is not in the worst-first table
ROWS, PANELS = 100, 24  # rows of that table, and images, on the page


class Judge(NamedTuple):
    """A segmentation model in eval mode, on its device. name: as the user gave it. record: tells one audit of a
    translation from another."""

    name: str
    model: torch.nn.Module
    classes: Classes
    record: dict


def load_judge(name: str, device: torch.device) -> Judge:
    """The model of `--audit`. Raises `InputError` where there is none."""
    model = load_model(name, "teacher", "--audit", DeepLabV2).to(device)
    record = {"model": identity(find_model(name, "teacher", "--audit"))}
    return Judge(name, model, Classes(*classes_of(model)), record)


class Pairs:
    """`pairs[2 * i]` is image i, `pairs[2 * i + 1]` its translation: RGB, both of the translation's size."""

    def __init__(self, images: Sequence[Path], translations: Sequence[Path]):
        self.images, self.translations = Images(images), Images(translations)

    def __len__(self):
        return 2 * len(self.images)

    def __getitem__(self, i: int) -> Image.Image:
        translation = self.translations[i // 2]
        return translation if i % 2 else resize_image(self.images[i // 2], translation.height, translation.width)


def audit(judge: Judge, folders: Folders, accelerator, threads: int) -> None:
    """Compare the judge's predictions for each image and for its translation; write `audit.json` and `audit.html`
    beside the translations.

    The processes share the images out. An audit that was interrupted goes on; one by another judge is replaced.
    """
    parts, result = folders.out / PARTS, folders.out / RESULT

    def entries_in(path: Path) -> dict[str, dict]:
        """What this judge found, by image: the content of a part or of the result."""
        content = read_json(path) if path.is_file() else {}
        return {entry["image"]: entry for entry in content["images"]} if content.get("audit") == judge.record else {}

    def name_of(path: Path) -> str:
        return path.relative_to(folders.root).as_posix()

    def part_of(path: Path) -> Path:
        return parts / f"{name_of(path)}.json"

    def results(paths):
        images = Pairs(paths, [folders.place(path) for path in paths])
        found = segment(judge.model, images, judge.model.config["size"], None, accelerator, threads)
        return ((i // 2, before, after) for (i, _, before, _), (_, _, after, _) in zip(found, found, strict=True))

    known = entries_in(result)
    title, done = f"audit by {judge.name}", lambda path: name_of(path) in known or entries_in(part_of(path))
    for path, before, after in unfinished(title, folders.images, done, results):
        entry = {"image": name_of(path)} | compare(before, after, judge.classes.names)
        part_of(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(part_of(path), {"audit": judge.record, "images": [entry]})
    gathered(None)
    if accelerator.is_main_process:
        found = known | {name: entry for path in folders.images for name, entry in entries_in(part_of(path)).items()}
        if found != known:
            # deleted first: if this process is killed between the two files, the next audit writes both
            result.unlink(missing_ok=True)
            report(judge, folders, [found[name_of(path)] for path in folders.images], accelerator)
        if parts.is_dir():
            shutil.rmtree(parts)


def compare(before: torch.Tensor, after: torch.Tensor, names: Sequence[str]) -> dict:
    """Two H×W predictions (train ids) → the number of pixels; for each class before, the pixels of each class after;
    and the percentage that keep their class."""
    pairs = before.flatten().int() * len(names) + after.flatten()
    rows = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), len(names)).tolist()
    changes = {
        name: {other: count for other, count in zip(names, row, strict=True) if count}
        for name, row in zip(names, rows, strict=True)
        if any(row)
    }
    return {"pixels": before.numel(), "changes": changes, "kept": kept(changes)}


def report(judge: Judge, folders: Folders, images: list[dict], accelerator) -> None:
    """Write `audit.json` and, with pictures of the worst images, `audit.html`; `images` as of `compare`."""
    total = {name: Counter() for name in judge.classes.names}
    for entry in images:
        for name, became in entry["changes"].items():
            total[name].update(became)
    classes, rows = {name: summary(name, total[name]) for name in total}, worst(images)
    head = {"audit": judge.record, "kept": kept(total), "classes": classes, "worst": rows[:ROWS]}
    said = f"{head['kept']:.1f} % of the pixels keep the class that {judge.name} gave them before"
    pixels = sum(entry["pixels"] for entry in images)
    by_class = [[name, 100 * row["pixels"] / pixels, *cells(row)] for name, row in classes.items()]
    matrix = np.array([[became[other] for other in total] for became in total.values()])
    all_rows = f" The first {ROWS} of {len(rows):,}; all are in {RESULT}." if len(rows) > ROWS else ""
    parts = [
        page.section(
            "Classes",
            f"{len(images):,} images. {said}. A model that has not seen night misreads much of what a good "
            "translation keeps.",
            page.table(["class", "pixels before, %", "kept, %", "became"], by_class),
            page.heatmap(
                matrix, list(total), "Of each class before, the share predicted as each after, %", ("before", "after")
            ),
        ),
        page.section(
            "Worst first",
            "One row for each image and class; the smallest share kept comes first. Classes with less than "
            f"{100 * SMALLEST:g} % of an image are left out.{all_rows}",
            page.table(
                ["image", "class", "pixels before, %", "kept, %", "became"],
                [[row["image"], row["class"], row["share"], *cells(row)] for row in rows[:ROWS]],
            ),
        ),
        page.section(
            "Where they differ",
            page.legend(dict(zip(total, judge.classes.colors, strict=True))),
            *[page.strip(title, *figures) for title, figures in panels_of(judge, folders, rows, accelerator)],
        ),
    ]
    text = page.page("daynight translate --audit", *parts)
    replace(folders.out / PAGE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_json(folders.out / RESULT, head | {"images": images})
    least = sorted((row["kept"], name) for name, row in classes.items() if row["pixels"])[:3]
    say(f"{said}; least kept: {', '.join(f'{name} {share:.0f} %' for share, name in least)}")
    say(f"look at {folders.out / PAGE}")


def kept(changes: dict[str, dict[str, int]]) -> float:
    """Percentage of the pixels that keep their class; `changes` as of `compare`."""
    same = sum(became.get(name, 0) for name, became in changes.items())
    return 100 * same / max(1, sum(sum(became.values()) for became in changes.values()))


def summary(name: str, became: dict[str, int]) -> dict:
    """One class: its pixels before, the percentage kept, and which other class most pixels became, with the
    percentage; None where there is nothing."""
    pixels = sum(became.values())
    others = sorted(((count, other) for other, count in became.items() if other != name and count), reverse=True)
    return {
        "pixels": pixels,
        "kept": 100 * became.get(name, 0) / pixels if pixels else None,
        "became": [others[0][1], 100 * others[0][0] / pixels] if others else None,
    }


def cells(row: dict) -> list:
    became = row["became"]
    return [row["kept"], f"{became[0]} {became[1]:.0f} %" if became else ""]


def worst(images: list[dict]) -> list[dict]:
    """Each class of each image that has `SMALLEST` of its pixels before: the least kept first, then the largest."""
    rows = [
        {"image": entry["image"], "class": name, "share": 100 * row["pixels"] / entry["pixels"]} | row
        for entry in images
        for name, became in entry["changes"].items()
        if (row := summary(name, became))["pixels"] >= SMALLEST * entry["pixels"]
    ]
    return sorted(rows, key=lambda row: (row["kept"], -row["pixels"], row["image"], row["class"]))


def panels_of(judge: Judge, folders: Folders, rows: list[dict], accelerator):
    """(caption, figures) of the images that come first in the worst-first table, each once."""
    first = {}
    for row in rows:
        first.setdefault(row["image"], row)
    first = dict(list(first.items())[:PANELS])
    pairs = Pairs([folders.root / name for name in first], [folders.out / name for name in first])
    results = segment(judge.model, pairs, judge.model.config["size"], None, accelerator)
    for row, (_, image, before, _), (_, translation, after, _) in zip(first.values(), results, results, strict=True):
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
        yield caption, [page.figure(picture, title, 320) for title, picture in pictures.items()]
