"""The teacher's health: shares of classes against counts by hand, and the warning of a class that nobody learns."""

import math

import pytest
import torch

from daynight.losses import confidence_mask
from daynight.training.health import TeacherHealth

NAMES = ("road", "sky", "bus")


def ratio(value):
    part, whole = value.tolist()
    return part / whole if whole else None


def test_shares_are_those_counted_by_hand():
    # eight night pixels: the teacher's class and how sure it is of it
    sure = [(0, 0.9), (0, 0.5), (0, 0.95), (1, 0.6), (1, 0.8), (0, 0.85), (2, 0.4), (2, 0.7)]
    probabilities = torch.zeros(1, 3, 2, 4)
    for i, (label, p) in enumerate(sure):
        probabilities[0, :, i // 4, i % 4] = (1 - p) / 2
        probabilities[0, label, i // 4, i % 4] = p
    labels = torch.tensor([[[0, 0, 0, 1, 255], [2, 1, 255, 0, 0]]])
    values = TeacherHealth(NAMES, 10)(probabilities, confidence_mask(probabilities, 0.75), labels)
    entropy = sum(-p * math.log(p) - (1 - p) * math.log((1 - p) / 2) for _, p in sure) / 8 / math.log(3)
    assert values.pop("entropy").item() == pytest.approx(entropy, rel=1e-5)
    assert {name: ratio(value) for name, value in values.items()} == pytest.approx(
        {
            "accepted/road": 3 / 4, "accepted/sky": 1 / 2, "accepted/bus": 0,
            "learned/road": 3 / 4, "learned/sky": 1 / 4, "learned/bus": 0,
            "predicted/road": 4 / 8, "predicted/sky": 2 / 8, "predicted/bus": 2 / 8,
            "labelled/road": 5 / 8, "labelled/sky": 2 / 8, "labelled/bus": 1 / 8,
        }
    )  # fmt: skip


def line(step, **accepted):
    shares = {f"accepted/{name}": value for name, value in accepted.items()}
    return {"step": step, "entropy": 0.5, "labelled/road": 0.6, "labelled/bus": 0.1, "labelled/sky": 0.0} | shares


def test_a_class_that_nobody_learns_is_warned_of_once_until_it_recovers(capsys):
    health = TeacherHealth(NAMES, 2000)
    lines = [line(step, road=0.5, bus=0.0) for step in range(1000, 5001, 500)]  # of bus, seen but never accepted
    lines += [line(5500, road=0.5, bus=0.01)]
    lines += [line(step, road=0.5) for step in range(6000, 9001, 500)]  # not even predicted
    said = []
    for one in ({"step": 500, "ce_day": 1.0}, None, *lines):
        health.follow(one)
        said += [(one["step"], text) for text in capsys.readouterr().err.splitlines()]
    # sky is not in the day labels; what was warned of is not again
    text = "warning: bus: no accepted night pixel in 2,000 steps"
    assert said == [(3000, text), (7500, text)]

    for cut in range(len(lines)):  # a run that goes on knows what it had said
        health, later = TeacherHealth(NAMES, 2000, lines[:cut]), []
        for one in lines[cut:]:
            health.follow(one)
            later += [(one["step"], text) for text in capsys.readouterr().err.splitlines()]
        assert later == [(step, text) for step, text in said if step >= lines[cut]["step"]], cut
