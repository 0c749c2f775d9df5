"""`translate`: a tree of images, and its labels with it (§3.2)."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from daynight.config import TranslateOptions, pair
from daynight.data.images import Images, Writer, is_whole, save_image
from daynight.data.labels import Classes
from daynight.data.layouts.tree import locate, resolve
from daynight.data.sets import companions, image_files, labels_of
from daynight.data.transforms import target_size
from daynight.inference import audit
from daynight.inference.tiles import reading_threads, translations
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import find_model, identity, load_model
from daynight.system.console import counted, say
from daynight.system.errors import InputError
from daynight.system.files import check_apart, claim, replace
from daynight.system.processes import gathered, make_accelerator, share_out, together


def translate(options: TranslateOptions) -> None:
    """Translate every image of a tree into `options.out`; labels of a known layout come along (§3.2).

    What is there and whole is skipped. Images keep their size, unless one is asked for.
    """
    accelerator = make_accelerator(options.precision)
    given = resolve(options.in_, Path(options.data_root), "--in")
    root, out = locate(given).root, Path(options.out)
    check_apart(root, out)
    paths = image_files(given)
    judge, labels = auditor(options, given, accelerator.device)
    part = "night2day" if options.reverse else "day2night"
    model = load_model(options.model, part, "--model", Generator).to(accelerator.device)
    tiles = None if options.whole else model.config["crop"]
    record = {"model": identity(find_model(options.model, part, "--model")), "size": options.size, "tiles": tiles}
    with together():
        lock = claim(out, "translation.json", record) if accelerator.is_main_process else nullcontext()

    todo, missing = share_out(paths, lambda path: not is_whole(out / path.relative_to(root)))
    say(f"{options.in_} → {out}: {len(paths):,} images, {len(paths) - missing:,} there")
    size = options.size or model.config["size"]
    threads = reading_threads(options.num_workers, accelerator)
    results = translations(
        model, Images(todo), size, tiles and pair(tiles), options.batch_size, accelerator, threads, not options.size
    )
    with lock:
        with Writer(options.png_level) as writer:
            for i, _, image in counted(results, len(todo), "images"):
                writer.save(image, out / todo[i].relative_to(root))
        if accelerator.is_main_process:
            if judge:
                audit.begin(judge, root, out, labels_of(given)[0])
            carry(root, companions(given), out, options.size)
        gathered(None)  # who returns finds all of it there
        if judge:
            audit.audit(judge, root, out, paths, labels, accelerator, threads)


def auditor(options: TranslateOptions, given: Path, device) -> tuple[audit.Judge | None, audit.Labels | None]:
    """The model of `--audit`, and the labels into which it is to write. Raises `InputError` where there are none."""
    if not options.audit:
        if options.audit_ignore:
            raise InputError("--audit-ignore: is for --audit to say; give --audit RUN, or leave it out")
        return None, None
    model = load_model(options.audit, "teacher", "--audit", DeepLabV2).to(device)
    classes = Classes(tuple(model.config["names"]), tuple(map(tuple, model.config["colors"])))
    record = {"model": identity(find_model(options.audit, "teacher", "--audit")), "ignore": options.audit_ignore}
    judge = audit.Judge(options.audit, model, classes, record)
    if not options.audit_ignore:
        return judge, None
    of_image, label_classes = labels_of(given)
    if not of_image:
        raise InputError(f"--audit-ignore: {options.in_} has no labels to write into; leave it out")
    known = {name.casefold() for name in classes.names}
    if known.isdisjoint(map(str.casefold, label_classes.names)):
        raise InputError(f"--audit-ignore: none of the classes of {options.in_} is one of --audit {options.audit}")
    return judge, audit.Labels(of_image, label_classes, options.size is not None)


def carry(root: Path, files: tuple[Path, ...], out: Path, size: str | None) -> None:
    """Take label files and what belongs to them along: linked, or copied where the file system has no links; resized
    by nearest neighbour where the images are."""
    for path in files:
        target = out / path.relative_to(root)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if size and path.suffix == ".png":
            try:
                label = Image.open(path)
                label.load()
            # Pillow answers damaged files with exceptions of any kind
            except Exception as error:
                raise InputError(f"{path}: cannot be read as a label ({error})") from error
            height, width = target_size(label.height, label.width, size)
            save_image(label.resize((width, height), Image.Resampling.NEAREST), target)
            continue
        try:
            os.link(path.resolve(), target)
        except OSError:
            replace(target, lambda temporary, path=path: shutil.copyfile(path, temporary))
    say(f"{len(files):,} label files and their like came along")
