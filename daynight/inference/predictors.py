"""A trained network as a function of a PIL image: `daynight.load_segmenter` and `daynight.load_generator`."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from daynight.config import pair
from daynight.data.images import upright
from daynight.data.labels import Classes, colorize
from daynight.inference.tiles import logits_of, translations
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import classes_of, load_model


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: the GPU if there is one, else the CPU."""
    if name:
        return torch.device(name)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


class Segmenter:
    """Labels an image as `daynight predict` does.

    names and colors (RGB, 0 to 255) of the classes, in the order of train ids. model: the network, B×3×H×W in [-1, 1] →
    logits.
    """

    def __init__(self, path: str, device: torch.device):
        self.model: DeepLabV2 = load_model(path, "teacher", "load_segmenter:", DeepLabV2).to(device)
        self.names, self.colors = classes_of(self.model)
        self._place = SimpleNamespace(device=device, autocast=nullcontext)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """H×W train ids at the image's own size."""
        with torch.inference_mode():
            logits = logits_of(self.model, [upright(image)], self.model.config["size"], self._place)
            return logits[0].max(0).indices.to(torch.uint8).cpu().numpy()

    def colorize(self, labels: NDArray[np.uint8]) -> Image.Image:
        """H×W train ids in the colours of their classes."""
        return Image.fromarray(colorize(labels, Classes(self.names, self.colors)))


class Translator:
    """Translates an image as `daynight translate` does. model: the generator, B×3×H×W in [-1, 1] → the same."""

    def __init__(self, path: str, part: str, device: torch.device):
        self.model: Generator = load_model(path, part, "load_generator:", Generator).to(device)
        self._place = SimpleNamespace(device=device, autocast=nullcontext)

    def __call__(self, image: Image.Image, whole: bool = False) -> Image.Image:
        """An RGB image of the same size. `whole`: translate it in one piece, not in overlapping tiles of the training
        crop's size."""
        size, crop = self.model.config["size"], None if whole else self.model.config["crop"]
        results = translations(self.model, [upright(image)], size, crop and pair(crop), 1, self._place, threads=0)
        return next(results)[2]
