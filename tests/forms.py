"""Draws own data as annotation tools write them, from stripes of sky, road and car."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import trees
from PIL import Image

SIZE = (16, 32)  # height, width
SKY, ROAD, CAR = (color for _, color in trees.CLASSES)
COLORS = np.array([SKY, ROAD, CAR], np.uint8)
BLACK, BORDER = (0, 0, 0), (224, 224, 192)
STRIPES = np.broadcast_to(np.repeat([0, 1, 2, 255], 8), SIZE)  # train ids of a label; 255: what nobody drew


def photo(path: Path) -> Path:
    return trees.image(path, SIZE)


def ids(path: Path, of: tuple[int, int, int, int], palette=None) -> Path:
    """One channel: the values for sky, road, car and what nobody drew."""
    values = np.array([*of[:3], *[0] * 252, of[3]], np.uint8)[STRIPES]
    picture = Image.fromarray(values, "P" if palette else "L")
    if palette:
        picture.putpalette([x for color in palette for x in color])
    return trees._save(picture, path)


def colors(path: Path, other=BLACK) -> Path:
    """RGB: sky, road and car in their colours, and the colour of what nobody drew."""
    table = np.array([SKY, ROAD, CAR, *[other] * 253], np.uint8)
    return trees._save(Image.fromarray(table[STRIPES]), path)


def pairs(root: Path, image: str, label: str, draw, **counts: int) -> None:
    """`counts` images of each split and their labels, at paths in which {split} and {i} stand for both."""
    for split, count in counts.items():
        for i in range(count):
            photo(root / image.format(split=split, i=i))
            draw(root / label.format(split=split, i=i))


def values(*of: int):
    return partial(ids, of=of)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def classes(root: Path) -> None:
    trees._write(root / "classes.json", [{"name": name, "color": list(color)} for name, color in trees.CLASSES])


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(
    f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in trees.CLASSES
)
CLASS_DICT = "name,r,g,b\n" + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in trees.CLASSES) + "Void,0,0,0\n"


def cvat(root: Path, count=3) -> Path:
    for i in range(count):
        photo(root / f"JPEGImages/{i:03}.jpg")
        colors(root / f"SegmentationClass/{i:03}.png")
        colors(root / f"SegmentationObject/{i:03}.png")
    write(root / "labelmap.txt", LABELMAP)
    write(root / "ImageSets/Segmentation/default.txt", "\n".join(f"{i:03}" for i in range(count)))
    return root


def voc(root: Path, count=3) -> Path:
    """Palette files of the classes' own colours; the border that is ignored is 255."""
    palette = [SKY, ROAD, CAR, *[(1, 2, 3)] * 252, BORDER]
    for i in range(count):
        photo(root / f"VOC2012/JPEGImages/{i:03}.jpg")
        ids(root / f"VOC2012/SegmentationClass/{i:03}.png", (0, 1, 2, 255), palette)
        ids(root / f"VOC2012/SegmentationObject/{i:03}.png", (1, 2, 3, 0), palette)
    classes(root / "VOC2012")
    return root


def camvid(root: Path) -> Path:
    """As Kaggle has it: train and train_labels, stems that end in _L, colours."""
    pairs(root, "{split}/{i:03}.png", "{split}_labels/{i:03}_L.png", colors, train=3, val=2, test=1)
    write(root / "class_dict.csv", CLASS_DICT)
    return root


def roboflow(root: Path) -> Path:
    """Masks beside their images, ids; 0 is what nobody drew."""
    stem = "{split}/{i:03}_jpg.rf.{i:04x}"
    pairs(root, f"{stem}.jpg", f"{stem}_mask.png", values(1, 2, 3, 0), train=3, valid=2, test=1)
    for split in ("train", "valid", "test"):
        write(root / f"{split}/_classes.csv", "Pixel Value, Class\n0, background\n1, sky\n2, road\n3, car\n")
    return root


def ade20k(root: Path) -> Path:
    inside = "{split}/ADE_{i:03}"
    places = f"images/{inside}.jpg", f"annotations/{inside}.png"
    pairs(root, *places, values(1, 2, 3, 0), training=3, validation=2)
    rows = "".join(f"{i}\t0.1\t9\t9\t1\t{name}\n" for i, (name, _) in enumerate(trees.CLASSES, 1))
    write(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    return root


def mmseg(root: Path) -> Path:
    places = "img_dir/{split}/{i:03}.jpg", "ann_dir/{split}/{i:03}.png"
    pairs(root, *places, values(0, 1, 2, 255), train=3, val=2)
    classes(root)
    return root


def split_first(root: Path) -> Path:
    """Suffixes in capitals; ids by id2label.json as of Hugging Face, with a gap."""
    places = "{split}/images/{i:03}.JPG", "{split}/masks/{i:03}.PNG"
    pairs(root, *places, values(4, 7, 9, 0), train=3, valid=2)
    write(root / "id2label.json", json.dumps({"0": "unlabeled", "4": "sky", "7": "road", "9": "car"}))
    return root


def masks(root: Path, ending="_mask", folder="masks") -> Path:
    """images and masks without splits."""
    pairs(root, "images/{i:03}.jpg", f"{folder}/{{i:03}}{ending}.png", values(0, 1, 2, 255), all=3)
    classes(root)
    return root


def colored(root: Path) -> Path:
    """The project's own layout with labels in colours, as `predict` writes them."""
    pairs(root, "images/{split}/{i:03}.jpg", "labels/{split}/{i:03}.png", colors, train=3, val=2)
    classes(root)
    return root


READ = (cvat, voc, camvid, roboflow, ade20k, mmseg, split_first, masks, colored)


def city_colors(root: Path) -> Path:
    """Cityscapes' colours without a table; what is not trained is black or in a colour of its own."""
    for i in range(3):
        photo(root / f"images/{i:03}.png")
        colors(root / f"labels/{i:03}.png", (111, 74, 0) if i else BLACK)
    return root


def kitti(root: Path) -> Path:
    for i in range(3):
        photo(root / f"training/image_2/{i:06}_10.png")
        ids(root / f"training/semantic/{i:06}_10.png", (23, 7, 26, 0))
        colors(root / f"training/semantic_rgb/{i:06}_10.png")
    photo(root / "testing/image_2/000000_10.png")
    return root


def nightcity(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            photo(root / f"NightCity-images/images/{split}/Chicago_{i:04}.png")
            ids(root / f"NightCity-label/label/{split}/Chicago_{i:04}_labelIds.png", (23, 7, 26, 0))
            colors(root / f"NightCity-label/label/{split}/Chicago_{i:04}_color.png")
    return root


def kaggle_pairs(root: Path) -> Path:
    """Photograph and colours side by side in one picture."""
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            left, right = Image.open(photo(root / "x.png")), Image.open(colors(root / "y.png"))
            both = Image.fromarray(np.concatenate([np.asarray(left), np.asarray(right)], 1))
            trees._save(both, root / f"{split}/{i}.png")
    for name in "xy":
        (root / f"{name}.png").unlink()
    return root


def labelme(root: Path) -> Path:
    """Polygons in JSON beside the photographs; what no polygon has is not labelled."""
    for i in range(3):
        photo(root / f"{i:03}.jpg")
        shapes = [
            {
                "label": name,
                "shape_type": "polygon",
                "points": [[8 * k, 0], [8 * k + 7, 0], [8 * k + 7, 15], [8 * k, 15]],
            }
            for k, (name, _) in enumerate(trees.CLASSES)
        ]
        content = {"imagePath": f"{i:03}.jpg", "imageHeight": 16, "imageWidth": 32, "shapes": shapes}
        write(root / f"{i:03}.json", json.dumps(content))
    return root


def cityscapes_sample(root: Path) -> Path:
    """Files of Cityscapes in one folder, as samples and converted copies have them."""
    for i in range(2):
        frame = f"aachen_{i:06}_000019"
        photo(root / f"{frame}_leftImg8bit.png")
        ids(root / f"{frame}_gtFine_labelIds.png", (23, 7, 26, 0))
        ids(root / f"{frame}_gtFine_instanceIds.png", (23, 7, 26, 0))
        colors(root / f"{frame}_gtFine_color.png")
    return root
