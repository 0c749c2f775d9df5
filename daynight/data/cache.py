"""Keeps images and labels for trainings, so that each is decoded and resized only once."""

import errno
import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from daynight.data.formats import open_image
from daynight.data.transforms import target_size
from daynight.system.console import say, warn
from daynight.system.files import replace

HEAD = 12  # bytes before each array: checksum, height, width
LIMIT = 16e9  # bytes that a training's cache may take
JPEG_SHARE = 0.2  # JPEG at quality 95 takes at most this share of the bytes (an estimate)


class Cache:
    """Keeps what trainings read in `folder`. It takes at most `limit` bytes, and only what is free on the disk.

    Sets are kept in the order of `add`. Each goes into one file if it fits. If not, images go into JPEG files (quality
    95); the rest is read again every time. Which of these happens is printed. Without a folder nothing is kept, and
    `planned` adds up the bytes that would be.
    """

    def __init__(self, folder: Path | None, limit: float):
        self.folder, self.left, self.planned = folder, limit, 0.0

    def add(self, name: str, paths: Sequence[Path], size: str, channels: int, salt: str = ""):
        """Make room for the images (3 channels) or labels (1) in `paths`, resized to `size`. `salt` is what else their
        content depends on. Returns `OneFile`, `Jpegs` or None."""
        if not self.left or not paths:
            return None
        found = [look(path, size) for path in paths]
        lengths = [pixels * channels for pixels, _ in found]
        keys = [digest(f"{state}\0{salt}") for _, state in found]
        total, room = sum(lengths) + HEAD * len(lengths), self.left
        try:
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                disk, file = os.statvfs(self.folder), self.folder / f"{digest(' '.join(keys))}.u8"
                there = file.stat().st_blocks * 512 if file.is_file() else 0
                room = min(room, disk.f_bavail * disk.f_frsize + there)
            taken = JPEG_SHARE * total if total > room and channels == 3 else total
            fits, megabytes = taken <= room, math.ceil(taken / 1e6)
            self.left, self.planned = self.left - taken * fits, self.planned + taken * fits
            if not self.folder:
                return None
            if fits and taken == total:
                say(f"cache of {name}: {megabytes:,} MB at most, in {self.folder}")
                return OneFile(file, lengths, channels)
            if fits:
                say(f"cache of {name}: about {megabytes:,} MB of JPEGs in {self.folder}")
                return Jpegs(self.folder, keys)
            say(f"cache of {name}: none, {megabytes:,} MB do not fit; its files are read every time")
        except OSError as error:
            warn(f"--cache {self.folder}: {error.strerror}; {name} is read from its files every time")
        return None

    def array(self, paths: Sequence[Path], salt: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make()` finds in the files of `paths`, kept until one of them or `salt` changes."""
        if not self.folder or not self.left:
            return make()
        file = self.folder / f"{digest(' '.join(look(path, 'native')[1] for path in paths) + salt)}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there; damaged
            return np.load(file)
        array, content = make(), io.BytesIO()
        np.save(content, array)
        with suppress(OSError):
            replace(file, lambda temporary: temporary.write_bytes(content.getvalue()))
        return array


def open_cache(options, folder: Path) -> Cache:
    """The cache of a training in `folder`, as its options say; that of a dry run writes nothing."""
    place = None if options.dry_run else Path(options.cache or folder / "cache")
    return Cache(place, 0 if options.cache == "off" else LIMIT)


def places(options) -> dict[str, str | None]:
    """The options of a training that name a folder to write, with the folder."""
    return {"--out": options.out, "--cache": None if options.cache == "off" else options.cache}


def look(path: Path, size: str) -> tuple[int, str]:
    """The pixels of an image after resizing, 0 if it is none; and a text that changes with its path, length or time.

    EXIF rotation is ignored here: it swaps height and width, and only their product is used.
    """
    pixels, state = 0, None
    # Pillow raises exceptions of any kind for damaged files; reading the image will report it
    with suppress(Exception):
        stat = os.stat(path)
        state = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        with open_image(path) as image:
            pixels = math.prod(target_size(image.height, image.width, size))
    return pixels, f"{os.path.abspath(path)}\0{state}\0{size}"


def digest(text: str) -> str:
    """16 hex digits."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


class OneFile:
    """Arrays in one file. `one_file(i, make)` returns number i, H×W or H×W×channels of uint8; if the file does not hold
    it yet, `make()` makes it and it is kept.

    Any process may write it. A checksum over shape and content says whether an array is there, so neither a killed
    process nor two that write the same array at once can leave a wrong one. It is read, not mapped: where a mapped file
    is cut short, a signal kills the process.
    """

    def __init__(self, file: Path, lengths: Sequence[int], channels: int):
        self.file, self.lengths, self.channels = file, lengths, channels
        self.starts = np.cumsum([0, *(HEAD + length for length in lengths)])
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self.descriptor, max(1, int(self.starts[-1])))  # sparse: it grows as arrays are written
        self.known = np.zeros(len(lengths), bool)

    def __call__(self, i: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        start, length, array = int(self.starts[i]), self.lengths[i], None
        slot, kept = np.empty(HEAD + length, np.uint8), np.zeros_like(self.known)
        try:
            if length and os.preadv(self.descriptor, [slot], start) < len(slot):
                raise OSError(errno.EIO, "it was cut short")
            checksum, height, width = (int.from_bytes(slot[k : k + 4], "little") for k in (0, 4, 8))
            if length and height * width * self.channels == length:
                if self.known[i] or zlib.crc32(slot[4:]) == checksum:
                    self.known[i] = True
                    return slot[HEAD:].reshape((height, width, self.channels)[: 3 if self.channels > 1 else 2])
            array, kept = make(), self.known
            if length and array.size == length:
                content = b"".join(n.to_bytes(4, "little") for n in array.shape[:2]) + array.tobytes()
                os.pwrite(self.descriptor, content, start + 4)
                os.pwrite(self.descriptor, zlib.crc32(content).to_bytes(4, "little"), start)
        except OSError as error:
            warn(f"{self.file}: {error.strerror}; what it does not hold is read every time")
            self.lengths = [n if there else 0 for n, there in zip(self.lengths, kept, strict=True)]
        return make() if array is None else array


class Jpegs:
    """Images in a JPEG file each, used like `OneFile`. JPEG loses a little; the first read loses it too."""

    def __init__(self, folder: Path, keys: Sequence[str]):
        self.files = [folder / f"{key}.jpg" for key in keys]

    def __call__(self, i: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        with suppress(OSError, RuntimeError):  # not there; damaged
            return decoded(self.files[i].read_bytes())
        content = io.BytesIO()
        Image.fromarray(make()).save(content, "JPEG", quality=95, subsampling=0)
        try:
            replace(self.files[i], lambda temporary: temporary.write_bytes(content.getvalue()))
        except OSError as error:
            warn(f"{self.files[i]}: {error.strerror}")
        return decoded(content.getvalue())


def decoded(content: bytes) -> np.ndarray:
    """A JPEG file → H×W×3; as Pillow decodes it, bit for bit, in 0.7 times the time."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
