"""`--dry-run`: a look at every file, two steps of a training, and what all of it will take."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from daynight.data.labels import problem_of_label
from daynight.data.sets import ImageSet
from daynight.system.console import counted, duration, say, warn
from daynight.system.errors import InputError
from daynight.training.checkpoint import Checkpoint, checkpoints_in

THREADS = 16  # they wait for the disk
END = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}  # of a whole file
ORIENTATION = 0x0112  # in EXIF; from 5 on width and height are the other way round
LISTED = 50


def check_writable(folder: Path) -> Path:
    """The nearest folder that exists, at or above this one. Raises `InputError` where nothing can be made in it."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: nothing can be written in {place}")
    return place


def rehearse(
    run, loader: Iterator[dict], checkpoint: Checkpoint, validation, cache, cost: Callable[[int], float]
) -> Iterator[tuple[int, dict]]:
    """The last two steps of a `Run`, which cost as much as any, in its temporary folder; then say what it will take."""
    options, total = run.options, run.total
    for step in range(run.first, total):
        began = time.monotonic()
        batch = next(loader)
        drawn = time.monotonic()
        yield step, batch
        ended = time.monotonic()
    # `run.updated` is when the update was done; after it comes what is done at each checkpoint
    data, update, preview = drawn - began, run.updated - drawn, ended - run.updated
    done = max(checkpoints_in(Path(options.out)), default=0)
    readers = min(run.readers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    a_step = max(update, data / readers) if readers else update + data
    seconds = a_step * sum(map(cost, range(done, total))) / cost(total - 1)
    seconds += preview * (total - done) / options.save_every
    validating = validation.seconds() if validation else 0.0
    if options.validate_every:
        seconds += validating * (total - done) / options.validate_every
    if run.accelerator.is_main_process:
        beside = f"read by {readers} processes beside" if readers else "read before it"
        say(f"memory      {run.memory()}")
        say(f"a step      {a_step:.3g} s: {update:.3g} s of compute; its images take {data:.3g} s, {beside}")
        if validating:
            say(f"validation  {duration(validating)}, every {options.validate_every:,} steps")
        of = f"{total - done:,} of {total:,} steps" if done else f"{total:,} steps"
        say(f"the run     {duration(seconds)} for {of}")
        tell_disk(run, checkpoint, cache.planned if cache else 0)
        say(f"dry run: nothing is wrong, and nothing was written to {options.out}")


def tell_disk(run, checkpoint: Checkpoint, cache: float) -> None:
    """Say in a line how much disk the run's folder will take, and how much is free."""
    saves = -(-run.total // run.options.save_every)
    state, models = checkpoint.bytes_when_full()
    previews = saves * sum(path.stat().st_size for path in run.folder.glob("previews/*"))
    lines = (run.folder / "metrics.jsonl").stat().st_size * -(-run.total // run.options.log_every)
    whole = 3 * state + models + previews + lines + cache
    free = shutil.disk_usage(check_writable(Path(run.options.out))).free
    say(
        f"disk        {gib(whole)}: two checkpoints of {gib(state)} and a third while it is written, "
        f"models {gib(models)}, previews ({saves:,}) {gib(previews)}, metrics {gib(lines)}, "
        f"cache {gib(cache)}; free there: {gib(free)}"
    )
    if free < whole:
        warn(f"--out {run.options.out}: {gib(whole)} are needed, {gib(free)} are free there")


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


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
