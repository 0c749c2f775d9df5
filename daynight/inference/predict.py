"""`predict`: label a tree of images."""

import os
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image

from daynight.config import PredictOptions, factors
from daynight.data.images import Images, Writer, is_whole
from daynight.data.labels import CITYSCAPES, Classes, to_label_ids
from daynight.inference.folders import claimed, find, png_names, unfinished
from daynight.inference.tiles import reading_threads, segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports.previews import label_image, overlay
from daynight.system.errors import InputError
from daynight.system.processes import make_accelerator


def predict(options: PredictOptions) -> None:
    """Label every image of a tree: writes ids/, color/, overlay/ and, if asked, confidence/ into `options.out`, each
    the same tree of PNGs.

    The ids are train ids or Cityscapes label ids, at each image's own size. What is there and whole is skipped.
    """
    accelerator = make_accelerator(options.precision)
    folders = find(options.in_, options.data_root, options.out, options.list_)
    model = load_model(options.model, "teacher", "--model", DeepLabV2).to(accelerator.device)
    classes = Classes(*classes_of(model))
    if options.ids == "labelIds" and classes != CITYSCAPES:
        raise InputError("--ids labelIds: the model's classes are not those of Cityscapes; leave it out")
    size, scales = options.size or model.config["size"], factors(options.scales)
    weights = identity(find_model(options.model, "teacher", "--model"))
    record = {"model": weights, "size": size, "ids": options.ids, "classes": list(classes.names)}
    if len(scales) > 1 or options.flip:
        record |= {"scales": list(scales), "flip": options.flip}
    threads, sure = reading_threads(options.num_workers, accelerator), options.confidence
    kinds = ["ids", "color", "overlay", *["confidence"] * sure]
    names = png_names(folders.images)

    def places(path: Path) -> list[Path]:
        if folders.to_file:
            return [folders.out, *(folders.out.with_stem(f"{folders.out.stem}_{kind}") for kind in kinds[1:])]
        return [folders.out / kind / names[path].relative_to(folders.root) for kind in kinds]

    def results(paths):
        images = Images(paths)
        return segment(model, images, size, options.batch_size, accelerator, threads, scales, options.flip, sure)

    def is_done(path: Path) -> bool:
        return all(map(is_whole, places(path)))

    if folders.to_file:
        taken = [place for place in places(folders.given) if os.path.lexists(place)]
        if folders.out.suffix.lower() != ".png" or taken:
            problem = f"{taken[0]} exists; give another name" if taken else "labels are PNGs; give a name in .png"
            raise InputError(f"--out {folders.out}: {problem}")
        claim = nullcontext()
    else:
        claim = claimed(folders.out, "prediction.json", record, accelerator, folders.root, folders.images, is_done)
    with claim, Writer() as writer:
        title = f"{options.in_} → {folders.out}"
        for path, image, prediction, confidence in unfinished(title, folders.images, is_done, results):
            labels = prediction.cpu().numpy()
            ids = to_label_ids(labels) if options.ids == "labelIds" else labels
            pictures = [Image.fromarray(ids), label_image(labels, classes), overlay(image, labels, classes)]
            if sure:
                pictures.append(Image.fromarray((confidence * 65535).round().to(torch.uint16).cpu().numpy()))
            for picture, place in zip(pictures, places(path), strict=True):
                writer.save(picture, place)
