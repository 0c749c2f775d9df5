"""Tensors and label maps as pictures: grids with captions, overlays."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from daynight.data.labels import Classes, colorize


def grid(rows: list[list[Image.Image]], captions: list[str], margin: int = 4) -> Image.Image:
    """Rows of images in columns with captions. A column is as wide as its widest image or its caption."""
    font, y = ImageFont.load_default(14), 24
    columns = list(zip(*rows, strict=True)) or [()] * len(captions)
    widths = [
        max([int(font.getlength(caption)) + margin, *(image.width for image in column)]) + margin
        for caption, column in zip(captions, columns, strict=True)
    ]
    heights = [max(image.height for image in row) + margin for row in rows]
    sheet = Image.new("RGB", (sum(widths) + margin, sum(heights) + y), "white")
    draw, lefts = ImageDraw.Draw(sheet), [margin + sum(widths[:i]) for i in range(len(widths))]
    for x, caption in zip(lefts, captions, strict=True):
        draw.text((x, 3), caption, "black", font)
    for row, height in zip(rows, heights, strict=True):
        for x, image in zip(lefts, row, strict=True):
            sheet.paste(image, (x, y))
        y += height
    return sheet


def sheet(columns: dict[str, list], classes: Classes | None = None, width: int = 256) -> Image.Image:
    """Columns of a grid: caption → images, and H×W train ids with `classes`, of which a legend stands below. Each
    picture becomes `width` pixels wide; the shortest column tells the number of rows."""

    def picture(x: Image.Image | np.ndarray) -> Image.Image:
        photo = isinstance(x, Image.Image)
        image = x if photo else label_image(x, classes)
        size = width, max(1, round(width * image.height / image.width))
        return image.resize(size, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)

    image = grid([list(map(picture, row)) for row in zip(*columns.values(), strict=False)], list(columns))
    return below(image, classes) if classes else image


def below(image: Image.Image, classes: Classes, margin: int = 4, line: int = 22) -> Image.Image:
    """The image with a legend of the classes below it."""
    font, places, x, y = ImageFont.load_default(14), [], margin, image.height + margin
    for name in classes.names:
        width = int(font.getlength(name)) + 36
        if x > margin and x + width > image.width:
            x, y = margin, y + line
        places.append((x, y))
        x += width
    whole = Image.new("RGB", (image.width, y + line), "white")
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    for (x, y), name, color in zip(places, classes.names, classes.colors, strict=True):
        draw.rectangle((x, y, x + 14, y + 14), tuple(color), "grey")
        draw.text((x + 20, y - 1), name, "black", font)
    return whole


def label_image(labels: np.ndarray, classes: Classes) -> Image.Image:
    """H×W train ids in the colours of their classes."""
    return Image.fromarray(colorize(labels, classes))


def overlay(image: Image.Image, labels: np.ndarray, classes: Classes, opacity: float = 0.5) -> Image.Image:
    """The colours of H×W train ids over their image."""
    return Image.blend(image, label_image(labels, classes), opacity)
