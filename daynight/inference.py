"""Images through a network: read, resized, batched; labels or translations at the images' own size."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from daynight.data.sampling import Images, loader
from daynight.data.transforms import resize_image, target_size, to_image, to_tensor
from daynight.errors import InputError, RunError, Unreadable
from daynight.files import Lock, is_free, read_json, replace, write_json


class _Reader(Dataset):
    def __init__(self, images: Images, size: str):
        self.images, self.size = images, size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i: int):
        image = self.images[i]
        return i, to_tensor(resize_image(image, *target_size(image.height, image.width, self.size))), image


def read_batches(images: Images, size: str, batch_size: int, workers: int) -> Iterator[tuple[list, torch.Tensor, list]]:
    """Neighbouring images that are of one size once resized: their numbers, B×3×H×W in [-1, 1], and the originals."""
    numbers, tensors, originals, failed = [], [], [], None
    try:
        for i, tensor, original in loader(_Reader(images, size), workers, batch_size=None):
            if tensors and (len(tensors) == batch_size or tensors[0].shape != tensor.shape):
                yield numbers, torch.stack(tensors), originals
                numbers, tensors, originals = [], [], []
            numbers.append(i), tensors.append(tensor), originals.append(original)
    except Unreadable as error:
        failed = error  # what was read before is not lost
    if tensors:
        yield numbers, torch.stack(tensors), originals
    if failed:
        raise failed


class _Numbered(Dataset):
    def __init__(self, images: Images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i: int):
        return i, self.images[i]


@torch.inference_mode()
def logits_of(model, image: Image.Image, size: str, accelerator, scales=(1.0,), flip=False) -> torch.Tensor:
    """C×H×W of an image at its own size, on the device; the network runs at `size`, its logits are upsampled.

    With several scales (factors of `size`) or `flip` (each again mirrored) the logarithm of the mean probability.
    """
    shape, height_width = (image.height, image.width), target_size(image.height, image.width, size)
    several = len(scales) > 1 or flip
    total = 0.0
    for scale in scales:
        resized = resize_image(image, *(max(1, round(scale * length)) for length in height_width))
        batch = to_tensor(resized)[None].to(accelerator.device)
        for mirrored in (False, True) if flip else (False,):
            with accelerator.autocast():
                logits = model(batch.flip(3) if mirrored else batch).float()
            if logits.shape[2:] != shape:
                # classes of a pixel beside each other: the same labels in two thirds of the time on a CPU
                logits = logits.contiguous(memory_format=torch.channels_last)
                logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
            logits = logits.flip(3)[0] if mirrored else logits[0]
            total = total + logits.softmax(0) if several else logits
    return (total / (len(scales) * (1 + flip))).log() if several else total


def segment(
    model, images: Images, size: str, at_once: int | None, accelerator, workers=0, scales=(1.0,), flip=False, sure=False
):
    """Label images: yields each one's number, the image, its train ids at its own size (H×W, uint8, on the device) and,
    if `sure`, how sure the model is of each (H×W, largest softmax probability, 0 to 1), else None.

    Each image is a pass of its own, on a CPU of one thread, `at_once` images beside each other (None: as many as there
    are cores, at most 8; on a GPU 2): so no result depends on how many there are.
    """
    on_cpu, threads = accelerator.device.type == "cpu", torch.get_num_threads()
    at_once = at_once or (max(1, min(8, threads)) if on_cpu else 2)

    @torch.inference_mode()
    def work(image: Image.Image):
        logits = logits_of(model, image, size, accelerator, scales, flip)
        # max: on a CPU several times faster than argmax over channels
        highest, labels = logits.max(0)
        return labels.to(torch.uint8), (highest - logits.logsumexp(0)).exp() if sure else None

    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1 if on_cpu else threads,))
    pending, failed = deque(), None
    try:
        try:
            for i, image in loader(_Numbered(images), workers, batch_size=None):
                pending.append((i, image, pool.submit(work, image)))
                if len(pending) > at_once:
                    i, image, future = pending.popleft()
                    yield i, image, *future.result()
        except Unreadable as error:
            failed = error  # what was read before is not lost
        for i, image, future in pending:
            yield i, image, *future.result()
        if failed:
            raise failed
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.inference_mode()
def translate(
    generator, images: Images, size: str, crop, batch_size: int, accelerator, workers: int = 0, keep_size=True
):
    """Translate images: yields each one's number, the image, and its translation, of the image's own size or, without
    `keep_size`, of `size`. `crop` (height, width): in tiles of the training crop's size; None: whole."""
    for numbers, batch, originals in read_batches(images, size, batch_size, workers):
        with accelerator.autocast():
            results = (
                tiled(generator, batch.to(accelerator.device), crop)
                if crop
                else generator(batch.to(accelerator.device))
            )
        for i, original, result in zip(numbers, originals, results.float(), strict=True):
            result = to_image(result)
            yield i, original, resize_image(result, original.height, original.width) if keep_size else result


def tiled(generator, images, crop: tuple[int, int]):
    """B×3×H×W in [-1, 1] → the same, translated in tiles of `crop` (height, width) that overlap by half, each weighted
    by a Hann window.

    Instance norm sees in a whole image other statistics than in the crops it was trained on, and the translation is
    another: by day's bright sky the sky of a night stays bright.
    """
    height, width = images.shape[2:]
    shape = min(crop[0], height), min(crop[1], width)
    if shape == (height, width):
        return generator(images)
    tops, lefts = (
        sorted({*range(0, whole - part + 1, max(1, part // 2)), whole - part})
        for whole, part in zip((height, width), shape, strict=True)
    )
    # above 0 at its ends, for the pixels at the border of the image
    down, across = (torch.hann_window(n + 2, periodic=False, device=images.device)[1:-1] for n in shape)
    window = down[:, None] * across
    total, weight = torch.zeros_like(images, dtype=torch.float32), torch.zeros_like(images[:1, :1], dtype=torch.float32)
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + shape[0]), slice(left, left + shape[1]))
            total[place] += window * generator(images[place]).float()
            weight[place] += window
    return total / weight


class Writer:
    """Writes images in the background, each whole or not at all; at most `pending` wait, so memory stays bounded."""

    def __init__(self, threads: int = 4, pending: int = 16):
        self.pool, self.pending, self.futures = ThreadPoolExecutor(threads), pending, []
        self.folders = set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.pool.shutdown()
        if exception[0] is None:
            for future in self.futures:
                future.result()

    def save(self, image: Image.Image, path: Path) -> None:
        if len(self.futures) >= self.pending:
            self.futures.pop(0).result()
        # made once: where an output folder is lost, to write there is an error
        if path.parent not in self.folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        self.futures.append(self.pool.submit(self._save, image, path))

    @staticmethod
    def _save(image: Image.Image, path: Path) -> None:
        try:
            save_image(image, path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); the same command goes on") from error


def save_image(image: Image.Image, path: Path) -> None:
    """In the format of the path's suffix; JPEG at quality 95, PNG at compression level 1 (a tenth larger, twice as
    fast)."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    settings = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {"compress_level": 1}}.get(kind, {})
    replace(path, lambda temporary: image.save(temporary, kind, **settings))


def is_whole(path: Path) -> bool:
    """Whether an image is there and can be decoded to its last pixel."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    # Pillow answers damaged files with exceptions of any kind
    except Exception:
        return False


def check_apart(root: Path, out: Path) -> None:
    """Raises `InputError` where what is written would be read again."""
    root, here = (Path(os.path.realpath(path)) for path in (root, out))  # resolve() raises where links go in circles
    if here == root:
        raise InputError(f"--out {out}: is --in; give another folder")
    if root in here.parents or here in root.parents:
        raise InputError(f"--out {out}: lies inside --in, or --in in it; give a folder beside it")


def claim(folder: Path, name: str, record: dict) -> Lock:
    """Say in `folder/name` what made the folder, and keep other processes out of it as long as the lock is held.

    Raises `InputError` where it says that something else did: results of two models never mix; or where another
    process works there.
    """
    path = folder / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: a file stands there; wanted: a folder")
    if path.is_file():
        before = read_json(path)
        for key, value in record.items():
            if before.get(key) != value:
                raise InputError(
                    f"--out {folder}: was made with {key} {before.get(key)}, not {value}; give another folder"
                )
    elif not is_free(folder):
        raise InputError(f"--out {folder}: not empty, and not made by this command; give another folder")
    lock = Lock(folder)
    if not path.is_file():
        try:
            write_json(path, record)
        except OSError as error:
            raise InputError(f"--out {folder}: {error.strerror}") from error
    return lock
