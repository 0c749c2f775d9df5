"""Where G(x_s) comes from: a folder, darkening, Fourier; each from the same place of the same image."""

import pytest
import torch
import trees
from PIL import Image

from daynight.config import SegTrainOptions
from daynight.data.sampling import generator
from daynight.data.sets import load
from daynight.data.translated import Draw
from daynight.segmentation import translation_source

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
