import json
import os

import pytest
import trees

from daynight.data.layouts import times as module
from daynight.data.layouts.times import times_of_day
from daynight.system.errors import InputError

TAGS = {"train-000": "night", "train-001": "daytime", "train-002": "night", "train-003": "dawn/dusk"}
TAGS |= {"train-004": "undefined"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "daynight"


def an_hour_old(labels):
    """What changed a moment ago is not remembered."""
    for path in labels.rglob("*.json"):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return labels


@pytest.mark.parametrize("generation", ["2018", "det_20", "detection20", "per image"])
def test_every_generation_is_read_once_and_remembered(tmp_path, cache, generation, monkeypatch):
    labels = trees.bdd100k(tmp_path / "bdd", generation=generation) / "labels"
    # what macOS leaves beside a file
    first = next(path for path in sorted(labels.rglob("*.json")) if "train" in str(path))
    first.with_name(f"._{first.name}").write_bytes(b"\0\5\x16\7")
    an_hour_old(labels)
    before = sorted(labels.rglob("*"))
    assert times_of_day(labels, ("train",)) == TAGS
    assert len(list(cache.iterdir())) == 1 and sorted(labels.rglob("*")) == before

    monkeypatch.setattr(module, "open", lambda *arguments, **options: pytest.fail("read again"), raising=False)
    assert times_of_day(labels, ("train",)) == TAGS
    monkeypatch.undo()


@pytest.mark.parametrize("generation", ["2018", "per image"])
def test_what_is_remembered_is_never_stale(tmp_path, cache, generation):
    labels = an_hour_old(trees.bdd100k(tmp_path / "bdd", generation=generation) / "labels")
    times_of_day(labels, ("train",))
    file = next(path for path in sorted(labels.rglob("*.json")) if "train" in str(path))
    # another image at night, of as many bytes; the second change within the clock's resolution
    for name in ("train-007", "train-008"):
        file.write_text(file.read_text().replace("train-000", name).replace("train-007", name))
        assert times_of_day(labels, ("train",)) == {name if key == "train-000" else key: t for key, t in TAGS.items()}
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path, cache, monkeypatch):
    labels = an_hour_old(trees.bdd100k(tmp_path / "bdd") / "labels")
    cache.parent.write_text("a file where a folder is expected")
    assert times_of_day(labels, ("train",)) == TAGS
    cache.parent.unlink()
    times_of_day(labels, ("train",))
    next(cache.iterdir()).write_text('{"train-0')
    assert times_of_day(labels, ("train",)) == TAGS
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    next(cache.iterdir()).unlink()
    assert times_of_day(labels, ("train",)) == TAGS and not list(cache.iterdir())


@pytest.mark.parametrize("indent", [None, 4])
def test_entries_longer_than_what_is_read_at_a_time(tmp_path, cache, indent):
    """Of 2 MB each, so that every one crosses the boundaries of what is read."""
    labels = tmp_path / "labels"
    labels.mkdir()
    entries = [
        {"name": f"{i}.jpg", "labels": [{"id": "]},{[" * 400_000}], "attributes": {"timeofday": "night"}}
        for i in range(3)
    ]
    (labels / "bdd100k_labels_images_val.json").write_text(json.dumps(entries, indent=indent), encoding="utf-8-sig")
    assert times_of_day(labels, ("val",)) == {"0": "night", "1": "night", "2": "night"}


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[", "JSON"),
        ('[{"name": "a.jpg", "attributes": {"timeofday": "night"}}', "JSON"),
        ('[{"name": "a.jpg", "attributes": {}}, {"name"]', "JSON"),
        ("[1]", "entry 0"),
        ('[{"name": "a.jpg"}, {"attributes": {"timeofday": "night"}}]', "entry 1"),
        ('[{"name": "a.jpg", "attributes": {"timeofday": "night"}}, {"name": 5}]', "entry 1"),
        ("\xff", "JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, cache, content, words):
    file = tmp_path / "labels" / "det_20" / "det_val.json"
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        times_of_day(tmp_path / "labels", ("val",))
    said = str(caught.value)
    assert str(file) in said and words in said and "\n" not in said and not cache.exists()


def test_no_file(tmp_path, cache):
    assert times_of_day(tmp_path / "labels", ("train", "val")) == {} and not cache.exists()
    file = tmp_path / "labels" / "bdd100k_labels_images_val.json"
    file.parent.mkdir()
    file.write_text("[]")
    assert times_of_day(tmp_path / "labels", ("train", "val")) == {}
