"""Semantic segmentation that works at night, learned from labelled day images alone."""

import os
from typing import TYPE_CHECKING, Literal

from daynight.system import __version__

if TYPE_CHECKING:
    from daynight.inference.predictors import Segmenter, Translator

__all__ = ["__version__", "load_generator", "load_segmenter"]


def load_segmenter(path: "str | os.PathLike[str]", device: str | None = None) -> "Segmenter":
    """A trained segmentation network: `segmenter(image)` gives the H×W train ids of a PIL image.

    path: a run of seg-train, a model folder, or a Hub id, also id@revision. device: "cpu", "cuda:1", …; default: the
    GPU if there is one. Raises `daynight.system.errors.InputError` if there is no such model.
    """
    from daynight.inference.predictors import Segmenter, device_of

    return Segmenter(os.fspath(path), device_of(device))


def load_generator(
    path: "str | os.PathLike[str]", part: Literal["day2night", "night2day"] = "day2night", device: str | None = None
) -> "Translator":
    """A trained generator: `translator(image)` gives the translation of a PIL image, of the same size.

    path: a run of translate-train that has `part`, a model folder, or a Hub id. device and errors: as `load_segmenter`.
    """
    from daynight.inference.predictors import Translator, device_of

    return Translator(os.fspath(path), part, device_of(device))
