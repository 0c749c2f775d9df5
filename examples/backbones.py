"""The table of backbones.md: stride, parameters, memory and time of a training step, ONNX, of some backbones.

    python examples/backbones.py [NAME ...] [--onnx]

Each is measured in a process of its own, with random weights and one image: a forward and a backward pass of DeepLabV2
with a head of 256 channels, on the GPU if there is one. Times are the least of three, in multiples of VGG-16's. On CPU
they are times of computing, which other processes on the machine change little.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import save_model

NAMES = (
    *("vgg16", "tf_efficientnet_lite0", "resnet50", "convnextv2_tiny", "hrnet_w18", "mobilenetv4_conv_small"),
    *("vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "hiera_tiny_224"),
    *("mvitv2_tiny", "pvt_v2_b2", "caformer_s18"),
)
SIZES = (256, 256), (512, 1024)


def measure(name: str, height: int, width: int) -> dict:
    """Seconds and GiB of a step on one image."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    colors = [(0, 0, 0)] * 19
    network = DeepLabV2([f"class {i}" for i in range(19)], colors, name, 16, 256, pretrained=False).train().to(device)
    before = peak(reset=True)
    images, seconds = torch.zeros(1, 3, height, width, device=device), []
    for _ in range(3):
        clock = time.perf_counter if device == "cuda" else time.process_time
        began = clock()
        network(images).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    taken = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else max(0.0, peak() - before)
    count, plan = sum(p.numel() for p in network.backbone.parameters()), getattr(network.backbone, "plan", None)
    tiles = f", tiles of {plan.multiple}" if plan and plan.tiles else ""
    stride = f"{network.backbone.strides[-1]}{tiles}"
    return {"stride": stride, "parameters": count / 1e6, "seconds": min(seconds), "memory": taken}


def peak(reset: bool = False) -> float:
    """The most memory that this process has taken, in GiB, of Linux; since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def exports(name: str) -> str:
    """Whether `daynight export` writes a network on this backbone, and finds the same labels in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_model(
            DeepLabV2(["a", "b"], [(0, 0, 0)] * 2, name, 16, 8, size="native", pretrained=False), Path(folder, "m")
        )
        line = [sys.executable, "-m", "daynight", "export", "--model", f"{folder}/m", "--out", f"{folder}/m.onnx"]
        return "yes" if subprocess.run(line, capture_output=True).returncode == 0 else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--onnx", action="store_true", help="export each, too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, *size = options.one
        return print(json.dumps(measure(name, *map(int, size))))
    head = " | ".join(f"{h}×{w}: time, GiB" for h, w in SIZES)
    print(f"| backbone | stride | parameters, million | {head} | ONNX |\n|---|---|---|---|---|---|")
    first = {}
    for name in dict.fromkeys(["vgg16", *options.names]):
        cells = []
        for size in SIZES:
            line = [sys.executable, __file__, "--one", name, *map(str, size)]
            found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            seconds = first.setdefault(size, found["seconds"])
            cells.append(f"{found['seconds'] / seconds:.2f}, {found['memory']:.1f}")
        cells += [exports(name) if options.onnx else ""]
        print(f"| `{name}` | {found['stride']} | {found['parameters']:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
