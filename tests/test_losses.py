"""Every equation of `losses.py` against numbers reckoned by hand or by loops of plain Python."""

import math

import pytest
import torch

from daynight import losses


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Eq. 4: (kind, logits of D, loss of the generator whose images they are)
@pytest.mark.parametrize(
    "kind, logits, expected",
    [
        ("bce", [[0.0]], math.log(2)),  # D says 1/2
        ("bce", [[30.0]], 0.0),  # D is deceived
        ("bce", [[-30.0]], 30.0),  # D is sure: log D(G(x)) is -30
        ("bce", [[0.0, -30.0], [30.0, 0.0]], (2 * math.log(2) + 30) / 4),
        ("lsgan", [[1.0]], 0.0),
        ("lsgan", [[0.0]], 1.0),
        ("lsgan", [[0.5]], 0.25),
        ("lsgan", [[1.0, 0.0], [-1.0, 2.0]], (0 + 1 + 4 + 1) / 4),
    ],
)
def test_eq_4_generator_by_hand(kind, logits, expected):
    assert losses.adversarial_generator(torch.tensor(logits), kind).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "kind, real, fake, expected",
    [
        ("bce", [0.0], [0.0], math.log(2)),
        ("bce", [30.0], [-30.0], 0.0),  # right both times
        ("bce", [-30.0], [30.0], 30.0),  # wrong both times
        ("bce", [30.0], [30.0], 15.0),  # calls everything real
        ("lsgan", [1.0], [0.0], 0.0),
        ("lsgan", [0.0], [1.0], 1.0),
        ("lsgan", [1.0], [1.0], 0.5),
        ("lsgan", [0.5], [0.5], 0.25),
    ],
)
def test_eq_4_discriminator_by_hand(kind, real, fake, expected):
    loss = losses.adversarial_discriminator(torch.tensor(real), torch.tensor(fake), kind)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["bce", "lsgan"])
def test_eq_4_is_the_mean_over_patches_as_printed(kind):
    real, fake = numbers(2, 1, 3, 4), numbers(1, 1, 2, 5, seed=1)
    on_real = [-math.log(sigmoid(x)) if kind == "bce" else (x - 1) ** 2 for x in real.flatten().tolist()]
    on_fake = [-math.log(1 - sigmoid(x)) if kind == "bce" else x**2 for x in fake.flatten().tolist()]
    deceit = [-math.log(sigmoid(x)) if kind == "bce" else (x - 1) ** 2 for x in fake.flatten().tolist()]
    expected = (sum(on_real) / len(on_real) + sum(on_fake) / len(on_fake)) / 2
    assert losses.adversarial_discriminator(real, fake, kind).item() == pytest.approx(expected, rel=1e-5)
    assert losses.adversarial_generator(fake, kind).item() == pytest.approx(sum(deceit) / len(deceit), rel=1e-5)


def test_eq_4_generator_learns_where_the_discriminator_is_sure():
    # the printed form, log(1 - D(G(x))), has no slope there
    logits = torch.tensor([-20.0], requires_grad=True)
    losses.adversarial_generator(logits, "bce").backward()
    assert logits.grad.item() == pytest.approx(-1, abs=1e-6)


def test_eq_7_is_the_mean_absolute_difference():
    black, white = -torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert losses.cycle(white, white).item() == 0
    assert losses.cycle(white, black).item() == 2
    half = torch.cat([white, black])
    assert losses.cycle(half, half.flip(0)).item() == 2
    assert losses.cycle(half, torch.zeros_like(half)).item() == 1

    a, b = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1)
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert losses.cycle(a, b).item() == pytest.approx(sum(abs(x - y) for x, y in pairs) / len(pairs), rel=1e-5)


def test_eq_10_sums_layers_each_in_units_of_its_mean_square():
    shapes, scales = [(2, 3, 4, 5), (2, 7, 2, 3)], [4.0, 0.5]
    real = [numbers(*shape, seed=i) for i, shape in enumerate(shapes)]
    fake = [numbers(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
    expected = 0
    for a, b, scale in zip(real, fake, scales, strict=True):
        pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
        expected += sum((x - y) ** 2 for x, y in pairs) / len(pairs) / scale
    assert losses.feature(real, fake, torch.tensor(scales)).item() == pytest.approx(expected, rel=1e-5)
    assert losses.feature(real, real, torch.tensor(scales)).item() == 0
    # everything 2 apart, unit 4: 1 a layer
    apart = losses.feature([torch.zeros(1, 2, 2, 2)] * 2, [torch.full((1, 2, 2, 2), 2.0)] * 2, torch.tensor([4.0, 4.0]))
    assert apart.item() == 2


def test_eq_10_wants_the_same_layers_of_both():
    with pytest.raises(ValueError):
        losses.feature([torch.zeros(1, 1, 1, 1)], [torch.zeros(1, 1, 1, 1)] * 2, torch.ones(1))


def test_eq_12_by_hand():
    # two classes; the probability of the label is 1/2, then about 1, then about 0
    logits = torch.tensor([[[[0.0, 40.0, -40.0]], [[0.0, 0.0, 0.0]]]])
    labels = torch.tensor([[[0, 0, 0]]])
    assert losses.cross_entropy(logits, labels).item() == pytest.approx((math.log(2) + 0 + 40) / 3, rel=1e-6)
    assert losses.cross_entropy(logits[..., 1:2], labels[..., 1:2]).item() == pytest.approx(0, abs=1e-6)


def test_eq_12_against_a_loop_that_skips_ignored_pixels():
    logits = numbers(2, 3, 2, 4)
    labels = torch.tensor([[[0, 1, 2, 255], [255, 2, 1, 0]], [[255, 255, 255, 1], [0, 0, 2, 2]]])
    terms = [
        -math.log(softmax(logits[b, :, y, x].tolist())[labels[b, y, x]])
        for b in range(2)
        for y in range(2)
        for x in range(4)
        if labels[b, y, x] != 255
    ]
    assert len(terms) == 11
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(sum(terms) / 11, rel=1e-5)


def test_eq_12_ignored_pixels_get_no_gradient():
    logits = numbers(1, 3, 1, 4).requires_grad_()
    losses.cross_entropy(logits, torch.tensor([[[0, 255, 2, 255]]])).backward()
    moved = logits.grad.abs().sum(1).flatten() > 0
    assert moved.tolist() == [True, False, True, False]


def test_eq_12_of_a_batch_without_labels_is_zero_and_teaches_nothing():
    logits = numbers(2, 3, 2, 2).requires_grad_()
    loss = losses.cross_entropy(logits, torch.full((2, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    # and where other processes have no labels either
    assert losses.cross_entropy(logits, torch.full((2, 2, 2), 255), valid=torch.tensor(0.0)).item() == 0


def test_eq_12_parts_of_a_batch_sum_up_to_it():
    logits, labels = numbers(4, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]], [[255, 255], [255, 1]]] * 2)
    labels[3] = 2  # the parts differ in the number of their labelled pixels
    valid = (labels != 255).sum()
    parts = [losses.cross_entropy(logits[i : i + 2], labels[i : i + 2], valid) for i in (0, 2)]
    whole = losses.cross_entropy(logits, labels)
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    means = [losses.cross_entropy(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    assert sum(means).item() / 2 != pytest.approx(whole.item(), rel=1e-3)


@pytest.mark.parametrize(
    "probabilities, rho, kept",
    [
        ([0.5, 0.5], 0.5, 1),  # exactly ρ is kept
        ([0.5, 0.5], 0.51, 0),
        ([1.0, 0.0], 0.9, 1),
        ([0.0, 1.0], 1.0, 1),
        ([0.25, 0.75], 0.75, 1),
        ([0.25, 0.75], 0.7500001, 0),
        ([0.2, 0.1, 0.7], 0.7 - 1e-6, 1),
        ([0.2, 0.1, 0.7], 0.9, 0),
        ([0.25, 0.25, 0.25, 0.25], 0.25, 1),
        ([0.25, 0.25, 0.25, 0.25], 0.5, 0),
        ([0.0625, 0.875, 0.0625], 0.875, 1),
        ([0.4, 0.3, 0.3], 0.0, 1),
    ],
)
def test_eq_14_table(probabilities, rho, kept):
    mask = losses.confidence_mask(torch.tensor(probabilities).view(1, -1, 1, 1), rho)
    assert mask.shape == (1, 1, 1, 1) and mask.item() == kept


def test_eq_14_judges_each_pixel_of_each_image_alone():
    probabilities = numbers(3, 4, 5, 6).softmax(1)
    mask = losses.confidence_mask(probabilities, 0.5)
    assert mask.shape == (3, 1, 5, 6)
    expected = [
        float(max(probabilities[b, :, y, x].tolist()) >= 0.5) for b in range(3) for y in range(5) for x in range(6)
    ]
    assert 0 < sum(expected) < len(expected)
    assert mask.flatten().tolist() == expected


def test_eq_15_by_hand():
    sure = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    everything = torch.ones(1, 1, 1, 1)
    agree, oppose, undecided = (torch.tensor(x).view(1, 2, 1, 1) for x in ([40.0, -40.0], [-40.0, 40.0], [0.0, 0.0]))
    assert losses.consistency(sure, agree, everything).item() == pytest.approx(0, abs=1e-7)
    assert losses.consistency(sure, oppose, everything).item() == pytest.approx(1)  # (1 + 1) / 2 classes
    assert losses.consistency(sure, undecided, everything).item() == pytest.approx(0.25)


def test_eq_15_rejected_pixels_count_zero_in_a_mean_over_all():
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    oppose = torch.tensor([-40.0, 40.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    # one pixel of four is wholly wrong: a quarter, not the 1 of a mean over accepted pixels
    assert losses.consistency(target, oppose, mask).item() == pytest.approx(0.25)
    assert losses.consistency(target, oppose, torch.zeros(1, 1, 1, 4)).item() == 0


def test_eq_15_against_a_loop():
    probabilities, logits = numbers(2, 3, 2, 4).softmax(1), numbers(2, 3, 2, 4, seed=1)
    mask = losses.confidence_mask(probabilities, 0.6)
    total = 0
    for b in range(2):
        for y in range(2):
            for x in range(4):
                student, teacher = softmax(logits[b, :, y, x].tolist()), probabilities[b, :, y, x].tolist()
                if max(teacher) >= 0.6:
                    total += sum((t - s) ** 2 for t, s in zip(teacher, student, strict=True))
    assert 0 < mask.sum() < 16
    assert losses.consistency(probabilities, logits, mask).item() == pytest.approx(total / (2 * 3 * 2 * 4), rel=1e-5)


def test_eq_15_moves_the_student_at_accepted_pixels_only():
    logits = numbers(1, 3, 1, 4).requires_grad_()
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 4)
    losses.consistency(numbers(1, 3, 1, 4, seed=1).softmax(1), logits, mask).backward()
    assert (logits.grad.abs().sum(1).flatten() > 0).tolist() == [True, False, True, False]


def test_losses_of_half_precision_are_reckoned_in_float32():
    x = torch.full((1, 2, 64, 64), 0.001, dtype=torch.bfloat16)
    labels, features = torch.zeros(1, 64, 64, dtype=torch.long), [x]
    for loss in (
        losses.adversarial_generator(x, "bce"),
        losses.adversarial_discriminator(x, x, "lsgan"),
        losses.cycle(x, -x),
        losses.feature(features, [-x], torch.ones(1)),
        losses.cross_entropy(x, labels),
        losses.consistency(x, x, torch.ones(1, 1, 64, 64)),
    ):
        assert loss.dtype == torch.float32 and loss.shape == ()
