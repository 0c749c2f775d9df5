"""DeepLabV2 (Chen et al. 2018) on VGG-16, the paper's segmentation network (§4.2), or on a timm backbone."""

import torch
from torch import nn
from torch.nn import functional as F

from daynight.models import backbones


class ASPP(nn.Module):
    """The head: four dilated branches, summed. Views that differ only in dropout share the costly `dilated` layers."""

    def __init__(self, channels: int, hidden: int, classes: int, rates: tuple[int, ...]):
        super().__init__()
        self.fc6 = nn.ModuleList(nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate) for rate in rates)
        self.fc7 = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in rates)
        self.fc8 = nn.ModuleList(nn.Conv2d(hidden, classes, 1) for _ in rates)
        for layer in self.fc8:
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)

    def dilated(self, features) -> list[torch.Tensor]:
        return [F.relu(fc6(features)) for fc6 in self.fc6]

    def classify(self, hidden: list[torch.Tensor], dropout=None):
        logits = 0
        for x, fc7, fc8 in zip(hidden, self.fc7, self.fc8, strict=True):
            x = F.relu(fc7(drop(x, dropout)))
            logits = logits + fc8(drop(x, dropout))
        return logits


def drop(x, generators):
    """Dropout with p = 0.5. Each sample's mask comes from its own generator, on x's device. None: no dropout."""
    if not generators:
        return x
    masks = [torch.empty(x.shape[1:], device=x.device).bernoulli_(0.5, generator=g) for g in generators]
    return x * torch.stack(masks).to(x.dtype) * 2


class DeepLabV2(nn.Module):
    """f, images → class logits: B×3×H×W in [-1, 1] → B×classes×H×W.

    `backbone` is "vgg16" (the paper's: output stride 8, rates 6, 12, 18, 24) or a timm network; one that accepts no
    `output_stride` runs at its own. A larger stride gives smaller rates, which span as many pixels. `hidden` is the
    width of the head (1024 in the paper). `frozen_norm` keeps batch norm at its pretrained statistics and trains its
    affine part. `names`, `colors` (RGB, 0 to 255) and `size` (of images, as `--size`) are saved with the model.
    Raises `ValueError` for a network that cannot be a backbone.
    """

    def __init__(
        self,
        names: list[str],
        colors: list[tuple[int, int, int]],
        backbone: str = "vgg16",
        output_stride: int = 8,
        hidden: int = 1024,
        frozen_norm: bool = True,
        size: str = "512",
        **timm_options,
    ):
        super().__init__()
        self.backbone = backbones.backbone(backbone, output_stride, **timm_options)
        output_stride = self.backbone.output_stride
        self.config = {
            "names": list(names), "colors": [list(c) for c in colors], "backbone": backbone,
            "output_stride": output_stride, "hidden": hidden, "frozen_norm": frozen_norm, "size": size,
        }  # fmt: skip
        self.normalise = backbones.Normalise(self.backbone.pretrained_cfg)
        rates = tuple(max(1, rate * 8 // output_stride) for rate in (6, 12, 18, 24))
        self.head = ASPP(self.backbone.channels, hidden, len(names), rates)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        for module in self.backbone.modules():
            if self.config["frozen_norm"] and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images, clean: int | None = None, dropout=()):
        """Logits of the first `clean` images (all by default), without dropout.

        `dropout` holds a generator for each of the last images: their logits under dropout (p = 0.5, §3.3) are the
        second result. The layers before dropout run once, so a training step calls the network once.
        """
        features, (height, width) = self.backbone(self.normalise(images)), images.shape[-2:]
        features = features[-1] if isinstance(features, list) else features
        # a map of padded images reaches beyond the image
        padded = isinstance(self.backbone, backbones.AnySize) and self.backbone.plan.multiple > 1
        size = [n * self.backbone.output_stride for n in features.shape[-2:]] if padded else (height, width)
        hidden = self.head.dilated(features)

        def at_full_size(logits):
            return F.interpolate(logits, size, mode="bilinear", align_corners=False)[..., :height, :width]

        logits = at_full_size(self.head.classify([x[:clean] for x in hidden]))
        if not dropout:
            return logits
        return logits, at_full_size(self.head.classify([x[-len(dropout) :] for x in hidden], dropout))
