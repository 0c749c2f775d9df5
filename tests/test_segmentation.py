"""Where G(x_s) comes from: a folder, darkening, Fourier; each from the same place of the same image. What is pasted,
and which images are drawn."""

import pytest
import torch
import trees
from PIL import Image

from daynight import losses
from daynight.config import SegTrainOptions
from daynight.data import images
from daynight.data.cache import Cache
from daynight.data.sampling import generator
from daynight.data.sets import load
from daynight.data.translated import Draw
from daynight.segmentation import student_terms, translation_source
from daynight.system.errors import InputError

CROPS = 20


@pytest.fixture
def draw(tmp_path):
    """draw(options): crops from a data set whose translations are all of one grey."""
    trees.folder(tmp_path / "day")
    trees.bdd100k(tmp_path / "night")
    for path in (tmp_path / "day/images").rglob("*.jpg"):
        place = (tmp_path / "grey" / path.relative_to(tmp_path / "day")).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", trees.SIZE[::-1], (100, 100, 100)).save(place)

    def draw(**options):
        options = SegTrainOptions(size="native", crop="32", steps=10, train_on="both", **options)
        days = {"day": load("day", tmp_path, "--day", labelled=True)}
        nights = [load("night", tmp_path, "--night", time="night")]
        draw = Draw(options, days, nights, translation_source(options, days, tmp_path))
        draw.keep_in(Cache(tmp_path / "cache", 1e9))
        return [draw(generator(0, 9, slot), 9) for slot in range(CROPS)]

    return draw


def is_grey(image):
    return torch.allclose(image, torch.tensor(100 / 127.5 - 1), atol=1e-6)


def test_a_folder_gives_its_translations(draw, tmp_path):
    assert all(is_grey(sample["fake_day"]) for sample in draw(translated=str(tmp_path / "grey")))


@pytest.mark.parametrize("kind", ["darken", "fourier"])
def test_what_needs_no_training_is_made_of_the_same_crop(kind, draw):
    for sample in draw(translator=kind):
        assert not is_grey(sample["fake_day"])
        seen = torch.stack([sample["day"].mean(0).flatten(), sample["fake_day"].mean(0).flatten()])
        assert torch.corrcoef(seen)[0, 1] > 0.5


PLAIN = {"ssl": True, "ssl_start": 0.0, "weak_noise": 0.0, "strong_noise": 0.0, "jitter": 0.0}


def test_half_of_the_classes_are_pasted_onto_the_night(draw, tmp_path):
    for sample in draw(translated=str(tmp_path / "grey"), mix=True, **PLAIN):
        there = set(sample["labels"].unique().tolist()) - {255}
        pasted = set(sample["pasted"].unique().tolist()) - {255}
        assert pasted <= there and len(pasted) == -(-len(there) // 2)
        inside = torch.isin(sample["labels"], torch.tensor(sorted(pasted)))
        assert torch.equal(sample["pasted"], torch.where(inside, sample["labels"], 255))
        assert is_grey(sample["strong_night"][:, inside])
        outside = sample["strong_night"] - sample["weak_night"]
        assert outside[:, ~inside].abs().max() < 1e-5 and not is_grey(sample["weak_night"])


def test_what_is_translated_without_training_is_pasted_too(draw):
    found = draw(mix=True, **PLAIN | {"translator": "darken"})
    assert all((sample["pasted"] != 255).any() for sample in found)


def test_mix_and_a_translator_on_the_fly_are_refused(draw, tmp_path, monkeypatch):
    from daynight.data.translated import Network

    monkeypatch.setitem(globals(), "translation_source", lambda *_: Network("runs/day2night", "0"))
    with pytest.raises(InputError, match="--mix.*--translated"):
        draw(mix=True, ssl=True)
    assert draw(mix=True)  # without --ssl nothing is pasted


def test_rare_classes_are_drawn_by_their_share(draw, monkeypatch):
    drawn = draw(rare_classes=0.1, translator="darken")
    again = [sample["labels"] for sample in draw(rare_classes=0.1, translator="darken")]
    assert all(torch.equal(a["labels"], b) for a, b in zip(drawn, again, strict=True))
    # the counts were kept: no label is counted a second time
    monkeypatch.setattr(images, "read_label", lambda *_: pytest.fail("a label was read"))
    assert draw(rare_classes=0.1, translator="darken")


@pytest.mark.parametrize("loss", ["square", "ce"])
def test_what_is_pasted_is_taught_by_its_labels_and_the_night_by_the_teacher(loss):
    torch.manual_seed(0)
    size, classes = (2, 3, 4), 5
    sharp = torch.randn(2, classes, 3, 4) * 4
    logits = {name: torch.randn(2, classes, 3, 4) for name in ("day", "night")}
    batch = {name: torch.zeros(2, 3, 3, 4) for name in ("day", "strong_night", "weak_night")}
    batch["labels"] = torch.randint(classes, size)
    batch["pasted"] = batch["labels"].where(torch.rand(size) < 0.5, 255)

    def student(images, clean=None, dropout=None, features=None):
        return logits["day"], logits["night"]

    def teacher(images, features=None):
        return sharp

    noisy = {"strong_night": "weak_night"}
    terms, taught = student_terms(student, teacher, batch, ["day"], noisy, None, [0], 0.6, 2.0, loss=loss)
    expected, pasted = 0.0, 0.0
    for b, y, x in torch.cartesian_prod(*map(torch.arange, size)).tolist():
        p, q, label = sharp[b, :, y, x].softmax(0), logits["night"][b, :, y, x].softmax(0), batch["pasted"][b, y, x]
        sure = sum(float(sharp[b, :, v, u].softmax(0).max() >= 0.6) for v in range(3) for u in range(4)) / 12
        if label != 255:
            pasted += -q[label].log() / 24
        elif loss == "ce":
            expected += 2 * sure * -q[p.argmax()].log() / 24
        elif p.max() >= 0.6:
            expected += 2 * (p - q).square().mean() / 24
    assert terms["ssl_strong_night"].item() == pytest.approx(float(expected), rel=1e-5)
    assert terms["ce_pasted"].item() == pytest.approx(float(pasted), rel=1e-5)
    assert torch.equal(taught["strong_night"][1], losses.confidence_mask(sharp.softmax(1), 0.6))
