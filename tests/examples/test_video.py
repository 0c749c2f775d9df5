"""examples/video.py: a video in, and every frame of the one that comes out is what the commands make of that frame."""

import sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import clean, daynight, in_process, shell  # noqa: F401 (clean is a fixture)
from test_export import random_teacher

from daynight.demo import streets
from daynight.models.generator import Generator
from daynight.models.hub import save_model

PATH = Path(__file__).parents[2] / "examples/video.py"
COUNT, RATE = 10, Fraction(30000, 1001)


def write(path, frames, colorspace=None, sound=False):
    """A nearly lossless video of H×W×3 RGB frames."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "5"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        if colorspace:
            stream.codec_context.colorspace = colorspace
        audio = file.add_stream("aac", rate=16000, layout="mono") if sound else None
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            file.mux(stream.encode(picture.reformat(format=stream.pix_fmt, dst_colorspace=colorspace)))
        file.mux(stream.encode(None))
        if audio:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16000, 0
            file.mux(audio.encode(silence))
            file.mux(audio.encode(None))


def read(path):
    """(encoder, rate, whether there is sound, frames as N×H×W×3) of a video."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return stream.codec_context.name, stream.average_rate, bool(file.streams.audio), np.stack(frames)


def drive(height, width):
    """A street that moves to the left by two pixels a frame."""
    street = streets.scene(3, False, (height, width + 2 * COUNT))[0]
    return [street[:, 2 * i : 2 * i + width] for i in range(COUNT)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of either training, with random weights; two videos; their frames, as decoded, as images."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    save_model(random_teacher(), home / "runs/seg/teacher")
    for part in ("day2night", "night2day"):
        save_model(Generator(1, 4, "bilinear", "48", "24x32"), home / "runs/day2night" / part)
    write(home / "drive.mp4", drive(64, 128), sound=True)
    write(home / "odd.mkv", drive(67, 129))
    for video in ("drive.mp4", "odd.mkv"):
        for number, frame in enumerate(read(home / video)[3]):
            path = home / "frames" / video / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
    return home


@pytest.fixture
def run(home):
    """A command line of the script in this process: exit code, stdout, stderr."""
    return lambda line: in_process(lambda: script().main(), f"video.py {line}", home)


def script():
    spec = spec_from_file_location("video", PATH)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "command", "encoder"),
    [
        ("translate --in drive.mp4 --out a.mp4 --size 64", "translate --in frames/drive.mp4 --out a --size 64", "h264"),
        (
            "translate --in odd.mkv --out b.mkv --reverse --whole --batch-size 3",
            "translate --in frames/odd.mkv --out b --reverse --whole",
            "h264",
        ),
        (
            "predict --in drive.mp4 --out c.avi --size native --codec mpeg4 --batch-size 20",
            "predict --in frames/drive.mp4 --out c --size native",
            "mpeg4",
        ),
    ],
)
def test_every_frame_is_what_the_command_makes_of_it(line, command, encoder, home, run):
    code, said, complaint = run(line)
    assert (code, complaint) == (0, "")
    words = line.split()
    assert ("without its sound" in said) == ("drive.mp4" in line)
    source, result = read(home / words[2]), read(home / words[4])
    assert result[:3] == (encoder, RATE, False)
    assert result[3].shape == source[3].shape and len(result[3]) == COUNT
    assert daynight(command, home).code == 0
    folder = home / words[4][0] / ("overlay" if words[0] == "predict" else "")
    for number in range(COUNT):
        wanted = np.array(Image.open(folder / f"{number}.png")).astype(int)
        errors = [np.abs(frame - wanted).mean() for frame in result[3]]
        assert errors[number] == min(errors) < 8 < np.abs(source[3][number] - wanted).mean()


def test_colours_survive_a_video_that_is_said_to_be_of_another_standard(tmp_path):
    colours = np.repeat(np.array([[(200, 30, 30), (30, 200, 30), (30, 60, 200)]], np.uint8), 32, 1).repeat(64, 0)
    write(tmp_path / "a.mp4", [colours] * 3, av.video.reformatter.Colorspace.ITU709)
    script().convert(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda images: images, 2, "libx264")
    middles = read(tmp_path / "b.mp4")[3][:, 32, 16::32].astype(int)
    assert np.abs(middles - colours[32, 16::32]).max() <= 4
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.video[0].codec_context.colorspace == av.video.reformatter.Colorspace.ITU601


def test_no_more_frames_are_read_than_are_worked_on(home, tmp_path, monkeypatch):
    module, read_so_far, done = script(), [], []
    frames = module.frames
    monkeypatch.setattr(module, "frames", lambda *given: (read_so_far.append(1) or frame for frame in frames(*given)))

    def work(images):
        assert len(read_so_far) - len(done) == len(images) <= 3
        done.extend(images)
        return images

    module.convert(home / "drive.mp4", tmp_path / "same.mp4", work, 3, "libx264")
    assert len(done) == COUNT


@pytest.fixture
def bad(home):
    """Files that are no video, or none to its end."""
    whole = (home / "drive.mp4").read_bytes()
    start = whole.index(b"mdat") + 100
    (home / "damaged.mp4").write_bytes(whole[:start] + bytes(3000) + whole[start + 3000 :])
    (home / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (home / "text.mp4").write_text("hello")
    with av.open(str(home / "sound.mp4"), "w") as file:
        audio = file.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        file.mux(audio.encode(silence))
        file.mux(audio.encode(None))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--in none.mp4 --out x.mp4", ["none.mp4", "No such file"]),
        ("--in text.mp4 --out x.mp4", ["text.mp4", "not a readable video"]),
        ("--in cut.mp4 --out x.mp4", ["cut.mp4", "not a readable video"]),
        ("--in damaged.mp4 --out x.mp4", ["damaged.mp4", "frame 0"]),
        ("--in sound.mp4 --out x.mp4", ["sound.mp4", "no video"]),
        ("--in drive.mp4 --out x.txt", ["x.txt", ".mp4"]),
        ("--in drive.mp4 --out drive.mp4", ["drive.mp4", "new file"]),
        ("--in drive.mp4 --out gone/x.mp4", ["gone/x.mp4", "folder"]),
        ("--in drive.mp4 --out x.mp4 --codec h999", ["h999", "mpeg4"]),
        ("--in drive.mp4 --out x.mp4 --codec aac", ["aac", "mpeg4"]),
        ("--in drive.mp4 --out x.avi --codec gif", ["gif", "x.avi", "written"]),
        ("--in drive.mp4 --out x.mp4 --size big", ["--size", "512"]),
        ("--in drive.mp4 --out x.mp4 --batch-size 0", ["--batch-size", "1"]),
        ("--in drive.mp4 --out x.mp4 --model gone", ["--model gone"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(line, words, home, bad, run):
    before = sorted(home.iterdir())
    code, _, complaint = run(f"predict {line}")
    assert code == 2 and complaint.startswith("video.py: ") and complaint.count("\n") == 1, complaint
    assert all(word in complaint for word in words), complaint
    assert sorted(home.iterdir()) == before


def test_without_pyav_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, _ = run("predict --in drive.mp4 --out x.mp4")
    assert code == "video.py: needs PyAV: pip install 'daynight[video]'"


def test_it_runs_as_a_script(home):
    result = shell(sys.executable, str(PATH), "predict", "--in", "text.mp4", "--out", "x.mp4", cwd=home, check=False)
    assert result.returncode == 2 and "text.mp4" in result.stderr
