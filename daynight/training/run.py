"""What a training's loop borrows: processes and device, a folder of its own, and steps that end well."""

import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import accelerate
import timm
import torch
from accelerate.utils import AutocastKwargs, set_seed
from PIL import Image
from rich import box
from rich.table import Table

from daynight.config import free
from daynight.data.sampling import generator
from daynight.data.sets import TIMES
from daynight.reports.record import previews_in
from daynight.reports.words import meaning
from daynight.system import __version__
from daynight.system.console import Meter, say, show, warn
from daynight.system.errors import InputError
from daynight.system.files import Lock, is_free, write_json
from daynight.system.processes import gathered, make_accelerator, together
from daynight.system.watchdog import Watchdog, heed
from daynight.training.checkpoint import Checkpoint, checkpoints_in, left_in
from daynight.training.dry_run import check_writable, rehearse
from daynight.training.graphs import WARM_UP
from daynight.training.log import Log, check_trackers


def ramp(step: int, steps: int, start: float, end: float, since: float = 0.0) -> float:
    """ρ, λ_ssl and the learning rate (§4.2): linear over `steps` from `start` to `end`, 0 before `since` of them."""
    if step < since * steps:
        return 0.0
    return start + (end - start) * step / max(1, steps - 1)


class Run:
    """A training in its folder.

    `Run(options)` starts Accelerate; `open(data)` claims the folder; `resume(checkpoint)` goes on from the newest
    checkpoint; then `for step, batch in steps(loader, checkpoint): …`, in which the loop calls `log(step, losses)` and
    `preview(step + 1)`. `slots` are the places of the global batch that this process works on.
    """

    def __init__(self, options, rehearsed: int = 2):
        """rehearsed: so many steps a dry run takes."""
        self.rehearsed, self.cost = rehearsed, None
        self.options, self.folder, self.total = options, Path(options.out), options.steps
        check_trackers(options.log)
        settings = {"log_with": options.log, "project_dir": options.out} if options.log else {}
        # a CUDA graph must not read weights that autocast cast before it
        settings["kwargs_handlers"] = [AutocastKwargs(cache_enabled=not torch.cuda.is_available())]
        minutes, folder = options.stall_minutes, self.folder
        self.accelerator = make_accelerator(options.precision, 60 * minutes, **settings)
        self.device = self.accelerator.device
        self.copying = torch.cuda.Stream() if self.device.type == "cuda" else None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if options.batch_size % world:
            raise InputError(f"--batch-size {options.batch_size}: not a multiple of the {world} processes")
        share = options.batch_size // world
        self.slots = range(rank * share, (rank + 1) * share)
        self.readers = options.num_workers if options.num_workers is not None else 4 * (self.device.type != "cpu")
        self.workers = 0 if options.dry_run else self.readers  # a dry run measures how long one process reads
        self.first, self.resumed, self.signal = 0, False, 0
        self.lock, stalled = nullcontext(), f"no step ended for {minutes:g} minutes (--stall-minutes)"
        self.watchdog = Watchdog(60 * minutes, lambda: stalled + left_in(folder)).start()
        weakref.finalize(self, self.watchdog.stop)  # in a process that outlives the training
        set_seed(options.seed)

    def open(self, data: dict[str, str], sets: dict[str, list] | None = None) -> None:
        """Make the folder, or check that the run in it is this one.

        `data`: what `fingerprints` gives; `sets`: option → the sets of images that are trained on, for the
        model's card. Raises `InputError` naming the option that differs, or why the folder cannot be used.
        """
        options = self.options
        with together():
            if self.accelerator.is_main_process:
                try:
                    goes_on = holds_run(self.folder, options, data)
                except OSError as error:
                    raise InputError(f"--out {self.folder}: {error.strerror}; give another folder") from error
                if options.dry_run:
                    check_writable(self.folder)
                else:
                    self.lock = Lock(self.folder)
                    if not goes_on:
                        write_record(self.folder, options, data, sets or {})
        if options.dry_run:
            self.temporary = TemporaryDirectory(prefix="daynight-")
            # on a GPU also those before a graph is recorded
            steps = self.rehearsed + WARM_UP * (self.device.type == "cuda")
            self.folder, self.first = Path(self.temporary.name), max(0, self.total - steps)
        self.logger = Log(self.folder, self.accelerator, self.total, options.log_every)
        with together():
            if self.accelerator.is_main_process and not options.dry_run:
                self.logger.trackers.start(self.folder, asdict(options))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the newest whole checkpoint, if there is one: sets `first`, the steps done, and `resumed`."""
        step, values, page = checkpoint.restore(self.total)
        if step:
            self.first, self.resumed = step, True
            say(f"going on with {self.folder} at step {step:,} of {self.total:,}")
        self.logger.resume(self.first, values, page)

    def steps(
        self, loader: Iterator[dict], checkpoint: Checkpoint, validation=None, cache=None, cost=lambda step: 1.0
    ) -> Iterator[tuple[int, dict]]:
        """The steps that are left, each with its batch, under a progress display; checkpoints between them.

        `cost(step)` is the work of one step, in any unit. `validation` and `cache` tell a dry run what they will take.

        SIGTERM, SIGHUP and SIGINT, to any process, end the loop of all after the step, with a checkpoint and status
        128 + signal; a second SIGINT ends it at once. If no step ends for `--stall-minutes` it ends as `Watchdog` says.
        """
        if self.options.dry_run:
            self.meter = Meter(self.total, self.first, "steps", lambda done: False, cost)
            self.watchdog.stop()
            with self.temporary:
                self.cost = yield from rehearse(self, loader, checkpoint, validation, cache, cost)
            return
        handlers = heed(self._stop, always=(signal.SIGTERM, signal.SIGINT))
        self.alive()
        self.meter = Meter(self.total, self.first, "steps", self.logger.due, cost, self.memory, self.slow)
        try:
            with self.lock, self.meter:
                if self.first == self.total and self.accelerator.is_main_process:
                    checkpoint.tidy(self.total)  # a run that was killed right after its last checkpoint
                self.logger.write_page(self.first, self.meter.status())
                for step in range(self.first, self.total):
                    began = time.monotonic()
                    batch = next(loader)
                    images = sum(len(x) for x in batch.values() if x.ndim == 4)
                    self.meter.waiting(time.monotonic() - began, images * self.accelerator.num_processes)
                    # of layers that draw by themselves, as drop path; a resumed run draws the same
                    torch.manual_seed(generator(self.options.seed, step, f"layers {self.slots}").initial_seed())
                    yield step, self.moved(batch)
                    # one process may get a signal alone, or later than another
                    stop = max(gathered(self.signal))
                    if stop or self.due(step):
                        checkpoint.save(step + 1, *self.logger.state(step + 1))
                    if stop:
                        self.logger.write_page(step + 1, None)
                        gathered(None)  # the first to end has a launcher stop the others: none before all is saved
                        say(f"{stop.name} after step {step + 1:,}: saved; the same command goes on from there")
                        raise SystemExit(128 + stop)
                    self.meter.advance()
                    self.alive()
                self.logger.write_page(self.total, None)
        finally:
            self.watchdog.stop()
            self.logger.trackers.finish()
            for s, handler in handlers.items():
                signal.signal(s, handler)
        tell_end(self, checkpoint)

    def slow(self, seconds: float) -> str:
        """What to do about a training that takes more than a day; "" where it does not."""
        other = "fewer --steps" if self.options.config in ("best", "quick") else "--config quick is for one CPU"
        return f"; more than a day: {other} (--config list shows the recipes)" * (seconds > 86400)

    def moved(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device. To a GPU it is copied beside the step that still runs there."""
        if self.device.type != "cuda":
            return {name: x.to(self.device) for name, x in batch.items()}
        now = torch.cuda.current_stream()
        with torch.cuda.stream(self.copying):
            batch = {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}
        now.wait_stream(self.copying)
        for x in batch.values():
            x.record_stream(now)  # or its memory would be free for the next copy too soon
        return batch

    def alive(self) -> None:
        """Tell the watchdog that a long step goes on."""
        self.watchdog.alive()

    def memory(self) -> str:
        """The most memory taken so far, of the GPU or by this process, in words."""
        if self.device.type == "cuda":
            return f"{torch.cuda.max_memory_reserved(self.device) / 2**30:.1f} GiB of GPU memory"
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB of memory"

    def _stop(self, number, _frame) -> None:
        # not for SIGTERM: a launcher and the batch system above it may each send it to one process
        if self.signal and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = self.signal or signal.Signals(number)

    def due(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return (step + 1) % self.options.save_every == 0 or step + 1 == self.total

    def log(self, step: int, **values) -> dict | None:
        """Add a step's named values, as `Log.add`; where a line is written, show and return it."""
        line = self.logger.add(step, values)
        if self.options.dry_run:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.updated = time.monotonic()
        if line:
            self.meter.show({name: value for name, value in line.items() if "/" not in name and name != "step"})
        return line

    def previewed(self, done: int) -> bool:
        """Whether a preview is due when so many steps are done: 0, 50, 100, 200, 400, …, and at checkpoints."""
        early = done % 50 == 0 and (done // 50).bit_count() < 2
        return early or self.due(done - 1)

    def begin_previews(self, make: Callable[[], Image.Image]) -> None:
        """Have `preview` write the grids of images that `make()` gives; of a run that begins, write the first."""
        self.make_preview = make
        if not self.resumed and not self.options.dry_run:
            self.preview(0)

    def preview(self, done: int) -> None:
        """Where it is due when so many steps are done, write a grid of images to previews/, and the page."""
        if self.previewed(done):
            if self.accelerator.is_main_process:
                self.alive()
                self.logger.preview(done, self.make_preview())
            self.logger.write_page(done, self.meter.status() if done else "starting")


def tell_end(run: Run, checkpoint: Checkpoint) -> None:
    """Show the last line of metrics.jsonl in words; say where the models are and what to do next."""
    line = next(iter(run.logger.lines(run.total, 1)), {})
    found = Table("name", "what it is", "value", "unit", box=box.SIMPLE)
    for name, value in line.items():
        if "/" not in name and name != "step" and type(value) in (int, float):
            words, unit = meaning(name)
            found.add_row(name, words, f"{value:.4g}", unit)
    if found.row_count:
        show(found)
    products = ", ".join(str(run.folder / name) for name in checkpoint.written())
    say(f"{run.folder}: {run.total:,} steps done; {products}")
    names = {name: shlex.quote(str(x)) for name, x in asdict(run.options).items() if name in ("day", "out")}
    night = next(iter(run.options.night), "NIGHT")
    names |= {"translated": shlex.quote(f"{Path(run.options.day).name}_night"), "night": shlex.quote(night)}
    say(f"next: {run.options.then.format(**names)}")


def holds_run(folder: Path, options, data: dict[str, str]) -> bool:
    """Whether a folder holds this very run, with a checkpoint to go on from.

    Raises `InputError` naming the option or the data that differ, or why the folder cannot be used.
    """
    path = folder / "options.json"
    if not folder.is_dir() and folder.exists():
        raise InputError(f"--out {folder}: a file stands there; wanted: a folder")
    if path.is_file() and not options.resume:
        raise InputError(f"--out {folder}: holds a run already; give another --out or leave --no-resume")
    if not path.is_file():
        if is_free(folder):
            return False
        raise InputError(f"--out {folder}: not empty, and holds no run; give another folder")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        former = {key.replace("-", "_"): value for key, value in record["options"].items()}
        fingerprints = dict(record["data"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"--out {folder}: options.json: not the options of a run ({error}); give another folder"
        ) from error
    # without a checkpoint nothing is lost by beginning again, with other options or data
    if not checkpoints_in(folder):
        later = [path for n, path in previews_in(folder, sys.maxsize).items() if n > former.get("save_every", 0)]
        if found := [*folder.rglob("model.safetensors"), *later]:
            raise InputError(f"--out {folder}: holds {found[0]}, and no checkpoint to go on from; give another --out")
        return False
    given = asdict(options)
    for name in sorted(former.keys() - {name.rstrip("_") for name in given}):
        raise InputError(
            f"--out {folder}: its run began with a version of daynight that has --{name.replace('_', '-')}; go on with "
            "that version, or give another --out"
        )
    for name, value in given.items():
        # a run of an earlier version had what is now the default of a new option
        had = former.get(name, getattr(type(options), name, None))
        if name not in free(type(options)) and had != value:
            raise InputError(
                f"--{name.replace('_', '-')} {value}: the run in {folder} has {had}; give that, or another --out"
                + f"; --init {folder} --out OTHER goes on from its weights" * (name == "steps")
            )
    # what a run of an earlier version did not record is not compared
    differ = [name for name, fingerprint in data.items() if fingerprints.get(name, fingerprint) != fingerprint]
    for name in sorted(differ, key=lambda name: name.endswith(TIMES)):
        option, _, part = name.partition(" ")
        named = " ".join(filter(None, (option, str(given.get(option[2:].replace("-", "_")) or ""), part)))
        if not name.endswith(TIMES):
            raise InputError(f"{named}: not what the run in {folder} began with; give that, or another --out")
        warn(f"{named}: not those that the run in {folder} began with; taken for a copy of its files")
    return True


def write_record(folder: Path, options, data: dict[str, str], sets: dict[str, list]) -> None:
    """Write options.json: options, versions, fingerprints of the data and what the sets hold."""
    named = {name.replace("_", "-").removesuffix("-"): value for name, value in asdict(options).items()}
    sets = {name: list(map(str, some)) for name, some in sets.items() if some}
    write_json(folder / "options.json", {"options": named, "versions": versions(), "data": data, "sets": sets})


def versions() -> dict[str, str | None]:
    """Of the code (the git revision, where it runs from a checkout) and of the libraries that results hang on."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    found = {"daynight": __version__, "revision": revision, "python": platform.python_version()}
    found |= {module.__name__: module.__version__ for module in (torch, accelerate, timm)}
    return found | {"cuda": torch.version.cuda}
