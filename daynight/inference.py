"""Images through a network: read, resized, batched; labels or translations at the images' own size."""

import json
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


@torch.inference_mode()
def segment(model, images: Images, size: str, batch_size: int, accelerator, workers: int = 0):
    """Label images: yields each one's number, the image, and its train ids at its own size (H×W, uint8, on the device).

    The network runs at `size`; its logits are upsampled to the image before the argmax.
    """
    for numbers, batch, originals in read_batches(images, size, batch_size, workers):
        with accelerator.autocast():
            logits = model(batch.to(accelerator.device)).float()
        for i, original, scores in zip(numbers, originals, logits, strict=True):
            shape = (original.height, original.width)
            if scores.shape[1:] != shape:
                scores = F.interpolate(scores[None], shape, mode="bilinear", align_corners=False)[0]
            # max: on a CPU several times faster than argmax over channels
            yield i, original, scores.max(0).indices.to(torch.uint8)


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
