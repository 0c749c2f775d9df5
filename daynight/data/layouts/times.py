"""The time of day of BDD100K's images, from any generation of its JSON: up to 1 GB, read once and remembered."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from daynight.system import __version__
from daynight.system.errors import InputError
from daynight.system.files import read_json, write_json

# 2018, the two releases of detection labels of 2020, one JSON an image as in later downloads
_GENERATIONS = (
    "bdd100k_labels_images_{}.json",
    "det_20/det_{}.json",
    "detection20/det_v2_{}_release.json",
    "100k/{}/[!.]*.json",  # not ._name, which macOS puts beside each file
)
_SEPARATOR = re.compile(r"[\s,]*")


def times_of_day(labels: Path, splits: Sequence[str]) -> dict[str, str]:
    """ "daytime", "night", "dawn/dusk" or "undefined" of each image that has an entry, by its stem.

    labels: the folder `labels` of a BDD100K tree. Each split is read from the first generation that is there; {} if
    none is. Raises InputError with the file's name.
    """
    times = {}
    for split in splits:
        found = (sorted(labels.glob(pattern.format(split))) for pattern in _GENERATIONS)
        times |= _remembered(next(filter(None, found), []))
    return times


def expected_files(split: str) -> str:
    """The files that `times_of_day` looks for, in words."""
    return " or ".join("labels/" + pattern.format(split).replace("[!.]", "") for pattern in _GENERATIONS)


def _remembered(files: list[Path]) -> dict[str, str]:
    """The times in all files; from the user's cache where files of this path, size and time of change were read."""
    try:
        found = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(f"{__version__} {found}".encode()).hexdigest()[:24]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(home, "daynight", f"times-{digest}.json")
    with suppress(InputError):
        return read_json(cache)
    # a file that changes again within the clock's resolution would look the same
    settled = max((changed for *_, changed in found), default=0) < time.time_ns() - 2e9
    times = {stem: when for file in files for stem, when in _read(file)}
    # without a home, expanduser leaves the ~
    if times and settled and cache.is_absolute():
        # a cache that cannot be written costs time, not the run
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, times)
    return times


def _read(file: Path) -> Iterator[tuple[str, str]]:
    """(stem, time of day) of each entry that has one."""
    number = 0
    try:
        for entry in _entries(file):
            # one generation names the image file, another only its stem
            name = Path(entry["name"])
            when = (entry.get("attributes") or {}).get("timeofday")
            if isinstance(when, str):
                yield name.stem if name.suffix.lower() in (".jpg", ".png") else name.name, when
            number += 1
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or getattr(error, "msg", error)
        raise InputError(f"{file}: cannot be read as JSON ({cause})") from error
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "expected name and attributes of a BDD100K image"
        raise InputError(f"{file}: entry {number} has no name; {wanted}") from error


def _entries(file: Path) -> Iterator:
    """The entries of a JSON list one by one, with a few MB in memory at a time; or the one entry that a file holds."""
    decode, size = json.JSONDecoder().raw_decode, 1 << 20
    with open(file, encoding="utf-8-sig") as stream:
        text = stream.read(size).lstrip()
        if not text.startswith("["):
            yield json.loads(text + stream.read())
            return
        position = 1
        while not text.startswith("]", position := _SEPARATOR.match(text, position).end()):
            try:
                entry, position = decode(text, position)
            except ValueError:
                # the entry is longer than what was read
                more = stream.read(max(size, len(text) - position))
                if not more:
                    raise
                text, position = text[position:] + more, 0
            else:
                yield entry
