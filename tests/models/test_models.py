"""The networks: sizes, parameter counts of the literature, equalities that the faster forms promise."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from daynight.models.deeplab import DeepLabV2
from daynight.models.discriminator import Discriminator
from daynight.models.generator import Generator, InstanceNorm, RowConv, UpConv
from daynight.models.perceptual import FeatureNetwork

COLORS = [(0, 0, 0)] * 19
NAMES = [f"class {i}" for i in range(19)]


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ---- generator


@pytest.mark.parametrize("upsample", ["bilinear", "deconv"])
@pytest.mark.parametrize("size", [(9, 50), (17, 23), (64, 64), (1, 1), (16, 4)])
def test_generator_gives_the_size_it_gets_in_range(size, upsample):
    torch.manual_seed(0)
    result = Generator(1, 4, upsample)(images(2, 3, *size))
    assert result.shape == (2, 3, *size)
    assert result.min() >= -1 and result.max() <= 1
    assert size == (1, 1) or result.std() > 0


def test_generator_is_padded_only_below_and_to_the_right():
    # 20×20 needs no padding; a 17×18 part of it gets other values only near the rim that was cut
    torch.manual_seed(0)
    generator = Generator(1, 4).eval()
    part = images(1, 3, 17, 18)
    grown = F.pad(part, (0, 2, 0, 3), mode="reflect")
    assert torch.allclose(generator(part), generator(grown)[..., :17, :18], atol=1e-6)


def test_generator_has_the_published_parameters_without_the_dead_biases():
    # (in, out, kernel) of CycleGAN's ResNet of 9 blocks; its convolutions have biases
    convolutions = [(3, 64, 7), (64, 128, 3), (128, 256, 3)] + 18 * [(256, 256, 3)] + [(256, 128, 3), (128, 64, 3)]
    last = (64, 3, 7)
    published = sum(i * o * k * k + o for i, o, k in [*convolutions, last])
    dead = sum(o for _, o, _ in convolutions)  # instance norm subtracts them
    assert round(published / 1e6, 3) == 11.378
    for upsample in ("bilinear", "deconv"):
        with torch.device("meta"):
            assert count(Generator(upsample=upsample)) == published - dead == 11_372_931


def test_a_bias_before_instance_norm_is_dead():
    convolution, x = nn.Conv2d(3, 4, 3), images(2, 3, 8, 8)
    biased = InstanceNorm()(convolution(x))
    with torch.no_grad():
        convolution.bias.zero_()
    assert torch.allclose(biased, InstanceNorm()(convolution(x)), atol=1e-5)


def test_instance_norm_is_pytorchs():
    x = images(3, 5, 7, 9) * 4 + 1
    assert torch.allclose(InstanceNorm()(x), nn.InstanceNorm2d(5)(x), atol=1e-5)
    assert not list(InstanceNorm().parameters())


def check_forms(layer, x, atol=1e-5):
    """`plain` and `forward` give the same, and so do their gradients."""
    results = []
    for form in (layer.plain, layer):
        y = form(x.requires_grad_())
        weighting = images(*y.shape, seed=1)
        results.append((y, *torch.autograd.grad((y * weighting).sum(), (x, *layer.parameters()))))
    for plain, fast in zip(*results, strict=True):
        assert plain.shape == fast.shape
        assert torch.allclose(plain, fast, atol=atol, rtol=1e-5)
    return results[0][0]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7), (8, 8), (13, 2)])
def test_upconv_equals_its_definition(size):
    torch.manual_seed(0)
    assert check_forms(UpConv(3, 4), images(2, 3, *size)).shape[2:] == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize("size", [(7, 7), (7, 12), (20, 9)])
def test_rowconv_equals_its_definition(size):
    torch.manual_seed(0)
    assert check_forms(RowConv(5, 3, 7), images(2, 5, *size), 2e-5).shape == (2, 3, size[0] - 6, size[1] - 6)


def test_generator_is_saved_as_plain_convolutions():
    state = Generator(1, 4).state_dict()
    assert all(name.endswith(".weight") or name == "layers.18.bias" for name in state)
    shapes = [tuple(tensor.shape) for tensor in state.values() if tensor.ndim == 4]
    assert shapes == [
        (4, 3, 7, 7), (8, 4, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (8, 16, 3, 3), (4, 8, 3, 3),
        (3, 4, 7, 7),
    ]  # fmt: skip
    # what UpConv saves, a plain convolution after a plain upsampling computes
    layer, plain = UpConv(3, 4), nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate", bias=False)
    plain.load_state_dict(layer.state_dict())
    x = images(1, 3, 5, 6)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(layer(x), plain(up), atol=1e-5)


def test_generator_starts_as_cyclegan():
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for p in Generator(2, 16).parameters() if p.ndim == 4])
    assert weights.mean().abs() < 1e-3 and weights.std().item() == pytest.approx(0.02, rel=0.02)


# ---- discriminator


def test_discriminator_has_the_published_parameters_without_the_dead_biases():
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    published = sum(i * o * 16 + o for i, o in layers)
    dead = sum(o for _, o in layers[1:-1])
    assert round(published / 1e6, 3) == 2.765
    assert count(Discriminator()) == published - dead == 2_763_841


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 256), (40, 136)])
def test_discriminator_output_is_as_large_as_its_docstring_says(size):
    assert Discriminator(2)(images(1, 3, *size)).shape == (1, 1, size[0] // 8 - 2, size[1] // 8 - 2)


def test_discriminator_judges_70_by_70_pixels():
    torch.manual_seed(0)
    discriminator = Discriminator(4)
    # instance norm sees the whole image: without it, what a logit depends on is its patch
    plain = nn.Sequential(*[layer for layer in discriminator if not isinstance(layer, InstanceNorm)]).double()
    x = images(1, 3, 160, 160).double().requires_grad_()
    logits = plain(x)
    logits[0, 0, 8, 9].backward()
    touched = x.grad[0].abs().sum(0) > 0
    rows, columns = (touched.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    assert len(rows) == len(columns) == 70
    assert rows[-1] - rows[0] == columns[-1] - columns[0] == 69
    assert touched.sum() == 70 * 70


# ---- segmentation network


def test_deeplab_on_vgg16_has_the_parameters_of_its_layers():
    vgg = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    backbone = sum(i * o * 9 + o for i, o in zip(vgg[:-1], vgg[1:], strict=True))
    branch = 512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024 + 1024 * 19 + 19
    with torch.device("meta"):
        model = DeepLabV2(NAMES, COLORS)
    assert count(model) == backbone + 4 * branch == 37_869_452


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return DeepLabV2(["a", "b", "c"], COLORS[:3], hidden=8).eval()


def test_vgg16_runs_at_stride_8_with_conv5_dilated(vgg):
    convolutions = [layer for layer in vgg.backbone if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    assert [layer.dilation[0] for layer in convolutions] == 10 * [1] + 3 * [2]
    assert [branch.dilation[0] for branch in vgg.head.fc6] == [6, 12, 18, 24]
    with torch.no_grad():
        assert vgg.backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 8, 12)
        assert vgg(images(1, 3, 40, 56)).shape == (1, 3, 40, 56)
        assert vgg(images(2, 3, 33, 47)).shape == (2, 3, 33, 47)


def test_vgg16_takes_the_weights_of_timms(vgg):
    with torch.device("meta"):
        features = timm.create_model("vgg16").features
    shapes = {name: tensor.shape for name, tensor in features.state_dict().items()}
    assert {name: tensor.shape for name, tensor in vgg.backbone.state_dict().items()} == shapes


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = DeepLabV2(["a", "b", "c"], COLORS[:3], backbone="test_resnet", output_stride=8, hidden=8)
    for layer in model.head.fc8:  # far enough from zero to tell logits apart
        nn.init.normal_(layer.weight)
    return model.eval()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def test_clean_logits_of_a_joint_pass_equal_a_plain_one(small):
    x = images(5, 3, 32, 40)
    logits, noisy = small(x, clean=3, dropout=generators(1, 2, 3))
    assert logits.shape == (3, 3, 32, 40) and noisy.shape == (3, 3, 32, 40)
    assert torch.allclose(logits, small(x[:3]), atol=1e-5)
    assert torch.allclose(small(x, clean=2), small(x[:2]), atol=1e-5)
    # the third image is in both: with and without dropout
    assert not torch.allclose(noisy[0], logits[2], atol=1e-2)


@torch.no_grad()
def test_dropout_hangs_on_each_samples_generator_alone(small):
    x = images(4, 3, 32, 40)
    _, noisy = small(x, clean=1, dropout=generators(1, 2, 3))
    for i, seed in ((1, 1), (2, 2), (3, 3)):
        _, alone = small(x[i : i + 1], dropout=generators(seed))
        assert torch.allclose(noisy[i - 1], alone[0], atol=1e-5)
    _, beside_others = small(x.flip(0), dropout=generators(9, 2))  # images 1 and 0
    _, again = small(x[:1], dropout=generators(2))
    assert torch.allclose(beside_others[1], again[0], atol=1e-5)
    _, other_seed = small(x[:1], dropout=generators(3))
    assert not torch.allclose(other_seed, again, atol=1e-2)


@torch.no_grad()
def test_dropout_lets_half_through_twice_as_strong(small):
    head, features = small.head, [torch.ones(64, 8, 6, 6) for _ in range(4)]
    for fc7, fc8 in zip(head.fc7, head.fc8, strict=True):
        # fc7 passes its input on, fc8 sums it up: what is left is what both dropouts let through
        fc7.weight.copy_(torch.eye(8).view(8, 8, 1, 1)), fc7.bias.zero_()
        fc8.weight.fill_(1), fc8.bias.zero_()
    passed = head.classify(features, generators(*range(64))) / (4 * 8)
    levels = {round(value) for value in (passed * 32 / 4).unique().tolist()}
    assert torch.equal(passed * 32 / 4, (passed * 32 / 4).round()) and len(levels) > 3  # 0 or 2·2 each
    assert passed.mean().item() == pytest.approx(1, abs=0.02)
    # variance of one unit: E[x²] - 1 = 16/4 - 1 = 3; of the mean of 32: 3/32
    assert passed.var().item() == pytest.approx(3 / 32, rel=0.1)
    assert torch.equal(head.classify(features), torch.full_like(passed, 32))


@pytest.fixture(scope="module")
def efficientnet():
    torch.manual_seed(0)
    model = DeepLabV2(["a", "b"], COLORS[:2], "tf_efficientnet_lite0", output_stride=16, hidden=8, frozen_norm=True)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity: random nets have mean 0 and variance 1 there
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return model


def norms(model):
    return [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def test_frozen_batch_norm_stays_frozen(efficientnet):
    model = efficientnet.train()
    assert model.training and model.backbone.training and len(norms(model)) > 10
    assert not any(norm.training for norm in norms(model))
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms(model)]
    model(images(2, 3, 32, 48)).square().sum().backward()
    for norm, (mean, variance) in zip(norms(model), before, strict=True):
        assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, variance)
        assert norm.weight.requires_grad and norm.weight.grad is not None  # the affine part learns
    model.zero_grad()


@torch.no_grad()
def test_with_frozen_norm_a_joint_pass_equals_separate_ones(efficientnet):
    model, x = efficientnet.train(), images(3, 3, 32, 48)
    joint, noisy = model(x, clean=2, dropout=generators(5))
    assert torch.allclose(joint[0], model(x[:1])[0], atol=1e-5)
    assert torch.allclose(joint[1], model(x[1:2])[0], atol=1e-5)
    assert torch.allclose(noisy[0], model(x[2:], dropout=generators(5))[1][0], atol=1e-5)


def test_batch_norm_learns_without_frozen_norm():
    torch.manual_seed(0)
    model = DeepLabV2(["a"], COLORS[:1], "test_resnet", hidden=4, frozen_norm=False).train()
    before = norms(model)[0].running_mean.clone()
    model(images(2, 3, 32, 32))
    assert norms(model)[0].training and not torch.equal(norms(model)[0].running_mean, before)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_backbones_take_any_size_and_rates_span_the_same_pixels(name):
    for stride, rates in ((8, [6, 12, 18, 24]), (16, [3, 6, 9, 12])):
        model = DeepLabV2(["a", "b"], COLORS[:2], name, output_stride=stride, hidden=4).eval()
        assert model.config["output_stride"] == model.backbone.strides[-1] == stride
        assert [branch.dilation[0] for branch in model.head.fc6] == rates
        with torch.no_grad():
            assert model(images(1, 3, 33, 50)).shape == (1, 2, 33, 50)


def test_a_backbone_that_takes_no_stride_runs_at_its_own():
    model = DeepLabV2(["a"], COLORS[:1], "vgg11", output_stride=8, hidden=4)
    assert model.config["output_stride"] == 32
    assert [branch.dilation[0] for branch in model.head.fc6] == [1, 3, 4, 6]


def test_images_are_normalised_as_the_backbone_was_trained():
    model = DeepLabV2(["a"], COLORS[:1], "test_resnet", hidden=4).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(model.backbone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    levels = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1).expand(3, 32, 32)
    model((levels * 2 - 1)[None])
    assert torch.allclose(seen[0][0], (levels - mean) / std, atol=1e-6)


# ---- feature network


@pytest.fixture
def features():
    torch.manual_seed(0)
    return FeatureNetwork("test_resnet", ("layer3", "layer1"))


def test_feature_network_gives_its_layers_in_the_order_asked(features):
    x = images(2, 3, 64, 64)
    third, first = features(x)
    network, normal = (
        timm.create_model("test_resnet", num_classes=0).eval(),
        (x * 0.5 + 0.5 - features.normalise.mean) / features.normalise.std,
    )
    network.load_state_dict(features.network.state_dict())
    stem = network.maxpool(network.act1(network.bn1(network.conv1(normal))))
    expected = network.layer1(stem)
    assert torch.allclose(first, expected, atol=1e-6)
    assert torch.allclose(third, network.layer3(network.layer2(expected)), atol=1e-6)


def test_feature_network_stops_at_its_last_layer(features):
    run = []
    for name in ("layer2", "layer3", "layer4", "fc"):
        features.network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: run.append(name))
    features(images(1, 3, 32, 32))
    assert run == ["layer2", "layer3"]


def test_feature_network_refuses_an_unknown_layer():
    with pytest.raises(ValueError, match="layer9"):
        FeatureNetwork("test_resnet", ("layer1", "layer9"))


def test_feature_network_is_frozen_but_lets_gradients_through(features):
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    before = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    x = images(2, 3, 32, 32).requires_grad_()
    sum(f.square().mean() for f in features(x)).backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.state_dict().items())


def test_calibrate_gives_the_mean_square_of_each_layer(features):
    batches = [images(2, 3, 32, 32, seed=i) for i in range(3)]
    features.calibrate(batches)
    for i in range(2):
        # every batch is of one size: the mean of the means is the mean
        expected = torch.cat([features(batch)[i].flatten() for batch in batches]).square().mean()
        assert features.norm.scales[i].item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(features.norm.state_dict()) == ["scales"]


def test_a_layers_activations_do_not_hang_on_which_others_are_wanted():
    # VGG's ReLU works in place: a convolution's output must be kept as it was
    torch.manual_seed(0)
    both = FeatureNetwork("vgg11", ("features.0", "features.3"))
    x = images(1, 3, 16, 16)
    convolved = both.network.features[0]((x * 0.5 + 0.5 - both.normalise.mean) / both.normalise.std)
    assert convolved.min() < 0
    assert torch.allclose(both(x)[0], convolved)
