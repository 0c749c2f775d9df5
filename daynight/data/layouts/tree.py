"""Which data set a folder is: by a path or a name, recognised by its folders, or refused with what to do."""

import os
from pathlib import Path

from daynight.data.formats import IMAGE_SUFFIXES
from daynight.data.hub_sets import is_data_set, unpack
from daynight.data.layouts import LAYOUTS
from daynight.data.layouts.folder import Folder, Images
from daynight.data.layouts.layout import FILE, SHOWN, SPLIT, Layout, folders, is_image
from daynight.system.errors import InputError

BY_SHORT_NAME = {layout.short: layout for layout in LAYOUTS}


def resolve(name: str, data_root: Path, option: str, labelled: bool = False) -> Path:
    """The folder of a data set: a path if it exists, else the name (a closing slash dropped) under data_root.

    Of a data set of Hugging Face's it is the folder into which `unpack` puts its images; `labelled`: see there. Raises
    InputError as `find` does.
    """
    if name.startswith("hf:"):
        return unpack(name, option, labelled)
    path = find(name, data_root, option)
    published = _recognise(path) not in (None, Folder)
    return path if published or not is_data_set(path) else unpack(str(path), option, labelled)


def find(name: str, data_root: Path, option: str, image: bool = False) -> Path:
    """The folder that `name` stands for, or with `image` also the one image.

    Raises InputError with the option, the folder expected and what to do.
    """
    folder, short = data_root / name.rstrip("/"), name.rstrip("/")
    # os.path, not Path: False rather than an exception for what cannot be looked at
    there = [path for path in (Path(name), folder) if name and os.path.exists(path)]
    for path in there:
        if os.path.isdir(path) or image and is_image(path):
            return path
    if there:
        wanted = "the folder of a data set" + f" or an image ({', '.join(sorted(IMAGE_SUFFIXES))})" * image
        raise InputError(f"{option}: {there[0]} is a file; expected {wanted}")
    what = BY_SHORT_NAME[short].name if short in BY_SHORT_NAME else "it"
    raise InputError(
        f"{option}: no data set {name!r}: expected the folder {folder} (or a path); "
        f"unpack {what} there or give {option} PATH, --data-root DIR or DAYNIGHT_DATA"
    )


def tagged_night(name: str, data_root: Path) -> str | None:
    """X where X-night is no folder, but names those labelled images of X (BDD100K) that its tags call night."""
    name = name.rstrip("/")
    whole = name.removesuffix("-night")
    if whole in ("", name) or any(map(os.path.isdir, (name, data_root / name))):
        return None
    found = next(filter(os.path.isdir, (Path(whole), data_root / whole)), None)
    layout = locate(found) if found else BY_SHORT_NAME.get(whole, Layout)
    return whole if layout.night_by_tags else None


def locate(root: Path) -> Layout:
    """The data set of a folder, also when it was unpacked too deep or the folder of its images was given.

    What is not recognised is a bare tree of images. Raises InputError when several data sets or the parts of one lie in
    the folder, and when it holds the labels of one.
    """
    given = root.absolute()
    around = [(above, layout) for above in list(given.parents)[:4] if (layout := _recognise(above))]
    # seg/ of BDD100K could be somebody's own
    for above, layout in sorted(around, key=lambda pair: pair[1].own_classes):
        if layout.own_classes:  # its patterns depend on the folder
            if _recognise(given):
                continue
            layout = layout(above)
            images, places = (layout.pattern,), {pattern.split(FILE)[0] for pattern in layout.images}
        else:
            images, places = layout.images, set()
        inside = [folder for pattern in images for folder in folders(above, pattern)]
        tops = [above / pattern.split(SPLIT)[0] for pattern in images if not pattern.startswith((SPLIT, FILE))]
        if layout.own_classes and not inside and not any(map(os.path.isdir, tops)):
            continue  # somebody's folder that is called labels
        if any(given == top or given in top.parents for top in tops) and any(given in x.parents for x in inside):
            # read alone, it would mix the splits
            note = f"{root} holds the images of {layout.name}, which is read from {above}"
            return (type(layout) if layout.own_classes else layout)(above, (note,))
        if any(given == folder or given in folder.parents or folder in given.parents for folder in inside):
            continue
        labels = [pattern for _, pattern in layout.labels if pattern.split(FILE)[0] not in places]
        flat = tuple(above / pattern.split(SPLIT)[0] for pattern in labels if not pattern.startswith(SPLIT))
        for folder in (*folders(above, *labels), *flat * any(map(os.path.isdir, tops))):
            if given == folder or given in folder.parents or folder in given.parents:
                raise InputError(f"{root}: holds labels of {layout.name}; give {above}")

    level = [root]
    for _ in range(3):  # zips and the tools that unpack them add folders
        found = {folder: layout for folder in level if (layout := _recognise(folder))}
        for folder, layout in found.items():
            if len(found) == 1:
                return layout(folder, (f"{layout.name} found deeper, in {folder}",) if folder != root else ())
            names = ", ".join(folder.relative_to(root).as_posix() for folder in found)
            raise InputError(
                f"{root}: holds several data sets ({names}) or parts of one; give one, or put the parts together: "
                f"{layout.name} is expected as {layout.expected()}"
            )
        # where images lie beside folders, root itself is what is meant
        beside = any(map(is_image, root.glob(SHOWN)))
        level = [] if beside else [inner for folder in level for inner in folders(folder, SHOWN)]
    return Images(root)


def _recognise(root: Path) -> type[Layout] | None:
    return next((layout for layout in LAYOUTS if layout.recognises(root)), None)
