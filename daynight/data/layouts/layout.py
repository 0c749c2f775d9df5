"""What a layout is: where the images and labels of a data set lie, and what sets it apart from others."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from daynight.data.formats import IMAGE_SUFFIXES
from daynight.data.labels import COLORS, KINDS, LabelKind
from daynight.system.errors import InputError

SPLIT, FILE = "{split}", "**/*"
SHOWN = "[!.]*"  # a glob pattern: what is not hidden
JUNK = {"@eaDir", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found"}  # hidden by other systems


class Layout:
    """A data set in the folder `root`. A subclass describes one published data set: it sets and overrides what differs.

    Patterns are paths below root. `{split}` stands for the folder of a split, anywhere in the path; `**/*` for what an
    image and its label have in common: "leftImg8bit/{split}/**/*_leftImg8bit" goes with
    "gtFine/{split}/**/*_gtFine_labelIds.png". Images may have any image suffix.
    """

    name: str  # in messages and results
    short: str | None = None  # of its folder under the data root, by convention
    images: tuple[str, ...]  # patterns; the first that is there is read
    labels: tuple[tuple[LabelKind, str], ...] = ()  # (kind, pattern); the first that any image has is read
    signs: tuple[str, ...] = ()  # a folder with any of these is recognised; by default those in which {split} lies
    label_notes: dict[str, str] = {}  # kind: what to say where `--labels` did not ask for it
    split_names: dict[str, str] = {}  # folder: split, where a split's folder has another name
    own_classes = False  # whether a classes.json says what the train ids mean; else they are Cityscapes'
    night_only = False
    night_by_tags = False  # whether X-night names those labelled images of X that its tags call night

    def __init__(self, root: Path, notes: tuple[str, ...] = ()):
        """notes: remarks on where the data set was found, to be printed.

        Finds `pattern`, the pattern of images that is there, and `splits`: split → the name of its folder, {None: None}
        where images are not split, {} where there is no folder for them; `folders`, the same of images and labels.
        """
        self.root, self.notes = root, notes
        found = {pattern: self._splits_of(pattern) for pattern in self.images}
        self.pattern = next(filter(found.get, found), self.images[0])
        self.splits = found[self.pattern]
        labelled = {split: name for _, pattern in self.labels for split, name in self._splits_of(pattern).items()}
        self.folders = self.splits | labelled | self.splits

    def _splits_of(self, pattern: str) -> dict[str | None, str | None]:
        if SPLIT not in pattern:
            return {None: None}
        place, part = next((i, part) for i, part in enumerate(pattern.split("/")) if SPLIT in part)
        names = [folder.relative_to(self.root).parts[place] for folder in folders(self.root, pattern)]
        tail = part.removeprefix(SPLIT)  # of train_labels
        names = [name.removesuffix(tail) for name in names if name.endswith(tail)]
        # ACDC and Dark Zurich keep day images of the same places in <split>_ref
        splits = {self.split_of(name, names): name for name in names if not name.endswith("_ref")}
        # images beside train or val are strays; without either there are no splits
        beside = self.root.glob(pattern.replace(f"{SPLIT}/", "").split(FILE)[0] + SHOWN)
        return splits if {"train", "val"} & splits.keys() or not any(map(is_image, beside)) else {None: None}

    def split_of(self, name: str, names: list[str]) -> str:
        """The split of a folder, one of several of these names."""
        return self.split_names.get(name, name)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder has this layout, or a part of it."""
        tops = (pattern.split(SPLIT)[0] for pattern in (*cls.images, *(pattern for _, pattern in cls.labels)))
        return any(os.path.exists(root / sign) for sign in cls.signs or tops)

    @classmethod
    def expected(cls) -> str:
        """Where images and labels should lie: "leftImg8bit/<split>/ with gtFine/<split>/**/*_gtFine_labelIds.png"."""
        images = " or ".join(pattern.split(FILE)[0] for pattern in cls.images)
        labels = " or ".join(pattern for kind, pattern in cls.labels if not kind.refused)
        return f"{images} with {labels}{' and classes.json' * cls.own_classes}".replace(SPLIT, "<split>")

    def parts(self) -> list["Layout"]:
        """The sets of images in the tree, each a layout of its own; the last has the labels."""
        return [self]

    def labelled(self) -> "Layout":
        """The set of images that has the labels, if it is there."""
        part = self.parts()[-1]
        return part if part.splits else self

    def files(self, pattern: str, splits: Sequence[str | None] | None = None) -> Iterator[tuple[tuple, Path]]:
        """(key, path) of the files of a pattern, of all splits by default. A label has the key of its image."""
        is_label = pattern not in self.images
        for split in self.splits if splits is None else splits:
            name = self.folders[split]
            inside = pattern.replace(SPLIT, name) if name else pattern.replace(f"{SPLIT}/", "")
            before, ending = inside.split(FILE)
            folder, lower, dotted = self.root / before, ending.lower(), "." in ending  # only patterns of labels are
            for path in walk(folder):
                ends = (path.name if dotted else path.stem).lower().endswith(lower)
                if (ends or not is_label) and (dotted or is_image(path)):
                    stem = path.relative_to(folder).as_posix()
                    stem = stem if dotted else stem.removesuffix(path.suffix)
                    yield (split, stem[: len(stem) - len(ending)] if ends else stem), path

    def imageless(self) -> list[str]:
        """The splits that have labels and no images, as an interrupted unpacking leaves them."""
        there = [s for s in self.folders if s and any(any(self.files(pattern, [s])) for _, pattern in self.labels)]
        return [split for split in there if not any(self.files(self.pattern, [split]))]

    def find_labels(self, keys: set, splits: Sequence[str | None], labels: str | None, where: str):
        """The first kind that any of the images with these keys has a label of, and its files: {key: path}.

        labels: of `--labels`; plain train ids answer to labelTrainIds. Raises InputError if there is no such kind.
        """
        wanted = {"labelIds": ("labelIds",), "labelTrainIds": ("labelTrainIds", "trainIds")}.get(labels)
        wanted = wanted and (*wanted, "trainIds") if self.own_classes else wanted  # what they mean is said elsewhere
        kinds = [(kind, pattern) for kind, pattern in self.labels if kind.refused or not wanted or kind in wanted]
        if self.labels and all(kind.refused for kind, _ in kinds):
            known = f"{self.labels[0][0].value}s"
            raise InputError(f"{where}: the labels of this layout are {known}; leave --labels {labels} out")
        for kind, pattern in kinds:
            files = dict(self.files(pattern, splits))
            if keys & files.keys():
                return kind, files
        return None, {}

    def choose(self, images: list[Path], splits: Sequence[str | None], time: str | None, where: str):
        """Which of the images of some splits to read, and a list of remarks on the others.

        time: "day", "twilight", "night" or None for all; ignored where the data set does not tell them apart. Raises
        InputError, which begins with `where`, if the files that tell the time are missing.
        """
        return images, []

    def class_tables(self) -> list[Path]:
        """The files, not beside the images, that say what labels mean."""
        return []

    def time_of(self, image: Path) -> str | None:
        """The time of day of an image in the data set's words; None where it does not tell."""
        return None


def of_kinds(pattern: str, *kinds: str) -> tuple[tuple[LabelKind, str], ...]:
    """(kind, pattern) of label files that end in the name of their kind."""
    return tuple((KINDS.get(kind, COLORS), pattern.replace("{kind}", kind)) for kind in kinds)


def folders(root: Path, *patterns: str) -> list[Path]:
    """The folders below root, sorted, that hold the files of any of these patterns, in any split."""
    globs = [pattern.split(FILE)[0].replace(SPLIT, SHOWN) for pattern in patterns]
    # "/" asks for folders alone, which from Python 3.11 on costs no look at each file
    found = (path for glob in dict.fromkeys(globs) if glob for path in root.glob(f"{glob}/"))
    return sorted(path for path in found if path.name not in JUNK and os.path.isdir(path))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def counted(number: int, noun: str) -> str:
    """ "1 image" or "2,000 images"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` of `length` numbers, evenly spaced: neighbours in a video are nearly the same image."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder, sorted, without hidden ones; links are followed, but not in circles.

    Nothing where there is no folder. Raises InputError for what cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(real):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for name in names:
        path = folder / name
        if name.startswith(".") or name in JUNK:  # also ._name, which macOS puts beside each file
            continue
        if not name.isascii() and name != os.fsencode(name).decode(errors="replace"):
            raise InputError(f"{path}: its name is not UTF-8; rename it")
        if os.path.isdir(path):
            yield from walk(path, (*above, real))
        elif os.path.isfile(path):
            yield path
        elif is_image(path):
            raise InputError(f"{path}: a link to a file that is not there; fetch the file or remove the link")
