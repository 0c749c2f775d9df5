"""`--dry-run`: a look at every file, two steps of a training, and what all of it will take."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

from daynight.data.images import Images, count_classes
from daynight.data.labels import IGNORE, read_label
from daynight.data.sets import ImageSet, evenly, thinned
from daynight.system.console import counted, duration, say, warn
from daynight.system.errors import InputError, Unreadable
from daynight.training.checkpoint import Checkpoint, checkpoints_in

THREADS = 16
LISTED = 50  # problems


class Cost(NamedTuple):
    """Seconds that a training takes for a step, in the mean of the whole run, for a checkpoint and for a validation."""

    step: float
    checkpoint: float
    validation: float


def check_writable(folder: Path) -> Path:
    """The nearest folder that exists, at or above this one. Raises `InputError` where nothing can be made in it."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: nothing can be written in {place}")
    return place


def rehearse(
    run, loader, checkpoint: Checkpoint, validation, cache, cost: Callable[[int], float]
) -> Generator[tuple[int, dict], None, Cost]:
    """The last steps of a `Run`, which cost as much as any, in its temporary folder; then say what it will take.

    The first step warms up; of the others the median counts."""
    options, total = run.options, run.total
    say("measuring two steps …")
    times = []
    for step in range(run.first, total):
        began = time.monotonic()
        batch = next(loader)
        drawn = time.monotonic()
        yield step, run.moved(batch)
        # `run.updated` is when the update was done; after it comes what is done at each checkpoint
        times.append((drawn - began, run.updated - drawn, time.monotonic() - run.updated))
    data, update, _ = map(median, zip(*times[1:] or times, strict=True))
    preview = times[-1][2]
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
        say(f"the run     {duration(seconds)} for {of}{run.slow(seconds)}")
        tell_disk(run, checkpoint, cache.planned if cache else 0)
        say(f"dry run: nothing is wrong, and nothing was written to {options.out}")
    return Cost(a_step * sum(map(cost, range(total))) / cost(total - 1) / total, preview, validating)


def tell_disk(run, checkpoint: Checkpoint, cache: float) -> None:
    """Say in a line how much disk the run's folder will take, and how much is free."""
    state, models = checkpoint.bytes_when_full()
    shown = sum(map(run.previewed, range(run.total + 1)))
    previews = shown * sum(path.stat().st_size for path in run.folder.glob("previews/*"))
    lines = (run.folder / "metrics.jsonl").stat().st_size * -(-run.total // run.options.log_every)
    whole = 3 * state + models + previews + lines + cache
    free = shutil.disk_usage(check_writable(Path(run.options.out))).free
    say(
        f"disk        {gib(whole)}: two checkpoints of {gib(state)} and a third while it is written, "
        f"models {gib(models)}, previews ({shown:,}) {gib(previews)}, metrics {gib(lines)}, "
        f"cache {gib(cache)}; free there: {gib(free)}"
    )
    if free < whole:
        warn(f"--out {run.options.out}: {gib(whole)} are needed, {gib(free)} are free there")


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def check_labels(image_set: ImageSet) -> None:
    """Look at up to 200 labels of a set: say which classes occur in none. Raises `InputError` where nothing can be
    learned from them, because all is ignored or only one class occurs; only warns where not all were looked at."""
    looked_at = thinned(image_set, 200)
    labels, pixels = looked_at.labels, count_classes(looked_at, skip=True).sum(0)
    names, problem = image_set.classes.names, ""
    seen = [name for name, pixel in zip(names, pixels, strict=False) if pixel]
    if pixels[IGNORE] and not seen:
        problem = "ignore every pixel (255)"
    elif len(seen) == 1 and (pixels[IGNORE] or len(names) > 1):
        problem = f"hold no class but {seen[0]!r}" + " and 255 = ignore" * bool(pixels[IGNORE])
        if seen[0] == names[0] and pixels[IGNORE]:
            problem += (
                ": is class 1 stored as 255? Then write 1 for 255, or give its colour, white, in a class_dict.csv"
            )
    if problem:
        problem = (
            f"--day {image_set.name}: its {len(labels):,} labels looked at {problem}; there is nothing to tell apart"
        )
        if len(labels) == len(image_set.labels):
            raise InputError(problem)
        warn(problem)
    elif seen and len(seen) < len(names):
        unseen = ", ".join(name for name in names if name not in seen)
        say(f"{image_set.name}: in {len(labels):,} labels looked at never occur: {unseen}")


def check_files(sets: dict[str, list[ImageSet]], held: dict[str, list[ImageSet]], labelled, options) -> None:
    """Read each image that a training may read, of the options `labelled` also its label, and say their sizes.

    sets: option → what is trained on; held: the same of what is held out. What cannot be read is listed; then raises
    `InputError` naming the first, unless the training goes on without all of it.
    """
    problems, stuck = [], False
    groups = [(option, some, None) for option, some in sets.items()]
    groups += [(option, some, options.validate_images) for option, some in held.items()]
    for option, some, most in groups:
        files = [(image, label, s) for s in some for image, label in zip(s.images, s.labels, strict=True)]
        files = [files[i] for i in evenly(len(files), most or len(files))]

        def look(file: tuple[Path, Path, ImageSet], option=option) -> tuple[int, int] | InputError:
            path, label, s = file
            try:
                image = Images([path])[0]
                if option in labelled:
                    read_label(label, s.label_kind, s.classes, (image.height, image.width))
                return image.height, image.width
            except InputError as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:
            found = list(counted(pool.map(look, files), len(files), "files"))
        problems += [x for x in found if isinstance(x, InputError)]
        sizes = Counter(x for x in found if not isinstance(x, InputError))
        stuck |= bool(files) and not sizes and not most
        shown = [f"{height}x{width} ({n:,})" for (height, width), n in sizes.most_common(3)]
        shown += [f"{len(sizes) - 3:,} other sizes"] * (len(sizes) > 3)
        if files:
            names = dict.fromkeys(s.name for s in some)
            say(f"{', '.join(names)}: {len(files):,} files opened, height x width {', '.join(shown) or 'none'}")
    for problem in problems[:LISTED]:
        say(f"  {problem}")
    if len(problems) > LISTED:
        say(f"  and {len(problems) - LISTED:,} more")
    unskippable = [problem for problem in problems if not isinstance(problem, Unreadable)]
    if unskippable or problems and not options.skip_unreadable:
        first = (unskippable or problems)[0]
        rest = f", nor can {len(problems) - 1:,} more" * (len(problems) > 1)
        hint = "" if unskippable or stuck else "; --skip-unreadable goes on without what cannot be read"
        raise InputError(f"{first}{rest}{hint}")
    for image_set in (s for option in labelled for s in sets.get(option, ())):
        check_labels(image_set)
