"""The cache of what trainings read: what it gives back, whatever happened to it."""

import multiprocessing
import os
import re
import sys
from collections import Counter

import numpy as np
import pytest
import trees
from PIL import Image

from daynight.data import cache
from daynight.data.cache import Cache, Jpegs, OneFile

SIZES = ((12, 20), (9, 31), (40, 8))


@pytest.fixture
def paths(tmp_path):
    return [trees.image(tmp_path / f"{i}.png", size) for i, size in enumerate(SIZES)]


def arrays(channels=3, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, channels) if channels > 1 else size, np.uint8) for size in SIZES]


class Made(Counter):
    """Makes arrays, and counts how often each is made."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = arrays

    def __call__(self, i):
        def make():
            self[i] += 1
            return self.arrays[i]

        return make


def read(kept, made):
    return [kept(i, made(i)) for i in range(len(made.arrays))]


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def mapped(folder, paths, channels=3, limit=1e9, size="native", salt=""):
    return Cache(folder, limit).add("images", paths, size, channels, salt)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_array_is_made_once_and_comes_back_as_it_was(channels, tmp_path, paths):
    expected = arrays(channels)
    made = Made(expected)
    for _ in range(3):
        kept = mapped(tmp_path / "cache", paths, channels)
        assert isinstance(kept, OneFile) and same(read(kept, made), expected) and same(read(kept, made), expected)
    assert set(made.values()) == {1}


@pytest.mark.parametrize("change", ["content", "size", "salt", "other"])
def test_what_the_files_hold_or_are_resized_to_is_part_of_the_name(change, tmp_path, paths):
    made = Made(arrays())
    read(mapped(tmp_path / "cache", paths), made)
    options = {"size": "8", "salt": "labelIds"}
    if change == "content":
        os.utime(paths[1], ns=(1, 1))
    if change == "other":
        paths = paths[::-1]
    made = Made(arrays(seed=1))
    read(mapped(tmp_path / "cache", paths, **{k: v for k, v in options.items() if k == change}), made)
    assert set(made.values()) == {1} and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_damaged_anywhere_is_made_anew_there(tmp_path, paths):
    expected, chance = arrays(), np.random.default_rng(0)
    read(mapped(tmp_path / "cache", paths), Made(expected))
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        place = int(chance.integers(len(whole)))
        damaged[place] ^= 1 << int(chance.integers(8))
        file.write_bytes(damaged)
        made = Made(expected)
        assert same(read(mapped(tmp_path / "cache", paths), made), expected)
        assert sum(made.values()) == 1 and file.read_bytes() == whole
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert same(read(mapped(tmp_path / "cache", paths), Made(expected)), expected) and file.read_bytes() == whole


def fill(folder, paths, seed):
    expected = arrays()
    order = np.random.default_rng(seed).permutation(len(paths))
    kept = mapped(folder, paths)
    for _ in range(50):
        for i in order:
            assert np.array_equal(kept(i, lambda i=i: expected[i]), expected[i])


def test_several_processes_fill_it_at_once(tmp_path, paths):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fill, args=(tmp_path / "cache", paths, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert same(read(mapped(tmp_path / "cache", paths), made := Made(arrays())), arrays()) and not made


def cut_and_read(folder, paths, errors):
    expected = arrays()
    kept = mapped(folder, paths)
    assert same(read(kept, Made(expected)), expected)
    (file,) = folder.iterdir()
    os.truncate(file, file.stat().st_size // 2)
    os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = open(2, "w", closefd=False)
    made = Made(expected)
    assert same(read(kept, made), expected) and same(read(kept, made), expected)
    sys.exit(17)


def test_a_file_that_is_cut_short_while_it_is_used_ends_nothing(tmp_path, paths):
    """Another command's `truncate`, a file system that lost its end: where a file is mapped, SIGBUS kills."""
    process = multiprocessing.get_context("fork").Process(
        target=cut_and_read, args=(tmp_path / "cache", paths, tmp_path / "errors")
    )
    process.start()
    process.join()
    assert process.exitcode == 17
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert re.fullmatch(r"warning: .*\.u8: it was cut short; what it does not hold is read every time", line)


def test_what_does_not_fit_goes_into_jpegs_or_is_read_anew(tmp_path, paths, capsys):
    whole = sum(h * w * 3 + cache.HEAD for h, w in SIZES)
    images = [np.array(Image.open(path)) for path in paths]
    kept = mapped(tmp_path / "cache", paths, limit=whole - 1)
    assert isinstance(kept, Jpegs) and "JPEGs" in capsys.readouterr().out
    made = Made(images)
    first, again = read(kept, made), read(mapped(tmp_path / "cache", paths, limit=whole - 1), made)
    assert same(first, again) and set(made.values()) == {1}
    assert all(0 < np.abs(a.astype(int) - b).mean() < 8 for a, b in zip(first, images, strict=True))
    next((tmp_path / "cache").iterdir()).write_bytes(b"cut")
    assert same(read(mapped(tmp_path / "cache", paths, limit=whole - 1), made), first) and sum(made.values()) == 4
    assert mapped(tmp_path / "cache", paths, limit=10) is None
    assert mapped(tmp_path / "cache", paths, 1, limit=whole // 3 - 12) is None  # labels are never made JPEGs
    assert re.search(r"none, .* do not fit", capsys.readouterr().out)


def test_two_sets_share_the_limit(tmp_path, paths):
    whole = sum(h * w * 3 + cache.HEAD for h, w in SIZES)
    both = Cache(tmp_path / "cache", 1.5 * whole)
    assert isinstance(both.add("day", paths, "native", 3), OneFile)
    assert isinstance(both.add("night", paths[::-1], "native", 3), Jpegs)


def test_what_it_would_take_without_a_folder(paths):
    whole = sum(h * w * 3 + cache.HEAD for h, w in SIZES)
    plan = Cache(None, 1.5 * whole)
    assert [plan.add(name, paths, "native", 3) for name in ("day", "night")] == [None, None]
    assert plan.planned == pytest.approx(whole * (1 + cache.JPEG_SHARE))
    off = Cache(None, 0)
    assert off.add("day", paths, "native", 3) is None and off.planned == 0


def test_an_array_of_another_shape_than_its_file_is_not_kept(tmp_path, paths):
    """A label that is none, an image that has changed since: whoever reads it finds out, every time."""
    kept, odd = mapped(tmp_path / "cache", paths), np.zeros((3, 3, 3), np.uint8)
    calls = []
    for _ in range(2):
        assert kept(0, lambda: calls.append(0) or odd) is odd
    assert len(calls) == 2


def test_a_file_that_is_no_image_raises_when_it_is_asked_for(tmp_path, paths):
    paths[1].write_text("no image")
    kept = mapped(tmp_path / "cache", paths)

    def fail():
        raise ValueError("no image")

    for _ in range(2):
        with pytest.raises(ValueError):
            kept(1, fail)
    assert np.array_equal(kept(2, lambda: arrays()[2]), arrays()[2])


def test_a_full_disk_or_a_folder_that_cannot_be_made_ends_nothing(tmp_path, paths, monkeypatch, capsys):
    expected = arrays()

    def full(*_):
        raise OSError(28, "No space left on device")

    kept = mapped(tmp_path / "cache", paths)
    monkeypatch.setattr(os, "pwrite", full)
    assert same(read(kept, Made(expected)), expected) and same(read(kept, Made(expected)), expected)
    assert capsys.readouterr().err.count("No space left") == 1
    (tmp_path / "file").write_text("")
    assert mapped(tmp_path / "file/cache", paths) is None
    assert "--cache" in capsys.readouterr().err


def test_an_image_turned_by_exif_has_room(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 12), "red").save(tmp_path / "turned.jpg", exif=exif)
    upright = np.full((30, 12, 3), 7, np.uint8)
    kept = mapped(tmp_path / "cache", [tmp_path / "turned.jpg"])
    made = Made([upright])
    assert same([*read(kept, made), *read(kept, made)], [upright] * 2) and made[0] == 1
