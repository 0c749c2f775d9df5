"""Own data, as other tools write it: read right, or refused in the one line that leads on."""

import forms
import numpy as np
import pytest
import trees
from PIL import Image
from test_cli import daynight
from test_layouts import message, names

from daynight.data.labels import read_label
from daynight.data.sets import companions, describe, image_files, load


def read_all(image_set):
    return [read_label(path, image_set.label_kind, image_set.classes, forms.SIZE) for path in image_set.labels]


def stripes(classes) -> np.ndarray:
    """The labels of every form as train ids of these classes."""
    order = [classes.names.index(name) for name in ("sky", "road", "car")]
    return np.array([*order, *[255] * 253])[forms.STRIPES]


@pytest.mark.parametrize("draw", [*forms.READ, forms.city_colors, forms.kitti])
def test_a_form_is_read_as_it_is(tmp_path, draw):
    root = draw(tmp_path / "own")
    train = load("own", tmp_path, "--day", labelled=True, time="day")
    assert len(train.images) == len(train.labels) == 3
    assert all((label == stripes(train.classes)).all() for label in read_all(train))
    night = load("own", tmp_path, "--night", time="night")
    assert night.images == train.images
    scored = load("own", tmp_path, "--dataset", splits=None, labelled=True)
    assert scored.split == (None if train.split is None else "val")
    assert all((label == stripes(scored.classes)).all() for label in read_all(scored))
    assert not {*image_files(root)} & {*companions(root)} and {*train.labels} <= {*companions(root)}
    assert any("eval scores" in line for line in describe("own", tmp_path, "--dataset"))
