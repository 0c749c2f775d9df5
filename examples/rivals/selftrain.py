"""Train rivals of Eq. 15 from the paper's related work. Everything else (networks, draws, Eq. 12, optimiser, teacher
for the evaluation) is as in `daynight seg-train --ssl`, with its options.

python selftrain.py --method threshold|balanced|mixup --day … --night … --translated … --out runs/rival

threshold: pseudo-labels (Lee 2013): the class that the student predicts, where its probability is at least 0.9.
balanced: class-balanced self-training (Zou et al. 2018): the same share of each class's pixels, the most certain ones,
  from 20 to 50 % over training. The original labels all images again in rounds; here the bounds follow the batches.
mixup: interpolation consistency (Verma et al. 2019): on a mixture of two night images the student should predict the
  mixture of the teacher's predictions; mean squared difference, weighted by `--lambda-ssl`.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from daynight import cli, losses
from daynight.config import Optimisation, SegTrainOptions, numbers
from daynight.data.sampling import batches, generator
from daynight.data.sets import load
from daynight.data.translated import Draw
from daynight.models.ema import EMA
from daynight.reports.card import write_card
from daynight.segmentation import build_student, translation_source
from daynight.training.checkpoint import Checkpoint
from daynight.training.run import Run, ramp
from daynight.training.validation import fingerprints

METHODS = Literal["threshold", "balanced", "mixup"]


@dataclass(kw_only=True)
class Options(SegTrainOptions):
    """Train a rival of Eq. 15 from the paper's related work."""

    method: METHODS = Optimisation(..., "The rival to train.")


class Bounds:
    """For each class the probability that a given share of its predicted pixels exceeds, averaged over batches."""

    def __init__(self, classes: int, device):
        self.values = torch.full((classes,), 0.9, device=device)

    def __call__(self, probability, label, share: float):
        for c in label.unique():
            bound = probability[label == c].float().quantile(1 - share)
            self.values[c] = 0.9 * self.values[c] + 0.1 * bound
        return self.values[label]

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values.copy_(state["values"])


def pseudo_labels(seen, options: Options, done: float, bounds: Bounds):
    """B×C×H×W probabilities → B×H×W train ids, 255 where they are uncertain. `done`: share of the training, 0 to 1."""
    probability, label = seen.max(1)
    if options.method == "threshold":
        return label.where(probability >= 0.9, 255)
    return label.where(probability >= bounds(probability, label, 0.2 + 0.3 * done), 255)


def train(options: Options) -> None:
    options.ssl = True  # so that night images are drawn
    run, root = Run(options), Path(options.data_root)
    days = {"day": load(options.day, root, "--day", time="day", labelled=True)}
    nights = [load(name, root, "--night", time="night") for name in options.night]
    source = translation_source(options, days, root)
    torch.manual_seed(options.seed)
    student = build_student(options, days["day"])
    draw = Draw(options, days, nights, source)
    run.open(fingerprints({"--day": [days["day"]], "--night": nights}, {}))
    teacher = EMA(student.to(run.device), options.ema_decay)
    optimizer = torch.optim.Adam(student.parameters(), lr=options.lr, fused=True)
    bounds = Bounds(len(days["day"].classes), run.device)
    card = partial(write_card, run=run.folder, options=options)
    parts = {"student": student, "teacher": teacher.model, "optimizer": optimizer, "bounds": bounds}
    checkpoint = Checkpoint(run.folder, run.accelerator, {"teacher": teacher.model}, card, **parts)
    run.resume(checkpoint)
    student.train()

    loader = batches(draw, options.seed, range(run.first, run.total), run.slots, run.workers)
    for step, batch in run.steps(loader, checkpoint):
        batch = {name: tensor.to(run.device) for name, tensor in batch.items()}
        labels, views = batch["labels"], [batch["day"], batch["fake_day"]]
        if step < options.ssl_start * run.total:
            logits, night = student(torch.cat(views)), {}
        else:
            weak = batch["weak_night"]
            with torch.no_grad():
                seen = (teacher.model if options.method == "mixup" else student)(weak).softmax(1)
            share = torch.rand((), generator=generator(options.seed, step, "mixup")).item()
            mixed = share * weak + (1 - share) * weak.roll(1, 0)
            views.append(mixed if options.method == "mixup" else batch["strong_night"])
            dropout = [generator(options.seed, step, f"dropout {s}", run.device) for s in run.slots]
            logits, noisy = student(torch.cat(views), clean=2 * len(labels), dropout=dropout)
            if options.method == "mixup":
                target = share * seen + (1 - share) * seen.roll(1, 0)
                weight = ramp(step, run.total, *numbers(options.lambda_ssl))
                night = {"night": weight * losses.consistency(target, noisy, torch.ones_like(target[:, :1]))}
            else:
                chosen = pseudo_labels(seen, options, step / run.total, bounds)
                night = {"night": losses.cross_entropy(noisy, chosen), "accepted": (chosen != 255).float().mean()}
        terms = {
            f"ce_{n}": losses.cross_entropy(x, labels) for n, x in zip(("day", "fake"), logits.chunk(2), strict=True)
        }
        optimizer.zero_grad()
        sum([*terms.values(), *(x for name, x in night.items() if name == "night")]).backward()
        optimizer.step()
        teacher.update(student, step)
        run.log(step, **terms, **night)


if __name__ == "__main__":
    sys.argv.insert(1, "selftrain")
    cli.add("selftrain", Options, "__main__:train")
    cli.main()
