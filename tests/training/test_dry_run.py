"""`--dry-run`: what it looks at, what it says, and that it leaves nothing."""

import re
import shutil
import tempfile

import pytest
import trees
from PIL import Image
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_processes import run

from daynight.training import run as runs

SMALL = "--day day --night dark --crop 32 --size native --log-every 5 --out out/run"
LINES = {
    "translate-train": (
        f"translate-train {SMALL} --width 4 --blocks 1 --history 20 --feature-network test_resnet "
        "--feature-layer layer1 --feature-weights random"
    ),
    "seg-train": (
        f"seg-train {SMALL} --backbone test_resnet --backbone-weights random --head-width 8 --batch-size 2 --ssl "
        "--translator darken"
    ),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    trees.folder(tmp_path / "data/day", train=4, val=2)
    trees.folder(tmp_path / "data/dark", train=3, val=3, classes=None, labelled=False, brightness=60)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def everything(home):
    return {path: path.is_file() and path.stat().st_mtime_ns for path in home.rglob("*")}


def size(text):
    number, unit = text.split()
    return float(number) * {"MiB": 2**20, "GiB": 2**30}[unit]


@pytest.mark.parametrize("command", LINES)
def test_two_steps_say_what_the_run_will_take_and_leave_nothing(command, home, monkeypatch):
    before, steps, log = everything(home), [], runs.Run.log

    def watched(self, step, **values):
        steps.append((step, sorted(values)))
        return log(self, step, **values)

    monkeypatch.setattr(runs.Run, "log", watched)
    result = daynight(f"{LINES[command]} --steps 20 --save-every 10 --dry-run", home)
    assert (result.code, result.err) == (0, ""), result
    assert everything(home) == before
    assert [step for step, _ in steps] == [18, 19]  # with Eq. 15, where there is one
    assert any(name.startswith("ssl_") for name in steps[0][1]) == (command == "seg-train")
    assert "day: 4 files opened, height x width 48x96 (4)" in result.out
    assert "dark: 3 files opened" in result.out and "dark: 3 files opened" in result.out.partition("day: 2 files")[2]
    assert re.search(r"^memory +[\d.]+ GiB of memory$", result.out, re.M)
    a_step = float(re.search(r"^a step +([\d.e-]+) s: ", result.out, re.M)[1])
    assert 0 < a_step < 20 and re.search(r"^the run +\d+ (s|min) for 20 steps$", result.out, re.M)
    checkpoint, models, previews = re.search(
        r"two checkpoints of ([\d.]+ MiB) .*models ([\d.]+ MiB), previews \(2\) ([\d.]+ MiB)", result.out
    ).groups()

    monkeypatch.undo()
    real = daynight(f"{LINES[command]} --steps 20 --save-every 10", home)
    assert real.code == 0, real
    out = home / "out/run"
    # to the rounding, and headers
    found = sum(path.stat().st_size for path in (out / "checkpoint-0000020").iterdir())
    assert size(checkpoint) == pytest.approx(found, rel=0.1, abs=2**17)
    found = sum(path.stat().st_size for path in out.rglob("model.safetensors"))
    assert size(models) == pytest.approx(found, rel=0.1, abs=2**17)
    found = sum(path.stat().st_size for path in (out / "previews").iterdir())
    assert size(previews) == pytest.approx(found, rel=0.5, abs=2**17)


def test_a_run_that_is_there_is_checked_and_not_touched(home):
    line = LINES["seg-train"]
    assert daynight(f"{line} --steps 4 --save-every 3", home).code == 0
    shutil.rmtree(home / "out/run/checkpoint-0000004")
    before = everything(home)
    result = daynight(f"{line} --steps 4 --save-every 3 --dry-run", home)
    assert result.code == 0 and "for 1 of 4 steps" in result.out
    assert everything(home) == before
    assert "--lr 0.5" in daynight(f"{line} --steps 4 --save-every 3 --dry-run --lr 0.5", home).line
    assert "--out" in daynight(f"{line} --dry-run --out data/day", home).line
    assert everything(home) == before


def test_the_time_is_that_of_the_steps_that_are_left(home):
    line, seconds = f"{LINES['seg-train']} --steps 2000 --validate-every 0", []
    record = home / "out/run/options.json"
    for made in (False, True):
        if made:
            assert daynight(f"{line.replace('2000', '2')}", home).code == 0
            (home / "out/run/checkpoint-0000002").rename(home / "out/run/checkpoint-0001999")
            record.write_text(record.read_text().replace('"steps": 2,', '"steps": 2000,'))
        result = daynight(f"{line} --dry-run", home)
        assert result.code == 0 and f"for {'1 of ' * made}2,000 steps" in result.out, result
        number, unit = re.search(r"^the run +(\d+) (s|min)", result.out, re.M).groups()
        seconds.append(int(number) * {"s": 1, "min": 60}[unit])
    assert seconds[1] < seconds[0] / 10


@pytest.mark.parametrize(
    "words, named",
    [
        ("--backbone-weights no.safetensors", "no.safetensors"),
        ("--init nothing", "--init nothing"),
        ("--translator nothing", "--translator nothing"),
        ("--out data/day/classes.json/run", "--out data/day/classes.json/run"),
        ("--log nothing", "--log nothing"),
        ("--night nothing", "nothing"),
    ],
)
def test_every_path_is_looked_at(words, named, home):
    before = everything(home)
    assert named in daynight(f"{LINES['seg-train']} --steps 20 --dry-run {words}", home).line
    assert everything(home) == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def spoil(path):
    path.write_bytes(b"no image" * 9)


def shrink(path):
    Image.open(path).resize((10, 10)).save(path)


def paint(path):
    Image.open(path).convert("RGB").save(path)


DAMAGE = {
    "dark/images/train/street/001.jpg": (cut, "not a readable image"),
    "day/images/train/street/001.jpg": (spoil, "not a readable image"),
    "day/labels/train/street/002.png": (cut, "cannot be read as a label"),
    "day/labels/train/street/003.png": (shrink, "label of 10x10 (height x width) for an image of 48x96"),
    "day/labels/train/000.png": (paint, "colour-coded (RGB)"),
}


def test_whatever_is_damaged_is_listed(home):
    for path, (damage, _) in DAMAGE.items():
        damage(home / "data" / path)
    result = daynight(f"{LINES['seg-train']} --steps 9 --dry-run --validate-every 0", home)
    assert "nor can 4 more" in result.line
    for path, (_, words) in DAMAGE.items():
        (line,) = (line for line in result.out.splitlines() if path in line)
        assert words in line
    assert "memory" not in result.out and not (home / "out").exists()
    # what cannot be read is skipped; what is no label of its image is not
    for path in ("day/labels/train/street/003.png", "day/labels/train/000.png"):
        shutil.copy(home / "data/day/labels/val/000.png", home / "data" / path)
    result = daynight(f"{LINES['seg-train']} --steps 9 --dry-run --validate-every 0 --skip-unreadable", home)
    assert result.code == 0 and "memory" in result.out


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("fits", ["as shown", "as stored"])
def test_the_dry_run_and_the_training_turn_an_image_alike(kind, fits, home):
    """As photographs of phones are: the label is upright. A label that fits the stored pixels alone does not fit."""
    first = home / "data/day/images/train/000.jpg"
    image = Image.open(first).convert("RGB")
    image = image.transpose(Image.Transpose.ROTATE_90) if fits == "as shown" else image
    exif = image.getexif()
    exif[0x0112] = 6
    first.unlink()
    image.save(first.with_suffix(f".{kind.lower()}"), kind, exif=exif)
    line = f"{LINES['seg-train']} --steps 8 --validate-every 0 --skip-unreadable"
    dry, trained = daynight(f"{line} --dry-run", home), daynight(line, home)
    if fits == "as shown":
        assert (dry.code, trained.code) == (0, 0), (dry, trained)
    else:
        assert "labels/train/000.png: label of" in dry.line and "labels/train/000.png: label of" in trained.line
        assert "--skip-unreadable" not in dry.line


@pytest.mark.parametrize("word", ["", "--skip-unreadable"])
@pytest.mark.parametrize("damage", [cut, shrink, paint])
def test_skip_unreadable_is_named_where_it_helps(damage, word, home):
    """What cannot be decoded is skipped; a label of another size, or in colours, is not."""
    for path in (home / "data/day/labels/train").rglob("*.png"):
        if path.name != "002.png":
            damage(path)
    line = f"{LINES['seg-train']} --steps 8 --validate-every 0 {word}"
    dry, trained = daynight(f"{line} --dry-run", home), daynight(line, home)
    if damage is cut and word:
        assert (dry.code, trained.code) == (0, 0), (dry, trained)
    else:
        assert ("--skip-unreadable goes on" in dry.line) == (damage is cut)
        assert trained.code == 2 and "labels/train" in trained.line


def test_two_processes_rehearse_together(home):
    (home / "outputs").mkdir()
    before = everything(home / "data")
    result = run(f"{LINES['seg-train']} --steps 20 --dry-run", 2, home)
    assert result.codes == [0, 0], result
    assert result.out.count("the run  ") == 1 and everything(home / "data") == before and not (home / "out").exists()
