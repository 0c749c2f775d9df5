"""`eval`: score teachers, or predictions of any program, on labelled data sets, as Table 1 does (§4.3)."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch

from daynight.config import EvalOptions, factors
from daynight.data.images import Images, Writer
from daynight.data.labels import CITYSCAPES, IGNORE, LABEL_ID_OF, Classes, read_label
from daynight.data.lists import listed
from daynight.data.sets import ImageSet, announce, describe, image_files, labelled_splits, load
from daynight.data.transforms import resize_label
from daynight.evaluation.metrics import confusion_matrix, counts
from daynight.evaluation.results import Result, both_means, fingerprint, folder_name, summarise, table, write_page
from daynight.inference.folders import png_names
from daynight.inference.tiles import reading_threads, segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports.card import CARD, add_results
from daynight.reports.previews import grid, label_image
from daynight.system.console import counted, say, show, warn
from daynight.system.errors import InputError, RunError, Unlabelled, Unreadable
from daynight.system.files import LOCK, claim, read_json, write_json
from daynight.system.processes import gathered, make_accelerator, together

LISTED = 20  # problems
RECORD = "evaluation.json"  # in the folder of --save: what it is made with


def evaluate(options: EvalOptions) -> list[dict]:
    """Score every model on every data set (§4.3): one entry for each pair. Writes them as asked, shows a table.

    What cannot be written or shown costs no result, and is said at the end (`RunError`).
    """
    accelerator = make_accelerator(options.precision)
    if options.dry_run:
        check_data(options)
        return []
    sets, runs, pairs = compare(options, accelerator)
    folder, json_file = (name and Path(name) for name in (options.save, options.json))
    with together():
        heads = [heading(run, image_set, options) for run, image_set, _ in pairs]
        if json_file:
            check_json(json_file, heads, folder)
        record = {key: [head[key] for head in heads] for key in heads[0]} | {"weights": [run.weights for run in runs]}
        record |= {"ids": options.ids, "resize": options.resize}
        saves = folder and accelerator.is_main_process
        lock = claim(folder, RECORD, record, "--save") if saves else nullcontext()
    results, problems = [], []
    with lock:
        try:
            for pair in pairs:
                results.append(score(*pair, options, accelerator, problems))
        finally:
            entries = [result.entry for result in results]
            whole = len(results) == len(pairs)
            if json_file and accelerator.is_main_process and (whole or entries and not json_file.exists()):
                with survived(problems, f"--json {json_file}"):
                    final(json_file).parent.mkdir(parents=True, exist_ok=True)
                    write_json(final(json_file), entries)
        if accelerator.is_main_process:
            with survived(problems, "the table"):
                show(table(results))
                for line in both_means(results):
                    say(line)
            if saves and not problems:
                with survived(problems, f"--save {folder}"):
                    write_page(results, sets, folder)
                    say(f"look at {folder / 'index.html'}")
            for run in runs:
                if run.card and add_results(*run.card, [entry for entry in entries if entry["model"] == run.name]):
                    say(f"added to {run.card[0] / CARD}")
    if problems:
        raise problems[0]
    return entries


@contextmanager
def survived(problems: list[RunError], what: str):
    """Whatever fails in this block becomes one of the problems."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        problems.append(RunError(f"{what}: cannot be written ({reason}); all was scored"))


def compare(options: EvalOptions, accelerator) -> tuple[list[ImageSet], list, list[tuple]]:
    """The data sets; the runs, each a `Model` or `Predictions`; and (run, data set, `class_map`) of each pair to score.

    Reports every problem that can be known before scoring.
    """
    names = options.model or ["runs/seg"] * (not options.predictions)
    sets = [load_set(name, options, labelled=True) for name in dict.fromkeys(options.dataset)]
    sets = listed(sets, options.list_)
    announce(sets, {"--save": options.save})
    runs = [Model(name, options, accelerator) for name in dict.fromkeys(names)]
    runs += [Predictions(name, options, sets) for name in dict.fromkeys(options.predictions)]
    pairs = [(run, image_set, class_map(run, image_set, options.class_map)) for run in runs for image_set in sets]
    for kind, paths in (("model", [run.name for run in runs]), ("data set", [s.name for s in sets])):
        taken = {name.casefold() for name in ("index.html", RECORD, *map(folder_name, paths))}
        if options.save and len(taken) < 2 + len(paths):
            raise InputError(f"--save: each {kind} has a folder of its name, and {' '.join(paths)} would share one")
    return sets, runs, pairs


def heading(run, image_set: ImageSet, options: EvalOptions) -> dict:
    """What of an entry is known before scoring."""
    entry = {"model": run.name, "dataset": image_set.name, "split": image_set.split, "images": len(image_set.images)}
    entry |= {"size": None, "labels": str(image_set.label_kind), "mean": options.mean}
    if options.class_map:
        entry["class_map"] = read_json(Path(options.class_map))
    return entry | run.settings


def load_set(name: str, options: EvalOptions, labelled: bool) -> ImageSet | None:
    """What is scored of a data set; unless `labelled`, None where it has no labels. Raises `InputError` where labels
    ignore all pixels, as those of Cityscapes' test set do."""
    splits = (options.split,) if options.split else ("train", "val", "test") if options.list_ else None
    root, found = Path(options.data_root), None
    # a damaged label is reported when it is scored
    with suppress(Unreadable) if labelled else suppress(Unreadable, Unlabelled):
        found = load(name, root, "--dataset", splits=splits, labels=options.labels, labelled=True)
        if not any((read_label(path, found.label_kind, found.classes) != IGNORE).any() for path in found.labels):
            raise InputError(f"--dataset {name}: labels of {found.split or 'it'} ignore all pixels; another --split?")
    return found


def check_data(options: EvalOptions) -> None:
    """Say what each data set holds, and read the labels of all splits. Raises `InputError` if one cannot be read."""
    some = [load_set(name, options, labelled=True) for name in options.dataset] if options.list_ else []
    some, root, problems = {part.name: part for part in listed(some, options.list_)}, Path(options.data_root), []
    for name in options.dataset:
        for line in describe(name, root, "--dataset", options.labels, options.split):
            say(line)
        image_set = some.get(name)
        try:
            image_set = image_set or load_set(name, options, labelled=False)
        except InputError as error:  # the first label that cannot be read, maybe of many
            problems.append(error)
        of_images = shares(image_set, problems) if image_set else []
        for other in [] if name in some else labelled_splits(name, root, "--dataset", options.labels):
            scored = image_set and other.split == image_set.split
            shares(other.only([i for i, x in enumerate(other.labels) if x is None]) if scored else other, problems)
        if name in some:
            say(f"scored: {image_set}")
        if not image_set:
            say(f"{name}: no labels, so nothing to score")
        elif of_images:
            of_class, total = np.stack(of_images)[:, : len(image_set.classes)], np.sum(of_images)
            say(f"{name}: label set {fingerprint(torch.from_numpy(of_class))}; share of pixels, %:")
            parts = [*zip(image_set.classes.names, of_class.sum(0), strict=True), ("ignored", total - of_class.sum())]
            # two digits that count, never as 1e-05
            shown = [f"{c} {np.format_float_positional(100 * n / total, 2, False, False, '-')}" for c, n in parts]
            say(f"  {', '.join(shown[:-1])}; {shown[-1]}")
    problems = list({str(problem): problem for problem in problems}.values())
    for problem in problems[:LISTED]:
        say(f"  {problem}")
    if len(problems) > LISTED:
        say(f"  and {len(problems) - LISTED:,} more")
    if bad := [problem for problem in problems if not isinstance(problem, Unlabelled)]:
        raise InputError(f"{bad[0]}" + f"; and {len(bad) - 1:,} more" * (len(bad) > 1))


def shares(image_set: ImageSet, problems: list[InputError]) -> list[np.ndarray]:
    """The pixels of each id, 0 to 255, in each label; what is missing or cannot be read is added to the problems."""
    images = Images(image_set.images)

    def look(i: int) -> np.ndarray | InputError:
        try:
            if image_set.labels[i] is None:
                raise Unlabelled(f"{image_set.images[i]}: it has no label")
            labels = read_label(image_set.labels[i], image_set.label_kind, image_set.classes, images[i].size[::-1])
            return np.bincount(labels.ravel(), minlength=256)
        except InputError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        found = list(counted(pool.map(look, range(len(images))), len(images), "labels"))
    problems += [x for x in found if isinstance(x, InputError)]
    return [x for x in found if not isinstance(x, InputError)]


class Model:
    """A network to score, and how: `settings` of an entry. classes: those of its train ids. weights: their identity.
    card: its folder and that identity, if it has a model card here. Raises `InputError` if there is no such model."""

    def __init__(self, name: str, options: EvalOptions, accelerator):
        self.name, self.options, self.accelerator = name, options, accelerator
        self.model = load_model(name, "teacher", "--model", DeepLabV2)
        self.classes = Classes(*classes_of(self.model))
        size, scales = options.size or self.model.config["size"], list(factors(options.scales))
        self.settings = {"size": size, "scales": scales, "flip": options.flip}
        folder = find_model(name, "teacher", "--model")
        self.weights = identity(folder)
        self.card = (folder, self.weights) if os.path.isdir(name) and (folder / CARD).is_file() else None

    def predict(self, image_set: ImageSet, numbers: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The number and the H×W train ids (uint8, 255 = none) of each of these images of a set."""
        options, accelerator, (size, scales, flip) = self.options, self.accelerator, self.settings.values()
        images = Images([image_set.images[i] for i in numbers])
        threads = reading_threads(options.num_workers, accelerator)
        self.model.to(accelerator.device)
        results = segment(self.model, images, size, options.batch_size, accelerator, threads, scales, flip)
        yield from ((numbers[i], labels) for i, _, labels, _ in results)
        self.model.cpu()


class Predictions:
    """A folder of predictions to score. Raises `InputError` if an image has no prediction, or several."""

    classes, card, weights, settings = None, None, None, {"size": None, "scales": None, "flip": None}

    def __init__(self, name: str, options: EvalOptions, sets: list[ImageSet]):
        folder, self.name, self.ids, self.resize = Path(name), name, options.ids, options.resize
        self.doubted = self.ids == "labelIds"
        if not folder.is_dir():
            raise InputError(f"--predictions {name}: no such folder")
        # `daynight predict` writes down what its PNGs hold
        if (folder / "prediction.json").is_file():
            made, folder = read_json(folder / "prediction.json"), folder / "ids"
            self.ids, names = self.ids or made.get("ids"), made.get("classes", [])
            named = isinstance(names, list) and all(isinstance(x, str) for x in names)
            if self.ids not in (None, "trainIds", "labelIds") or not named or not len(set(names)) == len(names) <= 255:
                raise InputError(f"{name}/prediction.json: not as daynight predict writes it (ids, classes)")
            self.classes = Classes(tuple(names), ((0, 0, 0),) * len(names)) if names else None
        if self.ids == "labelIds" and any(image_set.classes != CITYSCAPES for image_set in sets):
            raise InputError("--ids labelIds: the classes of the data set are not those of Cityscapes; leave it out")
        self.found = {image_set.name: find_predictions(folder, image_set) for image_set in sets}

    def predict(self, image_set: ImageSet, numbers: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """As `Model.predict`, at the size of each image's label. Warns of label ids that look like train ids."""
        highest = 0
        for i in numbers:
            path = self.found[image_set.name][i]
            labels = read_label(path, self.ids or "trainIds", self.classes or image_set.classes)
            shape = read_label(image_set.labels[i], image_set.label_kind, image_set.classes).shape
            if labels.shape != shape and not self.resize:
                has, wanted = ("x".join(map(str, sizes)) for sizes in (labels.shape, shape))
                raise InputError(f"{path}: {has} (height x width) for a label of {wanted}; --resize resizes it")
            highest = max(highest, self.doubted and int(LABEL_ID_OF[labels].max()))
            yield i, torch.from_numpy(resize_label(labels, *shape).copy())
        if self.doubted and max(gathered(highest)) <= 18:
            warn(f"--predictions {self.name}: no id is above 18, as in train ids; --ids labelIds may be wrong")


def find_predictions(folder: Path, image_set: ImageSet) -> list[Path]:
    """The prediction of each image: the PNG anywhere below `folder` that has the image's stem, or whose name begins
    with the stem and "_". The stem may lack the ending of this data set's images (`_leftImg8bit`).

    Each PNG belongs to the image of the longest such stem, of any split; of images of one stem, to the one with which
    it shares most folder names. An image prefers a PNG of its whole stem, then one that shares more folder names.
    Raises `InputError` if an image has no PNG of its own, or several.
    """
    owners, claims, found = defaultdict(list), defaultdict(list), []
    images = dict.fromkeys(image_set.images, True)  # whether it is of this set
    with suppress(InputError):  # what cannot be listed owns nothing
        images = dict.fromkeys(image_files(image_set.root), False) | images
    for image in images:
        for stem in {image.name, image.stem, image_set.stem(image)}:
            owners[stem].append((image, image.relative_to(image_set.root).parts[-2::-1]))
    for path in sorted(folder.rglob("*.[pP][nN][gG]")):
        words, above = path.stem.split("_"), path.relative_to(folder).parts[-2::-1]
        stem = next(filter(owners.get, ("_".join(words[:end]) for end in range(len(words), 0, -1))), None)
        near = {image: len(os.path.commonprefix([above, folders])) for image, folders in owners[stem]}
        nearest = [image for image in near if images[image] and near[image] == max(near.values())]
        if len(nearest) == 1:
            claims[nearest[0]].append(((stem == path.stem, len(stem), near[nearest[0]]), path))
    for image in image_set.images:
        best = max(claims[image], default=(None,))[0]
        fitting = [path for rank, path in claims[image] if rank == best] or [None]
        if fitting[1:]:
            raise InputError(f"--predictions {folder}: {fitting[0]} and {fitting[1]} are both of {image.name}")
        found += fitting
    if None in found:
        first, missing = image_set.images[found.index(None)], f"{found.count(None):,} of {len(found):,} images"
        told = f"no PNG for {missing} of {image_set.name}, the first {first.name}"
        wanted = f"{image_set.stem(first)}.png below, or in a folder like the image's"
        raise InputError(f"--predictions {folder}: {told}; wanted: {wanted}")
    return found


def class_map(run, image_set: ImageSet, file: str | None) -> torch.Tensor:
    """256 (uint8): for each train id of the run the train id in the data set, 255 for none. Classes of equal names
    belong together, or as the JSON file of `--class-map` says. Prints which classes differ. Raises `InputError` if no
    class is left."""
    ours, theirs = image_set.classes.names, (run.classes or image_set.classes).names
    named = {name.casefold(): name for name in ours}
    names = {name: named.get(name.casefold()) for name in theirs}
    if file:
        try:
            names |= read_json(Path(file))
        except InputError as error:
            raise InputError(f"--class-map {error}") from None
        wrong = [name for name in names if name not in theirs]
        wrong += [name for name in names.values() if name not in (*ours, None)]
        if wrong:
            wanted = f"a class of the model ({', '.join(theirs)}): a class of the data set ({', '.join(ours)}) or null"
            raise InputError(f"--class-map {file}: {wrong[0]!r} is no such class; wanted: {wanted}")
    ids = torch.full((256,), IGNORE, dtype=torch.uint8)
    for i, name in enumerate(theirs):
        if names[name] is not None:
            ids[i] = ours.index(names[name])
    lost = [name for name in ours if name not in names.values()]
    foreign = [name for name in theirs if names[name] is None]
    if len(lost) == len(ours):
        told = f"none of its classes ({', '.join(ours)}) is one of --model {run.name} ({', '.join(theirs)})"
        raise InputError(f"--dataset {image_set.name}: {told}; give --class-map")
    where, scored = f"{run.name} on {image_set.name}", len(ours) - len(lost)
    if lost:
        say(f"{where}: {scored} of {len(ours)} classes; pixels not scored: {', '.join(lost)}")
    if foreign:
        say(f"{where}: predictions that count as misses: {', '.join(foreign)}")
    return ids


def final(place: Path) -> Path:
    """What a link leads to, if a file is to be made or replaced there."""
    return Path(os.path.realpath(place)) if place.is_file() or not place.exists() else place


def check_json(place: Path, heads: list[dict], folder: Path | None) -> None:
    """Raises `InputError`, before hours of scoring, if the results with these headings cannot be written to `place`,
    or would replace what is not theirs, also of what `--save` writes into `folder`."""
    try:
        target = final(place)
        there = next(path for path in (target, *target.absolute().parents) if path.exists())
    except OSError as error:
        raise InputError(f"--json {place}: {error.strerror}") from None
    fits = target.is_file() or target.is_fifo() or target.is_char_device() if there == target else there.is_dir()
    if not fits or target.is_symlink():  # a link to itself
        raise InputError(f"--json {place}: {there} is no place to write results to; wanted: a file's name in a folder")
    there = there.parent if there.is_file() else there  # in which the file is replaced
    if not os.access(there, os.W_OK):
        raise InputError(f"--json {place}: {there} cannot be written to")
    if folder:
        root, inside = (os.path.realpath(path).casefold() for path in (folder, target))
        first = os.path.relpath(inside, root).partition(os.sep)[0]
        own = {".", "index.html", LOCK, RECORD, *(folder_name(head["model"]).casefold() for head in heads)}
        if first in own or root.startswith(f"{inside}{os.sep}"):
            raise InputError(f"--json {place}: is of what --save {folder} writes; give another file")
    if place.is_file() and (os.path.samestat(place.stat(), os.fstat(1)) or not holds(place, heads)):
        raise InputError(f"--json {place}: exists, and holds no results of this very command; give another file")


def holds(file: Path, heads: list[dict]) -> bool:
    """Whether a file holds results with some of these headings, and nothing else."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        made = [{key: entry[key] for key in entry if key in heads[0] or key == "class_map"} for entry in entries]
        return bool(made) and all(of_entry in heads for of_entry in made)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def score(run, image_set: ImageSet, ids: torch.Tensor, options, accelerator, problems: list | None = None) -> Result:
    """Score one run on one data set. The processes share the images out; each image counts once.

    `ids` as of `class_map`. Predictions and panels go to the folder `options.save`; `problems` as of `Writer`.
    """
    images, classes, device = Images(image_set.images), image_set.classes, accelerator.device
    names = png_names(image_set.images)
    numbers = list(range(accelerator.process_index, len(images), accelerator.num_processes))
    scored, ids = sorted(set(ids.tolist()) - {IGNORE}), ids.to(device)
    shapes = (len(images), len(classes)), (len(images), 3, len(scored)), (len(scored), len(scored) + 1)
    rows, columns = (torch.tensor(some, device=device) for some in (scored, [*scored, len(classes)]))
    labelled, of_image, total = (torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes)
    with Writer(problems=problems) as writer:
        for i, prediction in counted(run.predict(image_set, numbers), len(numbers), "images"):
            prediction = ids[prediction.to(device).long()]
            labels = read_label(image_set.labels[i], image_set.label_kind, classes, tuple(prediction.shape))
            truth = torch.from_numpy(labels).to(device)
            matrix = confusion_matrix(truth, prediction, len(classes), void=True)
            labelled[i] = matrix.sum(1)
            matrix = matrix[rows][:, columns]
            of_image[i] = counts(matrix)
            total += matrix
            if options.save and not problems:
                folder = Path(options.save) / folder_name(run.name) / folder_name(image_set.name)
                inside = names[image_set.images[i]].relative_to(image_set.root)
                predicted = label_image(prediction.cpu().numpy(), classes)
                writer.save(predicted, folder / "color" / inside)
                row = [images[i], label_image(labels, classes), predicted]
                writer.save(grid([row], ["image", "truth", "prediction"]), folder / "panels" / inside)
    gathered(None)  # wait here: `reduce` on GPUs gives up after minutes
    labelled, of_image, total = (accelerator.reduce(part, "sum").cpu() for part in (labelled, of_image, total))
    found = {"classes": [classes.names[i] for i in scored], "label_set": fingerprint(labelled)}
    return summarise(heading(run, image_set, options) | found, total, of_image)
