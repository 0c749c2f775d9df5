"""Backbones: VGG-16 as in the paper, or a network of timm; and the normalisation that pretrained networks expect."""

import difflib
import functools
import math
from typing import NamedTuple

import timm
import torch
from torch import nn
from torch.nn import functional as F

TRIED = "vit_small_patch14_dinov2, convnextv2_tiny or pvt_v2_b0"  # of many that will do
# how networks with positions or windows are told to take images of any size; the first that one knows counts
SWITCHES = ({"dynamic_img_size": True}, {"strict_img_size": False, "always_partition": True})
SWITCHES += ({"strict_img_size": False}, {})
# what timm's networks raise for an argument or an output stride that they do not take
REFUSALS = TypeError, AssertionError, RuntimeError


class Normalise(nn.Module):
    """Images in [-1, 1], B×3×H×W → in the mean and deviation of timm's `pretrained_cfg`. Checkpoints hold neither."""

    def __init__(self, pretrained_cfg: dict):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(pretrained_cfg[name]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return (images * 0.5 + 0.5 - self.mean) / self.std


class Plan(NamedTuple):
    """How a network of timm becomes a backbone: `options` of timm; whether it is `plain`, all its blocks of one
    stride; what height and width must be a `multiple` of; whether it takes one size alone and sees `tiles` of it;
    whether channels come `last`; the `channels` and `strides` of its feature maps; the names of `unused` parameters."""

    options: dict = {}
    plain: bool = False
    multiple: int = 1
    tiles: bool = False
    last: bool = False
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()


class LastBlocks(nn.Module):
    """The tokens of a vision transformer's last four blocks, normalised, as a list of B×d×h×w."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.pretrained_cfg = model, model.pretrained_cfg
        self.indices = model.prune_intermediate_layers([-4, -3, -2, -1], prune_norm=False, prune_head=True)
        self.info = list(model.feature_info)[-4:]

    def forward(self, images):
        return self.model.forward_intermediates(images, indices=self.indices, norm=True, intermediates_only=True)


class AnySize(nn.Module):
    """A network that takes some sizes only, for all: B×3×H×W → a list of B×channels×⌈H/stride⌉×⌈W/stride⌉.

    Images are padded below and to the right, and the feature maps are cut.
    """

    def __init__(self, network: nn.Module, plan: Plan):
        super().__init__()
        self.network, self.plan = network, plan

    def forward(self, images):
        (height, width), maps = images.shape[-2:], []
        for x, stride in zip(self.network(fitted(images, self.plan)), self.plan.strides, strict=True):
            x = x.permute(0, 3, 1, 2) if self.plan.last else x
            if self.plan.tiles:
                down, across = (ceil_div(n, self.plan.multiple) for n in (height, width))
                x = x.unflatten(0, (-1, down, across)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
            maps.append(x[..., : ceil_div(height, stride), : ceil_div(width, stride)])
        return maps


def ceil_div(length: int, side: int) -> int:
    """⌈length / side⌉, by arithmetic that a trace for ONNX records."""
    return (length + side - 1) // side


def larger(a: int, b: int) -> int:
    """The larger of both, by arithmetic that a trace for ONNX records."""
    return (a + b + abs(a - b)) // 2


def fitted(images, plan: Plan):
    """B×3×H×W padded below and to the right to what a network takes; or all their tiles, in rows, as a batch."""
    (height, width), side = images.shape[-2:], plan.multiple
    x = F.pad(images, (0, ceil_div(width, side) * side - width, 0, ceil_div(height, side) * side - height))
    if not plan.tiles:
        return x
    x = x.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # B×3×down×side×across×side
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def backbone(name: str, output_stride: int, stages: int = 1, **timm_options) -> nn.Module:
    """The network `name`, without its classifier: B×3×H×W → the feature maps of its last `stages`, from fine to coarse.

    The module gives a list, or the only map. It has the maps' `channels` and `strides` (in pixels; its own if it cannot
    run at `output_stride`) and timm's `pretrained_cfg`. Of a plain vision transformer the maps are always the last four
    blocks' tokens, normalised. Raises `ValueError` for a network that cannot be a backbone.
    """
    if name == "vgg16":
        return vgg_backbone(**timm_options)
    if name.partition(".")[0] in timm.list_models(module="mlp_mixer"):
        why = "it weighs pixels by their places in images of one size"
        raise ValueError(f"{name} cannot be a backbone: {why}; {TRIED} can")
    found = plan(name, output_stride, stages)
    network = build(name, found.options, found.plain, len(found.channels), **timm_options)
    cfg = network.pretrained_cfg
    for unused in found.unused:  # several processes would wait for their gradients
        network.get_parameter(unused).requires_grad_(False)
    if found.plain or found.last or found.multiple > 1:
        network = AnySize(network, found)
    network.channels, network.strides, network.pretrained_cfg = found.channels, found.strides, cfg
    return network


def build(name: str, options: dict, plain: bool, maps: int, **timm_options) -> nn.Module:
    """A network that gives a list of the last feature maps. It has `pretrained_cfg`, and `info` of each map."""
    if not plain:
        indices = tuple(range(-maps, 0))
        network = timm.create_model(name, features_only=True, out_indices=indices, **options, **timm_options)
        network.pretrained_cfg = getattr(network, "model", network).pretrained_cfg
        network.info = network.feature_info.get_dicts()
        return network
    return LastBlocks(timm.create_model(name, num_classes=0, **options, **timm_options))


@functools.cache
def plan(name: str, output_stride: int | None = None, stages: int = 1) -> Plan:
    """Try a network out, without numbers, on the device "meta", at an output stride or its own.

    Raises `ValueError` if it gives no feature map.
    """
    if not timm.is_model(name):
        like = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; it has {', '.join(like)}" * bool(like)
        if name.startswith("mit_b"):
            hint = "; SegFormer's is not in it, pvt_v2_b0 to pvt_v2_b5 are alike"
        raise ValueError(f"timm has no network {name!r}{hint}")
    why, strides = "it gives no feature maps", [{"output_stride": output_stride}, {}] if output_stride else [{}]
    with torch.device("meta"), torch.inference_mode(False), torch.no_grad():
        for options in [switch | stride for stride in strides for switch in SWITCHES]:
            try:
                model = timm.create_model(name, num_classes=0, **options)
            except REFUSALS:
                continue
            info = getattr(model, "feature_info", None) or []
            alike = {(entry["reduction"], entry["num_chs"]) for entry in list(info)[-4:]}
            plain = len(info) >= 4 and len(alike) == 1 and hasattr(model, "forward_intermediates")
            maps = min(stages, len(info) or 1)
            try:
                network = build(name, options, plain, maps).eval()
            except (*REFUSALS, AttributeError) as error:
                why = str(error) or why
                continue
            return measure(name, network, options, plain)
    raise ValueError(f"{name} cannot be a backbone: {why}; {TRIED} can")


def measure(name: str, network: nn.Module, options: dict, plain: bool) -> Plan:
    """The plan of a network whose `options` are known: see `plan`."""
    info, why = network.info, "it gives no feature map"
    family, side = type(getattr(network, "model", None)).__name__, network.pretrained_cfg["input_size"][-1]
    coarsest = info[-1]["reduction"]
    # each multiple on its own, and at last the network's own size alone
    trials = [(1, False), (coarsest, False), (2 * coarsest, False), (side, True)]
    # this family looks positions up in a table, out of which "meta" does not notice that it runs
    for multiple, tiles in trials[-1:] if family == "MultiScaleVit" else trials:
        base = multiple if tiles else math.lcm(multiple, 64)
        odd = [] if tiles else [(65, 97), (67, 131)] if multiple == 1 else [(2 * multiple, 5 * multiple)]
        try:
            shapes = {size: [x.shape for x in network(torch.zeros(1, 3, *size))] for size in [(base, base), *odd]}
            counts = [entry["num_chs"] for entry in info]
            last = any(shape[1] != n == shape[-1] for shape, n in zip(shapes[base, base], counts, strict=True))
            places, channel = (slice(1, 3), -1) if last else (slice(2, 4), 1)
            channels = tuple(shape[channel] for shape in shapes[base, base])
            strides = tuple(base // shape[places][0] for shape in shapes[base, base])
            for size, some in shapes.items():
                for shape, stride, count in zip(some, strides, channels, strict=True):
                    wanted = [{n // stride, -(-n // stride)} for n in size]
                    fits = base % stride == 0 and all(n in ends for n, ends in zip(shape[places], wanted, strict=True))
                    if not fits or shape[channel] != count:
                        raise ValueError("its last stage is no feature map of the image")
            with torch.enable_grad():
                sum(x.sum() for x in network(torch.zeros(1, 3, base, base))).backward()
            unused = tuple(name for name, p in network.named_parameters() if p.grad is None)
            return Plan(options, plain, multiple, tiles, last, channels, strides, unused)
        except (*REFUSALS, ValueError, IndexError, ZeroDivisionError) as error:
            why = str(error) or why
    raise ValueError(f"{name} cannot be a backbone: {why}; {TRIED} can")


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
    features.channels, features.strides, features.pretrained_cfg = (512,), (8,), network.pretrained_cfg
    return features
