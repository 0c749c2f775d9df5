"""Tensors and label maps as pictures: grids with captions, overlays."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from daynight.data.labels import Classes, colorize
from daynight.data.transforms import to_image


def grid(rows: list[list[Image.Image]], captions: list[str], margin: int = 4) -> Image.Image:
    """Rows of images, aligned in columns, with a caption over each column. A column is as wide as its caption needs."""
    font, top = ImageFont.load_default(14), 24
    needed = [int(font.getlength(caption)) + margin for caption in captions]
    widths = [max(width, *(row[i].width for row in rows)) for i, width in enumerate(needed)]
    heights = [max(image.height for image in row) for row in rows]
    size = sum(widths) + margin * (len(widths) + 1), sum(heights) + margin * len(heights) + top
    sheet = Image.new("RGB", size, "white")
    draw, x = ImageDraw.Draw(sheet), margin
    for i, (caption, width) in enumerate(zip(captions, widths, strict=True)):
        draw.text((x, 3), caption, "black", font)
        y = top
        for row, height in zip(rows, heights, strict=True):
            sheet.paste(row[i], (x, y))
            y += height + margin
        x += width + margin
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
