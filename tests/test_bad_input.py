"""What bad input gets: one line that names the file or option, exit status 2, and nothing left behind."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import trees
from PIL import Image
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)

TRANSLATE_TRAIN = (
    "translate-train --day day --night dark --steps 2 --crop 32 --size native --width 4 --blocks 1 "
    "--feature-network test_resnet --feature-layer layer1 --feature-weights random --out out"
)
SEG_TRAIN = (
    "seg-train --day day --night dark --steps 2 --crop 32 --size native --batch-size 2 --backbone test_resnet "
    "--backbone-weights random --head-width 8 --ssl-start 0 --out out"
)
TRANSLATE = "translate --in day --out out"
PREDICT = "predict --in day --out out"
EVAL = "eval --json out.json --save out"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """runs/ with a translator, a teacher of the classes of `trees.folder` and one of those of Cityscapes; untrained."""
    from daynight.data.labels import CITYSCAPES
    from daynight.models.deeplab import DeepLabV2
    from daynight.models.generator import Generator
    from daynight.weights import save_model

    runs = tmp_path_factory.mktemp("models") / "runs"
    for part in ("day2night", "night2day"):
        save_model(Generator(1, 4, "bilinear", "native"), runs / "day2night" / part)
    for name, (names, colors) in {
        "seg": zip(*trees.CLASSES, strict=True),
        "city": (CITYSCAPES.names, CITYSCAPES.colors),
    }.items():
        save_model(DeepLabV2(names, colors, "test_resnet", 8, 8, frozen_norm=False, size="native"), runs / name)
    return runs


@pytest.fixture
def home(models, tmp_path):
    """A working directory: data/ with `day` (labelled), `dark` (a bare tree) and what is wrong, and models in runs/."""
    data = tmp_path / "data"
    trees.folder(data / "day", train=2, val=2)
    trees.bare(data / "dark")
    trees.cityscapes(data / "cs", train=1, val=1, train_extra=0)
    (data / "void/deep").mkdir(parents=True)
    (data / "file.txt").write_text("text")
    shutil.copytree(models, tmp_path / "runs")
    for name in ("no-weights", "cut-weights", "no-json", "other"):
        shutil.copytree(models / "seg", tmp_path / "runs" / name)
    (tmp_path / "runs/no-weights/model.safetensors").unlink()
    cut(tmp_path / "runs/cut-weights/model.safetensors")
    (tmp_path / "runs/no-json/config.json").write_text("{")
    config = json.loads((models / "seg/config.json").read_text())
    (tmp_path / "runs/other/config.json").write_text(json.dumps(config | {"hidden": 4}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").write_text("years of work")
    half = shutil.copytree(data / "day/images", tmp_path / "half/images")
    (half / "train/000.jpg").unlink()
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def state(root):
    """What stands below a folder: every file and folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def rows(command, *table):
    """(name, line, words) of what is added to a command's line."""
    found = []
    for more, *words in table:
        # what may be repeated would be added to, not replaced
        data = " --dataset day" * (command == EVAL and "--dataset" not in more)
        found.append(pytest.param(f"{command}{data} {more}", words, id=f"{command.split()[0]} {more}"))
    return found


IN = [
    ("--in nowhere", "--in", "data/nowhere", "--data-root"),
    ("--in data/file.txt", "--in", "file.txt", "folder"),
    ("--in void", "void", "no images", ".png"),
    ("--out data/day", "--out", "--in"),
    ("--out data/day/", "--out", "--in"),
    ("--out data/../data/day", "--out", "--in"),
    ("--out data/day/out", "--out", "inside"),
    ("--out data", "--out"),
    ("--out data/file.txt", "--out", "data/file.txt", "folder"),
    ("--out data/file.txt/out", "--out", "data/file.txt"),
    ("--out foreign", "--out", "foreign", "not empty"),
    ("--batch-size 0", "--batch-size", "1"),
    ("--size big", "--size", "512", "native"),
    ("--size 0", "--size"),
    ("--size 12x", "--size"),
    ("--size -5", "--size"),
    ("--num-workers -1", "--num-workers"),
    ("--seed x", "--seed"),
    ("--precision fp8", "--precision", "bf16"),
]
MODEL = [
    ("--model nowhere", "--model nowhere"),
    ("--model data", "--model data", "config.json"),
    ("--model data/file.txt", "--model data/file.txt"),
    ("--model runs/no-weights", "--model runs/no-weights", "model.safetensors"),
    ("--model runs/cut-weights", "--model", "runs/cut-weights/model.safetensors"),
    ("--model runs/no-json", "--model runs/no-json", "config.json"),
    ("--model runs/other", "--model runs/other", "differs"),
]
TRAINING = [
    ("--day nowhere", "--day", "data/nowhere", "--data-root"),
    ("--day void", "--day", "void", "no images"),
    ("--batch-size 0", "--batch-size"),
    ("--steps 0", "--steps"),
    ("--size big", "--size", "512"),
    ("--crop big", "--crop", "256"),
    ("--crop 32x", "--crop"),
    ("--crop 0", "--crop"),
    ("--out foreign", "--out", "foreign", "not empty"),
    ("--out data/file.txt", "--out", "data/file.txt"),
    ("--out data/file.txt/out", "--out", "data/file.txt"),
    ("--save-every 0", "--save-every"),
    ("--log-every 0", "--log-every"),
    ("--lr -1", "--lr"),
    ("--ema-decay 2", "--ema-decay"),
    ("--init nowhere", "--init nowhere"),
]
TABLE = [
    *rows(TRANSLATE, *IN, *MODEL[:4], ("--model runs/seg", "--model runs/seg", "DeepLabV2", "Generator")),
    *rows(PREDICT, *IN, *MODEL, ("--model runs/day2night", "--model runs/day2night")),
    *rows(PREDICT, ("--ids labelIds", "--ids labelIds"), ("--ids colors", "--ids", "trainIds")),
    *rows(
        EVAL,
        *MODEL,
        ("--model runs/seg --model nowhere", "--model nowhere"),
        ("--dataset nowhere", "--dataset", "data/nowhere"),
        ("--dataset void", "--dataset", "void"),
        ("--dataset dark", "--dataset", "data/dark", "labels"),
        ("--dataset cs", "--dataset cs", "classes", "--model runs/seg"),
        ("--model runs/city", "--dataset day", "classes", "--model runs/city"),
        ("--split test", "day", "'test'", "train, val"),
        ("--labels labelIds", "day", "--labels labelIds"),
        ("--labels colors", "--labels"),
        ("--mean median", "--mean", "present"),
        ("--json data", "--json data", "folder"),
        ("--json data/file.txt/r.json", "--json data/file.txt/r.json"),
        ("--save data/file.txt", "--save data/file.txt", "folder"),
        ("--save data/file.txt/s", "--save data/file.txt/s"),
        ("--size big", "--size"),
        ("--batch-size 0", "--batch-size"),
    ),
    *rows(
        TRANSLATE_TRAIN,
        *TRAINING,
        ("--night nowhere", "--night", "data/nowhere"),
        ("--night void", "--night", "void"),
        ("--init runs/seg", "--init runs/seg"),
        ("--crop 16", "--crop"),
        ("--gan wgan", "--gan", "lsgan"),
        ("--upsample nearest", "--upsample", "bilinear"),
        ("--width 0", "--width"),
        ("--blocks 0", "--blocks"),
        ("--lambda-cyc -1", "--lambda-cyc"),
        ("--history -1", "--history"),
        ("--feature-layer nowhere", "--feature-layer", "nowhere", "test_resnet"),
        ("--feature-network vgg91", "vgg91"),
        ("--feature-weights nowhere", "--feature-weights", "nowhere"),
        ("--feature-weights data/file.txt", "--feature-weights", "data/file.txt"),
        ("--feature-weights runs/seg/model.safetensors", "--feature-weights", "runs/seg/model.safetensors"),
    ),
    *rows(
        SEG_TRAIN,
        *TRAINING,
        ("--day dark", "--day", "data/dark", "labels"),
        ("--init runs/day2night", "--init runs/day2night"),
        ("--init runs/city", "--init runs/city", "classes"),
        ("--night nowhere --ssl --train-on day", "--night", "data/nowhere"),
        ("--night void --ssl --train-on day", "--night", "void"),
        ("--train-on night", "--train-on", "translated"),
        ("--translated half --translator darken", "--translated", "--translator"),
        ("--translated half", "--translated half", "1 of 2", "000.jpg"),
        ("--translated foreign", "--translated foreign", "2 of 2"),
        ("--translated nowhere", "--translated", "nowhere"),
        ("--translator nowhere", "--translator nowhere"),
        ("--translator runs/seg", "--translator runs/seg"),
        ("--rho high", "--rho", "0.5,0.9"),
        ("--rho 0.5", "--rho", "0.5,0.9"),
        ("--rho 0.1,0.2,0.3", "--rho"),
        ("--rho -0.1,0.9", "--rho"),
        ("--rho nan,0.9", "--rho"),
        ("--lambda-ssl 1,inf", "--lambda-ssl"),
        ("--ssl-start 2", "--ssl-start"),
        ("--jitter 2", "--jitter"),
        ("--weak-noise -1", "--weak-noise"),
        ("--head-width 0", "--head-width"),
        ("--ssl --unlabelled-day nowhere", "--unlabelled-day", "nowhere"),
        ("--backbone resnet05", "resnet05"),
        ("--backbone vit_tiny_patch16_224", "--backbone vit_tiny_patch16_224"),
        ("--backbone-weights nowhere", "--backbone-weights", "nowhere"),
        ("--backbone-weights data/file.txt", "--backbone-weights", "data/file.txt"),
        ("--backbone-weights runs/seg/model.safetensors", "--backbone-weights", "runs/seg/model.safetensors"),
    ),
    *rows("demo --out foreign", ("--seed x", "--seed"), ("--size 5", "--size")),
]


@pytest.mark.parametrize(("line", "words"), TABLE)
def test_refused(line, words, home):
    """Of an option that is given twice the last counts, but for those that may be repeated."""
    before = state(home)
    result = daynight(line, home)
    assert all(word in result.line for word in words), result.line
    assert state(home) == before


# files that cannot be read or do not belong together


def text(path):
    path.write_text("no image")


def empty(path):
    path.write_bytes(b"")


def small(path):
    trees.label(path, [0, 1], (10, 12))


def beyond(path):
    trees.label(path, [0, 3])


def colors(path):
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, (70, 130, 180)).save(path)


IMAGE = {text: "not a readable image", empty: "is empty", cut: "not a readable image"}
LABEL = {
    text: "cannot be read",
    empty: "cannot be read",
    cut: "cannot be read",
    small: "10x12",
    beyond: "value 3",
    colors: "colour",
}
FILES = {"image": ("images/{}/000.jpg", IMAGE), "label": ("labels/{}/000.png", LABEL)}
TRAIN, VAL = {"image": "train", "label": "train"}, {"image": "val", "label": "val"}
READERS = {
    TRANSLATE: {"image": "train"},
    PREDICT: {"image": "val"},
    "eval --dataset day --json out.json": VAL,
    f"{SEG_TRAIN} --train-on day": TRAIN,
    f"{TRANSLATE_TRAIN} --save-every 1": {"image": "train"},
}
BROKEN = [
    pytest.param(line, kind, split, break_, id=f"{line.split()[0]} {kind} {break_.__name__}")
    for line, kinds in READERS.items()
    for kind, split in kinds.items()
    for break_ in FILES[kind][1]
]


@pytest.fixture
def broken(home):
    """Breaks one file of each split's two, and leaves only it to a training, which else might not draw it."""

    def broken(kind, split, break_):
        path = home / "data/day" / FILES[kind][0].format(split)
        break_(path)
        if split == "train":
            for folder in ("images", "labels"):
                shutil.rmtree(home / "data/day" / folder / "train/street")
        return path

    return broken


@pytest.mark.parametrize(("line", "kind", "split", "break_"), BROKEN)
def test_unreadable(line, kind, split, break_, home, broken):
    path = broken(kind, split, break_)
    before = state(home)
    refused = daynight(line, home).line
    assert path.relative_to(home).as_posix() in refused and FILES[kind][1][break_] in refused, refused
    check_whole(home, before)


def check_whole(home, before):
    """Nothing changed but that a folder was begun, with no half of a file in it."""
    after = state(home)
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(home) for path in after.keys() - before.keys()}
    assert all(path.parts[0] == "out" and not path.name.endswith(".part") for path in new), new
    for path in new:
        if path.suffix in (".png", ".jpg"):
            Image.open(home / path).load()
    assert not (home / "out.json").exists()


@pytest.mark.parametrize("line", [TRANSLATE, f"{SEG_TRAIN} --train-on day"], ids=["translate", "seg-train"])
def test_unreadable_in_a_worker(line, home, broken):
    """A loader's worker hands on no exception but its traceback as text: still one line."""
    path = broken("image", "train", cut)
    before = state(home)
    refused = daynight(f"{line} --num-workers 1", home).line
    assert refused.startswith(f"daynight: {path.relative_to(home)}: not a readable image"), refused
    check_whole(home, before)


@pytest.mark.parametrize("line", [TRANSLATE, PREDICT], ids=["translate", "predict"])
def test_it_goes_on_once_the_file_is_mended(line, home):
    """What was made before a file turned out unreadable is kept (one is read ahead, and may be lost)."""
    last = home / "data/day/images/val/street/001.jpg"
    content = last.read_bytes()
    cut(last)
    before = state(home)
    assert "val/street/001.jpg" in daynight(line, home).line
    check_whole(home, before)
    last.write_bytes(content)
    result = daynight(line, home)
    assert result.code == 0 and re.search("4 images, [23] there", result.out), result


def test_unreadable_in_the_midst_of_a_training(home):
    """Some steps are done and saved when the file is drawn."""
    bad = home / "data/day/images/train/street/001.jpg"
    cut(bad)
    before = state(home)
    refused = daynight(f"{SEG_TRAIN} --steps 100 --batch-size 1 --train-on day --save-every 1 --seed 6", home).line
    assert bad.relative_to(home).as_posix() in refused
    check_whole(home, before)
    assert list((home / "out").glob("checkpoint-*")) and (home / "out/teacher/model.safetensors").is_file()


@pytest.mark.parametrize("words", ["", "--crop 40"], ids=["mended", "other options"])
def test_a_run_that_never_saved_a_step_can_be_begun_again(words, home, broken):
    path = broken("image", "train", cut)
    assert daynight(f"{SEG_TRAIN} --train-on day", home).code == 2
    trees.image(path)
    result = daynight(f"{SEG_TRAIN} --train-on day {words}", home)
    assert result.code == 0, result


def test_broken_classes(home):
    (home / "data/day/classes.json").write_text('[{"name": "sky"}]')
    for line in (SEG_TRAIN, "eval --dataset day"):
        before = state(home)
        assert "classes.json" in daynight(line, home).line
        assert state(home) == before


def test_a_link_to_nowhere(home):
    os.symlink("/nowhere/else.jpg", home / "data/day/images/val/linked.jpg")
    before = {path for path in home.rglob("*")}
    assert "linked.jpg" in daynight(PREDICT, home).line
    assert {path for path in home.rglob("*")} == before


def test_unreachable_weights(home):
    """A real process, with no network and an empty cache: what a compute node often is."""
    before = state(home)
    words = SEG_TRAIN.replace("test_resnet", "vgg16").replace("random", "pretrained").split()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    result = shell("daynight", *words, cwd=home, check=False, **offline)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result
    assert all(word in result.stderr for word in ("--backbone-weights", "vgg16", "random")), result.stderr
    shutil.rmtree(home / "cache", ignore_errors=True)
    assert state(home) == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{TRANSLATE_TRAIN} --feature-weights pretrained", ["--feature-weights", "test_resnet", "random"]),
        (f"{PREDICT} --model someone/seg", ["--model someone/seg", "Hub"]),
        ("eval --dataset day --model someone/seg", ["--model someone/seg", "Hub"]),
    ],
    ids=["features", "predict", "eval"],
)
def test_unreachable_hub(line, words, home, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "cache"))
    before = state(home)
    refused = daynight(line, home).line
    assert all(word in refused for word in words), refused
    assert {path: content for path, content in state(home).items() if "cache" not in path.parts} == before


def test_a_pickle_is_never_opened(home):
    """Models are read from safetensors only."""
    (home / "runs/no-weights/pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    assert "model.safetensors" in daynight("eval --dataset day --model runs/no-weights", home).line
    assert not Path(home / "ran").exists()
