"""The image files that are read: their formats and suffixes."""

from PIL import Image

FORMATS = {
    "PNG": {".png"},
    "JPEG": {".jpg", ".jpeg", ".jfif"},
    "BMP": {".bmp"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
}
IMAGE_SUFFIXES = set().union(*FORMATS.values())


def open_image(path) -> Image.Image:
    """Open an image by its content. `Image.open` alone tries 43 formats; for EPS it starts Ghostscript."""
    return Image.open(path, formats=tuple(FORMATS))
