"""What surrounds a training loop: its folder, Accelerate, steps with progress, metrics, checkpoints, resume."""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import accelerate
import numpy as np
import timm
import torch
from accelerate.utils import set_seed
from PIL import Image
from safetensors import SafetensorError

from daynight import __version__
from daynight.config import free
from daynight.data.cache import Cache
from daynight.models.hub import identity, save_model
from daynight.reports.card import write_card
from daynight.system.console import Meter, say, warn
from daynight.system.errors import InputError, RunError
from daynight.system.files import Lock, is_free, replace, sync, write_json
from daynight.system.processes import gathered, make_accelerator, together
from daynight.training.checkpoint import read_state, save_state
from daynight.training.dry_run import check_writable, rehearse
from daynight.training.log import Trackers, check_trackers
from daynight.training.page import Report
from daynight.training.watchdog import Watchdog

BEFORE = {"validate_every": 0}  # what a run that began before the option was there has


def ramp(step: int, steps: int, start: float, end: float, since: float = 0.0) -> float:
    """ρ, λ_ssl and the learning rate (§4.2): linear over `steps` from `start` to `end`, 0 before `since` of them."""
    if step < since * steps:
        return 0.0
    return start + (end - start) * step / max(1, steps - 1)


def up_to(step: int, line: str) -> bool:
    """Whether a line of metrics.jsonl is whole and of a step no later than this one."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def revision() -> str | None:
    """The git revision of the code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict:
    return {
        "daynight": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "accelerate": accelerate.__version__,
        "timm": timm.__version__,
    }


class Run:
    """A training's folder and what its loop borrows.

    `Run(options)` starts Accelerate; `open(data)` claims the folder; `track(…)` names what a checkpoint holds,
    `keep(…)` the models that are the product; `restore()` goes on from the newest checkpoint; then
    `for step, batch in steps(loader): …`, in which the loop calls `log(step, losses)` and, when `due(step)`,
    `preview(step, image)`.
    """

    def __init__(self, options):
        self.options, self.folder, self.total = options, Path(options.out), options.steps
        check_trackers(options.log)
        settings = {"log_with": options.log, "project_dir": options.out} if options.log else {}
        self.accelerator = make_accelerator(options.precision, **settings)
        self.trackers = Trackers(self.accelerator)
        self.device = self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if options.batch_size % world:
            raise InputError(f"--batch-size {options.batch_size}: not a multiple of the {world} processes")
        share = options.batch_size // world
        self.slots = range(rank * share, (rank + 1) * share)
        gpu = self.device.type != "cpu"
        self.readers = options.num_workers if options.num_workers is not None else 4 * gpu
        self.workers = 0 if options.dry_run else self.readers  # there to see how long it takes to read
        self.local_file = f"process-{rank}.safetensors"
        self.first, self.signal, self.lock = 0, 0, nullcontext()
        self.parts, self.local_parts, self.products = {}, {}, {}
        self.values: dict[str, list] = {}
        self.page = Report(self.folder)
        cache = None if options.dry_run else Path(options.cache or self.folder / "cache")
        self.cache = Cache(cache, 0 if options.cache == "off" else 1e9 * options.cache_limit)
        self.alive: Callable[[], None] = lambda: None  # to be called within a long step
        self.try_validation: Callable[[], float] = lambda: 0.0  # the seconds that one will take
        set_seed(options.seed)

    def open(self, data: dict[str, str], sets: dict[str, list] | None = None) -> None:
        """Make the folder, or check that the run in it is this one. `data`: option → fingerprint of what it names;
        `sets`: option → the sets of images that are trained on, for the model's card.

        Raises `InputError` naming the option that differs, or why the folder cannot be used.
        """
        with together():
            if self.accelerator.is_main_process:
                goes_on = self._check(data)
                if self.options.dry_run:
                    check_writable(self.folder)
                else:
                    self._claim(data, sets or {}, goes_on)
                    self.trackers.start(self.folder, asdict(self.options))
        if self.options.dry_run:
            self.done = max((int(path.name[11:]) for path in self._checkpoints()), default=0)
            self.temporary = TemporaryDirectory(prefix="daynight-")
            self.folder, self.first = Path(self.temporary.name), max(0, self.total - 2)
            self.page = Report(self.folder)

    def _check(self, data: dict[str, str]) -> bool:
        """Whether the folder holds this run, with a checkpoint."""
        may_differ = free(type(self.options))
        given = {name: value for name, value in asdict(self.options).items() if name not in may_differ}
        path = self.folder / "options.json"
        if not self.folder.is_dir() and self.folder.exists():
            raise InputError(f"--out {self.folder}: a file stands there; wanted: a folder")
        if path.is_file() and not self.options.resume:
            raise InputError(f"--out {self.folder}: holds a run already; give another --out or leave --no-resume")
        # without a checkpoint nothing is lost by beginning again, with other options or data
        goes_on = path.is_file() and self._checkpoints()
        if goes_on:
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
                former = {key.replace("-", "_"): value for key, value in before["options"].items()}
                fingerprints = dict(before["data"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: not the options of a run ({error})") from error
            for name, value in given.items():
                # a run of an earlier version mostly had what is now the default
                had = former.get(name, BEFORE.get(name, getattr(type(self.options), name, None)))
                if had != value:
                    raise InputError(
                        f"--{name.replace('_', '-')} {value}: the run in {self.folder} has {had}; give that, or "
                        "another --out"
                    )
            for name, fingerprint in data.items():
                if fingerprints.get(name) != fingerprint:
                    raise InputError(f"{name}: the data are not those that the run in {self.folder} began with")
        elif not path.is_file() and not is_free(self.folder):
            raise InputError(f"--out {self.folder}: not empty, and holds no run; give another folder")
        return bool(goes_on)

    def _claim(self, data: dict[str, str], sets: dict[str, list], goes_on: bool) -> None:
        self.lock = Lock(self.folder)
        if not goes_on:
            options = {name.replace("_", "-").removesuffix("-"): value for name, value in asdict(self.options).items()}
            record = {"options": options, "versions": versions(), "data": data}
            record["sets"] = {name: list(map(str, some)) for name, some in sets.items() if some}
            write_json(self.folder / "options.json", record)

    def track(self, **parts) -> None:
        """What a checkpoint holds, by name: anything with `state_dict` and `load_state_dict`."""
        self.parts |= parts

    def track_local(self, **parts) -> None:
        """The same, for what each process has of its own."""
        self.local_parts |= parts

    def keep(self, **models) -> None:
        """The models that are the run's product: written to a subfolder of this name at every checkpoint."""
        self.products |= models

    def _checkpoints(self) -> list[Path]:
        found = (path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdigit())
        return sorted(found, key=lambda path: int(path.name[11:]))

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; False where there is none and the run begins.

        Raises `InputError` where there are checkpoints and none is whole: beginning again would overwrite what is left.
        """
        checkpoints = gathered(self._checkpoints())[0]
        for folder in reversed(checkpoints):
            problem = None
            try:
                states, extra = read_state(folder / "state.safetensors", self.parts)
                # with more processes than before, the new ones begin with nothing of their own
                if self.local_parts and self.accelerator.process_index < extra["processes"]:
                    states |= read_state(folder / self.local_file, self.local_parts)[0]
                for name, state in states.items():
                    (self.parts | self.local_parts)[name].load_state_dict(state)
                first, values = extra["step"], extra["values"]
            except Exception as error:  # whatever a damaged file leads to
                problem = " ".join(str(error).split()) or type(error).__name__
            # where one process cannot read it, no other goes on from it either
            problem = next(filter(None, gathered(problem)), None)
            if problem:
                warn(f"{folder} is not whole ({problem}): trying the one before")
                continue
            self.first, self.values = first, values
            say(f"going on with {self.folder} at step {self.first:,} of {self.total:,}")
            break
        if checkpoints and not self.first:
            raise InputError(
                f"--out {self.folder}: none of its checkpoints is whole; give another --out to begin again"
            )
        metrics = self.folder / "metrics.jsonl"
        if self.accelerator.is_main_process and metrics.is_file():
            lines = metrics.read_text(errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if up_to(self.first, line)]
            replace(metrics, lambda temporary: temporary.write_text("".join(kept)))
        return bool(checkpoints)

    def lines(self) -> Iterator[dict]:
        """The lines of metrics.jsonl up to the step at which the run goes on."""
        if (self.folder / "metrics.jsonl").is_file():
            with open(self.folder / "metrics.jsonl", encoding="utf-8", errors="replace") as file:
                yield from (json.loads(line) for line in file if up_to(self.first, line))

    def steps(self, loader: Iterator[dict], cost=lambda step: 1.0) -> Iterator[tuple[int, dict]]:
        """The steps that are left, each with its batch, under a progress display; checkpoints between them.

        `cost(step)` is what one takes, in any unit.

        SIGTERM and SIGINT, to any process, end the loop of all after the step, with a checkpoint and exit status 128 +
        signal; a second SIGINT ends it at once. When no step ends for `--stall-minutes` it ends as `Watchdog` says.
        """
        if self.options.dry_run:
            with self.temporary:
                yield from rehearse(self, loader, cost, self.done)
            return
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        minutes = self.options.stall_minutes
        stalled = Watchdog(
            60 * minutes, lambda: f"no step ended for {minutes:g} minutes (--stall-minutes){self._left()}"
        )
        meter = Meter(self.total, self.first, "steps", self._logs, cost, self.memory)
        try:
            with self.lock, meter as self.meter, stalled:
                self.alive = stalled.alive
                if self.first == self.total and self.accelerator.is_main_process:
                    self._tidy(self.total)  # a run that was killed right after its last checkpoint
                self._report(self.first)
                for step in range(self.first, self.total):
                    yield step, self._draw(loader)
                    # one process may get a signal alone, or later than another
                    stop = max(gathered(self.signal))
                    if stop or self.due(step):
                        self.checkpoint(step + 1)
                    if stop:
                        self._report(step + 1, ends=True)
                        gathered(None)  # the first to end has a launcher stop the others: none before all is saved
                        say(f"{stop.name} after step {step + 1:,}: saved; the same command goes on from there")
                        raise SystemExit(128 + stop)
                    self.meter.advance()
                    stalled.alive()
                self._report(self.total, ends=True)
        finally:
            self.trackers.finish()
            for s, handler in handlers.items():
                signal.signal(s, handler)
        say(
            f"{self.folder}: {self.total:,} steps done; " + ", ".join(f"{self.folder / name}" for name in self.products)
        )

    def _draw(self, loader: Iterator[dict]) -> dict:
        """The next batch; how long it took to come is told to the meter."""
        began = time.monotonic()
        batch = next(loader)
        images = sum(len(x) for x in batch.values() if x.ndim == 4)
        self.meter.waiting(time.monotonic() - began, images * self.accelerator.num_processes)
        return batch

    def memory(self) -> str:
        """The most that has been taken so far, of the GPU or by this process, in words."""
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

    def checkpoint(self, step: int) -> None:
        """Write `checkpoint-<step>` beside, flush it to disk and rename it; the newest two are kept.

        Raises `RunError`, and writes nothing, where a logged value or a weight is no longer a number.
        """
        self._means(step)
        for name, model in self.parts.items():
            if isinstance(model, torch.nn.Module) and any(p.isnan().any() for p in model.parameters()):
                raise RunError(f"weights of {name} are nan after step {step:,}{self._left()}; a lower --lr may help")
        final = self.folder / f"checkpoint-{step:07d}"
        part = self.folder / f".{final.name}.part"
        main = self.accelerator.is_main_process
        with self._writing(step):
            if main:
                part.mkdir()
            gathered(None)
            try:
                if self.local_parts:
                    save_state(part / self.local_file, self.local_parts, {})
                if main:
                    extra = {"step": step, "processes": self.accelerator.num_processes, "values": self.values}
                    save_state(part / "state.safetensors", self.parts, extra)
                gathered(None)
                if main:
                    for path in (self.folder / "metrics.jsonl", part):
                        if path.exists():
                            sync(path)
                    shutil.rmtree(final, ignore_errors=True)
                    os.rename(part, final)
                    sync(self.folder)
                    self._tidy(step)
            finally:
                if main:
                    shutil.rmtree(part, ignore_errors=True)

    def _tidy(self, step: int) -> None:
        """Leave the newest two checkpoints up to this step, and the products of the newest."""
        kept = [path for path in self._checkpoints() if int(path.name[11:]) <= step][-2:]
        for old in self._checkpoints():
            if old not in kept:
                # by another name, lest one of which half is deleted be taken for a checkpoint
                part = old.with_name(f".{old.name}.part")
                os.rename(old, part)
                shutil.rmtree(part)
        for name, model in self.products.items():
            folder = self.folder / name
            save_model(model, folder)
            done = self.parts["best"].step if name.startswith("best/") else step
            write_card(folder, identity(folder), self.folder, self.options, free(type(self.options)), done)

    def _left(self) -> str:
        checkpoints = self._checkpoints()
        return f"; the newest checkpoint is {checkpoints[-1]}" if checkpoints else "; there is no checkpoint yet"

    @contextmanager
    def _writing(self, step: int):
        """Say what is left when a file cannot be written: a full disk, a folder that is gone."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"--out {self.folder}: cannot be written to at step {step:,} ({error}){self._left()}"
            ) from error

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return self.accelerator.reduce(tensor, "mean")

    def log(self, step: int, **values) -> dict | None:
        """Add a step's named values: 0-d tensors or numbers, or 1-d tensors of two, a sum and a count, per sample.

        Each logging step writes and returns their means since the last: over the steps, or over what was counted, if
        anything was. Raises `RunError` when one is no longer a number.
        """
        for name, value in values.items():
            self.values.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())
        if self.options.dry_run:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.updated = time.monotonic()
        if not self._logs(step + 1):
            return None
        means, self.values = self._means(step + 1), {}
        self.meter.show({name: value for name, value in means.items() if "/" not in name})
        if self.accelerator.is_main_process:
            with self._writing(step + 1), open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step + 1} | means) + "\n")
            self.trackers.log(means, step + 1)
        return {"step": step + 1} | means

    def _logs(self, step: int) -> bool:
        """Whether a line of metrics.jsonl is due when so many steps are done."""
        return step % self.options.log_every == 0 or step == self.total

    def _means(self, step: int) -> dict[str, float]:
        """The means of the values since the last line, each of which becomes that of all processes.

        Raises `RunError` naming the first that is no number, and its step, when `step` steps are done.
        """
        if not self.values:
            return {}
        as_tensor = partial(torch.as_tensor, dtype=torch.float32, device=self.device)
        rows = [torch.stack(list(map(as_tensor, values))) for values in self.values.values()]
        # at once: each would wait for the device and for the other processes
        joined = self.mean(torch.cat([x.flatten() for x in rows])).cpu()
        means, bad = {}, []
        for name, part, row in zip(self.values, joined.split([x.numel() for x in rows]), rows, strict=True):
            part = part.view(row.shape)
            first = step + 1 - len(part)
            bad += [(first + i, name, v) for i, v in enumerate(part.tolist()) if not np.isfinite(v).all()]
            self.values[name] = part.tolist()
            total, count = (part.double().sum(), len(part)) if part.ndim == 1 else part.double().sum(0)
            if count > 0:
                means[name] = float(total / count)
        if bad:
            step, name, value = min(bad, key=lambda found: found[0])
            raise RunError(f"{name} is {value} at step {step:,}{self._left()}; a lower --lr may help")
        return means

    def preview(self, step: int, image: Image.Image) -> None:
        """Write an image grid to previews/, and the page."""
        if self.accelerator.is_main_process:
            path = self.folder / f"previews/{step + 1:07d}.png"
            with self._writing(step + 1):
                path.parent.mkdir(exist_ok=True)
                replace(path, lambda temporary: image.save(temporary, "PNG"))
            self.trackers.preview(image, path, step + 1)
            self._report(step + 1)

    def _report(self, step: int, ends: bool = False) -> None:
        """Write index.html after so many steps."""
        if self.accelerator.is_main_process:
            with self._writing(step):
                self.page.write(step, self.total, None if ends else self.meter.status())
