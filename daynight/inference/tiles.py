"""Run a network on images: read, resize and batch them; give labels or translations at the images' own size."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import torch
from PIL import Image
from torch.nn import functional as F

from daynight.data.images import Images
from daynight.data.transforms import resize_image, target_size, to_levels, to_tensor
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


def grouped(items: Iterable, most: int, key: Callable) -> Iterator[list]:
    """Yields lists of up to `most` neighbouring items that have one key. If `items` raises `Unreadable`, all items
    before it are still given."""
    group, problem = [], None
    try:
        for item in items:
            if group and (len(group) == most or key(group[0]) != key(item)):
                yield group
                group = []
            group.append(item)
    except Unreadable as error:
        problem = error
    if group:
        yield group
    if problem:
        raise problem


def laid_out(images: torch.Tensor) -> torch.Tensor:
    """B×3×H×W in the memory layout in which networks are fastest: channels last on a GPU and on a CPU with AVX-512.

    Measured without gradients on AVX-512: a generator 1.25 times as fast, DeepLabV2-VGG16 1.3 times; a generator with
    AVX2 alone 0.77 times.
    """
    last = images.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return images.contiguous(memory_format=torch.channels_last) if last else images


class AtOnce:
    """A function of items that gets as many at once as fit into a GPU's memory: `most`, and half as many after each
    time that it did not suffice. A call gives the result of each part."""

    def __init__(self, function: Callable, most: int):
        self.function, self.most = function, most

    def __call__(self, items) -> list:
        results, start = [], 0
        while start < len(items):
            most = self.most
            try:
                results.append(self.function(items[start : start + most]))
                start += most
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
                self.most = min(self.most, most // 2)  # another thread may have halved it
        return results


@torch.inference_mode()
def logits_of(model, images: Sequence[Image.Image], size: str, accelerator, scales=(1.0,), flip=False) -> torch.Tensor:
    """The logits of images of one size, at this size, B×C×H×W on the device. The network runs at `size`; logits are
    upsampled.

    `scales` are factors of `size`; `flip` also uses the mirrored image at each scale. With more than one pass, the
    result is the logarithm of the mean probability.
    """
    shape, several, total = (images[0].height, images[0].width), len(scales) > 1 or flip, 0.0
    for scale in scales:
        inside = [max(1, round(scale * length)) for length in target_size(*shape, size)]
        batch = torch.stack([to_tensor(resize_image(image, *inside)) for image in images]).to(accelerator.device)
        for mirrored in range(1 + flip):
            with accelerator.autocast():
                logits = model(laid_out(batch.flip(3) if mirrored else batch)).float()
            if logits.shape[2:] != shape:
                # channels last: the same labels in two thirds of the time on a CPU
                logits = logits.contiguous(memory_format=torch.channels_last)
                logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
            logits = logits.flip(3) if mirrored else logits
            total = total + logits.softmax(1) if several else logits
    return (total / (len(scales) * (1 + flip))).log() if several else total


def segment(
    model, images: Images, size: str, at_once: int | None, accelerator, threads=2, scales=(1.0,), flip=False, sure=False
):
    """Label images: yields each one's number, the image, its train ids at its own size (H×W, uint8, on the device), and
    the largest softmax probability of each pixel (H×W, 0 to 1) if `sure`, else None.

    On a CPU the network sees each image alone, so no result depends on `at_once`, the number of images that are
    computed at the same time (None: the number of cores, at most 8), with one thread each. A GPU gets batches of up to
    `at_once` images of one size (None: 4), and while it computes one, the next is prepared. `threads` threads read
    ahead.
    """
    on_cpu, cores = accelerator.device.type == "cpu", torch.get_num_threads()
    at_once = at_once or (min(8, cores) if on_cpu else 4)

    @torch.inference_mode()
    def work(entries):
        numbers, originals = zip(*entries, strict=True)
        logits = logits_of(model, originals, size, accelerator, scales, flip)
        # on a CPU max is several times faster than argmax over channels
        highest, labels = logits.max(1)
        certain = (highest - logits.logsumexp(1)).exp() if sure else [None] * len(entries)
        return zip(numbers, originals, labels.to(torch.uint8), certain, strict=True)

    try:
        read = mapped(lambda i: (i, images[i]), range(len(images)), threads)
        most, beside = (1, at_once) if on_cpu else (at_once, 2)
        batches = grouped(read, most, lambda entry: entry[1].size)
        for parts in mapped(AtOnce(work, most), batches, beside, 1 if on_cpu else cores):
            yield from chain.from_iterable(parts)
    finally:
        torch.set_num_threads(cores)


def translations(
    generator, images: Images, size: str, crop, batch_size: int | None, accelerator, threads: int = 2, keep_size=True
):
    """Translate images: yields each one's number, the image, and its translation, which has the image's own size, or
    `size` without `keep_size`. `crop` (height, width): translate in tiles of this size; None: whole images.

    `batch_size` images of one size are translated together (None: 4 on a GPU, else 1), with all their tiles.
    """
    on_gpu = accelerator.device.type != "cpu"
    # on a CPU four tiles of 256² at once take as long as one after another or longer, four of 128² a tenth less time
    fits = 2**16 // (crop[0] * crop[1]) if crop else 1
    parts = AtOnce(generator, 128 if on_gpu else max(1, min(8, fits)))

    def read(i: int):
        image = images[i]
        return i, image, to_tensor(resize_image(image, *target_size(image.height, image.width, size)))

    @torch.inference_mode()
    def work(entries):
        numbers, originals, tensors = zip(*entries, strict=True)
        batch = torch.stack(tensors).to(accelerator.device)
        with accelerator.autocast():
            at_once = max(1, parts.most // len(batch))
            batch = tiled(lambda x: torch.cat(parts(x)), batch, crop or batch.shape[2:], at_once)
        return zip(numbers, originals, to_levels(batch).cpu(), strict=True)

    def finished(entry):
        i, original, levels = entry
        result = Image.fromarray(levels.permute(1, 2, 0).numpy())
        return i, original, resize_image(result, original.height, original.width) if keep_size else result

    entries = mapped(read, range(len(images)), threads)
    batches = grouped(entries, batch_size or (4 if on_gpu else 1), lambda entry: entry[2].shape)
    # while a GPU computes a batch, the next is given to it
    results = mapped(work, batches, 2 if on_gpu else 0)
    yield from mapped(finished, chain.from_iterable(results), threads)


def tiled(generator, images, crop: tuple[int, int], at_once: int = 1):
    """B×3×H×W in [-1, 1] → the same, translated in tiles of `crop` (height, width) that overlap by half, weighted by a
    Hann window. The generator gets `at_once` tiles of each image in one batch.

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
    places = [(..., slice(top, top + shape[0]), slice(left, left + shape[1])) for top in tops for left in lefts]
    # above 0 at both ends: the border of the image is covered by one tile only
    down, across = (torch.hann_window(n + 2, periodic=False, device=images.device)[1:-1] for n in shape)
    window = down[:, None] * across
    total, weight = torch.zeros_like(images, dtype=torch.float32), torch.zeros_like(images[:1, :1], dtype=torch.float32)
    for start in range(0, len(places), at_once):
        some = places[start : start + at_once]
        tiles = generator(torch.cat([images[place] for place in some]))
        for place, tile in zip(some, tiles.chunk(len(some)), strict=True):
            total[place] += window * tile.float()
            weight[place] += window
    return total / weight
