"""Data sets as Hugging Face `datasets` reads them, from the Hub or from disk: unpacked once into a tree of images."""

import colorsys
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from daynight.data.formats import FORMATS, IMAGE_SUFFIXES, open_image
from daynight.data.labels import CITYSCAPES, IGNORE
from daynight.system.console import counted, say
from daynight.system.errors import InputError, Unlabelled
from daynight.system.files import copy, marked, read_json, write_json

SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
LABEL = re.compile(r"label|mask|annot|seg|ground.?truth|(^|_)gt(_|$)", re.IGNORECASE)  # in a column's name
VOID = {"unlabeled", "unlabelled", "void", "ignore", "ignored"}  # names in id2label.json of what is no class
SPELLING = "hf:USER/NAME[@REVISION][:CONFIG][#IMAGE_COLUMN[,LABEL_COLUMN]]"


def is_data_set(folder: Path) -> bool:
    """Whether `datasets` reads this folder: one of `save_to_disk`, of parquet files, or of images with a metadata.csv
    or metadata.jsonl that names them (`file_name`)."""
    if any(os.path.isfile(folder / name) for name in ("dataset_dict.json", "state.json")):
        return True
    if any(path for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern)):
        return True
    for path in (path for pattern in ("metadata.*", "*/metadata.*") for path in folder.glob(pattern)):
        if path.suffix in (".csv", ".jsonl"):
            with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                if "file_name" in file.readline():
                    return True
    return False


def unpack(name: str, option: str, labelled: bool = False) -> Path:
    """The folder with a data set's images/<split>/, labels/<split>/ and classes.json. `name`: `SPELLING`, or with a
    folder's path in place of USER/NAME.

    What is in it already is found by the fingerprints that `datasets` gives, and by columns and classes. Raises
    InputError where `datasets` cannot read the data set or the columns are not clear, and, if `labelled`, where there
    is no label column (Unlabelled) or nothing tells the classes.
    """
    where, (place, _, chosen) = f"{option} {name}", name.removeprefix("hf:").partition("#")
    splits, find = _read(place, where)
    features = next(iter(splits.values())).features
    image, label = _columns(features, chosen, where)
    if labelled and not label:
        listed = ", ".join(features)
        raise Unlabelled(f"{where}: no column of label images; columns: {listed}; wanted: {SPELLING}")
    entries, train_ids = _classes(find, features) if label else (None, None)
    if labelled and not entries:
        raise InputError(
            f"{where}: nothing tells the classes of {label!r}; put classes.json, or id2label.json "
            '({"0": "road", …}), beside its files'
        )
    prints = {split: data._fingerprint for split, data in splits.items()}
    made_of = json.dumps([prints, image, label, entries, sorted((train_ids or {}).items())])
    digest, short = hashlib.sha256(made_of.encode()).hexdigest()[:16], re.sub(r"[^\w.-]+", "-", place)[-80:].strip("-")
    cache = _library().config.HF_DATASETS_CACHE
    folder = Path(cache, "daynight", f"{short}-{digest}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one unpacks, and the others wait
            if not folder.is_dir():
                what = _write(folder, splits, image, label, entries, train_ids, where)
                say(f"{name}: {what} unpacked into {folder}")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{where}: cannot be unpacked into {folder} ({reason}); HF_DATASETS_CACHE moves it") from error
    return folder


def _library():
    import datasets  # takes a second

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _read(place: str, where: str) -> tuple[dict, object]:
    """The splits, by the names that daynight gives them, and a function: name of a file beside them → its path, or
    None."""
    root, found = place, re.fullmatch(r"([^@:]+)(?:@([^:]+))?(?::(.+))?", place)
    revision, config = None, None
    if found and not os.path.isdir(place):
        root, revision, config = found.groups()
    try:
        if os.path.isdir(root):
            data, find = _from_disk(Path(root), config), lambda name: next(iter(Path(root).glob(name)), None)
        else:
            data, find = _from_hub(root, revision, config), functools.partial(_file_on_hub, root, revision)
    # `datasets` answers with exceptions of any kind; the cause says more than that something was not generated
    except Exception as error:
        if type(error).__name__ == "DatasetGenerationError" and error.__cause__:
            error = error.__cause__
        reason = " ".join((str(error).strip() or repr(error)).splitlines()[:2])
        hint = f"wanted: {SPELLING} or a folder; a private or gated one needs `hf auth login` or HF_TOKEN"
        raise InputError(f"{where}: `datasets` cannot read it ({reason}); {hint}") from error
    parts = data if isinstance(data, dict) else {str(data.split or "train"): data}
    splits = {SPLITS.get(split, split): part for split, part in parts.items() if len(part)}
    if not splits:
        raise InputError(f"{where}: has no rows")
    return splits, find


def _from_disk(folder: Path, config: str | None):
    datasets = _library()
    if any(os.path.isfile(folder / name) for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(folder)
    if config or (folder / "README.md").is_file():  # its header may name configurations and files
        return datasets.load_dataset(str(folder), config)
    return datasets.load_dataset("parquet" if any(folder.rglob("*.parquet")) else "imagefolder", data_dir=str(folder))


@functools.cache  # one command sees one revision
def _from_hub(repository: str, revision: str | None, config: str | None):
    return _library().load_dataset(repository, config, revision=revision)


def _file_on_hub(repository: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    with suppress(errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))


def _columns(features: dict, chosen: str, where: str) -> tuple[str, str | None]:
    """The names of the column of images and of that of labels, if there is one: as chosen, else by type and name."""
    datasets, structure = _library(), {"bytes", "path"}  # a file that lost what the library notes in it has the latter
    images = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image) or isinstance(kind, dict) and set(kind) == structure
    ]
    if chosen:
        image, label, *more = *chosen.split(","), None
        if more not in ([], [None]) or not {image, label} <= {*images, None}:
            raise InputError(f"{where}: no image columns {chosen}; found: {', '.join(images)}")
        return image, label
    labels = [name for name in images if LABEL.search(name)]
    others = [name for name in images if name not in labels]
    if len(others) != 1 or len(labels) > 1:
        listed = f"{len(images)} image columns ({', '.join(images)})" if images else "no image column"
        raise InputError(f"{where}: {listed} among {', '.join(features)}; say which to read: {SPELLING}")
    return others[0], next(iter(labels), None)


def _classes(find, features: dict) -> tuple[list | dict | None, dict[int, int] | None]:
    """What classes.json is to hold, and {id: train id} where the ids of the labels are not the train ids."""
    if path := find("classes.json"):
        with suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8-sig")), None
        raise InputError(f"{path}: not JSON")
    if path := find("id2label.json"):
        try:
            names = {int(i): str(name) for i, name in read_json(path).items()}
        except ValueError:
            raise InputError(f'{path}: expected {{"0": "road", "1": "sidewalk", …}}') from None
    else:
        kinds = (
            [getattr(kind, "feature", None) for kind in features.values()],
            features.values(),
        )  # lists of names first
        told = next(filter(None, ([k.names for k in some if hasattr(k, "names")] for some in kinds)), [])
        if len(told) != 1:
            return None, None
        names = dict(enumerate(told[0]))
    kept = [i for i in sorted(names) if 0 <= i < IGNORE and names[i].strip().casefold() not in VOID]
    colors = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
    entries = [{"name": names[i], "color": colors.get(names[i].casefold()) or _color(i)} for i in kept]
    train_ids = {**dict.fromkeys(names, IGNORE), **{i: n for n, i in enumerate(kept)}, IGNORE: IGNORE}
    return entries, train_ids if kept != list(range(len(names))) else None


def _color(i: int) -> list[int]:
    """A colour for the class with this id: hues a golden section apart, in three strengths."""
    return [round(255 * part) for part in colorsys.hsv_to_rgb(i * 0.618034 % 1, 1 - i % 3 / 4, 0.95 - i // 3 % 3 / 5)]


def _write(folder: Path, splits: dict, image: str, label: str | None, entries, train_ids, where: str) -> str:
    """Write the tree, whole or not at all. Files are as the data set holds them; ids alone are written again.

    Returns how many there are, in words."""
    temporary = folder.with_name(marked(folder.name))
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    total, labels = sum(map(len, splits.values())), 0
    try:
        for split, row, stem, suffix in counted(_rows(splits, image, label, where), total, "images"):
            for column, kind, ending in ((image, "images", suffix), (label, "labels", ".png")):
                if not row.get(column):
                    continue
                place = temporary / kind / split / f"{stem}{ending}"
                place.parent.mkdir(parents=True, exist_ok=True)
                _save(row[column], place, where)
            if train_ids and row.get(label):
                _map_ids(place, train_ids, f"{where}: {label} of {split}, {stem}")
            labels += bool(row.get(label))
        if entries:
            write_json(temporary / "classes.json", entries)
        os.sync()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{total:,} images and {labels:,} labels"


def _rows(splits: dict, image: str, label: str | None, where: str) -> Iterator[tuple[str, dict, str, str]]:
    """Split, row with undecoded files, and stem and suffix of the file of each row."""
    for split, data in splits.items():
        columns, taken = [name for name in (image, label) if name in data.column_names], set()
        data = data.select_columns(columns).with_format(None)
        for name in columns:
            if not isinstance(data.features[name], dict):
                data = data.cast_column(name, _library().Image(decode=False))
        for i, row in enumerate(data):
            if not row.get(image):
                raise InputError(f"{where}: row {i} of {split} has no {image}")
            yield split, row, *_file_name(row[image], i, taken)


def _file_name(value: dict, i: int, taken: set[str]) -> tuple[str, str]:
    """Stem and suffix of the file of row i: those it had where no other row of the split has them, else its number."""
    stem, suffix = os.path.splitext(re.split(r"[/\\]", (value["path"] or "").partition("::")[0])[-1])
    if not stem or stem.startswith(".") or len(os.fsencode(stem)) > 200 or stem.casefold() in taken:
        stem = f"{i:06}"
    while stem.casefold() in taken:
        stem += "_"
    taken.add(stem.casefold())
    if suffix.lower() not in IMAGE_SUFFIXES:
        suffix = ".png"  # whoever reads a file of another content will say so
        with suppress(Exception), open_image(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"]) as found:
            suffix = min(FORMATS[found.format])
    return stem, suffix


def _save(value: dict, place: Path, where: str) -> None:
    path = value["path"]
    if value["bytes"]:
        place.write_bytes(value["bytes"])
    elif not path or not os.path.isfile(path):
        raise InputError(f"{where}: holds the path {path!r} and no image; there is no such file")
    else:
        with suppress(OSError):
            return os.link(os.path.realpath(path), place)
        copy(path, place)


def _map_ids(path: Path, train_ids: dict[int, int], where: str) -> None:
    """Turn the ids in a label file into train ids. What is no file of ids is left to whoever reads it."""
    try:
        with open_image(path) as file:
            mode, values = file.mode, np.asarray(file)
    except Exception:
        return
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        return
    found, places = np.unique(values, return_inverse=True)
    for wrong in set(found.tolist()) - train_ids.keys():
        raise InputError(f"{where}: id {wrong} is not in id2label.json, nor in the feature's names")
    path.unlink()  # it may be a link to the original
    mapped = np.array([train_ids[i] for i in found.tolist()], np.uint8)[places.reshape(values.shape)]
    Image.fromarray(mapped).save(path, compress_level=1)
