"""Where a model lies on disk. Nothing here imports torch: a wrong path is told before that."""

import os
import re
from pathlib import Path

from daynight.system.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def model_folder(folder: Path, part: str, given: str, is_there: bool = False) -> Path:
    """The folder of a model: the subfolder `part` of a run, or `folder` itself.

    Raises `InputError`, which begins with the option as `given`, if there is none. `is_there`: so is `folder`, or the
    repository that it is a part of.
    """
    for candidate in (folder / part, folder):
        if os.path.isfile(candidate / CONFIG):
            if os.path.isfile(candidate / WEIGHTS):
                return candidate
            raise InputError(f"{given}: {candidate} has no {WEIGHTS}")
    missing = "holds no model" if is_there or os.path.exists(folder) else "no such folder"
    run = "a run of daynight " + ("seg-train" if part == "teacher" else "translate-train")
    raise InputError(f"{given}: {missing} ({CONFIG} and {WEIGHTS}, there or in {part}/); give {run}")


def hub_id(name: str) -> str | None:
    """The Hub's repository that the name of a model stands for, without a revision; None for a folder."""
    repository = name.partition("@")[0]
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository) and not name.startswith("runs/")
    return repository if is_id and not os.path.exists(name) else None


def weights_file(source: str, network: str, option: str) -> Path | None:
    """The file of weights that `source` names; None for "pretrained", "random" and "lite". Raises `InputError`."""
    if source in ("pretrained", "random", "lite"):
        return None
    wanted = f"wanted: pretrained, random, lite or a .safetensors file of {network}"
    if not os.path.isfile(source):
        raise InputError(f"{option}: no file {source}; {wanted}")
    # timm unpickles a file with any other suffix, even if it is in the safetensors format
    if Path(source).suffix != ".safetensors":
        raise InputError(f"{option}: {source} is not called *.safetensors; {wanted}")
    return Path(source)
