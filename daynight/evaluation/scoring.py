"""`eval` and `predict`: teachers on labelled data sets, as Table 1 (§4.3), and on folders without labels."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from daynight.config import EvalOptions, factors
from daynight.data.images import Images, Writer
from daynight.data.labels import CITYSCAPES, IGNORE, Classes, read_label
from daynight.data.sets import ImageSet, describe, load
from daynight.data.transforms import resize_label
from daynight.evaluation.metrics import confusion_matrix, counts
from daynight.evaluation.results import Result, fingerprint, summarise, table, write_page
from daynight.inference.tiles import reading_threads, segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports.card import CARD, add_results
from daynight.reports.previews import grid, label_image
from daynight.system.console import counted, say, show
from daynight.system.errors import InputError
from daynight.system.files import Lock, read_json, write_json
from daynight.system.processes import gathered, make_accelerator, together


class Scored(NamedTuple):
    """What is scored: a model, or a folder of predictions.

    classes: those of its train ids, None where they are the data set's. predict(set, numbers): the number and the
    H×W train ids (uint8, 255 = none) of these images of a set, one after another.
    """

    name: str
    classes: Classes | None
    settings: dict
    predict: Callable[[ImageSet, list[int]], Iterator[tuple[int, torch.Tensor]]]


def evaluate(options: EvalOptions) -> list[dict]:
    """Score every model on every data set (§4.3): prints a table, returns (and writes) one entry a pair."""
    accelerator = make_accelerator(options.precision)
    if options.dry_run:
        check_data(options)
        return []
    check_place("--json", options.json, folder=False)
    check_place("--save", options.save, folder=True)
    sets, results = compare(options, accelerator)
    models = local_models(options)
    with together():
        saves = options.save and accelerator.is_main_process
        lock = Lock(Path(options.save), "--save") if saves else nullcontext()
    with lock:
        results = list(results)
        entries = [result.entry for result in results]
        if accelerator.is_main_process:
            show(table(results))
            if options.json:
                try:
                    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                    write_json(Path(options.json), entries)
                except OSError as error:
                    raise InputError(f"--json {options.json}: {error.strerror}") from error
            if options.save:
                write_page(results, sets, Path(options.save))
                say(f"look at {Path(options.save) / 'index.html'}")
            for name, (folder, weights) in models.items():
                if add_results(folder, weights, [entry for entry in entries if entry["model"] == name]):
                    say(f"added to {folder / CARD}")
    return entries


def compare(options: EvalOptions, accelerator) -> tuple[list[ImageSet], Iterator[Result]]:
    """The data sets, and the result of each run on each of them, scored as they are asked for; every problem that can
    be known is told first."""
    names = options.model or ([] if options.predictions else ["runs/seg"])
    if not names and (options.size or options.flip or options.scales != "1"):
        raise InputError("--size, --scales and --flip are for --model; --predictions are scored as they are")
    if not options.predictions and (options.ids or options.resize):
        raise InputError("--ids and --resize are for --predictions")
    splits, root = (options.split,) if options.split else None, Path(options.data_root)
    sets = [
        load(name, root, "--dataset", splits=splits, labels=options.labels, labelled=True)
        for name in dict.fromkeys(options.dataset)
    ]
    for image_set in sets:
        say(str(image_set))
        for note in image_set.notes:
            say(f"  {note}")
    runs = [by_model(name, options, accelerator) for name in dict.fromkeys(names)]
    runs += [by_folder(name, options, sets) for name in dict.fromkeys(options.predictions)]
    class_maps = [[class_map(run, image_set, options.class_map) for image_set in sets] for run in runs]
    for kind, paths in (("model", [run.name for run in runs]), ("data set", [s.name for s in sets])):
        if options.save and len({Path(path).name for path in paths}) < len(paths):
            raise InputError(f"--save: each {kind} has a folder of its name, and {' '.join(paths)} would share one")
    return sets, (
        score(run, image_set, ids, options, accelerator)
        for run, row in zip(runs, class_maps, strict=True)
        for image_set, ids in zip(sets, row, strict=True)
    )


def local_models(options: EvalOptions) -> dict[str, tuple[Path, str]]:
    """The folder of each model that has a card on this machine, and what its weights are before hours of scoring."""
    names = options.model or ([] if options.predictions else ["runs/seg"])
    folders = {name: find_model(name, "teacher", "--model") for name in names if os.path.isdir(name)}
    return {name: (folder, identity(folder)) for name, folder in folders.items() if (folder / CARD).is_file()}


def check_data(options: EvalOptions) -> None:
    """Say what each data set holds, and read every label that would be scored."""
    splits, root = (options.split,) if options.split else None, Path(options.data_root)
    for name in options.dataset:
        for line in describe(name, root, "--dataset"):
            say(line)
        image_set = load(name, root, "--dataset", splits=splits, labels=options.labels)
        images, numbers = Images(image_set.images), [i for i, label in enumerate(image_set.labels) if label]
        if not numbers:
            say(f"{name}: no labels, so nothing to score")
            continue
        pixels = []
        for i in counted(numbers, len(numbers), "labels"):
            size = (images[i].height, images[i].width)
            labels = read_label(image_set.labels[i], image_set.label_kind, image_set.classes, size)
            pixels.append(np.bincount(labels.ravel(), minlength=256))
        of_class = np.stack(pixels)[:, : len(image_set.classes)]
        shares = 100 * of_class.sum(0) / np.sum(pixels)
        say(f"{name}: label set {fingerprint(torch.from_numpy(of_class))}; share of pixels, %:")
        shown = [f"{c} {share:.2g}" for c, share in zip(image_set.classes.names, shares, strict=True)]
        say(f"  {', '.join(shown)}; ignored {100 - shares.sum():.2g}")


def by_model(name: str, options: EvalOptions, accelerator) -> Scored:
    """Raises `InputError` where there is no such model."""
    model = load_model(name, "teacher", "--model", DeepLabV2)
    size, scales = options.size or model.config["size"], factors(options.scales)

    def predict(image_set: ImageSet, numbers: list[int]):
        model.to(accelerator.device)
        images = Images([image_set.images[i] for i in numbers])
        threads = reading_threads(options.num_workers, accelerator)
        for i, _, labels, _ in segment(
            model, images, size, options.batch_size, accelerator, threads, scales, options.flip
        ):
            yield numbers[i], labels
        model.cpu()

    return Scored(
        name, Classes(*classes_of(model)), {"size": size, "scales": list(scales), "flip": options.flip}, predict
    )


def by_folder(name: str, options: EvalOptions, sets: list[ImageSet]) -> Scored:
    """Raises `InputError` where an image has no prediction, or several."""
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"--predictions {name}: no such folder")
    ids = options.ids or "trainIds"
    # what `daynight predict` wrote says of itself what it holds
    if (folder / "prediction.json").is_file():
        ids = options.ids or read_json(folder / "prediction.json").get("ids", "trainIds")
        folder = folder / "ids"
    found = {image_set: find_predictions(folder, image_set) for image_set in sets}
    if ids == "labelIds" and any(image_set.classes != CITYSCAPES for image_set in sets):
        raise InputError("--ids labelIds: the classes of the data set are not those of Cityscapes; leave it out")

    def predict(image_set: ImageSet, numbers: list[int]):
        for i in numbers:
            path = found[image_set][i]
            labels = read_label(path, ids, image_set.classes)
            height, width = read_label(image_set.labels[i], image_set.label_kind, image_set.classes).shape
            if labels.shape != (height, width) and not options.resize:
                raise InputError(
                    f"{path}: prediction of {'x'.join(map(str, labels.shape))} (height x width) for a label of "
                    f"{height}x{width}; --resize resizes it, by nearest neighbour"
                )
            yield i, torch.from_numpy(resize_label(labels, height, width).copy())

    return Scored(name, None, {"size": None, "scales": None, "flip": None}, predict)


def find_predictions(folder: Path, image_set: ImageSet) -> list[Path]:
    """The prediction of each image: the PNG below folder of its stem, or whose name begins with that and "_"; with or
    without the ending that images of this data set have (`_leftImg8bit`). Of several, the one of the same folder.

    Raises `InputError` where there is none, or several.
    """
    exact, beginning = defaultdict(list), defaultdict(list)
    for path in sorted(folder.rglob("*.[pP][nN][gG]")):
        words = path.stem.split("_")
        exact[path.stem].append(path)
        for end in range(1, len(words)):
            beginning["_".join(words[:end])].append(path)
    found, without = [], []
    for image in image_set.images:
        stems = (image.stem, image_set.stem(image))
        candidates = next((index[stem] for index in (exact, beginning) for stem in stems if index[stem]), [])
        if len(candidates) > 1:
            candidates = [path for path in candidates if path.parent.name == image.parent.name] or candidates
        if len(candidates) > 1:
            raise InputError(f"--predictions {folder}: {candidates[0]} and {candidates[1]} are both of {image.name}")
        found += candidates
        without += [image] * (not candidates)
    if without:
        raise InputError(
            f"--predictions {folder}: no PNG for {len(without):,} of {len(image_set.images):,} images of "
            f"{image_set.name}, the first {without[0].name}; wanted: {image_set.stem(without[0])}.png anywhere below"
        )
    return found


def class_map(run: Scored, image_set: ImageSet, file: str | None) -> torch.Tensor:
    """256 (uint8): the train id in the data set of each train id of the run, 255 for none; by equal names, or as the
    JSON of `--class-map` says. What differs is said. Raises `InputError` where no class is left."""
    ids = torch.full((256,), IGNORE, dtype=torch.uint8)
    ours, theirs = image_set.classes.names, (run.classes or image_set.classes).names
    named = dict(zip(map(str.casefold, ours), ours, strict=True))
    names = {name: named.get(name.casefold()) for name in theirs}
    if file:
        names |= read_class_map(Path(file), theirs, ours)
    for i, name in enumerate(theirs):
        if names[name] is not None:
            ids[i] = ours.index(names[name])
    scored = [name for name in ours if name in names.values()]
    if not scored:
        raise InputError(
            f"--dataset {image_set.name}: none of its classes ({', '.join(ours)}) is one of --model {run.name} "
            f"({', '.join(theirs)}); give --class-map"
        )
    if len(scored) < len(ours):
        lost = ", ".join(name for name in ours if name not in scored)
        say(f"{run.name} on {image_set.name}: {len(scored)} of {len(ours)} classes; pixels not scored: {lost}")
    foreign = [name for name in theirs if names[name] is None]
    if foreign:
        say(f"{run.name} on {image_set.name}: predictions that count as misses: {', '.join(foreign)}")
    return ids


def read_class_map(file: Path, theirs: tuple[str, ...], ours: tuple[str, ...]) -> dict[str, str | None]:
    try:
        content = read_json(file)
    except InputError as error:
        raise InputError(f"--class-map {error}; wanted: class of the model: class of the data set") from error
    for key, value in content.items():
        for name, names, whose in ((key, theirs, "the model"), (value, ours, "the data set")):
            if name not in names and not (name is value is None):
                raise InputError(f"--class-map {file}: {name!r} is no class of {whose}; wanted: {', '.join(names)}")
    return content


def check_place(option: str, name: str | None, folder: bool) -> None:
    """Raises `InputError`, before hours of scoring rather than after, where nothing can be written."""
    if name is None:
        return
    place = Path(name)
    if place.exists() and place.is_dir() != folder:
        has, wanted = ("a file", "a folder") if folder else ("a folder", "a file's name")
        raise InputError(f"{option} {place}: {has} stands there; wanted: {wanted}")
    above = next(path for path in (place, *place.absolute().parents) if path.exists())
    if above != place and not above.is_dir():
        raise InputError(f"{option} {place}: {above} is a file; wanted: a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"{option} {place}: {above} cannot be written to")


def score(run: Scored, image_set: ImageSet, ids: torch.Tensor, options: EvalOptions, accelerator) -> Result:
    """One run on one data set; the images are shared out over the processes, each counted once."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    numbers, images = list(range(rank, len(image_set.images), world)), Images(image_set.images)
    classes, ids = image_set.classes, ids.to(device)
    scored = sorted(set(ids.tolist()) - {IGNORE})
    columns = [*scored, len(classes)]
    labelled = torch.zeros(len(image_set.images), len(classes), dtype=torch.int64, device=device)
    of_image = torch.zeros(len(image_set.images), 3, len(scored), dtype=torch.int64, device=device)
    total = torch.zeros(len(scored), len(columns), dtype=torch.int64, device=device)
    with Writer() as writer:
        for i, prediction in counted(run.predict(image_set, numbers), len(numbers), "images"):
            prediction = ids[prediction.to(device).long()]
            labels = read_label(image_set.labels[i], image_set.label_kind, classes, tuple(prediction.shape))
            truth = torch.from_numpy(labels).to(device)
            matrix = confusion_matrix(truth, prediction, len(classes), void=True)
            labelled[i] = matrix.sum(1)
            matrix = matrix[scored][:, columns]
            of_image[i] = counts(matrix)
            total += matrix
            if options.save:
                folder = Path(options.save) / Path(run.name).name / Path(image_set.name).name
                inside = image_set.images[i].relative_to(image_set.root).with_suffix(".png")
                predicted = label_image(prediction.cpu().numpy(), classes)
                writer.save(predicted, folder / "color" / inside)
                row = [images[i], label_image(labels, classes), predicted]
                writer.save(grid([row], ["image", "truth", "prediction"]), folder / "panels" / inside)
    gathered(None)  # before the GPUs wait, which give up after minutes
    labelled, of_image, total = (accelerator.reduce(part, "sum").cpu() for part in (labelled, of_image, total))
    entry = {
        "model": run.name,
        "dataset": image_set.name,
        "split": image_set.split,
        "images": len(image_set.images),
        "size": run.settings["size"],
        "labels": image_set.label_kind,
        "mean": options.mean,
        "classes": [classes.names[i] for i in scored],
        "label_set": fingerprint(labelled),
    }
    return summarise(entry | run.settings, total, of_image)
