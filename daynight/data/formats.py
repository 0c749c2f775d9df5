"""The image files that are read: their formats and suffixes."""

from pathlib import Path

from PIL import Image

FORMATS = {"PNG": {".png"}, "JPEG": {".jpg", ".jpeg"}, "BMP": {".bmp"}, "WEBP": {".webp"}, "TIFF": {".tif", ".tiff"}}
IMAGE_SUFFIXES = set().union(*FORMATS.values())


def open_image(path: Path) -> Image.Image:
    """Open an image that has one of these formats by its content, whatever its suffix. JPEG includes phones' MPO.

    `Image.open` alone tries every format that Pillow knows, and starts Ghostscript for an EPS file.
    """
    return Image.open(path, formats=tuple(FORMATS))
