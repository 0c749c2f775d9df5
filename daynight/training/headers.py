"""A look at every file of data sets, without decoding more than is needed: what `--dry-run` begins with."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from daynight.data.labels import problem_of_label
from daynight.data.sets import ImageSet
from daynight.system.console import counted, say
from daynight.system.errors import InputError

THREADS = 16  # they wait for the disk
END = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}  # of a whole file
ORIENTATION = 0x0112  # in EXIF; from 5 on width and height are the other way round
LISTED = 50


def check_files(
    labelled: Sequence[ImageSet], others: Sequence[ImageSet], more: Sequence[Path] = (), skip: bool = False
) -> None:
    """Open every image of the sets, of those `labelled` also its label, and `more` images; says their sizes.

    What cannot be read is listed; then raises `InputError` naming the first, unless `skip`. A file that does not end as
    its format does is decoded, to be sure.
    """
    parts = [(s.name, list(zip(s.images, s.labels, strict=True))) for s in labelled]
    parts += [(s.name, [(path, None) for path in s.images]) for s in others]
    parts.append(("translations", [(path, None) for path in more]))
    pairs = [pair for _, some in parts for pair in some]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(counted(pool.map(_look, pairs), len(pairs), "files"))
    problems = [text for text in found if isinstance(text, str)]
    for name, some in parts:
        these, found = found[: len(some)], found[len(some) :]
        sizes = Counter(size for size in these if not isinstance(size, str))
        shown = [f"{height}x{width} ({n:,})" for (height, width), n in sizes.most_common(3)]
        shown += [f"{len(sizes) - 3:,} other sizes"] * (len(sizes) > 3)
        if some:
            say(f"{name}: {len(some):,} files opened, height x width {', '.join(shown) or 'none'}")
    for problem in problems[:LISTED]:
        say(f"  {problem}")
    if len(problems) > LISTED:
        say(f"  and {len(problems) - LISTED:,} more")
    if problems and not skip:
        more = f", nor can {len(problems) - 1:,} more" * (len(problems) > 1)
        raise InputError(f"{problems[0]}{more}; --skip-unreadable goes on without what cannot be read")


def _look(pair: tuple[Path, Path | None]) -> tuple[int, int] | str:
    """Height and width of an image, or what is wrong with it or its label."""
    image, label = pair
    try:
        size, mode = _header(image)
        if mode == "F":
            return f"{image}: not a readable image (of floating-point values; expected 8 or 16 bits)"
    # Pillow answers damaged files with exceptions of any kind
    except Exception as error:
        return f"{image}: not a readable image ({_reason(error)})"
    if label is None:
        return size
    try:
        label_size, mode = _header(label)
    except Exception as error:
        return f"{label}: cannot be read as a label ({_reason(error)})"
    problem = problem_of_label(mode, label_size, size)
    return f"{label}: {problem}" if problem else size


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width), upright, and Pillow's mode."""
    with open(path, "rb") as file, Image.open(file) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5 if image.format == "JPEG" else False
        size = image.size if turned else image.size[::-1]
        ending = END.get(image.format)
        if ending:
            at = file.tell()
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16))
            whole = ending in file.read()
            file.seek(at)
            if not whole:
                image.load()
        return size, image.mode
