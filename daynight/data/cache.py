"""Images and labels as trainings read them, kept after the first time: decoded and resized once."""

import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from daynight.data.transforms import target_size
from daynight.system.console import say, warn
from daynight.system.files import replace

HEAD = 12  # bytes before each array: checksum, height, width
JPEG_SHARE = 0.2  # what JPEG at quality 95 leaves of the bytes, at most, by experience


class Cache:
    """Where trainings keep what they have read, in `folder`: at most `limit` bytes, and what is left free on the disk.
    Without a folder it only adds up, in `planned`, what it would take.

    Sets are added in the order of `add`; each goes into one mapped file where that fits, images else into JPEG files
    (quality 95), else it is read anew every time; which of them is said.
    """

    def __init__(self, folder: Path | None, limit: float):
        self.folder, self.left, self.planned = folder, limit, 0.0

    def add(self, name: str, paths: Sequence[Path], size: str, channels: int, salt: str = ""):
        """For the images (3 channels) or labels (1) in `paths`, resized to `size`; `salt`: what else they hang on.

        Returns `Mapped`, `Jpegs` or None.
        """
        if not self.left or not paths:
            return None
        shapes = [shape_of(path, size) for path in paths]
        lengths = [height * width * channels for height, width in shapes]
        keys = [key(path, size, salt) for path in paths]
        whole = sum(lengths) + HEAD * len(lengths)
        if self.folder is None:
            self.planned += whole if self.planned + whole <= self.left else JPEG_SHARE * whole * (channels == 3)
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = os.statvfs(self.folder)
            file = self.folder / f"{hashlib.blake2b(' '.join(keys).encode(), digest_size=8).hexdigest()}.u8"
            there = file.stat().st_blocks * 512 if file.is_file() else 0
            room = min(self.left, disk.f_bavail * disk.f_frsize + there)
            if whole <= room:
                self.left -= whole
                say(f"cache of {name}: {math.ceil(whole / 1e6):,} MB at most, mapped, in {self.folder}")
                return Mapped(file, lengths, channels)
            if channels == 3 and JPEG_SHARE * whole <= room:
                self.left -= JPEG_SHARE * whole
                say(f"cache of {name}: about {math.ceil(JPEG_SHARE * whole / 1e6):,} MB of JPEGs in {self.folder}")
                return Jpegs(self.folder, keys)
        except OSError as error:
            warn(f"--cache {self.folder}: {error.strerror}; {name} is read anew every time")
            return None
        say(f"cache of {name}: none, {math.ceil(whole / 1e6):,} MB do not fit; read anew every time")
        return None


def open_cache(options, folder: Path) -> Cache:
    """The cache of a training in `folder`, as its options say; that of a dry run writes nothing."""
    place = None if options.dry_run else Path(options.cache or folder / "cache")
    return Cache(place, 0 if options.cache == "off" else 1e9 * options.cache_limit)


def shape_of(path: Path, size: str) -> tuple[int, int]:
    """Height and width once resized, but for a turn by EXIF, which changes no product; (0, 0) for what is no image."""
    try:
        with Image.open(path) as image:
            return target_size(image.height, image.width, size)
    # Pillow answers damaged files with exceptions of any kind; whoever draws it says so
    except Exception:
        return 0, 0


def key(path: Path, size: str, salt: str) -> str:
    """16 hex digits of a file's place, length and time, and of what is made of it."""
    try:
        state = os.stat(path)
        state = state.st_size, state.st_mtime_ns
    except OSError:
        state = None
    text = f"{os.path.abspath(path)}\0{state}\0{size}\0{salt}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


class Mapped:
    """`mapped(i, make)`: the array of number i, H×W or H×W×channels of uint8, from a file that is mapped into memory;
    `make()`, and kept, where it is not there.

    Written by whichever process needs it first. A checksum over shape and content decides whether it is there: neither
    a kill amid writing nor two that write the same at once can leave a wrong one.
    """

    def __init__(self, file: Path, lengths: Sequence[int], channels: int):
        self.file, self.lengths, self.channels = file, lengths, channels
        self.starts = np.cumsum([0, *(HEAD + length for length in lengths)])
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self.descriptor, max(1, int(self.starts[-1])))  # sparse: grows as it fills
        self.map = np.memmap(file, np.uint8, "r+")  # what torch takes without a word; nobody writes to it
        self.known = np.zeros(len(lengths), bool)

    def __call__(self, i: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        start, length = int(self.starts[i]), self.lengths[i]
        slot = self.map[start : start + HEAD + length]
        checksum, height, width = (int.from_bytes(slot[k : k + 4], "little") for k in (0, 4, 8))
        if length and height * width * self.channels == length:
            if self.known[i] or zlib.crc32(slot[4:]) == checksum:
                self.known[i] = True
                return self._shaped(slot[HEAD:], height, width)
        array = make()
        if length and array.size == length:
            content = b"".join(n.to_bytes(4, "little") for n in array.shape[:2]) + array.tobytes()
            try:
                # not through the map: a full disk is then an error and no signal that kills
                os.pwrite(self.descriptor, content, start + 4)
                os.pwrite(self.descriptor, zlib.crc32(content).to_bytes(4, "little"), start)
            except OSError as error:
                warn(f"{self.file}: {error.strerror}; what is not there is read anew every time")
                self.lengths = [0 if not known else n for n, known in zip(self.lengths, self.known, strict=True)]
        return array

    def _shaped(self, content: np.ndarray, height: int, width: int) -> np.ndarray:
        return content.reshape(height, width, self.channels) if self.channels > 1 else content.reshape(height, width)


class Jpegs:
    """The same, each image in a JPEG file: a little is lost, and what comes back is always what was kept."""

    def __init__(self, folder: Path, keys: Sequence[str]):
        self.files = [folder / f"{key}.jpg" for key in keys]

    def __call__(self, i: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return decoded(self.files[i].read_bytes())
        # not there, or whatever is made of a damaged file
        except (OSError, RuntimeError):
            content = io.BytesIO()
            Image.fromarray(make()).save(content, "JPEG", quality=95, subsampling=0)
        try:
            replace(self.files[i], lambda temporary: temporary.write_bytes(content.getvalue()))
        except OSError as error:
            warn(f"{self.files[i]}: {error.strerror}")
        return decoded(content.getvalue())


def decoded(content: bytes) -> np.ndarray:
    """A JPEG file → H×W×3; as Pillow, bit for bit, in 0.7 times the time."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
