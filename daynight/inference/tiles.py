"""Run a network on images: read, resize and batch them; give labels or translations at the images' own size."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from PIL import Image
from torch.nn import functional as F

from daynight.data.images import Images
from daynight.data.transforms import resize_image, target_size, to_image, to_tensor
from daynight.system.errors import Unreadable


def reading_threads(num_workers: int | None, accelerator) -> int:
    """How many threads read images ahead and finish results: `--num-workers`, or its default."""
    return num_workers if num_workers is not None else 2 if accelerator.device.type == "cpu" else 8


def mapped(function: Callable, items: Iterable, threads: int, cores: int | None = None) -> Iterator:
    """Yields function(item) for each item, in order, computed by `threads` threads (0: in the caller's). In each of
    them torch uses `cores`.

    At most 2 · threads items are begun or wait, so memory stays bounded. If `items` raises `Unreadable`, the results
    of all items before it are still given.
    """
    if not threads:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=lambda: cores and torch.set_num_threads(cores))
    pending, items = deque(), iter(items)
    try:
        while True:
            try:
                pending.extend(pool.submit(function, item) for item in islice(items, 2 * threads - len(pending)))
            except Unreadable as error:
                pending.append(Future())
                pending[-1].set_exception(error)
            if not pending:
                break
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_batches(images: Images, size: str, batch_size: int, threads: int) -> Iterator[list[tuple]]:
    """Yields batches of neighbouring images that have one size once resized. An entry of a batch is the image's number,
    3×H×W in [-1, 1], and the original."""

    def read(i: int):
        image = images[i]
        return i, to_tensor(resize_image(image, *target_size(image.height, image.width, size))), image

    batch = []
    for entry in mapped(read, range(len(images)), threads):
        if batch and batch[0][1].shape != entry[1].shape:
            yield batch
            batch = []
        batch.append(entry)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def laid_out(images: torch.Tensor) -> torch.Tensor:
    """B×3×H×W in the memory layout in which networks are fastest: channels last on a GPU and on a CPU with AVX-512.

    Measured without gradients on AVX-512: a generator 1.25 times as fast, DeepLabV2-VGG16 1.3 times; a generator with
    AVX2 alone 0.77 times.
    """
    last = images.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return images.contiguous(memory_format=torch.channels_last) if last else images


@torch.inference_mode()
def logits_of(model, image: Image.Image, size: str, accelerator, scales=(1.0,), flip=False) -> torch.Tensor:
    """The logits of an image at its own size, C×H×W on the device. The network runs at `size`; logits are upsampled.

    `scales` are factors of `size`; `flip` also uses the mirrored image at each scale. With more than one pass, the
    result is the logarithm of the mean probability.
    """
    shape, several, total = (image.height, image.width), len(scales) > 1 or flip, 0.0
    for scale in scales:
        resized = resize_image(image, *(max(1, round(scale * length)) for length in target_size(*shape, size)))
        batch = to_tensor(resized)[None].to(accelerator.device)
        for mirrored in range(1 + flip):
            with accelerator.autocast():
                logits = model(laid_out(batch.flip(3) if mirrored else batch)).float()
            if logits.shape[2:] != shape:
                # channels last: the same labels in two thirds of the time on a CPU
                logits = logits.contiguous(memory_format=torch.channels_last)
                logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
            logits = logits.flip(3)[0] if mirrored else logits[0]
            total = total + logits.softmax(0) if several else logits
    return (total / (len(scales) * (1 + flip))).log() if several else total


def segment(
    model, images: Images, size: str, at_once: int | None, accelerator, threads=2, scales=(1.0,), flip=False, sure=False
):
    """Label images: yields each one's number, the image, its train ids at its own size (H×W, uint8, on the device), and
    the largest softmax probability of each pixel (H×W, 0 to 1) if `sure`, else None.

    The network sees each image alone, so no result depends on `at_once`, the number of images that are computed at the
    same time (None: on a CPU the number of cores, at most 8, with one thread each; on a GPU 2). `threads` threads read
    ahead.
    """
    on_cpu, cores = accelerator.device.type == "cpu", torch.get_num_threads()
    at_once = at_once or (min(8, cores) if on_cpu else 2)

    @torch.inference_mode()
    def work(entry):
        i, image = entry
        logits = logits_of(model, image, size, accelerator, scales, flip)
        # on a CPU max is several times faster than argmax over channels
        highest, labels = logits.max(0)
        return i, image, labels.to(torch.uint8), (highest - logits.logsumexp(0)).exp() if sure else None

    try:
        read = mapped(lambda i: (i, images[i]), range(len(images)), threads)
        yield from mapped(work, read, at_once, 1 if on_cpu else cores)
    finally:
        torch.set_num_threads(cores)


@torch.inference_mode()
def translations(
    generator, images: Images, size: str, crop, batch_size: int, accelerator, threads: int = 2, keep_size=True
):
    """Translate images: yields each one's number, the image, and its translation, which has the image's own size, or
    `size` without `keep_size`. `crop` (height, width): translate in tiles of this size; None: whole images."""

    def results():
        for entries in read_batches(images, size, batch_size, threads):
            numbers, tensors, originals = zip(*entries, strict=True)
            batch = torch.stack(tensors).to(accelerator.device)
            with accelerator.autocast():
                batch = tiled(generator, batch, crop or batch.shape[2:])
            yield from zip(numbers, originals, batch.float().cpu(), strict=True)

    def finished(entry):
        i, original, result = entry
        result = to_image(result)
        return i, original, resize_image(result, original.height, original.width) if keep_size else result

    yield from mapped(finished, results(), threads)


def tiled(generator, images, crop: tuple[int, int]):
    """B×3×H×W in [-1, 1] → the same, translated in tiles of `crop` (height, width) that overlap by half, weighted by a
    Hann window.

    In a whole image instance norm sees other statistics than in the crops that it was trained on, and this changes the
    translation: next to a bright day sky, the night sky stays bright.
    """
    images = laid_out(images)
    height, width = images.shape[2:]
    shape = min(crop[0], height), min(crop[1], width)
    if shape == (height, width):
        return generator(images)
    tops, lefts = (
        sorted({*range(0, whole - part + 1, max(1, part // 2)), whole - part})
        for whole, part in zip((height, width), shape, strict=True)
    )
    # above 0 at both ends: the border of the image is covered by one tile only
    down, across = (torch.hann_window(n + 2, periodic=False, device=images.device)[1:-1] for n in shape)
    window = down[:, None] * across
    total, weight = torch.zeros_like(images, dtype=torch.float32), torch.zeros_like(images[:1, :1], dtype=torch.float32)
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + shape[0]), slice(left, left + shape[1]))
            total[place] += window * generator(images[place]).float()
            weight[place] += window
    return total / weight
