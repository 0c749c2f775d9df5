"""`--dry-run`: two steps of a training, and what all of it will take."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from daynight.system.console import Meter, duration, say, warn
from daynight.system.errors import InputError


def check_writable(folder: Path) -> Path:
    """The nearest folder that is there, at or above this one. Raises `InputError` where nothing can be made in it."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: nothing can be written in {place}")
    return place


def rehearse(run, loader: Iterator[dict], cost: Callable[[int], float], done: int) -> Iterator[tuple[int, dict]]:
    """The last two steps of a `Run`, which are as dear as any, in its temporary folder; then says what it will take.

    `done`: the steps that are done already of the run in `--out`.
    """
    run.meter = Meter(run.total, run.first, "steps", lambda done: False, cost)
    for step in range(run.first, run.total):
        began = time.monotonic()
        batch = next(loader)
        drawn = time.monotonic()
        yield step, batch
        ended = time.monotonic()
    # `run.updated` is when the update was done; then came what is done at each checkpoint
    data, update, preview = drawn - began, run.updated - drawn, ended - run.updated
    readers = min(run.readers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    a_step = max(update, data / readers) if readers else update + data
    seconds = a_step * sum(map(cost, range(done, run.total))) / cost(run.total - 1)
    seconds += preview * (run.total - done) / run.options.save_every
    validation = run.try_validation()
    if run.options.validate_every:
        seconds += validation * (run.total - done) / run.options.validate_every
    if run.accelerator.is_main_process:
        beside = f"read by {readers} processes beside" if readers else "read before it"
        say(f"memory      {run.memory()}")
        say(f"a step      {a_step:.3g} s: {update:.3g} s of compute; its images take {data:.3g} s, {beside}")
        if validation:
            say(f"validation  {duration(validation)}, every {run.options.validate_every:,} steps")
        of = f"{run.total - done:,} of {run.total:,} steps" if done else f"{run.total:,} steps"
        say(f"the run     {duration(seconds)} for {of}")
        tell_disk(run)
        say(f"dry run: nothing is wrong, and nothing was written to {run.options.out}")


def tell_disk(run) -> None:
    """What the run's folder will take, in a line, beside what is free."""
    saves = -(-run.total // run.options.save_every)
    checkpoint = sum(map(size_of, run.parts.values()))
    checkpoint += sum(map(size_of, run.local_parts.values())) * run.accelerator.num_processes
    models = sum(map(size_of, run.products.values()))
    if "best" in run.parts:  # another copy of the models, in checkpoints too
        checkpoint, models = checkpoint + models, 2 * models
    previews = saves * sum(path.stat().st_size for path in run.folder.glob("previews/*"))
    lines = (run.folder / "metrics.jsonl").stat().st_size * -(-run.total // run.options.log_every)
    cache = run.cache.planned
    whole = 3 * checkpoint + models + previews + lines + cache
    place = check_writable(Path(run.options.out))
    free = shutil.disk_usage(place).free
    say(
        f"disk        {gib(whole)}: two checkpoints of {gib(checkpoint)} and a third while it is written, "
        f"models {gib(models)}, previews ({saves:,}) {gib(previews)}, metrics {gib(lines)}, "
        f"cache {gib(cache)}; free there: {gib(free)}"
    )
    if free < whole:
        warn(f"--out {run.options.out}: {gib(whole)} are needed, {gib(free)} are free there")


def size_of(part) -> int:
    """Bytes of the tensors in what has a `state_dict`; of one that fills up (`filled`, 0 to 1) when it is full."""

    def of(state) -> int:
        if isinstance(state, torch.Tensor):
            return state.nbytes
        inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
        return sum(map(of, inner))

    return round(of(part.state_dict()) / (getattr(part, "filled", 1) or 1))


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
