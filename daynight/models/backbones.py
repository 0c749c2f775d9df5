"""Backbones: VGG-16 as in the paper, or a network of timm; and the normalisation that pretrained networks expect."""

import timm
import torch
from torch import nn


class Normalise(nn.Module):
    """Images in [-1, 1], B×3×H×W → in the mean and deviation of timm's `pretrained_cfg`. Checkpoints hold neither."""

    def __init__(self, pretrained_cfg: dict):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(pretrained_cfg[name]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return (images * 0.5 + 0.5 - self.mean) / self.std


def backbone(name: str, output_stride: int, **timm_options) -> nn.Module:
    """The network `name`, without its classifier: B×3×H×W → a feature map, or a list with only this map.

    The module has `channels`, `output_stride` (in pixels; its own if it cannot run at the one asked for) and timm's
    `pretrained_cfg`. Raises `ValueError` for a network that cannot be a backbone.
    """
    if name == "vgg16":
        return vgg_backbone(**timm_options)
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}")
    timm_options |= {"features_only": True, "out_indices": (-1,)}
    try:
        try:
            network = timm.create_model(name, output_stride=output_stride, **timm_options)
        # networks that run only at their own stride refuse another in one of these ways
        except (TypeError, AssertionError, NotImplementedError):
            network = timm.create_model(name, **timm_options)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, 65, 97))
            features = network(torch.zeros(1, 3, 64, 96))[-1]
    except (TypeError, AssertionError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} cannot be a backbone: {error or 'it gives no feature maps'}") from None
    network.channels = network.feature_info.channels()[-1]
    network.output_stride = 64 // max(1, features.shape[-2])
    if features.shape[1:] != (network.channels, 64 // network.output_stride, 96 // network.output_stride):
        raise ValueError(f"{name} cannot be a backbone: its last stage is not a feature map of any input size")
    return network


def vgg_backbone(**timm_options) -> nn.Sequential:
    """VGG-16's convolutions at output stride 8: pool4 and pool5 with stride 1, conv5 dilated by 2."""
    network = timm.create_model("vgg16", num_classes=0, **timm_options)
    features = network.features
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    for i in pools:
        features[i] = nn.MaxPool2d(3, stride=1 if i in pools[3:] else 2, padding=1)
    for layer in features[pools[3] :]:
        if isinstance(layer, nn.Conv2d):
            layer.dilation, layer.padding = (2, 2), (2, 2)
    features.channels, features.output_stride, features.pretrained_cfg = 512, 8, network.pretrained_cfg
    return features
