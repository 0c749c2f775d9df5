"""Data of one's own: images with labels as annotation tools write them, or only images."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from daynight.data.formats import open_image
from daynight.data.labels import CITYSCAPES, IGNORE, KINDS, LABEL_IDS, LABEL_TRAIN_IDS, TRAIN_IDS, LabelKind, read_label
from daynight.data.layouts.layout import FILE, SHOWN, SPLIT, Layout, folders
from daynight.data.layouts.photographs import LABEL_FOLDER, check_photographs, remarks, split_of
from daynight.data.tables import NAMES, read_meaning, tables_of
from daynight.system.errors import InputError

_IMAGES = re.compile(r"images?|imgs?|img_dir|jpegimages|rgb|photos?|photographs?|pictures?|frames?", re.IGNORECASE)
_LABELS = "labels", "label", "masks", "mask", "annotations", "ann_dir", "SegmentationClass"  # the first that is there
_ENDINGS = {  # of a label's stem beside its image's
    **dict.fromkeys(("", "_mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt", "_L"), TRAIN_IDS),
    **{"_labelIds": LABEL_IDS, "_labelTrainIds": LABEL_TRAIN_IDS, "_trainIds": LABEL_TRAIN_IDS},
    **dict.fromkeys(("_train_id", "_color"), TRAIN_IDS),
}


class Folder(Layout):
    """images/<split> and labels/<split>, <split>/images and <split>/labels, train and train_labels, or labels beside
    their images by the ending of their names; or all of these without splits."""

    name = "folder"
    images = ("images/{split}/**/*",)
    labels = ((TRAIN_IDS, "labels/{split}/**/*.png"),)
    own_classes = True

    def __init__(self, root: Path, notes: tuple[str, ...] = ()):
        images, places = _places(root)
        others = [path.name for path in folders(root, SHOWN) if not LABEL_FOLDER.fullmatch(path.name)]
        if places and not images and len(others) == 1 and _tables_in(root):
            images = [f"{others[0]}/{SPLIT}/{FILE}"]  # whatever it is called
        # where labels have a folder, so have the images
        self.images = tuple(images) or (Folder.images if places else (f"{SPLIT}/{FILE}", FILE))
        pairs = [(kind, f"{place}{FILE}{ending}") for place in places for ending, kind in _ENDINGS.items()]
        pairs += [(kind, f"{image}{end}") for image in self.images for end, kind in _ENDINGS.items() if end]
        self.labels = tuple(pairs)
        super().__init__(root, notes)

    def _splits_of(self, pattern: str) -> dict[str | None, str | None]:
        found = super()._splits_of(pattern)
        known = {split: name for split, name in found.items() if split in ("train", "val", "test")}
        if pattern.startswith(f"{SPLIT}/{FILE}") or pattern[:7] != SPLIT and SPLIT in pattern.split("/")[0]:
            return known
        return found if known or pattern.startswith(SPLIT) or not found else {None: None}

    def split_of(self, name: str, names: list[str]) -> str:
        split = split_of(name)
        return name if split is None or split in names else split

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """A table of classes, labels, or images in splits."""
        splits = (folder for folder in folders(root, SHOWN) if split_of(folder.name))
        if _tables_in(root) or any(os.path.isfile(split / "_classes.csv") for split in splits):
            return True
        images, places = _places(root)
        inside = (path.name for image in images for path in folders(root, image))
        return "labels/{split}/" in places or bool(images and (places or any(map(split_of, inside))))

    def files(self, pattern: str, splits: Sequence[str | None] | None = None):
        """Without labels that lie beside their images. Raises InputError for label maps among the images."""
        found = list(super().files(pattern, splits))
        if pattern == self.pattern:
            keys, ends = {key for key, _ in found}, [ending.lower() for ending in _ENDINGS if ending]

            def is_label(split: str | None, stem: str) -> bool:
                return any(stem.lower().endswith(end) and (split, stem[: -len(end)]) in keys for end in ends)

            found = [(key, path) for key, path in found if not is_label(*key)]
            check_photographs(self.root, [path for _, path in found])
        return iter(found)

    def choose(self, images: list[Path], splits, time, where):
        names = [self.splits[split] for split in splits if split in self.splits]
        before = [self.pattern.split(FILE)[0].replace(f"{SPLIT}/", f"{name}/" if name else "") for name in names]
        parts = {self.root / place: [] for place in before}
        for path in images:
            parts[next(place for place in parts if place == self.root or place in path.parents)].append(path)
        return images, [note for place, inside in parts.items() for note in remarks(place, inside)]

    def class_tables(self) -> list[Path]:
        """In root, in the folder of a split or of labels; above root where root is a split."""
        places = [self.root, *[self.root.parent] * bool(split_of(self.root.name))]
        for folder in folders(self.root, *(pattern for _, pattern in self.labels)):
            places += [folder.parent, folder]
        return [path for place in dict.fromkeys(places) for path in _tables_in(place)]

    def meaning(self, kind: LabelKind, files: Sequence[Path], asked: str | None):
        """(classes, kind, remarks): what the values of these label files mean, by the tables beside them.

        Without a table they are Cityscapes' where their names or colours say so; else classes is None. kind: that of
        their names. asked: of `--labels`. Raises InputError for a bad table.
        """
        table, own = tables_of(self.class_tables())
        some = [files[i * len(files) // 5] for i in range(min(5, len(files)))]
        named = asked or (kind if kind != TRAIN_IDS else None)
        if not own and not table and not named and not _is_colored(some[0]):
            return None, None, []
        classes, meant, notes = read_meaning(table, own)
        if not own and not table:
            notes = [f"no table of classes: the {'names' if named else 'colours'} of labels are read as Cityscapes'"]
        colored, ours = _is_colored(some[0]), classes.names == CITYSCAPES.names
        if not (table or colored or ours) and named == LABEL_IDS:
            told = f"{own}: names other classes than Cityscapes', whose ids labelIds are"
            raise InputError(f"{told}; leave --labels labelIds out, or rename *_labelIds")
        if table or colored or not ours:
            return classes, meant, notes
        if not named and any(_largest_id(path) >= len(classes) for path in some):
            named, notes = LABEL_IDS, ["labels are read as label ids of Cityscapes, as values over 18 show"]
        return classes, KINDS[named] if named else meant, notes


class Images(Layout):
    """A bare tree of images, which is what every folder is that no other layout recognises."""

    name = "images"
    images = ("**/*",)
    own_classes = True
    expected = Folder.expected

    def files(self, pattern: str, splits: Sequence[str | None] | None = None):
        """Raises InputError for label maps among the images."""
        found = list(super().files(pattern, splits))
        check_photographs(self.root, [path for _, path in found])
        return iter(found)

    def choose(self, images: list[Path], splits, time, where):
        return images, remarks(self.root, images)


def _places(root: Path) -> tuple[list[str], list[str]]:
    """The patterns of folders of images, and the places of labels, that are in root or in its splits."""
    top = [path.name for path in folders(root, SHOWN)]
    inner = {path.name for name in top if split_of(name) for path in folders(root / name, SHOWN)}
    images = [f"{name}/{SPLIT}/{FILE}" for name in top if _IMAGES.fullmatch(name)]
    images += [f"{SPLIT}/{name}/{FILE}" for name in sorted(inner) if _IMAGES.fullmatch(name)]
    places = [f"{name}/{SPLIT}/" for name in _labels(top)] + [f"{SPLIT}/{name}/" for name in _labels(inner)]
    for name in filter(LABEL_FOLDER.fullmatch, top):  # train_labels beside train
        split = next((other for other in top if name.startswith(other) and name != other and split_of(other)), None)
        if split:
            images = images or [f"{SPLIT}/{FILE}"]
            places.append(f"{SPLIT}{name.removeprefix(split)}/")
    return images, list(dict.fromkeys(places))


def _tables_in(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES if os.path.isfile(folder / name)]


def _labels(names) -> list[str]:
    """The names that folders of semantic labels have, the best first."""
    found = [name for name in names if LABEL_FOLDER.fullmatch(name) and not re.search("instance|object", name, re.I)]
    return sorted(found, key=lambda name: (_LABELS.index(name) if name in _LABELS else len(_LABELS), name))


def _is_colored(path: Path) -> bool:
    with suppress(Exception), open_image(path) as image:  # whoever reads the label says what is wrong with it
        return image.mode in ("RGB", "RGBA")
    return False


def _largest_id(path: Path) -> int:
    """The largest value of a label file but for 255, by its index; 0 where it cannot be read."""
    every = LabelKind("any", count=IGNORE, train_ids={i: i for i in range(IGNORE)})
    with suppress(InputError):
        values = read_label(path, every, CITYSCAPES)
        return int(values[values != IGNORE].max(initial=0))
    return 0
