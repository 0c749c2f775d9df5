"""`translate --audit`: what is compared, what is ignored in the labels, and what must never be touched."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import trees
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_processes import run
from test_scoring import CLASSES, draw_model, pixels, write

from daynight.config import SegTrainOptions
from daynight.data.labels import TRAIN_ID_OF
from daynight.data.sampling import generator
from daynight.data.sets import load
from daynight.data.translated import Draw
from daynight.models.generator import Generator
from daynight.models.hub import save_model

NAMES = [name for name, _ in CLASSES]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    trees.cityscapes(home / "data/cs", kinds=("labelIds", "labelTrainIds"))
    trees.folder(home / "data/own", val=1)
    trees.bare(home / "data/bare")
    draw_model(home / "a", CLASSES, 0)
    draw_model(home / "b", CLASSES, 1)
    draw_model(home / "letters", [(name[::-1] + "?", color) for name, color in CLASSES[:3]], 2)
    draw_model(home / "three", [(name.upper(), color) for name, color in reversed(trees.CLASSES)], 3)
    torch.manual_seed(0)
    save_model(Generator(1, 4, size="native"), home / "translator/day2night")
    (home / "outputs").mkdir()
    learn_labels(home)
    assert translate(home, "cs", home / "night", "--audit a --audit-ignore").code == 0
    return home


def learn_labels(home):
    """Write labels of which `a` has many right: half of what it predicts, beside the stripes that were drawn."""
    assert daynight("predict --in cs --out right --model a --ids labelIds", home).code == 0
    assert daynight("predict --in own --out right-own --model three", home).code == 0
    for path in (home / "data/cs/gtFine").rglob("*_labelIds.png"):
        inside = str(path.relative_to(home / "data/cs/gtFine")).replace("_gtFine_labelIds", "_leftImg8bit")
        values = pixels(path)
        values[:24] = pixels(home / "right/ids/leftImg8bit" / inside)[:24]
        write(path, values)
        write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), TRAIN_ID_OF[values])
    for path in (home / "data/own/labels").rglob("*.png"):
        values = pixels(path)
        values[:24] = 2 - pixels(home / "right-own/ids/images" / path.relative_to(home / "data/own/labels"))[:24]
        write(path, values)


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
    """All that `predict` gives, counted anew."""
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
    assert f"{found['kept']:.1f} % of the pixels keep the class" in text and f"{found['ignored']:.1f} %" in text
    rows = text.split("Worst first</h2>")[1].split("<h2>")[0].split("<tr>")[2:]
    assert len(rows) == len(found["worst"])
    for row, line in zip(found["worst"], rows, strict=True):
        assert f">{row['image']}<" in line and f">{row['class']}<" in line and f">{row['kept']:.1f}<" in line
    panels = text.split("Where they differ</h2>")[1]
    order = list(dict.fromkeys(row["image"] for row in found["worst"]))
    assert sorted(order, key=panels.index) == order and panels.count("<img") == 5 * len(order)


def test_labels_are_ignored_where_the_translation_lost_them(home):
    before, after = (predictions(home, *of) for of in (("cs", "a", home / "p"), ("night", "a", home / "q")))
    found, shares = {entry["image"]: entry for entry in audit_of(home / "night")["images"]}, []
    for inside, one in before.items():
        stem = str(inside).replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_")
        own, carried = home / "data/cs" / f"{stem}labelIds.png", home / "night" / f"{stem}labelIds.png"
        if not own.exists():
            assert "train_extra" in stem and "ignored" not in found[f"{inside}.png"]
            continue
        truth = pixels(own)
        lost = (TRAIN_ID_OF[truth] == one) & (after[inside] != one)
        assert np.array_equal(pixels(carried), np.where(lost, 0, truth))
        train_ids = pixels(str(carried).replace("labelIds", "labelTrainIds"))
        assert np.array_equal(train_ids, np.where(lost, 255, TRAIN_ID_OF[truth]))
        assert found[f"{inside}.png"]["ignored"] == lost.sum()
        shares.append(100 * lost.mean())
    assert audit_of(home / "night")["ignored"] == pytest.approx(np.mean(shares)) and 0 < min(shares) < max(shares) < 60


def test_classes_meet_by_name(home, tmp_path):
    """`three` knows the classes of `own` in another order and in capitals."""
    assert translate(home, "own", tmp_path / "night", "--audit three --audit-ignore").code == 0
    before, after = (
        predictions(home, *of)
        for of in (("own", "three", tmp_path / "p"), (tmp_path / "night", "three", tmp_path / "q"))
    )
    ignored = 0
    for inside, one in before.items():
        label = inside.relative_to("images").with_suffix(".png")
        truth, carried = (pixels(root / "labels" / label) for root in (home / "data/own", tmp_path / "night"))
        lost = (2 - truth.astype(int) == one) & (after[inside] != one)
        assert np.array_equal(carried, np.where(lost, 255, truth))
        ignored += lost.sum()
    assert ignored > 100


def test_what_is_the_users_own_is_never_written_to(home, tmp_path):
    """The labels that come along are links to it."""
    shutil.copytree(home / "data/cs", tmp_path / "cs")
    before = state(tmp_path / "cs")
    assert translate(home, tmp_path / "cs", tmp_path / "night", "").code == 0
    label = next((tmp_path / "cs/gtFine").rglob("*_labelIds.png"))
    carried = tmp_path / "night" / label.relative_to(tmp_path / "cs")
    assert os.path.samefile(label, carried)
    assert translate(home, tmp_path / "cs", tmp_path / "night", "--audit a --audit-ignore").code == 0
    assert not os.path.samefile(label, carried) and (pixels(label) != pixels(carried)).any()
    assert state(tmp_path / "cs") == before


def test_another_audit_takes_the_place_of_the_first(home, tmp_path):
    """Of other labels, or of none: then they come along as they are."""
    shutil.copytree(home / "night", tmp_path / "night")
    others = translate(home, "cs", tmp_path / "night", "--audit b --audit-ignore")
    assert "audited anew" in others.out and "8 there" in others.out
    expected = tmp_path / "fresh"
    assert translate(home, "cs", expected, "--audit b --audit-ignore").code == 0
    assert audit_of(tmp_path / "night") == audit_of(expected) != audit_of(home / "night")
    for path in files(expected / "gtFine"):
        assert path.read_bytes() == (tmp_path / "night" / path.relative_to(expected)).read_bytes()
    assert translate(home, "cs", tmp_path / "night", "--audit b").code == 0
    assert audit_of(tmp_path / "night")["ignored"] is None
    for path in files(home / "data/cs/gtFine"):
        assert path.samefile(tmp_path / "night" / path.relative_to(home / "data/cs"))


def test_what_is_done_is_not_done_again(home, tmp_path):
    shutil.copytree(home / "night", tmp_path / "night")
    before = state(tmp_path / "night")
    again = translate(home, "cs", tmp_path / "night", "--audit a --audit-ignore")
    assert again.code == 0 and "8 images, 8 done" in again.out
    assert state(tmp_path / "night") == before
    # a label that is lost comes along again, and is not left as it was
    label = next((tmp_path / "night/gtFine").rglob("*_labelIds.png"))
    content = label.read_bytes()
    label.unlink()
    again = translate(home, "cs", tmp_path / "night", "--audit a --audit-ignore")
    assert "8 images, 7 done" in again.out and label.read_bytes() == content
    assert audit_of(tmp_path / "night") == audit_of(home / "night")
    assert not (tmp_path / "night/.audit").exists()


def test_two_processes_audit_as_one(home):
    result = run("translate --in cs --out two --model translator --audit a --audit-ignore", 2, home)
    assert result.codes == [0, 0] and audit_of(home / "two") == audit_of(home / "night")
    for path in files(home / "night"):
        if path.suffix != ".html":
            assert path.read_bytes() == (home / "two" / path.relative_to(home / "night")).read_bytes()


def test_any_tree_of_images_and_sizes(home, tmp_path):
    """Without a label, and with labels of another size than the user's."""
    result = translate(home, "bare", tmp_path / "bare", "--audit three")
    assert result.code == 0 and len(audit_of(tmp_path / "bare")["images"]) == 3
    assert "3 images, 3 there" in translate(home, "bare", tmp_path / "bare", "").out
    assert translate(home, "own", tmp_path / "small", "--audit three --audit-ignore --size 24x40").code == 0
    assert audit_of(tmp_path / "small")["images"][0]["pixels"] == 24 * 40
    for path in files(tmp_path / "small/labels"):
        assert pixels(path).shape == (24, 40)
    found = load(str(tmp_path / "small"), tmp_path, "--day", labelled=True)
    assert len(found.images) == 4 and None not in found.labels


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("own", "--audit-ignore", "--audit-ignore"),
        ("bare", "--audit three --audit-ignore", "bare has no labels"),
        ("own", "--audit letters --audit-ignore", "--audit letters"),
        ("own", "--audit nothing", "--audit nothing: no such folder"),
        ("own", "--audit translator/day2night", "wanted: a DeepLabV2"),
    ],
)
def test_refused(name, words, said, home, tmp_path):
    assert said in translate(home, name, tmp_path / "out", words).line
    assert not (tmp_path / "out").exists()


SEG = "--head-width 8 --backbone test_resnet --backbone-weights random --size native --crop 24 --steps 2 --batch-size 2"


def test_a_training_takes_the_labels_of_an_audited_translation(home, tmp_path):
    """The translation has its own labels, the day image keeps the user's; a run does not go on with others."""
    options = SegTrainOptions(day="cs", translated="x", size="native", crop="48x96")
    day = load("cs", home / "data", "--day", labelled=True)
    draw = Draw(options, {"--day": [day], "--night": [], "--unlabelled-day": []}, "folder", str(home / "night"))
    carried = {pixels(path).tobytes() for path in (home / "night/gtFine/train").rglob("*_labelIds.png")}
    own = {pixels(path).tobytes() for path in (home / "data/cs/gtFine/train").rglob("*_labelIds.png")}
    seen = [draw(generator(0, step, 0), 0) for step in range(8)]
    for sample in seen:
        for name, found in (("labels", own), ("fake_labels", carried)):
            ids = {TRAIN_ID_OF[np.frombuffer(x, np.uint8)].tobytes() for x in found}
            assert sample[name].numpy().astype(np.uint8).tobytes() in ids
        assert ((sample["labels"] == sample["fake_labels"]) | (sample["fake_labels"] == 255)).all()
    assert any((sample["labels"] != sample["fake_labels"]).any() for sample in seen)

    line = f"seg-train --day cs {SEG} --out {tmp_path}/run --translated"
    shutil.copytree(home / "night", tmp_path / "night")
    assert daynight(f"{line} {tmp_path}/night", home).code == 0
    (tmp_path / "night/audit.json").unlink()
    assert "translations" in daynight(f"{line} {tmp_path}/night", home).line
