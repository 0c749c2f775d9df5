"""Translate a video frame by frame, or label it and write an overlay.

    python examples/video.py translate --in drive.mp4 --out night.mp4 --model runs/day2night
    python examples/video.py predict --in night.mp4 --out labelled.mp4 --model runs/seg

Frame rate and size stay; sound is dropped. Each frame is processed alone, so uncertain regions flicker.
Needs PyAV: pip install 'daynight[video]'.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

from daynight.config import is_size, pair
from daynight.data.labels import Classes
from daynight.data.transforms import resize_image, target_size, to_image, to_tensor
from daynight.inference.tiles import tiled
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import classes_of, load_model
from daynight.reports.previews import overlay
from daynight.system.console import counted, say
from daynight.system.errors import InputError
from daynight.system.files import replace
from daynight.system.processes import make_accelerator

try:
    import av
except ImportError:
    sys.exit("video.py: needs PyAV: pip install 'daynight[video]'")

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
Work = Callable[[list[Image.Image]], list[Image.Image]]


def batch_of(images: list[Image.Image], size: str, device) -> torch.Tensor:
    """Frames of one size → B×3×H×W in [-1, 1], at `size`."""
    shape = target_size(images[0].height, images[0].width, size)
    return torch.stack([to_tensor(resize_image(image, *shape)) for image in images]).to(device)


def translator(model: str, reverse: bool, whole: bool, size: str | None, accelerator) -> Work:
    generator = load_model(model, "night2day" if reverse else "day2night", "--model", Generator).to(accelerator.device)
    size, crop = size or generator.config["size"], None if whole else generator.config["crop"]

    @torch.inference_mode()
    def work(images):
        batch = batch_of(images, size, accelerator.device)
        with accelerator.autocast():
            results = tiled(generator, batch, pair(crop) if crop else batch.shape[2:])
        return [
            resize_image(to_image(result), image.height, image.width)
            for image, result in zip(images, results, strict=True)
        ]

    return work


def labeller(model: str, size: str | None, accelerator) -> Work:
    teacher = load_model(model, "teacher", "--model", DeepLabV2).to(accelerator.device)
    size, classes = size or teacher.config["size"], Classes(*classes_of(teacher))

    @torch.inference_mode()
    def work(images):
        with accelerator.autocast():
            logits = teacher(batch_of(images, size, accelerator.device))
        results = []
        for image, one in zip(images, logits.float(), strict=True):
            one = F.interpolate(one[None], (image.height, image.width), mode="bilinear", align_corners=False)
            results.append(overlay(image, one[0].max(0)[1].to(torch.uint8).cpu().numpy(), classes))
        return results

    return work


def frames(video, stream, source: Path) -> Iterator[Image.Image]:
    """Yield the frames of an open file as RGB images of one size. Raises `InputError` if a frame cannot be decoded."""
    count = 0
    try:
        for frame in video.decode(stream):
            yield frame.to_image(width=stream.width, height=stream.height)
            count += 1
    except av.FFmpegError as error:
        raise InputError(f"--in {source}: frame {count} cannot be decoded ({error.strerror})") from error
    if not count:
        raise InputError(f"--in {source}: holds no frame")


def convert(source: Path, out: Path, work: Work, batch_size: int, codec: str) -> None:
    """Write `out` completely or not at all, with `batch_size` frames in memory at a time. Raises `InputError`."""
    with open_video(source) as video:
        stream = video.streams.video[0]
        stream.thread_type = "AUTO"
        # MPEG-4 can count this, and it keeps 30000/1001
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)
        total = stream.frames or round((video.duration or 0) / av.time_base * rate) or 1
        sound = ", without its sound" if video.streams.audio else ""
        say(f"{source} → {out}: {stream.width}x{stream.height}, {float(rate):.4g} frames/s{sound}")

        def write(temporary: Path) -> None:
            with av.open(str(temporary), "w", format=FORMATS[out.suffix.lower()]) as file:
                result = file.add_stream(codec, rate=rate, options={"crf": "18"})
                result.width, result.height = stream.width, stream.height
                result.bit_rate = stream.bit_rate or 8_000_000  # for encoders without crf
                # frames are converted to ITU-601; without this mark players read large videos as ITU-709
                result.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
                # colours at half the resolution need even sides
                result.pix_fmt = "yuv444p" if stream.width % 2 or stream.height % 2 else "yuv420p"
                images = counted(frames(video, stream, source), total, "frames")
                while batch := list(islice(images, batch_size)):
                    for image in work(batch):
                        file.mux(result.encode(av.VideoFrame.from_image(image)))
                file.mux(result.encode(None))

        try:
            replace(out, write)
        except (OSError, ValueError, av.FFmpegError) as error:
            raise InputError(f"--out {out}: cannot be written with --codec {codec} ({error})") from error


def open_video(source: Path):
    try:
        video = av.open(str(source))
    except av.FFmpegError as error:
        raise InputError(f"--in {source}: not a readable video ({error.strerror})") from error
    if not video.streams.video:
        video.close()
        raise InputError(f"--in {source}: holds no video")
    return video


def check(options) -> None:
    if options.size and not is_size(options.size):
        raise InputError(f"--size {options.size}: wanted: 512 (the shorter side), 512x1024 (height x width) or native")
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}: wanted: at least 1")
    if options.out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {options.out}: wanted: a name that ends in {', '.join(FORMATS)}")
    if options.out.exists() or not options.out.parent.is_dir():
        raise InputError(f"--out {options.out}: wanted: a new file, in a folder that exists")
    try:
        known = av.Codec(options.codec, "w").type == "video"
    except av.codec.codec.UnknownCodecError:
        known = False
    if not known:
        raise InputError(f"--codec {options.codec}: PyAV has no such encoder of video; try mpeg4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", choices=("translate", "predict"))
    parser.add_argument("--in", dest="source", type=Path, required=True, help="a video")
    parser.add_argument("--out", type=Path, required=True, help=f"the video to write ({', '.join(FORMATS)})")
    parser.add_argument("--model", help="as for daynight translate or daynight predict, with the same default")
    parser.add_argument("--reverse", action="store_true", help="translate night to day")
    parser.add_argument("--whole", action="store_true", help="translate each frame at once, not in tiles")
    parser.add_argument("--size", help="input size of the network: 512, 512x1024 or native; default: its training size")
    parser.add_argument("--batch-size", type=int, default=4, help="frames in one batch; default: 4")
    parser.add_argument("--codec", default="libx264", help="default: libx264, which is H.264; mpeg4 is MPEG-4")
    parser.add_argument("--precision", choices=("auto", "no", "bf16"), default="auto", help="as for daynight predict")
    options = parser.parse_args()
    try:
        check(options)
        accelerator = make_accelerator(options.precision)
        if options.work == "translate":
            model = options.model or "runs/day2night"
            work = translator(model, options.reverse, options.whole, options.size, accelerator)
        else:
            work = labeller(options.model or "runs/seg", options.size, accelerator)
        convert(options.source, options.out, work, options.batch_size, options.codec)
    except InputError as error:
        print(f"video.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)


if __name__ == "__main__":
    main()
