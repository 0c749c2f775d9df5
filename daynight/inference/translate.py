"""`translate`: a tree of images, and its labels with it (§3.2)."""

import os
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from PIL import Image

from daynight.config import TranslateOptions, pair
from daynight.data.formats import open_image
from daynight.data.images import Images, Writer, is_whole, save_image
from daynight.data.layouts.layout import is_image
from daynight.data.sets import companions, evenly, own_classes
from daynight.data.transforms import target_size
from daynight.inference.audit import Judge, audit
from daynight.inference.folders import Folders, claimed, find, unfinished
from daynight.inference.tiles import reading_threads, translations
from daynight.models.generator import Generator
from daynight.models.hub import find_model, identity, load_model
from daynight.system.console import say, warn
from daynight.system.errors import InputError
from daynight.system.files import copy, replace, write_json
from daynight.system.processes import make_accelerator


def translate(options: TranslateOptions) -> None:
    """Translate every image of a tree into `options.out`, and copy the labels of a known layout (§3.2).

    Images that are there and whole are skipped. Images keep their size, unless `options.size` gives one.
    """
    accelerator = make_accelerator(options.precision)
    folders = find(options.in_, options.data_root, options.out, options.list_)
    judge = Judge(options.audit, accelerator) if options.audit else None
    part = "night2day" if options.reverse else "day2night"
    model = load_model(options.model, part, "--model", Generator).to(accelerator.device)
    tiles = None if options.whole else model.config["crop"]
    record = {"model": identity(find_model(options.model, part, "--model")), "size": options.size, "tiles": tiles}
    size, crop = options.size or model.config["size"], tiles and pair(tiles)
    threads = reading_threads(options.num_workers, accelerator)

    def results(paths):
        images, keep_size = Images(paths), not options.size
        return translations(model, images, size, crop, options.batch_size, accelerator, threads, keep_size)

    def is_done(path: Path) -> bool:
        return is_whole(folders.place(path))

    def is_there(path: Path) -> bool:
        place = folders.place(path)
        return place.exists() and not place.samefile(path)  # a hard link

    labels = () if os.path.isfile(folders.given) else companions(folders.given)
    files, claim = folders.images + labels, nullcontext()
    if not folders.to_file:
        claim = claimed(folders.out, "translation.json", record, accelerator, folders.root, files, is_there)
    elif judge:
        raise InputError(f"--out {folders.out}: with --audit give a folder")
    tell_size(folders, model.config["size"], options.size)
    with claim:
        with Writer() as writer:
            title = f"{options.in_} → {folders.out}"
            for path, _, image in unfinished(title, folders.images, is_done, results):
                writer.save(image, folders.place(path))
        if accelerator.is_main_process and os.path.isdir(folders.given):
            carry(folders, labels, options.size, options.link)
        if judge:
            audit(judge, folders, threads)


def tell_size(folders: Folders, trained: str, asked: str | None) -> None:
    """Say at which size images are translated, by the largest of some; warn if that is enlarged by 2 or more."""
    found = []
    for i in evenly(len(folders.images), 20):
        # whoever decodes the image will say what is wrong with it
        with suppress(Exception), open_image(folders.images[i]) as image:
            found.append((image.height * image.width, image.height, image.width))
    if not found:
        return
    _, height, width = max(found)
    at = target_size(height, width, asked or trained)
    say(f"{height}x{width} (height x width) is translated at {at[0]}x{at[1]}")
    if (factor := max(height / at[0], width / at[1])) >= 2 and not asked:
        warn(
            f"--in {folders.given}: translations are enlarged by {factor:.1f} and blurred, as the model was trained at "
            f"--size {trained}; --size {trained} writes them as they are, or train at a larger --size"
        )


def carry(folders: Folders, files: tuple[Path, ...], size: str | None, link: bool) -> None:
    """Copy label files and what belongs to them (`companions`), or make hard links if `link` and the file system has
    them. With `size` labels are resized by nearest neighbour. The classes of another tool's table are written as
    classes.json, too."""
    for path in files:
        target = folders.place(path)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if size and is_image(path):
            try:
                label = open_image(path)
                height, width = target_size(label.height, label.width, size)
                label = label.resize((width, height), Image.Resampling.NEAREST)
            # Pillow answers damaged files with exceptions of any kind
            except Exception as error:
                raise InputError(f"{path}: cannot be read as a label ({error})") from error
            save_image(label, target)
            continue
        with suppress(OSError):
            if link:
                os.link(path.resolve(), target)
                continue
        replace(target, partial(copy, path))
    classes, file = own_classes(folders.given), folders.out / "classes.json"
    if classes and not file.exists():
        write_json(file, [{"name": n, "color": c} for n, c in zip(classes.names, classes.colors, strict=True)])
    say(f"{len(files):,} label files and their like came along")
