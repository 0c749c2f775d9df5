"""Tensors and label maps as pictures: grids with captions, overlays."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from daynight.data.labels import Classes, colorize
from daynight.data.transforms import to_image


def grid(rows: list[list[Image.Image]], captions: list[str], margin: int = 4) -> Image.Image:
    """Rows of images in columns with captions. Every cell has room for the largest image and the longest caption."""
    font, top, images = ImageFont.load_default(14), 24, [image for row in rows for image in row]
    width = margin + max([int(font.getlength(caption)) for caption in captions] + [image.width for image in images])
    height = margin + max(image.height for image in images)
    sheet = Image.new("RGB", (width * len(captions) + margin, height * len(rows) + top), "white")
    draw = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        draw.text((margin + i * width, 3), caption, "black", font)
        for j, row in enumerate(rows):
            sheet.paste(row[i], (margin + i * width, top + j * height))
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
