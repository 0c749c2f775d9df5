"""Turn a generator of the original CycleGAN code into a model folder for `daynight translate --model`.

    python examples/convert_cyclegan.py latest_net_G_A.pth --out day2night_cyclegan
    daynight translate --in cs/ --out cs_night/ --model day2night_cyclegan

junyanz/pytorch-CycleGAN-and-pix2pix must have saved the file from a ResNet generator with instance norm (its defaults:
resnet_9blocks, 64 filters; any number of either). It is read with `weights_only=True`: nothing in it is executed.
--size and --crop are the --load_size and --crop_size of its training; its own test runs at 256x256.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from daynight.config import is_size
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system.errors import InputError

WANTED = "wanted: a ResNet generator with instance norm, as *_net_G.pth, *_net_G_A.pth or *_net_G_B.pth"


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file of `torch.save`. Raises `InputError` with its name."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # for a damaged file torch.load raises exceptions of many kinds
    except Exception as error:
        problem = "no file of tensors alone" if path.is_file() else "no such file"
        raise InputError(f"{path}: {problem}; {WANTED}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds more than the tensors of one network; {WANTED}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's prefix


def check_kind(state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise `InputError` for the other networks that CycleGAN's code saves, by the names of their layers."""
    if any(name.startswith("model.model.") for name in state):
        raise InputError(f"{path}: a UNet generator; {WANTED}")
    if "model.0.weight" in state or "net.0.weight" in state:
        raise InputError(f"{path}: a discriminator; {WANTED}")
    if "model.2.weight" in state:
        raise InputError(f"{path}: a generator with batch norm or a learned instance norm; {WANTED}")


def convert(state: dict[str, torch.Tensor], path: Path, size: str, crop: str) -> Generator:
    """Build our generator with CycleGAN's weights; the layers of both have the same numbers. It drops biases before
    instance norm, which subtracts them, and the statistics of instance norm that PyTorch before 0.4 kept and never
    used. Raises `InputError` with the file's name."""
    check_kind(state, path)
    blocks = len({name.split(".")[1] for name in state if ".conv_block." in name})
    first = state.get("model.1.weight", torch.empty(0))
    width = first.shape[0] if first.ndim == 4 else 1
    with torch.device("meta"):
        generator = Generator(blocks, width, "deconv", size, crop)
    last = f"layers.{len(generator.layers) - 2}."
    found = {}
    for name, tensor in state.items():
        # with dropout a block's second convolution stands one place later
        name = re.sub(r"^model\.(\d+)\.conv_block\.6\.", r"model.\1.conv_block.5.", name)
        name = name.replace("model.", "layers.", 1).replace("conv_block.", "")
        if name.endswith(".weight") or name.startswith(last):
            found[name] = tensor.float()
    wanted = generator.state_dict()
    wrong = [n for n in wanted | found if n not in found or n not in wanted or found[n].shape != wanted[n].shape]
    if wrong or not blocks:
        raise InputError(
            f"{path}: {wrong[0] if wrong else 'its blocks'} is missing, unknown or of another shape; {WANTED}"
        )
    generator.load_state_dict(found, assign=True)
    return generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="a *_net_G*.pth of the original CycleGAN")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--size", default="286", help="size of its training images: 286, 286x286 or native")
    parser.add_argument("--crop", default="256", help="size of its training crops")
    options = parser.parse_args()
    try:
        for name, value in (("--size", options.size), ("--crop", options.crop)):
            if not is_size(value) or (name, value) == ("--crop", "native"):
                raise InputError(f"{name} {value}: wanted: 256 or 256x512 (height x width)")
        if options.out.exists():
            raise InputError(f"--out {options.out}: is there; wanted: a new folder")
        generator = convert(read(options.file), options.file, options.size, options.crop)
        try:
            save_model(generator, options.out)
        except OSError as error:
            raise InputError(f"--out {options.out}: {error.strerror}") from error
    except InputError as error:
        print(f"convert_cyclegan.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    config = generator.config
    print(f"{options.out}: {config['blocks']} blocks, {config['width']} filters, runs at {config['size']}")


if __name__ == "__main__":
    main()
