"""Own data, as other tools write it: read right, or refused in the one line that leads on."""

import forms
import numpy as np
import pytest
import trees
from PIL import Image
from test_cli import daynight
from test_layouts import message, names

from daynight.data.labels import CITYSCAPES, read_label
from daynight.data.sets import companions, describe, image_files, load
from daynight.models.generator import Generator
from daynight.models.hub import save_model


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


@pytest.mark.parametrize(
    "draw, given, words",
    [
        (forms.cvat, "SegmentationClass", ("holds labels of folder", "give ")),
        (forms.cvat, "SegmentationObject", ("SegmentationObject: ", "label map")),
        (forms.camvid, "train_labels", ("000_L.png is a label map",)),
        (forms.mmseg, "ann_dir/val", ("holds labels of folder",)),
        (forms.kitti, "training/semantic_rgb", ("000000_10.png is a label map",)),
        (forms.cityscapes_sample, "", ("6 of 8 images", "nearly is Cityscapes", "leftImg8bit/<split>/")),
        (forms.kaggle_pairs, "", ("side by side", "import_labels.py")),
        (
            lambda root: [forms.ids(root / f"out/{i}.png", (0, 1, 2, 3)) for i in range(3)],
            "out",
            ("few values, in areas); so do 3 of 3",),
        ),
        (
            lambda root: [f(root / f"{f.__name__}/{i}.png") for f in (forms.photo, forms.colors) for i in range(3)],
            "",
            ("colors/0.png looks like a label map", "photographs are in"),
        ),
        (forms.nightcity, "NightCity-label", ("holds labels of NightCity",)),
    ],
)
def test_a_label_map_is_no_photograph(tmp_path, draw, given, words):
    draw(tmp_path / "own")
    said = message(load, f"own/{given}", tmp_path, "--night", time="night")
    assert all(word in said for word in words), said


MIXES = {  # of names of the label maps
    "x/{}.png": "beside",
    "out/{}_mask.png": "by its name",
    "{}_labelIds.png": "by its name",
    "gt_fine/a/{}.png": "by its name",
    "x/SegmentationClass/{}.png": "by its name",
    "masks_png/{}.png": "by its name",
}


@pytest.mark.parametrize("command", ["eval --dry-run --dataset own", "predict --in own --out out --model none"])
@pytest.mark.parametrize("mask", MIXES)
def test_a_mixed_tree_is_refused_by_every_command(tmp_path, mask, command):
    for i in range(3):
        forms.photo(tmp_path / f"own/night/street {i}.jpg")
        forms.ids(tmp_path / "own" / mask.format(f"street {i}"), (0, 1, 2, 255))
    forms.write(tmp_path / "none/config.json", "{}")  # a model that is looked into later
    (tmp_path / "own/night/more.jpg").write_bytes((tmp_path / "own/night/street 0.jpg").read_bytes())
    line = daynight(command, tmp_path).line
    assert "label map" in line and mask.format("street 0") in line
    assert "the photographs are in own/night" in line or mask.startswith(("{", "x/Seg")), line


def sixteen_bits(path):
    trees._save(Image.fromarray(np.asarray(Image.open(forms.ids(path, (0, 1, 2, 3)))).astype(np.uint16)), path)


@pytest.mark.parametrize("draw", [lambda path: forms.ids(path, (0, 1, 2, 3)), sixteen_bits, forms.colors])
@pytest.mark.parametrize("photographs", [0, 60])
def test_pixels_tell_a_label_map_where_names_do_not(tmp_path, draw, photographs):
    for i in range(60):
        draw(tmp_path / f"own/mask_{i}.png")
    for i in range(photographs):
        forms.photo(tmp_path / f"own/img_{i}.png")
    assert "looks like a label map" in message(load, "own", tmp_path, "--night", time="night")


def test_dark_photographs_of_few_values_are_taken(tmp_path):
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 9, (16, 32), np.uint8)
        for kind, picture in (("grey", noise), ("rgb", noise[..., None].repeat(3, 2)), ("seg", noise)):
            trees._save(Image.fromarray(picture), tmp_path / f"{kind}/{i}.png")
    for given in ("grey", "rgb", "seg"):
        assert len(load(given, tmp_path, "--night", time="night").images) == 5


def test_photographs_of_any_kind_are_taken(tmp_path):
    """Grey and thermal cameras; names that end as labels do; folders that are named as those of labels."""
    for i in range(3):
        Image.open(forms.photo(tmp_path / "x.png")).convert("L").save(tmp_path / "x.png")
        for place in ("grey/{}.png", "thermal/cam/{}.png"):
            target = tmp_path / place.format(i)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((tmp_path / "x.png").read_bytes())
        trees.image(tmp_path / f"depth camera/{i}_color.png")
        trees.image(tmp_path / f"stereo/{i}_l.png")
        trees.image(tmp_path / f"gta5/{i}.png")
        trees.image(tmp_path / f"gt_drive/{i}.png")
        trees.image(tmp_path / f"clips/{i}/000.jpg")
    for given in ("grey", "thermal", "depth camera", "stereo", "gta5", "gt_drive", "clips"):
        assert len(load(f"{tmp_path}/{given}", tmp_path, "--night", time="night").images) == 3, given


def test_folders_that_are_called_as_those_of_labels(tmp_path):
    for i in range(3):
        trees.image(tmp_path / f"labels/project/night/{i}.jpg")
        trees.image(tmp_path / f"x/gt/{i}.jpg")
    for given in ("labels/project/night", "labels/project", "x"):
        assert len(load(given, tmp_path, "--night", time="night").images) == 3


def test_labels_in_gt_are_not_dark_zurich(tmp_path):
    (forms.mmseg(tmp_path / "own") / "ann_dir").rename(tmp_path / "own/gt")
    train = load("own", tmp_path, "--day", labelled=True)
    assert len(train.labels) == 3 and all((label == stripes(train.classes)).all() for label in read_all(train))


def test_a_folder_of_any_name_beside_labels_and_a_table_is_that_of_the_images(tmp_path):
    root = forms.masks(tmp_path / "own")
    (root / "images").rename(root / "drive 7")
    train = load("own", tmp_path, "--day", labelled=True)
    assert len(train.labels) == 3 and all((label == stripes(train.classes)).all() for label in read_all(train))


def test_what_is_left_out_is_said(tmp_path):
    root = tmp_path / "night"
    for i in range(3):
        trees.image(root / f"{i}.jfif" if i else root / "@eaDir/0.jpg")
        (root / f"{i}.heic").write_bytes(b"")
        trees.image(root / "__MACOSX" / f"{i}.jpg")
        (root / f"{i}.AVIF").write_bytes(b"")
    pages = [Image.open(trees.image(root / "a.png")) for _ in range(3)]
    pages[0].save(root / "a.tif", save_all=True, append_images=pages[1:])
    night = load("night", tmp_path, "--night", time="night")
    assert names(night.images, root) == ["1.jfif", "2.jfif", "a.png", "a.tif"]
    assert night.notes[0] == "night: 6 files not read: .avif .heic"
    assert "a.tif has 3 frames, of which the first is read" in night.notes[1]


def test_twelve_bits_in_sixteen_are_said(tmp_path):
    for name, most in (("dark", 4095), ("full", 65535)):
        for i in range(2):
            levels = np.linspace(0, most, 512).astype(np.uint16).reshape(16, 32)
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(levels).save(tmp_path / f"{name}/{i}.png")
    assert "values up to 4095 of 65535" in load("dark", tmp_path, "--night").notes[0]
    assert load("full", tmp_path, "--night").notes == ()


def test_no_labels_says_where_they_were_looked_for(tmp_path):
    root = forms.masks(tmp_path / "own", "_maske", "labels")
    said = message(load, "own", tmp_path, "--day", labelled=True)
    for words in ("labels/<split>/", "*_mask, ", "the nearest file is labels/00", "_maske.png", "import_labels.py"):
        assert words in said, said
    result = daynight("eval --dry-run --dataset own", tmp_path)
    assert "the nearest file is labels/00" in result.out and "nothing to score" in result.out
    (root / "classes.json").unlink()
    forms.labelme(tmp_path / "labelme")
    assert "import_labels.py converts labelme's polygons" in message(load, "labelme", tmp_path, "--day", labelled=True)


SEG = (
    "seg-train --day own --train-on day --steps 2 --batch-size 2 --size 32 --crop 16 --backbone test_resnet "
    "--head-width 8 --backbone-weights random --validate-every 0 --save-every 2 --precision no --out run "
)


@pytest.mark.parametrize("dry", ["", "--dry-run"])
@pytest.mark.parametrize(
    "of, words",
    [
        ((255, 255, 255, 255), "ignore every pixel"),
        ((0, 0, 255, 255), "no class but 'sky' and 255 = ignore: is class 1 stored as 255?"),
        ((1, 1, 1, 1), "hold no class but 'road'"),
    ],
)
def test_labels_that_cannot_train_are_refused_before_the_first_step(tmp_path, of, words, dry):
    root = forms.mmseg(tmp_path / "own")
    for path in root.glob("ann_dir/train/*"):
        forms.ids(path, of)
    assert words in daynight(SEG + dry, tmp_path).line
    assert not (tmp_path / "run").exists()


def test_classes_that_never_occur_are_said(tmp_path):
    root = forms.mmseg(tmp_path / "own")
    for path in root.glob("ann_dir/train/*"):
        forms.ids(path, (0, 1, 1, 255))
    result = daynight(SEG + "--dry-run", tmp_path)
    assert result.code == 0 and "own: in 3 labels looked at never occur: car" in result.out, result


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator") / "day2night"
    save_model(Generator(1, 4, "bilinear", "native"), folder)
    return folder


@pytest.mark.parametrize("draw", [forms.cvat, forms.roboflow, forms.split_first, forms.camvid, forms.city_colors])
@pytest.mark.parametrize("size", ["", "--size 8x16"])
def test_a_translation_carries_labels_of_any_suffix_and_their_meaning(tmp_path, draw, size, translator):
    root = draw(tmp_path / "own")
    result = daynight(f"translate --in own --out own_night --model {translator} {size}", tmp_path)
    assert result.code == 0, result
    before, after = (load(name, tmp_path, "--day", labelled=True) for name in ("own", "own_night"))
    assert names(after.labels, after.root) == names(before.labels, root) and after.classes == before.classes
    scale = 2 if size else 1
    for label in (read_label(path, after.label_kind, after.classes) for path in after.labels):
        assert (label == stripes(after.classes)[::scale, ::scale]).all()
    assert (tmp_path / "own_night/classes.json").exists() == (draw is not forms.city_colors)


ALWAYS = forms.cvat, forms.roboflow, forms.kitti
LATER = [pytest.param(draw, marks=pytest.mark.slow) for draw in (*forms.READ, forms.city_colors) if draw not in ALWAYS]


@pytest.mark.parametrize("draw", [*ALWAYS, *LATER])
def test_a_form_is_trained_on_and_scored(tmp_path, draw):
    draw(tmp_path / "own")
    assert daynight(SEG, tmp_path).code == 0
    result = daynight("eval --model run --dataset own", tmp_path)
    assert result.code == 0 and "mIoU" in result.out, result


@pytest.mark.parametrize("entries", ["seg/labels/{0}_train_id.png", "{0}", "images/10k/{0}.jpg", "./{0}.jpg"])
def test_a_list_takes_a_part_of_all_splits(tmp_path, entries):
    """As MGCDA's list of 87 images of BDD100K: names of labels, of train and val."""
    trees.bdd100k(tmp_path / "data/bdd", forms.SIZE, ten_k=2)
    lines = [entries.format(name) for name in ("train/train-10k-001", "val/val-000")]
    forms.write(tmp_path / "night.txt", "\n".join(lines) + "\n\n")
    result = daynight("eval --dry-run --dataset bdd --list night.txt", tmp_path)
    assert result.code == 0 and "scored: bdd: BDD100K 10k, train+val, 2 images, 2 labels" in result.out, result
    forms.write(tmp_path / "one.txt", "val-000")
    result = daynight("eval --dry-run --dataset bdd --list one.txt --list night.txt", tmp_path)
    assert "val, 2 images, 2 labels" in result.out, result


@pytest.mark.parametrize(
    "command",
    [
        "eval --dry-run --dataset own",
        "eval --model none --dataset own",
        SEG,
        "predict --in own --out out --model none",
        "translate-train --day own --night own --out out",
    ],
)
@pytest.mark.parametrize(
    "text, words",
    [
        ("000\n\nnone.jpg", "--list names.txt: line 3, 'none.jpg', names no image of"),
        ("", "--list names.txt: is empty"),
        (None, "--list names.txt: cannot be read"),
    ],
)
def test_a_list_that_names_no_image_is_refused(tmp_path, command, text, words):
    forms.masks(tmp_path / "own")
    forms.write(tmp_path / "none/config.json", "{}")
    if text is not None:
        forms.write(tmp_path / "names.txt", text)
    assert words in daynight(f"{command} --list names.txt", tmp_path).line


def test_a_name_that_two_images_have_is_refused(tmp_path):
    forms.colored(tmp_path / "own")
    forms.write(tmp_path / "names.txt", "train/002\n000.jpg")
    said = daynight("eval --dry-run --dataset own --list names.txt", tmp_path).line
    assert "line 2, '000.jpg', names several images of own" in said


def test_the_listed_part_is_trained_on_and_translated(tmp_path, translator):
    forms.mmseg(tmp_path / "own")
    trees.bare(tmp_path / "night")
    forms.write(tmp_path / "names.txt", "img_dir/train/001.jpg\n002\n")
    result = daynight(SEG + "--list names.txt", tmp_path)
    assert result.code == 0 and "own: folder, train, 2 images, 2 labels" in result.out, result
    assert "own: 2 of 3 images are listed" in result.out
    forms.write(tmp_path / "names.txt", "train/001")
    result = daynight(f"translate --in own --out out --model {translator} --list names.txt", tmp_path)
    assert result.code == 0 and [path.name for path in (tmp_path / "out/img_dir").rglob("*.jpg")] == ["001.jpg"]


def test_an_unknown_colour_is_named_with_its_file_and_count(tmp_path):
    root = forms.camvid(tmp_path / "own")
    forms.colors(root / "val_labels/001_L.png", (71, 130, 180))
    said = daynight("eval --dry-run --dataset own", tmp_path).line
    for words in ("val_labels/001_L.png: colour (71, 130, 180) (128 of 128", "class_dict.csv", "(70, 130, 180), 'sky'"):
        assert words in said, said
    (root / "class_dict.csv").write_text(forms.CLASS_DICT.replace("Void,0,0,0\n", ""))
    forms.colors(root / "val_labels/001_L.png")
    assert "colour (0, 0, 0)" in daynight("eval --dry-run --dataset own", tmp_path).line


TABLES = {
    "class_dict.csv": '\ufeff Name , R,G, B\r\nsky,70,130,180\r\n"road",128,64,128\r\ncar,0,0,142\r\nvoid,0,0,0\r\n',
    "labelmap.txt": "background:0,0,0::\nsky:70,130,180::\nroad:128,64,128::\ncar:0,0,142::\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("place", ["", "labels/", "labels/train/"])
def test_tables_are_found_beside_the_labels(tmp_path, name, place):
    root = forms.colored(tmp_path / "own")
    (root / "classes.json").unlink()
    header = "# label:color_rgb:parts:actions\n" * (name == "labelmap.txt")
    forms.write(root / place / name, header + TABLES[name])
    train = load("own", tmp_path, "--day", labelled=True)
    assert train.classes.names == ("sky", "road", "car") and "ignored (255)" in train.notes[0]
    assert all((label == stripes(train.classes)).all() for label in read_all(train))


@pytest.mark.parametrize(
    "name, content",
    [
        ("class_dict.csv", "name,r,g,b\nsky,70,130\n"),
        ("class_dict.csv", "name,r,g,b\nsky,70,130,300\n"),
        ("class_dict.csv", "a,b\n1,2\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,1,1\nsky,2,2,2\n"),
        ("_classes.csv", "Pixel Value, Class\n1, sky\n1, road\n"),
        ("_classes.csv", ""),
        ("id2label.json", "[1]"),
        ("id2label.json", '{"a": "sky"}'),
        ("id2label.json", '{"0": "sky", "900": "road"}'),
        ("id2label.json", '{"0": "void"}'),
    ],
)
def test_a_malformed_table_is_named(tmp_path, name, content):
    root = forms.masks(tmp_path / "own")
    (root / "classes.json").unlink()
    forms.write(root / name, content)
    assert f"own/{name}: " in message(load, "own", tmp_path, "--day", labelled=True)


def test_classes_json_beside_a_table_chooses_among_its_names(tmp_path):
    root = forms.roboflow(tmp_path / "own")
    trees._write(root / "classes.json", [{"name": "car", "color": [1, 2, 3]}, {"name": "background", "color": [0] * 3}])
    train = load("own", tmp_path, "--day", labelled=True)
    assert train.classes.names == ("car", "background")
    assert read_all(train)[0][0, ::8].tolist() == [255, 255, 0, 1]
    trees._write(root / "classes.json", [{"name": "boat", "color": [1, 2, 3]}])
    assert "class 'boat' is not in" in message(load, "own", tmp_path, "--day", labelled=True)


def test_label_ids_of_cityscapes_are_told_from_train_ids(tmp_path):
    root = forms.masks(tmp_path / "own", "")
    for path in root.glob("masks/*"):
        forms.ids(path, (23, 7, 26, 0))
    classes = [{"name": n, "color": list(c)} for n, c in zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True)]
    trees._write(root / "classes.json", classes)
    assert load("own", tmp_path, "--day", labelled=True).label_kind == "labelIds"
    for path in root.glob("masks/*"):
        forms.ids(path, (7, 7, 7, 0))  # could be train ids
    assert load("own", tmp_path, "--day", labelled=True).label_kind == "trainIds"
    found = load("own", tmp_path, "--dataset", labelled=True, labels="labelIds")
    assert found.label_kind == "labelIds" and read_all(found)[0][0, ::8].tolist() == [0, 0, 0, 255]
    forms.classes(root)
    assert "leave --labels labelIds out" in message(
        load, "own", tmp_path, "--dataset", labelled=True, labels="labelIds"
    )


def test_black_and_white_masks_with_a_table(tmp_path):
    root = forms.masks(tmp_path / "own")
    (root / "classes.json").unlink()
    forms.write(root / "class_dict.csv", "name,r,g,b\nground,0,0,0\nroad,255,255,255\n")
    for path in root.glob("masks/*"):
        forms.ids(path, (0, 255, 255, 0))
    train = load("own", tmp_path, "--day", labelled=True)
    assert read_all(train)[0][0, ::8].tolist() == [0, 1, 1, 0]
    for path in list(root.glob("masks/*")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert "a JPEG" in message(read_all, load("own", tmp_path, "--day", labelled=True))


def test_palettes_count_by_colours_where_they_are_known(tmp_path):
    """With a table of another tool, and where indices could not be train ids."""
    palette = [forms.CAR, (9, 9, 9), forms.SKY, forms.ROAD, *[(0, 0, 0)] * 252]
    for draw, where in ((forms.cvat, "SegmentationClass/*"), (forms.colored, "labels/*/*")):
        root = draw(tmp_path / draw.__name__)
        for path in root.glob(where):
            forms.ids(path, (2, 3, 0, 100), palette)
        train = load(draw.__name__, tmp_path, "--day", labelled=True)
        assert all((label[:, :24] == stripes(train.classes)[:, :24]).all() for label in read_all(train))


def test_a_table_of_ids_alone_says_nothing_of_palettes(tmp_path):
    """Those of mmsegmentation, VOC and labelme have colours of their own."""
    root = forms.mmseg(tmp_path / "own")
    (root / "classes.json").unlink()
    forms.write(root / "id2label.json", '{"0": "hill", "1": "lake", "2": "moor"}')
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), *[(9, 9, 9)] * 252]
    for path in root.glob("ann_dir/*/*"):
        forms.ids(path, (0, 1, 2, 255), voc)
    assert read_all(load("own", tmp_path, "--day", labelled=True))[0][0, ::8].tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("own", [False, True])
def test_an_id_is_the_place_in_a_table_of_colours(tmp_path, own):
    """Also where an entry before it is ignored, so that nothing shifts by one."""
    root = forms.cvat(tmp_path / "own")
    for path in root.glob("SegmentationClass/*"):
        forms.ids(path, (1, 2, 0, 255))  # background comes first; nothing shows the last class
    if own:
        forms.classes(root)
    assert read_all(load("own", tmp_path, "--day", labelled=True))[0][0, ::8].tolist() == [0, 1, 255, 255]


def test_nightcity(tmp_path):
    forms.nightcity(tmp_path / "own")
    night = load("own", tmp_path, "--night", time="night")
    assert str(night) == "own: NightCity, train, 3 images, 3 labels (labelIds), 19 classes"
    assert all((label == stripes(night.classes)).all() for label in read_all(night))
    assert "night images only" in message(load, "own", tmp_path, "--day", time="day")
    assert load("own", tmp_path, "--dataset", splits=None, labelled=True).split == "val"


def test_one_split_of_a_split_first_tree(tmp_path):
    forms.split_first(tmp_path / "own")
    for given, count in (("own", 3), ("own/train", 3), ("own/valid", 2), ("own/valid/images", 2)):
        assert len(load(given, tmp_path, "--night", time="night").images) == count
    assert len(load("own/valid", tmp_path, "--day", labelled=True).labels) == 2
