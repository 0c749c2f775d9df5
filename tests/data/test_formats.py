"""Strangers' files: an image is read if its content has one of a few formats; no other reader of Pillow's starts."""

import ast
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import EpsImagePlugin, Image
from test_bad_input import PREDICT, SEG_TRAIN, TRANSLATE, TRANSLATE_TRAIN, broken, home, models  # noqa: F401 (fixtures)
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)

from daynight.data.formats import FORMATS, IMAGE_SUFFIXES, open_image
from daynight.data.images import Images, save_image

REPOSITORY = Path(__file__).parents[2]
HEIGHT, WIDTH = trees.SIZE


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (70, 130, 180)).save(file, kind)
    return file.getvalue()


def psd() -> bytes:
    """An uncompressed picture without layers."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3)
    return head + bytes(12) + bytes(2) + bytes(3 * HEIGHT * WIDTH)


def fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {WIDTH}", f"NAXIS2  = {HEIGHT}", "END")
    return "".join(card.ljust(80) for card in cards).encode().ljust(2880) + bytes(2 * 2880)


FOREIGN = {
    "eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {WIDTH} {HEIGHT}\n%%EndComments\nshowpage\n%%EOF\n".encode(),
    "gif": saved("GIF"),
    "psd": psd(),
    "icns": saved("ICNS"),
    "fits": fits(),
    "pdf": saved("PDF"),
    "ppm": saved("PPM"),
    "jp2": saved("JPEG2000"),
    "tga": saved("TGA"),
}


@pytest.fixture
def readers(monkeypatch):
    """The formats whose readers have started, other than those that are meant."""
    Image.init()
    started = []
    for kind, (factory, accept) in dict(Image.OPEN).items():
        if kind not in FORMATS:
            reader = lambda *given, kind=kind, factory=factory: (started.append(kind), factory(*given))[1]  # noqa: E731
            monkeypatch.setitem(Image.OPEN, kind, (reader, accept))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append("Ghostscript"))
    return started


def test_the_formats_are_those_of_the_suffixes():
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)
    assert all(known[suffix] == kind for kind, suffixes in FORMATS.items() for suffix in suffixes)


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_not_opened(kind, tmp_path, readers):
    path = tmp_path / "street.png"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(Exception, match="street.png: not a readable image .none of PNG, JPEG"):
        Images([path])[0]
    assert readers == []


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_an_image_is_read_whatever_its_suffix(kind, tmp_path):
    """Cameras and data sets call JPEGs .png, and many a phone's .jpg is an MPO: a JPEG with a second picture."""
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 6))]} if kind == "MPO" else {}
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / "image", kind, **more)
    for suffix in IMAGE_SUFFIXES:
        path = (tmp_path / "image").rename(tmp_path / f"image{suffix}")
        with open_image(path) as image:
            assert image.format == kind
        assert np.array(Images([path])[0])[3, 4].tolist() == pytest.approx([255, 0, 0], abs=2)
        path.rename(tmp_path / "image")


LINES = [
    (TRANSLATE, "image", "train"),
    (PREDICT, "image", "val"),
    ("eval --dataset day", "image", "val"),
    ("eval --dataset day", "label", "val"),
    ("eval --dataset day --dry-run", "label", "val"),
    (f"{SEG_TRAIN} --train-on day", "image", "train"),
    (f"{SEG_TRAIN} --train-on day", "label", "train"),
    (f"{SEG_TRAIN} --train-on day --dry-run", "image", "train"),
    (TRANSLATE_TRAIN, "image", "train"),
]


@pytest.mark.parametrize(("line", "part", "split"), LINES)
def test_no_command_starts_another_reader(line, part, split, home, broken, readers):  # noqa: F811
    path = broken(part, split, lambda path: path.unlink())
    for kind in ("eps", "gif"):
        path.write_bytes(FOREIGN[kind])
        assert path.relative_to(home).as_posix() in daynight(line, home).line
        assert readers == []


@pytest.mark.parametrize("kind", ["eps", "gif"])
def test_no_prediction_starts_another_reader(kind, home, readers):  # noqa: F811
    for name in ("000", "001"):
        (home / "p").mkdir(exist_ok=True)
        (home / f"p/{name}.png").write_bytes(FOREIGN[kind])
    assert "p/000.png: cannot be read as a label" in daynight("eval --dataset day --predictions p", home).line
    assert readers == []


def opened_in(path: Path) -> set[str]:
    """The functions of a file, or "module", that call Pillow's `open`, or another library's that reads images."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called.endswith("Image.open") or called.split(".")[-1] in ("imread", "read_image", "decode_image"):
            found.add(next((f.name for f in reversed(functions) if node in ast.walk(f)), "module"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
            assert not {"open", "*"} & {alias.name for alias in node.names}, path
    return found


def test_every_image_is_opened_by_one_function():
    found = set()
    for folder in (REPOSITORY / "daynight", REPOSITORY / "examples"):
        for path in folder.rglob("*.py"):
            found |= {(path.relative_to(folder).as_posix(), name) for name in opened_in(path)}

    assert found == {("data/formats.py", "open_image")}


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".tif", ".bmp"])
def test_what_is_written_is_close_to_the_image(suffix, tmp_path):
    """None loses more than JPEG at quality 95 without subsampling, some 45 dB here."""
    image = Image.open(trees.image(tmp_path / "street.png")).convert("RGB")
    save_image(image, tmp_path / f"out{suffix}")
    lost = np.asarray(image, float) - np.asarray(Images([tmp_path / f"out{suffix}"])[0], float)
    assert (lost**2).mean() < 2.5 and (suffix == ".jpg" or not lost.any())


def test_a_signal_while_the_last_image_is_written_leaves_no_half(tmp_path):
    """A signal amid `Thread.join` has Python 3.11 take a thread that runs for one that has ended."""
    script = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from daynight.data import images\n"
        "from daynight.system.files import replace\n"
        "from daynight.system.watchdog import heed\n"
        "slow = lambda path: (time.sleep(0.5), path.write_text('whole'))\n"
        "images.save_image = lambda image, path: replace(path, slow)\n"
        "heed()\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "with images.Writer() as writer:\n"
        "    writer.save(None, Path(sys.argv[1], 'a.png'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "daynight: ended by SIGTERM\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.png", "whole")]
