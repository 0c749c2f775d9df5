"""`translate --audit`: what is compared, what the page shows, and what must never be touched."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import trees
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_processes import run
from test_scoring import CLASSES, draw_model, pixels

from daynight.data.sets import load
from daynight.inference import audit
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system.errors import RunError

NAMES = [name for name, _ in CLASSES]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    trees.cityscapes(home / "data/cs", kinds=("labelIds", "labelTrainIds"))
    trees.folder(home / "data/own", val=1)
    trees.bare(home / "data/bare")
    draw_model(home / "a", CLASSES, 0)
    draw_model(home / "b", CLASSES, 1)
    draw_model(home / "three", [(name.upper(), color) for name, color in reversed(trees.CLASSES)], 3)
    torch.manual_seed(0)
    save_model(Generator(1, 4, size="native"), home / "translator/day2night")
    (home / "outputs").mkdir()
    assert translate(home, "cs", home / "night", "--audit a").code == 0
    return home


def translate(home, name, out, words):
    return daynight(f"translate --in {name} --out {out} --model translator {words}", home)


def predictions(home, given, model, out):
    """What `predict` gives for each image: by its path in the data set, without the suffix."""
    if not out.exists():
        assert daynight(f"predict --in {given} --out {out} --model {model}", home).code == 0
    return {path.relative_to(out / "ids").with_suffix(""): pixels(path) for path in (out / "ids").rglob("*.png")}


def state(root):
    return {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files(root)}


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def audit_of(folder):
    return json.loads((folder / "audit.json").read_text())


def test_predictions_are_compared_by_image_and_class(home):
    """Against counts of what `predict` gives for the same images."""
    before, after = (predictions(home, *of) for of in (("cs", "a", home / "p"), ("night", "a", home / "q")))
    found = audit_of(home / "night")
    assert len(found["images"]) == len(before) == 8
    rows, total = [], np.zeros((19, 19), int)
    for entry in found["images"]:
        inside = next(path for path in before if f"{path}.png" == entry["image"])
        one, other = before[inside], after[inside]
        matrix = np.array([[((one == i) & (other == j)).sum() for j in range(19)] for i in range(19)])
        total += matrix
        expected = {NAMES[i]: {NAMES[j]: matrix[i, j] for j in range(19) if matrix[i, j]} for i in range(19)}
        assert entry["changes"] == {name: became for name, became in expected.items() if became}
        assert entry["pixels"] == one.size and entry["kept"] == pytest.approx(100 * (one == other).mean())
        for i in np.flatnonzero(matrix.sum(1) >= one.size / 1000):
            rows.append((100 * matrix[i, i] / matrix[i].sum(), -matrix[i].sum(), entry["image"], NAMES[i]))
    assert found["kept"] == pytest.approx(100 * total.trace() / total.sum()) and 5 < found["kept"] < 95
    for i, name in enumerate(NAMES):
        row = found["classes"][name]
        assert row["pixels"] == total[i].sum()
        assert row["kept"] == (pytest.approx(100 * total[i, i] / total[i].sum()) if total[i].any() else None)
        others = np.delete(total[i], i)
        assert (
            (row["became"] is None)
            if not others.any()
            else row["became"][1] == pytest.approx(100 * others.max() / total[i].sum())
        )
    assert [(row["image"], row["class"]) for row in found["worst"]] == [row[2:] for row in sorted(rows)][:100]


def test_the_page_shows_the_worst_first(home):
    text, found = (home / "night/audit.html").read_text(), audit_of(home / "night")
    assert f"{found['kept']:.1f} % of the pixels keep the class" in text
    rows = text.split("Worst first</h2>")[1].split("<h2>")[0].split("<tr>")[2:]
    assert len(rows) == len(found["worst"])
    for row, line in zip(found["worst"], rows, strict=True):
        assert f">{row['image']}<" in line and f">{row['class']}<" in line and f">{row['kept']:.1f}<" in line
    panels = text.split("Where they differ</h2>")[1]
    order = list(dict.fromkeys(row["image"] for row in found["worst"]))
    assert sorted(order, key=panels.index) == order and panels.count("<img") == 5 * len(order)


def test_what_is_the_users_own_is_never_written_to(home, tmp_path):
    """Also where the labels that come along are links to it."""
    shutil.copytree(home / "data/cs", tmp_path / "cs")
    before = state(tmp_path / "cs")
    assert translate(home, tmp_path / "cs", tmp_path / "night", "--link").code == 0
    label = next((tmp_path / "cs/gtFine").rglob("*_labelIds.png"))
    carried = tmp_path / "night" / label.relative_to(tmp_path / "cs")
    assert os.path.samefile(label, carried)
    assert translate(home, tmp_path / "cs", tmp_path / "night", "--link --audit a").code == 0
    assert os.path.samefile(label, carried) and state(tmp_path / "cs") == before


def test_another_audit_takes_the_place_of_the_first(home, tmp_path):
    shutil.copytree(home / "night", tmp_path / "night")
    others = translate(home, "cs", tmp_path / "night", "--audit b")
    assert f"{tmp_path / 'night'}: 8 images, 8 there" in others.out and "audit by b: 8 images, 0 there" in others.out
    expected = tmp_path / "fresh"
    assert translate(home, "cs", expected, "--audit b").code == 0
    assert audit_of(tmp_path / "night") == audit_of(expected) != audit_of(home / "night")


def test_what_is_done_is_not_done_again(home, tmp_path):
    shutil.copytree(home / "night", tmp_path / "night")
    before = state(tmp_path / "night")
    again = translate(home, "cs", tmp_path / "night", "--audit a")
    assert again.code == 0 and "audit by a: 8 images, 8 there" in again.out
    assert state(tmp_path / "night") == before
    assert not (tmp_path / "night/.audit").exists()


def test_an_interrupted_audit_goes_on(home, tmp_path, monkeypatch):
    """Of an audit that ended before its report, only what is missing is computed."""
    shutil.copytree(home / "night", tmp_path / "night")
    for name in ("audit.json", "audit.html"):
        (tmp_path / "night" / name).unlink()

    def fail(*_):
        raise RunError("no report")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "report", fail)
        assert translate(home, "cs", tmp_path / "night", "--audit a").code == 1
    shutil.copytree(tmp_path / "night", tmp_path / "other")
    assert "audit by b: 8 images, 0 there" in translate(home, "cs", tmp_path / "other", "--audit b").out
    assert not (tmp_path / "other/.audit").exists()
    next((tmp_path / "night/.audit").rglob("*.json")).unlink()
    again = translate(home, "cs", tmp_path / "night", "--audit a")
    assert again.code == 0 and "audit by a: 8 images, 7 there" in again.out
    assert audit_of(tmp_path / "night") == audit_of(home / "night")
    assert not (tmp_path / "night/.audit").exists()


def test_two_processes_audit_as_one(home):
    result = run("translate --in cs --out two --model translator --audit a", 2, home)
    assert result.codes == [0, 0] and audit_of(home / "two") == audit_of(home / "night")
    for path in files(home / "night"):
        if path.suffix != ".html":
            assert path.read_bytes() == (home / "two" / path.relative_to(home / "night")).read_bytes()


def test_any_tree_of_images_and_sizes(home, tmp_path):
    """Without a label, and with labels of another size than the user's."""
    result = translate(home, "bare", tmp_path / "bare", "--audit three")
    assert result.code == 0 and len(audit_of(tmp_path / "bare")["images"]) == 3
    assert "3 images, 3 there" in translate(home, "bare", tmp_path / "bare", "").out
    assert translate(home, "own", tmp_path / "small", "--audit three --size 24x40").code == 0
    assert audit_of(tmp_path / "small")["images"][0]["pixels"] == 24 * 40
    for path in files(tmp_path / "small/labels"):
        assert pixels(path).shape == (24, 40)
    found = load(str(tmp_path / "small"), tmp_path, "--day", labelled=True)
    assert len(found.images) == 4 and None not in found.labels


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("own", "--audit nothing", "--audit nothing: no such folder"),
        ("own", "--audit translator/day2night", "wanted: a DeepLabV2"),
    ],
)
def test_refused(name, words, said, home, tmp_path):
    assert said in translate(home, name, tmp_path / "out", words).line
    assert not (tmp_path / "out").exists()
