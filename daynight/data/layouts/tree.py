"""Which data set a folder is: by a path or a name, recognised by its folders, or refused with what to do."""

import os
from collections.abc import Sequence
from pathlib import Path

from daynight.data.layouts import LAYOUTS
from daynight.data.layouts.folder import Images
from daynight.data.layouts.layout import FILE, SPLIT, Layout, folders_in, holds_images, images_in
from daynight.system.errors import InputError


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
    what = next((layout.name for layout in LAYOUTS if layout.short == name.rstrip("/")), "it")
    raise InputError(
        f"{option}: no data set {name!r}: expected the folder {data_root / name.rstrip('/')} (or a path); "
        f"unpack {what} there or give {option} PATH, --data-root DIR or DAYNIGHT_DATA"
    )


def tagged_night(name: str, data_root: Path) -> str | None:
    """X where X-night is no folder, but names those labelled images of X (BDD100K) that its tags call night."""
    name = name.rstrip("/")
    whole = name.removesuffix("-night")
    if whole in ("", name) or any(map(os.path.isdir, (name, data_root / name))):
        return None
    found = next(filter(os.path.isdir, (Path(whole), data_root / whole)), None)
    layout = locate(found) if found else next((layout for layout in LAYOUTS if layout.short == whole), None)
    return whole if layout and layout.night_by_tags else None


def locate(root: Path) -> Layout:
    """The data set of a folder, also when it was unpacked too deep or the folder of its images was given.

    What is not recognised is a bare tree of images. Raises InputError when several data sets lie in the folder, or one
    in parts, and when it holds labels.
    """
    layout = _recognise(root)
    if layout:
        return layout(root)
    # where images lie beside it, the folder itself is what is meant
    level = [] if holds_images(root) else list(folders_in(root).values())
    inner = _inside(level)
    if inner:
        return _only(inner, root)
    around = _around(root)
    if around:
        return around
    for layout in LAYOUTS:
        layout.check_misplaced(root, (root, *level))
    for layout in LAYOUTS:
        for folder, ending in ((pattern.split(SPLIT)[0], pattern.split(FILE)[1]) for _, pattern in layout.labels):
            if folder and any(path.name.endswith(ending) for path in images_in(root / folder)):
                top = layout.images[0].split(SPLIT)[0]
                raise InputError(f"{root}: holds labels ({folder}) and no {top} beside them")
    return Images(root)


def _recognise(root: Path) -> type[Layout] | None:
    return next((layout for layout in LAYOUTS if layout.recognises(root)), None)


def _inside(level: Sequence[Path]) -> list[tuple[Path, type[Layout]]]:
    """The data sets among these folders, else one level below: zips and the tools that unpack them add folders."""
    for _ in range(2):
        found = [(folder, layout) for folder in level if (layout := _recognise(folder))]
        if found:
            return found
        level = [inner for folder in level for inner in folders_in(folder).values()]
    return []


def _only(inner: Sequence[tuple[Path, type[Layout]]], root: Path) -> Layout:
    """The one data set that lies below root. Raises InputError if there are several, or a part of it lies elsewhere."""
    (folder, layout), *others = inner
    if any(other is not layout for _, other in others):
        raise InputError(f"{root}: holds several data sets ({_names([folder for folder, _ in inner], root)}); give one")
    apart = layout.apart(root)
    if others or any(not os.path.isdir(folder / part.name) for part in apart):
        together = ", ".join(sorted({str(root / part.name) for part in apart}))
        raise InputError(
            f"{root}: holds several data sets, or one in parts ({_names(apart, root)}); "
            f"give one, or move the parts of one together: {together}"
        )
    return layout(folder, (f"{layout.name} found deeper, in {folder}",))


def _around(root: Path) -> Layout | None:
    """The data set whose images, of all splits, a folder holds: read alone, it would mix the splits.

    Raises InputError for a folder of its labels, which are no photographs.
    """
    given = root.absolute()
    for above in list(given.parents)[:4]:
        layout = _recognise(above)
        for part in layout(above).parts() if layout else ():
            images = part.splits.values()
            if any(given in split.parents for split in images):
                return layout(above, (f"{root} holds the images of {layout.name}, which is read from {above}",))
            labels = (
                path for _, pattern in part.labels for split in images for path in part.label_files(pattern, split)
            )
            if any(given in path.parents for path in labels):
                raise InputError(f"{root}: holds labels of {layout.name}; give {above}")
    return None


def _names(folders: Sequence[Path], root: Path) -> str:
    return ", ".join(folder.relative_to(root).as_posix() for folder in folders)
