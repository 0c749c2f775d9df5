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
        r"two checkpoints of ([\d.]+ MiB) .*models ([\d.]+ MiB), previews \(3\) ([\d.]+ MiB)", result.out
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
    "day/labels/train/000.png": (paint, "is not one colour of classes.json"),
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


TURNED = ("jpg", "png", "webp", "tif")


def turn(path, suffix):
    """Store an image lying on its side, as phones do, with an EXIF orientation that tells how to turn it."""
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    path.unlink()
    image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(f".{suffix}"), exif=exif)


def only(home, *stems):
    """Leave only these training images to the day set, and nothing held out of it."""
    for path in (home / "data/day").rglob("*.*"):
        if (
            path.parent.name != "day"
            and path.relative_to(home / "data/day").with_suffix("").as_posix()[7:] not in stems
        ):
            path.unlink()


DAY = f"{LINES['seg-train'].replace('--ssl --translator darken', '--train-on day')} --validate-every 0"


def test_an_image_that_is_turned_is_as_high_as_it_is_shown_in_every_format(home):
    """The label is upright: it fits only when the image is turned."""
    for suffix, path in zip(TURNED, sorted((home / "data/day/images/train").rglob("*.jpg")), strict=True):
        turn(path, suffix)
    assert "day: 4 files opened, height x width 48x96 (4)" in daynight(f"{DAY} --steps 9 --dry-run", home).out
    assert daynight(f"{DAY} --steps 9 --batch-size 4", home).code == 0


@pytest.mark.parametrize("suffix", TURNED)
def test_a_label_that_fits_only_an_image_as_it_is_stored_is_refused_by_both(suffix, home):
    only(home, "train/000")
    turn(home / "data/day/images/train/000.jpg", suffix)
    label = home / "data/day/labels/train/000.png"
    Image.open(label).transpose(Image.Transpose.ROTATE_90).save(label)
    for more in ("--dry-run", "--dry-run --skip-unreadable", "", "--skip-unreadable"):
        refused = daynight(f"{DAY} --steps 2 {more}", home).line
        assert f"{label.relative_to(home)}: label of 96x48 (height x width) for an image of 48x96" in refused
        assert "--skip-unreadable" not in refused


def problems_in(text):
    return sorted(line.strip() for line in text.splitlines() if line.startswith("  data/"))


def skips_as_told(line, home, damaged):
    """The dry run lists what is damaged and advises to skip it; the training then skips just that."""
    for path in damaged:
        cut(home / path)
    told = daynight(f"{line} --dry-run", home)
    assert told.line.endswith("; --skip-unreadable goes on without what cannot be read\n"), told.line
    problems = problems_in(told.out)
    assert [problem.partition(":")[0] for problem in problems] == sorted(damaged)
    again = daynight(f"{line} --dry-run --skip-unreadable", home)
    assert again.code == 0 and set(problems_in(again.out)) == set(problems)
    assert daynight(f"{line} --skip-unreadable", home).code == 0
    assert sorted((home / "out/run/skipped.txt").read_text().splitlines()) == problems


def test_a_segmentation_skips_what_its_dry_run_says(home):
    trees.folder(home / "data/more", train=2, val=1, classes=None, labelled=False)
    trees.folder(home / "data/target", train=0, val=3)
    trees.folder(home / "data/day_night", train=4, val=0, classes=None, labelled=False)
    line = LINES["seg-train"].replace("--translator darken", "--translated day_night --unlabelled-day more")
    damaged = ["day/images/train/000.jpg", "day/labels/train/street/001.png", "day_night/images/train/street/002.jpg"]
    damaged += ["dark/images/train/000.jpg", "dark/images/val/000.jpg", "day/labels/val/000.png"]
    damaged += ["target/images/val/000.jpg", "target/labels/val/street/001.png", "more/images/train/000.jpg"]
    skips_as_told(f"{line} --validate-on target --steps 30 --ssl-start 0", home, [f"data/{path}" for path in damaged])


@pytest.mark.parametrize("weight", [0, 1])
def test_a_translator_skips_what_its_dry_run_says(weight, home):
    """Held-out nights are compared by the feature network: without it they are not read."""
    damaged = ["data/day/images/train/000.jpg", "data/dark/images/train/street/001.jpg", "data/day/images/val/000.jpg"]
    night = ["data/dark/images/val/street/001.jpg"]
    cut(home / night[0])
    line = f"{LINES['translate-train']} --steps 20 --lambda-feature {weight}"
    skips_as_told(line, home, damaged + night * weight)


@pytest.mark.parametrize("folder", ["day/images/train", "day/labels/train", "dark/images/train"])
def test_where_nothing_can_be_read_skipping_is_not_advised(folder, home):
    for path in (home / "data" / folder).rglob("*.*"):
        spoil(path)
    refused = daynight(f"{LINES['seg-train']} --steps 9 --ssl-start 0 --dry-run", home).line
    assert folder in refused and "--skip-unreadable" not in refused
    for more in ("--dry-run", ""):
        refused = daynight(f"{LINES['seg-train']} --steps 9 --ssl-start 0 --skip-unreadable {more}", home).line
        assert folder in refused and "99 drawn before it" in refused


def test_held_out_images_may_all_be_skipped(home):
    for name in ("day", "dark"):
        for path in (home / "data" / name / "images/val").rglob("*.*"):
            spoil(path)
    refused = daynight(f"{LINES['seg-train']} --steps 2 --dry-run", home).line
    assert "nor can 4 more; --skip-unreadable goes on" in refused
    assert daynight(f"{LINES['seg-train']} --steps 2 --skip-unreadable", home).code == 0


def test_with_what_is_not_skipped_skipping_is_not_advised(home):
    """Whichever comes first, and in whichever set."""
    spoil(home / "data/day/images/train/000.jpg")
    spoil(home / "data/dark/images/train/000.jpg")
    shrink(home / "data/day/labels/val/street/001.png")
    for more in ("", "--skip-unreadable"):
        refused = daynight(f"{LINES['seg-train']} --steps 9 --dry-run {more}", home).line
        assert "data/day/labels/val/street/001.png: label of 10x10" in refused and "nor can 2 more" in refused
        assert "--skip-unreadable" not in refused
    refused = daynight(f"{LINES['seg-train']} --steps 9 --skip-unreadable", home).line
    assert "data/day/labels/val/street/001.png: label of 10x10" in refused


def test_two_processes_rehearse_together(home):
    (home / "outputs").mkdir()
    before = everything(home / "data")
    result = run(f"{LINES['seg-train']} --steps 20 --dry-run", 2, home)
    assert result.codes == [0, 0], result
    assert result.out.count("the run  ") == 1 and everything(home / "data") == before and not (home / "out").exists()
