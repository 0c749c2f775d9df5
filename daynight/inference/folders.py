"""What `translate`, `predict` and audits have in common: they read one tree of images and write another.

They find the images, claim the folder to write, share the images out over the processes, and write. Whoever returns
finds every file there, also those that other processes wrote.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from daynight.data.layouts.layout import is_image
from daynight.data.layouts.tree import find as find_data
from daynight.data.layouts.tree import locate, resolve
from daynight.data.lists import listed
from daynight.data.sets import ImageSet, image_files, states
from daynight.system.console import counted, say
from daynight.system.errors import InputError
from daynight.system.files import check_apart, claim, read_json
from daynight.system.processes import gathered, share_out, together

# what else to do where the folder to write is refused
INSTEAD = {"translation.json": "; seg-train takes it by --translated FOLDER"}


class Folders(NamedTuple):
    """given: the tree, or the one image, as `--in` names it. root: the folder that its paths start from. images: all of
    its images, sorted. out: the folder to write, or of one image the file."""

    given: Path
    root: Path
    images: tuple[Path, ...]
    out: Path

    @property
    def to_file(self) -> bool:
        return is_image(self.out) and not os.path.isdir(self.out) and os.path.isfile(self.given)

    def place(self, path: Path) -> Path:
        """Where the result for a file of the tree belongs."""
        return self.out if self.to_file else self.out / path.relative_to(self.root)


def find(name: str, data_root: str, out: str, lists: Sequence[str] = ()) -> Folders:
    """Raises `InputError` where there is no image, where what is written would be read again, or over what is there."""
    if os.path.isfile(name):
        image = find_data(name, Path(data_root), "--in", image=True)
        folders = Folders(image, image.parent, (image,), Path(out))
        if lists:
            raise InputError(f"--list: is for a folder, and --in {name} is one image; leave it out")
        if folders.to_file and os.path.lexists(out):
            raise InputError(f"--out {out}: exists; give another name")
        return folders
    given = resolve(name, Path(data_root), "--in")
    root = locate(given).root
    images = image_files(given)
    for folder in {root, *(image.parent for image in images)}:  # links may lead elsewhere
        check_apart(folder, Path(out))
    every = ImageSet(name, root, "--in", None, images, (None,) * len(images))
    return Folders(given, root, listed([every], lists)[0].images, Path(out))


def png_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Each path with the suffix .png, its own suffix kept before it where two would be the same."""
    names = {path: path.with_suffix(".png") for path in paths}
    while True:
        count = Counter(names.values())
        longer = {path: path.with_name(f"{path.name}.png") for path in paths if count[names[path]] > 1}
        if longer.items() <= names.items():
            return names
        names |= longer


@contextmanager
def claimed(
    out: Path, name: str, record: dict, accelerator, root: Path = Path(), files: Sequence = (), is_done: Callable = bool
) -> Iterator[None]:
    """Claim the folder `out` for results of what `record` describes, and wait at the end for all processes.

    `files` below `root`: what the results are made of; `is_done`: whether there is one for a path. Raises `InputError`
    on every process where the claim is refused: see `claim` and `contents`.
    """
    with together():
        lock = nullcontext()
        if accelerator.is_main_process:
            try:
                lock = claim(out, name, record, renewed=files and {"files": contents(out, name, root, files, is_done)})
            except InputError as error:
                instead = INSTEAD.get(name, "") * ("give another" in str(error))
                raise InputError(f"{error}{instead}") from error
    with lock:
        yield
        gathered(None)


def contents(out: Path, name: str, root: Path, files: Sequence[Path], is_done: Callable[[Path], bool]) -> dict:
    """Digests of the files by their paths, with those in the record `name` of what is no longer there.

    Another tree may have files of the same names. Raises `InputError` where there are results of such files.
    """
    made = {}
    with suppress(InputError, TypeError, ValueError):
        made = dict(read_json(out / name).get("files", {}))
    names = [path.relative_to(root).as_posix() for path in files]
    found = {name: state[1][:12] for name, state in zip(names, states(root, files), strict=True)}
    for path in found:
        # an earlier version recorded none
        if made and made.get(path) != found[path] and is_done(root / path):
            what = f"of other files than now (as {root / path}, new or changed)"
            raise InputError(f"--out {out}: was made {what}; give another folder")
    return made | found


def unfinished(
    title: str,
    images: Sequence[Path],
    is_done: Callable[[Path], bool],
    results: Callable[[Sequence[Path]], Iterable[tuple]],
) -> Iterator[tuple]:
    """Yields (path, …) for each of this process's share of the images that are not done. Says how many are done.

    `results(paths)` computes them: it yields (i, …) for `paths[i]`.
    """
    todo, count = share_out(images, lambda path: not is_done(path))
    say(f"{title}: {len(images):,} images, {len(images) - count:,} there")
    for i, *result in counted(results(todo), len(todo), "images"):
        yield todo[i], *result
