"""The PatchGAN discriminator (Isola et al. 2017; §4.2)."""

from torch import nn

from daynight.models.generator import InstanceNorm, init


class Discriminator(nn.Sequential):
    """D, is each 70×70 patch real? B×3×H×W in [-1, 1] → logits B×1×(H/8-2)×(W/8-2); H and W at least 32.

    64 filters are the paper's. Convolutions before an instance norm have no bias.
    """

    def __init__(self, width: int = 64):
        layers = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for c, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(c, 2 * c, 4, stride, padding=1, bias=False), InstanceNorm(), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        self.config = {"width": width}
        self.apply(init)
