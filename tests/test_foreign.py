"""Nothing of anybody else's is deleted, replaced or changed; results outlive whatever fails while they are shown."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import fields

import pytest
import torch
import trees
from PIL import Image
from test_bad_input import PREDICT, SEG_TRAIN, TRANSLATE, TRANSLATE_TRAIN
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)

from daynight import cli
from daynight.config import declared
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system.files import Lock, is_marked, write_text

EVAL = "eval --dataset day --model model"
COMMANDS = {
    "translate-train": TRANSLATE_TRAIN,
    "seg-train": f"{SEG_TRAIN} --train-on day",
    "translate": f"{TRANSLATE} --model translator",
    "predict": f"{PREDICT} --model model",
    "eval": EVAL,
    "export": "export --model model",
    "adapt": "adapt --day day --night dark --hours 1",
    "demo": "demo",
}
# what a user may have in a folder, names that daynight gives among them
FOREIGN = (
    *("notes.txt", ".hidden", ".lock", ".inbox.part", ".tmpa1B2c3", ".tmpbackup/thesis.tex", ".photos.part/p.jpg"),
    *(
        "index.html",
        "results.json",
        "scores.json",
        "evaluation.json",
        "prediction.json",
        "translation.json",
        "adapt.json",
        "plan.json",
        "demo.json",
    ),
    *("options.json", "metrics.jsonl", "classes.json", "audit.json", "panel.png", "README.md", "teacher.onnx"),
    *(
        "model.safetensors",
        "config.json",
        "teacher/README.md",
        "previews/0000002.png",
        "checkpoint-0000002/a",
        ".git/HEAD",
    ),
    *("ids/0.png", "color/0.png", "images/train/0.png", "runs/seg/note", "data/streets/images/train/00000.png"),
)


def draw_model(folder, names, colors):
    save_model(DeepLabV2(list(names), list(colors), "test_resnet", 8, 8, size="native", pretrained=False), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    draw_model(folder / "model", *zip(*trees.CLASSES, strict=True))
    save_model(Generator(1, 4, "bilinear", "native"), folder / "translator/day2night")
    return folder


@pytest.fixture
def home(models, tmp_path):
    """A working directory: data/ with `day` and `dark`, the models `model` and `translator`, and `foreign`, somebody
    else's folder with every kind of entry, in which a run is just writing a checkpoint."""
    trees.folder(tmp_path / "data/day", train=2, val=2)
    trees.bare(tmp_path / "data/dark")
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    foreign = tmp_path / "foreign"
    for name in FOREIGN:
        (foreign / name).parent.mkdir(parents=True, exist_ok=True)
        (foreign / name).write_text(f"years of work: {name}")
    (foreign / "empty").mkdir()
    (foreign / "link").symlink_to("notes.txt")
    (foreign / "linked").symlink_to(".git")
    (foreign / "nowhere").symlink_to("gone")
    os.mkfifo(foreign / "pipe")
    with suppress(PermissionError):  # root alone makes devices
        os.mknod(foreign / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with live_run(foreign):
        yield tmp_path


@contextmanager
def live_run(folder):
    """A training in `runs/live` that is writing a checkpoint."""
    with Lock(folder / "runs/live"):
        part = folder / "runs/live/.daynight-checkpoint-0000002.part"
        part.mkdir()
        (part / "state.safetensors").write_text("half")
        yield


def state(root):
    """Every entry below a folder: its type, its time of change, and its content."""
    found = {}
    for place, folders, files in os.walk(root):
        for path in (os.path.join(place, name) for name in folders + files):
            facts = os.lstat(path)
            content = os.readlink(path) if stat.S_ISLNK(facts.st_mode) else None
            if stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            time = None if stat.S_ISDIR(facts.st_mode) else facts.st_mtime_ns
            found[os.path.relpath(path, root)] = facts.st_mode, facts.st_ino, time, content
    return found


def places(command):
    """The options of a command that name something to write."""
    options = dict((name, options) for name, options, _ in cli.COMMANDS)[command]
    panels = {name: facts["settings"]["rich_help_panel"] for name, facts in declared(options).items()}
    texts = [f.name for f in fields(options) if f.type in (str, str | None, "str", "str | None")]
    return [name for name in texts if panels[name] == "Output" and name != "size"] + ["cache"] * ("cache" in panels)


def test_every_option_that_names_a_place_is_swept():
    assert {name: places(name) for name, *_ in cli.COMMANDS} == {
        "translate-train": ["out", "cache"],
        "seg-train": ["out", "cache"],
        "translate": ["out"],
        "predict": ["out"],
        "eval": ["json", "save"],
        "export": ["out"],
        "adapt": ["out"],
        "demo": ["out"],
    }


SWEEP = [(command, option) for command in COMMANDS for option in places(command) if option != "cache"]


@pytest.mark.parametrize(("command", "option"), SWEEP)
def test_a_foreign_place_is_refused(command, option, home):
    """The folder itself, its folders, and every entry in it."""
    if command == "export":
        pytest.importorskip("onnxruntime")
    before, places = state(home / "foreign"), [home / "foreign", *(home / "foreign").rglob("*")]
    takes_files = (command, option) in (("eval", "json"), ("export", "out"))
    for place in places:
        if option == "json" and (place.is_fifo() or place.is_char_device()) or "live" in place.parts:
            continue
        # an empty folder is a place for results, and a name that is free is one for a file
        if place.name == "empty" and not takes_files or takes_files and not place.exists():
            continue
        result = daynight(f"{COMMANDS[command]} --{option} {place}", home)
        assert f"--{option} {place}" in result.line
        assert state(home / "foreign") == before
    assert {path.name for path in home.iterdir()} == {"data", "foreign", "model", "translator"}


@pytest.mark.parametrize(
    ("line", "made"),
    [
        (f"{COMMANDS['translate']} --out foreign/new", "new"),
        (f"{COMMANDS['predict']} --out foreign/empty", "empty"),
        (f"{EVAL} --save foreign/new --json foreign/new.json", "new"),
        (f"{COMMANDS['seg-train']} --steps 1 --out foreign/new", "new"),
        (f"{COMMANDS['seg-train']} --steps 1 --out foreign/new --cache foreign", "new"),
        (f"{COMMANDS['translate-train']} --steps 1 --out foreign/new --cache foreign/empty", "new"),
    ],
)
def test_what_is_made_in_a_foreign_folder_is_all_that_changes(line, made, home):
    before = state(home / "foreign")
    result = daynight(line, home)
    assert result.code == 0, result
    after = state(home / "foreign")
    new = {name for name in after.keys() - before.keys() if not name.startswith(made) and not name.endswith(".u8")}
    assert not new and {name: after[name] for name in before} == before


def test_only_what_bears_the_mark_is_cleared_and_only_where_this_command_writes(home):
    """Whatever a killed command left in a folder of its own goes; all else stays, a live run's too."""
    assert daynight(f"{EVAL} --save saved", home).code == 0
    shutil.copytree(
        home / "foreign", home / "saved/foreign", symlinks=True, ignore=shutil.ignore_patterns("pipe", "device")
    )
    left = home / "saved/model/.daynight-a1b2c3d4.part"
    left.mkdir()
    (left / "part").write_text("half")
    shutil.rmtree(home / "saved/foreign/runs/live")
    with live_run(home / "saved/foreign"):
        before = state(home / "saved/foreign")
        assert daynight(f"{EVAL} --save saved", home).code == 0
        assert state(home / "saved/foreign") == before
    assert [name for name in before if is_marked(name.rpartition("/")[2])] and not left.exists()


# `eval --json`


def test_results_are_written_to_a_pipe_and_a_device_and_through_a_link(home):
    read = []
    reader = threading.Thread(target=lambda: read.append((home / "foreign/pipe").read_text()))
    reader.start()
    assert daynight(f"{EVAL} --json foreign/pipe", home).code == 0
    reader.join(60)
    assert daynight(f"{EVAL} --json plain.json", home).code == 0
    assert read == [(home / "plain.json").read_text()] and (home / "foreign/pipe").is_fifo()
    (home / "latest.json").symlink_to("plain.json")
    assert daynight(f"{EVAL} --json latest.json", home).code == 0
    assert (home / "latest.json").is_symlink() and (home / "plain.json").read_text() == read[0]
    if (home / "foreign/device").exists():
        assert daynight(f"{EVAL} --json foreign/device", home).code == 0
        assert (home / "foreign/device").is_char_device()


def test_standard_output_is_not_replaced_by_the_results(home):
    with open(home / "said.txt", "w") as file:
        words = f"{EVAL} --json /proc/self/fd/1".split()
        program = os.path.join(os.path.dirname(sys.executable), "daynight")
        result = subprocess.run([program, *words], cwd=home, stdout=file, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and "--json /proc/self/fd/1" in result.stderr and result.stderr.count("\n") == 1


def test_results_of_another_command_are_kept(home):
    line = f"{EVAL} --json scores.json"
    assert daynight(line, home).code == 0
    before = (home / "scores.json").read_bytes()
    assert daynight(line, home).code == 0
    for words in ("--flip", "--mean all", "--split train", "--size 24"):
        assert "--json scores.json" in daynight(f"{line} {words}", home).line
    shutil.copytree(home / "model", home / "other")
    assert "--json scores.json" in daynight(line.replace("--model model", "--model other"), home).line
    assert (home / "scores.json").read_bytes() == before


def test_saved_results_of_other_weights_or_settings_are_kept(home):
    line = f"{EVAL} --save saved"
    assert daynight(line, home).code == 0
    before = state(home / "saved")
    assert "--save saved" in daynight(f"{line} --flip", home).line
    names, colors = zip(*trees.CLASSES, strict=True)
    save_model(
        DeepLabV2(list(names), list(colors), "test_resnet", 8, 8, size="native", pretrained=False), home / "model"
    )
    assert "weights" in daynight(line, home).line
    assert state(home / "saved") == before


# results come first


def fails(*_, **__):
    raise RuntimeError("cannot be shown")


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"options": 3, "data": 4}', '{"options": {}}', "[[[["])
def test_an_odd_options_file_beside_a_model_costs_nothing(content, home):
    (home / "model/options.json").write_text(content)
    shutil.copytree(home / "model", home / "other")
    result = daynight(f"{EVAL} --model other --json scores.json --save saved", home)
    assert (result.code, result.err) == (0, "") and len(json.loads((home / "scores.json").read_text())) == 2


@pytest.mark.parametrize("part", ["show", "write_page", "table", "add_results"])
def test_what_fails_after_scoring_costs_no_result(part, home, monkeypatch):
    from daynight.evaluation import scoring

    (home / "model/README.md").write_text("a card")
    monkeypatch.setattr(scoring, part, fails)
    result = daynight(f"{EVAL} --json scores.json --save saved", home)
    assert result.code == 1 and "cannot be shown" in result.err and result.err.count("\n") == 1
    assert json.loads((home / "scores.json").read_text())[0]["miou"] is not None


def test_a_full_disk_under_save_costs_no_result(home, monkeypatch):
    from daynight.data import images

    def full(image, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(images, "save_image", full)
    result = daynight(f"{EVAL} --json scores.json --save saved", home)
    assert result.code == 1 and "No space left on device" in result.err and result.err.count("\n") == 1
    assert "mIoU" in result.out and json.loads((home / "scores.json").read_text())[0]["miou"] is not None


def test_a_full_disk_under_json_leaves_the_table(home, monkeypatch):
    from daynight.evaluation import scoring

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(scoring, "write_json", full)
    result = daynight(f"{EVAL} --json scores.json", home)
    assert result.code == 1 and "--json scores.json" in result.err and "No space left on device" in result.err
    assert "mIoU" in result.out


def test_what_was_scored_before_a_failure_is_written(home):
    shutil.copytree(home / "data/day", home / "data/broken")
    next((home / "data/broken/labels/val").glob("*.png")).write_bytes(b"damaged")
    result = daynight(f"{EVAL} --dataset broken --json scores.json", home)
    assert "data/broken/labels/val" in result.line
    assert [entry["dataset"] for entry in json.loads((home / "scores.json").read_text())] == ["day"]


@pytest.mark.parametrize("name", ["[bold]a[/bold]", "[/x]", ":smile: [red]", "a\x1b[31mb", "[link=http://x]"])
def test_names_are_shown_as_they_are(name, home):
    """Square brackets and colons are no markup, and what would steer a terminal is spelt."""
    from daynight.evaluation.scoring import folder_name

    (home / "data/day/classes.json").write_text(
        json.dumps([{"name": f"{name}{i}", "color": [i, i, i]} for i in range(len(trees.CLASSES))])
    )
    run = home / folder_name(name)
    names = [f"{name}{i}" for i in range(len(trees.CLASSES))]
    colors = [(i, i, i) for i in range(len(trees.CLASSES))]
    draw_model(run, names, colors)
    result = daynight(f"eval --dataset day --model '{run.name}' --json scores.json --save saved", home)
    assert (result.code, result.err) == (0, ""), result
    shown = name.replace("\x1b", "\\x1b").rpartition("/")[2]
    assert f"{shown}0" in result.out and "\x1b" not in result.out
    assert json.loads((home / "scores.json").read_text())[0]["classes"] == names


def process(home, line, **settings):
    program = os.path.join(os.path.dirname(sys.executable), "daynight")
    return subprocess.Popen([program, *line.split()], cwd=home, stderr=subprocess.PIPE, **settings)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_an_output_that_is_not_utf_8(command, home):
    options = "--json out.json" if command == "eval" else ""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "ACCELERATE_USE_CPU": "true"}
    child = process(home, f"{COMMANDS[command]} {options}", stdout=subprocess.PIPE, env=environment)
    out, err = child.communicate(timeout=300)
    assert (child.returncode, err) == (0, b"") and out.isascii() and (b"?" in out) == (command != "eval")


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        (f"{EVAL} --json out.json", "reader"),
        (f"{COMMANDS['seg-train']} --steps 3 --log-every 1", "reader"),
        (f"{COMMANDS['seg-train']} --steps 3 --log-every 1", "full"),
        (f"{EVAL} --json out.json", "closed"),
    ],
)
def test_a_command_outlives_its_standard_output(line, gone, home):
    """Nobody reads it any more; the shell closed it; its disk is full."""
    if gone == "reader":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full" if gone == "full" else os.devnull, os.O_WRONLY)
    start = {"preexec_fn": lambda: os.close(1)} if gone == "closed" else {"stdout": write}
    child = process(home, line, **start)
    os.close(write)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0 and err.count(b"\n") == (gone == "full"), err
    made = home / ("out.json" if line.startswith("eval") else "out/checkpoint-0000003")
    assert made.exists()


def test_help_in_any_encoding(home):
    shown = shell("daynight", "seg-train", "--help", cwd=home, PYTHONIOENCODING="ascii")
    assert "Usage" in shown.stdout and shown.stderr == ""


# no two inputs share a result


def test_no_two_images_share_a_prediction(home):
    """Whatever their suffixes, and where a name looks like another's result."""
    names = ("a.jpg", "a.png", "a.jpg.png", "b.png", "b.JPG", "b.JPG.png.webp", "c.jpeg")
    (home / "data/many").mkdir()
    for name in names:
        Image.new("RGB", (40, 32), (len(name) * 9, 80, 90)).save(
            home / "data/many" / name, "JPEG" if name.lower().endswith("g") and "png" not in name else "PNG"
        )
    result = daynight("predict --in many --model model --out out", home)
    assert result.code == 0, result
    for kind in ("ids", "color", "overlay"):
        assert len(list((home / "out" / kind).iterdir())) == len(names)
    assert "7 images, 7 there" in daynight("predict --in many --model model --out out", home).out


def test_panels_of_images_of_one_stem(home):
    for number, suffix in enumerate((".bmp", ".png")):
        image = trees.SIZE[::-1]
        Image.new("RGB", image, (90 * number, 10, 200)).save(home / f"data/day/images/val/same{suffix}")
    shutil.copyfile(next((home / "data/day/labels/val").glob("*.png")), home / "data/day/labels/val/same.png")
    result = daynight(f"{EVAL} --save saved --json out.json", home)
    assert result.code == 0 and json.loads((home / "out.json").read_text())[0]["images"] == 4, result
    for kind in ("color", "panels"):
        assert len(list((home / "saved/model/day" / kind).rglob("*.png"))) == 4


@pytest.mark.parametrize("model", ["..", ".", "../model"])
def test_a_model_by_its_parent_is_saved_inside(model, home):
    inside = home / "model/deeper"
    inside.mkdir()
    before = state(home)
    place = home / "model" if model == "." else inside
    result = daynight(f"eval --data-root ../data --dataset {home}/data/day --model {model} --save {home}/saved", place)
    assert result.code == 0 if model != "../model" else result.code == 2
    after = state(home)
    assert all(name.startswith("saved") for name in after.keys() - before.keys())
    assert {name: after[name] for name in before} == before


def test_a_model_named_like_the_page_is_refused(home):
    shutil.copytree(home / "model", home / "Index.html")
    assert "--save" in daynight("eval --dataset day --model Index.html --save saved", home).line
    assert not (home / "saved").exists()


# labels come along as copies


def test_labels_are_copies_unless_links_are_asked_for(home):
    label = next((home / "data/day/labels/val").glob("*.png"))
    for words, linked in (("", False), ("--link", True)):
        out = home / f"out{words}"
        assert daynight(f"translate --in day --model translator --out {out} {words}", home).code == 0
        carried = out / label.relative_to(home / "data/day")
        assert os.path.samefile(label, carried) is linked and carried.read_bytes() == label.read_bytes()
    before = label.read_bytes()
    (home / "out" / label.relative_to(home / "data/day")).write_bytes(b"edited")
    assert label.read_bytes() == before


# names as long as the file system takes


@pytest.mark.parametrize("length", [244, 251])
def test_long_names(length, home):
    name = "n" * length
    image = next((home / "data/dark").glob("*.jpg"))
    (home / "data/long").mkdir()
    shutil.copyfile(image, home / f"data/long/{name}.jpg")
    for line in ("predict --model model", "translate --model translator"):
        out = f"out-{line.split()[0]}"
        result = daynight(f"{line} --in long --out {out}", home)
        assert result.code == 0, result
        assert len(list((home / out).rglob(f"{name}.*"))) == (3 if "predict" in out else 1)


# copies of a run


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("line", [COMMANDS["seg-train"], COMMANDS["translate-train"]])
def test_a_copy_of_a_run_made_of_links_leaves_the_run_as_it_is(line, link, home):
    assert daynight(f"{line} --steps 3 --save-every 1 --log-every 1", home).code == 0
    shutil.copytree(home / "out", home / "copy", copy_function=link)
    shutil.rmtree(home / "copy/checkpoint-0000003")
    before = state(home / "out")
    resumed = daynight(f"{line} --steps 3 --save-every 1 --log-every 1 --out copy", home)
    assert resumed.code == 0 and "going on with copy at step 2 of 3" in resumed.out, resumed
    changed = {name for name, value in state(home / "out").items() if value != before[name]}
    assert changed <= {name for name in before if name.endswith(".u8")}  # the cache's entries, which are checksummed


def test_the_options_of_another_run_are_not_written_through_a_link(home):
    assert daynight(f"{COMMANDS['seg-train']} --steps 1", home).code == 0
    (home / "new").mkdir()
    (home / "new/options.json").symlink_to("../out/options.json")
    before = state(home / "out")
    daynight(f"{COMMANDS['seg-train']} --steps 2 --out new", home)
    assert state(home / "out") == before


# what one command writes, and what it reads, keep apart


SAVED = ("", "index.html", "Evaluation.json", ".daynight.lock", "model", "model/day/color/images/val/000.png")


@pytest.mark.parametrize("inside", SAVED)
def test_results_are_not_put_where_save_writes(inside, home):
    place = f"saved/{inside}".rstrip("/")
    assert f"--json {place}" in daynight(f"{EVAL} --save saved --json {place}", home).line
    assert not (home / "saved").exists()
    assert daynight(f"{EVAL} --save saved --json saved/scores.json", home).code == 0


def test_a_place_at_which_no_file_can_be_made_is_refused_before_scoring(home, monkeypatch):
    (home / "self").symlink_to("self")
    monkeypatch.chdir(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for place in ("self", "socket", "n" * 256, "model"):
            assert f"--json {place}" in daynight(f"{EVAL} --json {place}", home).line
    (home / "latest.json").symlink_to("new/scores.json")
    assert daynight(f"{EVAL} --json latest.json", home).code == 0
    assert (home / "latest.json").is_symlink() and (home / "new/scores.json").is_file()


def test_results_with_other_class_maps_are_kept(home):
    (home / "map.json").write_text(json.dumps({"sky": "road", "road": "sky"}))
    assert daynight(f"{EVAL} --json scores.json --save saved", home).code == 0
    for option in ("--json scores.json", "--save saved"):
        assert option in daynight(f"{EVAL} {option} --class-map map.json", home).line


def test_names_that_are_not_utf_8(home):
    name = os.fsdecode(b"d\xff")
    shutil.copytree(home / "data/day", home / "data" / name)
    for line in (
        f"eval --dataset {name} --model model --json {name}.json --save {name}saved",
        f"{COMMANDS['seg-train'].replace('--day day', f'--day {name}')} --out {name}run",
    ):
        result = daynight(line, home)
        assert (result.code, result.err) == (0, ""), result
    assert json.loads((home / f"{name}.json").read_text())[0]["dataset"] == name


def test_a_run_whose_checkpoints_were_deleted_keeps_its_models(home):
    assert daynight(f"{COMMANDS['seg-train']} --out run", home).code == 0
    shutil.rmtree(home / "run/checkpoint-0000002")
    before = state(home / "run")
    refused = daynight(f"{COMMANDS['seg-train']} --out run --seed 1", home).line
    assert "--out run: holds run/" in refused and "model.safetensors, and no checkpoint" in refused
    assert state(home / "run") == before


def test_a_run_whose_checkpoints_and_models_were_moved_away_keeps_its_record(home):
    line = f"{COMMANDS['seg-train']} --out run --steps 4 --save-every 2 --log-every 1"
    assert daynight(line, home).code == 0
    for name in ("checkpoint-0000002", "checkpoint-0000004", "teacher", "best"):
        shutil.rmtree(home / "run" / name)
    before = state(home / "run")
    assert "0000004.png, and no checkpoint to go on from" in daynight(f"{line} --seed 1", home).line
    assert state(home / "run") == before


def test_a_picture_in_the_place_of_a_preview_is_kept(home):
    line = f"{COMMANDS['seg-train']} --out run --steps 4 --save-every 2"
    assert daynight(f"{line} --card-preview", home).code == 0
    picture = home / "run/teacher/preview.png"
    Image.new("RGB", (5, 5)).save(picture)
    content = picture.read_bytes()
    shutil.rmtree(home / "run/checkpoint-0000004")
    for words in ("", "--card-preview"):
        assert daynight(f"{line} {words}", home).code == 0
        assert picture.read_bytes() == content


@pytest.mark.parametrize("command", ["predict", "translate"])
def test_images_of_another_tree_get_another_folder(command, home):
    """Its images may have the same names. The tree may lie elsewhere, and grow."""
    shutil.copytree(home / "data/dark", home / "disk/dark")
    shutil.copytree(home / "data/dark", home / "other/dark")
    Image.new("RGB", (64, 48)).save(next((home / "other/dark").rglob("*.jpg")))
    line = f"{COMMANDS[command].replace('--in day', '')}"
    assert daynight(f"{line} --in dark", home).code == 0
    assert "--out out: was made of other files" in daynight(f"{line} --in other/dark", home).line
    shutil.copyfile(next((home / "disk/dark").glob("*.jpg")), home / "disk/dark/more.jpg")
    assert "4 images, 3 there" in daynight(f"{line} --in disk/dark", home).out
    record = home / "out" / ("prediction.json" if command == "predict" else "translation.json")
    made = json.loads(record.read_text())
    del made["files"]  # as an earlier version wrote it
    record.write_text(json.dumps(made))
    assert "4 images, 4 there" in daynight(f"{line} --in disk/dark", home).out


def test_predictions_of_several_scales_are_not_gone_on_with_at_one(home):
    assert daynight(f"{COMMANDS['predict']} --scales 0.5,1", home).code == 0
    assert "--out out: was made with" in daynight(COMMANDS["predict"], home).line


def test_predictions_are_scored_by_the_names_of_their_classes(home):
    torch.manual_seed(1)
    names, colors = zip(*trees.CLASSES, strict=True)
    draw_model(home / "turned", names[::-1], colors[::-1])
    scores = []
    for words in ("--model turned", "--predictions out"):
        assert daynight("predict --in day --model turned --out out", home).code == 0
        result = daynight(f"eval --dataset day {words} --json {len(scores)}.json", home)
        assert result.code == 0, result
        scores.append(json.loads((home / f"{len(scores)}.json").read_text())[0]["iou"])
    assert scores[0] == scores[1] and len(set(scores[0].values())) > 1
    for content in (
        {"ids": 5},
        {"ids": []},
        {"ids": "color"},
        {"classes": [1]},
        {"classes": 3},
        {"classes": ["a", "a"]},
    ):
        (home / "out/prediction.json").write_text(json.dumps(content))
        assert (
            "out/prediction.json: not as daynight predict"
            in daynight("eval --dataset day --predictions out", home).line
        )


def test_an_audit_of_an_image_with_a_long_name(home):
    (home / "data/long").mkdir()
    shutil.copyfile(next((home / "data/dark").glob("*.jpg")), home / f"data/long/{'n' * 251}.jpg")
    assert daynight("translate --in long --out out --model translator --audit model", home).code == 0


def test_a_size_in_a_config_that_asks_for_all_memory(home):
    path = home / "model/config.json"
    for size in ("8193", "16x99999"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
        assert f"size is {size}" in daynight(EVAL, home).line


def test_odd_lines_among_the_metrics_and_odd_options_end_no_run_badly(home):
    line = f"{COMMANDS['seg-train']} --steps 4 --save-every 2 --log-every 1 --out run"
    assert daynight(line, home).code == 0
    shutil.rmtree(home / "run/checkpoint-0000004")
    metrics = home / "run/metrics.jsonl"
    first, *others = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(f'{first}{{"step": 1, "ce_day": 1{"0" * 400}, "a": NaN}}\n{"".join(others)}')
    assert daynight(line, home).code == 0
    (home / "run/options.json").write_text("[" * 10**5)
    assert "--out run: options.json" in daynight(line, home).line


def test_a_folder_that_cannot_be_looked_into_is_refused(home, monkeypatch):
    from daynight.training import run

    def closed(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(run, "is_free", closed)
    assert "--out new: Permission denied" in daynight(f"{COMMANDS['seg-train']} --out new", home).line


def test_nothing_is_written_among_the_images_that_are_read(home):
    """The next command would take it for photographs."""
    for command, option, place in (
        ("eval", "--save", "data/day/images/val/scores"),
        ("seg-train", "--out", "data/day/images/run"),
        ("seg-train", "--train-on both --ssl --translator darken --out", "data/dark/run"),
        ("translate-train", "--out", "data/dark/more/run"),
        ("seg-train", "--cache", "data/day/images/cache"),
        ("translate-train", "--cache", "data/dark/cache"),
    ):
        line = daynight(f"{COMMANDS[command]} {option} {place}", home).line
        assert f"{option.split()[-1]} {place}: lies among the images of" in line
        assert not (home / place).exists()
    assert daynight(f"{EVAL} --save data/day/scores", home).code == 0


@pytest.mark.parametrize("command", ["predict", "translate"])
def test_results_are_not_read_through_a_link(command, home):
    (home / "out").mkdir()
    (home / "data/dark/more").symlink_to(home / "out")
    line = COMMANDS[command].replace("--in day", "--in dark")
    assert daynight(line, home).code == 0
    # what predict wrote is seen to be label maps before it is seen to be its own
    why = "looks like the label map" if command == "predict" else "--out out: is --in, lies inside it or holds it"
    assert why in daynight(line, home).line


def test_a_signal_amid_clearing_leaves_nothing_behind(tmp_path, monkeypatch):
    first, rmtree = [True], shutil.rmtree

    def interrupted(folder, *args, **settings):
        if first and first.pop():
            raise SystemExit(143)
        rmtree(folder, *args, **settings)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(SystemExit):
        write_text(tmp_path / "a.txt", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("command", ["predict", "translate"])
def test_any_image_that_was_changed_is_told_from_the_one_of_the_result(command, home):
    for i in range(20):
        trees.image(home / f"data/many/{i:02}.jpg")
    line = f"{COMMANDS[command]} --in many"
    assert daynight(line, home).code == 0
    Image.new("RGB", (96, 48)).save(home / "data/many/01.jpg")
    assert "(as data/many/01.jpg, new or changed)" in daynight(line, home).line
    shutil.rmtree(home / "out/ids", ignore_errors=True)
    (home / "out/01.jpg").unlink(missing_ok=True)
    assert daynight(line, home).code == 0
    if command == "predict":  # 01.png is there, and was of 01.jpg
        (home / "data/many/01.jpg").unlink()
        trees.image(home / "data/many/01.bmp")
        assert "(as data/many/01.bmp, new or changed)" in daynight(line, home).line


def test_a_label_that_was_changed_is_told_from_its_copy(home):
    label = next((home / "data/day/labels").rglob("*.png"))
    for link in ("", "--link"):
        line = f"{COMMANDS['translate']} {link} --out out{link}"
        assert daynight(line, home).code == 0
        with open(label, "r+b") as file:  # the same file, also by its other name
            Image.new("L", (96, 48), len(link)).save(file, "PNG")
        again = daynight(line, home)
        assert again.code == 0 if link else "--out out: was made of other files" in again.line


def test_an_audit_follows_the_translations(home):
    line = f"{COMMANDS['translate']} --audit model"
    assert daynight(line, home).code == 0
    translation = min((home / "out/images").rglob("*.*"))
    Image.new("RGB", (96, 48), (9, 200, 3)).save(home / "data/day" / translation.relative_to(home / "out"))
    translation.unlink()
    assert "audit by model: 4 images, 3 there" in daynight(line, home).out
    (home / "data/day" / translation.relative_to(home / "out")).unlink()
    assert daynight(line, home).code == 0
    assert len(json.loads((home / "out/audit.json").read_text())["images"]) == 3


def test_a_run_goes_on_where_more_images_were_translated(home):
    translate, train = f"{COMMANDS['translate']} --out made", f"{SEG_TRAIN} --translated made --save-every 1"
    assert daynight(translate, home).code == 0 and daynight(train, home).code == 0
    trees.image(home / "data/day/images/val/more.jpg")
    assert "5 images, 4 there" in daynight(translate, home).out
    assert daynight(train, home).code == 0


@pytest.mark.parametrize("command", ["translate", "seg-train"])
def test_a_full_disk_is_said_with_the_file(command, home, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daynight.system.files.sync", full)
    trained = daynight(COMMANDS[command], home)
    assert trained.code in (1, 2) and "out" in trained.err and "[Errno" not in trained.err, trained
