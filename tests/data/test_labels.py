import json
import pickle

import numpy as np
import pytest
from PIL import Image

from daynight.data.labels import (
    CITYSCAPES,
    LABEL_ID_OF,
    TRAIN_ID_OF,
    Classes,
    LabelKind,
    colorize,
    read_classes,
    read_label,
    to_label_ids,
)
from daynight.data.layouts.mapillary_vistas import V1, V2
from daynight.system.errors import InputError

THREE = Classes(("sky", "road", "car"), ((70, 130, 180), (128, 64, 128), (0, 0, 142)))


def save(path, values, mode=None):
    picture = Image.fromarray(np.asarray(values))
    (picture.convert(mode) if mode else picture).save(path)
    return path


def palette_file(path, indices, palette):
    picture = Image.fromarray(np.array([indices], np.uint8), "P")
    picture.putpalette([channel for color in palette for channel in color])
    picture.save(path)
    return path


def message(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# written off by hand from cityscapesScripts, helpers/labels.py
OFFICIAL = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
OFFICIAL |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def test_train_ids_are_the_official_ones():
    assert TRAIN_ID_OF.dtype == np.uint8 and TRAIN_ID_OF.shape == (256,)
    assert [int(i) for i in TRAIN_ID_OF] == [OFFICIAL.get(i, 255) for i in range(256)]
    for ignored in (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255):
        assert TRAIN_ID_OF[ignored] == 255


@pytest.mark.parametrize(
    "train_id, name, color",
    [
        (0, "road", (128, 64, 128)),
        (2, "building", (70, 70, 70)),
        (6, "traffic light", (250, 170, 30)),
        (10, "sky", (70, 130, 180)),
        (13, "car", (0, 0, 142)),
        (18, "bicycle", (119, 11, 32)),
    ],
)
def test_cityscapes_names_and_colours(train_id, name, color):
    assert len(CITYSCAPES) == 19
    assert (CITYSCAPES.names[train_id], CITYSCAPES.colors[train_id]) == (name, color)


def test_label_ids_invert_train_ids():
    train_ids = np.arange(19, dtype=np.uint8)
    np.testing.assert_array_equal(TRAIN_ID_OF[to_label_ids(train_ids)], train_ids)
    assert to_label_ids(np.array([[0, 18], [255, 13]], np.uint8)).tolist() == [[7, 33], [0, 26]]
    assert LABEL_ID_OF.dtype == np.uint8


def test_colorize():
    colors = colorize(np.array([[2, 0, 255]], np.uint8), THREE)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 142], [70, 130, 180], [0, 0, 0]]]


def test_label_ids_are_mapped_and_train_ids_are_not(tmp_path):
    path = save(tmp_path / "a.png", np.array([[7, 26], [0, 255]], np.uint8))
    label = read_label(path, "labelIds", CITYSCAPES, (2, 2))
    assert label.dtype == np.uint8 and label.tolist() == [[0, 13], [255, 255]]
    path = save(tmp_path / "b.png", np.array([[7, 13], [0, 255]], np.uint8))
    assert read_label(path, "labelTrainIds", CITYSCAPES).tolist() == [[7, 13], [0, 255]]


def test_ids_are_mapped_by_the_table_of_their_kind(tmp_path):
    kind = pickle.loads(pickle.dumps(LabelKind("own ids", "id of mine", 4, {1: 0, 3: 2})))  # as workers get it
    assert kind == "own ids"
    path = save(tmp_path / "a.png", np.array([[0, 1, 2, 3, 255]], np.uint8))
    assert read_label(path, kind, THREE).tolist() == [[255, 0, 255, 2, 255]]
    path = save(tmp_path / "b.png", np.array([[1, 4]], np.uint8))
    assert "value 4 is no id of mine; expected 0 to 3, or 255 = ignore" in message(read_label, path, kind, THREE)
    with pytest.raises(ValueError):
        read_label(path, "own ids", THREE)


def test_a_label_can_be_written_to(tmp_path):
    label = read_label(save(tmp_path / "a.png", np.zeros((2, 3), np.uint8)), "trainIds", THREE)
    label[:] = 255


@pytest.mark.parametrize("dtype, suffix", [(np.uint16, "png"), (np.int32, "tif")])
def test_wider_integers_are_read_when_their_values_fit(tmp_path, dtype, suffix):
    path = save(tmp_path / f"a.{suffix}", np.array([[0, 2, 255]], dtype))
    label = read_label(path, "trainIds", THREE)
    assert label.dtype == np.uint8 and label.tolist() == [[0, 2, 255]]
    path = save(tmp_path / f"b.{suffix}", np.array([[0, 256]], dtype))
    assert "value 256" in message(read_label, path, "trainIds", THREE)


def test_one_bit_is_0_and_1(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 255]], np.uint8), "1")
    assert read_label(path, "trainIds", THREE).tolist() == [[0, 1]]


def test_a_palette_is_read_by_index(tmp_path):
    path = palette_file(tmp_path / "a.png", [0, 1, 2], [(9, 9, 9), (200, 200, 200), (90, 0, 0)])
    assert read_label(path, "trainIds", THREE).tolist() == [[0, 1, 2]]


def test_a_palette_that_shows_other_classes_than_its_indices_is_colour_coded(tmp_path):
    sky, road, car = THREE.colors
    swapped = palette_file(tmp_path / "a.png", [0, 1, 1], [car, sky, (9, 9, 9)])
    said = message(read_label, swapped, "trainIds", THREE)
    assert str(swapped) in said and "colour-coded" in said and "train ids in one channel" in said
    own = palette_file(tmp_path / "c.png", [0, 2, 1], [sky, road, car])
    assert read_label(own, "trainIds", THREE).tolist() == [[0, 2, 1]]

    gray = [(i, i, i) for i in range(256)]
    by_id = gray[:7] + [(128, 64, 128)] + gray[8:26] + [(0, 0, 142)] + gray[27:]
    label_ids = palette_file(tmp_path / "d.png", [7, 26, 0], by_id)
    assert read_label(label_ids, "labelIds", CITYSCAPES).tolist() == [[0, 13, 255]]
    as_quantised = palette_file(tmp_path / "e.png", [0, 1, 1], [(128, 64, 128), (0, 0, 142)])
    assert "Cityscapes label ids in one channel" in message(read_label, as_quantised, "labelIds", CITYSCAPES)


def test_an_index_that_shows_another_class_is_named_however_few_its_pixels(tmp_path):
    sky, road, car = THREE.colors
    gray = [(i, i, i) for i in range(256)]
    exchanged = palette_file(tmp_path / "a.png", [0] * 50 + [1, 2], [sky, car, road])
    said = message(read_label, exchanged, "trainIds", THREE)
    assert f"{exchanged}: colour-coded (index 1 shows the colour of 'car' and means 'road')" in said
    by_id = [*gray[:7], CITYSCAPES.colors[0], *gray[8:26], CITYSCAPES.colors[14], CITYSCAPES.colors[13], *gray[28:]]
    exchanged = palette_file(tmp_path / "b.png", [7] * 50 + [26], by_id)  # truck and car
    assert "index 26 shows the colour of 'truck' and means 'car'" in message(
        read_label, exchanged, "labelIds", CITYSCAPES
    )
    assert read_label(palette_file(tmp_path / "c.png", [7, 0, 8], by_id), "labelIds", CITYSCAPES).tolist() == [
        [0, 255, 1]
    ]  # the two are not used


def voc_palette():
    """The colours of PASCAL VOC and of whatever draws with its rule: bits of the index, dealt out to R, G and B."""
    bits = [[(i >> 3 * k) & 7 for k in range(8)] for i in range(256)]
    return [tuple(sum(((b >> c) & 1) << 7 - k for k, b in enumerate(of)) for c in range(3)) for of in bits]


def test_palettes_that_agree_or_are_of_other_colours_are_read_by_index(tmp_path):
    voc = voc_palette()
    assert voc[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)] and voc[255] == (224, 224, 192)
    own = Classes(("background", "aeroplane", "bicycle"), tuple(voc[:3]))
    path = palette_file(tmp_path / "a.png", [0, 1, 2, 255], voc)
    for classes in (own, THREE, CITYSCAPES, Classes(("a", "b", "c"), ((9, 9, 9),) * 3)):
        assert read_label(path, "trainIds", classes).tolist() == [[0, 1, 2, 255]]
    assert read_label(path, "trainIds", Classes(own.names, (voc[1],) * 3)).tolist() == [[0, 1, 2, 255]]
    shifted = Classes(("aeroplane", "bicycle", "bird"), tuple(voc[1:4]))
    assert "index 1 shows the colour of 'aeroplane' and means 'bicycle'" in message(
        read_label, path, "trainIds", shifted
    )
    # what is ignored may have a class's colour, as groups of cars have in Mapillary's palette
    dark = palette_file(tmp_path / "b.png", [0, 0, 255], [THREE.colors[0]] * 255 + [THREE.colors[2]])
    assert read_label(dark, "trainIds", THREE).tolist() == [[0, 0, 255]]


# the colours in config_v1.2.json and config_v2.0.json of each id that has one of Cityscapes' classes or looks like it
VISTAS = {
    V1: {7: (128, 64, 255), 13: (128, 64, 128), 15: (244, 35, 232), 17: (70, 70, 70), 20: (255, 0, 0), 45: (153,) * 3}
    | {47: (0, 0, 80), 50: (220, 220, 0), 55: (0, 0, 142), 58: (0, 80, 100), 49: (192,) * 3, 3: (190, 153, 153)},
    V2: {21: (128, 64, 128), 24: (244, 35, 232), 85: (153,) * 3, 86: (153,) * 3, 90: (250, 170, 30), 99: (220, 220, 0)}
    | {103: (220, 220, 0), 108: (0, 0, 142), 115: (0, 0, 142), 31: (220, 20, 60), 61: (70, 130, 180)},
}


@pytest.mark.parametrize("kind", VISTAS)
def test_mapillarys_own_palettes_are_read_by_index(kind, tmp_path):
    palette = [VISTAS[kind].get(i, (1, 2, 3)) for i in range(256)]
    path = palette_file(tmp_path / "a.png", list(VISTAS[kind]), palette)
    assert read_label(path, kind, CITYSCAPES).tolist() == [kind.train_ids[list(VISTAS[kind])].tolist()]


def test_a_value_that_is_no_class(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 3]], np.uint8))
    said = message(read_label, path, "trainIds", THREE)
    assert str(path) in said and "value 3" in said and "3 classes" in said and "0 to 2" in said
    path = save(tmp_path / "b.png", np.array([[26, 7]], np.uint8))
    assert "labelIds" in message(read_label, path, "labelTrainIds", CITYSCAPES)
    path = save(tmp_path / "c.png", np.array([[34]], np.uint8))
    said = message(read_label, path, "labelIds", CITYSCAPES)
    assert "value 34" in said and "0 to 33" in said


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_coded_labels_are_refused(tmp_path, mode):
    path = save(tmp_path / "a.png", np.zeros((2, 2), np.uint8), mode)
    said = message(read_label, path, "trainIds", THREE)
    assert str(path) in said and mode in said and "train ids in one channel" in said


def test_a_label_of_another_size_than_its_image(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 6), np.uint8))
    said = message(read_label, path, "trainIds", THREE, (6, 4))
    assert str(path) in said and "4x6" in said and "6x4" in said


def test_unreadable_labels(tmp_path):
    path = tmp_path / "a.png"
    assert str(path) in message(read_label, path, "trainIds", THREE)
    path.write_text("no picture")
    assert str(path) in message(read_label, path, "trainIds", THREE)
    values = np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)
    whole = save(tmp_path / "whole.png", values).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in message(read_label, path, "trainIds", THREE)


def test_classes_are_read(tmp_path):
    path = tmp_path / "classes.json"
    # Windows editors put a byte order mark before it
    path.write_text(json.dumps([{"name": "sky", "color": [70, 130, 180]}]), encoding="utf-8-sig")
    assert read_classes(path) == Classes(("sky",), ((70, 130, 180),))


@pytest.mark.parametrize(
    "content, words",
    [
        ("[", "not JSON"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ('["sky"]', "class 0 has no name"),
        ('[{"name": "", "color": [1, 2, 3]}]', "class 0 has no name"),
        ('[{"name": "sky"}]', "'sky'"),
        ('[{"name": "sky", "color": [1, 2]}]', "[r, g, b]"),
        ('[{"name": "sky", "color": [1, 2, 256]}]', "0 to 255"),
        ('[{"name": "sky", "color": [true, 2, 3]}]', "[r, g, b]"),
        ('[{"name": "a", "color": [1, 2, 3]}, {"name": "a", "color": [3, 2, 1]}]', "class 1 is named 'a' like class 0"),
        (json.dumps([{"name": str(i), "color": [0, 0, 0]} for i in range(256)]), "256 classes"),
    ],
)
def test_malformed_classes(tmp_path, content, words):
    path = tmp_path / "classes.json"
    path.write_text(content)
    said = message(read_classes, path)
    assert str(path) in said and words in said


def test_missing_classes(tmp_path):
    assert "classes.json" in message(read_classes, tmp_path / "classes.json")


def test_255_classes_fit(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps([{"name": str(i), "color": [0, 0, 0]} for i in range(255)]))
    assert len(read_classes(path)) == 255
