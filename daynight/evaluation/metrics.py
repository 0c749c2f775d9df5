"""Confusion matrix, IoU, pixel accuracy, three averaging rules of mIoU (§4.3) and its interval over images; kernel
inception distance."""

import torch


def confusion_matrix(labels, predictions, classes: int, ignore_index: int = 255, void: bool = False):
    """Pixels by label (row) and prediction (column): two integer tensors of one shape → classes×classes, int64.

    Labels are 0 to classes - 1, or `ignore_index`, whose pixels do not count. Predictions are 0 to classes - 1. With
    `void` predictions may also be larger; one more column counts these as misses, as cityscapesScripts does.
    """
    size = classes + 1
    # memory traffic takes the time, so use few bytes a pixel; one more row for ignored pixels is cheaper than a mask
    dtype = torch.int16 if size * size <= 2**15 else torch.int32
    rows = labels.to(dtype).where(labels != ignore_index, classes)
    pairs = rows.mul_(size).add_(predictions.clamp(max=classes))
    matrix = torch.bincount(pairs.flatten(), minlength=size * size).view(size, size)
    return matrix[:classes] if void else matrix[:classes, :classes]


def counts(matrix):
    """Confusion matrix → the numbers that scores are computed from, 3×classes, int64: pixels that are right (TP),
    labelled (TP + FN), and predicted (TP + FP). The counts of several images add up, as matrices do."""
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)[: len(matrix)]])


def iou(matrix):
    """TP / (TP + FP + FN) of each class, 0 to 1: classes×classes, or with the column of `void` → classes (float64), NaN
    where TP+FP+FN = 0."""
    return _iou(counts(matrix))


def accuracy(matrix) -> float:
    """Share of labelled pixels whose class is right, 0 to 1; NaN if no pixel is labelled."""
    hit, labelled, _ = counts(matrix).double().sum(-1)
    return float(hit / labelled)


def mean_iou(matrix, rule: str = "present") -> float:
    """mIoU, 0 to 1, over the classes that occur in the labels ("present", the paper), the classes with TP+FP+FN > 0
    ("official", cityscapesScripts), or all classes, absent ones counting 0 ("all"). NaN if nothing is labelled."""
    return float(mean_iou_of(counts(matrix), rule))


def bootstrap(of_images, rule: str = "present", samples: int = 1000, seed: int = 0):
    """The `counts` of each image, images×3×classes → the mIoU, 0 to 1, of `samples` samples (float64), NaN where a
    sample has no labelled pixel. Each sample draws as many images as there are, with replacement.

    The seed and the number of images determine the draws, so differences between two models are paired by image.
    """
    generator = torch.Generator().manual_seed(seed)
    images, values = len(of_images), of_images.double().flatten(1)  # exact: pixels stay far below 2^53
    sums = []
    for _ in range(samples):
        drawn = torch.randint(images, (images,), generator=generator)
        sums.append(drawn.bincount(minlength=images).double() @ values)
    return mean_iou_of(torch.stack(sums).unflatten(1, of_images.shape[1:]), rule)


def interval(values, level: float = 0.95) -> tuple[float, float]:
    """The percentiles that enclose the share `level` of `bootstrap`'s values, or of their differences, without NaN."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    return tuple(values.nanquantile(ends).tolist())


def _iou(counts):
    """…×3×classes → …×classes."""
    hit, labelled, predicted = counts.double().unbind(-2)
    return hit / (labelled + predicted - hit)


def mean_iou_of(counts, rule: str = "present"):
    """…×3×classes → …. All rules have the same sum; they differ in the number of classes that divides it. It is summed
    class by class, as cityscapesScripts does: `Tensor.sum` differs in the last digits."""
    ious, occurs = _iou(counts), counts[..., 1, :] > 0
    if rule == "present":
        number = occurs.sum(-1)
    elif rule == "official":
        number = (~ious.isnan()).sum(-1)
    else:
        number = occurs.any(-1) * occurs.shape[-1]
    return sum(ious.nan_to_num(0.0).unbind(-1)) / number


def kid(a, b) -> tuple[float, float]:
    """Kernel inception distance (Bińkowski et al. 2018) of two sets of feature vectors, N×D and M×D (N, M ≥ 3): the
    unbiased estimate of MMD² with the kernel (xᵀy / D + 1)³, and its standard error. For equal distributions the
    expected value is 0, so the estimate may be negative.

    The error is a jackknife estimate that leaves out each image of either set in turn. For independent images it is on
    average no smaller than the true error, and up to √2 larger if the distributions are equal. For frames of one video,
    which are not independent, it is too small. Computed in float64.
    """
    a, b = a.double(), b.double()
    (n, size), m = a.shape, len(b)
    of_a, of_b, across = (((x @ y.T) / size + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    rows_a, rows_b = (of_one.sum(1) - of_one.diagonal() for of_one in (of_a, of_b))
    within_a, within_b = rows_a.sum() / (n * (n - 1)), rows_b.sum() / (m * (m - 1))
    without_a = (rows_a.sum() - 2 * rows_a) / ((n - 1) * (n - 2))
    without_a -= 2 * (across.sum() - across.sum(1)) / ((n - 1) * m)
    without_b = (rows_b.sum() - 2 * rows_b) / ((m - 1) * (m - 2))
    without_b -= 2 * (across.sum() - across.sum(0)) / (n * (m - 1))
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    return float(within_a + within_b - 2 * across.mean()), float(variance.sqrt())
