"""What the teacher makes of night images, and what of it the mask of Eq. 14 accepts, class by class."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from daynight.system.console import warn


class TeacherHealth:
    """Measures a step's pseudo-labels, and warns of a class of the day labels none of which is accepted for long.

    `patience`: for how many steps. What it remembers is a function of the lines of metrics.jsonl: `lines` are those of
    a run that goes on, `follow` is told each that is added.
    """

    def __init__(self, names: Sequence[str], patience: int, lines: Iterable[dict] = ()):
        self.names, self.patience = names, patience
        self.labelled: set[str] = set()
        self.warned: set[str] = set()
        self.since: int | None = None
        self.accepted: dict[str, int] = {}
        for line in lines:
            self._take(line)

    @torch.no_grad()
    def __call__(self, probabilities, mask, labels) -> dict[str, torch.Tensor]:
        """Of the teacher's softmax on night (B×C×H×W), the mask of it (B×1×H×W, 0 or 1) and the day labels of the batch
        (B×H×W, 255 = none), for `Run.log`:

        entropy: mean over the pixels, in units of log C, 0 to 1. For each class, as a sum and what it is a share of:
        accepted, of the pixels predicted as it; predicted, its share of all night pixels; learned, of the accepted
        ones; labelled, of the labelled day pixels.
        """
        classes = len(self.names)
        # one count a class, of what is predicted and rejected, predicted and accepted, labelled; the last: not labelled
        places = probabilities.argmax(1) + classes * mask[:, 0].long()
        counts = torch.zeros(3 * classes + 1, device=mask.device, dtype=torch.float32)
        for index in (places, 2 * classes + labels.clamp(max=classes)):
            # bincount would have the GPU waited for
            counts.scatter_add_(0, index.flatten(), torch.ones_like(index.flatten(), dtype=torch.float32))
        # per sample: the mean over processes is then the same however many there are
        rejected, accepted, labelled = (counts[:-1] / len(labels)).view(3, classes)
        predicted = rejected + accepted
        shares = {
            "accepted": (accepted, predicted),
            "learned": (accepted, accepted.sum().expand(classes)),
            "predicted": (predicted, predicted.sum().expand(classes)),
            "labelled": (labelled, labelled.sum().expand(classes)),
        }
        entropy = torch.special.entr(probabilities.float()).sum(1).mean() / math.log(max(2, classes))
        values = {"entropy": entropy}
        for kind, (part, whole) in shares.items():
            values |= {f"{kind}/{n}": x for n, x in zip(self.names, torch.stack([part, whole], 1), strict=True)}
        return values

    def follow(self, line: dict | None) -> None:
        """A line of metrics.jsonl, where one was written: warns, once for each class until it is accepted again."""
        for steps, names in self._take(line or {}).items():
            warn(f"{', '.join(names)}: no accepted night pixel in {steps:,} steps")

    def _take(self, line: dict) -> dict[int, list[str]]:
        """The classes to warn of, by the number of steps that they have gone without."""
        if "entropy" not in line:
            return {}
        step, found = line["step"], defaultdict(list)
        self.since = step if self.since is None else self.since
        for name in self.names:
            if line.get(f"labelled/{name}", 0) > 0:
                self.labelled.add(name)
            if line.get(f"accepted/{name}", 0) > 0:
                self.accepted[name] = step
                self.warned.discard(name)
            without = step - self.accepted.get(name, self.since)
            if without >= self.patience and name in self.labelled - self.warned:
                self.warned.add(name)
                found[without].append(name)
        return found
