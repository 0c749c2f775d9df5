"""What of a tree of one's own is a photograph: label maps among them are refused, what is left out is said."""

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from daynight.data.formats import open_image
from daynight.data.layouts.layout import FILE, Layout, counted, evenly, walk
from daynight.system.errors import InputError

LOOKS = 40  # files of a tree that are decoded; five times as many headers are read
_LABELS = (
    r"(labels?|labell?ed\w*|masks?|annots?|annotations?|ann_?dir|segmentations?|segmentation(class|object)\w*|semantic\w*"
    r"|instances?|colormaps|color_labels|gt(?!a)\w*|ground_?truths?)([_-](full|raw|rgb|colou?rs?|ids?|png|train|val|test)"
    r"\w*)?|(train|val|valid|test)_?(annot|labels?|masks?)"
)
LABEL_FOLDER = re.compile(_LABELS, re.IGNORECASE)
_SUSPECT = re.compile(rf"(.*[_-])?({_LABELS})", re.IGNORECASE)
_IDS = re.compile(r"(.+?)[_.-]?(label_?ids|label_?train_?ids|instance_?(train_?)?ids|train_?ids?)", re.IGNORECASE)
_ENDING = re.compile(r"(.+?)[_.-](colou?rs?|masks?|seg|segmentation|labels?|labelcolou?rs?|gt|l|annot|semantic)", re.I)
# pictures in formats that are not read, and films
_UNREAD = frozenset(
    ".heic .heif .avif .gif .jp2 .j2k .jxl .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .ppm .pgm .pnm .tga .exr .hdr .psd "
    ".ico .svg .eps .npy .mp4 .mov .avi .mkv .webm".split()
)


def split_of(name: str) -> str | None:
    """The split that a folder's name stands for: "train" of training or train2017; None where it stands for none."""
    found = re.fullmatch(r"(train|val|test)(ing|id|idation)?(20\d\d)?", name, re.IGNORECASE)
    return found[1].lower() if found else None


def check_photographs(root: Path, images: Sequence[Path]) -> None:
    """Raises InputError where there are label maps among the images of a tree.

    Suspect are names and folders as labels have them, and files of one channel or with a palette that share the stem
    of a file in colours. Few files are opened. A tree of grey photographs is not suspect.
    """
    for path, found, advice in _label_maps(root, images):
        raise InputError(f"{root}: {path.relative_to(root).as_posix()} {found}; {advice}")


def _label_maps(root: Path, images: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """Label maps among the images, each with what tells it and with what to give instead."""
    suspects = [path for path in images if _looks_like_label(path, root)]
    rest = [path for path in images if path not in {*suspects}] if suspects else images
    stems = {path.stem for path in rest}
    for path in (suspects[i] for i in evenly(len(suspects), LOOKS)):
        base = _ENDING.fullmatch(path.stem)
        if _IDS.fullmatch(path.stem) or {path.stem, base and base[1]} & stems or _is_flat(path):
            found = f"is a label map by its name; so named are {len(suspects):,} of {len(images):,} images"
            yield path, found, _advice(root, rest, images)
    alike = defaultdict(list)
    for path in images:
        alike[path.stem].append(path)
    groups = [group for group in alike.values() if len(group) > 1]
    for group in (groups[i] for i in evenly(len(groups), 5 * LOOKS)):
        modes = {path: _header(path).get("mode", "") for path in group[:8]}
        colored = [path for path, mode in modes.items() if mode.startswith(("RGB", "CMYK", "YCbCr"))]
        single = [path for path, mode in modes.items() if mode in ("1", "L", "P", "I") or mode.startswith("I;16")]
        if colored and single:
            found = f"looks like the label map of {colored[0].relative_to(root).as_posix()}: one channel, the same stem"
            yield single[0], found, _advice(root, [x for x in images if x.parent != single[0].parent], images)
    # where neither names nor headers tell, pixels do
    looked = random.Random(0).sample(images, min(20, len(images)))
    flat = sorted(filter(_is_flat, looked))
    if len(flat) * 4 > len(looked):
        found = f"looks like a label map (few values, in areas); so do {len(flat)} of {len(looked)} looked at"
        folders = {path.parent for path in flat}
        yield flat[0], found, _advice(root, [path for path in images if path.parent not in folders], images)
    looked = [images[i] for i in evenly(len(images), 5)]
    if looked and all(map(_is_pair, looked)):
        converted = "examples/import_labels.py makes images/ and labels/ of such pictures"
        yield looked[0], "is a photograph and its label map side by side", converted


def remarks(folder: Path, images: Sequence[Path]) -> list[str]:
    """What is left out of a tree of photographs, and whether 16-bit files hold fewer bits than that."""
    unread = Counter(path.suffix.lower() for path in walk(folder) if path.suffix.lower() in _UNREAD)
    notes = [f"{counted(unread.total(), 'file')} not read: {' '.join(sorted(unread))}"] * bool(unread)
    found = {images[i]: _header(images[i]) for i in evenly(len(images), LOOKS)}
    films = {path: header["frames"] for path, header in found.items() if header.get("frames", 1) > 1}
    for path in list(films)[:1]:
        more = f"; so have {len(films) - 1:,} more of {len(found):,} files looked at" * (len(films) > 1)
        notes.append(f"{path.name} has {films[path]:,} frames, of which the first is read{more}")
    deep = [path for path, header in found.items() if header.get("deep")]
    largest = max((_largest(path) for path in deep[:4]), default=1.0)
    if largest < 1 / 8:
        notes.append(
            f"16-bit files hold values up to {largest * 65535:.0f} of 65535 ({deep[0].name}), as cameras of at most "
            "12 bits write them: they are read as nearly black; multiply them first"
        )
    return notes


def _looks_like_label(path: Path, root: Path) -> bool:
    parts = (root.name, *path.relative_to(root).parts[:-1])
    parts += (root.parent.name,) if split_of(root.name) else ()
    return bool(_IDS.fullmatch(path.stem) or _ENDING.fullmatch(path.stem) or any(map(_SUSPECT.fullmatch, parts)))


def _header(path: Path) -> dict:
    """mode, frames and whether it is deep (16 bits a channel) of an image; {} where it cannot be read: others tell."""
    with suppress(Exception), open_image(path) as image:
        deep = image.mode.startswith("I;16") or ";16" in str([tile[3] for tile in image.tile[:1]])
        frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        return {"mode": image.mode, "frames": frames, "deep": deep}
    return {}


def _is_flat(path: Path) -> bool:
    """Whether an image has few values or colours, in areas, as label maps have. Dark photographs may have few too."""
    with suppress(Exception), open_image(path) as image:
        if image.format != "JPEG":
            values = np.asarray(image)
            few = len(np.unique(values)) if image.mode.startswith("I") else len(image.getcolors(64) or ())
            same = [values[1:] == values[:-1], values[:, 1:] == values[:, :-1]]
            return 1 < few <= 64 and sum(x.reshape(*x.shape[:2], -1).all(2).mean() for x in same) > 1.9
    return False


def _is_pair(path: Path) -> bool:
    with suppress(Exception), open_image(path) as image:
        return halves(image.convert("RGB")) is not None
    return False


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image] | None:
    """The photograph and the label map in colours that lie side by side in an RGB image; None where there is no such.

    One half has few colours, the other at least four times as many. Counted are those that make up nine tenths of its
    pixels, 32 levels a channel, so that JPEGs count as well.
    """
    middle, counts = image.width // 2, {}
    for left in (0, middle):
        half = image.crop((left, 0, left + middle, image.height))
        packed = ((np.asarray(half).astype(np.uint32) >> 3) << np.array([10, 5, 0], np.uint32)).sum(2)
        shares = np.sort(np.unique(packed, return_counts=True)[1])[::-1].cumsum()
        counts[int((shares < 0.9 * packed.size).sum()) + 1] = half
    few, many = min(counts), max(counts)
    return (counts[many], counts[few]) if few <= 20 and many >= 4 * max(few, 4) else None


def _largest(path: Path) -> float:
    """The largest value of a 16-bit image, 1.0 for white."""
    with suppress(Exception), open_image(path) as image:
        return float(np.asarray(image).max()) / (65535 if image.mode.startswith("I") else 255)
    return 1.0


def _advice(root: Path, rest: Sequence[Path], images: Sequence[Path]) -> str:
    """Which folder to give instead of a tree with label maps, or what it nearly is."""
    near = [
        layout
        for layout in Layout.__subclasses__()
        for pattern in layout.images
        if (ending := pattern.split(FILE)[-1]) and any(path.stem.endswith(ending) for path in images)
    ]
    if near:
        return f"it nearly is {near[0].name}, which is expected as {near[0].expected()}"
    folder = Path(os.path.commonpath([path.parent for path in rest])) if rest else root
    if rest and not any(path not in {*rest} and folder in path.parents for path in images):
        return f"the photographs are in {folder}: give that, or both with a table of classes, as examples/data.md says"
    return "give a folder of photographs alone, or both with a table of classes, as examples/data.md says"
