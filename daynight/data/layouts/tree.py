"""A data set on disk: one table of layouts, which of them a folder has, and one walk that serves them all."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from daynight.system.errors import InputError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_SHORT_NAMES = {"cs": "Cityscapes", "bdd": "BDD100K", "dz": "Dark Zurich", "acdc": "ACDC", "nd": "Nighttime Driving"}


class Layout(NamedTuple):
    """Images are `<top>/<split>/**/<stem><ending>.*`, the first top that exists.

    Labels are of one kind, the first that any image has: `{}` in its pattern stands for `<split>/**/<stem>`. Those in
    colours are listed to be refused.
    """

    tops: tuple[str, ...]
    ending: str
    labels: tuple[tuple[str, str], ...]


def _kinds(pattern: str, *kinds: str) -> tuple[tuple[str, str], ...]:
    return tuple((kind, f"{pattern}_{kind}.png") for kind in kinds)


COLORED = ("color", "labelColor")
_ND_LABELS = "gtCoarse_daytime_trainvaltest"
_BDD_LABELS = (
    ("trainIds", "labels/sem_seg/masks/{}.png"),
    ("trainIds", "seg/labels/{}_train_id.png"),
    ("color", "labels/sem_seg/colormaps/{}.png"),
    ("color", "seg/color_labels/{}_train_color.png"),
)
LAYOUTS = {
    "Cityscapes": Layout(
        ("leftImg8bit",), "_leftImg8bit", _kinds("gtFine/{}_gtFine", "labelIds", "labelTrainIds", "color")
    ),
    # the labelTrainIds of 2018 are what papers scored; the labelIds, corrected in 2019, differ
    "Nighttime Driving": Layout(
        ("leftImg8bit",), "_leftImg8bit", _kinds(f"{_ND_LABELS}/{{}}_gtCoarse", "labelTrainIds", "labelIds", "color")
    ),
    "Dark Zurich": Layout(("rgb_anon",), "_rgb_anon", _kinds("gt/{}_gt", "labelTrainIds", "labelIds", "labelColor")),
    "ACDC": Layout(
        ("rgb_anon/night",), "_rgb_anon", _kinds("gt/night/{}_gt", "labelTrainIds", "labelIds", "labelColor")
    ),
    "BDD100K": Layout(("images/100k",), "", ()),
    "BDD100K 10k": Layout(("images/10k", "seg/images"), "", _BDD_LABELS),
    "folder": Layout(("images",), "", (("trainIds", "labels/{}.png"),)),
    "images": Layout((".",), "", ()),
}


class Tree(NamedTuple):
    """A data set on disk: the folder from which its layout counts, the layout's name, remarks to print."""

    root: Path
    layout: str
    notes: tuple[str, ...]


def resolve(name: str, data_root: Path, option: str) -> Path:
    """The folder of a data set: a path if it exists, else the name (a closing slash dropped) under data_root.

    Raises InputError with the option, the folder expected and what to do.
    """
    # os.path, not Path: False rather than an exception for what cannot be looked at
    places = (Path(name), data_root / name.rstrip("/")) if name else ()
    for path in filter(os.path.isdir, places):
        return path
    for path in filter(os.path.exists, places):
        raise InputError(f"{option}: {path} is a file; expected the folder of a data set")
    what = _SHORT_NAMES.get(name.rstrip("/"), "it")
    raise InputError(
        f"{option}: no data set {name!r}: expected the folder {data_root / name.rstrip('/')} (or a path); "
        f"unpack {what} there or give {option} PATH, --data-root DIR or DAYNIGHT_DATA"
    )


def tagged_night(name: str, data_root: Path) -> str | None:
    """X where X-night stands for the images of BDD100K's 10k set that its tags call night, and is no folder."""
    name = name.rstrip("/")
    whole = name.removesuffix("-night")
    if whole in ("", name) or any(map(os.path.isdir, (name, data_root / name))):
        return None
    found = next(filter(os.path.isdir, (Path(whole), data_root / whole)), None)
    return whole if whole == "bdd" or found and locate(found).layout == "BDD100K" else None


def locate(root: Path) -> Tree:
    """The layout of a folder, also when it was unpacked too deep or the folder of its images was given.

    Whatever is not recognised is a bare tree of images ("images"). Raises InputError when several data sets lie in it,
    or one in parts, and when it holds labels.
    """
    layout = _recognise(root)
    if layout:
        return Tree(root, layout, ())
    # where images lie beside it, the folder itself is what is meant
    level = [] if _holds_images(root) else list(_folders(root).values())
    inner = _inside(level)
    if inner:
        return _only(inner, root)
    below = root.absolute()
    for above in list(below.parents)[:4]:
        layout = _recognise(above)
        if not layout:
            continue
        inside = f"{below.relative_to(above).as_posix()}/"
        tops = [f"{top}/" for part in parts_of(layout) for top in LAYOUTS[part].tops]
        if any(top.startswith(inside) for top in tops):
            return Tree(above, layout, (f"{root} holds the images of {layout}, which is read from {above}",))
        if any(inside.startswith(top) for top in tops):
            return Tree(root, "images", (f"{root} is read without labels and times of day; {above} has them",))
        if inside.split("/")[0] in _label_folders(layout):
            raise InputError(f"{root}: holds labels of {layout}; give {above}")
    for folder in (root, *level):
        for name in filter(lambda name: os.path.isdir(folder / name), ("100k", "10k")):
            raise InputError(
                f"{folder / name}: not in its place in BDD100K: images are expected in {root}/images/{name}, "
                f"JSON files in {root}/labels/{name}"
            )
    for layout, (tops, _, labels) in LAYOUTS.items():
        for folder in dict.fromkeys(pattern.split("{}")[0] for _, pattern in labels):
            if next(images_in(root / folder), None):
                raise InputError(f"{root}: holds labels of {layout} ({folder}) and no {tops[0]}/ beside them")
    return Tree(root, "images", ())


def parts_of(layout: str) -> tuple[str, ...]:
    """The layouts that lie in a tree of this one: BDD100K's has two sets of images."""
    return ("BDD100K", "BDD100K 10k") if layout == "BDD100K" else (layout,)


def splits_of(root: Path, layout: str) -> dict[str | None, Path]:
    """The folder of each split; {None: folder} where the layout has no splits."""
    top = next((root / top for top in LAYOUTS[layout].tops if os.path.isdir(root / top)), None)
    if top is None:
        return {}
    if layout == "images":
        return {None: top}
    folders = {name: folder for name, folder in _folders(top).items() if not name.endswith("_ref")}
    # images beside train or val are strays; without either there are no splits
    return {None: top} if not {"train", "val"} & folders.keys() and _holds_images(top) else folders


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
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


def hint(root: Path, layout: str) -> str:
    """What to move, where a part of a data set was not found in its place: "; A belongs at B", or nothing."""
    return "".join(f"; {folder} belongs at {root / folder.name}" for folder in _apart(root, layout))


def _folders(root: Path) -> dict[str, Path]:
    try:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.name[0] != "." and entry.is_dir())
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from error
    return {name: root / name for name in folders}


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


def _inside(level: Sequence[Path]) -> list[tuple[Path, str]]:
    """The data sets among these folders, else one level below: zips and the tools that unpack them add folders."""
    for _ in range(2):
        found = [(folder, layout) for folder in level if (layout := _recognise(folder))]
        if found:
            return found
        level = [inner for folder in level for inner in _folders(folder).values()]
    return []


def _only(inner: Sequence[tuple[Path, str]], root: Path) -> Tree:
    """The one data set that lies below root; InputError if there are more, or a part that it lacks beside it."""
    (folder, layout), *others = inner
    if any(other != layout for _, other in others):
        raise InputError(f"{root}: holds several data sets ({_names([folder for folder, _ in inner], root)}); give one")
    apart = _apart(root, layout)
    if others or any(not os.path.isdir(folder / part.name) for part in apart):
        together = ", ".join(sorted({str(root / part.name) for part in apart}))
        raise InputError(
            f"{root}: holds several data sets, or one in parts ({_names(apart, root)}); "
            f"give one, or move the parts of one together: {together}"
        )
    return Tree(folder, layout, (f"{layout} found deeper, in {folder}",))


def _apart(root: Path, layout: str) -> list[Path]:
    """What bears the name of a folder of this layout and lies up to three levels below root, but not in its place."""
    images = {top.split("/")[0] for part in parts_of(layout) for top in LAYOUTS[part].tops}
    names, found, level = images | _label_folders(layout), [], [root]
    for _ in range(3):
        level = [inner for folder in level for inner in _folders(folder).values()]
        found += [folder for folder in level if folder.name in names and folder.parent != root]
        level = [folder for folder in level if folder.name not in names]
    return found


def _label_folders(layout: str) -> set[str]:
    return {pattern.split("/")[0] for part in parts_of(layout) for _, pattern in LAYOUTS[part].labels}


def _names(folders: Sequence[Path], root: Path) -> str:
    return ", ".join(folder.relative_to(root).as_posix() for folder in folders)
