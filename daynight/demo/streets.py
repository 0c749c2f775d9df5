"""Drawn street scenes by day and by night, with labels: the data of the demo and of the tests.

A scene is laid out in metres: x to the right of the road's middle, y up, z ahead of the camera. Its shapes are painted
as numbers and lit afterwards, so the labels do not depend on the light.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from daynight.data.labels import CITYSCAPES, IGNORE
from daynight.system.files import replace, write_json

_ABSENT = {"wall", "terrain", "rider", "truck", "bus", "train", "motorcycle", "bicycle"}
CLASSES = [pair for pair in zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True) if pair[0] not in _ABSENT]
_ID = {name: number for number, (name, _) in enumerate(CLASSES)} | {"ignore": IGNORE}

_WALLS = [(178, 120, 92), (150, 84, 68), (205, 190, 160), (190, 190, 185), (160, 150, 140), (214, 176, 120),
          (140, 150, 165), (196, 150, 140), (225, 220, 210)]  # fmt: skip
_ROOFS = [(120, 66, 54), (84, 84, 92), (104, 88, 76)]
_GLASS = [(70, 84, 100), (52, 58, 66), (110, 130, 150)]
_GREENS = [(84, 126, 54), (64, 106, 56), (110, 136, 54), (136, 136, 60), (92, 140, 78)]
_CARS = [(170, 34, 36), (40, 74, 150), (210, 212, 214), (62, 64, 70), (132, 136, 142), (224, 184, 52), (44, 110, 84)]
_CLOTHES = [(180, 50, 60), (50, 70, 140), (220, 200, 80), (230, 230, 225), (60, 130, 110), (90, 70, 110), (60, 60, 66)]
_SKIN = [(226, 184, 156), (190, 138, 106), (124, 86, 64)]
_FENCES = [(150, 112, 76), (214, 210, 200), (104, 82, 64), (112, 132, 120)]
_PAVING = [(176, 170, 162), (156, 154, 156), (188, 168, 150)]
_METAL = [(128, 132, 134), (110, 114, 118), (84, 92, 88)]
_DARK, _PALE, _RED, _BLUE, _YELLOW = (28, 28, 30), (236, 236, 230), (204, 40, 44), (36, 84, 176), (236, 190, 40)
_SIGNS = [(_RED, _PALE), (_BLUE, _BLUE), (_PALE, _BLUE), (_RED, _RED), (_PALE, _YELLOW)]
_SIGNALS = [(60, 235, 130), (255, 190, 50), (255, 60, 45)]
_INDOORS = [(170, 128, 66), (170, 128, 66), (140, 150, 156)]
_STREET_LAMPS = [(255, 184, 97), (255, 220, 158), (230, 242, 255)]
# light in the sun, light in the shade, sky overhead, sky at the horizon, the sun's share that comes through
_WEATHER = [
    ((1.30, 1.24, 1.10), (0.68, 0.74, 0.86), (0.36, 0.58, 0.88), (0.78, 0.87, 0.95), 1.0),
    ((1.02, 1.05, 1.08), (0.90, 0.93, 0.98), (0.66, 0.70, 0.76), (0.84, 0.86, 0.88), 0.3),
    ((1.30, 1.02, 0.74), (0.64, 0.62, 0.74), (0.44, 0.52, 0.74), (0.98, 0.78, 0.56), 1.0),
]


@dataclass(frozen=True)
class _Layout:
    """A scene before it is lit. Colours are in [0, 1]; a pixel shared with the sky has its share of them."""

    albedo: np.ndarray  # H×W×3, textured
    cover: np.ndarray  # H×W×1, the share of the pixel that is not sky
    glow: np.ndarray  # H×W×3, the light that it gives at night
    label: np.ndarray  # H×W, uint8
    place: tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z in metres, each H×W
    eye: float  # x of the camera
    lamps: list  # (x, y, z, strength as RGB in square metres)


class _Canvas:
    """A picture of twice the size, painted from far to near, as a pinhole camera above flat ground sees it.

    A shape is painted as its number. `layout` looks up the shapes' colours, classes, depths and glows at the end.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], lane: float):
        self.height, self.width = 2 * size[0], 2 * size[1]
        self.focal = self.height * rng.uniform(1.0, 1.3)
        self.centre = self.width * rng.uniform(0.36, 0.64)
        self.horizon = self.height * rng.uniform(0.40, 0.52)
        self.eye, self.up = lane + rng.uniform(-0.5, 0.5), rng.uniform(1.3, 1.9)
        self.image = Image.new("I", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)
        # a shape: colour, class, depth, colour of its glow; number 0 is the sky behind all shapes
        self.shapes = [(0, 0, 0, _ID["sky"], 0, 0, 0, 0)]
        self.lamps = []

    def put(self, points, colour, name, glow=(0, 0, 0), pen="polygon"):
        """Paint the shape with these corners (x, y, z). Depth 0 means that it lies on the ground."""
        outline = []
        for x, y, z in points:
            scale = self.focal / z
            outline.append((self.centre + (x - self.eye) * scale, self.horizon + (self.up - y) * scale))
        columns, rows = zip(*outline, strict=True)
        if max(columns) > 0 and min(columns) < self.width and max(rows) > 0 and min(rows) < self.height:
            first, other = points[0], points[len(points) // 2]
            depth = (first[2] + other[2]) / 2 if first[1] or other[1] else 0
            getattr(self.pen, pen)(outline, fill=len(self.shapes))
            self.shapes.append((*colour, _ID[name], depth, *glow))

    def flat(self, x0, x1, z0, z1, *look):
        self.put([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], *look)

    def wall(self, a, b, y0, y1, *look):
        """An upright rectangle from a to b, both (x, z)."""
        (xa, za), (xb, zb) = a, b
        self.put([(xa, y0, za), (xb, y0, zb), (xb, y1, zb), (xa, y1, za)], *look)

    def box(self, x0, x1, y0, y1, z, *look):
        self.wall((x0, z), (x1, z), y0, y1, *look)

    def blob(self, x, y, z, rx, ry, colour, name, glow=(0, 0, 0)):
        self.put([(x - rx, y + ry, z), (x + rx, y - ry, z)], colour, name, glow, "ellipse")

    def thick(self, metres, z):
        """The width in metres, but at least two pixels of the image."""
        return max(metres, 4.4 * z / self.focal)

    def layout(self, rng) -> _Layout:
        shapes = np.array(self.shapes, np.float32)
        number = np.asarray(self.image)
        near = shapes[number[1::2, 1::2]]
        label, depth = near[..., 3].astype(np.uint8), near[..., 4]
        shapes[:, [0, 1, 2, 5, 6, 7]] /= 255
        shapes[:, 3] = np.arange(len(shapes)) > 0
        mean = sum(shapes[number[down::2, right::2]] for down in (0, 1) for right in (0, 1)) / 4
        right = ((np.arange(1, self.width, 2) - self.centre) / self.focal).astype(np.float32)
        down = ((np.arange(1, self.height, 2)[:, None] - self.horizon) / self.focal).astype(np.float32)
        z = np.where(depth > 0, depth, self.up / np.maximum(down, 1 / self.focal))
        x, y = self.eye + right * z, self.up - down * z
        grain = np.full(256, 0.02, np.float32)
        grain[[_ID["road"], _ID["sidewalk"], _ID["vegetation"]]] = 0.03, 0.03, 0.09
        rough = rng.standard_normal((*label.shape, 1), np.float32) + 0.8 * _clouds(rng, label.shape, 0.03)
        albedo = mean[..., :3] * (1 + grain[label][..., None] * rough)
        return _Layout(albedo, mean[..., 3:4], mean[..., 5:], label, (x, y, z), self.eye, self.lamps)


def _clouds(rng, shape, scale):
    """Smooth noise H×W×1 of deviation near 1. `scale`: the size of its spots as a share of the height."""
    spots = [max(2, round(length / shape[0] / scale)) for length in shape]
    coarse = Image.fromarray(rng.standard_normal(spots, np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))[..., None]


def _blur(image, sigma):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _bytes(image):
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _tint(colour, factor):
    return tuple(channel * factor for channel in colour)


def _ring(corners, radius):
    """The corners of a regular polygon around (0, 0), the first on top."""
    turn = np.pi / 2 + np.arange(corners) * 2 * np.pi / corners
    return (radius * np.stack([np.cos(turn), np.sin(turn)], 1)).tolist()


def _pick(rng, palette, spread=14):
    """One colour of the palette, each channel shifted by up to `spread`."""
    which, *shift = rng.random(4).tolist()
    colour = palette[int(which * len(palette))]
    return tuple(channel + (2 * extra - 1) * spread for channel, extra in zip(colour, shift, strict=True))


def _building(c, rng, side, edge, near, far):
    """A house along the street in bays of about three metres with windows or shops, under a flat or a ridged roof."""
    paint, top, glass = _pick(rng, _WALLS), rng.uniform(5, 16), _pick(rng, _GLASS)
    indoors, lit = _pick(rng, _INDOORS), (0.06, 0.2, 0.45)[rng.integers(3)]
    frame, brick = _tint(paint, (0.7, 1.25)[rng.integers(2)]), near < 25 and rng.random() < 0.5
    x, deep = side * (edge + rng.uniform(0, 1.2)), side * 9
    if rng.random() < 0.5:
        ridge, roof = (x + deep / 2, top + 2.8), _pick(rng, _ROOFS)
        c.put([(x, top, near), (x, top, far), (*ridge, far), (*ridge, near)], roof, "building")
        c.put([(x, top, near), (x + deep, top, near), (*ridge, near)], _tint(paint, 0.85), "building")
    bays, floors = round((far - near) / 3), int(top / 3)
    wide = (far - near) / bays
    for bay in range(bays):
        start = near + bay * wide
        c.wall((x, start), (x, start + wide), 0, top, paint, "building")
        for step in range(1, int(top / 0.7) if brick else floors if near < 30 else 0):
            y = step * (0.7 if brick else 3)
            c.wall((x, start), (x, start + wide), y, y + 0.16, _tint(paint, 0.78), "building")
        for floor in range(floors):
            low, high, gap = (0.2, 2.5, 0.1) if floor == 0 and rng.random() < 0.5 else (0.9, 2.3, 0.24)
            low, high, left, right = low + 3 * floor, high + 3 * floor, start + gap * wide, start + wide - gap * wide
            glow = _tint(indoors, rng.uniform(0.6, 1.2)) if rng.random() < lit else (0, 0, 0)
            if near < 30:
                c.wall((x, left - 0.15), (x, right + 0.15), low - 0.15, high + 0.15, frame, "building")
            c.wall((x, left), (x, right), low, high, glass, "building", glow)
    c.wall((x, near), (x + deep, near), 0, top, _tint(paint, 0.85), "building")


def _bush(c, rng, x, y, z, rx, ry):
    """Foliage around (x, y, z): clumps, brighter at the top, and leaves if it is near."""
    green = _pick(rng, _GREENS, 10)
    spots = rng.uniform(-0.65, 0.65, (20 if z < 25 else 6, 2))
    for index, (dx, dy) in enumerate(spots.tolist()):
        size = 0.58 if index < 6 else 0.15
        c.blob(x + dx * rx, y + dy * ry, z, size * rx, size * ry, _tint(green, 0.85 + 0.4 * dy), "vegetation")


def _tree(c, rng, x, z):
    tall = rng.uniform(3.2, 5)
    c.box(x - 0.18, x + 0.18, 0, tall, z, (96, 72, 54), "vegetation")
    _bush(c, rng, x, tall, z, rng.uniform(1.3, 2.4), rng.uniform(1.3, 2.2))


def _garden(c, rng, side, edge, near, far):
    """An open plot: lawn, bushes and trees, mostly behind a fence."""
    x = side * (edge + 0.3)
    c.flat(x, 12 * x, near, far, _pick(rng, _GREENS), "vegetation")
    for z in np.arange(far - 1, max(near, 2.5), -3.5).tolist():
        if rng.random() < 0.5:
            _tree(c, rng, x + side * rng.uniform(2, 6), z)
        else:
            high = rng.uniform(1.0, 1.7)
            _bush(c, rng, x + side * rng.uniform(1.8, 3), 1.15 * high, z, 1.9, high)
    if rng.random() < 0.75:
        paint, top = _pick(rng, _FENCES), rng.uniform(1.1, 1.9)
        for z in np.arange(far, near, -0.8).tolist():
            c.wall((x, z), (x, max(z - 0.8, near)), 0, top, paint, "fence")
            c.wall((x, z), (x, max(z - 0.25, near)), 0, top, _tint(paint, 0.6), "fence")


def _post(c, rng, x, z, top):
    wide = c.thick(0.18, z) / 2
    c.box(x - wide, x + wide, 0, top, z, _pick(rng, _METAL), "pole")


def _lamp(c, rng, x, z, light):
    top, arm = rng.uniform(5, 6.5), x - math.copysign(1.6, x)
    _post(c, rng, x, z, top)
    c.box(x, arm, top - c.thick(0.18, z), top, z, _METAL[0], "pole")
    c.blob(arm, top - 0.1, z, 0.45, 0.22, _PALE, "pole", light)
    c.lamps.append((arm, top - 0.3, z, _tint(light, rng.uniform(0.026, 0.045))))


def _signal(c, rng, x, z):
    y, on = rng.uniform(2.3, 3.2), rng.integers(3)
    _post(c, rng, x, z, y)
    c.box(x - 0.46, x + 0.46, y, y + 1.9, z, _PALE, "traffic light")
    c.box(x - 0.36, x + 0.36, y + 0.1, y + 1.8, z, _pick(rng, [(52, 58, 54), (200, 170, 50)], 8), "traffic light")
    for index, colour in enumerate(_SIGNALS):
        look = (colour, "traffic light", colour) if index == on else (_DARK, "traffic light")
        c.blob(x, y + 0.4 + 0.55 * index, z, 0.24, 0.24, *look)


def _sign(c, rng, x, z):
    y, radius, looks = rng.uniform(2.3, 3), rng.uniform(0.55, 0.75), _SIGNS[rng.integers(len(_SIGNS))]
    _post(c, rng, x, z, y)
    corners = (3, 4, 8, 20)[rng.integers(4)]
    for size, paint in zip((radius, 0.7 * radius), looks, strict=True):
        c.put([(x + a, y + b, z) for a, b in _ring(corners, size)], paint, "traffic sign")
    c.box(x - radius / 2, x + radius / 2, y - 0.1, y + 0.08, z, _DARK if looks[1] == _PALE else _PALE, "traffic sign")


def _person(c, rng, x, z):
    tall, step, wide = rng.uniform(1.35, 1.95), rng.uniform(0.08, 0.28), c.thick(0.5, z) / 2
    coat, trousers, hip, neck = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES), 0.48 * tall, 0.84 * tall
    for foot in (x - step, x + step):
        c.put([(x - 0.12, hip, z), (x + 0.12, hip, z), (foot + 0.12, 0, z), (foot - 0.12, 0, z)], trousers, "person")
    c.box(x - wide, x + wide, hip - 0.1, neck, z, coat, "person")
    for arm in (x - wide, x + wide):
        c.box(arm - 0.07, arm + 0.07, hip, neck - 0.04, z, _tint(coat, 0.75), "person")
    c.blob(x, 0.92 * tall, z, 0.17, 0.18, _pick(rng, [(50, 40, 34), (150, 116, 70)]), "person")
    c.blob(x, 0.9 * tall, z, 0.13, 0.14, _pick(rng, _SKIN, 6), "person")


def _car(c, rng, x, z, oncoming, driving):
    """A car with its nearer end at z: first its visible side, then that end. A driving car has its lights on."""
    paint, glass, long = _pick(rng, _CARS), _pick(rng, _GLASS[:2]), rng.uniform(3.4, 4.6)
    side, belt, roof = x - math.copysign(0.9, x - c.eye), 0.95, (1.5, 1.6, 2.1)[rng.integers(3)]
    dark, wheel = _tint(paint, 0.8), _ring(8, 0.36)
    # without the shadow under it, a car would float
    c.flat(x - 1.05, x + 1.05, z - 0.3, z + long, (36, 36, 40), "road")
    for outline, look in (
        ([(0, 0.3), (1, 0.3), (1, 0.85), (0, belt)], dark),
        ([(0.02, belt), (0.75, belt), (0.6, roof), (0.06, roof)], dark),
        ([(0.08, belt), (0.66, belt), (0.56, roof - 0.1), (0.11, roof - 0.1)], glass),
        ([(0.2 + a / long, 0.36 + b) for a, b in wheel], _DARK),
        ([(0.8 + a / long, 0.36 + b) for a, b in wheel], _DARK),
    ):
        c.put([(side, y, z + part * long) for part, y in outline], look, "car")
    for tyre in (x - 0.72, x + 0.72):
        c.box(tyre - 0.14, tyre + 0.14, 0, 0.4, z, _DARK, "car")
    c.box(x - 0.9, x + 0.9, 0.3, belt, z, paint, "car")
    for low, high, wide, look in ((belt, roof, 0.7, paint), (belt + 0.06, roof - 0.12, 0.62, glass)):
        ends = [(-wide - 0.1, low), (wide + 0.1, low), (wide, high), (-wide, high)]
        c.put([(x + end, y, z) for end, y in ends], look, "car")
    c.box(x - 0.9, x + 0.9, 0.3, 0.46, z, _tint(paint, 0.6), "car")
    c.box(x - 0.28, x + 0.28, 0.48, 0.64, z, _PALE, "car")
    colour, glow = (_PALE, (255, 250, 232)) if oncoming else ((190, 24, 26), (235, 36, 26))
    for lamp in (x - 0.68, x + 0.68):
        c.box(lamp - 0.2, lamp + 0.2, 0.64, 0.88, z, colour, "car", glow if driving else (0, 0, 0))
    if driving:
        c.lamps.append((x, 0.9, z - 2, _tint(glow, 0.010 if oncoming else 0.004)))


def _ground(c, rng, half):
    """Pavement with slabs, a road of half width `half`, kerbs, lane markings, sometimes a zebra crossing."""
    near, far, paving, grey = 0.8, 400, _pick(rng, _PAVING, 10), rng.uniform(78, 112)
    c.flat(-900, 900, near, far, paving, "sidewalk")
    for z in np.arange(2, 25, 1.5).tolist():
        c.flat(-60, 60, z, z + 0.12, _tint(paving, 0.88), "sidewalk")
    c.flat(-half - 0.3, half + 0.3, near, far, _tint(paving, 1.18), "sidewalk")
    c.flat(-half, half, near, far, _pick(rng, [(grey, grey, grey)], 6), "road")
    line, dash = _tint(_PALE, rng.uniform(0.8, 1)), (3, 5, 200)[rng.integers(3)]
    for z in np.arange(rng.uniform(1, 3), 90, 2 * dash).tolist():
        c.flat(-0.11, 0.11, z, z + dash, line, "road")
    for x in (0.3 - half, half - 0.3):
        if rng.random() < 0.5:
            c.flat(x - 0.08, x + 0.08, near, far, line, "road")
    if rng.random() < 0.35:
        z = rng.uniform(6, 16)
        for x in np.arange(-half + 0.4, half - 0.6, 1.1).tolist():
            c.flat(x, x + 0.55, z, z + 3, line, "road")


def _skyline(c, rng):
    z = 150
    x, end = (c.eye + (column - c.centre) * z / c.focal for column in (-30, c.width))
    while x < end:
        wide, top = rng.uniform(10, 30), rng.uniform(6, 34)
        c.box(x, x + wide, 0, top, z, _pick(rng, [(150, 150, 156), (166, 146, 132)], 20), "building")
        for _ in range(2):
            window, floor = x + rng.uniform(1, wide - 3), rng.uniform(2, top - 3)
            c.box(window, window + 2, floor, floor + 2, z, (100, 104, 110), "building", _pick(rng, _INDOORS))
        if rng.random() < 0.3:
            _bush(c, rng, x, 2, z, wide / 2, rng.uniform(6, 12))
        x += 0.9 * wide


def _things(rng, half, walk):
    """Lamps, signals, signs, trees, people and cars, each as (z, function that paints it)."""
    light, crossing = _STREET_LAMPS[rng.choice(3, p=[0.5, 0.3, 0.2])], rng.uniform(-half, half)
    if rng.random() < 0.3:
        yield rng.uniform(5.5, 15), partial(_person, x=crossing)
    for side in (-1, 1):
        kerb, turn = side * (half + 0.7), rng.integers(3)
        for slot, z in enumerate(np.arange(rng.uniform(5, 8), 60, 5).tolist()):
            kind = (_signal, _signal, _sign, _sign, _tree, None)[rng.integers(6)]
            if slot % 3 == turn:
                yield z, partial(_lamp, x=kerb, light=light)
            elif z < 32 and kind:
                yield z + rng.uniform(-1, 1), partial(kind, x=kerb)
        for z in rng.uniform(4.5, 22, rng.integers(1, 5)).tolist():
            yield z, partial(_person, x=side * (half + rng.uniform(1.2, walk)))
        parking = half > 4.8 and rng.random() < 0.7
        for lane, driving in ((half / 2 - 0.4 * parking, True), (half - 1, False)):
            for z in np.arange(rng.uniform(6, 12), 50, 8 if parking else 12).tolist():
                if rng.random() < 0.6 and (driving or parking):
                    x = side * lane + rng.uniform(-0.15, 0.15)
                    yield z + rng.uniform(-1, 1), partial(_car, x=x, oncoming=side < 0, driving=driving)


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> _Layout:
    half, walk, green = rng.uniform(3.6, 6.5), rng.uniform(2.4, 4.5), rng.uniform(0.2, 0.6)
    c = _Canvas(rng, size, half / 2)
    _ground(c, rng, half)
    _skyline(c, rng)
    for side in (-1, 1):
        ends = np.cumsum([1, *rng.uniform(8, 16, 5)]).tolist()
        for near, far in zip(ends[-2::-1], ends[:0:-1], strict=True):
            (_garden if rng.random() < green else _building)(c, rng, side, half + walk, near, far)
    for z, thing in sorted(_things(rng, half, walk), key=lambda pair: -pair[0]):
        thing(c, rng, z=z)
    if rng.random() < 0.4:
        c.blob(c.eye, c.up - rng.uniform(1.2, 1.4), 2, rng.uniform(1.4, 2), 0.6, _pick(rng, _CARS), "ignore")
    return c.layout(rng)


def _day(layout: _Layout, rng) -> np.ndarray:
    """The layout by day as uint8 RGB: sun or clouds, the shadow of one side's houses, haze."""
    sun, shade, zenith, rim, clear = _WEATHER[rng.choice(3, p=[0.5, 0.3, 0.2])]
    sun, shade, rim = np.array([sun, shade, rim], np.float32) * rng.uniform(1.0, 1.12)
    x, y, z = layout.place
    # a house shades what is below the plane that falls from its eaves across the street
    eaves = rng.uniform(5, 13, 64).astype(np.float32)[np.minimum(z / 9, 63).astype(int)]
    side, slope = (-1, 1)[rng.integers(2)], rng.uniform(0.5, 1.3)
    sunny = clear * np.clip(1 + 2 * (y - eaves + slope * (8 - side * x)), 0, 1)[..., None]
    lit = layout.albedo * (shade + (sun - shade) * sunny)
    lit += (layout.cover * rim - lit) * (1 - np.exp(-z / rng.uniform(250, 700)))[..., None]
    clouds = 0.1 * np.maximum(_clouds(rng, z.shape, 0.15), 0)
    return _expose(lit + (1 - layout.cover) * (_sky(len(z), zenith, rim) + clouds), rng, 0.01)


def _night(layout: _Layout, rng) -> np.ndarray:
    """The layout by night as uint8 RGB: faint light from the sky, street lamps, headlights, glare, noise."""
    x, y, z = layout.place
    reach = []
    for lamp_x, lamp_y, lamp_z, _ in layout.lamps:
        drop = np.maximum(lamp_y + 0.2 - y, 0)
        square = (x - lamp_x) ** 2 + drop**2 + (z - lamp_z) ** 2 + 0.5
        reach.append(drop / (square * np.sqrt(square)))
    light = np.stack(reach, -1) @ np.array([strength for *_, strength in layout.lamps], np.float32)
    light += np.array([0.15, 0.17, 0.23], np.float32) * rng.uniform(0.85, 1.2)
    # low beams: a cone along the lane that ends below eye level
    beam = np.exp(-(((x - layout.eye) / (1.4 + 0.2 * z)) ** 2) - np.maximum(y - 0.4, 0) ** 2) / (1 + (z / 16) ** 2)
    beam *= rng.uniform(0.18, 0.36) * (1 - np.exp(-z / 4))
    # signs reflect the headlights
    beam = np.where(layout.label == _ID["traffic sign"], 0.45 / (1 + (z / 30) ** 2), beam)
    lit = layout.albedo * (light + beam[..., None] * np.array([1, 0.96, 0.86], np.float32))
    rim = np.array([0.06, 0.06, 0.085]) * rng.uniform(0.6, 1.2)
    lit += (1 - layout.cover) * _sky(len(z), (0.02, 0.03, 0.07), rim)
    bright = _bytes(2.5 * (layout.glow - 0.6))
    glare = 0.3 * _blur(bright, 0.015 * len(z)) + rng.uniform(0.3, 0.6) * _blur(bright, 0.06 * len(z))
    return _blur(_expose(lit + layout.glow + glare.astype(np.float32) / 255, rng, 0.02), 0.5)


def _sky(height, zenith, rim):
    """The clear sky H×1×3, from overhead to the horizon about halfway down."""
    ramp = np.linspace(0, 2, height, dtype=np.float32).clip(0, 1)[:, None, None]
    return ((1 - ramp) * zenith + ramp * rim).astype(np.float32)


def _expose(image, rng, noise):
    cast = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    return _bytes(image * cast + noise * rng.standard_normal(image.shape, np.float32))


def scene(seed: int, night: bool, size: tuple[int, int] = (96, 192)) -> tuple[np.ndarray, np.ndarray]:
    """A street by day or by night: (image, label) for size = (height, width) in pixels, at least 32×64.

    image: uint8 H×W×3, RGB in 0..255; label: uint8 H×W, the index in `CLASSES`, or 255 on the own car's bonnet.
    The same arguments give the same arrays. A seed (at least 0) gives one scene by day and another by night.
    """
    rng = np.random.default_rng([seed, int(night)])
    layout = _draw(rng, size)
    return (_night if night else _day)(layout, rng), layout.label


def write(root: Path, seed: int, night: bool, train: int, val: int, size=(96, 192), extra: int = 0) -> None:
    """Write drawn scenes in the `folder` layout: root/{images,labels}/{train,val}/00000.png… and root/classes.json.

    train, val: numbers of scenes; extra: a number of further scenes without labels, in images/train_extra; size:
    (height, width) in pixels. Each split, seed and time of day has its own scenes. A larger number adds scenes to a
    split and keeps the others. Each file is written whole or not at all.
    """
    # even numbers train and odd numbers validate, so that neither count changes the other's scenes
    for split, first, count in (("train", 0, train), ("val", 1, val), ("train_extra", 2 * train, extra)):
        for number in range(first, first + 2 * count, 2):
            image, label = scene(1_000_000 * seed + number, night, size)
            pictures = {"images": image} if split == "train_extra" else {"images": image, "labels": label}
            for kind, picture in pictures.items():
                path = Path(root) / kind / split / f"{number // 2:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                replace(path, partial(Image.fromarray(picture).save, format="PNG"))
    write_json(Path(root) / "classes.json", [{"name": name, "color": list(color)} for name, color in CLASSES])
