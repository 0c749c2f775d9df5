"""What the values of labels mean: the class tables that people and other tools put beside their labels."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from daynight.data.labels import CITYSCAPES, IGNORE, OWN_COLORS, Classes, LabelKind, read_classes
from daynight.system.errors import InputError

# ours; CVAT, Roboflow, CamVid and Kaggle, Hugging Face, ADE20K
TABLES = ("labelmap.txt", "_classes.csv", "class_dict.csv", "id2label.json", "objectInfo150.txt")
NAMES = ("classes.json", *TABLES)
_VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown"}
_COLUMNS = {  # of the header, without case
    "name": ("name", "names", "class", "classes", "label", "class name", "class_name"),
    "id": ("pixel value", "id", "idx", "index", "value", "class_id", "label_id"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "color": ("color_rgb", "color", "rgb"),
}


def tables_of(files: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """Of the tables that own data have: the one of another tool, and classes.json. Raises InputError where two of a
    name differ."""
    chosen = []
    for names in (TABLES, NAMES[:1]):
        name = next((name for name in names if any(path.name == name for path in files)), None)
        first, *others = [path for path in files if path.name == name] or [None]
        for other in others:
            if other.read_bytes() != first.read_bytes():
                raise InputError(f"{other}: differs from {first}; make them equal, or give one split at a time")
        chosen.append(first)
    return tuple(chosen)


def read_meaning(table: Path | None, own: Path | None) -> tuple[Classes, LabelKind, list[str]]:
    """The classes of a data set, what the values of its labels mean, and remarks. None: there is no such file.

    table: one of `TABLES`; own: classes.json. With both, the table tells which value has which name; classes.json
    tells which names are classes, and their order. With a table alone, all its entries are classes, but for those
    called void or the like, and for "background" where two classes are left without it: annotation tools draw it where
    nobody drew anything. Raises InputError with the file's name.
    """
    if not table:
        classes = read_classes(own) if own else CITYSCAPES
        told = own.name if own else "Cityscapes"
        pairs = zip(classes.names, classes.colors, strict=True)
        return classes, LabelKind("trainIds", colors=_colors(pairs, classes, told), told=told), []
    rows = _rows(table)
    if own:
        classes = read_classes(own)
        missing = {name.casefold() for name in classes.names} - {name.casefold() for name, _, _ in rows}
        if missing:
            raise InputError(f"{own}: class {min(missing)!r} is not in {table}; give it a name of that table")
    else:
        kept = [row for row in rows if row[0].casefold() not in _VOID]
        drawn = [row for row in kept if row[0].casefold() != "background"]
        kept = drawn if len(drawn) > 1 else kept
        if not 0 < len(kept) <= IGNORE:
            raise InputError(f"{table}: {len(kept)} classes; expected 1 to {IGNORE}")
        known = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
        colors = (row[2] or known.get(row[0].casefold()) or _drawn(i) for i, row in enumerate(kept))
        classes = Classes(tuple(row[0] for row in kept), tuple(colors))
    train_ids = {name.casefold(): i for i, name in enumerate(classes.names)}
    ignored = [name for name, _, _ in rows if name.casefold() not in train_ids]
    more = "" if own else "; a classes.json names what to learn"
    remarks = [f"{table.name}: {', '.join(ignored)} ignored (255){more}"] * bool(ignored)
    pairs = [(name, color) for name, _, color in rows if color]
    colors = _colors(pairs, classes, table.name) if len(pairs) == len(rows) else {}
    # without ids, that of an entry is its place, as CVAT has it
    numbers = [i if number is None else number for i, (_, number, _) in enumerate(rows[: IGNORE + 1])]
    ids = {number: train_ids.get(row[0].casefold(), IGNORE) for number, row in zip(numbers, rows, strict=False)}
    # where ids begin at 1, 0 is what nobody labelled
    holes = frozenset(range(1, max(ids))) - ids.keys()
    told = f"{table.name} id"
    return classes, LabelKind("ids", told, max(ids) + 1, ids, colors=colors, holes=holes, told=table.name), remarks


def _colors(pairs: Iterable[tuple[str, tuple]], classes: Classes, told: str) -> dict[tuple, int]:
    """Colour → train id, of (name, colour). Black that the table does not have is ignored where daynight or Cityscapes
    wrote the colours: both leave black what has no class."""
    train_ids = {name.casefold(): i for i, name in enumerate(classes.names)}
    found = {(0, 0, 0): IGNORE} if told in OWN_COLORS else {}
    if told == "Cityscapes":
        found |= dict.fromkeys(_CITYSCAPES_VOID, IGNORE)
    pairs = [(color, train_ids.get(name.casefold(), IGNORE)) for name, color in pairs]
    shared = {color for color, i in pairs if {j for c, j in pairs if c == color} != {i}}
    return found | {color: i for color, i in pairs if color not in shared}


# cityscapesScripts, labels.py: the colours of what is not trained, but for black and those that a class has too
_CITYSCAPES_VOID = (
    *((111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100), (150, 120, 90)),
    *((0, 0, 90), (0, 0, 110)),
)


def _drawn(i: int) -> tuple[int, int, int]:
    """A colour for class i, by the rule of Pascal VOC: no two are alike."""
    return tuple(sum(((i + 1) >> (3 * k + c) & 1) << (7 - k) for k in range(8)) for c in range(3))


def _rows(path: Path) -> list[tuple[str, int | None, tuple | None]]:
    """(name, id, colour) of each entry, ids and colours where the table has them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = [{"id": key, "name": name} for key, name in json.loads(text).items()]
        else:
            rows = _entries([line for line in text.splitlines() if line.strip()])
        found = [_row(row) for row in rows]
        names, ids = [row[0].casefold() for row in found], [row[1] for row in found]
        if not found or "" in names or len(set(names)) < len(names):
            raise ValueError("no entry, or one without a name or with that of another")
        if len({*ids}) < len(ids) and {*ids} != {None} or None in ids and None in [row[2] for row in found]:
            raise ValueError("no colour and no id, or an id of two names")
    except (OSError, ValueError, AttributeError, RecursionError, KeyError, csv.Error) as error:
        wanted = "expected a name with an id from 0 to 254 or a colour of 0 to 255 in each entry"
        raise InputError(f"{path}: not a table of classes ({error}); {wanted}") from error
    return sorted(found, key=lambda row: row[1]) if None not in ids else found


def _entries(lines: list[str]) -> list[dict[str, str]]:
    """The lines of a text table as {column: cell}. CVAT writes "# label:color_rgb:parts:actions" as the first."""
    delimiter = max(";\t:,", key=(lines or [""])[0].count)
    cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    header = [cell.strip("# ").casefold() for cell in cells[0]] if cells else []
    names = {key: next((header.index(name) for name in some if name in header), None) for key, some in _COLUMNS.items()}
    if names["name"] is None:
        raise ValueError(f"its first line names no column as {' or '.join(_COLUMNS['name'][:5])}")
    return [{key: row[i] for key, i in names.items() if i is not None and i < len(row)} for row in cells[1:]]


def _row(row: dict[str, str]) -> tuple[str, int | None, tuple | None]:
    parts = row["color"].split(",") if row.get("color") else [row[key] for key in "rgb" if row.get(key)]
    color, number = tuple(map(int, parts)) or None, row.get("id")
    if color and (len(color) != 3 or not all(0 <= part <= 255 for part in color)):
        raise ValueError(f"{row['name']!r} has colour {color}")
    number = None if number is None else int(number)
    if number is not None and not 0 <= number <= IGNORE:
        raise ValueError(f"{row['name']!r} has id {number}")
    return row["name"].strip(), number, color
