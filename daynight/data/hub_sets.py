"""Data sets as Hugging Face `datasets` reads them, from the Hub or from disk: unpacked once into a tree of images."""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_download

from daynight.data.formats import IMAGE_SUFFIXES
from daynight.system.console import counted, say
from daynight.system.errors import InputError, Unlabelled
from daynight.system.files import copy, marked

SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)}|train|val|test)(?![a-z])", re.IGNORECASE)  # in a path
PART = re.compile(r"(.+)-\d{5}-of-\d{5}")  # as the Hub names parquet files
LABEL = re.compile(r"label|mask|annot|seg|ground.?truth|(^|_)gt(_|$)", re.IGNORECASE)  # in a column's name
SPELLING = "hf:USER/NAME[@REVISION][:CONFIG][#IMAGE_COLUMN[,LABEL_COLUMN]]"
SAVED = "dataset_dict.json", "state.json"  # by `save_to_disk`


def is_data_set(folder: Path) -> bool:
    """Whether `datasets` reads this folder: one of `save_to_disk`, of parquet files (without images/), or of images
    with a metadata.csv or metadata.jsonl that names them (`file_name`)."""
    parquet = () if os.path.isdir(folder / "images") else ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    if any(any(folder.glob(pattern)) for pattern in (*SAVED, *parquet)):
        return True
    names = ("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl")
    tables = (path for name in names for path in folder.glob(name) if path.is_file())
    return any("file_name" in path.read_text(errors="replace") for path in tables)


def unpack(name: str, option: str, labelled: bool = False) -> Path:
    """The folder with a data set's images/<split>/, labels/<split>/ and tables of classes. `name`: `SPELLING`, or with
    a folder in place of USER/NAME.

    The fingerprints of `datasets` tell whether it is there already. Raises InputError where `datasets` cannot read it,
    where the columns are not clear, and, if `labelled`, where there are no labels or no classes.
    """
    where, (place, _, chosen) = f"{option} {name}", name.removeprefix("hf:").partition("#")
    splits, tables = _read(place, where)
    features = next(iter(splits.values())).features
    columns = _columns(features, chosen, where)
    if labelled and len(columns) < 2:
        wanted = f"wanted: {SPELLING}, in a metadata.csv label_file_name"
        raise Unlabelled(f"{where}: no column of label images among {', '.join(features)}; {wanted}")
    if len(columns) > 1 and not tables and (names := _names(features)):
        tables = {"id2label.json": json.dumps(dict(enumerate(names)))}
    if labelled and not tables:
        wanted = 'classes.json, or id2label.json ({"0": "road", …}), beside its files'
        raise InputError(f"{where}: nothing tells the classes of {columns[1]}; put {wanted}")
    made_of = [{split: data._fingerprint for split, data in splits.items()}, columns, tables]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    short = re.sub(r"[^\w.-]+", "-", place)[-80:].strip("-")
    folder = Path(_library().config.HF_DATASETS_CACHE, "daynight", f"{short}-{digest}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one unpacks, and the others wait
            if not folder.is_dir():
                _write(folder, splits, columns, tables, where)
                say(f"{name}: {sum(map(len, splits.values())):,} images unpacked into {folder}")
    except OSError as error:
        raise InputError(f"{where}: cannot be unpacked ({error}); HF_DATASETS_CACHE moves {folder}") from error
    return folder


def _library():
    import datasets  # takes a second

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _read(place: str, where: str) -> tuple[dict, dict[str, str]]:
    """The splits, by the names that daynight gives them, and the text of each table of classes that is there."""
    root, revision, config = place, None, None
    if not os.path.isdir(place) and (found := re.fullmatch(r"([^@:]+)(?:@([^:]+))?(?::(.+))?", place)):
        root, revision, config = found.groups()
    try:
        data = _from_disk(Path(root), config, revision) if os.path.isdir(root) else _from_hub(root, config, revision)
        files = {name: _beside(root, revision, name) for name in ("classes.json", "id2label.json")}
        tables = {name: path.read_text(encoding="utf-8-sig") for name, path in files.items() if path}
    # `datasets` raises exceptions of any kind; that nothing was generated has a cause that says more
    except Exception as error:
        cause = (type(error).__name__ == "DatasetGenerationError" and error.__cause__) or error
        reason = " ".join(str(cause).strip().splitlines()[:2]) or repr(cause)
        hint = f"wanted: {SPELLING} or a folder; a private or gated one needs `hf auth login` or HF_TOKEN"
        raise InputError(f"{where}: `datasets` cannot read it ({reason}); {hint}") from error
    parts = data if isinstance(data, dict) else {str(data.split or "train"): data}
    splits = {SPLITS.get(split, split): part for split, part in parts.items() if len(part)}
    if not splits:
        raise InputError(f"{where}: has no rows")
    return splits, tables


def _from_disk(folder: Path, config: str | None, revision: str | None):
    datasets, saved, readme = _library(), any(os.path.isfile(folder / name) for name in SAVED), folder / "README.md"
    if revision or config and saved:
        raise ValueError("a folder has no revisions, and one of save_to_disk no configurations")
    if saved:
        return datasets.load_from_disk(folder)
    if config or readme.is_file() and "data_files" in readme.read_text(errors="replace"):
        return datasets.load_dataset(str(folder), config)
    # splits are told apart here: `datasets` passes over a metadata.csv beside their folders, and takes classes.json for
    # data where no file is named after a split
    rows, splits, files = None, {}, sorted(folder.rglob("*.parquet"))
    if not files:
        if not is_data_set(folder):
            raise ValueError("neither parquet, save_to_disk nor metadata.csv; give a folder of images without hf:")
        rows = datasets.load_dataset("imagefolder", data_files=str(folder / "**"), split="train")
        first = next(x for x, kind in rows.features.items() if isinstance(kind, datasets.Image))
        files = [Path(x["path"]) for x in rows.cast_column(first, datasets.Image(decode=False))[first]]
    for i, path in enumerate(files):
        found = PART.fullmatch(path.stem) or SPLIT.search(os.path.relpath(path, folder))
        splits.setdefault(found[1].lower() if found else "train", []).append(i if rows else str(path))
    if rows:
        return {split: rows.select(numbers) for split, numbers in splits.items()}
    return datasets.load_dataset("parquet", data_files=splits)


@functools.cache  # a command sees one revision
def _from_hub(repository: str, config: str | None, revision: str | None):
    datasets = _library()
    try:
        # one request with a time limit: without a network, load_dataset would try six times for each file
        HfApi().dataset_info(repository, revision=revision, timeout=10)
    except errors.HfHubHTTPError:  # the Hub has answered, and refused; load_dataset says it better
        pass
    except Exception:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True  # for the rest of this command
    return datasets.load_dataset(repository, config, revision=revision)


def _beside(root: str, revision: str | None, name: str) -> Path | None:
    if os.path.isdir(root):
        return Path(root, name) if os.path.isfile(Path(root, name)) else None
    with suppress(errors.EntryNotFoundError):
        return Path(hf_hub_download(root, name, repo_type="dataset", revision=revision))


def _columns(features: dict, chosen: str, where: str) -> list[str]:
    """The column of images and, if there is one, that of labels: as chosen, else by type and name."""
    image = _library().Image

    def is_image(kind) -> bool:  # a structure where a file has lost the notes of `datasets`
        return isinstance(kind, image) or isinstance(kind, dict) and {*kind} == {"bytes", "path"}

    images = [x for x, kind in features.items() if is_image(kind)]
    labels = [x for x in images if LABEL.search(x)]
    names = chosen.split(",") if chosen else [x for x in images if x not in labels] + labels
    clear = chosen or len(labels) < 2 and len(names) == 1 + len(labels)
    if not clear or len(names) > 2 or not {*names} <= {*images}:
        found = f"image columns: {', '.join(images) or 'none'}, among {', '.join(features)}"
        raise InputError(f"{where}: {found}; say which to read: {SPELLING}")
    return names


def _names(features: dict) -> list[str] | None:
    """The names in the only feature that has some: a list of class labels, else a class label."""
    for kinds in ([getattr(kind, "feature", None) for kind in features.values()], features.values()):
        if named := [kind.names for kind in kinds if hasattr(kind, "names")]:
            return named[0] if len(named) == 1 else None


def _write(folder: Path, splits: dict, columns: list[str], tables: dict[str, str], where: str) -> None:
    """Write the tree, whole or not at all. Files are as the data set holds them."""
    temporary = folder.with_name(marked(folder.name))
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        for name, text in tables.items():
            (temporary / name).write_text(text, encoding="utf-8")
        total = len(columns) * sum(map(len, splits.values()))
        for name, file in counted(_files(splits, columns, where), total, "files"):
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file["bytes"]) if file["bytes"] else copy(file["path"], path)
        os.sync()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(splits: dict, columns: list[str], where: str) -> Iterator[tuple[Path, dict]]:
    """Every image and label: its path in the tree, and the bytes or the path that the data set has of it.

    A file keeps its name where no other of the split has it; else its row's number is its name.
    """
    for split, data in splits.items():
        taken, data = set(), data.select_columns([x for x in columns if x in data.column_names])
        for i, row in enumerate(data.with_format("arrow")):  # which decodes nothing
            image, label = (row.to_pylist()[0].get(x) or {} for x in (*columns, None)[:2])
            if not any(image.values()):
                raise InputError(f"{where}: no image in row {i} of {split}")
            stem, suffix = os.path.splitext(re.split(r"[/\\]", (image["path"] or "").partition("::")[0])[-1])
            if not stem or stem[0] == "." or len(os.fsencode(stem)) > 200 or stem.casefold() in taken:
                stem = f"{i:06}"
            while stem.casefold() in taken:
                stem += "_"
            taken.add(stem.casefold())
            # files are opened by their content
            yield Path("images", split, stem + (suffix if suffix.lower() in IMAGE_SUFFIXES else ".png")), image
            if any(label.values()):
                yield Path("labels", split, f"{stem}.png"), label
