"""examples/import_labels.py: polygons of labelme and side-by-side pairs become own data that is read as drawn."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import forms
import numpy as np
import pytest
from PIL import Image
from test_cli import clean, daynight, in_process  # noqa: F401 (clean is a fixture)

from daynight.data.labels import read_label
from daynight.data.sets import load

PATH = Path(__file__).parents[2] / "examples/import_labels.py"


@pytest.fixture(scope="module")
def main():
    spec = spec_from_file_location("import_labels", PATH)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def read(found):
    labels = [read_label(path, found.label_kind, found.classes, forms.SIZE) for path in found.labels]
    order = [found.classes.names.index(name) for name in ("sky", "road", "car")]
    return labels, np.array([*order, *[255] * 253])[forms.STRIPES]


def test_polygons_of_labelme(tmp_path, main):
    forms.labelme(tmp_path / "drawn/train")
    content = json.loads((tmp_path / "drawn/train/000.json").read_text())
    content["shapes"][1] |= {"shape_type": "rectangle", "points": [[8, 0], [15, 15]]}
    (tmp_path / "drawn/train/000.json").write_text(json.dumps(content))
    result = in_process(main, "import_labels.py drawn own", tmp_path)
    assert result.code == 0 and "own: 3 images, classes car, road, sky" in result.out, result
    found = load("own", tmp_path, "--day", labelled=True)
    labels, wanted = read(found)
    assert found.split == "train" and len(labels) == 3 and all((label == wanted).all() for label in labels)
    assert daynight("eval --dry-run --dataset own", tmp_path).code == 0


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pairs_side_by_side(tmp_path, main, suffix):
    root = forms.kaggle_pairs(tmp_path / "pairs")
    if suffix == "jpg":
        for path in root.rglob("*.png"):
            Image.open(path).save(path.with_suffix(".jpg"), quality=95, subsampling=0)
            path.unlink()
    result = in_process(main, "import_labels.py pairs own", tmp_path)
    assert result.code == 0 and "% of the pixels are ignored" in result.out, result
    train, val = (load("own", tmp_path, "--day", splits=(s,), labelled=True) for s in ("train", "val"))
    assert (len(train.images), len(val.images)) == (3, 2) and len(train.classes) == 19
    labels, wanted = read(train)
    assert all((label == wanted).mean() == (1 if suffix == "png" else pytest.approx(1, abs=0.05)) for label in labels)


@pytest.mark.parametrize(
    "draw, words",
    [
        (forms.mmseg, "neither of its halves looks like a label"),
        (lambda root: forms.write(root / "a.json", '{"shapes": [{}]}'), "a.json: not of labelme"),
        (lambda root: forms.write(root / "a.txt", ""), "neither JSON files nor pictures"),
    ],
)
def test_anything_else_is_refused(tmp_path, main, draw, words):
    draw(tmp_path / "in")
    for path in (tmp_path / "in").glob("*.json"):
        if draw is forms.mmseg:
            path.unlink()
    result = in_process(main, "import_labels.py in out", tmp_path)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result
    assert not (tmp_path / "out").exists()
