"""The scores against cityscapesScripts, torchmetrics, loops, and numbers reckoned by hand; the bootstrap against every
draw there is; the kernel inception distance against loops and against what it estimates."""

import itertools
import math
import runpy
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from daynight.data.labels import TRAIN_ID_OF
from daynight.evaluation.metrics import (
    accuracy,
    bootstrap,
    confusion_matrix,
    counts,
    interval,
    iou,
    kid,
    mean_iou,
    mean_iou_of,
)

RULES = ("present", "official", "all")
# what cityscapesScripts 2.3.0 gave: examples/check_official.py --size 64 128 --images 3 --seed 0; None: not a number
OFFICIAL = [
    43.02884615384615,
    61.99859254046446,
    53.07017543859649,
    61.500701262272095,
    56.3165905631659,
    63.30371144798745,
    49.77973568281938,
    63.997627520759195,
    59.53038674033149,
    44.038929440389296,
    61.664295874822194,
    59.902710215427376,
    40.74074074074074,
    57.95744680851064,
    61.245674740484425,
    0.0,
    None,
    0.0,
    43.24324324324324,
]
OFFICIAL_MEAN = 48.96218935632558
DRAWN = 3369868767  # what they were given


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


def test_the_figures_of_cityscapesscripts_to_the_last_digit():
    draw = runpy.run_path(Path(__file__).parents[2] / "examples" / "check_official.py")["draw"]
    generator = np.random.default_rng(0)
    pairs = np.stack([draw(generator, 64, 128) for _ in range(3)])
    assert zlib.crc32(pairs.tobytes()) == DRAWN, "NumPy draws other numbers than before: run the example again"
    labels, predictions = torch.from_numpy(TRAIN_ID_OF[pairs]).unbind(1)
    matrix = confusion_matrix(labels, predictions, 19, void=True)
    assert [None if math.isnan(value) else 100 * value for value in iou(matrix).tolist()] == OFFICIAL
    assert 100 * mean_iou(matrix, "official") == OFFICIAL_MEAN

    # class 15 is predicted and never labelled, 16 neither, 17 labelled and never found
    total = math.fsum(filter(None, OFFICIAL))
    assert 100 * mean_iou(matrix, "present") == pytest.approx(total / 17, rel=1e-14)
    assert 100 * mean_iou(matrix, "all") == pytest.approx(total / 19, rel=1e-14)


def official_scores(matrix: list[list[int]]) -> tuple[list[float], float]:
    """evalPixelLevelSemanticLabeling.py in plain Python: getIouScoreForLabel of each class, getScoreAverage. The last
    column counts pixels whose prediction is no class."""
    classes, scores = range(len(matrix)), []
    for label in classes:
        tp = matrix[label][label]
        fn = sum(matrix[label]) - tp
        fp = sum(matrix[row][label] for row in classes if row != label)
        scores.append(float(tp) / (tp + fp + fn) if tp + fp + fn else math.nan)
    valid, total = 0, 0.0
    for score in scores:
        if not math.isnan(score):
            valid += 1
            total += score
    return scores, total / valid if valid else math.nan


def test_scores_are_bit_equal_to_the_official_loop():
    """Random confusion matrices of 1 to 60 classes, of which some are never labelled or never predicted."""
    g, different = np.random.default_rng(0), 0
    for trial in range(400):
        classes = int(g.integers(1, 61))
        matrix = g.integers(0, 10 ** int(g.integers(1, 11)), (classes, classes + 1))
        matrix[g.random(classes) < 0.2] = 0
        matrix[:, :classes][:, g.random(classes) < 0.2] = 0
        scores, mean = official_scores(matrix.tolist())
        ours = torch.from_numpy(matrix)
        np.testing.assert_array_equal(iou(ours).numpy(), scores)  # NaN is equal to NaN
        labelled = (matrix.sum(1) > 0).tolist()
        if not any(labelled):
            assert math.isnan(mean_iou(ours, "present"))
            continue
        # a class that is never labelled adds 0
        valid = sum(not math.isnan(score) for score in scores)
        total = 0.0
        for score in scores:
            total += 0.0 if math.isnan(score) else score
        assert mean_iou(ours, "official") == mean == total / valid, trial
        assert mean_iou(ours, "present") == total / sum(labelled), trial
        assert mean_iou(ours, "all") == total / classes, trial
        different += total != float(np.nansum(scores))
        many = torch.stack([counts(ours)] * 3)
        assert mean_iou_of(many, "official").tolist() == [mean] * 3
    assert different > 20, "another order gives the same: nothing is tested"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("classes", [1, 2, 19, 180, 181, 255])
def test_torchmetrics_counts_the_same(classes, dtype):
    g = torch.Generator().manual_seed(classes)
    labels, predictions = torch.randint(classes, (2, 3, 40, 50), generator=g)
    predictions = predictions.where(torch.rand(predictions.shape, generator=g) < 0.4, labels)
    labels[torch.rand(labels.shape, generator=g) < 0.1] = 255
    given = labels.to(dtype), predictions.to(dtype)
    matrix = confusion_matrix(*given, classes)
    assert torch.equal(given[0].long(), labels) and torch.equal(given[1].long(), predictions)  # left as they are
    if classes == 1:  # which torchmetrics does not take
        assert matrix.tolist() == [[(labels == 0).sum().item()]]
        return
    assert torch.equal(matrix, multiclass_confusion_matrix(predictions, labels, classes, ignore_index=255))
    jaccard = multiclass_jaccard_index(predictions, labels, classes, average=None, ignore_index=255)
    assert iou(matrix).nan_to_num(0).tolist() == pytest.approx(jaccard.tolist(), rel=1e-6)
    macro = multiclass_jaccard_index(predictions, labels, classes, average="macro", ignore_index=255)
    assert mean_iou(matrix, "official") == pytest.approx(macro.item(), rel=1e-5)


@st.composite
def scenes(draw):
    """Number of classes, labels, predictions: some classes may never be labelled, others never predicted, everything
    may be ignored, predictions may be none of the classes."""
    classes = draw(st.integers(1, 7))
    some = st.sets(st.integers(0, classes - 1))
    values = [sorted(draw(some) | draw(st.sampled_from([set(), {255}]))) or [255] for _ in range(2)]
    length = draw(st.integers(0, 40))
    labels, predictions = (draw(st.lists(st.sampled_from(v), min_size=length, max_size=length)) for v in values)
    above = draw(st.sampled_from([classes, 255]))
    predictions = [above if value == 255 else value for value in predictions]
    return classes, torch.tensor(labels, dtype=torch.uint8), torch.tensor(predictions, dtype=torch.uint8)


over_scenes = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@over_scenes
@given(scenes())
def test_counted_pixel_by_pixel(scene):
    classes, labels, predictions = scene
    matrix = confusion_matrix(labels, predictions, classes, void=True)
    pairs = [(a, min(b, classes)) for a, b in zip(labels.tolist(), predictions.tolist(), strict=True) if a != 255]
    pixels = Counter(pairs)
    assert matrix.tolist() == [[pixels[row, column] for column in range(classes + 1)] for row in range(classes)]

    hit = [pixels[c, c] for c in range(classes)]
    labelled = [sum(row == c for row, _ in pairs) for c in range(classes)]
    predicted = [sum(column == c for _, column in pairs) for c in range(classes)]
    assert counts(matrix).dtype == torch.int64 and counts(matrix).tolist() == [hit, labelled, predicted]
    ious = [h / (a + b - h) if a + b else math.nan for h, a, b in zip(hit, labelled, predicted, strict=True)]
    assert iou(matrix).tolist() == pytest.approx(ious, nan_ok=True, rel=1e-15)
    if not pairs:
        assert math.isnan(accuracy(matrix)) and all(math.isnan(mean_iou(matrix, rule)) for rule in RULES)
        return
    assert accuracy(matrix) == pytest.approx(sum(hit) / len(pairs))
    expected = {
        "present": [v for v, a in zip(ious, labelled, strict=True) if a],
        "official": [v for v in ious if not math.isnan(v)],
        "all": [0 if math.isnan(v) else v for v in ious],
    }
    for rule, values in expected.items():
        assert mean_iou(matrix, rule) == pytest.approx(math.fsum(values) / len(values), rel=1e-14)


@over_scenes
@given(scenes(), st.randoms(use_true_random=False))
def test_what_must_hold_in_any_scene(scene, random):
    classes, labels, predictions = scene
    matrix = confusion_matrix(labels, predictions, classes, void=True)
    scores = [mean_iou(matrix, rule) for rule in ("all", "official", "present")]
    assert scores == sorted(scores) or all(map(math.isnan, scores))

    # other ids of the same classes
    order = random.sample(range(classes), classes)
    ids = torch.tensor([*(order.index(c) for c in range(classes)), *range(classes, 256)], dtype=torch.uint8)
    renamed = confusion_matrix(ids[labels.long()], ids[predictions.long()], classes, void=True)
    assert torch.equal(iou(renamed).nan_to_num(-1), iou(matrix)[order].nan_to_num(-1))
    assert [mean_iou(renamed, rule) for rule in RULES] == pytest.approx(scores[::-1], nan_ok=True)

    # two images
    cut = random.randint(0, len(labels))
    halves = [
        confusion_matrix(labels[part], predictions[part], classes, void=True) for part in (slice(cut), slice(cut, None))
    ]
    assert torch.equal(sum(halves), matrix) and torch.equal(sum(map(counts, halves)), counts(matrix))

    # predictions of none of the classes cost what ignored pixels do not
    cut_off = matrix[:, :classes]
    assert (iou(matrix) <= iou(cut_off)).logical_or(iou(cut_off).isnan()).all()
    missed = matrix[:, classes] > 0
    assert (iou(matrix)[missed & (matrix.diagonal() > 0)] < iou(cut_off)[missed & (matrix.diagonal() > 0)]).all()
    if not missed.any():
        assert torch.equal(confusion_matrix(labels, predictions, classes), cut_off)


def plain_mean_iou(of_image, rule):
    """In a loop over classes, of the sum of some images' counts."""
    values = []
    for hit, labelled, predicted in zip(*np.sum(of_image, 0).tolist(), strict=True):
        union = labelled + predicted - hit
        if labelled or (rule == "official" and union) or rule == "all":
            values.append(hit / union if union else 0)
    return math.fsum(values) / len(values) if np.sum(of_image, 0)[1].sum() else math.nan


@pytest.mark.parametrize("rule", RULES)
def test_the_bootstrap_draws_each_of_27_draws_as_often(rule):
    # class 2 is labelled in one image alone, and predicted in another; the last image has no label
    of_images = np.array([[[3, 4, 0], [5, 6, 0], [6, 4, 1]], [[7, 1, 2], [9, 4, 5], [8, 7, 3]], [[0] * 3] * 3])
    every = [plain_mean_iou(of_images[list(draw)], rule) for draw in itertools.product(range(3), repeat=3)]
    expected = Counter(round(value, 9) for value in every if not math.isnan(value))
    values = bootstrap(torch.from_numpy(of_images), rule, samples=4000, seed=1)
    assert values.shape == (4000,) and values.dtype == torch.float64
    found = Counter(round(value, 9) for value in values.tolist() if not math.isnan(value))
    assert set(found) == set(expected) and len(expected) > 3
    for value, times in expected.items():
        share = times / 27
        assert abs(found[value] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert abs(values.isnan().double().mean() - 1 / 27) < 0.012


def two_classes(hit, pixels=200):
    """images×2 pixels that are right, of so many of each class, the others called the other class → images×3×2."""
    labelled = torch.full_like(hit, pixels)
    return torch.stack([hit, labelled, hit + (labelled - hit).flip(1)], 1)


def draw_hits(g, images=60, pixels=200):
    """images×2: three quarters of the pixels of each class in the mean, for which the mIoU is 0.75 / 1.25, but in each
    image another share."""
    share = 0.5 + 0.5 * torch.rand(images, 2, generator=g, dtype=torch.float64)
    return torch.binomial(torch.full_like(share, pixels), share, generator=g).long()


def test_differences_are_of_the_same_images():
    hit = draw_hits(torch.Generator().manual_seed(0))
    of_images = two_classes(hit)
    values = bootstrap(of_images, samples=300)
    assert torch.equal(bootstrap(of_images.clone(), samples=300), values)
    assert not torch.equal(bootstrap(of_images, samples=300, seed=1), values)
    # a little better on every image is better in every draw, though the draws differ by more than that
    difference = bootstrap(two_classes((hit + 1).clamp(max=200)), samples=300) - values
    assert difference.min() > 0 and values.std() > 2 * difference.mean()
    # also when they have other classes, or as many pixels as a data set has
    more = torch.cat([torch.zeros_like(of_images[..., :1]), of_images], 2)
    assert torch.allclose(bootstrap(more, samples=300), values, rtol=1e-14)
    assert torch.allclose(bootstrap(of_images * (10**9 + 1), samples=300), values, rtol=1e-14)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    covered = {0.95: 0, 0.8: 0}
    for seed in range(200):
        values = bootstrap(two_classes(draw_hits(g)), samples=300, seed=seed)
        for level in covered:
            low, high = interval(values, level)
            covered[level] += low <= 0.75 / 1.25 <= high
    assert 0.91 <= covered[0.95] / 200 <= 0.985
    assert 0.73 <= covered[0.8] / 200 <= 0.87


def test_the_order_of_images_does_not_matter():
    of_images = two_classes(draw_hits(torch.Generator().manual_seed(0)))
    low, high = interval(bootstrap(of_images, samples=4000))
    assert interval(bootstrap(of_images.flip(0), samples=4000)) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_an_interval_is_made_of_percentiles_and_leaves_nan_out():
    values = torch.cat([torch.arange(100, -1, -1), torch.tensor([math.nan] * 7)]).double()
    assert interval(values) == pytest.approx((2.5, 97.5))
    assert interval(values, 0.5) == pytest.approx((25, 75))
    assert all(map(math.isnan, interval(values[101:])))


def plain_mmd(a, b):
    """The unbiased MMD² of Bińkowski et al. 2018 in loops over lists of vectors."""

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    within = [
        sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_kid_and_its_error_in_loops():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 5, generator=g), torch.randn(4, 5, generator=g) * 2 + 1
    value, error = kid(a, b)
    lists = a.double().tolist(), b.double().tolist()
    assert value == pytest.approx(plain_mmd(*lists), rel=1e-12)
    variance = 0
    for this, other in (lists, lists[::-1]):
        without = [plain_mmd(this[:i] + this[i + 1 :], other) for i in range(len(this))]
        middle = math.fsum(without) / len(without)
        variance += (len(this) - 1) / len(this) * math.fsum((x - middle) ** 2 for x in without)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-9)

    assert kid(b, a) == pytest.approx((value, error), rel=1e-12)
    # D divides the product: the same features twice over are as far apart
    assert kid(a.repeat(1, 2), b.repeat(1, 2)) == pytest.approx((value, error), rel=1e-12)
    # what float32 would lose: cubes of large sums, nearly equal
    large = [x * 100 + 1000 for x in (a, b)]
    assert kid(*large)[0] == pytest.approx(plain_mmd(*(x.double().tolist() for x in large)), rel=1e-6)


@pytest.mark.parametrize("sizes", [(20, 60), (60, 60)])
def test_kid_estimates_what_it_says_as_closely_as_it_says(sizes):
    """Vectors drawn from a table of 40, whose distance is known: pᵀKp + qᵀKq - 2 pᵀKq."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(40, 8, generator=g, dtype=torch.float64)
    kernel = (points @ points.T / 8 + 1) ** 3
    p = torch.full((40,), 1 / 40, dtype=torch.float64)
    errors = []
    for tilt in (0, 0.3, 1):
        q = (tilt * points[:, 0]).softmax(0)
        truth = float((p - q) @ kernel @ (p - q))
        weights = list(zip((p, q), sizes, strict=True))
        draws = [[points[torch.multinomial(w, n, True, generator=g)] for w, n in weights] for _ in range(400)]
        values, found = torch.tensor([kid(*draw) for draw in draws]).T
        spread = values.std()
        assert abs(values.mean() - truth) < 4 * spread / 20, "biased"
        covered = ((values - truth).abs() < 1.96 * found).double().mean()
        assert 0.93 <= covered
        errors.append(float(found.square().mean().sqrt() / spread))
        if not tilt:
            assert 0.3 < (values < 0).double().mean() < 0.8
    # larger than true by √2 for one distribution, and about right where they differ
    assert errors[0] == pytest.approx(math.sqrt(2), rel=0.12) and 0.95 < errors[2] < 1.2, errors
