"""The state of a training in safetensors files: nested, without pickle."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from daynight.system.files import replace


def pack(state, path: str, tensors: dict):
    """A nested state as JSON; its tensors go into `tensors` under their path."""
    if isinstance(state, torch.Tensor):
        tensors[path] = state.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(state, dict):
        return {"dict": [[key, pack(value, f"{path}.{key}", tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return {"list": [pack(value, f"{path}.{i}", tensors) for i, value in enumerate(state)]}
    return {"value": state}


def unpack(packed, tensors):
    """The inverse of `pack`; `tensors(path)` gives a tensor."""
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors(content)
    if kind == "dict":
        return {key: unpack(value, tensors) for key, value in content}
    if kind == "list":
        return [unpack(value, tensors) for value in content]
    return content


def save_state(path: Path, parts: dict, extra: dict) -> None:
    tensors = {}
    packed = {name: pack(part.state_dict(), name, tensors) for name, part in parts.items()}
    metadata = {"state": json.dumps(packed), "extra": json.dumps(extra)}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_state(path: Path, parts: dict) -> tuple[dict, dict]:
    """The state of every part in a file of `save_state`, by name, and what was saved as `extra`.

    safetensors refuses a file that is shorter than its header says: one cut at any byte is recognised.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        packed = json.loads(metadata["state"])
        return {name: unpack(packed[name], file.get_tensor) for name in parts}, json.loads(metadata["extra"])
