"""Images and labels as they are read from disk and written to it."""

import errno
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from daynight.data.cache import Cache
from daynight.data.formats import FORMATS, open_image
from daynight.data.labels import read_label
from daynight.data.sets import ImageSet
from daynight.data.transforms import resize_image, resize_label, scaled, target_size
from daynight.system.errors import RunError, Unreadable
from daynight.system.files import replace

# of damaged metadata, and of sizes that a camera may well have: whatever cannot be read raises an error besides
warnings.filterwarnings("ignore", module=r"PIL\.")


class Images:
    """The images of some paths: `images[i]` is an RGB image, upright as its EXIF says.

    Raises `Unreadable` naming a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> Image.Image:
        path = self.paths[i]
        try:
            with open_image(path) as image:
                return upright(image)
        # Pillow answers damaged files with exceptions of any kind
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = f"none of {', '.join(FORMATS)}" if path.stat().st_size else "the file is empty"
            raise Unreadable(f"{path}: not a readable image ({reason})") from error


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; RGB of any mode: of 16-bit grey 65535 becomes 255, alpha is dropped.

    Raises `ValueError` where it is not known which value is white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("of floating-point values; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("of 32 bits a pixel; expected 8 or 16")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    return image.convert("RGB")


class Photographs:
    """Images at `size`, as tensors: what trainings draw from."""

    def __init__(self, paths: Sequence[Path], size: str):
        self.images, self.size, self.kept = Images(paths), size, None
        self.file_sizes = {}  # height and width of the files that were read

    def __len__(self):
        return len(self.images)

    def keep_in(self, cache: Cache, name: str) -> None:
        """Have each file decoded and resized once; the cache says what it keeps of them."""
        self.kept = cache.add(name, self.images.paths, self.size, 3)

    def levels(self, i: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """3×H×W of 0 to 255 (uint8), of `shape` where it is given, else as `size` says."""

        def make() -> np.ndarray:
            image = self.images[i]
            self.file_sizes[i] = image.height, image.width
            return np.array(resize_image(image, *(shape or target_size(image.height, image.width, self.size))))

        array = self.kept(i, make) if self.kept else make()
        if shape and array.shape[:2] != tuple(shape):
            array = make()  # it is kept at another size
        return torch.from_numpy(array).permute(2, 0, 1)

    def image(self, i: int) -> torch.Tensor:
        """3×H×W in [-1, 1] (float32)."""
        return scaled(self.levels(i))


class LabelledPhotographs(Photographs):
    """The images of an `ImageSet` with their labels."""

    def __init__(self, image_set: ImageSet, size: str):
        super().__init__(image_set.images, size)
        self.image_set, self.kept_labels = image_set, None

    def keep_in(self, cache: Cache, name: str) -> None:
        super().keep_in(cache, name)
        self.kept_labels = cache.add(f"{name} labels", self.image_set.labels, self.size, 1, self.made_of)

    @property
    def made_of(self) -> str:
        """What train ids depend on beside the labels' files."""
        return f"{self.image_set.label_kind.meaning} {self.image_set.classes}"

    def counts(self, cache: Cache, skip: bool) -> torch.Tensor:
        """Pixels of each class in each label, images×classes: see `count_classes`. The cache keeps them."""
        counts = cache.array(self.image_set.labels, self.made_of, lambda: count_classes(self.image_set, skip))
        return torch.from_numpy(counts[:, : len(self.image_set.classes)])

    def label(self, i: int, height: int, width: int) -> torch.Tensor:
        """1×height×width train ids (uint8), 255 = ignore. The label's file must be as large as its image's."""

        def make() -> np.ndarray:
            if i not in self.file_sizes:
                image = self.images[i]
                self.file_sizes[i] = image.height, image.width
            path, labelled = self.image_set.labels[i], self.image_set
            labels = read_label(path, labelled.label_kind, labelled.classes, self.file_sizes[i])
            return resize_label(labels, height, width)

        array = self.kept_labels(i, make) if self.kept_labels else make()
        if array.shape != (height, width):
            array = make()
        return torch.from_numpy(np.require(array, requirements="W"))[None]


def count_classes(image_set: ImageSet, skip: bool) -> np.ndarray:
    """Pixels of each train id in each label of a set, images×256 (int64), none in one that cannot be read if `skip`."""

    def count(path: Path) -> np.ndarray:
        try:
            values = read_label(path, image_set.label_kind, image_set.classes)
        except Unreadable:  # the training says so
            if skip:
                return np.zeros(256, int)
            raise
        return np.bincount(values.ravel(), minlength=256)

    with ThreadPoolExecutor(16) as pool:
        return np.stack(list(pool.map(count, image_set.labels)))


class Writer:
    """Writes images in the background, each whole or not at all, by a thread a core (4 to 16). At most 4 a thread wait,
    so memory stays bounded.

    Raises `RunError` naming a file that cannot be written. With a list of `problems` the error goes there instead, and
    no more images are written.
    """

    def __init__(self, problems: list[RunError] | None = None):
        threads = min(16, max(4, os.cpu_count() or 1))
        self.pool, self.pending, self.futures, self.problems = ThreadPoolExecutor(threads), 4 * threads, [], problems
        self.folders = set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # `shutdown` joins threads: a signal amid that has Python 3.11 take running ones for ended, and leave them
        wait(self.futures)
        self.pool.shutdown()
        while exception[0] is None and self.futures:
            self._finish()

    def save(self, image: Image.Image, path: Path) -> None:
        if len(self.futures) >= self.pending:
            self._finish()
        self.futures.append(self.pool.submit(self._save, image, path))

    def _finish(self) -> None:
        try:
            self.futures.pop(0).result()
        except RunError as error:
            if self.problems is None:
                raise
            self.problems.append(error)

    def _save(self, image: Image.Image, path: Path) -> None:
        if self.problems:
            return
        try:
            # made once: where an output folder is lost, to write there is an error
            if path.parent not in self.folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.folders.add(path.parent)
            save_image(image, path)
        except OSError as error:
            hint = "rename its image" if error.errno == errno.ENAMETOOLONG else "the same command goes on"
            raise RunError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error


def save_image(image: Image.Image, path: Path) -> None:
    """In the format of the path's suffix; JPEG at quality 95, PNG at level 1: a tenth larger than at level 6, in less
    than half the time. WebP is lossless: lossy WebP halves the resolution of colour, and even at quality 100 it is
    worse than this JPEG (43.5 and 47.9 dB). These settings write it as fast as a PNG."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    settings = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "PNG": {"compress_level": 1},
        "WEBP": {"lossless": True, "quality": 0, "method": 0},
    }.get(kind, {})
    replace(path, lambda temporary: image.save(temporary, kind, **settings))


def is_whole(path: Path) -> bool:
    """Whether an image is there and can be decoded to its last pixel."""
    # Pillow answers damaged files with exceptions of any kind
    with suppress(Exception), open_image(path) as image:
        image.load()
        return True
    return False
