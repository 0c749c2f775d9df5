"""`eval` and `predict`: teachers on labelled data sets, as Table 1 (§4.3), and on folders without labels."""

import os
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from rich.table import Table

from daynight.config import EvalOptions, PredictOptions
from daynight.console import counted, say, show
from daynight.data.labels import CITYSCAPES, Classes, read_label, to_label_ids
from daynight.data.layouts import ImageSet, image_files, load, locate, resolve
from daynight.data.sampling import Images
from daynight.errors import InputError
from daynight.inference import Writer, check_apart, claim, is_whole, segment
from daynight.metrics import accuracy, confusion_matrix, iou, mean_iou
from daynight.models.deeplab import DeepLabV2
from daynight.previews import grid, label_image, overlay
from daynight.run import make_accelerator
from daynight.weights import find_model, identity, load_model, write_json


def evaluate(options: EvalOptions) -> list[dict]:
    """Score every model on every data set (§4.3): prints a table, returns (and writes) one entry a pair."""
    accelerator = make_accelerator(options.precision)
    root = Path(options.data_root)
    splits = (options.split,) if options.split else None
    sets = [
        load(name, root, "--dataset", splits=splits, labels=options.labels, labelled=True) for name in options.dataset
    ]
    models = {name: load_model(name, "teacher", "--model", DeepLabV2) for name in options.model}
    for image_set in sets:
        say(str(image_set))
        for note in image_set.notes:
            say(f"  {note}")
        for name, model in models.items():
            if model.config["names"] != list(image_set.classes.names):
                raise InputError(f"--dataset {image_set.name}: its classes are not those of --model {name}")
    check_place("--json", options.json, folder=False)
    check_place("--save", options.save, folder=True)
    for kind, paths in (("model", options.model), ("data set", options.dataset)) if options.save else ():
        names = [Path(path).name for path in dict.fromkeys(paths)]
        if len(set(names)) < len(names):
            raise InputError(f"--save: each {kind} has a folder of its name, and {' '.join(paths)} would share one")
    entries = []
    for name, model in models.items():
        model.to(accelerator.device)
        for image_set in sets:
            entries.append(score(name, model, image_set, options, accelerator))
        model.cpu()
    if accelerator.is_main_process:
        show(table(entries))
        if options.json:
            try:
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                write_json(Path(options.json), entries)
            except OSError as error:
                raise InputError(f"--json {options.json}: {error.strerror}") from error
    return entries


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


def score(name: str, model, image_set: ImageSet, options: EvalOptions, accelerator) -> dict:
    """One entry of the results; the images are shared out over the processes, each counted once."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = range(rank, len(image_set.images), world)
    size = options.size or model.config["size"]
    images = Images([image_set.images[i] for i in mine])
    classes = image_set.classes
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=accelerator.device)
    results = segment(model, images, size, options.batch_size, accelerator, options.num_workers or 0)
    with Writer() as writer:
        for i, image, prediction in counted(results, len(mine), "images"):
            path = image_set.labels[mine[i]]
            labels = read_label(path, image_set.label_kind, classes, (image.height, image.width))
            truth = torch.from_numpy(labels).to(accelerator.device)
            matrix += confusion_matrix(truth, prediction, len(classes))
            if options.save:
                folder = Path(options.save) / Path(name).name / Path(image_set.name).name
                inside = image_set.images[mine[i]].relative_to(image_set.root).with_suffix(".png")
                predicted = label_image(prediction.cpu().numpy(), classes)
                writer.save(predicted, folder / "color" / inside)
                panel = grid([[image, label_image(labels, classes), predicted]], ["image", "truth", "prediction"])
                writer.save(panel, folder / "panels" / inside)
    matrix = accelerator.reduce(matrix, "sum").cpu()
    return {
        "model": name,
        "dataset": image_set.name,
        "split": image_set.split,
        "images": len(image_set.images),
        "size": size,
        "labels": image_set.label_kind,
        "mean": options.mean,
        "classes": list(classes.names),
        "miou": 100 * mean_iou(matrix, options.mean),
        "accuracy": 100 * accuracy(matrix),
        "iou": {
            class_name: None if value.isnan() else 100 * float(value)
            for class_name, value in zip(classes.names, iou(matrix), strict=True)
        },
    }


def table(entries: list[dict], name: str = "model") -> Table:
    """Results as Table 1: a row a model, mIoU and accuracy of each data set; classes below when there is one row."""
    columns = list(dict.fromkeys((e["dataset"], e["split"]) for e in entries))
    rows = list(dict.fromkeys(e[name] for e in entries))
    found = {(e[name], (e["dataset"], e["split"])): e for e in entries}
    result = Table(title=f"mIoU ({entries[0]['mean']} classes) and pixel accuracy, %", title_justify="left")
    result.add_column(name)
    for dataset, split in columns:
        for what in ("mIoU", "acc."):
            result.add_column(f"{dataset}{f' {split}' if split else ''}\n{what}", justify="right")
    for row in rows:
        result.add_row(row, *(f"{found[row, c][key]:.1f}" for c in columns for key in ("miou", "accuracy")))
    if len(rows) == 1:
        result.add_section()
        for class_name in dict.fromkeys(c for e in entries for c in e["classes"]):
            ious = [found[rows[0], c]["iou"].get(class_name) for c in columns]
            cells = (["–" if value is None else f"{value:.1f}", ""] for value in ious)
            result.add_row(f"  {class_name}", *(text for cell in cells for text in cell))
    return result


def predict(options: PredictOptions) -> None:
    """Label every image of a tree: writes ids/, color/ and overlay/ below `options.out`, each the same tree of PNGs.

    Train ids or Cityscapes label ids, at each image's own size. What is there and whole is skipped.
    """
    accelerator = make_accelerator(options.precision)
    given = resolve(options.in_, Path(options.data_root), "--in")
    root, out = locate(given).root, Path(options.out)
    check_apart(root, out)
    paths = image_files(given)
    model = load_model(options.model, "teacher", "--model", DeepLabV2).to(accelerator.device)
    classes = Classes(tuple(model.config["names"]), tuple(map(tuple, model.config["colors"])))
    if options.ids == "labelIds" and classes != CITYSCAPES:
        raise InputError("--ids labelIds: the model's classes are not those of Cityscapes; leave it out")
    size = options.size or model.config["size"]
    record = {"model": identity(find_model(options.model, "teacher", "--model")), "size": size, "ids": options.ids}
    if accelerator.is_main_process:
        claim(out, "prediction.json", record)
    accelerator.wait_for_everyone()

    rank, world = accelerator.process_index, accelerator.num_processes

    def places(path: Path) -> list[Path]:
        # two images of one stem keep their suffixes apart
        inside = path.relative_to(root)
        inside = (
            inside.with_name(inside.name + ".png") if stems[inside.with_suffix("")] > 1 else inside.with_suffix(".png")
        )
        return [out / kind / inside for kind in ("ids", "color", "overlay")]

    stems = Counter(path.relative_to(root).with_suffix("") for path in paths)
    todo = [path for path in paths[rank::world] if not all(map(is_whole, places(path)))]
    say(f"{options.in_} → {out}: {len(paths):,} images" + f", {len(paths) - len(todo):,} there" * (world == 1))
    results = segment(model, Images(todo), size, options.batch_size, accelerator, options.num_workers or 0)
    with Writer() as writer:
        for i, image, prediction in counted(results, len(todo), "images"):
            labels = prediction.cpu().numpy()
            ids = to_label_ids(labels) if options.ids == "labelIds" else labels
            pictures = Image.fromarray(ids), label_image(labels, classes), overlay(image, labels, classes)
            for picture, path in zip(pictures, places(todo[i]), strict=True):
                writer.save(picture, path)
