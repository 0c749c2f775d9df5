"""The images of a data set with their labels, whatever its layout: what to train on, to score, to translate."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from daynight.data.hub_sets import is_data_set
from daynight.data.labels import CITYSCAPES, Classes, LabelKind
from daynight.data.layouts.folder import Images
from daynight.data.layouts.layout import FILE, IMAGE_SUFFIXES, SPLIT, Layout, counted, evenly, is_image, walk
from daynight.data.layouts.tree import locate, resolve, tagged_night
from daynight.data.tables import TABLES, read_meaning, tables_of
from daynight.system.console import say, warn
from daynight.system.errors import InputError, Unlabelled

CONTENTS, TIMES = " (contents)", " (times)"  # the latter may differ where data are copied


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
    label_kind: LabelKind | None = None
    classes: Classes | None = None
    notes: tuple[str, ...] = ()
    ending: str = ""

    def __str__(self) -> str:
        """One line: "cs: Cityscapes, train, 2,975 images, 2,975 labels (labelIds), 19 classes"."""
        labelled = len(self.labels) - self.labels.count(None)
        kinds = f", {counted(labelled, 'label')} ({self.label_kind}), {len(self.classes)} classes" if labelled else ""
        return self.unlabelled() + (kinds or ", no labels")

    def unlabelled(self) -> str:
        """The same of a set whose labels are not used."""
        return f"{self.name}: " + ", ".join(filter(None, [self.layout, self.split, counted(len(self.images), "image")]))

    def stem(self, image: Path) -> str:
        """The name of an image without its ending: `aachen_000000_000019`."""
        return image.stem.removesuffix(self.ending)

    def fingerprint(self) -> dict[str, str]:
        """That of images and labels, see `fingerprint`, and of what the labels' ids mean."""
        kind, told = self.label_kind, [x.read_bytes() for x in sorted(self.root.glob("config*.json")) if x.is_file()]
        meaning = f"{kind.meaning} {self.classes} {told}" if kind else ""
        found = {" (classes.json, label ids)": hashlib.sha256(meaning.encode()).hexdigest()[:12]}
        return fingerprint(self.root, self.images + self.labels) | found

    def real_paths(self) -> list[Path]:
        """The images as paths that are the same however their folder was given."""
        root = self.root.resolve()
        return [root / path.relative_to(self.root) for path in self.images]

    def only(self, numbers: Sequence[int]) -> "ImageSet":
        """The set with only these of its images."""
        images, labels = (tuple(paths[i] for i in numbers) for paths in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


def fingerprint(root: Path, files: Sequence[Path | None]) -> dict[str, str]:
    """12 hex digits each for names, contents and times of files below root. The keys go behind the files' option."""
    found = states(root, files or [None])
    digests = (hashlib.sha256("".join(x).encode(errors="surrogateescape")) for x in zip(*found, strict=True))
    return {end: found.hexdigest()[:12] for end, found in zip(("", CONTENTS, TIMES), digests, strict=True)}


def states(root: Path, files: Sequence[Path | None]) -> list[tuple[str, str, str]]:
    """Relative name with length, digest and time of each file. What is compressed and over 64 KiB is read at its begin,
    in its midst and at its end only: a PNG ends in a checksum of all pixels."""

    def state(path: Path | None) -> tuple[str, str, str]:
        if path is None:
            return "\n", "\n", "\n"
        status, content, part = path.stat(), hashlib.sha256(), 2**14
        whole = status.st_size <= 4 * part or path.suffix.lower() in (".bmp", ".tif", ".tiff")
        # whoever decodes the image will say what is wrong with it
        with suppress(OSError), open(path, "rb") as file:
            for start in (0,) if whole else (0, status.st_size // 2, status.st_size - part):
                file.seek(start)
                content.update(file.read(None if whole else part))
        name = path.relative_to(root).as_posix()
        return f"{name} {status.st_size}\n", f"{content.hexdigest()}\n", f"{status.st_mtime_ns}\n"

    parts = [files[i : i + 64] for i in range(0, len(files), 64)]  # a task for each file takes longer
    with ThreadPoolExecutor(16) as pool:
        return [found for part in pool.map(lambda part: list(map(state, part)), parts) for found in part]


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

    splits: read together, as far as they exist; None for the one to evaluate on. time: "day", "twilight" or "night",
    where the layout tells them apart. labels: of `--labels`. labelled: leave out what has no label. option: for
    messages. Raises InputError when there is no such data set, split, image or label.
    """
    whole = tagged_night(name, data_root)
    layout = locate(resolve(whole or name, data_root, option, labelled))
    where = f"{option}: {layout.root}"
    if time in ("day", "twilight") and (whole or layout.night_only):
        raise InputError(f"{where}: {layout.name} has night images only; give it as a night set")
    if whole:
        layout, time = layout.parts()[-1], "night"
    elif labelled or splits is None or not layout.splits:
        layout = layout.labelled()
    chosen = _choose(layout, splits, where)
    for split in layout.imageless() if splits is None else ():
        if split not in chosen and _scored({*layout.splits, split}) == split:
            warn(f"{where}: {split} has labels and no images, so {chosen[0] or layout.root} is read")
    found = _gather(name, layout, chosen, option, time, labels, labelled)
    other = f"{name}: not the 87 images that papers call BDD100K-night; examples/data.md (--list) has those"
    return replace(found, notes=(*found.notes, other)) if whole else found


def check_images(place: Path, option: str) -> None:
    """Raises InputError for a folder without any image, and without a data set of Hugging Face's."""
    if place.is_dir() and not is_data_set(place) and not any(map(is_image, walk(place))):
        raise InputError(f"{option}: {place}: no images; expected {locate(place).expected()}")


def _choose(layout: Layout, splits: Sequence[str] | None, where: str) -> list[str | None]:
    """Those of the splits asked for that are there; [None] where there are no splits."""
    found = layout.splits
    if not found:
        raise InputError(f"{where}: no images; expected {layout.expected()}")
    if None in found:
        return [None]
    chosen = [split for split in splits or [_scored(found)] if split in found]
    if not chosen:
        asked = f"split {' or '.join(map(repr, splits))}" if splits else "split to score, neither val nor test"
        raise InputError(f"{where}: no {asked}; found {', '.join(found)}{'' if splits else ': give --split'}")
    return chosen


def _scored(splits: Collection[str | None]) -> str | None:
    """The split to evaluate on: val, else test, else the only one."""
    return next(iter(splits)) if len(splits) == 1 else next((s for s in ("val", "test") if s in splits), None)


def _gather(name, layout: Layout, splits: list, option: str, time=None, labels=None, labelled=False) -> ImageSet:
    """The images of some splits, and their labels; see `load`."""
    root, split = layout.root, "+".join(filter(None, splits)) or None
    where, looked_in = f"{option}: {root}", f"{root}, {split}" if split else root
    keys = {path: key for key, path in layout.files(layout.pattern, splits)}
    images, remarks = layout.choose(sorted(keys), splits, time, where)
    notes = [*layout.notes, *remarks]
    if not images:
        wanted = f"{time} images" if keys and time else "images"
        raise InputError("; ".join([f"{option}: no {wanted} in {looked_in}; expected {layout.expected()}", *notes]))

    kind, files = layout.find_labels({keys.get(image) for image in images}, splits, labels, where)
    if orphans := [files[key] for key in files.keys() - keys.values()]:
        notes.append(f"{counted(len(orphans), 'label')} without an image, as {min(orphans).relative_to(root)}")
    if labels is None and kind in layout.label_notes:
        notes.append(layout.label_notes[kind])
    if kind and kind.refused:
        notes.append(f"labels are {kind.refused} ({min(files.values()).relative_to(root)}) and not used")
        kind = None
    if labelled and not kind:
        message = f"{where}: no labels for the images in {looked_in}; {looked_for(layout, images)}"
        raise Unlabelled("; ".join([message, *notes]))
    classes = None if layout.own_classes else CITYSCAPES
    if kind and layout.own_classes:
        classes, kind, remarks = layout.meaning(kind, sorted(files.values()), labels)
        notes += remarks
        if not kind:
            missing = f"there is no classes.json in {root}, and none of {', '.join(TABLES)}"
            if labelled:
                raise InputError(f"{where}: labels without names of classes: {missing}; examples/data.md shows them")
            notes.append(f"labels are not used, as {missing}")

    paths = [files.get(keys.get(image)) if kind else None for image in images]
    if labelled and None in paths:
        notes.append(f"{paths.count(None):,} of {counted(len(images), 'image')} left out for want of a label")
        images, paths = zip(*(pair for pair in zip(images, paths, strict=True) if pair[1]), strict=True)
    notes, ending = (f"{name}: {note}" for note in notes), layout.pattern.split(FILE)[1]
    images, paths, notes = map(tuple, (images, paths, notes))
    return ImageSet(name, root, layout.name, split, images, paths, kind, classes, notes, ending)


def looked_for(layout: Layout, images: Sequence[Path]) -> str:
    """Where labels were looked for, and the file that is nearest to being one of them, in words."""
    tried = dict.fromkeys(pattern.split(FILE)[0].replace(SPLIT, "<split>") or "beside" for _, pattern in layout.labels)
    ends = dict.fromkeys(pattern.split(FILE)[1] for _, pattern in layout.labels)
    told = f"looked in {' '.join(tried)} for *{', *'.join(filter(None, ends))}; " * bool(tried)
    own = {path for _, path in layout.files(layout.pattern)}
    others = islice((path for path in walk(layout.root) if is_image(path) and path not in own), 2000)
    others = {path.stem: path.relative_to(layout.root).as_posix() for path in others}
    for near in get_close_matches(images[0].stem, others, 1, 0.3):
        told += f"the nearest file is {others[near]}; "
    more = "; examples/import_labels.py converts labelme's polygons and pictures with their labels side by side"
    return f"{told}expected {layout.expected()}{more * layout.own_classes}"


def describe(name: str, data_root: Path, option: str, labels=None, asked: str | None = None) -> list[str]:
    """What a data set holds, in lines: its splits, their images by time of day, remarks, and the split that is scored.

    `labels` as of `load`; `asked`: the split to score. Raises InputError as `load` does.
    """
    if tagged_night(name, data_root):
        found = load(name, data_root, option, splits=asked and (asked,), labels=labels)
        return [str(found), *found.notes]
    layout = locate(resolve(name, data_root, option))
    lines, scored, bare = [f"{name}: {note}" for note in layout.notes], [], None
    for part in layout.parts():
        part.notes, imageless = (), part.imageless()  # the notes are said above
        for split in dict.fromkeys((*part.splits, *imageless)):
            if not any(part.files(part.pattern, [split])):
                but = ", but labels" * (split in imageless)
                lines.append(f"{name}: {part.name}, {split or part.root}, no images{but}")
                continue
            found = _gather(name, part, [split], option, labels=labels)
            times = Counter(filter(None, map(part.time_of, found.images)))
            lines += [str(found), *found.notes]
            lines += [f"  {time}: {counted(times[time], 'image')}" for time in sorted(times)]
            bare = bare or found.images
            if found.label_kind and split == (asked or _scored(part.splits)):
                scored = [f"{name}: eval scores {part.name}, {split or 'all images'}"]
    if bare and not scored:
        lines.append(f"{name}: no labels to score; {looked_for(layout.labelled(), bare)}")
    try:
        layout.choose([], ["<split>"], "night", name)
    except InputError as error:  # which files would tell the time of day
        lines.append(str(error))
    return lines + scored


def labelled_splits(name: str, data_root: Path, option: str, labels: str | None = None) -> list[ImageSet]:
    """Each split of a data set that has labels, also the images that have none."""
    if tagged_night(name, data_root):
        return []
    layout = locate(resolve(name, data_root, option)).labelled()
    splits = [split for split in layout.splits if any(layout.files(layout.pattern, [split]))]
    found = [_gather(name, layout, [split], option, labels=labels) for split in splits]
    return [image_set for image_set in found if image_set.label_kind]


def image_files(root: Path) -> tuple[Path, ...]:
    """Every image of a data set, of all splits, sorted, without its labels; below `locate(root).root`.

    Raises InputError when there is none.
    """
    layout, suffixes = locate(root), ", ".join(sorted(IMAGE_SUFFIXES))
    images = tuple(sorted(path for part in layout.parts() for _, path in part.files(part.pattern)))
    if not images:
        raise InputError(f"{root}: no images ({suffixes}) in it; expected {layout.expected()}")
    return images


def companions(root: Path) -> tuple[Path, ...]:
    """The files that make a tree a labelled data set beside its images: labels, their classes, the licence; sorted.

    Files with the time of day are not among them: a translated day image is no day image. Below `locate(root).root`.
    """
    layout = locate(root)
    beside = ("classes.json", "config*.json", "LICENSE*")
    files = {path for pattern in beside for path in layout.root.glob(pattern) if path.is_file()}
    files.update(path for path in layout.class_tables() if layout.root in path.parents)
    for part in layout.parts():
        patterns = (pattern for kind, pattern in part.labels if not kind.refused)
        files.update(path for pattern in patterns for _, path in part.files(pattern))
    return tuple(sorted(files))


def own_classes(root: Path) -> Classes | None:
    """The classes of own data by a table beside them, None where there is no table."""
    table, own = tables_of(locate(root).class_tables())
    return read_meaning(table, own)[0] if table or own else None


def counterparts(images: Sequence[Path], root: Path, translated: Path) -> tuple[list[Path], list[Path]]:
    """The translations of images, and the images that have none.

    A translation has the same path below `translated` as the image below `root`, with any image suffix.
    """
    if os.path.isdir(translated):
        translated = locate(translated).root
    found, missing = [], []
    for image in images:
        path = translated / image.relative_to(root)
        candidates = (path, *(path.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)))
        there = next(filter(os.path.isfile, candidates), None)
        found.append(there) if there else missing.append(image)
    return found, missing


def check_disjoint(days: Sequence[ImageSet], nights: Sequence[ImageSet]) -> None:
    """Raises InputError where night images are day images too: there is nothing to learn from such pairs."""
    day_images = {path for image_set in days for path in image_set.real_paths()}
    for image_set in nights:
        if shared := len(day_images.intersection(image_set.real_paths())):
            found = f"{shared:,} of its {counted(len(image_set.images), 'image')} are day images too"
            of = " or ".join(day.name for day in days)
            raise InputError(f"--night {image_set.name}: {found} (of {of}); give a folder of night images")


def announce(sets: Sequence[ImageSet], places: dict[str, str | None], labelled: int | None = None) -> None:
    """Say what each set holds, with its remarks; of all but the first `labelled` sets labels are not used.

    Raises InputError if one of the `places`, by option, lies among the images of a set, where what is written would be
    read as an image the next time.
    """
    for number, image_set in enumerate(sets):
        part = Path(os.path.commonpath(image_set.images)).relative_to(image_set.root).parts[:1]
        top = Path(os.path.realpath(image_set.root.joinpath(*part if image_set.layout != Images.name else ())))
        for option, place in places.items():
            here = Path(os.path.realpath(place)) if place else top.parent
            if top in (here, *here.parents):
                raise InputError(f"{option} {place}: lies among the images of {image_set.name}; give one beside them")
        say(str(image_set) if labelled is None or number < labelled else image_set.unlabelled())
        for note in image_set.notes:
            say(f"  {note}")


def thinned(image_set: ImageSet, count: int) -> ImageSet:
    """The set with at most `count` of its images, evenly spaced."""
    return image_set.only(evenly(len(image_set.images), count))


def without(image_set: ImageSet, others: Sequence[ImageSet]) -> ImageSet:
    """The images of a set that are in none of the others."""
    taken = {path for other in others for path in other.real_paths()}
    return image_set.only([i for i, path in enumerate(image_set.real_paths()) if path not in taken])


def hold_out(image_set: ImageSet, data_root: Path, option: str, count: int, time: str, labelled: bool) -> ImageSet:
    """At most `count` images to validate on, evenly spaced, of the val split.

    If there is none (with labels, if `labelled`), at most a tenth of the set's own images, which `without` takes out.
    """
    with suppress(InputError):
        found = load(image_set.name, data_root, option, splits=("val",), time=time, labelled=labelled)
        if found.split == "val":
            return thinned(found, count)
    own = replace(image_set, split="a tenth, not trained on")
    return thinned(own, min(count, len(image_set.images) // 10))
