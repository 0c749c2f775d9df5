"""DeepLabV2 (Chen et al. 2018) on VGG-16, the paper's segmentation network (§4.2); or another backbone or head.

A head takes the backbone's maps, from fine to coarse. `shared` is what views that differ only in dropout have in
common, and `classify` makes logits of it. `stages` is how many maps it wants, `finest` which of them its logits are at.
"""

import torch
from torch import nn
from torch.nn import functional as F

from daynight.models import backbones


def dilated(channels: int, stride: int, hidden: int) -> nn.ModuleList:
    """fc6 of DeepLabV2's four branches. A larger stride has smaller rates, which span as many pixels."""
    rates = [max(1, rate * 8 // stride) for rate in (6, 12, 18, 24)]
    return nn.ModuleList(nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate) for rate in rates)


class ASPP(nn.Module):
    """DeepLabV2's head: four dilated branches, summed."""

    stages, finest = 1, -1

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], hidden: int, classes: int):
        super().__init__()
        self.fc6 = dilated(sum(channels), strides[-1], hidden)
        self.fc7 = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in self.fc6)
        self.fc8 = nn.ModuleList(nn.Conv2d(hidden, classes, 1) for _ in self.fc6)
        for layer in self.fc8:
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)

    def shared(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        features = joined(maps)
        return [F.relu(fc6(features)) for fc6 in self.fc6]

    def classify(self, hidden: list[torch.Tensor], dropout=None):
        logits = 0
        for x, fc7, fc8 in zip(hidden, self.fc7, self.fc8, strict=True):
            x = F.relu(fc7(drop(x, dropout)))
            logits = logits + fc8(drop(x, dropout))
        return logits


class Linear(nn.Module):
    """A 1×1 convolution of the last map."""

    stages, finest = 1, -1

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], hidden: int, classes: int):
        super().__init__()
        self.classes = nn.Conv2d(sum(channels), classes, 1)
        nn.init.normal_(self.classes.weight, 0, 0.01)
        nn.init.zeros_(self.classes.bias)

    def shared(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [joined(maps)]

    def classify(self, hidden: list[torch.Tensor], dropout=None):
        return self.classes(drop(hidden[0], dropout))


class Fuse(nn.Module):
    """The last four stages' maps, enlarged to the finest and summed: the last through DeepLabV2's dilated convolutions,
    which see far, the others through 1×1 convolutions."""

    stages, finest = 4, 0

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], hidden: int, classes: int):
        super().__init__()
        self.strides = strides
        self.lateral = nn.ModuleList(nn.Conv2d(count, hidden, 1) for count in channels[:-1])
        self.fc6 = dilated(channels[-1], strides[-1], hidden)
        self.classes = nn.Conv2d(hidden, classes, 1)
        nn.init.normal_(self.classes.weight, 0, 0.01)
        nn.init.zeros_(self.classes.bias)

    def shared(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        last = maps[-1]
        (height, width), total = maps[0].shape[-2:], 0
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=False)]
        maps.append(sum(F.relu(fc6(last)) for fc6 in self.fc6))
        for x, stride in zip(maps, self.strides, strict=True):
            scale = stride // self.strides[0]
            if scale > 1:
                size = [backbones.larger(n * scale, m) for n, m in zip(x.shape[-2:], (height, width), strict=True)]
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            total = total + x[..., :height, :width]
        return [F.relu(total)]

    def classify(self, hidden: list[torch.Tensor], dropout=None):
        return self.classes(drop(hidden[0], dropout))


HEADS = {"aspp": ASPP, "linear": Linear, "fuse": Fuse}


def joined(maps: list[torch.Tensor]) -> torch.Tensor:
    """Maps of one size, their channels one after the other."""
    return torch.cat(maps, 1) if len(maps) > 1 else maps[0]


def drop(x, generators):
    """Dropout with p = 0.5. Each sample's mask comes from its own generator, on x's device. None: no dropout."""
    if not generators:
        return x
    masks = [torch.empty(x.shape[1:], device=x.device).bernoulli_(0.5, generator=g) for g in generators]
    return x * torch.stack(masks).to(x.dtype) * 2


class DeepLabV2(nn.Module):
    """f, images → class logits: B×3×H×W in [-1, 1] → B×classes×H×W.

    `backbone` is "vgg16" (the paper's: output stride 8, rates 6, 12, 18, 24) or a timm network; one that accepts no
    `output_stride` runs at its own. `head` is one of `HEADS`, and `hidden` its width (1024 in the paper).
    `frozen_norm` keeps batch norm at its pretrained statistics and trains its affine part. `names`, `colors` (RGB, 0 to
    255) and `size` (of images, as `--size`) are saved with the model.
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
        head: str = "aspp",
        **timm_options,
    ):
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head is {head!r}, none of {', '.join(HEADS)}")
        self.backbone = backbones.backbone(backbone, output_stride, HEADS[head].stages, **timm_options)
        channels, strides = self.backbone.channels, self.backbone.strides
        self.config = {
            "names": list(names), "colors": [list(c) for c in colors], "backbone": backbone,
            "output_stride": strides[-1], "hidden": hidden, "frozen_norm": frozen_norm, "size": size, "head": head,
        }  # fmt: skip
        self.normalise = backbones.Normalise(self.backbone.pretrained_cfg)
        self.head = HEADS[head](channels, strides, hidden, len(names))
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        for module in self.backbone.modules():
            if self.config["frozen_norm"] and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self, images) -> list[torch.Tensor]:
        """B×3×H×W in [-1, 1] → the backbone's maps, from fine to coarse."""
        maps = self.backbone(self.normalise(images))
        return maps if isinstance(maps, list) else [maps]

    def forward(self, images, clean: int | None = None, dropout=(), features: list[torch.Tensor] | None = None):
        """Logits of the first `clean` images (all by default), without dropout.

        `dropout` holds a generator for each of the last images: their logits under dropout (p = 0.5, §3.3) are the
        second result. The layers before dropout run once, so a training step calls the network once. `features`: the
        backbone's maps of these images, where they are known.
        """
        maps, (height, width) = self.features(images) if features is None else features, images.shape[-2:]
        finest, plan = self.head.finest, getattr(self.backbone, "plan", backbones.Plan())
        size, stride = (height, width), self.backbone.strides[finest]
        if finest == 0 or plan.multiple > 1:  # the map may reach beyond the image
            size = [backbones.larger(n * stride, m) for n, m in zip(maps[finest].shape[-2:], size, strict=True)]
        hidden = self.head.shared(maps)

        def at_full_size(logits):
            return F.interpolate(logits, size, mode="bilinear", align_corners=False)[..., :height, :width]

        logits = at_full_size(self.head.classify([x[:clean] for x in hidden]))
        if not dropout:
            return logits
        return logits, at_full_size(self.head.classify([x[-len(dropout) :] for x in hidden], dropout))
