"""Translation in tiles of the training crop's size; work beside the loop."""

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from daynight.data.images import Images
from daynight.inference.tiles import AtOnce, mapped, segment, tiled, translations
from daynight.models.generator import Generator
from daynight.system.errors import Unreadable


class Seen(torch.nn.Module):
    """Applies a function, and remembers the shapes of what it was given."""

    def __init__(self, function):
        super().__init__()
        self.function, self.shapes = function, []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return self.function(images)


@pytest.mark.parametrize("size", [(20, 31), (16, 24), (7, 40), (45, 13), (8, 12), (3, 5)])
def test_tiles_of_what_works_pixel_by_pixel_are_the_whole(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = Seen(lambda x: x * 0.5 - 0.1)
    result = tiled(seen, images, (8, 12))
    assert torch.allclose(result, images * 0.5 - 0.1, atol=1e-6)
    assert set(seen.shapes) == {(2, 3, min(8, size[0]), min(12, size[1]))}


def test_an_image_of_the_crops_size_is_translated_once():
    seen = Seen(torch.neg)
    tiled(seen, torch.rand(1, 3, 8, 12), (8, 12))
    assert len(seen.shapes) == 1


def test_tiles_overlap_by_half_and_meet_smoothly():
    """Each tile in one grey of its own: by a weighted mean reckoned pixel by pixel."""
    greys = iter(torch.linspace(-1, 1, 100).tolist())
    used = []

    def paint(x):
        used.append(next(greys))
        return torch.full_like(x, used[-1])

    result = tiled(Seen(paint), torch.zeros(1, 3, 8, 20), (8, 8))[0, 0, 0]
    lefts = [0, 4, 8, 12]
    assert len(used) == len(lefts)
    for x in range(20):
        weights = [torch.sin(torch.tensor(torch.pi * (x - left + 1) / 9)) ** 2 for left in lefts]
        weights = [w if left <= x < left + 8 else 0 for w, left in zip(weights, lefts, strict=True)]
        expected = sum(w * grey for w, grey in zip(weights, used, strict=True)) / sum(weights)
        assert float(result[x]) == pytest.approx(float(expected), abs=1e-5)


def test_tiles_see_the_statistics_of_a_crop():
    """What instance norm does: dark beside bright is another thing than dark alone."""
    norm = torch.nn.InstanceNorm2d(3)
    image = torch.zeros(1, 3, 8, 64)
    image[..., 32:] = 1.0
    image += 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    crops = norm(image[..., :8])
    assert (tiled(norm, image, (8, 8))[..., :4] - crops[..., :4]).abs().mean() < 0.2 * crops.abs().mean()
    assert (norm(image)[..., :4] - crops[..., :4]).abs().mean() > crops.abs().mean()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_mapped_keeps_the_order_and_bounds_what_waits(threads):
    taken, given = [], []

    def items():
        for i in range(40):
            taken.append(i)
            yield i

    def slow_at_first(i):
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    for result in mapped(slow_at_first, items(), threads):
        given.append(result)
        assert len(taken) - len(given) <= 2 * threads
    assert given == [i * i for i in range(40)]


def test_mapped_works_beside_the_loop():
    """Three meet at a barrier that none could pass alone."""
    barrier = threading.Barrier(3, timeout=20)
    assert sorted(mapped(lambda i: barrier.wait(), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize("where", ["items", "function"])
@pytest.mark.parametrize("threads", [0, 2])
def test_mapped_gives_what_comes_before_a_file_that_is_unreadable(where, threads):
    def items():
        yield from range(5)
        if where == "items":
            raise Unreadable("5")
        yield from range(5, 9)

    def function(i):
        if i == 5:
            raise Unreadable("5")
        return i

    given = []
    with pytest.raises(Unreadable, match="5"):
        for result in mapped(function, items(), threads):
            given.append(result)
    assert given == [0, 1, 2, 3, 4]


def test_tiles_in_one_batch_are_those_one_by_one():
    torch.manual_seed(0)
    generator, images = Generator(1, 4).eval(), torch.rand(2, 3, 45, 70) * 2 - 1
    seen = Seen(generator)
    with torch.no_grad():
        expected = tiled(generator, images, (32, 32))
        assert torch.allclose(tiled(seen, images, (32, 32), 100), expected, atol=1e-5)
        assert seen.shapes == [(16, 3, 32, 32)]
        assert torch.allclose(tiled(seen, images, (32, 32), 3), expected, atol=1e-5)
        assert [shape[0] for shape in seen.shapes[1:]] == [6, 6, 4]


def test_at_once_finds_what_fits_and_remembers_it():
    sizes = []

    def function(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * i for i in items]

    parts = AtOnce(function, 16)
    assert sum(parts(range(7)), []) == sum(parts(range(7)), []) == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [7, 7, 4, 2, 2, 2, 1, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        AtOnce(lambda items: function(range(9)), 4)([1])


class Gpu(str):
    """A device that is a CPU by its name and a GPU by its type."""

    type = "cuda"


CPU, GPU = (SimpleNamespace(device=device, autocast=nullcontext) for device in (torch.device("cpu"), Gpu("cpu")))


@pytest.fixture
def paths(tmp_path):
    """Images of two sizes; the last but one cannot be read."""
    rng = np.random.default_rng(0)
    for i, width in enumerate([40, 40, 40, 56, 56, 40, 40]):
        Image.fromarray(rng.integers(0, 255, (36, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    return sorted(tmp_path.iterdir())


def until_unreadable(results):
    found = []
    with pytest.raises(Unreadable, match="5.png"):
        for result in results:
            found.append(result)
    return found


@pytest.mark.parametrize("crop, batches", [((32, 32), [12, 12]), (None, [3, 2])])
def test_translations_in_batches_are_those_one_by_one(paths, crop, batches):
    torch.manual_seed(0)
    seen, found = Seen(Generator(1, 4).eval()), {}
    for place in (CPU, GPU):
        seen.shapes.clear()
        found[place.device] = until_unreadable(translations(seen, Images(paths), "native", crop, None, place))
    assert sorted(shape[0] for shape in seen.shapes) == sorted(batches)
    for (i, image, result), (j, _, expected) in zip(found[Gpu("cpu")], found[torch.device("cpu")], strict=True):
        assert i == j and result.size == image.size
        assert np.abs(np.asarray(result).astype(int) - np.asarray(expected)).max() <= 1
    assert len(found[Gpu("cpu")]) == 5


def test_labels_in_batches_are_those_one_by_one(paths):
    seen, found = Seen(lambda x: torch.cat([x[..., ::2, ::2], -x[..., ::2, ::2]], 1)), []
    for place in (CPU, GPU):
        seen.shapes.clear()
        found.append(until_unreadable(segment(seen, Images(paths), "18", None, place, 2, (1.0,), True, True)))
    assert sorted(shape[0] for shape in seen.shapes) == [2, 2, 3, 3]
    for (i, _, labels, sure), (j, _, expected, certain) in zip(*found, strict=True):
        assert (
            i == j and torch.equal(labels, expected) and torch.allclose(sure, certain) and labels.dtype == torch.uint8
        )
    assert len(found[0]) == 5
