"""`--log`: what a training logs, also to Accelerate's trackers (TensorBoard, Weights & Biases, …)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from daynight.system.console import say, warn
from daynight.system.errors import InputError


def check_trackers(names: Sequence[str]) -> None:
    """Raises `InputError` for what is no tracker of Accelerate, and naming the package of one that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"--log {name}: no tracker; wanted: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise InputError(f"--log {name}: the package {name} is not installed; pip install {name}")


class Trackers:
    """The trackers of an Accelerator, for its main process alone. One that fails later is gone on without."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def start(self, folder: Path, options: dict) -> None:
        """Begin a run named as its folder, with its options. Raises `InputError` where a tracker refuses."""
        place, name = str(folder), folder.resolve().name
        settings = {
            "wandb": {"name": name, "dir": place},
            "trackio": {"name": name},
            "swanlab": {"experiment_name": name, "logdir": f"{place}/swanlab"},
            "mlflow": {"run_name": name},
            "clearml": {"task_name": name},
            # else it writes dvc.yaml here and commits to the git repository that it finds around it
            "dvclive": {"dir": f"{place}/dvclive", "dvcyaml": None, "save_dvc_exp": False},
        }
        options = {key: x if isinstance(x, bool | int | float | str) else str(x) for key, x in options.items()}
        try:
            self.accelerator.init_trackers("daynight", options, settings)
        # of as many kinds as there are trackers
        except Exception as error:
            names = ", ".join(map(str, self.accelerator.log_with))
            raise InputError(f"--log {names}: cannot begin ({' '.join(str(error).split())})") from error
        for tracker in self.accelerator.trackers:
            say(f"logging to {tracker.name} too")

    def log(self, values: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def preview(self, image: Image.Image, path: Path, step: int) -> None:
        """An image, which is also in the file `path`."""
        self._each(lambda tracker: log_image(tracker, image, path, step))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()

    def _each(self, call: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.accelerator.trackers):
            try:
                call(tracker)
            # of as many kinds as there are trackers, and none is worth a training
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                warn(f"--log {tracker.name}: going on without it ({' '.join(str(error).split())})")


def log_image(tracker: GeneralTracker, image: Image.Image, path: Path, step: int) -> None:
    """As `preview`; Accelerate has `log_images` for half of its trackers, of three kinds."""
    name, inner = "preview", tracker.tracker
    if tracker.name == "tensorboard":
        tracker.log_images({name: np.asarray(image)[None]}, step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({name: [image]}, step)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({name: image}, step)
    elif tracker.name == "comet_ml":
        inner.log_image(image, name, step=step)
    elif tracker.name == "dvclive":
        inner.log_image(f"{name}/{path.name}", image)
    elif tracker.name == "mlflow":
        tracker.log_artifact(str(path), name)
    elif tracker.name == "trackio":
        import trackio

        inner.log({name: trackio.Image(image)}, step=step)
