"""Where the images and labels of a data set lie: one table of layouts, and one walk that serves them all."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daynight.data.labels import CITYSCAPES, Classes, read_classes
from daynight.errors import InputError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_SHORT_NAMES = {"cs": "Cityscapes", "bdd": "BDD100K", "dz": "Dark Zurich", "acdc": "ACDC", "nd": "Nighttime Driving"}


class _Layout(NamedTuple):
    """Images are `<top>/<split>/**/<stem><ending>.*`, the first top that exists.

    Labels are of one kind, the first that any image has: `{}` in its pattern stands for `<split>/**/<stem>`.
    """

    tops: tuple[str, ...]
    ending: str
    labels: tuple[tuple[str, str], ...]


def _kinds(pattern: str, *kinds: str) -> tuple[tuple[str, str], ...]:
    return tuple((kind, f"{pattern}_{kind}.png") for kind in kinds)


_ND_LABELS = "gtCoarse_daytime_trainvaltest"
_BDD_LABELS = (("trainIds", "labels/sem_seg/masks/{}.png"), ("trainIds", "seg/labels/{}_train_id.png"))
_LAYOUTS = {
    "Cityscapes": _Layout(("leftImg8bit",), "_leftImg8bit", _kinds("gtFine/{}_gtFine", "labelIds", "labelTrainIds")),
    # the labelTrainIds of 2018 are what papers scored; the labelIds, corrected in 2019, differ
    "Nighttime Driving": _Layout(
        ("leftImg8bit",), "_leftImg8bit", _kinds(f"{_ND_LABELS}/{{}}_gtCoarse", "labelTrainIds", "labelIds")
    ),
    "Dark Zurich": _Layout(("rgb_anon",), "_rgb_anon", _kinds("gt/{}_gt", "labelTrainIds", "labelIds")),
    "ACDC": _Layout(("rgb_anon/night",), "_rgb_anon", _kinds("gt/night/{}_gt", "labelTrainIds", "labelIds")),
    "BDD100K": _Layout(("images/100k",), "", ()),
    "BDD100K 10k": _Layout(("images/10k", "seg/images"), "", _BDD_LABELS),
    "folder": _Layout(("images",), "", (("trainIds", "labels/{}.png"),)),
    "images": _Layout((".",), "", ()),
}


class Tree(NamedTuple):
    """A data set on disk: the folder from which its layout counts, the layout's name, remarks to print."""

    root: Path
    layout: str
    notes: tuple[str, ...]


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
        """One line: "cs: Cityscapes, train, 2,975 images, 2,975 labels, 19 classes"."""
        labelled = sum(label is not None for label in self.labels)
        parts = [self.layout, self.split, _count(len(self.images), "image")]
        parts.append(_count(labelled, "label") if labelled else "no labels")
        if labelled:
            parts.append(f"{len(self.classes)} classes")
        return f"{self.name}: " + ", ".join(part for part in parts if part)

    def fingerprint(self) -> str:
        """12 hex digits over the relative names and sizes of all images and labels; nothing is decoded."""
        digest = hashlib.sha256()
        for path in self.images + self.labels:
            line = f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}\n" if path else "\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]


def resolve(name: str, data_root: Path, option: str) -> Path:
    """The folder of a data set: a path if it exists, else the name (a closing slash dropped) under data_root.

    Raises InputError with the option, the folder expected and what to do.
    """
    expected = data_root / name.rstrip("/")
    if name:
        # os.path, not Path: False rather than an exception for what cannot be looked at
        found = next((path for path in (Path(name), expected) if os.path.isdir(path)), None)
        if found:
            return found
        file = next((path for path in (Path(name), expected) if os.path.exists(path)), None)
        if file:
            raise InputError(f"{option}: {file} is a file; expected the folder of a data set")
    what = _SHORT_NAMES.get(name.rstrip("/"), "it")
    raise InputError(
        f"{option}: no data set {name!r}: expected the folder {expected} (or a path); "
        f"unpack {what} there or give {option} PATH, --data-root DIR or DAYNIGHT_DATA"
    )


def locate(root: Path) -> Tree:
    """The layout of a folder, also when it was unpacked one level too deep or the folder of its images was given.

    Whatever is not recognised is a bare tree of images ("images"). Raises InputError when several data sets lie in it.
    """
    layout = _recognise(root)
    if layout:
        return Tree(root, layout, ())
    inner = [folder for folder in _folders(root).values() if _recognise(folder)]
    # where images lie beside it, the folder itself is what is meant
    if inner and not _holds_images(root):
        if len(inner) > 1:
            names = ", ".join(folder.name for folder in inner)
            raise InputError(
                f"{root}: holds several data sets ({names}); give one, or unpack its parts into one folder"
            )
        layout = _recognise(inner[0])
        return Tree(inner[0], layout, (f"{layout} found one level deeper, in {inner[0]}",))
    below = root.absolute()
    for above in list(below.parents)[:2]:
        layout = _recognise(above)
        inside = f"{below.relative_to(above).as_posix()}/"
        tops = [top for part in _parts(layout) for top in _LAYOUTS[part].tops] if layout else []
        if any(f"{top}/".startswith(inside) for top in tops):
            return Tree(above, layout, (f"{root} holds the images of {layout}, which is read from {above}",))
    return Tree(root, "images", ())


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
    """The images of a data set with their labels.

    splits: put together, those that exist; None for the one to evaluate on (val, else test, else the only one).
    time: "day" or "night", where the layout tells them apart. labels: "labelIds" or "labelTrainIds", else the layout's
    own preference. labelled: leave out what has no label. option is the command line's, for messages.
    Raises InputError when there is no such data set, split, image or label.
    """
    root, layout, notes = locate(resolve(name, data_root, option))
    where, notes = f"{option}: {root}", list(notes)
    # the labels are those of the 10k images
    if layout == "BDD100K" and (labelled or splits is None or not _splits(root, layout)):
        layout = "BDD100K 10k" if _splits(root, "BDD100K 10k") else layout
    if time == "day" and layout in ("ACDC", "Nighttime Driving"):
        raise InputError(f"{where}: {layout} has night images only; give it as a night set")

    folders = _choose(_splits(root, layout), splits, where, layout)
    if layout == "Dark Zurich" and time:
        folders = {split: _time_folder(folder, time) for split, folder in folders.items()}
    images = sorted(image for folder in folders.values() for image in _images(folder))
    if layout == "BDD100K":
        images = _without_scored(root, images, folders, notes)
    if layout.startswith("BDD100K") and time:
        images = _select_time(images, _times_of_day(root, folders, layout, where), time, notes)
    looked_in = " and ".join(str(folder) for folder in folders.values())
    if not images:
        wanted = f"{time} images" if time and layout.startswith(("BDD100K", "Dark Zurich")) else "images"
        raise InputError("; ".join([f"{option}: no {wanted} in {looked_in}", *notes]))

    label_kind, label_paths = _find_labels(root, layout, images, labels, where)
    if layout == "Nighttime Driving" and labels is None and label_kind == "labelTrainIds":
        notes.append("labels are the labelTrainIds of 2018; --labels labelIds takes those corrected in 2019")
    if labelled and label_kind is None:
        patterns = [pattern for part in _parts(layout) for _, pattern in _fitting(part, labels)]
        expected = " or ".join(pattern.format("<split>/**/*") for pattern in patterns)
        if layout == "BDD100K":
            expected = f"images/10k/<split> with {expected}"
        elif layout == "images":
            expected = "images/<split>/ with labels/<split>/**/*.png and classes.json"
        raise InputError(f"{where}: no labels for the images in {looked_in}; expected {expected}")
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
    folders = [folder for layout in _parts(tree.layout) for folder in _splits(tree.root, layout).values()]
    images = tuple(sorted(image for folder in folders for image in _images(folder)))
    if not images:
        raise InputError(f"{root}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    return images


def companions(root: Path) -> tuple[Path, ...]:
    """The files that make a tree a labelled data set beside its images: label files, classes.json, LICENSE*; sorted.

    BDD100K's time of day is none of them: a translated day image is no day image. Below `locate(root).root`.
    """
    tree = locate(root)
    files = {path for path in tree.root.glob("*") if path.name == "classes.json" or path.name.startswith("LICENSE")}
    for _, pattern in (label for layout in _parts(tree.layout) for label in _LAYOUTS[layout].labels):
        top, ending = pattern.split("{}")
        files.update(path for path in _walk(tree.root / top) if path.name.endswith(ending))
    return tuple(sorted(path for path in files if path.is_file()))


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


def _parts(layout: str) -> tuple[str, ...]:
    return ("BDD100K", "BDD100K 10k") if layout == "BDD100K" else (layout,)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder, if there is one, but hidden ones; links are followed, not back to where they lie in."""
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(real):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):  # with ._name, which macOS puts beside each file
            continue
        if os.path.isdir(path):
            yield from _walk(path, (*above, real))
        elif os.path.isfile(path):
            yield path
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: a link to a file that is not there; fetch the file or remove the link")


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in _walk(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _folders(root: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(root.iterdir()) if path.name[0] != "." and os.path.isdir(path)}
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from error


def _holds_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." for path in folder.iterdir())


def _recognise(root: Path) -> str | None:
    def has(*folders: str) -> bool:
        return any(os.path.isdir(root / folder) for folder in folders)

    if has("leftImg8bit"):
        is_night = has(_ND_LABELS, "leftImg8bit/test/night")
        return "Nighttime Driving" if is_night else "Cityscapes"
    if has("rgb_anon"):
        # both keep their images there: ACDC by condition before split, Dark Zurich by split before time of day
        return "ACDC" if has("rgb_anon/night", "rgb_anon/fog", "rgb_anon/rain", "rgb_anon/snow") else "Dark Zurich"
    if has("images/100k", "images/10k", "seg/images"):
        return "BDD100K"
    if has("images") and (has("labels", "images/train", "images/val") or os.path.exists(root / "classes.json")):
        return "folder"
    return None


def _splits(root: Path, layout: str) -> dict[str | None, Path]:
    """The folder of each split; {None: folder} where the layout has no splits."""
    top = next((root / top for top in _LAYOUTS[layout].tops if os.path.isdir(root / top)), None)
    if top is None:
        return {}
    if layout == "images":
        return {None: top}
    folders = {name: folder for name, folder in _folders(top).items() if not name.endswith("_ref")}
    # images beside train or val are strays; without either there are no splits
    return {None: top} if not {"train", "val"} & folders.keys() and _holds_images(top) else folders


def _choose(found: dict[str | None, Path], splits: Sequence[str] | None, where: str, layout: str):
    """The folders of the splits asked for; all where there are no splits."""
    if not found:
        raise InputError(f"{where}: no images; expected {_LAYOUTS[layout].tops[0]}/<split>/")
    if None in found:
        return found
    names = ", ".join(found)
    if splits is None:
        splits = [split for split in ("val", "test", *found) if split in found][:1]
        if splits[0] not in ("val", "test") and len(found) > 1:
            raise InputError(f"{where}: no split to evaluate on, neither val nor test; found {names}: give --split")
    chosen = {split: found[split] for split in splits if split in found}
    if not chosen:
        raise InputError(f"{where}: no split {' or '.join(map(repr, splits))}; found {names}")
    return chosen


def _fitting(layout: str, labels: str | None) -> list[tuple[str, str]]:
    """The (kind, pattern) of a layout that answer to `--labels`; plain train ids do to labelTrainIds."""
    wanted = {"labelIds": ("labelIds",), "labelTrainIds": ("labelTrainIds", "trainIds")}
    return [label for label in _LAYOUTS[layout].labels if labels is None or label[0] in wanted[labels]]


def _find_labels(root: Path, layout: str, images: list[Path], labels: str | None, where: str):
    """(label kind, the label path or None of each image) by the first pattern that any image has a label of."""
    tops, ending, patterns = _LAYOUTS[layout]
    top = next(root / top for top in tops if os.path.isdir(root / top))
    if patterns and not _fitting(layout, labels):
        raise InputError(f"{where}: the labels of this layout are train ids; leave --labels {labels} out")
    stems = [(image.relative_to(top).parent / image.stem.removesuffix(ending)).as_posix() for image in images]
    for kind, pattern in _fitting(layout, labels):
        paths = [root / pattern.format(stem) for stem in stems]
        paths = [path if os.path.isfile(path) else None for path in paths]
        if any(paths):
            return kind, paths
    return None, [None] * len(images)


def _time_folder(folder: Path, time: str) -> Path:
    """Dark Zurich keeps the day images of val apart, under val_ref/day."""
    reference = folder.with_name(f"{folder.name}_ref") / time
    return folder / time if os.path.isdir(folder / time) or not os.path.isdir(reference) else reference


def _without_scored(root: Path, images: list[Path], splits: dict, notes: list[str]) -> list[Path]:
    """BDD100K's two sets overlap: what the 10k's val or test scores must not enter a training through the 100k."""
    scored = {split: folder for split, folder in _splits(root, "BDD100K 10k").items() if split in ("val", "test")}
    names = {image.stem for split, folder in scored.items() if split not in splits for image in _images(folder)}
    kept = [image for image in images if image.stem not in names]
    if len(kept) < len(images):
        notes.append(f"{_count(len(images) - len(kept), 'image')} left out that the 10k set scores")
    return kept


def _select_time(images: list[Path], times: dict[str, str], time: str, notes: list[str]) -> list[Path]:
    known = {image: times.get(image.stem, "undefined") for image in images}
    unknown = list(known.values()).count("undefined")
    if unknown:
        notes.append(f"{unknown:,} of {_count(len(images), 'image')} left out for want of a time of day")
    return [image for image in images if known[image] == {"day": "daytime", "night": "night"}[time]]


def _times_of_day(root: Path, splits: dict, layout: str, where: str) -> dict[str, str]:
    """The time of day of each image by its stem, from whichever generation of BDD100K's JSON is there."""
    # the 10k images of a split are in any split of the 100k, or in none
    splits = ("train", "val", "test") if layout == "BDD100K 10k" else [split or "train" for split in splits]
    times, labels = {}, root / "labels"
    for split in splits:
        lists = (labels / f"bdd100k_labels_images_{split}.json", labels / "det_20" / f"det_{split}.json")
        files = [file for file in lists if file.is_file()][:1] or sorted((labels / "100k" / split).glob("[!.]*.json"))
        for file in files:
            times.update(_read_times(file))
    if not times:
        raise InputError(
            f"{where}: no time of day; expected labels/bdd100k_labels_images_{splits[0]}.json, "
            f"labels/det_20/det_{splits[0]}.json or labels/100k/{splits[0]}/*.json"
        )
    return times


def _read_times(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from error
    times = {}
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputError(f"{file}: entry {number} has no name; expected name and attributes of a BDD100K image")
        # one generation names the image file, another only its stem
        name = Path(entry["name"])
        attributes = entry.get("attributes")
        time = attributes.get("timeofday") if isinstance(attributes, dict) else None
        if isinstance(time, str):
            times[name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name] = time
    return times
