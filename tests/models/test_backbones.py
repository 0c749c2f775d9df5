"""Backbones: networks of timm's of every family, at any size."""

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import daynight
from daynight.models import backbones
from daynight.models.deeplab import HEADS, DeepLabV2, joined
from daynight.models.hub import save_model
from daynight.models.perceptual import FeatureNetwork

# timm's own networks for tests, and small ones of other families
QUICK = (
    *("test_vit", "test_vit3", "test_vit4", "test_vit_relpos", "test_convnext", "test_resnet"),
    *("test_efficientnet", "test_maxvit", "test_coatnet", "test_mambaout", "test_nfnet", "pvt_v2_b0"),
)
FAMILIES = (
    *("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"),
    *("deit3_small_patch16_224", "eva02_tiny_patch14_224", "vit_base_patch16_siglip_224", "samvit_base_patch16"),
    *("beit_base_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "volo_d1_224", "vit_base_r26_s32_224"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "hiera_tiny_224"),
    *("sam2_hiera_tiny", "mvitv2_tiny", "maxvit_pico_rw_256", "coatnet_nano_rw_224", "coat_lite_tiny", "gcvit_xxtiny"),
    *("caformer_s18", "twins_svt_small", "davit_tiny", "focalnet_tiny_srf", "nextvit_small", "edgenext_xx_small"),
    *("fastvit_t8", "efficientformer_l1", "efficientvit_b0", "efficientvit_m0", "mobilevit_xxs", "mobilevitv2_050"),
    *("tiny_vit_5m_224", "repvit_m0_9", "mambaout_femto", "resnet18", "resnetv2_18", "resnest14d", "regnetx_002"),
    *("tf_efficientnet_lite0", "tf_efficientnetv2_b0", "mobilenetv3_small_050", "mobilenetv4_conv_small"),
    *("convnextv2_atto", "hrnet_w18_small", "densenet121", "dla34", "vgg11_bn", "ghostnet_050", "rexnet_100"),
)


def random_images(*shape):
    return torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def only_map(features):
    return joined(features) if isinstance(features, list) else features


def timms_own(name, images):
    """The last stage; of networks whose blocks have all the same stride, the last four blocks' tokens."""
    plan = backbones.plan(name, 16)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **plan.options)
    reductions = [entry["reduction"] for entry in list(model.feature_info)[-4:]]
    if len(reductions) == 4 and len(set(reductions)) == 1:
        maps = model.eval().forward_intermediates(images, indices=4, norm=True, intermediates_only=True)
        return torch.cat(maps, 1)
    torch.manual_seed(0)
    features = timm.create_model(name, features_only=True, **plan.options).eval()(images)[-1]
    return features.permute(0, 3, 1, 2) if features.shape[1] != sum(plan.channels) else features


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_a_network_of_timm_is_a_backbone(name, tmp_path):
    torch.manual_seed(0)
    model = DeepLabV2(["a", "b"], [(0, 0, 0), (9, 9, 9)], name, 16, 4, size="native", pretrained=False).train()
    plan = backbones.plan(name, 16)
    stride, channels = plan.strides[-1], sum(plan.channels)
    assert model.config["output_stride"] == model.backbone.strides[-1] == stride
    for size in ((67, 131), (64, 64), (224, 320)):
        features = only_map(model.backbone(random_images(*size)))
        assert features.shape[1] == channels
        for length, side in zip(features.shape[2:], size, strict=True):
            assert length in (side // stride, -(-side // stride))
        logits = model(random_images(*size))
        assert logits.shape == (1, 2, *size)
        logits.square().mean().backward()
    # several processes would wait for a gradient that does not come
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    save_model(model, tmp_path / "model")
    loaded = daynight.load_segmenter(str(tmp_path / "model"))
    assert loaded(Image.new("RGB", (500, 333), (90, 120, 60))).shape == (333, 500)

    side = timm.get_pretrained_cfg(name).input_size[-1] if plan.tiles else 64 if plan.multiple < 8 else 7 * 64
    images = random_images(side, side)
    torch.manual_seed(0)
    network = backbones.backbone(name, 16, pretrained=False).eval()
    with torch.no_grad():
        assert torch.allclose(only_map(network(images)), timms_own(name, images), atol=1e-4, rtol=1e-4)


def test_the_families_are_many():
    names = [*QUICK, *FAMILIES]
    modules = {module for module in timm.list_modules() for name in names if name in timm.list_models(module=module)}
    assert len(set(names)) == len(names) >= 40 and len(modules) >= 22


def test_what_cannot_be_a_backbone_says_why_and_what_can():
    for name, words in (
        ("no_such_network", "timm has no network 'no_such_network'"),
        ("resnt50", "timm has no network 'resnt50'; it has resnet50"),
        ("mit_b0", "SegFormer's is not in it, pvt_v2_b0 to pvt_v2_b5 are alike"),
        ("mixer_s16_224", "mixer_s16_224 cannot be a backbone: it weighs pixels by their places in images of one size"),
        ("inception_v3", "inception_v3 cannot be a backbone: its last stage is no feature map of the image"),
    ):
        with pytest.raises(ValueError) as refused:
            DeepLabV2(["a"], [(0, 0, 0)], name)
        assert words in str(refused.value) and "\n" not in str(refused.value)
        assert "cannot be" not in words or str(refused.value).endswith(f"; {backbones.TRIED} can")


def test_a_model_is_built_where_nothing_is_differentiated():
    with torch.inference_mode():
        found = backbones.plan.__wrapped__("resnet18", 16)
    assert found == backbones.plan("resnet18", 16)


def test_a_padded_map_is_laid_over_the_image_without_a_shift():
    """The map of 67 pixels at stride 16 reaches to 80: its middle is not the image's."""
    model = DeepLabV2(["a"], [(0, 0, 0)], "test_vit", 16, 1, size="native", pretrained=False).eval()
    model.head = nn.Module()
    model.head.finest, model.head.shared = -1, lambda maps: maps
    model.head.classify = lambda hidden: torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 5)
    rows = model(random_images(67, 80))[0, 0, :, 0]
    assert torch.allclose(rows[8:67], (torch.arange(8.0, 67) - 7.5) / 16)


def test_layers_of_any_of_them_are_features():
    for name, layer in (("test_vit", "blocks.1"), ("test_maxvit", "stages.1"), ("test_mambaout", "stages.0")):
        (features,) = FeatureNetwork(name, (layer,), pretrained=False)(random_images(67, 131))
        assert features.isfinite().all() and features.ndim in (3, 4)
    with pytest.raises(ValueError, match=r"test_vit has no layer 'block.1'; it has blocks.1"):
        FeatureNetwork("test_vit", ("block.1",), pretrained=False)


@pytest.mark.parametrize("name", ["vgg16", "test_resnet", "test_vit", "test_convnext", "test_maxvit"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_every_kind_of_backbone(name, head, tmp_path):
    torch.manual_seed(0)
    model = DeepLabV2(["a", "b"], [(0, 0, 0)] * 2, name, 16, 4, size="native", head=head, pretrained=False).train()
    for size in ((67, 131), (64, 64)):
        dropout = [torch.Generator().manual_seed(1)]
        logits, dropped = model(random_images(*size), dropout=dropout)
        assert logits.shape == dropped.shape == (1, 2, *size) and not torch.equal(logits, dropped)
        (logits + dropped).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    save_model(model, tmp_path / "model")
    loaded = daynight.load_segmenter(str(tmp_path / "model"))
    assert loaded(Image.new("RGB", (50, 33), (90, 120, 60))).shape == (33, 50)
    assert type(loaded.model.head) is HEADS[head]


def test_fused_maps_lie_over_one_another():
    """Independent sum: of maps that hold each place's row and column in the image, every map says the same."""
    model = DeepLabV2(["a"], [(0, 0, 0)], "test_resnet", 32, 1, size="native", head="fuse", pretrained=False).eval()
    height, width = 160, 224
    assert model.backbone.strides[0] < model.backbone.strides[-1]
    rows = torch.arange(float(height)).view(1, 1, -1, 1).expand(1, 1, height, width)
    maps = [F.avg_pool2d(rows, stride).expand(1, c, -1, -1) for c, stride in zip(*sizes(model), strict=True)]
    for lateral in [*model.head.lateral, model.head.classes]:
        nn.init.constant_(lateral.weight, 1 / lateral.in_channels)
        nn.init.zeros_(lateral.bias)
    for branch in model.head.fc6:  # each its place alone
        nn.init.zeros_(branch.weight)
        branch.weight.data[:, :, 1, 1] = 1 / branch.in_channels / len(model.head.fc6)
        nn.init.zeros_(branch.bias)
    found = model(torch.zeros(1, 3, height, width), features=maps)[0, 0] / len(maps)
    # at the border the coarsest map has no neighbour to interpolate with
    assert torch.allclose(found[20:-20], rows[0, 0, 20:-20], atol=1e-3)


def sizes(model):
    return model.backbone.channels, model.backbone.strides


def test_a_plain_transformer_gives_four_maps_and_vgg_one():
    for name, stages, strides in (("test_vit", 4, (16,) * 4), ("vgg16", 4, (8,)), ("test_resnet", 4, (4, 8, 16, 32))):
        assert backbones.backbone(name, 32, stages, pretrained=False).strides == strides
