"""Drawn street scenes by day and by night, with labels: the data of the demo and of the tests.

A scene is laid out in metres: x to the right of the road's middle, y up, z ahead of the camera. Its shapes are painted
first and lit afterwards, so the light cannot move a label.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from daynight.data.labels import CITYSCAPES, IGNORE
from daynight.system.files import replace, write_json

_ABSENT = {"wall", "terrain", "rider", "truck", "bus", "train", "motorcycle", "bicycle"}
CLASSES = [pair for pair in zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True) if pair[0] not in _ABSENT]
_ID = {name: number for number, (name, _) in enumerate(CLASSES)} | {"ignore": IGNORE}

# a thing gets one of the colours of its material, slightly changed
_COLOURS = {
    "plaster": [(178, 120, 92), (150, 84, 68), (205, 190, 160), (190, 190, 185), (160, 150, 140), (214, 176, 120)],
    "leaves": [(84, 126, 54), (64, 106, 56), (110, 136, 54), (92, 140, 78)],
    "wood": [(150, 112, 76), (112, 86, 62)],
    "paving": [(176, 170, 162), (188, 168, 150)],
    "asphalt": [(84, 84, 86), (104, 104, 104)],
    "metal": [(120, 124, 126), (84, 92, 88)],
    "dark": [(70, 84, 100), (52, 58, 66)],
    "paint": [(170, 34, 36), (40, 74, 150), (210, 212, 214), (62, 64, 70), (224, 184, 52), (44, 110, 84)],
    "skin": [(226, 184, 156), (190, 138, 106), (124, 86, 64)],
    "sign": [(204, 40, 44), (36, 84, 176), (236, 190, 40)],
    "room": [(190, 140, 70), (150, 150, 140)],
    "lamp": [(255, 184, 97), (255, 220, 158)],
    "signal": [(60, 235, 130), (255, 190, 50), (255, 60, 45)],
    "white": [(255, 250, 232)],
    "tail light": [(235, 36, 26)],
}
# the lights at night, and how much each one throws on the street, in square metres
_LIGHTS = {"lamp": 7, "signal": 0.3, "white": 1.2, "tail light": 0.5}

# parts of things that stand at x = 0, from back to front: shape, class, material, x from and to, y from and to
_POST = ("box", "pole", "metal", -0.13, 0.13, 0)
_CAR = [
    ("block", "car", "dark", -0.85, 0.85, 0, 0.4),
    ("block", "car", "paint", -0.75, 0.75, 0.9, 1.6),
    ("box", "car", "dark", -0.65, 0.65, 0.95, 1.45),
    ("block", "car", "paint", -0.9, 0.9, 0.3, 0.95),
]
_THINGS = {
    "lamp": [
        (*_POST, 5.8),
        ("box", "pole", "metal", -0.1, 1.6, 5.55, 5.8),
        ("blob", "pole", "lamp", 1.1, 2.0, 5.4, 5.9),
    ],
    "traffic light": [
        (*_POST, 2.6),
        ("box", "traffic light", "metal", -0.45, 0.45, 2.5, 4.4),
        ("box", "traffic light", "dark", -0.36, 0.36, 2.6, 4.3),
        ("blob", "traffic light", "signal", -0.28, 0.28, 3.1, 3.7),
    ],
    "traffic sign": [(*_POST, 2.2), ("blob", "traffic sign", "sign", -0.65, 0.65, 2.0, 3.3)],
    "tree": [("box", "vegetation", "wood", -0.2, 0.2, 0, 3.5), ("blob", "vegetation", "leaves", -1.8, 1.8, 2, 5.4)],
    "bush": [("blob", "vegetation", "leaves", -2.2, 2.2, -1, 2.4)],
    "person": [
        ("box", "person", "dark", -0.22, 0.22, 0, 0.9),
        ("box", "person", "paint", -0.3, 0.3, 0.8, 1.5),
        ("blob", "person", "skin", -0.15, 0.15, 1.45, 1.8),
    ],
    "car": [*_CAR, *(("box", "car", "tail light", x - 0.2, x + 0.2, 0.62, 0.86) for x in (-0.65, 0.65))],
    "oncoming car": [*_CAR, *(("box", "car", "white", x - 0.2, x + 0.2, 0.62, 0.86) for x in (-0.65, 0.65))],
}
_UNLIT = (0, 0, 0)


class _Canvas:
    """A picture of twice the size, painted from far to near, as a pinhole camera above flat ground sees it.

    A shape is painted as its number. `finish` looks up the shapes' colours, classes and depths.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], eye: float):
        self.rng, self.eye, self.up = rng, eye, rng.uniform(1.3, 1.9)
        self.height, self.width = 2 * size[0], 2 * size[1]
        self.focal = self.height * rng.uniform(1.0, 1.3)
        self.centre, self.horizon = self.width * rng.uniform(0.36, 0.64), self.height * rng.uniform(0.40, 0.52)
        self.image = Image.new("I", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)
        # a shape: colour, glow, 1 for sky, class, plane (a, b, c); seen from the camera, a x + b y + c z = 1
        self.shapes = [(*_UNLIT, *_UNLIT, 1, _ID["sky"], 0, 0, 1e-3)]
        # a lamp: x from the camera, y, z, strength in square metres as RGB; the first is the own headlights
        self.lamps = [(0, 2.5, 7, 5, 4.8, 4.4)]

    def pick(self, material):
        """One colour of the material, each channel up to a third darker."""
        which, *change = self.rng.random(4).tolist()
        colour = _COLOURS[material][int(which * len(_COLOURS[material]))]
        return [channel * (1 - part / 3) / 255 for channel, part in zip(colour, change, strict=True)]

    def put(self, corners, plane, colour, name, glow=_UNLIT, shape="polygon"):
        outline = []
        for x, y, z in corners:
            scale = self.focal / z
            outline.append((self.centre + (x - self.eye) * scale, self.horizon + (self.up - y) * scale))
        getattr(self.pen, shape)(outline, fill=len(self.shapes))
        self.shapes.append((*colour, *glow, 0, _ID[name], *plane))

    def flat(self, x0, x1, z0, z1, *look):
        """A rectangle on the ground."""
        self.put([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], (0, -1 / self.up, 0), *look)

    def wall(self, x, y0, y1, z0, z1, *look):
        """An upright rectangle along the street."""
        self.put([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], (1 / (x - self.eye), 0, 0), *look)

    def box(self, x0, x1, y0, y1, z, *look):
        """An upright rectangle that faces the camera."""
        self.put([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], (0, 0, 1 / z), *look)

    def blob(self, x0, x1, y0, y1, z, colour, name, glow=_UNLIT):
        """An ellipse that faces the camera."""
        self.put([(x0, y1, z), (x1, y0, z)], (0, 0, 1 / z), colour, name, glow, "ellipse")

    def block(self, x0, x1, y0, y1, z, colour, name, glow=_UNLIT, long=4):
        """The visible side and the near end of a block."""
        if not x0 < self.eye < x1:
            self.wall(x0 if x0 > self.eye else x1, y0, y1, z, z + long, colour, name, glow)
        self.box(x0, x1, y0, y1, z, [0.85 * channel for channel in colour], name, glow)

    def thing(self, z, x, kind):
        """One of `_THINGS`, of random size, turned so that its right is towards the road."""
        size, colours = self.rng.uniform(0.8, 1.15), {}
        for shape, name, material, left, right, low, high in _THINGS[kind]:
            colour = colours.setdefault(material, self.pick(material))
            x0, x1 = (x - size * right, x - size * left) if x > 0 else (x + size * left, x + size * right)
            glow = colour if material in _LIGHTS else _UNLIT
            getattr(self, shape)(x0, x1, size * low, size * high, z, colour, name, glow)
            if material in _LIGHTS:
                self.lamps.append(((x0 + x1) / 2 - self.eye, size * low, z, *np.multiply(_LIGHTS[material], colour)))

    def finish(self):
        """What the pixels show: albedo and glow at night, each H×W×3 in [0, 1], and the share of sky, H×W×1; the label,
        H×W in uint8; and the place (x, y, z) in metres from below the camera, each H×W."""
        shapes, number = np.array(self.shapes, np.float32), np.asarray(self.image)
        mean = sum(shapes[number[down::2, right::2], :7] for down in (0, 1) for right in (0, 1)) / 4
        near = shapes[number[1::2, 1::2]]
        label = near[..., 7].astype(np.uint8)
        x = ((np.arange(1, self.width, 2) - self.centre) / self.focal).astype(np.float32)
        y = ((self.horizon - np.arange(1, self.height, 2)[:, None]) / self.focal).astype(np.float32)
        z = 1 / np.maximum(near[..., 8] * x + near[..., 9] * y + near[..., 10], 1e-3)
        rough = np.where(label == _ID["vegetation"], np.float32(0.10), np.float32(0.03))[..., None]
        albedo = mean[..., :3] * (1 + rough * self.rng.standard_normal((*label.shape, 1), np.float32))
        return albedo, mean[..., 3:6], mean[..., 6:], label, (x * z, self.up + y * z, z)


def _house(c, side, edge, near, far):
    """A house along the street; some of its windows are lit at night."""
    paint, glass, top = c.pick("plaster"), c.pick("dark"), c.rng.uniform(5, 16)
    x, lit = side * (edge + c.rng.uniform(0, 1.2)), c.rng.uniform(0, 0.5)
    c.block(*sorted((x, x + 9 * side)), 0, top, near, paint, "building", long=far - near)
    for z in np.arange(near + 0.7, far - 1.5, 3).tolist():
        for y in np.arange(0.9, top - 1.5, 3).tolist():
            c.wall(x, y, y + 1.5, z, z + 1.6, glass, "building", c.pick("room") if c.rng.random() < lit else _UNLIT)


def _garden(c, side, edge, near, far):
    """A lawn with trees and bushes, mostly behind a fence."""
    x = side * (edge + 0.3)
    c.flat(x, 12 * x, near, far, c.pick("leaves"), "vegetation")
    for z in np.arange(far - 1, max(near, 2.5), -3).tolist():
        c.thing(z, x + side * c.rng.uniform(2, 5), ("tree", "bush")[c.rng.integers(2)])
    if c.rng.random() < 0.75:
        c.wall(x, 0, c.rng.uniform(1.1, 1.9), near, far, c.pick("wood"), "fence")


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> _Canvas:
    half, walk, green = rng.uniform(3.6, 6.5), rng.uniform(2.4, 4.5), rng.uniform(0.2, 0.6)
    c = _Canvas(rng, size, half / 2 + rng.uniform(-0.5, 0.5))
    c.flat(-900, 900, 0.8, 400, c.pick("paving"), "sidewalk")
    c.flat(-half, half, 0.8, 400, c.pick("asphalt"), "road")
    for z in np.arange(rng.uniform(1, 3), 60, 6).tolist():
        c.flat(-0.12, 0.12, z, z + 3, c.pick("white"), "road")
    for x in range(-100, 100, 20):
        c.box(x, x + 20, 0, rng.uniform(6, 34), 150, c.pick("plaster"), "building")
    things = [(rng.uniform(6, 12), rng.uniform(-half, half), "person")]
    for side in (-1, 1):
        for near in range(49, 0, -12):
            (_garden if rng.random() < green else _house)(c, side, half + walk, near, near + 12)
        for slot, z in enumerate(np.arange(rng.uniform(5, 8), 32, 4.5).tolist()):
            kind = ("lamp", ("traffic light", "traffic sign")[rng.integers(2)], "tree")[slot % 3]
            things.append((z, side * (half + 0.7), kind))
        for z in rng.uniform(4.5, 15, rng.integers(1, 4)).tolist():
            things.append((z, side * (half + rng.uniform(1.2, walk)), "person"))
        for z in np.cumsum(rng.uniform(6, 16, 3)).tolist():
            things.append((z, side * half / 2, "oncoming car" if side < 0 else "car"))
    for thing in sorted(things, reverse=True):
        c.thing(*thing)
    if rng.random() < 0.4:
        c.blob(c.eye - 1.7, c.eye + 1.7, -0.5, rng.uniform(0.4, 0.6), 2, c.pick("paint"), "ignore")
    return c


def _day(rng, albedo, sky, z):
    """By day, clear or overcast: the lit street, and the colours of the sky overhead and at the horizon."""
    clear, haze = rng.random(), 1 - np.exp(-z[..., None] / rng.uniform(250, 700))
    sun = rng.uniform(1.1, 1.7) * rng.uniform(0.9, 1.1, 3)
    overhead, rim = np.array([0.68 - 0.32 * clear, 0.74 - 0.14 * clear, 0.85]), np.array([0.80, 0.87, 0.93])
    return sun * albedo * (1 - haze) + (1 - sky) * haze * rim, overhead, rim


def _night(rng, albedo, glow, lamps, x, y, z):
    """By night, with the light of the lamps, a faint one from the sky, and glare. Returns what `_day` returns."""
    reach = []
    for lamp_x, lamp_y, lamp_z, *_ in lamps:
        drop = np.maximum(lamp_y + 0.2 - y, 0)
        square = (x - lamp_x) ** 2 + drop**2 + (z - lamp_z) ** 2 + 0.5
        reach.append(drop / (square * np.sqrt(square)))
    light = np.stack(reach, -1) @ np.array(lamps, np.float32)[:, 3:]
    light += rng.uniform(0.85, 1.2) * np.array([0.23, 0.26, 0.35], np.float32)
    glare = Image.fromarray((255 * glow).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.03 * len(z)))
    lit = albedo * light + glow + 0.6 / 255 * np.asarray(glare)
    return lit, np.array([0.02, 0.03, 0.07]), rng.uniform(0.6, 1.2) * np.array([0.06, 0.06, 0.085])


def scene(seed: int, night: bool, size: tuple[int, int] = (96, 192)) -> tuple[np.ndarray, np.ndarray]:
    """A street by day or by night: (image, label) for size = (height, width) in pixels, at least 32×64.

    image: uint8 H×W×3, RGB in 0..255; label: uint8 H×W, the index in `CLASSES`, or 255 on the own car's bonnet.
    The same arguments give the same arrays. A seed (at least 0) gives one scene by day and another by night.
    """
    rng = np.random.default_rng([seed, int(night)])
    canvas = _draw(rng, size)
    albedo, glow, sky, label, (x, y, z) = canvas.finish()
    if night:
        lit, overhead, rim = _night(rng, albedo, glow, canvas.lamps, x, y, z)
    else:
        lit, overhead, rim = _day(rng, albedo, sky, z)
    down = np.linspace(0, 2, size[0]).clip(0, 1)[:, None, None]
    lit += sky * ((1 - down) * overhead + down * rim) + 0.01 * rng.standard_normal(lit.shape, np.float32)
    return (255 * lit.clip(0, 1)).astype(np.uint8), label


def write(root: Path, seed: int, night: bool, train: int, val: int, size=(96, 192), extra: int = 0) -> None:
    """Write drawn scenes in the `folder` layout: root/{images,labels}/{train,val}/00000.png… and root/classes.json.

    train, val: numbers of scenes; extra: a number of further scenes without labels, in images/train_extra; size:
    (height, width) in pixels. Each split, seed and time of day has its own scenes. A larger number adds scenes to a
    split and keeps the others. Each file is written whole or not at all; one that is there stays.
    """
    # even numbers train and odd numbers validate, so that neither count changes the other's scenes
    for split, first, count in (("train", 0, train), ("val", 1, val), ("train_extra", 2 * train, extra)):
        for number in range(first, first + 2 * count, 2):
            image, label = scene(1_000_000 * seed + number, night, size)
            pictures = {"images": image} if split == "train_extra" else {"images": image, "labels": label}
            for kind, picture in pictures.items():
                path = Path(root) / kind / split / f"{number // 2:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    replace(path, partial(Image.fromarray(picture).save, format="PNG"))
    if not (path := Path(root) / "classes.json").exists():
        write_json(path, [{"name": name, "color": list(color)} for name, color in CLASSES])
