"""A model on disk: a folder with config.json and model.safetensors; here, in a run, or on the Hub."""

import hashlib
import inspect
import json
import logging
import os
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from daynight import __version__
from daynight.config import is_size
from daynight.data.labels import check_classes
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.system.errors import InputError
from daynight.system.files import replace, write_json

# says of each published file that it holds a classifier which a backbone does not want
logging.getLogger("timm").setLevel(logging.ERROR)
MODELS = {"Generator": Generator, "DeepLabV2": DeepLabV2}


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write a model that `load_model` reads; what stood there is replaced file by file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    replace(folder / "model.safetensors", lambda temporary: save_file(tensors, temporary))
    write_json(folder / "config.json", {"class": type(model).__name__, "daynight": __version__} | model.config)


def find_model(name: str, part: str, option: str) -> Path:
    """The folder of a model: `name` itself, its subfolder `part` (a run), or what the Hub has under this id, or under
    id@revision (a branch, a tag or a commit).

    Raises `InputError` naming `option` where there is none.
    """
    folder = Path(name)
    for candidate in (folder / part, folder):
        if os.path.isfile(candidate / "config.json"):
            if os.path.isfile(candidate / "model.safetensors"):
                return candidate
            raise InputError(f"{option} {name}: {candidate} has no model.safetensors")
    if os.path.exists(folder) or name.partition("@")[0].count("/") != 1 or name.startswith((".", "/", "runs/")):
        missing = "holds no model" if os.path.exists(folder) else "no such folder"
        train = "seg-train" if part == "teacher" else "translate-train"
        raise InputError(
            f"{option} {name}: {missing} (config.json and model.safetensors, there or in {part}/); "
            f"give a run of daynight {train}"
        )
    with reach_hub(f"{option} {name}: no such folder, and", "give a folder"):
        return download(*name.partition("@")[::2], part)


def download(repository: str, revision: str, part: str) -> Path:
    """The folder in the Hub's cache of a model that lies in a repository, or in its subfolder `part`."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    for folder in ("", f"{part}/"):
        file = f"{folder}config.json"
        try:
            if not offline:
                get_hf_file_metadata(hf_hub_url(repository, file, revision=revision or None))
        except HfHubHTTPError as error:
            if isinstance(error, EntryNotFoundError) and not folder:
                continue
            raise
        # asked once: downloads try six times, and a mistyped path would be refused half a minute later
        except Exception:
            offline = True
        try:
            config = Path(hf_hub_download(repository, file, revision=revision or None, local_files_only=offline))
        except LocalEntryNotFoundError:
            if folder:
                raise
            continue
        # of the same commit, whatever is pushed in between
        commit = (config.parents[1] if folder else config.parent).name
        hf_hub_download(repository, f"{folder}model.safetensors", revision=commit, local_files_only=offline)
        return config.parent


def load_model(name: str, part: str, option: str, kind: type) -> torch.nn.Module:
    """The model of class `kind` in a folder, a run (its subfolder `part`) or on the Hub, in eval mode.

    Raises `InputError` naming `option` and the file for what is missing, damaged or of another kind.
    """
    folder = find_model(name, part, option)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cls = MODELS[config.pop("class")]
        config.pop("daynight", None)
        if cls is not kind:
            raise InputError(f"{option} {name}: {folder} holds a {cls.__name__}, wanted: a {kind.__name__}")
        check_config(cls, config, folder / "config.json")
        model = cls(**config)
    # what a constructor makes of a value that is none of its own is its affair; RuntimeError: memory, nesting
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        raise InputError(f"{option} {name}: {folder / 'config.json'} does not describe a model ({error})") from error
    path = folder / "model.safetensors"
    state = read_tensors(path, option)
    ours = model.state_dict()
    wrong = [
        n for n in ours.keys() | state.keys() if n not in ours or n not in state or ours[n].shape != state[n].shape
    ]
    if wrong:
        raise InputError(f"{option} {name}: {path} is not of the network in its config.json ({min(wrong)} differs)")
    model.load_state_dict(state)
    return model.eval()


def check_config(kind: type, config: dict, path: Path) -> None:
    """Raises `ValueError` or `InputError` for what would be found out too late, if ever; `path` is for messages.

    A backbone's further options are refused: one of timm's names a file to unpickle.
    """
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name, value in config.items():
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
        if isinstance(value, int) and not 0 <= value <= 8192:
            raise ValueError(f"{name} is {value}")
    size, crop = config.get("size", "native"), config.get("crop")
    if not is_size(size) or crop == "native" or crop is not None and not is_size(crop):
        raise ValueError(f"size is {size!r}, crop is {crop!r}")
    if "names" in config:
        pairs = zip(config["names"], config["colors"], strict=True)
        check_classes([{"name": name, "color": color} for name, color in pairs], path)


def identity(model: Path) -> str:
    """12 hex digits of a model folder's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]


def read_tensors(path: Path, option: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises `InputError` naming `option` and the file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{option}: {path} is not a whole safetensors file ({error})") from error


@contextmanager
def reach_hub(what: str, instead: str):
    """Turn whatever goes wrong on the way to the Hub into one line: `what` it is about, what to do `instead`."""
    try:
        yield
    except Exception as error:
        # the Hub's client raises a dozen kinds, all of them subclasses; ours say ValueError itself
        if type(error) is ValueError:
            raise
        raise InputError(f"{what} not to be had from the Hub ({reason_of(error)}); {instead}") from error


def reason_of(error: Exception) -> str:
    """Why the Hub gave nothing, in words; its client's own begin with a status code or a Python type."""
    from huggingface_hub import errors

    reasons = (
        (errors.GatedRepoError, "gated: ask for access on its page, then `hf auth login` or HF_TOKEN"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.RepositoryNotFoundError, "no such repository, or a private one: `hf auth login` or HF_TOKEN"),
        (errors.LocalEntryNotFoundError, "it cannot be reached, and nothing of it is in the cache"),
        (errors.EntryNotFoundError, "the repository holds no such model"),
    )
    first = str(error).strip().splitlines()[:1]
    return next((reason for kind, reason in reasons if isinstance(error, kind)), first[0] if first else repr(error))


def classes_of(model) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The names of a segmentation network's classes and their colours, RGB from 0 to 255."""
    return tuple(model.config["names"]), tuple(map(tuple, model.config["colors"]))


def pretrained(build, network: str, source: str, option: str, **settings) -> torch.nn.Module:
    """`build(…, **timm options)` with the weights that `source` names: "pretrained" (from the Hub), "random", or a
    safetensors file in timm's names.

    Raises `InputError` naming `option` where they cannot be had or do not fit, `ValueError` where `build` does.
    """
    if not timm.is_model(network):
        raise InputError(f"timm has no network {network!r} (wanted for {option})")
    if source == "random":
        return build(**settings)
    if source == "pretrained":
        with reach_hub(
            f"{option} pretrained: the weights of {network} are", f"give {option} FILE.safetensors or random"
        ):
            return build(**settings, pretrained=True)
    path, wanted = Path(source), f"wanted: pretrained, random or a .safetensors file of {network}"
    if not os.path.isfile(path):
        raise InputError(f"{option}: no file {source}; {wanted}")
    # timm unpickles what is called otherwise, even where it is a safetensors file too
    if path.suffix != ".safetensors":
        raise InputError(f"{option}: {source} is not called *.safetensors; {wanted}")
    check_weights(path, network, option)
    return build(**settings, pretrained=True, pretrained_cfg_overlay={"file": str(path)})


def check_weights(path: Path, network: str, option: str) -> None:
    """timm loads what fits and says nothing of the rest: compare the names and shapes first, all but the classifier."""
    with torch.device("meta"):
        model = timm.create_model(network)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if "num_batches" not in name}
    classifier = model.pretrained_cfg.get("classifier") or "classifier"
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        with safe_open(path, "pt") as file:
            found = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{option}: {path} is not a whole safetensors file ({error})") from error
    # pre_logits: VGG's fully connected layers, which published files leave out when they hold the convolutions alone
    skip = (*classifier, "pre_logits")
    wrong = [n for n, shape in wanted.items() if not n.startswith(skip) and found.get(n) != shape]
    if wrong:
        raise InputError(f"{option}: {path} does not hold the weights of {network} ({wrong[0]} is missing or differs)")
