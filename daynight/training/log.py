"""What a training tells: metrics.jsonl, previews/ and index.html in its folder, and Accelerate's trackers (`--log`)."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from daynight.reports.record import newest_first
from daynight.system.console import say, warn
from daynight.system.errors import InputError, RunError
from daynight.system.files import replace
from daynight.training.checkpoint import left_in, writing
from daynight.training.page import Report


class Log:
    """The values of a run's steps, averaged over steps and processes; only the first process writes.

    `every`: steps between lines of metrics.jsonl; the last of `total` steps always writes one.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, total: int, every: int):
        self.folder, self.accelerator, self.total, self.every = folder, accelerator, total, every
        self.file = folder / "metrics.jsonl"
        # since the last line, of each name: those of this process, and those averaged over the processes before
        self.values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.averaged: dict[str, torch.Tensor] = {}
        self.trackers, self.page = Trackers(accelerator), Report(folder)

    def resume(self, step: int, values: dict[str, torch.Tensor], page: dict) -> None:
        """Go on after `step` steps: later lines are cut off, `values` and `page` are what `state` gave."""
        self.averaged = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}
        if self.accelerator.is_main_process and self.file.is_file():
            ends = (end for _, end in newest_first(self.file, step)) if step else iter(())
            if self.file.is_symlink() or self.file.stat().st_nlink > 1:  # the other may be of the run that was copied
                replace(self.file, partial(shutil.copyfile, self.file))
            os.truncate(self.file, next(ends, 0))
            self.page = Report(**page | {"folder": self.folder})

    def lines(self, step: int, steps: int) -> list[dict]:
        """The lines of metrics.jsonl of the last `steps` steps up to `step`."""
        if not self.file.is_file():
            return []
        found = (line for line, _ in newest_first(self.file, step))
        return list(takewhile(lambda line: line["step"] > step - steps, found))[::-1]

    def due(self, step: int) -> bool:
        """Whether a line is due when so many steps are done."""
        return step % self.every == 0 or step == self.total

    def add(self, step: int, values: dict) -> dict | None:
        """Take in the values of step `step`, counted from 0: 0-d tensors or numbers, or 1-d tensors of two, a sum and a
        count, per sample.

        Where a line is due, write and return it: the means since the last line, over the steps, or over what was
        counted, if anything was. Raises `RunError` when a value is no longer a number.
        """
        for name, value in values.items():
            self.values[name].append(torch.as_tensor(value, dtype=torch.float32).detach())
        if not self.due(step + 1):
            return None
        means = self.means(step + 1)
        self.averaged = {}
        if self.accelerator.is_main_process:
            with writing(self.folder, step + 1), open(self.file, "a") as file:
                file.write(json.dumps({"step": step + 1} | means) + "\n")
            self.trackers.each(lambda tracker: tracker.log(means, step=step + 1))
        return {"step": step + 1} | means

    def means(self, step: int) -> dict[str, float]:
        """The means of the values since the last line, each averaged over the processes first.

        Raises `RunError` naming the first that is no number, and its step, when `step` steps are done.
        """
        rows = [torch.stack(values).to(self.accelerator.device) for values in self.values.values()]
        # in one call: each would wait for the device and for the other processes
        joined = self.accelerator.reduce(torch.cat([x.flatten() for x in rows]), "mean").cpu() if rows else None
        bad, start = [], 0
        for name, row in zip(self.values, rows, strict=True):
            part, start = joined[start : start + row.numel()].view(row.shape), start + row.numel()
            first = step + 1 - len(part)
            bad += [(first + i, name, v) for i, v in enumerate(part.tolist()) if not np.isfinite(v).all()]
            self.averaged[name] = torch.cat([self.averaged[name], part]) if name in self.averaged else part
        if bad:
            step, name, value = min(bad, key=lambda found: found[0])
            raise RunError(f"{name} is {value} at step {step:,}{left_in(self.folder)}; a lower --lr may help")
        self.values.clear()
        sums = {n: (x.double().sum(), len(x)) if x.ndim == 1 else x.double().sum(0) for n, x in self.averaged.items()}
        return {name: float(total / count) for name, (total, count) in sums.items() if count > 0}

    def state(self, step: int) -> tuple[dict[str, torch.Tensor], dict]:
        """For a checkpoint after `step` steps: the values since the last line, and what the page has read."""
        self.means(step)
        return self.averaged, self.page.state()

    def preview(self, step: int, image: Image.Image) -> None:
        """Write an image grid to previews/ when `step` steps are done."""
        if self.accelerator.is_main_process:
            path = self.folder / f"previews/{step:07d}.png"
            with writing(self.folder, step):
                path.parent.mkdir(exist_ok=True)
                replace(path, lambda temporary: image.save(temporary, "PNG"))
            self.trackers.each(lambda tracker: log_image(tracker, image, step))

    def write_page(self, step: int, status: str | None) -> None:
        """Write index.html after so many steps. `status`: what a run that goes on is doing; None when it ends."""
        if self.accelerator.is_main_process:
            with writing(self.folder, step):
                self.page.write(step, self.total, status)


def check_trackers(names: Sequence[str]) -> None:
    """Raises `InputError` for what is no tracker of Accelerate, and naming the package of one that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"--log {name}: no tracker; wanted: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise InputError(f"--log {name}: the package {name} is not installed; pip install {name}")


class Trackers:
    """The trackers of an Accelerator, used by its main process alone. The training goes on without one that fails."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def start(self, folder: Path, options: dict) -> None:
        """Begin a run named like its folder, with its options. Raises `InputError` where a tracker refuses."""
        place, name = str(folder), folder.resolve().name
        settings = {
            "wandb": {"name": name, "dir": place},
            "trackio": {"name": name},
            "swanlab": {"experiment_name": name, "logdir": f"{place}/swanlab"},
            "mlflow": {"run_name": name},
            "clearml": {"task_name": name},
            # by default it writes dvc.yaml here and commits to the git repository that it finds around it
            "dvclive": {"dir": f"{place}/dvclive", "dvcyaml": None, "save_dvc_exp": False},
        }
        options = {key: x if isinstance(x, bool | int | float | str) else str(x) for key, x in options.items()}
        try:
            self.accelerator.init_trackers("daynight", options, settings)
        # trackers raise exceptions of many kinds
        except Exception as error:
            names = ", ".join(map(str, self.accelerator.log_with))
            raise InputError(f"--log {names}: cannot begin ({' '.join(str(error).split())})") from error
        for tracker in self.accelerator.trackers:
            say(f"logging to {tracker.name} too")

    def finish(self) -> None:
        self.each(lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()

    def each(self, call: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.accelerator.trackers):
            try:
                call(tracker)
            # trackers raise exceptions of many kinds, and no failure there is worth a training
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                warn(f"--log {tracker.name}: going on without it ({' '.join(str(error).split())})")


def log_image(tracker: GeneralTracker, image: Image.Image, step: int) -> None:
    """Accelerate has `log_images` for half of its trackers, and each takes another kind of image."""
    if tracker.name == "tensorboard":
        tracker.log_images({"preview": np.asarray(image)[None]}, step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({"preview": [image]}, step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({"preview": image}, step)
