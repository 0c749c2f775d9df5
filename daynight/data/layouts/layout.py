"""What a layout is: where the images and labels of a data set lie, and what sets it apart from others."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from daynight.data.labels import CITYSCAPES, COLORS, KINDS, Classes, LabelKind
from daynight.system.errors import InputError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
SPLIT, FILE = "{split}", "**/*"


class Layout:
    """A data set in the folder `root`. A subclass describes one published data set: it sets and overrides what differs.

    Patterns are paths below root. `{split}` stands for the folder of a split, anywhere in the path; `**/*` for what an
    image and its label have in common, at any depth: "leftImg8bit/{split}/**/*_leftImg8bit" goes with
    "gtFine/{split}/**/*_gtFine_labelIds.png". Images may have any image suffix.
    """

    name: str  # in messages and results
    short: str | None = None  # of its folder under the data root, by convention
    images: tuple[str, ...]  # patterns; the first that is there is read
    labels: tuple[tuple[LabelKind, str], ...] = ()  # (kind, pattern); the first that any image has is read
    label_notes: dict[str, str] = {}  # kind: what to say where `--labels` did not ask for it
    split_names: dict[str, str] = {}  # folder: split, where a split's folder has another name
    companions: tuple[str, ...] = ("classes.json", "LICENSE*")  # files to copy with the images and labels
    night_only = False
    night_by_tags = False  # whether X-night names those labelled images of X that its tags call night

    def __init__(self, root: Path, notes: tuple[str, ...] = ()):
        """notes: remarks on where the data set was found, to be printed."""
        self.root, self.notes = root, notes

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder has this layout."""
        return has(root, *(folder_of(pattern).split(SPLIT)[0] for pattern in cls.images))

    @classmethod
    def check_misplaced(cls, root: Path, inside: Sequence[Path]) -> None:
        """Raises InputError where root, which nothing recognises, is this data set unpacked to a wrong place.

        inside: root and the folders in it.
        """

    def parts(self) -> list["Layout"]:
        """The sets of images in the tree, each a layout of its own; the last has the labels."""
        return [self]

    def labelled(self) -> "Layout":
        """The set of images that has the labels, if it is there."""
        part = self.parts()[-1]
        return part if part.splits else self

    @cached_property
    def _found(self) -> tuple[str, dict[str | None, Path]]:
        """The pattern of images that is there, and the folder of images of each split."""
        for pattern in self.images:
            splits = self._splits_of(pattern)
            if splits:
                return of_split(pattern, None) if None in splits else pattern, splits
        return self.images[0], {}

    def _splits_of(self, pattern: str) -> dict[str | None, Path]:
        flat = self.root / folder_of(of_split(pattern, None))
        if SPLIT not in pattern:
            return {None: flat}
        top, below = folder_of(pattern).split(SPLIT)
        splits = {}
        for name, folder in folders_in(self.root / top).items() if has(self.root, top) else ():
            # ACDC and Dark Zurich keep day images of the same places in <split>_ref
            if not name.endswith("_ref") and os.path.isdir(folder / below[1:]):
                splits[self.split_names.get(name, name)] = folder / below[1:]
        # images beside train or val are strays; without either there are no splits
        return splits if {"train", "val"} & splits.keys() or not holds_images(flat) else {None: flat}

    @property
    def splits(self) -> dict[str | None, Path]:
        """The folder of images of each split; {None: folder} where there are no splits."""
        return self._found[1]

    @property
    def ending(self) -> str:
        """What the stems of the images end in: "_leftImg8bit"."""
        return self._found[0].split(FILE)[1]

    def inside(self, path: Path) -> tuple[str | None, Path]:
        """The split's folder in the path of an image or a folder of images, and the rest of the path below it."""
        folders = self._found[0].split("/")[:-2]
        parts = path.relative_to(self.root).parts
        return parts[folders.index(SPLIT)] if SPLIT in folders else None, Path(*parts[len(folders) :])

    def label_of(self, image: Path, pattern: str) -> Path:
        """Where the label of an image lies by a pattern, whether it is there or not."""
        split, inside = self.inside(image)
        stem = inside.parent / inside.stem.removesuffix(self.ending)
        return self.root / of_split(pattern, split).replace(FILE, stem.as_posix())

    def label_files(self, pattern: str, folder: Path) -> Iterator[Path]:
        """The labels of a pattern for the split that has this folder of images."""
        before, ending = of_split(pattern, self.inside(folder)[0]).split(FILE)
        return (path for path in walk(self.root / before) if path.name.endswith(ending))

    def kinds(self, labels: str | None = None) -> list[tuple[LabelKind, str]]:
        """The (kind, pattern) that can be read and answer to `--labels`; plain train ids answer to labelTrainIds."""
        wanted = {"labelIds": ("labelIds",), "labelTrainIds": ("labelTrainIds", "trainIds")}
        return [(k, p) for k, p in self.labels if not k.refused and (labels is None or k in wanted[labels])]

    def find_labels(self, images: Sequence[Path], labels: str | None, where: str):
        """(kind, pattern, the label or None of each image) by the first pattern that any image has a label of.

        Kinds that are refused come last. Raises InputError where the layout has none of the kind asked for.
        """
        kinds = self.kinds(labels)
        if self.labels and not kinds:
            known = f"{self.labels[0][0].value}s"
            raise InputError(f"{where}: the labels of this layout are {known}; leave --labels {labels} out")
        for kind, pattern in kinds + [label for label in self.labels if label[0].refused]:
            paths = [self.label_of(image, pattern) for image in images]
            paths = [path if os.path.isfile(path) else None for path in paths]
            if any(paths):
                return kind, pattern, paths
        return None, None, [None] * len(images)

    def expected_images(self) -> str:
        """Where images should lie, in words: "; expected leftImg8bit/<split>/", or "" where that is anywhere."""
        folder = shown(folder_of(self.images[0]))
        return f"; expected {folder}/" if folder else ""

    def expected_labels(self, labels: str | None) -> str:
        """The label files that `find_labels` looks for, in words."""
        return " or ".join(shown(pattern) for _, pattern in self.kinds(labels))

    def classes(self, needed: bool) -> Classes | None:
        """What the train ids mean; None where nothing says so. Raises InputError where it is `needed` nevertheless."""
        return CITYSCAPES

    def choose(
        self, images: list[Path], splits: Sequence[str | None], time: str | None, where: str
    ) -> tuple[list[Path], list[str]]:
        """Which of the images of some splits to read, and remarks on the others.

        time: "day", "twilight", "night" or None for all; ignored where the data set does not tell them apart. Raises
        InputError, which begins with `where`, if the files that tell the time are missing.
        """
        return images, []

    def time_of(self, image: Path) -> str | None:
        """The time of day of an image in the data set's words; None where it does not tell."""
        return None

    def missing_times(self) -> str:
        """Which files that tell the time of day are missing, in words; "" if none."""
        return ""

    @classmethod
    def apart(cls, root: Path) -> list[Path]:
        """Folders up to three levels below root with the name of one of the layout's, but not in its place."""
        patterns = [*cls.images, *(pattern for _, pattern in cls.labels)]
        names, found, level = {pattern.split("/")[0] for pattern in patterns} | cls.split_names.keys(), [], [root]
        for _ in range(3):
            level = [inner for folder in level for inner in folders_in(folder).values()]
            found += [folder for folder in level if folder.name in names and folder.parent != root]
            level = [folder for folder in level if folder.name not in names]
        return found

    def hint(self) -> str:
        """What to move, where a part was not found in its place: "; A belongs at B", or nothing."""
        return "".join(f"; {folder} belongs at {self.root / folder.name}" for folder in self.apart(self.root))


def of_kinds(pattern: str, *kinds: str) -> tuple[tuple[LabelKind, str], ...]:
    """(kind, pattern) of label files that end in the name of their kind."""
    return tuple((KINDS.get(kind, COLORS), pattern.replace("{kind}", kind)) for kind in kinds)


def of_split(pattern: str, split: str | None) -> str:
    """A pattern with the folder of a split in it, or of a tree without splits."""
    return pattern.replace(SPLIT, split) if split else pattern.replace(f"{SPLIT}/", "")


def folder_of(pattern: str) -> str:
    """The folder of a pattern: "leftImg8bit/{split}"."""
    return pattern.split(FILE)[0].rstrip("/")


def shown(pattern: str) -> str:
    return pattern.replace(SPLIT, "<split>")


def counted(number: int, noun: str) -> str:
    """ "1 image" or "2,000 images"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def has(root: Path, *folders: str) -> bool:
    """Whether any of these folders is in root."""
    return any(os.path.isdir(root / folder) for folder in folders)


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder, sorted, without hidden ones; links are followed, but not in circles.

    Nothing where there is no folder. Raises InputError for what cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(real):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):  # also ._name, which macOS puts beside each file
            continue
        if not entry.name.isascii() and entry.name != os.fsencode(entry.name).decode(errors="replace"):
            raise InputError(f"{path}: its name is not UTF-8; rename it")
        if os.path.isdir(path):
            yield from walk(path, (*above, real))
        elif os.path.isfile(path):
            yield path
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: a link to a file that is not there; fetch the file or remove the link")


def images_in(folder: Path) -> Iterator[Path]:
    """The images below a folder."""
    return (path for path in walk(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def folders_in(root: Path) -> dict[str, Path]:
    """The folders in a folder by name, sorted, without hidden ones. Raises InputError where it cannot be read."""
    try:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.name[0] != "." and entry.is_dir())
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from error
    return {name: root / name for name in folders}


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in a folder, if there is one."""
    paths = folder.iterdir() if os.path.isdir(folder) else ()
    return any(path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." for path in paths)
