"""Make the zip for a test server from the folder that `daynight predict` wrote (for Dark Zurich with --confidence).

    python examples/submit.py dark-zurich --predictions labelled --out dz.zip --invalid-below 0.4

No server was tried. The servers' authors and users wrote this:

Cityscapes: label ids, one channel, 2048x1024, in any folder, named city_123456_123456*.png (mcordts/cityscapesScripts,
  evalPixelLevelSemanticLabeling.py); exactly one for each of 1,525 images (its issue 65).
ACDC: train ids, 1920x1080 (hf618/DTBS, README, after the server); 500 images of each of four conditions (its README).
  The server also scores one condition alone (dingjiansw101/HGFormer, GETTING_STARTED.md). Sources differ on the folder:
  labelTrainIds/ (BIT-DA/VBLC, README) or none (brdav/refign, models/segmentation_model.py). This writes labelTrainIds/.
Dark Zurich: labelTrainIds/, labelTrainIds_invalid/ and confidence/ at the root (BIT-DA/SePiCo, README; XiaRho/CMDA
  issue 1 has no confidence), 1920x1080, 151 images (arXiv 1901.05946). The server looks for {sequence}_frame_
  {six digits}*.png (ygjwd12345/BiMix issue 1). Confidence is 16 bits, 65535 x the probability (Attila94/CIConv,
  predict_dz.py), and only the average UIoU uses it (W-zx-Y/DANNet issue 11). Where it is below a threshold, _invalid
  is 255 (sakaridis/MGCDA, soft_to_hard_prediction_with_invalid_regions.m). Without a threshold _invalid is a copy.
  Not known: why the server missed files in the zips of BiMix issue 7 and DANNet issue 17.

The files get the shortest names that the servers find: city_123456_123456.png, sequence_frame_123456.png. The classes
must be the 19 of Cityscapes, which prediction.json tells.
"""

import argparse
import io
import json
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from daynight.data.formats import open_image
from daynight.data.labels import CITYSCAPES, IGNORE, read_label, to_label_ids
from daynight.system.errors import InputError


class Server(NamedTuple):
    frame: str  # a regular expression for the part of a file's name that the server looks for
    example: str
    size: tuple[int, int]  # height, width
    counts: tuple[int, ...]  # the numbers of images that it accepts


ANON = (r"[^_]+_frame_\d{6}(?!\d)", "GOPR0364_frame_000001_rgb_anon.png", (1080, 1920))
SERVERS = {
    "cityscapes": Server(
        r"[^_]+_\d{6}_\d{6}(?!\d)", "berlin_000000_000019_leftImg8bit.png", (1024, 2048), counts=(1525,)
    ),
    "acdc": Server(*ANON, counts=(2000, 500)),
    "dark-zurich": Server(*ANON, counts=(151,)),
}


def find(folder: Path, server: Server) -> dict[str, Path]:
    """Map each frame to its file. Raises `InputError` for a name that the server would miss, or find twice."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        frame = re.match(server.frame, path.name)
        if not frame:
            raise InputError(f"{path}: not an image of the test set; wanted: names like {server.example}")
        if frame[0] in found:
            raise InputError(f"{path}: one image with {found[frame[0]]} for the server; predict the test set alone")
        found[frame[0]] = path
    if not found:
        raise InputError(f"--predictions: {folder} holds no PNG; wanted: the --out of daynight predict")
    return found


def check_size(path: Path, values: np.ndarray, server: Server) -> None:
    if values.shape != server.size:
        has, wanted = (f"{width}x{height}" for height, width in (values.shape, server.size))
        raise InputError(f"{path}: {has}; wanted: {wanted}, the size of the test images")


def is_below(path: Path, threshold: float, server: Server) -> np.ndarray:
    """Find where the confidence in a file is below a threshold, 0 to 1: H×W bool."""
    wanted = "wanted: 16 bits in one channel, as daynight predict --confidence writes"
    try:
        with open_image(path) as image:
            mode, confidence = image.mode, np.asarray(image)
    # Pillow answers damaged files with exceptions of any kind
    except Exception as error:
        raise InputError(f"{path}: missing or damaged; {wanted}") from error
    if not mode.startswith("I"):
        raise InputError(f"{path}: {mode}; {wanted}")
    check_size(path, confidence, server)
    return confidence < threshold * 65535


def png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png")
    return file.getvalue()


def submit(name: str, predictions: Path, out: Path, invalid_below: float | None) -> int:
    """Write all of `out` or nothing; return the number of images. Raises `InputError` if the server would refuse it."""
    if invalid_below is not None and (name != "dark-zurich" or not 0 < invalid_below <= 1):
        raise InputError(f"--invalid-below {invalid_below}: wanted: a probability above 0, and for dark-zurich alone")
    if out.exists() or not out.parent.is_dir():
        raise InputError(f"--out {out}: wanted: a new file, in a folder that exists")
    try:
        made = json.loads((predictions / "prediction.json").read_text(encoding="utf-8"))
        kind, classes = made["ids"], made["classes"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"--predictions {predictions}: no folder that daynight predict wrote") from error
    if classes != list(CITYSCAPES.names):
        has = json.dumps(classes, ensure_ascii=False)
        raise InputError(f"--predictions {predictions}: classes {has}; wanted: the 19 of Cityscapes, in their order")
    server, folder = SERVERS[name], predictions / "ids"
    found = find(folder, server)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for frame, path in found.items():
                ids = read_label(path, kind, CITYSCAPES)
                check_size(path, ids, server)
                if (ids == IGNORE).any():
                    raise InputError(f"{path}: pixels without a class; wanted: one of the 19 classes in each")
                if name == "cityscapes":
                    archive.writestr(f"{frame}.png", png(to_label_ids(ids)))
                    continue
                archive.writestr(f"labelTrainIds/{frame}.png", png(ids))
                if name == "dark-zurich":
                    confidence = predictions / "confidence" / path.relative_to(folder)
                    invalid = np.where(is_below(confidence, invalid_below or 0, server), np.uint8(IGNORE), ids)
                    archive.writestr(f"labelTrainIds_invalid/{frame}.png", png(invalid))
                    archive.writestr(f"confidence/{frame}.png", confidence.read_bytes())
        os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--predictions", type=Path, required=True, help="the folder that daynight predict wrote")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    parser.add_argument("--invalid-below", type=float, help="dark-zurich: below this probability a pixel is invalid")
    options = parser.parse_args()
    try:
        count = submit(options.server, options.predictions, options.out, options.invalid_below)
    except InputError as error:
        print(f"submit.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    print(f"{options.out}: {count:,} images")
    counts = SERVERS[options.server].counts
    if count not in counts:
        wanted = " or ".join(f"{number:,}" for number in counts)
        print(f"submit.py: warning: {count:,} images; the server wants {wanted}, one file each", file=sys.stderr)


if __name__ == "__main__":
    main()
