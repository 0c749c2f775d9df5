"""The losses, one function each, in the paper's order.

Eq. 4 `adversarial_generator`, `adversarial_discriminator` · Eq. 7 `cycle` · Eq. 10 `feature` · Eq. 12 `cross_entropy`
· Eq. 14 `confidence_mask` · Eq. 15 `consistency`. Elsewhere: Eq. 2, 3, 5, 6 are the forward passes and Eq. 8, 11 the
sum of a step in `translation.py`, Eq. 13 is in `ema.py`, Eq. 16 is the sum of a step in `segmentation.py`.

Symbols: x_s `day`, x_t `night`, G_{S→T} `day2night`, G_{T→S} `night2day`, x̂_s `fake_night`, x̂_t `fake_day`,
x_s^cyc `cycle_day`, x_t^cyc `cycle_night`, y_s `labels`, f_S `student`, f_T `teacher`, σ softmax, w the mask.
The halves of Eq. 7, 8, 10, 11, 12 and 15 are one function called twice. All losses are scalars in float32.
"""

import torch
from torch.nn import functional as F


def adversarial_generator(fake_logits, kind: str):
    """Eq. 4, the generator's side: D's logits of G's images, any shape; mean over patches.

    "bce" minimises -log D(G(x)), the non-saturating form; "lsgan" is CycleGAN's least squares.
    """
    fake_logits = fake_logits.float()
    if kind == "bce":
        return F.softplus(-fake_logits).mean()
    return (fake_logits - 1).square().mean()


def adversarial_discriminator(real_logits, fake_logits, kind: str):
    """Eq. 4, the discriminator's side, halved as in CycleGAN: logits of real images and of G's, any shape."""
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    if kind == "bce":
        return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2
    return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2


def cycle(images, reconstructed):
    """Eq. 7, one half: the mean absolute difference of B×3×H×W and its reconstruction, both in [-1, 1]."""
    return (images.float() - reconstructed.float()).abs().mean()


def feature(features, fake_features, scales):
    """Eq. 10, summed over layers: the mean squared difference of a layer's activations (B×d×h×w, of an image and of
    its translation), divided by the layer's mean square over real images (`scales`, one number a layer)."""
    terms = [(a.float() - b.float()).square().mean() for a, b in zip(features, fake_features, strict=True)]
    return (torch.stack(terms) / scales).sum()


def cross_entropy(logits, labels, valid=None, ignore_index: int = 255):
    """Eq. 12, one half: logits B×C×H×W against train ids B×H×W (`ignore_index` = no label), summed and divided by
    `valid`, the number of labelled pixels (of these labels by default; of all processes' where there are several)."""
    if valid is None:
        valid = (labels != ignore_index).sum()
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    return total / torch.as_tensor(valid, device=total.device).clamp(min=1)


def confidence_mask(probabilities, rho: float):
    """Eq. 14: B×C×H×W of the teacher's softmax → B×1×H×W, 1 where its largest probability is at least ρ, else 0."""
    return (probabilities.amax(1, keepdim=True) >= rho).float()


def consistency(teacher_probabilities, student_logits, mask):
    """Eq. 15, one half: the masked squared difference of both softmax outputs (B×C×H×W, mask B×1×H×W), averaged over
    all pixels and classes; a rejected pixel counts 0."""
    difference = teacher_probabilities.float() - student_logits.float().softmax(1)
    return (mask * difference.square()).mean()


def pseudo_labels(teacher_probabilities, student_logits, weights):
    """In place of Eq. 15 (Hoyer et al. 2022, DAFormer): cross-entropy of the student (B×C×H×W) against the teacher's
    most probable class, times `weights` (B×1×H×W), averaged over all pixels."""
    each = F.cross_entropy(student_logits.float(), teacher_probabilities.argmax(1), reduction="none")
    return (weights[:, 0] * each).mean()
