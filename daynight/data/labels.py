"""Classes and label maps: train ids in one channel, 255 where nothing is learned or scored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daynight.data.formats import open_image
from daynight.system.errors import InputError, Unreadable

IGNORE = 255
OWN_COLORS = "classes.json", "Cityscapes"  # tables whose colours may be for show only, and which leave out black


@dataclass(frozen=True)
class Classes:
    """The classes of a data set in the order of their train ids, with the RGB colour (0 to 255) each is drawn in."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


# cityscapesScripts, labels.py: (name, label id, colour) of the classes that are trained, in the order of train ids
_TRAINED = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES = Classes(tuple(name for name, _, _ in _TRAINED), tuple(color for _, _, color in _TRAINED))


class LabelKind(str):
    """What the values of a label file mean. As a string it is the kind's name in reports: "labelIds".

    value: what one value is, in words. count: files hold the ids 0 to count - 1, but for `holes`; None: train ids.
    train_ids: indexed by id, 256 uint8, 255 = ignored; given as {id: train id}. refused: why such files are not read.
    colors: {colour: train id} where files in colours are read too, as `told` (a table's name) says.
    """

    def __new__(
        cls, name: str, value="train id", count=None, train_ids: Mapping[int, int] | None = None, refused="",
        colors: Mapping[tuple, int] | None = None, holes: frozenset = frozenset(), told="",
    ):  # fmt: skip
        kind = super().__new__(cls, name)
        kind.value, kind.count, kind.refused, kind.holes, kind.told = value, count, refused, holes, told
        kind.colors = dict(colors or {})
        kind.train_ids = np.full(256, IGNORE, np.uint8) if count else np.arange(256, dtype=np.uint8)
        for i, train_id in (train_ids or {}).items():
            kind.train_ids[i] = train_id
        return kind

    @property
    def meaning(self) -> str:
        """Differs between kinds that read the same file as different labels."""
        return f"{self} {self.train_ids.tolist()}" + f" {sorted(self.colors.items())}" * bool(self.colors)


LABEL_ID_COUNT = 34  # 0 'unlabeled' to 33 'bicycle'; -1 'license plate' is 255 in a file of bytes
LABEL_IDS = LabelKind("labelIds", "Cityscapes label id", LABEL_ID_COUNT, {row[1]: i for i, row in enumerate(_TRAINED)})
LABEL_TRAIN_IDS, TRAIN_IDS = LabelKind("labelTrainIds"), LabelKind("trainIds")
COLORS = LabelKind("color", refused="colour-coded")
KINDS = {kind: kind for kind in (LABEL_IDS, LABEL_TRAIN_IDS, TRAIN_IDS, COLORS)}

TRAIN_ID_OF = LABEL_IDS.train_ids  # indexed by label id
LABEL_ID_OF = np.zeros(256, np.uint8)  # indexed by train id; what is ignored becomes 0 'unlabeled'
LABEL_ID_OF[: len(_TRAINED)] = [label_id for _, label_id, _ in _TRAINED]
TRAIN_ID_OF.flags.writeable = LABEL_ID_OF.flags.writeable = False


def read_classes(path: Path) -> Classes:
    """`classes.json`, a list of `{"name": str, "color": [r, g, b]}` in the order of train ids, at most 255 of them.

    Raises InputError with the file's name, and the entry's number counted from 0 as train ids are.
    """
    wanted = 'expected a list of {"name": "road", "color": [r, g, b]}, 1 to 255 names that differ, colors of 0 to 255'
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({getattr(error, 'strerror', None) or error}); {wanted}") from error
    count = len(entries) if isinstance(entries, list) else 0
    if not 0 < count <= IGNORE:
        raise InputError(f"{path}: {count} classes; {wanted}")

    names, colors = {}, []  # names without case, as the classes of a model meet those of a data set
    for number, entry in enumerate(entries):
        name, color = (entry.get("name"), entry.get("color")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not name.strip() or name != name.encode(errors="ignore").decode():
            raise InputError(f"{path}: class {number} has no name; {wanted}")
        if name.casefold() in names:
            same = list(names).index(name.casefold())
            raise InputError(f"{path}: class {number} is named {name!r} like class {same}; {wanted}")
        # `type is int`: True would pass for 1
        if not isinstance(color, list) or len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
            raise InputError(f"{path}: class {number} ({name!r}) has color {color!r}; {wanted}")
        names[name.casefold()] = name
        colors.append(tuple(color))
    return Classes(tuple(names.values()), tuple(colors))


def read_label(path: Path, kind: str, classes: Classes, size: tuple[int, int] | None = None) -> np.ndarray:
    """The label map of one image as train ids: H×W uint8, each 0 to len(classes) - 1 or 255 = ignore.

    kind: a `LabelKind` or the name "labelIds", "labelTrainIds" or "trainIds". size: (height, width) of the image.
    Files in colours are read where the kind has `colors`, palette files then by their colours if these are all known,
    else by index. Raises InputError with the file's name when the file is unreadable, a JPEG, in colours that are not
    known, of another size than its image, or holds a value that is no class.
    """
    kind = kind if isinstance(kind, LabelKind) else KINDS.get(kind)
    if not kind or kind.refused:
        raise ValueError(f"label kind {kind!r}")
    wanted = f"{kind.value}s in one channel, {IGNORE} = ignore"
    try:
        with open_image(path) as image:
            mode, values, form = image.mode, np.asarray(image), image.format
            palette = [tuple(color) for color in np.reshape(image.getpalette() or [], (-1, 3)).tolist()]
    # Pillow answers damaged files with exceptions of any kind
    except Exception as error:
        cause = getattr(error, "strerror", None) or "damaged, or not an image"
        raise Unreadable(f"{path}: cannot be read as a label ({cause}); expected a PNG with {kind.value}s") from error
    problem, colored = None, _colored(mode, values, palette, kind, classes)
    if form == "JPEG":
        problem = "a JPEG, which changes the values of labels; expected a PNG"
    elif size is not None and values.shape[:2] != tuple(size):
        has, wants = (f"{height}x{width}" for height, width in (values.shape[:2], size))
        problem = f"label of {has} (height x width) for an image of {wants}; expected the same size"
    elif colored is not None:
        train_ids, problem = _by_color(colored, kind, classes)
    elif mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        problem = f"colour-coded ({mode}); expected {wanted}"
    # a table without colours says nothing of palettes
    elif mode == "P" and (kind.colors or not kind.told) and (shown := _contradiction(values, palette, kind, classes)):
        problem = f"colour-coded ({shown}); expected {wanted}"
    if not problem and colored is None:
        count = kind.count or len(classes)
        wrong = (values < 0) | (values >= count) | np.isin(values, list(kind.holes))
        wrong = values[wrong & (values != IGNORE)]
        train_ids = kind.train_ids[values.astype(np.uint8)]
        if wrong.size:
            value, meant = int(wrong.min()), kind.value if kind.count else f"class of {count} classes"
            problem = f"value {value} is no {meant}; expected 0 to {count - 1}, or {IGNORE} = ignore"
            if not kind.count and classes.names == CITYSCAPES.names and value < LABEL_ID_COUNT:
                problem += "; are they label ids? Name them *_labelIds.png, or --labels labelIds (--predictions: --ids)"
    if problem:
        raise InputError(f"{path}: {problem}")
    return train_ids


def _colored(mode: str, values: np.ndarray, palette: list[tuple], kind: LabelKind, classes: Classes):
    """The pixels of a file that is to be read by its colours, H×W×3; None where its values are ids."""
    if not kind.colors:
        return None
    if mode in ("RGB", "RGBA"):
        return values[..., :3]
    used, count = np.unique(values) if values.ndim == 2 else [], kind.count or len(classes)
    if mode == "P":
        inside = [i for i in used.tolist() if i < len(palette) and (i != IGNORE or palette[i] in kind.colors)]
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = palette
        known = bool(inside) and all(palette[i] in kind.colors for i in inside)
        doubtful = _contradiction(values, palette, kind, classes) or max(inside, default=0) >= count
        # the colours of classes.json are for show, too, and then the indices count
        return colors[values] if known and (kind.told not in OWN_COLORS or doubtful) else None
    if mode in ("1", "L") and all(r == g == b for r, g, b in kind.colors):
        grey = values.astype(np.uint8) * (255 if mode == "1" else 1)
        levels = np.unique(grey).tolist()
        if all((v,) * 3 in kind.colors for v in levels) and (
            kind.told not in OWN_COLORS or mode == "L" and max(levels) >= count
        ):
            return np.repeat(grey[..., None], 3, 2)
    return None


def _by_color(pixels: np.ndarray, kind: LabelKind, classes: Classes) -> tuple[np.ndarray, str | None]:
    """The train ids of H×W×3 pixels, and what is wrong with them in words."""
    packed = (pixels.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(2, dtype=np.uint32)
    known = {(r << 16) + (g << 8) + b: train_id for (r, g, b), train_id in sorted(kind.colors.items())}
    keys, ids = np.array(list(known), np.uint32), np.array(list(known.values()), np.uint8)
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    strange, counts = np.unique(packed[keys[place] != packed], return_counts=True)
    if not len(strange):
        return ids[place], None
    packed = int(strange[counts.argmax()])
    color = packed >> 16, packed >> 8 & 255, packed & 255
    near = min(kind.colors, key=lambda other: sum((a - b) ** 2 for a, b in zip(color, other, strict=True)))
    name = "what is ignored" if kind.colors[near] == IGNORE else repr(classes.names[kind.colors[near]])
    more = f", {len(strange) - 1:,} more colours" * (len(strange) > 1)
    return ids[place], (
        f"colour {color} ({counts.max():,} of {counts.sum():,} such pixels{more}) is not one colour of {kind.told}; "
        f"the nearest is {near}, {name}; expected the colours of {kind.told}, or ids in one channel"
    )


def _contradiction(values: np.ndarray, palette: list[tuple], kind: LabelKind, classes: Classes) -> str | None:
    """The first index in a palette file that shows the colour of another class than it means, in words.

    One that means no class may have a class's colour (Mapillary's groups of cars): it counts where most pixels do so.
    """
    counts, meant = np.bincount(values.ravel(), minlength=256), kind.train_ids.tolist()
    own, names = (dict(enumerate(of)) for of in (classes.colors, classes.names))
    wrong = [i for i, x in enumerate(palette) if counts[i] and x in classes.colors and x != own.get(meant[i])]
    named = [i for i in wrong if meant[i] in names]
    if not named and counts[wrong].sum() <= values.size / 2:
        return None
    i = (named or wrong)[0]
    shown, means = classes.names[classes.colors.index(palette[i])], repr(names[meant[i]]) if named else "no class"
    return f"index {i} shows the colour of {shown!r} and means {means}"


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Cityscapes label ids, uint8, of Cityscapes train ids (any shape, uint8); 255 = ignore becomes 0 'unlabeled'."""
    return LABEL_ID_OF[train_ids]


def colorize(train_ids: np.ndarray, classes: Classes) -> np.ndarray:
    """Train ids, H×W uint8, in the colours of their classes: H×W×3 uint8, ignore black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = classes.colors
    return palette[train_ids]
