"""A short training of the translator on `streets` does what it is for (a generator with upsampling may learn nothing:
CycleGAN issue 924), and the history of fakes is CycleGAN's pool."""

import pytest
import torch

from daynight import translation
from daynight.config import TranslateTrainOptions
from daynight.data.images import Photographs
from daynight.data.sampling import generator
from daynight.demo import streets
from daynight.models.generator import Generator
from daynight.models.hub import load_model
from daynight.translation import History


@pytest.fixture
def one_thread():
    """So small a network runs slower on several, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_short_run_leaves_the_identity_for_the_night(one_thread, tmp_path):
    for name, night in (("streets", False), ("dark", True)):
        streets.write(tmp_path / name, 0, night=night, train=12, val=6, size=(32, 64))
    options = TranslateTrainOptions(
        day="streets", night=["dark"], data_root=str(tmp_path), out=str(tmp_path / "run"), size="native", crop="32x64",
        width=8, blocks=1, gan="lsgan", lr=1e-3, lr_drop=1.0, steps=200, ema_decay=0.95, lambda_feature=0.5,
        feature_network="test_resnet", feature_layer=["layer1"], feature_weights="random",
    )  # fmt: skip
    translation.train(options)

    def held_out(name):
        photographs = Photographs(sorted((tmp_path / name / "images/val").iterdir()), "native")
        return torch.stack([photographs.image(i) for i in range(len(photographs))])

    day, night = held_out("streets"), held_out("dark")
    with torch.no_grad():
        fake_night = load_model(options.out, "day2night", "--model", Generator)(day)
    assert (fake_night - day).abs().mean() > 0.2
    assert abs(fake_night.mean() - night.mean()) < abs(day.mean() - night.mean()) / 3


def test_the_history_shows_an_older_fake_half_of_the_time():
    history, fakes = History(5), [torch.full((1, 3, 2, 2), float(i)) for i in range(400)]
    shown = [history.exchange(fake, [generator(0, i, 0)]) for i, fake in enumerate(fakes)]
    assert all(torch.equal(a, b) for a, b in zip(shown[:5], fakes, strict=False))
    older = [int(s.mean()) != i for i, s in enumerate(shown)]
    assert 0.4 < sum(older[5:]) / 395 < 0.6
    # what was shown in the place of a new one has left, and comes but once
    values = [int(s.mean()) for s, old in zip(shown, older, strict=True) if old]
    assert len(values) == len(set(values)) and len(history.images) == 5


def test_without_a_history_every_fake_is_new():
    fake = torch.rand(2, 3, 4, 4)
    assert torch.equal(History(0).exchange(fake, [generator(0, 0, i) for i in range(2)]), fake)
