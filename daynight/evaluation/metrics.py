"""Confusion matrix, IoU, pixel accuracy, the three averaging rules of mIoU (§4.3), its interval over images, and the
kernel inception distance."""

import torch


def confusion_matrix(labels, predictions, classes: int, ignore_index: int = 255, void: bool = False):
    """Pixels by label (row) and prediction (column): two integer tensors of one shape → classes×classes, int64.

    Labels are 0 to classes - 1, or `ignore_index`, whose pixels do not count. Predictions are 0 to classes - 1; with
    `void` they may be any number above, and one column more counts those: misses, as cityscapesScripts has them.
    """
    size = classes + 1
    # few bytes a pixel: the time goes into memory; one row more for what is ignored is cheaper than picking it out
    dtype = torch.int16 if size * size <= 2**15 else torch.int32
    rows = labels.to(dtype).where(labels != ignore_index, classes)
    pairs = rows.mul_(size).add_(predictions.clamp(max=classes))
    matrix = torch.bincount(pairs.flatten(), minlength=size * size).view(size, size)
    return matrix[:classes] if void else matrix[:classes, :classes]


def counts(matrix):
    """What the scores are made of: a confusion matrix → 3×classes, int64: pixels that are right (TP), that are labelled
    (TP + FN), and that are predicted (TP + FP). Those of several images add up as matrices do."""
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)[: len(matrix)]])


def iou(matrix):
    """TP / (TP + FP + FN) of each class, 0 to 1: classes×classes, or with the column of `void`, → classes (float64),
    NaN where TP+FP+FN = 0."""
    return _iou(counts(matrix))


def accuracy(matrix) -> float:
    """Share of labelled pixels whose class is right, 0 to 1; NaN without any."""
    hit, labelled, _ = counts(matrix).double().sum(-1)
    return float(hit / labelled)


def mean_iou(matrix, rule: str = "present") -> float:
    """mIoU, 0 to 1, over: "present", the classes that occur in the labels (the paper); "official", those with
    TP+FP+FN > 0 (cityscapesScripts); "all", every class, an absent one counting 0. NaN where nothing is labelled."""
    return float(mean_iou_of(counts(matrix), rule))


def bootstrap(of_images, rule: str = "present", samples: int = 1000, seed: int = 0):
    """mIoU, 0 to 1, of `samples` draws of as many images with replacement: images×3×classes, the `counts` of each
    image, → samples (float64), NaN where a draw has no labelled pixel.

    Seed and number of images settle what is drawn: the differences of two models' results are paired by image.
    """
    generator = torch.Generator().manual_seed(seed)
    images, values = len(of_images), of_images.double().flatten(1)  # exact: pixels stay far below 2^53
    sums = []
    for _ in range(samples):
        drawn = torch.randint(images, (images,), generator=generator)
        sums.append(drawn.bincount(minlength=images).double() @ values)
    return mean_iou_of(torch.stack(sums).unflatten(1, of_images.shape[1:]), rule)


def interval(values, level: float = 0.95) -> tuple[float, float]:
    """The percentiles that enclose the share `level` of `bootstrap`'s values, or of their differences; NaN is left
    out."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    return tuple(values.nanquantile(ends).tolist())


def _iou(counts):
    """…×3×classes → …×classes."""
    hit, labelled, predicted = counts.double().unbind(-2)
    return hit / (labelled + predicted - hit)


def mean_iou_of(counts, rule: str = "present"):
    """…×3×classes → …. The sum is the same by every rule; they differ in the number of classes it is divided by."""
    ious, occurs = _iou(counts), counts[..., 1, :] > 0
    if rule == "present":
        number = occurs.sum(-1)
    elif rule == "official":
        number = (~ious.isnan()).sum(-1)
    else:
        number = occurs.any(-1) * occurs.shape[-1]
    return ious.nansum(-1) / number


def kid(a, b) -> tuple[float, float]:
    """Kernel inception distance (Bińkowski et al. 2018) of two sets of feature vectors, N×D and M×D (N, M ≥ 3): the
    unbiased estimate of MMD² with the kernel (xᵀy / D + 1)³, and its standard error. 0 for one distribution, so the
    estimate may be negative.

    The error is the jackknife's, each image of either set left out in turn: for images that are independent draws it
    is on average no smaller than the true one, and up to √2 larger where the distributions are the same. Frames of
    one video are no independent draws: it is then too small. Reckoned in float64.
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
