"""The images of a data set with their labels, whatever its layout: what to train on, to score, to translate."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daynight.data.labels import CITYSCAPES, Classes, read_classes
from daynight.data.layouts.times import expected_files, times_of_day
from daynight.data.layouts.tree import (
    COLORED,
    IMAGE_SUFFIXES,
    LAYOUTS,
    Tree,
    hint,
    images_in,
    locate,
    parts_of,
    resolve,
    splits_of,
    tagged_night,
    walk,
)
from daynight.system.console import say
from daynight.system.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """The images of one split of a data set, each with its label where it has one.

    images and labels are sorted by path, parallel, and below root; label_kind is what `read_label` is to be told.
    """

    name: str
    root: Path
    layout: str
    split: str | None
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    label_kind: str | None
    classes: Classes | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """One line: "cs: Cityscapes, train, 2,975 images, 2,975 labels (labelIds), 19 classes"."""
        labelled = sum(label is not None for label in self.labels)
        parts = [self.layout, self.split, _count(len(self.images), "image")]
        parts.append(f"{_count(labelled, 'label')} ({self.label_kind})" if labelled else "no labels")
        if labelled:
            parts.append(f"{len(self.classes)} classes")
        return f"{self.name}: " + ", ".join(part for part in parts if part)

    def stem(self, image: Path) -> str:
        """The name of an image without what all images of its layout end in: `aachen_000000_000019`."""
        return image.stem.removesuffix(LAYOUTS[self.layout].ending)

    def fingerprint(self) -> str:
        """12 hex digits over the relative names and sizes of all images and labels; nothing is decoded."""
        digest = hashlib.sha256()
        for path in self.images + self.labels:
            line = f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}\n" if path else "\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]


def load(
    name: str,
    data_root: Path,
    option: str,
    *,
    splits: Sequence[str] | None = ("train",),
    time: str | None = None,
    labels: str | None = None,
    labelled: bool = False,
) -> ImageSet:
    """The images of a data set with their labels. "bdd-night": those of BDD100K's 10k set that its tags call night.

    splits: put together, those that exist; None for the one to evaluate on (val, else test, else the only one).
    time: "day", "twilight" or "night", where the layout tells them apart. labels: "labelIds" or "labelTrainIds", else
    the layout's own preference. labelled: leave out what has no label. option is the command line's, for messages.
    Raises InputError when there is no such data set, split, image or label.
    """
    whole = tagged_night(name, data_root)
    tree = locate(resolve(whole or name, data_root, option))
    if time in ("day", "twilight") and (whole or tree.layout in ("ACDC", "Nighttime Driving")):
        raise InputError(f"{option}: {tree.root}: {tree.layout} has night images only; give it as a night set")
    layout = tree.layout
    if whole:
        layout, time = "BDD100K 10k", "night"
    elif labelled or splits is None or not splits_of(tree.root, layout):
        layout = _labelled(tree)
    folders = _choose(splits_of(tree.root, layout), splits, f"{option}: {tree.root}", layout)
    return _gather(name, tree._replace(layout=layout), folders, option, time, labels, labelled)


def check_disjoint(days: Sequence[ImageSet], nights: Sequence[ImageSet]) -> None:
    """Raises InputError where night images are day images too, from which there is nothing to learn."""
    day_images = {path for image_set in days for path in _real(image_set)}
    for image_set in nights:
        shared = sum(path in day_images for path in _real(image_set))
        if shared:
            raise InputError(
                f"--night {image_set.name}: {shared:,} of its {_count(len(image_set.images), 'image')} are day images "
                f"too (of {' or '.join(day.name for day in days)}); give a folder of night images"
            )


def announce(sets: Sequence[ImageSet]) -> None:
    """Say what each set holds, with its remarks."""
    for image_set in sets:
        say(str(image_set))
        for note in image_set.notes:
            say(f"  {note}")


def evenly(length: int, count: int) -> list[int]:
    """At most `count` of `length` numbers, evenly spaced: neighbours in a video are nearly the same image."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def hold_out(image_set: ImageSet, data_root: Path, option: str, count: int, time: str, labelled: bool) -> ImageSet:
    """At most `count` images to validate on, evenly spaced: of the val split; where a set that is trained on has none
    (with labels, if `labelled`), of its own images a tenth at most, which `without` takes out of it."""
    try:
        found = load(image_set.name, data_root, option, splits=("val",), time=time, labelled=labelled)
    except InputError:
        found = None
    if found is None or found.split != "val":
        count = min(count, len(image_set.images) // 10)
        found = replace(image_set, split="a tenth, not trained on")
    return thinned(found, count)


def without(image_set: ImageSet, others: Sequence[ImageSet]) -> ImageSet:
    """The images of a set that are in none of the others."""
    taken = {path for other in others for path in _real(other)}
    return _only_images(image_set, [i for i, path in enumerate(_real(image_set)) if path not in taken])


def thinned(image_set: ImageSet, count: int) -> ImageSet:
    return _only_images(image_set, evenly(len(image_set.images), count))


def _only_images(image_set: ImageSet, numbers: Sequence[int]) -> ImageSet:
    images, labels = (tuple(paths[i] for i in numbers) for paths in (image_set.images, image_set.labels))
    return replace(image_set, images=images, labels=labels)


def _real(image_set: ImageSet) -> list[Path]:
    """The images as paths that are the same however their folder was given."""
    root = image_set.root.resolve()
    return [root / path.relative_to(image_set.root) for path in image_set.images]


def describe(name: str, data_root: Path, option: str) -> list[str]:
    """What a data set holds, in lines: each split with its images by time of day, remarks, and which split is scored.

    Raises InputError as `load` does.
    """
    if tagged_night(name, data_root):
        found = load(name, data_root, option, splits=None)
        return [str(found), *found.notes]
    tree = locate(resolve(name, data_root, option))
    is_bdd = tree.layout == "BDD100K"
    times = times_of_day(tree.root / "labels", ("train", "val", "test")) if is_bdd else {}
    lines, kinds = [f"{name}: {note}" for note in tree.notes], {}
    for layout in parts_of(tree.layout):
        for split, folder in splits_of(tree.root, layout).items():
            if next(images_in(folder), None) is None:
                lines.append(f"{name}: {layout}, {split or folder}, no images")
                continue
            found = _gather(name, Tree(tree.root, layout, ()), {split: folder}, option)
            counts = Counter(_time(image, folder, layout, times) for image in found.images)
            lines += [str(found), *found.notes]
            lines += [f"  {time}: {_count(count, 'image')}" for time, count in sorted(counts.items()) if time]
            kinds[layout, split] = found.label_kind
    if is_bdd and not times:
        lines.append(f"{name}: no time of day; expected {expected_files('<split>')}{hint(tree.root, tree.layout)}")
    layout = _labelled(tree)
    split = _scored(splits_of(tree.root, layout))
    if split and kinds.get((layout, split)):
        lines.append(f"{name}: eval scores {layout}, {split}")
    if not kinds:
        _choose({}, None, f"{option}: {tree.root}", layout)
    return lines


def _time(image: Path, split: Path, layout: str, times: dict[str, str]) -> str | None:
    """The time of day of an image, as its data set has it; None where it does not tell."""
    if layout == "Dark Zurich":
        return image.relative_to(split).parts[0]
    return times.get(image.stem, "no entry") if times else None


def _gather(name, tree: Tree, folders: dict, option: str, time=None, labels=None, labelled=False) -> ImageSet:
    """The images below the folders of some splits, and their labels; see `load`."""
    root, layout, notes = tree
    where, notes = f"{option}: {root}", list(notes)
    if layout == "Dark Zurich" and time:
        folders = {split: _time_folder(folder, time) for split, folder in folders.items()}
    images = there = sorted(image for folder in folders.values() for image in images_in(folder))
    if layout == "BDD100K":
        images = _without_scored(root, images, folders, notes)
    if layout.startswith("BDD100K") and time:
        images = _select_time(root, layout, images, folders, time, notes, where)
    looked_in = " and ".join(str(folder) for folder in folders.values())
    if not images:
        wanted = f"{time} images" if time and layout.startswith(("BDD100K", "Dark Zurich")) else "images"
        raise InputError("; ".join([f"{option}: no {wanted} in {looked_in}", *notes]))

    label_kind, pattern, label_paths = _find_labels(root, layout, images, labels, where)
    if label_kind:
        orphans = _without_image(root, layout, pattern, folders.values(), there)
        if orphans:
            notes.append(f"{_count(len(orphans), 'label')} without an image, as {orphans[0].relative_to(root)}")
    if layout == "Nighttime Driving" and labels is None and label_kind == "labelTrainIds":
        notes.append("labels are the labelTrainIds of 2018; --labels labelIds takes those corrected in 2019")
    if label_kind in COLORED:
        colored = f"labels are colour-coded ({next(filter(None, label_paths)).relative_to(root)})"
        if labelled:
            raise InputError(f"{where}: {colored}; expected {_expected_labels(layout, labels)}")
        notes.append(f"{colored} and not used")
        label_kind, label_paths = None, [None] * len(images)
    if labelled and label_kind is None:
        message = f"{where}: no labels for the images in {looked_in}; expected {_expected_labels(layout, labels)}"
        raise InputError("; ".join([message, *notes]) + hint(root, layout))
    classes = CITYSCAPES if layout not in ("folder", "images") else None
    if layout == "folder":
        if labelled or (root / "classes.json").exists():
            classes = read_classes(root / "classes.json")
        elif label_kind:
            notes.append("labels are not used, as there is no classes.json")
            label_kind, label_paths = None, [None] * len(images)
    if labelled:
        without = label_paths.count(None)
        if without:
            notes.append(f"{without:,} of {_count(len(images), 'image')} left out for want of a label")
        images = [image for image, label in zip(images, label_paths, strict=True) if label]
        label_paths = [label for label in label_paths if label]
    split = "+".join(filter(None, folders)) or None
    notes = tuple(f"{name}: {note}" for note in notes)
    return ImageSet(name, root, layout, split, tuple(images), tuple(label_paths), label_kind, classes, notes)


def image_files(root: Path) -> tuple[Path, ...]:
    """Every image of a data set that is no label, over all splits, sorted; below `locate(root).root`.

    Raises InputError when there is none.
    """
    tree = locate(root)
    folders = [folder for layout in parts_of(tree.layout) for folder in splits_of(tree.root, layout).values()]
    images = tuple(sorted(image for folder in folders for image in images_in(folder)))
    if not images:
        raise InputError(f"{root}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    return images


def companions(root: Path) -> tuple[Path, ...]:
    """The files that make a tree a labelled data set beside its images: label files, classes.json, LICENSE*; sorted.

    BDD100K's time of day is none of them: a translated day image is no day image. Below `locate(root).root`.
    """
    tree = locate(root)
    files = {path for path in tree.root.glob("*") if path.name == "classes.json" or path.name.startswith("LICENSE")}
    for _, pattern in (label for layout in parts_of(tree.layout) for label in _fitting(layout, None)):
        top, ending = pattern.split("{}")
        files.update(path for path in walk(tree.root / top) if path.name.endswith(ending))
    return tuple(sorted(path for path in files if path.is_file()))


def labels_of(root: Path) -> tuple[dict[Path, list[tuple[str, Path]]], Classes | None]:
    """Every label file of each image of `image_files`, with its kind, those in colours left out; and their classes,
    None where no image has one.

    Raises InputError where classes.json is needed and cannot be read.
    """
    tree, found = locate(root), {}
    for layout in parts_of(tree.layout):
        for folder in splits_of(tree.root, layout).values():
            images = sorted(images_in(folder))
            for image, stem in zip(images, _stems(tree.root, layout, images), strict=True):
                paths = [(kind, tree.root / pattern.format(stem)) for kind, pattern in _fitting(layout, None)]
                found[image] = [(kind, path) for kind, path in paths if os.path.isfile(path)]
    found = {image: files for image, files in found.items() if files}
    if not found:
        return {}, None
    return found, read_classes(tree.root / "classes.json") if tree.layout == "folder" else CITYSCAPES


def counterparts(images: Sequence[Path], root: Path, translated: Path) -> list[Path] | None:
    """The translation of each image: the file of the same path below translated as below root, of any image suffix.

    None unless every image has one; `missing` tells which have none.
    """
    found = list(_counterparts(images, root, translated))
    return None if None in found else found


def missing(images: Sequence[Path], root: Path, translated: Path) -> list[Path]:
    """The images that have no counterpart in translated."""
    found = _counterparts(images, root, translated)
    return [image for image, counterpart in zip(images, found, strict=True) if counterpart is None]


def _counterparts(images: Sequence[Path], root: Path, translated: Path) -> Iterator[Path | None]:
    translated = locate(translated).root if os.path.isdir(translated) else translated
    for image in images:
        path = translated / image.relative_to(root)
        candidates = (path, *(path.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)))
        yield next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _choose(found: dict[str | None, Path], splits: Sequence[str] | None, where: str, layout: str):
    """The folders of the splits asked for; all where there are no splits."""
    if not found:
        raise InputError(f"{where}: no images; expected {LAYOUTS[layout].tops[0]}/<split>/")
    if None in found:
        return found
    names = ", ".join(found)
    if splits is None:
        splits = (_scored(found),)
        if splits[0] is None:
            raise InputError(f"{where}: no split to evaluate on, neither val nor test; found {names}: give --split")
    chosen = {split: found[split] for split in splits if split in found}
    if not chosen:
        raise InputError(f"{where}: no split {' or '.join(map(repr, splits))}; found {names}")
    return chosen


def _scored(found: dict[str | None, Path]) -> str | None:
    """The split to evaluate on: val, else test, else the only one."""
    only = next(iter(found)) if len(found) == 1 else None
    return next((split for split in ("val", "test") if split in found), only)


def _labelled(tree: Tree) -> str:
    """The layout of what has labels: in BDD100K the 10k images, where they are."""
    is_10k = tree.layout == "BDD100K" and splits_of(tree.root, "BDD100K 10k")
    return "BDD100K 10k" if is_10k else tree.layout


def _fitting(layout: str, labels: str | None) -> list[tuple[str, str]]:
    """The (kind, pattern) of a layout that answer to `--labels`; plain train ids do to labelTrainIds."""
    wanted = {"labelIds": ("labelIds",), "labelTrainIds": ("labelTrainIds", "trainIds")}
    readable = [label for label in LAYOUTS[layout].labels if label[0] not in COLORED]
    return [label for label in readable if labels is None or label[0] in wanted[labels]]


def _expected_labels(layout: str, labels: str | None) -> str:
    if layout == "images":
        return "images/<split>/ with labels/<split>/**/*.png and classes.json"
    patterns = [pattern for part in parts_of(layout) for _, pattern in _fitting(part, labels)]
    files = " or ".join(pattern.format("<split>/**/*") for pattern in patterns)
    return f"images/10k/<split> with {files}" if layout == "BDD100K" else files


def _find_labels(root: Path, layout: str, images: list[Path], labels: str | None, where: str):
    """(label kind, its pattern, the label or None of each image) by the first pattern that any image has a label of."""
    patterns = LAYOUTS[layout].labels
    if patterns and not _fitting(layout, labels):
        raise InputError(f"{where}: the labels of this layout are train ids; leave --labels {labels} out")
    stems = _stems(root, layout, images)
    for kind, pattern in _fitting(layout, labels) + [label for label in patterns if label[0] in COLORED]:
        paths = [root / pattern.format(stem) for stem in stems]
        paths = [path if os.path.isfile(path) else None for path in paths]
        if any(paths):
            return kind, pattern, paths
    return None, None, [None] * len(images)


def _top(root: Path, layout: str) -> Path:
    return next(root / top for top in LAYOUTS[layout].tops if os.path.isdir(root / top))


def _stems(root: Path, layout: str, images: Sequence[Path]) -> list[str]:
    """What `{}` in a label's pattern stands for, of each image."""
    top, ending = _top(root, layout), LAYOUTS[layout].ending
    return [(image.relative_to(top).parent / image.stem.removesuffix(ending)).as_posix() for image in images]


def _without_image(
    root: Path, layout: str, pattern: str, folders: Iterable[Path], images: Sequence[Path]
) -> list[Path]:
    """The labels of a pattern, in these folders of images, of which no image is there."""
    before, ending = pattern.split("{}")
    stems = set(_stems(root, layout, images))
    labels = (
        path
        for folder in folders
        for path in walk(root / before / folder.relative_to(_top(root, layout)))
        if path.name.endswith(ending)
    )
    return [path for path in labels if path.relative_to(root / before).as_posix().removesuffix(ending) not in stems]


def _time_folder(folder: Path, time: str) -> Path:
    """Dark Zurich keeps the day images of val apart, under val_ref/day."""
    reference = folder.with_name(f"{folder.name}_ref") / time
    return folder / time if os.path.isdir(folder / time) or not os.path.isdir(reference) else reference


def _without_scored(root: Path, images: list[Path], splits: dict, notes: list[str]) -> list[Path]:
    """BDD100K's two sets overlap: what the 10k's val or test scores must not enter a training through the 100k."""
    scored = {split: folder for split, folder in splits_of(root, "BDD100K 10k").items() if split in ("val", "test")}
    names = {image.stem for split, folder in scored.items() if split not in splits for image in images_in(folder)}
    kept = [image for image in images if image.stem not in names]
    if len(kept) < len(images):
        notes.append(f"{_count(len(images) - len(kept), 'image')} left out that the 10k set scores")
    return kept


def _select_time(root: Path, layout: str, images: list[Path], folders: dict, time: str, notes: list[str], where: str):
    """The BDD100K images that the tags call day, twilight or night; those without a tag are counted, never guessed."""
    # the 10k images of a split are in any split of the 100k, or in none
    splits = ("train", "val", "test") if layout == "BDD100K 10k" else [split or "train" for split in folders]
    times = times_of_day(root / "labels", splits)
    if not times:
        raise InputError(f"{where}: no time of day; expected {expected_files(splits[0])}{hint(root, 'BDD100K')}")
    tag = {"day": "daytime", "twilight": "dawn/dusk", "night": "night"}[time]
    counts = Counter(times.get(image.stem, "undefined") for image in images)
    unknown = f"; {counts['undefined']:,} without a time of day are left out" if counts["undefined"] else ""
    notes.append(f"{counts[tag]:,} of {_count(len(images), 'image')} are tagged {tag}{unknown}")
    return [image for image in images if times.get(image.stem) == tag]
