"""Confusion matrix, IoU and the three averaging rules, against loops and numbers reckoned by hand."""

import math

import pytest
import torch

from daynight.metrics import accuracy, confusion_matrix, iou, mean_iou


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(37,), (5, 7), (2, 3, 4)])
def test_confusion_matrix_against_a_double_loop(dtype, shape):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(4, shape, generator=g)
    labels[torch.rand(shape, generator=g) < 0.2] = 255
    predictions = torch.randint(4, shape, generator=g)
    expected = [[0] * 4 for _ in range(4)]
    for label, prediction in zip(labels.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        if label != 255:
            expected[label][prediction] += 1
    matrix = confusion_matrix(labels.to(dtype), predictions.to(dtype), 4)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == expected


def test_confusion_matrix_of_19_classes_does_not_overflow_bytes():
    labels = torch.full((300,), 18, dtype=torch.uint8)
    matrix = confusion_matrix(labels, labels, 19)
    assert matrix[18, 18] == 300 and matrix.sum() == 300


def test_another_ignore_index():
    labels, predictions = torch.tensor([0, 1, 7]), torch.tensor([0, 0, 1])
    assert confusion_matrix(labels, predictions, 2, ignore_index=7).tolist() == [[1, 0], [1, 0]]


def test_iou_and_accuracy_by_hand():
    # rows labels: class 0 has 3 of 4 right, class 1 has 4 of 6 right
    matrix = torch.tensor([[3, 1], [2, 4]])
    assert iou(matrix).tolist() == pytest.approx([3 / (3 + 1 + 2), 4 / (4 + 2 + 1)])
    assert accuracy(matrix) == pytest.approx(0.7)
    assert mean_iou(matrix) == pytest.approx((3 / 6 + 4 / 7) / 2)
    perfect = torch.tensor([[5, 0], [0, 1]])
    assert iou(perfect).tolist() == [1, 1] and accuracy(perfect) == 1
    wrong = torch.tensor([[0, 5], [1, 0]])
    assert iou(wrong).tolist() == [0, 0] and accuracy(wrong) == 0


def test_the_three_rules_differ_as_they_say():
    # class 2 is predicted twice and never labelled; class 3 is neither
    matrix = torch.tensor([[3, 0, 1, 0], [0, 4, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    ious = iou(matrix).tolist()
    assert ious[:3] == pytest.approx([3 / 4, 4 / 5, 0]) and math.isnan(ious[3])
    assert mean_iou(matrix, "present") == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert mean_iou(matrix, "official") == pytest.approx((3 / 4 + 4 / 5) / 3)
    assert mean_iou(matrix, "all") == pytest.approx((3 / 4 + 4 / 5) / 4)
    assert mean_iou(matrix) == mean_iou(matrix, "present")


def test_a_class_labelled_and_never_found_counts_by_every_rule():
    matrix = torch.tensor([[1, 0], [1, 0]])
    assert [mean_iou(matrix, rule) for rule in ("present", "official", "all")] == [0.25] * 3


def test_56_5_over_the_17_classes_of_nighttime_driving_is_50_6_over_19():
    # 1130 of 1130 + 870 pixels are right; the rest of a class is labelled as it and called the next
    right, wrong = 1130, 870
    matrix = torch.zeros(19, 19, dtype=torch.int64)
    present = [c for c in range(19) if c not in (9, 17)]  # terrain and motorcycle do not occur
    for i, c in enumerate(present):
        matrix[c, c] = right
        matrix[c, present[(i + 1) % 17]] = wrong // 2
    assert 100 * mean_iou(matrix, "present") == pytest.approx(56.5)
    assert 100 * mean_iou(matrix, "official") == pytest.approx(56.5)
    assert round(100 * mean_iou(matrix, "all"), 1) == 50.6
    # a single pixel called terrain
    matrix[0, 9] = 1
    assert 100 * mean_iou(matrix, "present") == pytest.approx(56.5, abs=0.01)
    assert 100 * mean_iou(matrix, "official") == pytest.approx(56.5 * 17 / 18, abs=0.01)


def test_images_without_a_label_change_nothing_and_alone_give_nan():
    void = confusion_matrix(torch.full((4, 4), 255, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8), 3)
    assert void.shape == (3, 3) and void.sum() == 0
    assert math.isnan(accuracy(void)) and iou(void).isnan().all()
    assert math.isnan(mean_iou(void, "present")) and math.isnan(mean_iou(void, "official"))
    assert confusion_matrix(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8), 3).sum() == 0
