"""Images through a network: read, resized, batched; labels or translations at the images' own size."""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from daynight.data.sampling import Images
from daynight.data.transforms import resize_image, target_size, to_image, to_tensor
from daynight.errors import InputError
from daynight.weights import replace, write_json


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
    numbers, tensors, originals = [], [], []
    for i, tensor, original in DataLoader(_Reader(images, size), batch_size=None, num_workers=workers):
        if tensors and (len(tensors) == batch_size or tensors[0].shape != tensor.shape):
            yield numbers, torch.stack(tensors), originals
            numbers, tensors, originals = [], [], []
        numbers.append(i), tensors.append(tensor), originals.append(original)
    if tensors:
        yield numbers, torch.stack(tensors), originals


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
    pending = deque()
    try:
        for i, image in DataLoader(_Numbered(images), batch_size=None, num_workers=workers):
            pending.append((i, image, pool.submit(work, image)))
            if len(pending) > at_once:
                i, image, future = pending.popleft()
                yield i, image, *future.result()
        for i, image, future in pending:
            yield i, image, *future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.inference_mode()
def translate(generator, images: Images, size: str, batch_size: int, accelerator, workers: int = 0, keep_size=True):
    """Translate images: yields each one's number, the image, and its translation, of the image's own size or, without
    `keep_size`, of `size`."""
    for numbers, batch, originals in read_batches(images, size, batch_size, workers):
        with accelerator.autocast():
            results = generator(batch.to(accelerator.device)).float()
        for i, original, result in zip(numbers, originals, results, strict=True):
            result = to_image(result)
            yield i, original, resize_image(result, original.height, original.width) if keep_size else result


class Writer:
    """Writes images in the background, each whole or not at all; at most `pending` wait, so memory stays bounded."""

    def __init__(self, threads: int = 4, pending: int = 16):
        self.pool, self.pending, self.futures = ThreadPoolExecutor(threads), pending, []

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
        self.futures.append(self.pool.submit(save_image, image, path))


def save_image(image: Image.Image, path: Path) -> None:
    """In the format of the path's suffix; JPEG at quality 95, PNG at compression level 1 (a tenth larger, twice as
    fast)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Image.registered_extensions()[path.suffix.lower()]
    settings = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {"compress_level": 1}}.get(kind, {})
    replace(path, lambda temporary: image.save(temporary, kind, **settings))


def is_whole(path: Path) -> bool:
    """Whether an image is there and can be decoded to its last pixel."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def check_apart(root: Path, out: Path) -> None:
    """Raises `InputError` where what is written would be read again."""
    root, here = root.resolve(), out.resolve()
    if here == root:
        raise InputError(f"--out {out}: is --in; give another folder")
    if root in here.parents or here in root.parents:
        raise InputError(f"--out {out}: lies inside --in, or --in in it; give a folder beside it")


def claim(folder: Path, name: str, record: dict) -> None:
    """Say in `folder/name` what made the folder. Raises `InputError` where it says that something else did: results
    of two models never mix."""
    path = folder / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: a file stands there; wanted: a folder")
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, value in record.items():
            if before.get(key) != value:
                raise InputError(
                    f"--out {folder}: was made with {key} {before.get(key)}, not {value}; give another folder"
                )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--out {folder}: not empty, and not made by this command; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}") from error
