"""Make images/, labels/ and classes.json of labelme's polygons, or of photographs with their labels side by side.

    python examples/import_labels.py drawn street_day
    daynight eval --dry-run --dataset street_day

labelme: a JSON beside each photograph; what no polygon or rectangle covers is ignored (255), later shapes lie on top.
Pairs: a photograph and its label in colours side by side in one picture, as Kaggle has Cityscapes; the half with fewer
colours is the label. JPEGs blur colours, so each pixel gets the nearest one, and is ignored where that is far. The
colours are those of Cityscapes, or of --classes: a classes.json, labelmap.txt or class_dict.csv.
Folders stay as they are: train/1.jpg becomes images/train/1.jpg and labels/train/1.png.
"""

import argparse
import base64
import colorsys
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from daynight.data.formats import open_image
from daynight.data.images import Images, save_image, upright
from daynight.data.layouts.layout import is_image, walk
from daynight.data.layouts.photographs import halves
from daynight.data.tables import read_meaning
from daynight.system.errors import InputError
from daynight.system.files import check_apart, write_json

FAR = 60  # from a pixel's colour to the nearest of the table, of 441 at most


def labelme(files: list[Path], root: Path, out: Path) -> list[dict]:
    """Write a photograph and a label for each file; returns the classes, by name."""
    contents = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            shapes = content["shapes"]
            for shape in shapes:
                if shape["shape_type"] not in ("polygon", "rectangle"):
                    raise ValueError(f"a shape of type {shape['shape_type']!r}; expected polygon or rectangle")
                points = np.array(shape["points"], float)
                if points.ndim != 2 or points.shape[1] != 2 or not isinstance(shape["label"], str):
                    raise ValueError("a shape without label or points")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not of labelme ({error!r}); expected shapes with label and points") from error
        contents[file] = content
    names = sorted({shape["label"] for content in contents.values() for shape in content["shapes"]})
    if not 0 < len(names) < 256:
        raise InputError(f"{root}: {len(names)} labels in {len(files)} files; expected 1 to 255")
    for file, content in contents.items():
        named = file.parent / str(content.get("imagePath", "")).replace("\\", "/")
        beside = [named] if named.is_file() else [path for path in file.parent.glob("*") if path.stem == file.stem]
        photograph = next(filter(is_image, beside), None)
        if photograph:
            image = Images([photograph])[0]
        elif content.get("imageData"):
            image = upright(open_image(io.BytesIO(base64.b64decode(content["imageData"]))))
        else:
            raise InputError(f"{file}: its photograph {named} is not there; put it beside the JSON")
        label = Image.new("L", image.size, 255)
        for shape in content["shapes"]:
            points = [tuple(point) for point in shape["points"]]
            if shape["shape_type"] == "rectangle":  # two corners
                (a, b), (c, d) = points
                points = [(a, b), (c, b), (c, d), (a, d)]
            ImageDraw.Draw(label).polygon(points, fill=names.index(shape["label"]))
        write(image, label, file.relative_to(root), out)
    hues = [colorsys.hsv_to_rgb(i / len(names), 0.8, 0.9) for i in range(len(names))]
    return [{"name": n, "color": [round(255 * c) for c in hue]} for n, hue in zip(names, hues, strict=True)]


def pairs(files: list[Path], root: Path, out: Path, table: Path | None) -> list[dict]:
    """Write a photograph and a label for each picture; returns the classes of the table."""
    own = table if table and table.suffix == ".json" else None
    classes, kind, _ = read_meaning(None if own else table, own)
    colors = np.array(list(kind.colors), np.int32)
    ids = np.array(list(kind.colors.values()), np.uint8)
    ignored = total = 0
    for file in files:
        found = halves(Images([file])[0])
        if not found:
            raise InputError(f"{file}: neither of its halves looks like a label; expected a photograph and its label")
        photograph, label = found
        pixels = np.asarray(label, np.int32)
        distance = np.stack([((pixels - color) ** 2).sum(2) for color in colors])
        values = np.where(distance.min(0) <= FAR**2, ids[distance.argmin(0)], 255).astype(np.uint8)
        ignored, total = ignored + (values == 255).sum(), total + values.size
        write(photograph, Image.fromarray(values), file.relative_to(root), out)
    print(f"{100 * ignored / total:.1f} % of the pixels are ignored (255)")
    return [{"name": n, "color": list(c)} for n, c in zip(classes.names, classes.colors, strict=True)]


def write(photograph: Image.Image, label: Image.Image, name: Path, out: Path) -> None:
    for folder, image in (("images", photograph), ("labels", label)):
        path = out / folder / name.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", metavar="IN", type=Path, help="folder of labelme's JSON files, or of pairs")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; it must not be there")
    parser.add_argument("--classes", type=Path, help="table of the colours of pairs; default: Cityscapes")
    options = parser.parse_args()
    try:
        check_apart(options.source, options.out)
        if options.out.exists():
            raise InputError(f"{options.out}: is there; give a new folder")
        files = list(walk(options.source))
        drawn, pictures = [f for f in files if f.suffix == ".json"], [f for f in files if is_image(f)]
        if not drawn and not pictures:
            raise InputError(f"{options.source}: neither JSON files nor pictures in it")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.out.parent) as place:  # all of it, or nothing
            made = Path(place) / "made"
            if drawn:
                classes = labelme(drawn, options.source, made)
            else:
                classes = pairs(pictures, options.source, made, options.classes)
            write_json(made / "classes.json", classes)
            made.rename(options.out)
    except InputError as error:
        print(f"import_labels.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    except OSError as error:
        print(f"import_labels.py: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    print(f"{options.out}: {len(drawn or pictures):,} images, classes {', '.join(c['name'] for c in classes)}")


if __name__ == "__main__":
    main()
