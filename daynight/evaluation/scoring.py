"""`eval`: score teachers, or predictions of any program, on labelled data sets, as Table 1 does (§4.3)."""

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
from daynight.data.sets import ImageSet, announce, describe, load
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
    """A model or a folder of predictions that is scored.

    classes: the classes of its train ids; None: those of the data set. predict(set, numbers): yields the number and the
    H×W train ids (uint8, 255 = none) of each of these images of a set.
    """

    name: str
    classes: Classes | None
    settings: dict
    predict: Callable[[ImageSet, list[int]], Iterator[tuple[int, torch.Tensor]]]


def evaluate(options: EvalOptions) -> list[dict]:
    """Score every model on every data set (§4.3): one entry for each pair. Writes them as asked, shows a table."""
    accelerator = make_accelerator(options.precision)
    if options.dry_run:
        check_data(options)
        return []
    check_place("--json", options.json, folder=False)
    check_place("--save", options.save, folder=True)
    sets, results = compare(options, accelerator)
    cards = cards_of(names_of(options))
    with together():
        saves = options.save and accelerator.is_main_process
        lock = Lock(Path(options.save), "--save") if saves else nullcontext()
    with lock:
        results = list(results)
        entries = [result.entry for result in results]
        if accelerator.is_main_process:
            if options.json:
                try:
                    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                    write_json(Path(options.json), entries)
                except OSError as error:
                    raise InputError(f"--json {options.json}: {error.strerror}") from error
            show(table(results))
            if options.save:
                write_page(results, sets, Path(options.save))
                say(f"look at {Path(options.save) / 'index.html'}")
            for name, (folder, weights) in cards.items():
                if add_results(folder, weights, [entry for entry in entries if entry["model"] == name]):
                    say(f"added to {folder / CARD}")
    return entries


def compare(options: EvalOptions, accelerator) -> tuple[list[ImageSet], Iterator[Result]]:
    """The data sets, and an iterator over the result of each run on each set, which scores as it goes. Every problem
    that can be known before scoring is reported first."""
    names = names_of(options)
    sets = [load_set(name, options, labelled=True) for name in dict.fromkeys(options.dataset)]
    announce(sets)
    runs = [by_model(name, options, accelerator) for name in dict.fromkeys(names)]
    runs += [by_folder(name, options.ids, options.resize, sets) for name in dict.fromkeys(options.predictions)]
    class_maps = [[class_map(run, image_set, options.class_map) for image_set in sets] for run in runs]
    for kind, paths in (("model", [run.name for run in runs]), ("data set", [s.name for s in sets])):
        if options.save and len({Path(path).name for path in paths}) < len(paths):
            raise InputError(f"--save: each {kind} has a folder of its name, and {' '.join(paths)} would share one")
    return sets, (
        score(run, image_set, ids, options.mean, options.save, accelerator)
        for run, row in zip(runs, class_maps, strict=True)
        for image_set, ids in zip(sets, row, strict=True)
    )


def names_of(options: EvalOptions) -> list[str]:
    return options.model or ([] if options.predictions else ["runs/seg"])


def load_set(name: str, options: EvalOptions, labelled: bool) -> ImageSet:
    splits, root = (options.split,) if options.split else None, Path(options.data_root)
    return load(name, root, "--dataset", splits=splits, labels=options.labels, labelled=labelled)


def cards_of(names: list[str]) -> dict[str, tuple[Path, str]]:
    """The folder of each model that has a card on this machine, and the identity of its weights before scoring, which
    may take hours."""
    folders = {name: find_model(name, "teacher", "--model") for name in names if os.path.isdir(name)}
    return {name: (folder, identity(folder)) for name, folder in folders.items() if (folder / CARD).is_file()}


def check_data(options: EvalOptions) -> None:
    """Say what each data set holds, and read every label that would be scored."""
    for name in options.dataset:
        for line in describe(name, Path(options.data_root), "--dataset"):
            say(line)
        image_set = load_set(name, options, labelled=False)
        images, numbers = Images(image_set.images), [i for i, label in enumerate(image_set.labels) if label]
        if not numbers:
            say(f"{name}: no labels, so nothing to score")
            continue
        pixels = []
        for i in counted(numbers, len(numbers), "labels"):
            size = images[i].size[::-1]
            labels = read_label(image_set.labels[i], image_set.label_kind, image_set.classes, size)
            pixels.append(np.bincount(labels.ravel(), minlength=256))
        of_class = np.stack(pixels)[:, : len(image_set.classes)]
        shares = 100 * of_class.sum(0) / np.sum(pixels)
        say(f"{name}: label set {fingerprint(torch.from_numpy(of_class))}; share of pixels, %:")
        shown = [f"{c} {share:.2g}" for c, share in zip(image_set.classes.names, shares, strict=True)]
        say(f"  {', '.join(shown)}; ignored {100 - shares.sum():.2g}")


def by_model(name: str, options: EvalOptions, accelerator) -> Scored:
    """Raises `InputError` if there is no such model."""
    model = load_model(name, "teacher", "--model", DeepLabV2)
    size, scales = options.size or model.config["size"], factors(options.scales)

    def predict(image_set: ImageSet, numbers: list[int]):
        model.to(accelerator.device)
        images = Images([image_set.images[i] for i in numbers])
        threads = reading_threads(options.num_workers, accelerator)
        results = segment(model, images, size, options.batch_size, accelerator, threads, scales, options.flip)
        yield from ((numbers[i], labels) for i, _, labels, _ in results)
        model.cpu()

    settings = {"size": size, "scales": list(scales), "flip": options.flip}
    return Scored(name, Classes(*classes_of(model)), settings, predict)


def by_folder(name: str, ids: str | None, resize: bool, sets: list[ImageSet]) -> Scored:
    """`ids`: what the PNGs hold; `resize` them to their labels. Raises `InputError` if an image has no prediction, or
    several."""
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"--predictions {name}: no such folder")
    # `daynight predict` writes down what its PNGs hold
    if (folder / "prediction.json").is_file():
        ids = ids or read_json(folder / "prediction.json").get("ids")
        folder = folder / "ids"
    ids = ids or "trainIds"
    found = {image_set: find_predictions(folder, image_set) for image_set in sets}
    if ids == "labelIds" and any(image_set.classes != CITYSCAPES for image_set in sets):
        raise InputError("--ids labelIds: the classes of the data set are not those of Cityscapes; leave it out")

    def predict(image_set: ImageSet, numbers: list[int]):
        for i in numbers:
            path = found[image_set][i]
            labels = read_label(path, ids, image_set.classes)
            height, width = read_label(image_set.labels[i], image_set.label_kind, image_set.classes).shape
            if labels.shape != (height, width) and not resize:
                raise InputError(
                    f"{path}: prediction of {'x'.join(map(str, labels.shape))} (height x width) for a label of "
                    f"{height}x{width}; --resize resizes it, by nearest neighbour"
                )
            yield i, torch.from_numpy(resize_label(labels, height, width).copy())

    return Scored(name, None, {"size": None, "scales": None, "flip": None}, predict)


def find_predictions(folder: Path, image_set: ImageSet) -> list[Path]:
    """The prediction of each image: the PNG anywhere below `folder` that has the image's stem, or whose name begins
    with the stem and "_". The stem may lack the ending of this data set's images (`_leftImg8bit`). If several fit, the
    one in a folder of the same name as the image's counts.

    Raises `InputError` if there is none, or several.
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
    """256 (uint8): for each train id of the run the train id in the data set, 255 for none. Classes of equal names
    belong together, or as the JSON file of `--class-map` says. Prints which classes differ. Raises `InputError` if no
    class is left."""
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
    """Raises `InputError` if `name` cannot be written, so that the user knows before hours of scoring."""
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


def score(run: Scored, image_set: ImageSet, ids: torch.Tensor, mean: str, save: str | None, accelerator) -> Result:
    """Score one run on one data set. The processes share the images out; each image counts once. `ids` as of
    `class_map`; predictions and panels are written into the folder `save`."""
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
            if save:
                folder = Path(save) / Path(run.name).name / Path(image_set.name).name
                inside = image_set.images[i].relative_to(image_set.root).with_suffix(".png")
                predicted = label_image(prediction.cpu().numpy(), classes)
                writer.save(predicted, folder / "color" / inside)
                row = [images[i], label_image(labels, classes), predicted]
                writer.save(grid([row], ["image", "truth", "prediction"]), folder / "panels" / inside)
    gathered(None)  # wait here: `reduce` on GPUs gives up after minutes
    labelled, of_image, total = (accelerator.reduce(part, "sum").cpu() for part in (labelled, of_image, total))
    entry = {
        "model": run.name,
        "dataset": image_set.name,
        "split": image_set.split,
        "images": len(image_set.images),
        "size": run.settings["size"],
        "labels": str(image_set.label_kind),
        "mean": mean,
        "classes": [classes.names[i] for i in scored],
        "label_set": fingerprint(labelled),
    }
    return summarise(entry | run.settings, total, of_image)
