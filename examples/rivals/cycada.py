"""Train a translator with the semantic loss of CyCADA (Hoffman et al. 2018) instead of Eq. 10. It works as
`daynight translate-train`, but needs `--judge RUN`: translation should keep the predictions of this day model.

python cycada.py --judge runs/baseline --day … --night … --out runs/cycada
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from daynight import cli, losses, translation
from daynight.config import Model, TranslateTrainOptions
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import load_model


@dataclass(kw_only=True)
class Options(TranslateTrainOptions):
    """Train a translator with the semantic loss of CyCADA instead of Eq. 10."""

    judge: str = Model(..., "A run of seg-train on day images alone.")


class Judge(nn.Module):
    """Replaces the frozen feature network: its "features" are the logits of a segmentation network."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.norm = nn.Module()
        self.norm.register_buffer("scales", torch.ones(1))

    def forward(self, images) -> list[torch.Tensor]:
        return [self.network(images)]

    def calibrate(self, batches) -> None:
        """Do nothing: cross-entropy needs no scale."""


def semantic(logits, fake_logits, scales):
    """Cross-entropy of the judge on a translation against its own labels of the original, B×C×H×W each."""
    return F.cross_entropy(fake_logits[0].float(), logits[0].argmax(1))


def train(options: Options) -> None:
    judge = load_model(options.judge, "teacher", "--judge", DeepLabV2)
    translation.feature_network, losses.feature = lambda _: Judge(judge), semantic
    translation.train(options)


if __name__ == "__main__":
    sys.argv.insert(1, "cycada")
    cli.add("cycada", Options, "__main__:train")
    cli.main()
