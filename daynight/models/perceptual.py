"""The frozen feature network of Eq. 10 (§3.2)."""

import difflib
from contextlib import suppress
from functools import partial

import timm
import torch
from torch import nn

from daynight.models.backbones import Normalise, Plan, fitted, plan


class _Reached(Exception):
    """Raised when the last wanted layer is computed, to end the forward pass there."""


def stage(network: nn.Module, name: str) -> str:
    """The last of its feature maps with a stride of 16 at most. Raises `ValueError` where timm knows of none."""
    maps = [m["module"] for m in getattr(network, "feature_info", None) or () if m["reduction"] <= 16]
    known = [module for module in maps if module in dict(network.named_modules())]
    if not known:
        layers = ", ".join(layer for layer, _ in network.named_children())
        raise ValueError(f"{name} has no stage at stride 16; give one of its layers, as {layers}")
    return known[-1]


class FeatureNetwork(nn.Module):
    """T^k, the activations of some layers of a frozen network: B×3×H×W in [-1, 1] → one B×d×h×w for each layer, or
    B×d×tokens. Of a network that takes one size alone, B counts the tiles of all images.

    `layers` are module paths of the timm network `name` (VGG-19's block5_conv2 is `features.31`, after its ReLU); none
    given: its stage at stride 16. The pass stops after the last. `timm_options` go to `timm.create_model` (weights).
    Raises `ValueError` for a layer that the network does not have.
    """

    def __init__(self, name: str = "vgg19", layers: tuple[str, ...] = ("features.31",), **timm_options):
        super().__init__()
        try:
            self.sizes = plan(name)
        except ValueError:
            if not timm.is_model(name):
                raise
            self.sizes = Plan()  # its layers may do, though it gives no feature map
        self.network = timm.create_model(name, num_classes=0, **self.sizes.options, **timm_options)
        layers = layers or (stage(self.network, name),)
        self.normalise = Normalise(self.network.pretrained_cfg)
        # a module of its own: a checkpoint saves the scales and not the network's weights
        self.norm = nn.Module()
        self.norm.register_buffer("scales", torch.ones(len(layers)))
        self.layers = layers
        self.activations = {}
        for layer in layers:
            try:
                self.network.get_submodule(layer).register_forward_hook(partial(self._keep, layer))
            except AttributeError:
                near = difflib.get_close_matches(layer, dict(self.network.named_modules()), 3)
                raise ValueError(f"{name} has no layer {layer!r}; it has {', '.join(near) or 'others'}") from None
        self.eval().requires_grad_(False)

    def _keep(self, layer, _module, _inputs, output):
        output = output.clone()  # the next module may overwrite it
        if output.ndim == 3 or output.ndim == 4 and self.sizes.last:
            output = output.movedim(-1, 1)
        self.activations[layer] = output
        if len(self.activations) == len(self.layers):
            raise _Reached

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, images) -> list[torch.Tensor]:
        self.activations = {}
        with suppress(_Reached):
            self.network(fitted(self.normalise(images), self.sizes))
        return [self.activations[layer] for layer in self.layers]

    @torch.no_grad()
    def calibrate(self, batches) -> None:
        """Set `norm.scales` to each layer's mean square over real images (an iterable of B×3×H×W in [-1, 1]).

        Eq. 10 is divided by it, so that λ_feature means the same for every network, layer and image size.
        """
        squares = torch.stack([torch.stack([f.float().square().mean() for f in self(images)]) for images in batches])
        self.norm.scales.copy_(squares.mean(0))
