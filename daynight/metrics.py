"""Confusion matrix, IoU, pixel accuracy and the three averaging rules of mIoU (§4.3)."""

import torch


def confusion_matrix(labels, predictions, classes: int, ignore_index: int = 255):
    """Pixels by label (row) and prediction (column): two integer tensors of one shape → classes×classes, int64.

    Pixels labelled `ignore_index` do not count. Labels and predictions lie below `classes` otherwise.
    """
    # one class more takes the ignored pixels: cheaper than picking the others out
    labels = labels.long().where(labels != ignore_index, classes)
    pairs = labels.flatten() * classes + predictions.flatten().long()
    return torch.bincount(pairs, minlength=(classes + 1) * classes)[: classes * classes].view(classes, classes)


def iou(matrix):
    """Intersection over union of each class, 0 to 1: classes×classes → classes (float64), NaN where TP+FP+FN = 0."""
    matrix = matrix.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)


def accuracy(matrix) -> float:
    """Share of labelled pixels whose class is right, 0 to 1; NaN without any."""
    matrix = matrix.double()
    return float(matrix.diagonal().sum() / matrix.sum())


def mean_iou(matrix, rule: str = "present") -> float:
    """mIoU, 0 to 1, over: "present", the classes that occur in the labels (the paper); "official", those with
    TP+FP+FN > 0 (cityscapesScripts); "all", every class, an absent one counting 0. NaN where that is none."""
    ious = iou(matrix)
    if rule == "present":
        return float(ious[matrix.sum(1) > 0].mean())
    if rule == "official":
        return float(ious[~ious.isnan()].mean())
    return float(ious.nan_to_num(0).mean())
