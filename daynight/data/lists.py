"""`--list`: the part of a data set that text files name."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from daynight.data.layouts.layout import is_image
from daynight.data.sets import ImageSet
from daynight.system.errors import InputError


def listed(sets: Sequence[ImageSet], lists: Sequence[str]) -> list[ImageSet]:
    """The sets with only those images that some text files name; a set of which they name none stays whole.

    A line is an image's or a label's name, with or without suffix and with as many of its folders as tell it from
    others. Raises InputError naming file and line of what is in none of the sets, or cannot be told from others.
    """
    index, chosen = defaultdict(set), [set() for _ in sets]
    for number, image_set in enumerate(sets if lists else ()):
        for i, paths in enumerate(zip(image_set.images, image_set.labels, strict=True)):
            index[image_set.stem(paths[0])].add((number, i))
            for path in filter(None, paths):
                parts = path.relative_to(image_set.root).with_suffix("").parts
                for depth in range(len(parts)):
                    index["/".join(parts[depth:])].add((number, i))
    for file in lists:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"--list {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        lines = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
        if not lines:
            raise InputError(f"--list {file}: is empty; expected names of images, one a line")
        for number, line in lines.items():
            stem = line.removesuffix(Path(line).suffix) if is_image(Path(line)) else line
            last = re.sub(r"(_gt\w*)?_(labelIds|labelTrainIds|train_id|mask|color)$", "", stem.split("/")[-1])
            found = index.get(stem.removeprefix("./")) or index.get(last, set())
            if not found or max(Counter(of for of, _ in found).values()) > 1:
                told = "names several images" if found else "names no image"
                raise InputError(f"--list {file}: line {number}, {line!r}, {told} of {', '.join(map(str, sets))}")
            for of, i in found:
                chosen[of].add(i)
    found = list(sets)
    for i, (image_set, some) in enumerate(zip(sets, chosen, strict=True)):
        if some:
            note = f"{image_set.name}: {len(some):,} of {len(image_set.images):,} images are listed"
            found[i] = replace(image_set.only(sorted(some)), notes=(*image_set.notes, note))
    return found
