"""Tensors and label maps as pictures: grids with captions, overlays."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from daynight.data.labels import Classes, colorize
from daynight.data.transforms import to_image


def grid(rows: list[list[Image.Image]], captions: list[str], margin: int = 4) -> Image.Image:
    """Rows of images in columns with captions. A column is as wide as its widest image or its caption."""
    font, y = ImageFont.load_default(14), 24
    columns = list(zip(*rows, strict=True))
    widths = [
        max(int(font.getlength(caption)) + margin, *(image.width for image in column)) + margin
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


def tensor_grid(columns: dict[str, torch.Tensor], rows: int = 4) -> Image.Image:
    """Columns of a grid: caption → B×3×H×W in [-1, 1]. Each shows the first `rows` images of its batch."""
    count = min(rows, *(len(batch) for batch in columns.values()))
    return grid([[to_image(batch[i]) for batch in columns.values()] for i in range(count)], list(columns))


def label_image(labels: np.ndarray, classes: Classes) -> Image.Image:
    """H×W train ids in the colours of their classes."""
    return Image.fromarray(colorize(labels, classes))


def overlay(image: Image.Image, labels: np.ndarray, classes: Classes, opacity: float = 0.5) -> Image.Image:
    """The colours of H×W train ids over their image."""
    return Image.blend(image, label_image(labels, classes), opacity)
