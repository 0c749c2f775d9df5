"""Eq. 13, with its warm-up."""

import copy

import pytest
import torch
from torch import nn

from daynight.models.ema import EMA


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def numbers(model):
    return {name: tensor.double().flatten().tolist() for name, tensor in model.named_parameters()}


def test_starts_as_a_copy_that_shares_nothing():
    student = network()
    ema = EMA(student, 0.9)
    state = student.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ema.model.state_dict().items())
    before = numbers(ema.model)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert numbers(ema.model) == before


# 0.9 lets the warm-up end within the updates (k = 80), 0.25 at once, 0.9999 never
@pytest.mark.parametrize("decay, ks", [(0.9999, range(6)), (0.25, range(6)), (0.9, range(78, 84)), (0.0, range(2))])
def test_eq_13_against_a_loop_of_numbers(decay, ks):
    student = network()
    ema = EMA(student, decay)
    expected = numbers(ema.model)
    for k in ks:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        ema.update(student, k)
        alpha = min(decay, (1 + k) / (10 + k))
        for name, values in numbers(student).items():
            pairs = zip(expected[name], values, strict=True)
            expected[name] = [alpha * average + (1 - alpha) * value for average, value in pairs]
    for name, values in numbers(ema.model).items():
        assert values == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


def alpha_of(k, decay=1.0):
    """The α of the k-th update, seen from outside: what is left of an average of 1 when the student is 0."""
    ema = EMA(nn.Linear(1, 1, bias=False).double(), decay)
    student = copy.deepcopy(ema.model)
    nn.init.ones_(ema.model.weight), nn.init.zeros_(student.weight)
    ema.update(student, k)
    return ema.model.weight.item()


def test_the_warm_up_is_as_long_as_the_docstring_says():
    assert alpha_of(0) == pytest.approx(0.1)
    for decay, k in ((0.999, 8_990), (0.9999, 89_990)):
        assert alpha_of(k - 1, decay) < decay - 1e-9
        assert alpha_of(k, decay) == pytest.approx(decay, abs=1e-12)
        assert alpha_of(10 * k, decay) == pytest.approx(decay, abs=1e-12)


def test_buffers_are_copied():
    student = network().train()
    ema = EMA(student, 0.999)
    student(torch.randn(8, 3, 6, 6) * 3 + 1)
    ema.update(student, 1000)
    for name, buffer in student.named_buffers():
        assert torch.equal(ema.model.get_buffer(name), buffer), name
    assert ema.model[1].num_batches_tracked == 1


def test_is_in_eval_mode_and_takes_no_gradient():
    student = network().train().requires_grad_(True)
    ema = EMA(student, 0.9)
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    ema.update(student, 0)
    assert not any(p.requires_grad or p.grad is not None for p in ema.model.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())


def test_leaves_the_student_alone():
    student = network()
    ema = EMA(student, 0.5)
    with torch.no_grad():
        student[0].weight.add_(1)
    student(torch.randn(2, 3, 6, 6)).sum().backward()
    state = copy.deepcopy(student.state_dict())
    gradients = [p.grad.clone() for p in student.parameters()]
    ema.update(student, 3)
    assert all(torch.equal(a, state[name]) for name, a in student.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(student.parameters(), gradients, strict=True))


def test_refuses_another_network():
    ema = EMA(network(), 0.9)
    before = numbers(ema.model)
    with pytest.raises(ValueError):
        ema.update(nn.Sequential(nn.Conv2d(3, 4, 3)), 0)
    assert numbers(ema.model) == before


def test_refuses_a_network_of_other_shapes():
    # a width of 1 could be broadcast
    ema = EMA(nn.Linear(4, 3), 0.9)
    with pytest.raises(ValueError):
        ema.update(nn.Linear(4, 1), 0)
