"""`predict`: label a tree of images."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from daynight.config import PredictOptions, factors
from daynight.data.images import Images, Writer, is_whole
from daynight.data.labels import CITYSCAPES, Classes, to_label_ids
from daynight.data.layouts.tree import locate, resolve
from daynight.data.sets import image_files
from daynight.inference.tiles import reading_threads, segment
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import classes_of, find_model, identity, load_model
from daynight.reports.previews import label_image, overlay
from daynight.system.console import counted, say
from daynight.system.errors import InputError
from daynight.system.files import check_apart, claim
from daynight.system.processes import gathered, make_accelerator, share_out, together


def predict(options: PredictOptions) -> None:
    """Label every image of a tree: writes ids/, color/, overlay/ and, if asked, confidence/ below `options.out`, each
    the same tree of PNGs.

    Train ids or Cityscapes label ids, at each image's own size. What is there and whole is skipped.
    """
    accelerator = make_accelerator(options.precision)
    given = resolve(options.in_, Path(options.data_root), "--in")
    root, out = locate(given).root, Path(options.out)
    check_apart(root, out)
    paths = image_files(given)
    model = load_model(options.model, "teacher", "--model", DeepLabV2).to(accelerator.device)
    classes = Classes(*classes_of(model))
    if options.ids == "labelIds" and classes != CITYSCAPES:
        raise InputError("--ids labelIds: the model's classes are not those of Cityscapes; leave it out")
    size, scales = options.size or model.config["size"], factors(options.scales)
    record = {"model": identity(find_model(options.model, "teacher", "--model")), "size": size, "ids": options.ids}
    record["classes"] = list(classes.names)
    if len(scales) > 1 or options.flip:
        record |= {"scales": list(scales), "flip": options.flip}
    with together():
        lock = claim(out, "prediction.json", record) if accelerator.is_main_process else nullcontext()

    kinds = ["ids", "color", "overlay", *["confidence"] * options.confidence]

    def places(path: Path) -> list[Path]:
        # two images of one stem keep their suffixes apart
        inside = path.relative_to(root)
        inside = (
            inside.with_name(inside.name + ".png") if stems[inside.with_suffix("")] > 1 else inside.with_suffix(".png")
        )
        return [out / kind / inside for kind in kinds]

    stems = Counter(path.relative_to(root).with_suffix("") for path in paths)
    todo, missing = share_out(paths, lambda path: not all(map(is_whole, places(path))))
    say(f"{options.in_} → {out}: {len(paths):,} images, {len(paths) - missing:,} there")
    threads, sure = reading_threads(options.num_workers, accelerator), options.confidence
    images = Images(todo)
    results = segment(model, images, size, options.batch_size, accelerator, threads, scales, options.flip, sure)
    with lock:
        with Writer(options.png_level) as writer:
            for i, image, prediction, confidence in counted(results, len(todo), "images"):
                labels = prediction.cpu().numpy()
                ids = to_label_ids(labels) if options.ids == "labelIds" else labels
                pictures = [Image.fromarray(ids), label_image(labels, classes), overlay(image, labels, classes)]
                if options.confidence:
                    pictures.append(Image.fromarray((confidence * 65535).round().cpu().numpy().astype(np.uint16)))
                for picture, path in zip(pictures, places(todo[i]), strict=True):
                    writer.save(picture, path)
        gathered(None)
