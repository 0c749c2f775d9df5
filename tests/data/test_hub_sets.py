"""Data sets of Hugging Face's, as `datasets` itself writes them: `save_to_disk`, parquet, an imagefolder, the Hub (a
stand-in of its interface). Each is read as the tree that it was made from."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import datasets
import forms
import huggingface_hub
import numpy as np
import pytest
import trees
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from huggingface_hub import ModelCard, constants
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_scoring import draw_model

from daynight.data import hub_sets
from daynight.data.hub_sets import unpack
from daynight.data.labels import CITYSCAPES, read_label
from daynight.data.sets import load
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system.errors import InputError

FORMS = ("saved", "parquet", "csv", "jsonl", "hf:someone/streets")
TRAIN = "--size native --crop 32 --steps 2 --batch-size 2 --backbone test_resnet --backbone-weights random"
TRAIN += " --head-width 8 --validate-every 0 --train-on day"
NAMES = [name for name, _ in trees.CLASSES]


def made(image="image", label="label", **more):
    """Train and validation of a tree as `datasets` holds them, the files' content in them."""

    def rows(root, split, **more):
        images = sorted((root / "images" / split).rglob("*.jpg"))
        labels = [root / "labels" / path.relative_to(root / "images").with_suffix(".png") for path in images]
        files = {image: images, label: labels} if label else {image: images}
        columns = {name: [cell(path) for path in paths] for name, paths in files.items()}
        for name, (_, value) in more.items():
            columns[name] = [value] * len(images)
        kinds = dict.fromkeys(columns, datasets.Image()) | {name: kind for name, (kind, _) in more.items()}
        return Dataset.from_dict(columns, features=Features(kinds))

    def make(root):
        return DatasetDict(train=rows(root, "train", **more), validation=rows(root, "val", **more))

    return make


def cell(path):
    return {"bytes": path.read_bytes(), "path": path.name}


def to_parquet(data, folder):
    (folder / "data").mkdir(parents=True)
    for split, part in data.items():
        part.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def to_imagefolder(root, folder, kind):
    """Images with their labels beside them, and a table that names both."""
    for split, name in (("train", "train"), ("val", "validation")):
        lines = []
        for path in sorted((root / "images" / split).rglob("*.jpg")):
            place = folder / name / path.name
            (place.parent / "masks").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
            label = root / "labels" / path.relative_to(root / "images").with_suffix(".png")
            shutil.copy(label, place.parent / "masks" / label.name)
            lines.append({"file_name": path.name, "label_file_name": f"masks/{label.name}"})
        text = "\n".join(map(json.dumps, lines))
        if kind == "csv":
            text = "\n".join([",".join(lines[0]), *(",".join(line.values()) for line in lines)])
        (folder / name / f"metadata.{kind}").write_text(text + "\n")
    return folder


def id2label(folder, *names):
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    return folder


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers of data sets: /api/datasets/<repository>, its /revision/, /tree/ and /paths-info/, and its
    files."""

    def do_POST(self):
        self.asked = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode()).get("paths", [])
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").removeprefix("api/").split("/")
        repository, (kind, revision, *name) = "/".join(parts[1:3]), [*parts[3:], "", ""]
        root, name = self.server.repositories.get(repository), "/".join(name).rstrip("/")
        if root == "gated":
            return self.send(b"", 403 if kind == "resolve" else 401, {"X-Error-Code": "GatedRepo"})
        if parts[0] != "datasets" or not root:
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", "v1", "a" * 40):
            return self.send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        if kind == "resolve":
            found = (root / name).is_file()
            return (
                self.send((root / name).read_bytes())
                if found
                else self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            )
        if kind == "tree" and not (root / name).is_dir():
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        if kind == "tree":
            paths = (root / name).rglob("*") if "recursive=true" in self.path else (root / name).iterdir()
        else:
            paths = filter(Path.exists, (root / name for name in getattr(self, "asked", ())))
        content = [
            {"type": "directory" if path.is_dir() else "file", "path": path.relative_to(root).as_posix(),
             "oid": "0" * 40, "size": path.stat().st_size}
            for path in paths
        ]  # fmt: skip
        if kind in ("", "revision"):
            names = [{"rfilename": path.relative_to(root).as_posix()} for path in root.rglob("*") if path.is_file()]
            content = {"id": repository, "sha": "a" * 40, "private": False, "tags": [], "siblings": names}
        self.send(json.dumps(content).encode())

    do_HEAD = do_GET

    def send(self, content, code=200, headers=()):
        self.send_response(code)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": "a" * 40, "Content-Length": len(content)} | dict(headers)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Under data/: own, a tree, and the same in every form; the model `three` of its classes; the Hub."""
    home = tmp_path_factory.mktemp("home")
    data = home / "data"
    own = trees.folder(data / "own")
    made()(own).save_to_disk(data / "saved")
    to_parquet(made()(own), data / "parquet")
    to_parquet(made()(own), home / "repository")
    for kind in ("csv", "jsonl"):
        to_imagefolder(own, data / kind, kind)
    for folder in (data / "saved", data / "csv", data / "jsonl"):
        shutil.copy(own / "classes.json", folder)
    for folder in (data / "parquet", home / "repository"):
        id2label(folder, *NAMES)
    for name in ("a", "b"):  # two configurations, each of one file
        (home / "configs" / name).mkdir(parents=True)
        made()(own)["train"].to_parquet(home / f"configs/{name}/train.parquet")
    lines = (f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in ("a", "b"))
    (home / "configs/README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))
    (home / "script").mkdir()
    (home / "script/script.py").write_text("raise SystemExit('it was run')")
    draw_model(home / "three", trees.CLASSES, 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server, pytest.MonkeyPatch.context() as patch:
        server.repositories = {
            "someone/streets": home / "repository",
            "someone/folder": home / "data/csv",
            "someone/configs": home / "configs",
            "someone/script": home / "script",
            "someone/gated": "gated",
        }  # fmt: skip
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(constants, "ENDPOINT", endpoint)
        for module in (constants, huggingface_hub.file_download):
            template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "cache/hub"))
        patch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        patch.setattr(datasets.config, "HF_HUB_CACHE", str(home / "cache/hub"), raising=False)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache/datasets")
        yield home
        server.shutdown()


@pytest.fixture(autouse=True)
def fresh(home):
    hub_sets._from_hub.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_a_training_and_a_score(form, home):
    """The score is that of the tree that the form was made from."""
    out = form.rpartition("/")[2]
    trained = daynight(f"seg-train --day {form} --out runs/{out} {TRAIN}", home)
    assert (trained.code, trained.err) == (0, ""), trained
    kind = "trainIds" if form in ("saved", "csv", "jsonl") else "ids"
    assert f"{form}: folder, train, 4 images, 4 labels ({kind}), 3 classes" in trained.out
    unpacked = re.findall(f"{form}: 6 images unpacked into (.*)", trained.out)
    assert len(unpacked) == 1 and Path(unpacked[0]).is_relative_to(home / "cache/datasets/daynight")
    scored = daynight(f"eval --model runs/{out} --dataset {form} --dataset own --json {out}.json", home)
    assert (scored.code, scored.err) == (0, "") and "unpacked" not in scored.out, scored
    found, own = json.loads((home / f"{out}.json").read_text())
    assert found["dataset"] == form and found["split"] == "val" and found["images"] == 2
    assert {key: found[key] for key in ("miou", "iou", "label_set")} == {
        key: own[key] for key in ("miou", "iou", "label_set")
    }
    card = ModelCard.load(home / f"runs/{out}/teacher/README.md")
    assert card.data.datasets == (["someone/streets"] if form.startswith("hf:") else None)


@pytest.mark.parametrize("form", FORMS)
def test_files_stay_as_they_are(form, home):
    found, own = (load(name, home / "data", "--day", splits=None, labelled=True) for name in (form, "own"))
    assert sorted(p.stem for p in found.images) == sorted(p.stem for p in own.images)
    for ours, theirs in ((found.images, own.images), (found.labels, own.labels)):
        assert sorted(p.read_bytes() for p in ours) == sorted(p.read_bytes() for p in theirs)
    assert found.classes.names == own.classes.names and (found.name, found.split) == (form, "val")


def test_a_tree_is_written_of_one(home, tmp_path):
    """`predict` and `translate` write ordinary folders."""
    save_model(Generator(1, 4, size="24", crop="16"), tmp_path / "translator/day2night")
    assert daynight(f"translate --in csv --out {tmp_path}/night --model {tmp_path}/translator", home).code == 0
    assert str(load(f"{tmp_path}/night", home, "--day", splits=None, labelled=True)).endswith(
        "night: folder, val, 2 images, 2 labels (trainIds), 3 classes"
    )
    assert daynight(f"predict --in parquet --out {tmp_path}/labels --model three", home).code == 0
    assert len(list(tmp_path.glob("labels/ids/images/*/*.png"))) == 6
    assert not list((home / "data/parquet").glob("**/*.jpg"))


def test_a_revision_and_a_configuration(home):
    assert load("hf:someone/streets@v1", home, "--day").images
    assert len(load("hf:someone/folder", home, "--day", labelled=True).labels) == 4
    assert len(load("hf:someone/configs:b", home, "--night").images) == 4
    for line, words in {
        "hf:someone/configs": "['a', 'b']",
        "hf:someone/configs:c": "'c' not found",
        "hf:someone/streets@v2": "v2",
        "hf:someone/nothing": "doesn't exist",
        "hf:someone/gated": "hf auth login",
        "hf:someone/script": "script",
        "hf:": "hf:USER/NAME",
        "hf:data/saved:a": "no configurations",
        "hf:data/csv@v1": "no revisions",
        "hf:data/own/classes.json": "hf:USER/NAME",
    }.items():
        found = daynight(f"eval --dry-run --dataset {line}", home)
        assert words in found.line and f"--dataset {line}: " in found.line, found


def test_without_the_hub(home, monkeypatch):
    """What has been read before is read from the cache; the rest is refused at once."""
    before = unpack("hf:someone/streets", "--day", True)
    hub_sets._from_hub.cache_clear()
    for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(module, name, "http://127.0.0.1:9")
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)  # so that it is put back
    began = time.monotonic()
    assert unpack("hf:someone/streets", "--day", True) == before
    assert "hf:someone/elsewhere" in daynight("eval --dry-run --dataset hf:someone/elsewhere", home).line
    assert time.monotonic() - began < 5


@pytest.fixture
def saved(home, tmp_path):
    """Saves a data set that `made` describes, from the tree `own` or from `root`; gives its folder."""

    def save(*names, root=home / "data/own", **columns):
        folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        made(**columns)(root).save_to_disk(folder)
        return id2label(folder, *names) if names else folder

    return save


def read(folder, labelled=True):
    return load(str(folder), Path("data"), "--day", labelled=labelled)


def refused(folder, labelled=True, name="{}"):
    with pytest.raises(hub_sets.InputError) as error:
        load(name.format(folder), Path("data"), "--day", labelled=labelled)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_columns(saved):
    for names in ({"image": "pixel_values", "label": "semantic_seg"}, {"image": "photo", "label": "gt"}):
        assert len(read(saved(*NAMES, **names)).images) == 4
    unclear = saved(*NAMES, image="before", label="after")
    assert "image columns: before, after, among" in refused(unclear) and "#IMAGE_COLUMN,LABEL" not in refused(unclear)
    chosen = load(f"hf:{unclear}#before,after", Path("data"), "--day", labelled=True)
    assert any(chosen.labels) and not any(load(f"hf:{unclear}#before", Path("data"), "--day").labels)
    assert "image columns: before, after, among" in refused(unclear, name="hf:{}#before,nothing")
    alone = saved(*NAMES, label=None, caption=(Value("string"), "a street"))
    assert (
        "no column of label images among image, caption" in refused(alone)
        and len(read(alone, labelled=False).images) == 4
    )


@pytest.mark.parametrize("names, splits", [
    (("0000.parquet", "more/0001.parquet"), {"train": 8}),
    (("default/training/0.parquet", "default/dev/0.parquet"), {"train": 4, "val": 4}),
    (("data/valid-00000-of-00001.parquet", "data/latest-00000-of-00001.parquet"), {"val": 4, "latest": 4}),
    (("Train.parquet", "streets_test.parquet"), {"train": 4, "test": 4}),
])  # fmt: skip
def test_parquet_files_by_any_name(names, splits, home, tmp_path):
    """Tables of classes beside them are no data."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / "configs/a/train.parquet", tmp_path / name)
    shutil.copy(home / "data/own/classes.json", id2label(tmp_path, *NAMES))
    (tmp_path / "README.md").write_text("# Streets")
    found = {s: len(load(str(tmp_path), tmp_path, "--day", splits=(s,), labelled=True).images) for s in splits}
    assert found == splits


def test_a_table_without_images(tmp_path):
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    assert "image columns: none, among text" in refused(tmp_path)


def test_a_file_that_another_tool_wrote(home, tmp_path):
    """Without what `datasets` notes in a parquet file, an image is a structure of bytes and path."""
    import pyarrow.parquet

    data = made()(home / "data/own")["train"]
    table = data.with_format("arrow")[:].replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert len(read(id2label(tmp_path, *NAMES)).labels) == 4


def test_the_classes(saved, home):
    """Of classes.json and id2label.json, else the names that the one list of names has."""
    several = {"classes": (List(ClassLabel(names=NAMES)), [0, 1]), "weather": (ClassLabel(names=["x", "y"]), 0)}
    found = read(saved(**several)).classes
    assert found.names == tuple(NAMES)
    cityscapes = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
    assert found.colors == tuple(cityscapes[name] for name in NAMES)
    other = read(saved("one", "two", "three", **several)).classes
    assert other.names == ("one", "two", "three") and len(set(other.colors)) == 3
    both = saved(*NAMES, "tree")
    shutil.copy(home / "data/own/classes.json", both)
    assert read(both).classes.names == tuple(NAMES)
    told = refused(saved())
    assert "classes.json" in told and "id2label.json" in told and "classes of label;" in told
    (both / "classes.json").write_text("{")
    assert "classes.json: not JSON" in refused(both)


def test_ids_that_are_no_classes(saved, tmp_path):
    """id2label.json is read as that of own folders: "unlabeled" is ignored, and an id without a name refused."""
    root = trees.folder(tmp_path / "tree")
    for path in root.glob("labels/**/*.png"):
        values = np.full(trees.SIZE, 7, np.uint8)
        values[:, :40], values[:, :20], values[:, :10] = 2, 0, 255
        Image.fromarray(values).save(path)
    folder = saved(root=root)
    (folder / "id2label.json").write_text(json.dumps({"7": "car", "2": "sky", "0": "Unlabeled"}))
    found = read(folder)
    assert found.classes.names == ("sky", "car")
    label = read_label(found.labels[0], found.label_kind, found.classes)
    assert label[0, [0, 15, 30, 60]].tolist() == [255, 255, 0, 1]
    (folder / "id2label.json").write_text(json.dumps({"0": "void", "2": "sky"}))
    line = daynight(f"eval --dry-run --dataset {folder}").line
    assert re.search(r"labels/val/00\d.png: value 7 is no id2label.json id", line)
    (folder / "id2label.json").write_text('{"road": "0"}')
    assert "id2label.json: not a table of classes" in refused(folder)


def test_names_of_files(tmp_path):
    """Rows of one name, or without one, keep apart; a suffix that tells nothing follows the content."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "WEBP")
    names = ("a.jpg", "A.png", None, ".hidden.png", "x/b.jpg", "y/b.jpg", "noun", "c:\\d.PNG")
    cells = [{"bytes": file.getvalue(), "path": name} for name in names]
    Dataset.from_dict({"image": cells}, features=Features({"image": datasets.Image()})).save_to_disk(tmp_path / "set")
    found = sorted(path.name for path in load(str(tmp_path / "set"), tmp_path, "--night").images)
    assert found == ["000001.png", "000002.png", "000003.png", "000005.jpg", "a.jpg", "b.jpg", "d.PNG", "noun.png"]


def test_what_has_changed_is_read_again(home, tmp_path):
    folder = shutil.copytree(home / "data/csv", tmp_path / "set")
    before = unpack(str(folder), "--day")
    assert unpack(str(folder), "--day") == before
    image = folder / "train/000.jpg"
    image.unlink()
    trees.image(image, brightness=9)
    after = unpack(str(folder), "--day")
    assert after != before and (after / "images/train/000.jpg").read_bytes() == image.read_bytes()


def test_an_image_that_is_not_there_is_named(home, tmp_path):
    path = trees.image(tmp_path / "gone.jpg")
    rows = {"image": [str(path)]}
    Dataset.from_dict(rows, features=Features({"image": datasets.Image()})).to_parquet(tmp_path / "train.parquet")
    path.unlink()
    assert "gone.jpg" in refused(tmp_path, labelled=False)


def test_what_was_cut_short_is_not_taken(saved, monkeypatch):
    """An error leaves nothing; what a killed process left is replaced; of three at once, one writes."""
    folder, writes, found = str(saved(*NAMES)), [], []
    files, sync, places = hub_sets._files, os.sync, []

    def fail(*given):
        yield from list(files(*given))[:5]
        places.extend(Path(datasets.config.HF_DATASETS_CACHE, "daynight").glob(".daynight-*.part"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_sets, "_files", fail)
    told = refused(folder)
    assert "No space left on device" in told and "HF_DATASETS_CACHE" in told
    [partial] = places
    assert not partial.exists()
    trees.image(partial / "images/train/left.jpg")
    monkeypatch.setattr(hub_sets, "_files", files)
    monkeypatch.setattr(os, "sync", lambda: (writes.append(1), sync()))
    threads = [threading.Thread(target=lambda: found.append(unpack(folder, "--day", True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and len(writes) == 1
    assert not partial.exists() and not (found[0] / "images/train/left.jpg").exists()


def test_one_table_for_all_splits(home, tmp_path):
    root = shutil.copytree(home / "data/own", tmp_path / "set")
    paths = sorted(path.relative_to(root).as_posix() for path in root.glob("images/**/*.jpg"))
    for split in ("train", "val"):
        (root / f"images/{split}").rename(root / split)
        (root / f"labels/{split}").rename(root / f"{split}/gt")
    for folder in ("images", "labels"):
        (root / folder).rmdir()
    names = [path.removeprefix("images/") for path in paths]
    pairs = [f"{name},{name.replace('/', '/gt/', 1).replace('jpg', 'png')}" for name in names]
    (root / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *pairs, ""]))
    found = load(str(root), tmp_path, "--dataset", splits=None, labelled=True)
    assert (found.split, len(found.images)) == ("val", 2) and len(read(root).labels) == 4
    # paths in a column of text are no images
    (root / "metadata.csv").write_text("\n".join(["file_name,mask", *pairs, ""]))
    assert "among image, mask; wanted" in refused(root) and "label_file_name" in refused(root)


def test_a_table_of_another_kind_makes_no_data_set(tmp_path):
    """A metadata.csv that names no files is anyone's."""
    trees.bare(tmp_path / "night")
    (tmp_path / "night/metadata.csv").write_text("place,time\nBern,night\n")
    found = load(str(tmp_path / "night"), tmp_path, "--night")
    assert found.layout == "images" and len(found.images) == 3


@pytest.mark.parametrize("layout", ["folder", "cityscapes"])
def test_a_table_beside_a_known_layout_changes_nothing(layout, tmp_path):
    root = getattr(trees, layout)(tmp_path / "set")
    Dataset.from_dict({"embedding": [1.0]}).to_parquet(root / "embeddings.parquet")
    assert len(read(root).images) == 4


def test_a_folder_of_images_is_not_read_by_datasets(tmp_path):
    """It would read label maps as images."""
    forms.camvid(tmp_path / "own")
    with pytest.raises(InputError, match="without hf:"):
        unpack(f"hf:{tmp_path}/own", "--night")
