"""The images of a data set with their labels, whatever its layout: what to train on, to score, to translate."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daynight.data.labels import Classes, LabelKind
from daynight.data.layouts.layout import IMAGE_SUFFIXES, Layout, counted, images_in
from daynight.data.layouts.tree import locate, resolve, tagged_night
from daynight.system.console import say
from daynight.system.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """The images of some splits of a data set, each with its label where it has one.

    images and labels are below root; label i belongs to image i, in the order of the images' paths. layout: its name.
    label_kind: the kind that `read_label` needs. ending: what the stems of all images end in.
    """

    name: str
    root: Path
    layout: str
    split: str | None
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    label_kind: LabelKind | None
    classes: Classes | None
    notes: tuple[str, ...]
    ending: str = ""

    def __str__(self) -> str:
        """One line: "cs: Cityscapes, train, 2,975 images, 2,975 labels (labelIds), 19 classes"."""
        labelled = sum(label is not None for label in self.labels)
        parts = [self.layout, self.split, counted(len(self.images), "image")]
        parts.append(f"{counted(labelled, 'label')} ({self.label_kind})" if labelled else "no labels")
        if labelled:
            parts.append(f"{len(self.classes)} classes")
        return f"{self.name}: " + ", ".join(part for part in parts if part)

    def stem(self, image: Path) -> str:
        """The name of an image without its ending: `aachen_000000_000019`."""
        return image.stem.removesuffix(self.ending)

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

    splits: read together, as far as they exist; None for the one to evaluate on (val, else test, else the only one).
    time: "day", "twilight" or "night", where the layout tells them apart. labels: "labelIds" or "labelTrainIds"; None
    for what the layout prefers. labelled: leave out what has no label. option: of the command line, for messages.
    Raises InputError when there is no such data set, split, image or label.
    """
    whole = tagged_night(name, data_root)
    layout = locate(resolve(whole or name, data_root, option))
    if time in ("day", "twilight") and (whole or layout.night_only):
        raise InputError(f"{option}: {layout.root}: {layout.name} has night images only; give it as a night set")
    if whole:
        layout, time = layout.parts()[-1], "night"
    elif labelled or splits is None or not layout.splits:
        layout = layout.labelled()
    return _gather(name, layout, _choose(layout, splits, f"{option}: {layout.root}"), option, time, labels, labelled)


def check_disjoint(days: Sequence[ImageSet], nights: Sequence[ImageSet]) -> None:
    """Raises InputError where night images are day images too: there is nothing to learn from such pairs."""
    day_images = {path for image_set in days for path in _real(image_set)}
    for image_set in nights:
        shared = sum(path in day_images for path in _real(image_set))
        if shared:
            raise InputError(
                f"--night {image_set.name}: {shared:,} of its {counted(len(image_set.images), 'image')} are day images "
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
    """At most `count` images to validate on, evenly spaced, of the val split.

    If there is none (with labels, if `labelled`), at most a tenth of the set's own images, which `without` takes out.
    """
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
    """What a data set holds, in lines: its splits, their images by time of day, remarks, and the split that is scored.

    Raises InputError as `load` does.
    """
    if tagged_night(name, data_root):
        found = load(name, data_root, option, splits=None)
        return [str(found), *found.notes]
    layout = locate(resolve(name, data_root, option))
    lines, kinds = [f"{name}: {note}" for note in layout.notes], {}
    for part in layout.parts():
        part.notes = ()  # said above
        for split, folder in part.splits.items():
            if next(images_in(folder), None) is None:
                lines.append(f"{name}: {part.name}, {split or folder}, no images")
                continue
            found = _gather(name, part, {split: folder}, option)
            counts = Counter(part.time_of(image) for image in found.images)
            lines += [str(found), *found.notes]
            lines += [f"  {time}: {counted(count, 'image')}" for time, count in sorted(counts.items()) if time]
            kinds[part.name, split] = found.label_kind
    if layout.missing_times():
        lines.append(f"{name}: {layout.missing_times()}")
    scored = layout.labelled()
    split = _scored(scored.splits)
    if split and kinds.get((scored.name, split)):
        lines.append(f"{name}: eval scores {scored.name}, {split}")
    if not kinds:
        raise InputError(f"{option}: {layout.root}: no images{scored.expected_images()}")
    return lines


def _gather(name, layout: Layout, folders: dict, option: str, time=None, labels=None, labelled=False) -> ImageSet:
    """The images in the folders of some splits, and their labels; see `load`."""
    where, notes = f"{option}: {layout.root}", list(layout.notes)
    there = sorted(image for folder in folders.values() for image in images_in(folder))
    images, remarks = layout.choose(there, list(folders), time, where)
    notes += remarks
    looked_in = " and ".join(str(folder) for folder in folders.values())
    if not images:
        wanted = f"{time} images" if there and time else "images"
        raise InputError("; ".join([f"{option}: no {wanted} in {looked_in}", *notes]))

    kind, pattern, paths = layout.find_labels(images, labels, where)
    if kind:
        known = {layout.label_of(image, pattern) for image in there}
        files = (path for folder in folders.values() for path in layout.label_files(pattern, folder))
        orphans = [path for path in files if path not in known]
        if orphans:
            notes.append(f"{counted(len(orphans), 'label')} without an image, as {orphans[0].relative_to(layout.root)}")
        if labels is None and kind in layout.label_notes:
            notes.append(layout.label_notes[kind])
        if kind.refused:
            refused = f"labels are {kind.refused} ({next(filter(None, paths)).relative_to(layout.root)})"
            if labelled:
                raise InputError(f"{where}: {refused}; expected {layout.expected_labels(labels)}")
            notes.append(f"{refused} and not used")
            kind = None
    if labelled and not kind:
        message = f"{where}: no labels for the images in {looked_in}; expected {layout.expected_labels(labels)}"
        raise InputError("; ".join([message, *notes]) + layout.hint())
    classes = layout.classes(needed=labelled)
    if kind and not classes:
        notes.append("labels are not used, as there is no classes.json")
        kind = None
    pairs = [(image, path if kind else None) for image, path in zip(images, paths, strict=True)]
    without = paths.count(None) if labelled else 0
    if without:
        notes.append(f"{without:,} of {counted(len(images), 'image')} left out for want of a label")
        pairs = [(image, path) for image, path in pairs if path]
    images, paths = zip(*pairs, strict=True)
    split, notes = "+".join(filter(None, folders)) or None, tuple(f"{name}: {note}" for note in notes)
    return ImageSet(name, layout.root, layout.name, split, images, paths, kind, classes, notes, layout.ending)


def image_files(root: Path) -> tuple[Path, ...]:
    """Every image of a data set, of all splits, sorted, without its labels; below `locate(root).root`.

    Raises InputError when there is none.
    """
    folders = [folder for part in locate(root).parts() for folder in part.splits.values()]
    images = tuple(sorted(image for folder in folders for image in images_in(folder)))
    if not images:
        raise InputError(f"{root}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    return images


def companions(root: Path) -> tuple[Path, ...]:
    """The files that make a tree a labelled data set beside its images: label files, classes.json, LICENSE*; sorted.

    Files with the time of day are not among them: a translated day image is no day image. Below `locate(root).root`.
    """
    layout = locate(root)
    files = {path for pattern in layout.companions for path in layout.root.glob(pattern) if path.is_file()}
    for part in layout.parts():
        for _, pattern in part.kinds():
            files.update(path for folder in part.splits.values() for path in part.label_files(pattern, folder))
    return tuple(sorted(files))


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


def _choose(layout: Layout, splits: Sequence[str] | None, where: str) -> dict[str | None, Path]:
    """The folders of the splits asked for; all where there are no splits."""
    found = layout.splits
    if not found:
        raise InputError(f"{where}: no images{layout.expected_images()}")
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
