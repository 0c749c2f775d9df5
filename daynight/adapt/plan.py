"""What `adapt` will do in the hours given: network sizes and steps, by the times of real steps on this machine."""

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich import box
from rich.table import Table

from daynight import segmentation, translation
from daynight.config import AdaptOptions, SegTrainOptions, TranslateTrainOptions, pair
from daynight.data.formats import open_image
from daynight.data.sets import ImageSet, evenly
from daynight.data.transforms import target_size
from daynight.models.hub import lite
from daynight.system.console import console, duration, say, show, warn
from daynight.system.errors import InputError
from daynight.system.files import read_json
from daynight.system.processes import gathered

RECIPES = Path(__file__).parents[1] / "recipes"
TRAININGS = {"baseline": "seg-train", "darken": "seg-train", "translator": "translate-train", "ssl": "seg-train"}
OPTIONS = {"seg-train": SegTrainOptions, "translate-train": TranslateTrainOptions}
SETTINGS = {"baseline": {"train_on": "day"}, "darken": {"translator": "darken", "ssl": True}, "translator": {}}
REHEARSED, LISTED = 5, 200  # steps of each training that are measured, on so many images of each set
SPARE = 0.1  # of the hours: a machine has other things to do
CHECKPOINTS, VALIDATIONS = 8, 4  # of each training


def sizes(options: AdaptOptions, device: str) -> list[dict]:
    """The sizes to choose from on this kind of device, the largest first. Each has a name, the `scale` (least and most)
    of its steps, and for each training the settings of its recipe with its own.

    Raises `InputError` where the table is none.
    """
    path = Path(options.table or RECIPES / "adapt.json")
    try:
        found = [size for size in read_json(path)["adapt"] if size["device"] == ("cpu" if device == "cpu" else "gpu")]
        for size in found:
            recipe, (_, _) = read_json(RECIPES / f"{size['recipe']}.json"), size["scale"]
            for command, kind in OPTIONS.items():
                given = recipe.get(command, {}) | size[command]
                size[command] = {k.replace("-", "_"): x for k, x in given.items() if not k.startswith("#")}
                size[command] = {"steps": kind.steps} | size[command]
                kind(**size[command])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"--table {path}: {type(error).__name__} {error}; wanted: as recipes/adapt.json") from error
    if not found:
        raise InputError(f"--table {path}: no size for this device, {device}")
    return found[::-1]


def make_plan(options: AdaptOptions, sets: dict[str, list[ImageSet]], scored: int, shared: dict, device: str) -> dict:
    """Measure the sizes, the largest first, until one fits into the hours. sets: option → what is trained on; scored:
    the number of labelled images. Raises `InputError`, which names the least, if none fits.

    Returns the name of the size, its settings for each training with the steps, and the seconds of each stage.
    """
    began, least, problem = time.monotonic(), None, None
    for size in sizes(options, device):
        name, (lowest, most) = size["name"], size["scale"]
        say(f"measuring the steps of {name!r} …")
        try:
            costs = measure(with_weights(size), options, sets, shared)
        except (InputError, torch.OutOfMemoryError) as error:  # a smaller size may need less
            problem = error
            warn(f"the size {name!r} is passed over: {error}")
            continue
        spent = max(gathered(time.monotonic() - began))
        full = stage_seconds(size, costs, 1.0, sets["--day"][0], scored)
        none = stage_seconds(size, costs, 0.0, sets["--day"][0], scored)
        fixed, by_scale = sum(none.values()), sum(full.values()) - sum(none.values())
        scale = min(most, (3600 * options.hours * (1 - SPARE) - spent - fixed) / by_scale)
        if scale >= lowest:
            for command in OPTIONS:
                steps = size[command]["steps"] = max(1, round(scale * size[command]["steps"]))
                size[command] |= {"save_every": max(1, steps // CHECKPOINTS), "log_every": max(1, min(50, steps // 20))}
                size[command] |= {"validate_every": max(1, steps // VALIDATIONS)}
            seconds = stage_seconds(size, costs, 1.0, sets["--day"][0], scored)
            chosen = {"size": name, "more": scale < most, **{command: size[command] for command in OPTIONS}}
            return chosen | {"hours": options.hours, "seconds": {"checks": spent} | seconds}
        # what a second measurement may differ by is allowed for
        least = 1.1 * (spent + fixed + lowest * by_scale) / (1 - SPARE) / 3600
        say(f"{name!r} needs {duration(3600 * least)} or more")
    if least is None:
        raise problem
    wanted = math.ceil(least * 100) / 100
    raise InputError(f"--hours {options.hours:g}: nothing sensible fits; the least on this machine is {wanted:g}")


def with_weights(size: dict) -> dict:
    """A size, which takes from the Hub what the extra `lite` would hold if it were installed."""
    for command, network in (("translate-train", "feature_network"), ("seg-train", "backbone")):
        settings, weights = size[command], network.split("_")[0] + "_weights"
        if settings.get(weights) == "lite":
            try:
                lite(settings[network], f"--{weights.replace('_', '-')}")
            except InputError:
                settings[weights] = "pretrained"
    return size


def measure(size: dict, options: AdaptOptions, sets: dict, shared: dict) -> dict[str, tuple]:
    """Stage → (seconds to begin it, `Cost`), by dry runs of the trainings on some images; "ssl" costs what "darken"
    does. The same on every process."""
    costs = {}
    with TemporaryDirectory(prefix="daynight-") as folder, console.capture():
        for stage, settings in SETTINGS.items():
            command, some = TRAININGS[stage], Path(folder, f"{stage}.txt")
            read = sets["--day"] + sets["--night"] * (stage != "baseline")
            few = [s.images[i].relative_to(s.root).as_posix() for s in read for i in evenly(len(s.images), LISTED)]
            some.write_text("\n".join(few), encoding="utf-8", errors="surrogateescape")
            given = size[command] | settings | shared | {"day": options.day, "night": options.night}
            given |= {"list_": [str(some)], "dry_run": True, "out": str(Path(folder, stage)), "cache": "off"}
            began = time.monotonic()
            train = {"seg-train": segmentation.train, "translate-train": translation.train}[command]
            cost = train(OPTIONS[command](**given), REHEARSED)
            beginning = max(0.0, time.monotonic() - began - REHEARSED * cost.step - cost.validation)
            costs[stage] = gathered((beginning, cost))[0]
    return costs | {"ssl": costs["darken"]}


def stage_seconds(size: dict, costs: dict, scale: float, day: ImageSet, scored: int) -> dict[str, float]:
    """Stage → seconds, if the steps of a size are scaled so. scored: how many labelled images each row is scored on."""
    seconds = {}
    for stage, command in TRAININGS.items():
        beginning, cost = costs[stage]
        seconds[stage] = beginning + CHECKPOINTS * cost.checkpoint + (1 + VALIDATIONS) * cost.validation
        seconds[stage] += scale * size[command]["steps"] * cost.step
    image = open_image(day.images[0])

    def crops(command: str) -> float:
        height, width = target_size(image.height, image.width, size[command].get("size", OPTIONS[command].size))
        crop = pair(size[command].get("crop", OPTIONS[command].crop))
        return height * width / (crop[0] * crop[1])

    # a step of the translator is some 16 passes of G on a crop; tiles overlap
    translating = len(day.images) * crops("translate-train") * costs["translator"][1].step / 4
    # of an image of a batch a third is the pass forward; labels are computed at the image's own size
    batch = size["seg-train"].get("batch_size", SegTrainOptions.batch_size)
    looking = 2 / 3 * crops("seg-train") * costs["baseline"][1].step / batch
    last = {"translated": translating + 2 * looking * len(day.images), "ssl": seconds.pop("ssl")}
    return seconds | last | {"scores and page": 30 + 3 * looking * (scored + 6)}


def show_plan(plan: dict, lines: dict[str, str]) -> None:
    """Print the plan as a table. lines: stage → what it does."""
    table, seconds = Table("stage", "what it does", "steps", "time", box=box.SIMPLE), plan["seconds"]
    for stage, taken in seconds.items():
        steps = f"{plan[TRAININGS[stage]]['steps']:,}" if stage in TRAININGS else ""
        table.add_row(stage, lines.get(stage, ""), steps, duration(taken))
    table.add_row("all", "", "", f"{duration(sum(seconds.values()))} of {duration(3600 * plan['hours'])}")
    say(f"the plan, sizes {plan['size']!r}:")
    show(table)
