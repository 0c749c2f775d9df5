"""What a run has written of its steps. Whatever else lies in its folder is not ours, and is not looked at."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20  # bytes


def numbered(folder: Path, prefix: str, suffix: str = "") -> dict[int, Path]:
    """What a run has named by the number of steps done, in seven digits or more, the oldest first."""
    found = {path.name.removeprefix(prefix).removesuffix(suffix): path for path in folder.glob(f"{prefix}*{suffix}")}
    # str.isdigit and \d know more digits than these
    return dict(sorted((int(n), path) for n, path in found.items() if re.fullmatch("[0-9]{7}|[1-9][0-9]{7,}", n)))


def previews_in(run: Path, step: int) -> dict[int, Path]:
    """The image grids up to `step`, by step, the oldest first."""
    return {n: path for n, path in numbered(run / "previews", "", ".png").items() if n <= step and path.is_file()}


def parsed(line: bytes) -> dict | None:
    """A line of metrics.jsonl; None where it is not whole, or not ours."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None


def newest_first(file: Path, step: int) -> Iterator[tuple[dict, int]]:
    """The lines of metrics.jsonl up to `step`, the last first, each with where it ends in the file. It reads from the
    end: to parse all of a long run's takes a minute."""
    with open(file, "rb") as content:
        place, rest = content.seek(0, os.SEEK_END), b""
        end = place
        while place:
            size = min(BLOCK, place)
            place = content.seek(place - size)
            lines = (content.read(size) + rest).splitlines(keepends=True)
            rest = lines.pop(0) if place else b""
            for line in reversed(lines):
                if (values := parsed(line)) and values["step"] <= step:
                    yield values, end
                end -= len(line)
