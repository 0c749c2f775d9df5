"""`translate --audit`: what a translation did to the labels, as a segmentation model sees it before and after."""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from daynight.data.images import Images, save_image
from daynight.data.labels import IGNORE, Classes, read_label
from daynight.data.transforms import resize_image, resize_label
from daynight.evaluation.metrics import confusion_matrix
from daynight.inference.tiles import segment
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.system.console import counted, say
from daynight.system.files import read_json, replace, write_json
from daynight.system.processes import gathered, share_out

RESULT, PAGE, PARTS = "audit.json", "audit.html", ".audit"
SMALLEST = 0.001  # of an image's pixels: a class with fewer is not in the worst-first table
ROWS, PANELS = 100, 24  # of that table, and images on the page


class Judge(NamedTuple):
    """A segmentation model in eval mode, on its device, with the classes it tells apart; `name` as it was given.
    `record`: what tells one audit of a translation from another."""

    name: str
    model: torch.nn.Module
    classes: Classes
    record: dict


class Labels(NamedTuple):
    """The label files of each image, with the kind that `read_label` is to be told, and their classes. `resized`: those
    beside the translations are of another size."""

    of_image: dict[Path, list[tuple[str, Path]]]
    classes: Classes
    resized: bool


class Pairs:
    """`pairs[2 * i]` is image i, `pairs[2 * i + 1]` its translation: RGB, both of the translation's size."""

    def __init__(self, images: Sequence[Path], translations: Sequence[Path]):
        self.images, self.translations = Images(images), Images(translations)

    def __len__(self):
        return 2 * len(self.images)

    def __getitem__(self, i: int) -> Image.Image:
        translation = self.translations[i // 2]
        return translation if i % 2 else resize_image(self.images[i // 2], translation.height, translation.width)


def begin(judge: Judge, root: Path, out: Path, of_image: dict[Path, list[tuple[str, Path]]]) -> None:
    """Make room for an audit in the folder `out` of a translation: what another one left there is cleared away, and
    with it the labels that it wrote, so that they come along again; `of_image` as in `Labels`."""
    parts, record = out / PARTS, judge.record
    former = [read_json(path).get("audit") for path in (out / RESULT, parts / RESULT) if path.is_file()]
    if any(other != record for other in former):
        say(f"{out}: audited before by another model or with other options; audited anew")
        if any(other and other["ignore"] for other in former):
            for _, label in itertools.chain.from_iterable(of_image.values()):
                (out / label.relative_to(root)).unlink(missing_ok=True)
        for left in (out / PAGE, out / RESULT):
            left.unlink(missing_ok=True)
        if parts.is_dir():
            # by another name, lest one of which half is deleted be gone on with
            os.rename(parts, out / f"{PARTS}.part")
            shutil.rmtree(out / f"{PARTS}.part")
    parts.mkdir(exist_ok=True)
    write_json(parts / RESULT, {"audit": record})


def audit(judge: Judge, root: Path, out: Path, paths: Sequence[Path], labels: Labels | None, accelerator, threads: int):
    """Compare the predictions for each image of `paths`, below `root`, and for its translation, of the same path below
    `out`; write `audit.json` and `audit.html` there, and with `labels` what `ignore` says into those in `out`.

    What an earlier call began is gone on with; processes share the images out.
    """
    parts = out / PARTS

    def entry_of(path: Path) -> Path:
        return parts / f"{path.relative_to(root).as_posix()}.json"

    known = {entry["image"]: entry for entry in read_json(out / RESULT)["images"]} if (out / RESULT).is_file() else {}

    def missing(path: Path) -> bool:
        files = labels.of_image.get(path, []) if labels else []
        if any(os.path.samefile(file, out / file.relative_to(root)) for _, file in files):
            return True
        return path.relative_to(root).as_posix() not in known and not entry_of(path).is_file()

    todo, count = share_out(paths, missing)
    say(f"audit by {judge.name}: {len(paths):,} images, {len(paths) - count:,} done")
    translations = [out / path.relative_to(root) for path in todo]
    results = segment(judge.model, Pairs(todo, translations), judge.model.config["size"], None, accelerator, threads)
    for (i, _, before, _), (_, _, after, _) in counted(zip(results, results, strict=True), len(todo), "images"):
        path = todo[i // 2]
        entry = {"image": path.relative_to(root).as_posix()} | compare(before, after, judge.classes.names)
        if labels and path in labels.of_image:
            entry["ignored"] = ignore(labels, path, root, out, before.cpu().numpy(), after.cpu().numpy(), judge.classes)
        entry_of(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(entry_of(path), entry)
    gathered(None)
    if accelerator.is_main_process and (count or not (out / RESULT).is_file()):
        found = [entry_of(path) for path in paths if entry_of(path).is_file()]
        known |= {entry["image"]: entry for entry in map(read_json, found)}
        entries = [known[path.relative_to(root).as_posix()] for path in paths]
        report(judge, root, out, entries, accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(parts)
    gathered(None)


def compare(before: torch.Tensor, after: torch.Tensor, names: Sequence[str]) -> dict:
    """Two H×W predictions (train ids) → the pixels, and of each class how many became which."""
    matrix = confusion_matrix(before, after, len(names)).tolist()
    changes = {
        name: {other: count for other, count in zip(names, row, strict=True) if count}
        for name, row in zip(names, matrix, strict=True)
        if any(row)
    }
    return {"pixels": before.numel(), "changes": changes}


def ignore(labels: Labels, path: Path, root: Path, out: Path, before, after, classes: Classes) -> int:
    """Write into the labels of an image below `out`, as ids of their own kind, that the pixels are to be ignored whose
    class the model gives as the label does `before` (H×W train ids) and otherwise `after`. → how many.

    Where it is wrong before, what it sees after says nothing of the translation.
    """
    place = {name.casefold(): i for i, name in enumerate(classes.names)}
    ids = np.full(256, IGNORE, np.uint8)
    ids[: len(labels.classes)] = [place.get(name.casefold(), IGNORE) for name in labels.classes.names]
    ignored = 0
    for kind, file in labels.of_image[path]:
        truth = read_label(file, kind, labels.classes, None if labels.resized else before.shape)
        lost = (ids[resize_label(truth, *before.shape)] == before) & (after != before)
        with Image.open(file) as label:
            values = resize_label(np.asarray(label).astype(np.uint8), *before.shape).copy()
        values[lost] = 0 if kind == "labelIds" else IGNORE
        # a new file in the place of the link: the user's own is another name of the same one
        save_image(Image.fromarray(values), out / file.relative_to(root))
        ignored = max(ignored, int(lost.sum()))
    return ignored


def report(judge: Judge, root: Path, out: Path, images: list[dict], accelerator) -> None:
    """Write `audit.json` and, with pictures of the worst images, `audit.html`."""
    names = judge.classes.names
    total = {name: Counter() for name in names}
    for entry in images:
        entry["kept"] = kept(entry["changes"])
        for name, became in entry["changes"].items():
            total[name].update(became)
    rows = worst(images)
    result = {
        "audit": judge.record,
        "kept": kept(total),
        "ignored": None,
        "classes": {name: summary(name, total[name]) for name in names},
        "worst": rows[:ROWS],
        "images": images,
    }
    pixels = sum(entry["pixels"] for entry in images)
    said = [f"{result['kept']:.1f} % of the pixels keep the class that {judge.name} gave them before"]
    if judge.record["ignore"]:
        labelled = [entry for entry in images if "ignored" in entry]
        result["ignored"] = 100 * sum(e["ignored"] for e in labelled) / sum(e["pixels"] for e in labelled)
        said.append(f"{result['ignored']:.1f} % are ignored in the labels of {len(labelled):,} images")
    by_class = [[name, 100 * total[name].total() / pixels, *cells(row)] for name, row in result["classes"].items()]
    panels = [page.strip(title, *figures) for title, figures in panels_of(judge, root, out, rows, accelerator)]
    matrix = np.array([[total[name][other] for other in names] for name in names])
    parts = [
        page.section(
            "Classes",
            f"{len(images):,} images. {'; '.join(said)}. A model that has not seen night misreads much of what a good "
            "translation keeps.",
            page.table(["class", "pixels before, %", "kept, %", "became"], by_class),
            page.heatmap(
                matrix, names, "Of each class before, the share predicted as each after, %", ("before", "after")
            ),
        ),
        page.section(
            "Worst first",
            f"Image and class, of which the least was kept; classes of at least {100 * SMALLEST:g} % of an image. "
            + (f"{ROWS} of {len(rows):,}; {RESULT} has all." if len(rows) > ROWS else ""),
            page.table(
                ["image", "class", "pixels before, %", "kept, %", "became"],
                [[row["image"], row["class"], row["share"], *cells(row)] for row in rows[:ROWS]],
            ),
        ),
        page.section("Where they differ", page.legend(dict(zip(names, judge.classes.colors, strict=True))), *panels),
    ]
    text = page.page("daynight translate --audit", *parts)
    replace(out / PAGE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_json(out / RESULT, result)
    least = sorted((row["kept"], name) for name, row in result["classes"].items() if row["pixels"])[:3]
    say("; ".join([*said, f"least kept: {', '.join(f'{name} {share:.0f} %' for share, name in least)}"]))
    say(f"look at {out / PAGE}")


def kept(changes: dict[str, dict[str, int]]) -> float:
    """Percent of the pixels that keep their class; `changes` as of `compare`."""
    same = sum(became.get(name, 0) for name, became in changes.items())
    return 100 * same / max(1, sum(sum(became.values()) for became in changes.values()))


def summary(name: str, became: dict[str, int]) -> dict:
    """Of a class: its pixels before, percent kept, and what most others became, with percent; None where there is
    nothing."""
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
    """Each class of each image with `SMALLEST` of its pixels before, the least kept first, of equals the largest."""
    rows = [
        {"image": entry["image"], "class": name, "share": 100 * row["pixels"] / entry["pixels"]} | row
        for entry in images
        for name, became in entry["changes"].items()
        if (row := summary(name, became))["pixels"] >= SMALLEST * entry["pixels"]
    ]
    return sorted(rows, key=lambda row: (row["kept"], -row["pixels"], row["image"], row["class"]))


def panels_of(judge: Judge, root: Path, out: Path, rows: list[dict], accelerator):
    """(caption, figures) of the images that stand first in the worst-first table, each once."""
    first = {}
    for row in rows:
        if len(first) < PANELS or row["image"] in first:
            first.setdefault(row["image"], row)
    pairs = Pairs([root / name for name in first], [out / name for name in first])
    results = segment(judge.model, pairs, judge.model.config["size"], None, accelerator)
    for row, (_, image, before, _), (_, translation, after, _) in zip(first.values(), results, results, strict=True):
        before, after = before.cpu().numpy(), after.cpu().numpy()
        grey = np.asarray(translation.convert("L").convert("RGB")) // 2
        after_image = label_image(after, judge.classes)
        differ = Image.fromarray(np.where((before != after)[..., None], np.asarray(after_image), grey))
        pictures = {
            "before": image,
            "after": translation,
            "predicted before": label_image(before, judge.classes),
            "predicted after": after_image,
            "where they differ": differ,
        }
        became = f", {row['became'][1]:.0f} % became {row['became'][0]}" if row["became"] else ""
        caption = f"{row['image']}: of {row['class']} {row['kept']:.0f} % kept{became}"
        yield caption, [page.figure(picture, title, 320) for title, picture in pictures.items()]


def ignoring(folder: Path) -> str | None:
    """The identity of the model by which a finished `--audit-ignore` changed the labels in the folder of a translation,
    None where none did."""
    record = read_json(folder / RESULT).get("audit") if (folder / RESULT).is_file() else None
    return record["model"] if record and record["ignore"] else None
