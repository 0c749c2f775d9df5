"""The stages of the whole method: each is a command with its options, and leaves a folder that goes on by hand."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from PIL import Image

from daynight import segmentation, translation
from daynight.config import EvalOptions, Options, declared, default_of
from daynight.evaluation import scoring
from daynight.inference.tiles import segment
from daynight.inference.translate import translate
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import load_model
from daynight.system.console import say

COMMANDS = {"translate-train": translation.train, "seg-train": segmentation.train, "translate": translate}


class Stage(NamedTuple):
    """title: what it does, in words. command: a key of `COMMANDS`."""

    title: str
    command: str
    options: Options


def follow(stages: Sequence[Stage]) -> None:
    """Run the stages one after the other, each under its number, its title and its command line."""
    for number, stage in enumerate(stages, 1):
        say(f"\n{number}. {stage.title}: {line_of(stage.command, stage.options)}")
        COMMANDS[stage.command](stage.options)


def line_of(command: str, options: Options) -> str:
    """The command line that gives these options, for a shell."""
    words, facts = ["daynight", command], declared(type(options))
    for f in fields(options):
        value, spelt = getattr(options, f.name), f"--{f.name.strip('_').replace('_', '-')}"
        if value != default_of(f):
            flag = {True: spelt, False: facts[f.name]["off"]}.get(value) if isinstance(value, bool) else None
            given = value if isinstance(value, list) else [value]
            words += [flag] if flag else [word for one in given for word in (spelt, str(one))]
    return shlex.join(words)


def scores(runs: dict[str, str], sets: dict[str, str], shared: dict) -> list[dict]:
    """Score runs (row → folder) on data sets (name → "day" or "night"). Returns the entries of `eval --json`, each with
    its "row", and "day" or "night" as "dataset"."""
    options = EvalOptions(model=list(runs.values()), dataset=list(sets), **shared)
    say(f"\nscores by day and by night: {line_of('eval', options)}")
    rows = {folder: row for row, folder in runs.items()}
    return [x | {"row": rows[x["model"]], "dataset": sets[x["dataset"]]} for x in scoring.evaluate(options)]


def labelled_by(run: str, images: Sequence[Image.Image], accelerator) -> list[np.ndarray]:
    """What the teacher of a run makes of images: H×W train ids each."""
    model = load_model(run, "teacher", "--model", DeepLabV2).to(accelerator.device)
    found = segment(model, images, model.config["size"], None, accelerator)
    return [labels.cpu().numpy() for _, _, labels, _ in found]
