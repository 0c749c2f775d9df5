"""What a step draws hangs on (seed, step, slot) alone: not on workers, processes or where the run began."""

import itertools
import math

import pytest
import torch
from PIL import Image

from daynight.data.images import Images, Photographs
from daynight.data.sampling import RareClasses, Skipped, batches, choose, generator
from daynight.system.errors import InputError, RunError


def stream(*key):
    return torch.rand(8, generator=generator(*key)).tolist()


def test_a_key_gives_one_stream():
    torch.manual_seed(1)
    first = stream(0, 5, 2)
    torch.manual_seed(2)
    assert stream(0, 5, 2) == first


def test_other_keys_give_other_streams():
    keys = [*itertools.product((0, 1, 12), (0, 1, 2, 12), (0, 1, 2)), (0, 0, "history 0"), (0, 0, "dropout 0")]
    streams = {tuple(stream(*key)) for key in keys}
    assert len(streams) == len(keys)
    # digits that run together: 1/23 is not 12/3
    assert stream(1, 23, 4) != stream(12, 3, 4) and stream(1, 2, 34) != stream(1, 23, 4)


def test_streams_of_neighbours_are_independent():
    draws = torch.stack([torch.rand(64, generator=generator(0, step, slot)) for step in range(30) for slot in range(4)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.7 and correlation.mean().abs() < 0.01


def test_choose_reaches_every_item_alike():
    g = generator(0, 0, 0)
    counts = torch.bincount(torch.tensor([choose(5, g) for _ in range(1000)]), minlength=5)
    assert len(counts) == 5 and counts.min() > 150


class Draw:
    """As the trainings draw: an item, a crop, noise. Of the module, so that workers can be handed it."""

    def __call__(self, g, step):
        item, noise = choose(100, g), torch.randn(3, 4, generator=g)
        return {"step": torch.tensor(step), "item": torch.tensor(item), "noise": noise}


def drawn(steps, slots, workers=0, seed=3):
    return [*batches(Draw(), seed, steps, slots, workers)]


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def test_batches_hold_what_their_keys_say():
    result = drawn(range(4, 7), range(2, 5))
    assert [batch["step"].tolist() for batch in result] == [[4] * 3, [5] * 3, [6] * 3]
    for step, batch in zip(range(4, 7), result, strict=True):
        for i, slot in enumerate(range(2, 5)):
            expected = Draw()(generator(3, step, slot), step)
            assert torch.equal(batch["noise"][i], expected["noise"]) and batch["item"][i] == expected["item"]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    assert same(drawn(range(7), range(2), workers), drawn(range(7), range(2)))


def test_a_loader_begun_later_goes_on_with_the_same_batches():
    whole = drawn(range(8), range(3))
    assert same(drawn(range(5, 8), range(3)), whole[5:])
    assert drawn(range(8, 8), range(3)) == []


def test_two_processes_draw_what_one_would():
    whole, left, right = (drawn(range(4), slots) for slots in (range(4), range(0, 2), range(2, 4)))
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(left, right, strict=True)]
    assert same(joined, whole)
    assert not same(left, right)


def test_another_seed_draws_others():
    assert not same(drawn(range(2), range(2), seed=4), drawn(range(2), range(2), seed=3))


# ---- images


def test_images_are_rgb_and_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), (10, 20, 30))
    picture.save(tmp_path / "plain.png")
    Image.new("L", (4, 2), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 2), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    picture.save(tmp_path / "turned.jpg", exif=exif)
    images = Images([tmp_path / name for name in ("plain.png", "grey.png", "clear.png", "turned.jpg")])
    assert len(images) == 4 and {images[i].mode for i in range(4)} == {"RGB"}
    assert images[0].getpixel((0, 0)) == (10, 20, 30) and images[1].getpixel((3, 1)) == (7, 7, 7)
    assert [images[i].size for i in range(4)] == [(4, 2)] * 3 + [(2, 4)]


def test_photographs_are_resized(tmp_path):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    image = Photographs([tmp_path / "red.png"], "10").image(0)
    assert image.shape == (3, 10, 20) and image[0].min() == 1 and image[1:].max() == -1
    assert Photographs([tmp_path / "red.png"], "10").levels(0, (7, 9)).shape == (3, 7, 9)


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_a_broken_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    torch.manual_seed(0)
    Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()).save(path)
    path.write_bytes(path.read_bytes()[:1500] if content == "cut" else content)
    with pytest.raises(InputError, match="broken.png"):
        Images([path])[0]


def test_a_full_disk_is_named_with_the_list_of_what_was_skipped(tmp_path):
    (tmp_path / "skipped.txt").symlink_to("/dev/full")
    with pytest.raises(RunError, match="skipped.txt: cannot be written .No space left on device.$"):
        Skipped(tmp_path / "skipped.txt", resumed=True).add("a.png: broken")


def test_rare_classes_by_the_formula():
    counts = torch.tensor([[900, 100, 0, 0], [980, 0, 20, 0], [1000, 0, 0, 0]])
    shares, temperature = [2880 / 3000, 100 / 3000, 20 / 3000], 0.5
    weights = [math.exp((1 - share) / temperature) for share in shares]
    rare, drawn = RareClasses(counts, temperature), []
    for slot in range(4000):
        image, of_class = rare(generator(0, 0, slot))
        assert counts[image, of_class] > 0
        drawn.append(of_class)
    for of_class, weight in enumerate(weights):
        assert drawn.count(of_class) / len(drawn) == pytest.approx(weight / sum(weights), abs=0.03)
    assert rare.in_crop(torch.tensor([[2] + [0] * 1999]), 2) and not rare.in_crop(torch.tensor([[2] + [0] * 2000]), 2)
