"""A model on disk: a folder with config.json and model.safetensors; here, in a run, or on the Hub."""

import hashlib
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
from daynight.errors import InputError
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator

# says of each published file that it holds a classifier which a backbone does not want
logging.getLogger("timm").setLevel(logging.ERROR)
MODELS = {"Generator": Generator, "DeepLabV2": DeepLabV2}


def replace(path: Path, write) -> None:
    """Let `write(temporary path)` write a file, flush it to disk and give it its name: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write a model that `load_model` reads; what stood there is replaced file by file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    replace(folder / "model.safetensors", lambda temporary: save_file(tensors, temporary))
    write_json(folder / "config.json", {"class": type(model).__name__, "daynight": __version__} | model.config)


def find_model(name: str, part: str, option: str) -> Path:
    """The folder of a model: `name` itself, its subfolder `part` (a run), or what the Hub has under this id.

    Raises `InputError` naming `option` where there is none.
    """
    folder = Path(name)
    for candidate in (folder / part, folder):
        if (candidate / "config.json").is_file():
            if (candidate / "model.safetensors").is_file():
                return candidate
            raise InputError(f"{option} {name}: {candidate} has no model.safetensors")
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "runs/")):
        missing = "holds no model" if folder.exists() else "no such folder"
        train = "seg-train" if part == "teacher" else "translate-train"
        raise InputError(
            f"{option} {name}: {missing} (config.json and model.safetensors, there or in {part}/); "
            f"give a run of daynight {train}"
        )
    from huggingface_hub import snapshot_download

    with reach_hub(f"{option} {name}: no such folder, and", "give a folder"):
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))


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
        model = cls(**config)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
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
        reason = str(error).strip().splitlines()
        raise InputError(f"{what} not to be had from the Hub ({reason[0] if reason else error}); {instead}") from error


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
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{option}: no file {source}; wanted: pretrained, random or a .safetensors file of {network}")
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
