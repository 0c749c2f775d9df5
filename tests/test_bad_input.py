"""What bad input gets: one line that names the file or option, exit status 2, and nothing left behind; and what is
unusual, but not bad, which works."""

import json
import os
import resource
import shutil
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
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
    from daynight.models.hub import save_model

    runs = tmp_path_factory.mktemp("models") / "runs"
    for part in ("day2night", "night2day"):
        save_model(Generator(1, 4, "bilinear", "native"), runs / "day2night" / part)
    for name, (names, colors) in {
        "seg": zip(*trees.CLASSES, strict=True),
        "city": (CITYSCAPES.names, CITYSCAPES.colors),
        "boats": (["boat"], [(1, 2, 3)]),
    }.items():
        save_model(DeepLabV2(names, colors, "test_resnet", 8, 8, frozen_norm=False, size="native"), runs / name)
    for name, spoil in BAD_MODELS.items():
        spoil(shutil.copytree(runs / "seg", runs / name))
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
    (data / "circle").symlink_to("circle")
    (data / "linked").symlink_to("day")
    trees.label(data / "no-images/labels/train/000.png", [0, 1])
    shutil.copytree(data / "dark", data / "latin-1")
    os.rename(data / "latin-1/0.jpg", os.fsencode(data / "latin-1") + b"/stra\xdfe.jpg")
    shutil.copytree(models, tmp_path / "runs", copy_function=os.link)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").write_text("years of work")
    half = shutil.copytree(data / "day/images", tmp_path / "half/images")
    (half / "train/000.jpg").unlink()
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def lie(path):
    """A header whose tensors lie beyond the end."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    next(entry for entry in header.values() if "data_offsets" in entry)["data_offsets"] = [0, 1 << 60]
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def change(**values):
    def change(model):
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def pickled(path):
    """What runs a command where it is unpickled."""
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")


BAD_MODELS = {
    "no-weights": lambda model: (model / "model.safetensors").unlink(),
    "cut-weights": lambda model: cut(model / "model.safetensors"),
    "lying": lambda model: lie(model / "model.safetensors"),
    "pickle": lambda model: pickled(model / "model.safetensors"),
    "no-json": lambda model: (model / "config.json").write_text("{"),
    "narrow": change(hidden=4),
    "vast": change(hidden=10**12),
    "resnet": change(backbone="test_efficientnet"),
    "four": change(names=["sky", "road", "car", "boat"], colors=[[0, 0, 0]] * 4),
    "colorless": change(colors=[[0, 0, 0]]),
    "sized": change(size="big"),
    "unpickling": change(checkpoint_path="../pickle/model.safetensors"),
}


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
    ("--in data/circle", "--in", "data/circle"),
    ("--in no-images", "no-images", "labels/", "images/"),
    ("--in latin-1", "latin-1", "UTF-8"),
    ("--out data/circle", "--out", "data/circle"),
    ("--size 1000000000", "--size", "99999"),
    ("--batch-size 1000000000", "--batch-size", "1024"),
    ("--seed 1000000000000", "--seed"),
    ("--num-workers 1000000", "--num-workers", "256"),
]
MODEL = [
    ("--model nowhere", "--model nowhere"),
    ("--model data", "--model data", "config.json"),
    ("--model data/file.txt", "--model data/file.txt"),
    ("--model runs/no-weights", "--model runs/no-weights", "model.safetensors"),
    ("--model runs/cut-weights", "--model", "runs/cut-weights/model.safetensors"),
    ("--model runs/no-json", "--model runs/no-json", "config.json"),
    ("--model runs/lying", "--model", "runs/lying/model.safetensors"),
    ("--model runs/pickle", "--model", "runs/pickle/model.safetensors"),
    ("--model runs/narrow", "--model runs/narrow", "differs"),
    ("--model runs/vast", "--model runs/vast", "config.json", "hidden"),
    ("--model runs/resnet", "--model runs/resnet", "differs"),
    ("--model runs/four", "--model runs/four", "differs"),
    ("--model runs/colorless", "--model runs/colorless", "config.json"),
    ("--model runs/sized", "--model runs/sized", "config.json", "'big'"),
    ("--model runs/unpickling", "--model runs/unpickling", "config.json", "'checkpoint_path'"),
    ("--model data/circle", "--model data/circle"),
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
    ("--out data/circle", "--out", "data/circle"),
    ("--day data/circle", "--day", "data/circle"),
    ("--day no-images", "no-images", "labels/", "images/"),
    ("--steps -1", "--steps"),
    ("--steps 1000000000000", "--steps", "10000000"),
    ("--batch-size 1000000000", "--batch-size", "65536"),
    ("--crop 1000000", "--crop", "99999"),
    ("--lr nan", "--lr"),
    ("--lr inf", "--lr"),
    ("--seed -1", "--seed"),
    ("--num-workers 1000000", "--num-workers", "256"),
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
        ("--model runs/boats", "--dataset day", "classes", "--model runs/boats"),
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
        ("--scales 1000000", "--scales", "16"),
        ("--class-map data/file.txt", "--class-map", "data/file.txt", "JSON"),
        ("--predictions data/file.txt", "--predictions data/file.txt"),
    ),
    *rows(
        TRANSLATE_TRAIN,
        *TRAINING,
        ("--night nowhere", "--night", "data/nowhere"),
        ("--night void", "--night", "void"),
        ("--night day", "--night day", "2 of its 2 images", "day images too"),
        ("--night data/linked/images/train", "--night data/linked/images/train", "day images too"),
        ("--night latin-1", "latin-1", "UTF-8"),
        ("--init runs/seg", "--init runs/seg"),
        ("--crop 16", "--crop"),
        ("--gan wgan", "--gan", "lsgan"),
        ("--upsample nearest", "--upsample", "bilinear"),
        ("--width 0", "--width"),
        ("--width 1000000", "--width", "1024"),
        ("--blocks 0", "--blocks"),
        ("--blocks 1000000000", "--blocks", "1000"),
        ("--lambda-feature inf", "--lambda-feature"),
        ("--lambda-cyc -1", "--lambda-cyc"),
        ("--history -1", "--history"),
        ("--feature-layer nowhere", "--feature-layer", "nowhere", "test_resnet"),
        ("--feature-network vgg91", "vgg91"),
        ("--feature-network resnet50.foo", "--feature-network", "resnet50", "foo"),
        ("--feature-network vgg16.foo --feature-weights pretrained", "--feature-network", "vgg16", "foo"),
        ("--feature-network vgg16.foo --feature-weights runs/seg/model.safetensors", "--feature-network", "foo"),
        ("--feature-weights nowhere", "--feature-weights", "nowhere"),
        ("--feature-weights data/file.txt", "--feature-weights", "data/file.txt"),
        ("--feature-weights runs/seg/model.safetensors", "--feature-weights", "runs/seg/model.safetensors"),
        ("--feature-weights runs/pickle/model.safetensors", "--feature-weights", "runs/pickle/model.safetensors"),
    ),
    *rows(
        SEG_TRAIN,
        *TRAINING,
        ("--day dark", "--day", "data/dark", "labels"),
        ("--init runs/day2night", "--init runs/day2night"),
        ("--init runs/city", "--init runs/city", "classes"),
        ("--init runs/seg --head fuse --train-on day", "--head fuse", "aspp", "leave it out"),
        ("--night nowhere --ssl --train-on day", "--night", "data/nowhere"),
        ("--night void --ssl --train-on day", "--night", "void"),
        ("--train-on night", "--train-on", "translated"),
        ("--translated half --translator runs/day2night", "--translated", "--translator"),
        ("--ssl --night day --translator darken", "--night day", "day images too"),
        ("--ssl --unlabelled-day dark --translator darken", "--night dark", "day images too"),
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
        ("--rho 5,6", "--rho", "from 0 to 1"),
        ("--strong-noise inf", "--strong-noise"),
        ("--output-stride 1000", "--output-stride", "32"),
        ("--lambda-ssl 1,inf", "--lambda-ssl"),
        ("--ssl-start 2", "--ssl-start"),
        ("--jitter 2", "--jitter"),
        ("--weak-noise -1", "--weak-noise"),
        ("--head-width 0", "--head-width"),
        ("--head-width 1000000000", "--head-width", "8192"),
        ("--ssl --unlabelled-day nowhere", "--unlabelled-day", "nowhere"),
        ("--backbone resnet05", "resnet05"),
        ("--backbone resnet50.foo", "--backbone resnet50.foo", "foo"),
        ("--backbone vgg16.foo --backbone-weights pretrained", "--backbone vgg16.foo", "foo"),
        ("--backbone resnet50.foo --backbone-weights runs/seg/model.safetensors", "--backbone resnet50.foo", "foo"),
        ("--batch-size 1 --output-stride 32", "--batch-size 1", "--crop 32", "--backbone test_resnet"),
        ("--batch-size 1 --output-stride 32 --dry-run", "--batch-size 1", "--crop 32", "--backbone test_resnet"),
        ("--backbone mixer_s16_224", "--backbone mixer_s16_224: mixer_s16_224 cannot be a backbone"),
        ("--backbone-weights nowhere", "--backbone-weights", "nowhere"),
        ("--backbone-weights data/file.txt", "--backbone-weights", "data/file.txt"),
        ("--backbone-weights runs/seg/model.safetensors", "--backbone-weights", "runs/seg/model.safetensors"),
        ("--backbone-weights runs/pickle/model.safetensors", "--backbone-weights", "runs/pickle/model.safetensors"),
    ),
    *rows("demo --out foreign", ("--seed x", "--seed"), ("--size 5", "--size")),
    *rows("demo", ("--out data/file.txt", "--out data/file.txt", "folder")),
]


@pytest.mark.parametrize(("line", "words"), TABLE)
def test_refused(line, words, home):
    """Of an option that is given twice the last counts, but for those that may be repeated."""
    before = state(home)
    result = daynight(line, home)
    assert all(word in result.line for word in words), result.line
    assert state(home) == before


# weights that are none


def change_a_tensor(path, how):
    """Puts something else in the place of one of its tensors of floating-point numbers; returns its name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    # one that every network keeps, and in the midst of it
    name = next(name for name in list(tensors)[len(tensors) // 2 :] if name.endswith("weight") and "fc." not in name)
    path.unlink()  # a hard link
    save_file(tensors | {name: how(tensors[name])}, path)
    return name


def one(value):
    def one(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return one


NO_WEIGHTS = {
    "NaN or infinite": [one(float("nan")), one(float("inf")), lambda x: one(-1e300)(x.double())],
    "int64": [lambda x: x.long()],
    "uint8": [lambda x: x.byte()],
    "bool": [lambda x: x > 0],
    "complex64": [lambda x: x + 0j],
}
NETWORKS = {
    f"{PREDICT} --model runs/seg": "runs/seg/model.safetensors",
    f"{TRANSLATE} --model runs/day2night": "runs/day2night/day2night/model.safetensors",
    f"{TRANSLATE} --audit runs/seg": "runs/seg/model.safetensors",
    "eval --dataset day --model runs/seg": "runs/seg/model.safetensors",
    f"{SEG_TRAIN} --train-on day --init runs/seg": "runs/seg/model.safetensors",
    f"{SEG_TRAIN} --translator runs/day2night": "runs/day2night/day2night/model.safetensors",
    f"{SEG_TRAIN} --train-on day --backbone-weights resnet.safetensors": "resnet.safetensors",
    f"{TRANSLATE_TRAIN} --init runs/day2night": "runs/day2night/night2day/model.safetensors",
    f"{TRANSLATE_TRAIN} --judge runs/seg": "runs/seg/model.safetensors",
    f"{TRANSLATE_TRAIN} --feature-weights resnet.safetensors": "resnet.safetensors",
}


@pytest.mark.parametrize("line", NETWORKS, ids=lambda line: " ".join((line.split()[0], *line.split()[-2:])))
def test_weights_that_are_no_numbers(line, home):
    from safetensors.torch import save_file
    from timm import create_model

    save_file(create_model("test_resnet").state_dict(), home / "resnet.safetensors")
    file, option = home / NETWORKS[line], line.split()[-2]
    whole = file.read_bytes()
    for words, changes in NO_WEIGHTS.items():
        for how in changes:
            name = change_a_tensor(file, how)
            before = state(home)
            refused = daynight(line, home).line
            assert f"{NETWORKS[line]}: {name} holds {words} values; expected finite" in refused and option in refused
            assert state(home) == before
            file.write_bytes(whole)


@pytest.mark.parametrize(
    "line, folder, values",
    [
        (f"{TRANSLATE} --model runs/day2night", "runs/day2night/day2night", {"width": 2048, "blocks": 8192}),
        (f"{TRANSLATE} --model runs/day2night", "runs/day2night/day2night", {"width": 8192}),
        (f"{PREDICT} --model runs/seg", "runs/seg", {"hidden": 8192}),
        (f"{PREDICT} --model runs/seg", "runs/seg", {"backbone": "vit_giant_patch14_dinov2"}),
        (f"{PREDICT} --model runs/seg", "runs/seg", {"backbone": "convnext_xxlarge"}),
    ],
)
def test_a_config_that_asks_for_more_than_its_file_has(line, folder, values, home):
    """It takes neither memory nor time."""
    config = home / folder / "config.json"
    content = json.loads(config.read_text()) | values
    config.unlink()  # a hard link
    config.write_text(json.dumps(content))
    before, began, memory = state(home), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = daynight(line, home).line
    assert f"{folder}/config.json does not describe" in refused or "is not of the network in its config" in refused
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**18  # 256 MiB
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
    Image.new("RGB", size, (71, 130, 180)).save(path)


def exchanged(path):
    """The palette has the colours of road and car exchanged; most pixels are of a colour that is no class's."""
    values = np.zeros((48, 96), np.uint8)
    values[:5] = 1
    picture = Image.fromarray(values, "P")
    picture.putpalette([9, 9, 9, *(channel for i in (2, 1) for channel in trees.CLASSES[i][1])])
    picture.save(path)


def bomb(path):
    """A PNG of a few bytes that says it has 400 megapixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    chunks = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def floats(path):
    """What is white is not known."""
    Image.new("F", (96, 48)).save(path, "TIFF")


IMAGE = {
    text: "not a readable image",
    empty: "is empty",
    cut: "not a readable image",
    bomb: "not a readable image (Image size (400000000 pixels)",
    floats: "not a readable image (of floating-point values",
}
LABEL = {
    text: "cannot be read",
    empty: "cannot be read",
    cut: "cannot be read",
    bomb: "cannot be read",
    small: "10x12",
    beyond: "value 3",
    colors: "colour (71, 130, 180) (",
    exchanged: "index 1 shows the colour of 'car' and means 'road'",
}
FILES = {"image": ("images/{}/000.jpg", IMAGE), "label": ("labels/{}/000.png", LABEL)}
TRAIN, VAL = {"image": "train", "label": "train"}, {"image": "val", "label": "val"}
READERS = {
    TRANSLATE: {"image": "train"},
    PREDICT: {"image": "val"},
    "eval --dataset day --json out.json": VAL,
    f"{SEG_TRAIN} --train-on day": TRAIN,
    f"{TRANSLATE_TRAIN} --save-every 1": {"image": "train"},
    f"{TRANSLATE} --size 24": {"label": "val"},
}
BROKEN = [
    pytest.param(line, kind, split, break_, id=f"{line.split()[0]} {kind} {break_.__name__}")
    for line, kinds in READERS.items()
    for kind, split in kinds.items()
    for break_ in FILES[kind][1]
    # translate passes labels on, whatever they hold
    if not (line.startswith("translate ") and kind == "label" and LABEL[break_] != "cannot be read")
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


def test_unreadable_in_a_worker(home, broken):
    """A loader's worker hands on no exception but its traceback as text: still one line."""
    path = broken("image", "train", cut)
    before = state(home)
    refused = daynight(f"{TRANSLATE} --num-workers 1", home).line
    assert refused.startswith(f"daynight: {path.relative_to(home)}: not a readable image"), refused
    check_whole(home, before)


def test_unreadable_in_a_worker_of_a_training(home, broken):
    """A real process, which ends: it waits for no worker that waits for it."""
    path = broken("image", "train", cut)
    words = f"{SEG_TRAIN} --train-on day --num-workers 1".split()
    result = shell("daynight", *words, cwd=home, check=False, OMP_NUM_THREADS="1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result
    assert result.stderr.startswith(f"daynight: {path.relative_to(home)}: not a readable image"), result


@pytest.mark.parametrize("line", [TRANSLATE, PREDICT], ids=["translate", "predict"])
def test_it_goes_on_once_the_file_is_mended(line, home):
    """What was made before a file turned out unreadable is kept."""
    last = home / "data/day/images/val/street/001.jpg"
    content = last.read_bytes()
    cut(last)
    before = state(home)
    assert "val/street/001.jpg" in daynight(line, home).line
    check_whole(home, before)
    last.write_bytes(content)
    result = daynight(line, home)
    assert result.code == 0 and "4 images, 3 there" in result.out, result


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


# --skip-unreadable


@pytest.fixture
def spoilt(home):
    """Four images to train on, of which one cannot be read, and of another the label."""
    trees.folder(home / "data/spoilt", train=4)
    cut(home / "data/spoilt/images/train/street/001.jpg")
    text(home / "data/spoilt/labels/train/street/002.png")
    return ["data/spoilt/images/train/street/001.jpg: not a", "data/spoilt/labels/train/street/002.png: cannot"]


SPOILT = f"{SEG_TRAIN} --day spoilt --train-on day --steps 6 --save-every 1"


def weights(run, name="teacher"):
    return (run / name / "model.safetensors").read_bytes()


def check_skipped(result, run, spoilt):
    """Said once when met, listed at the end, and in a file."""
    assert result.code == 0, result
    listed = (run / "skipped.txt").read_text().splitlines()
    assert len(listed) == len(spoilt) and all(map(str.startswith, sorted(listed), spoilt)), listed
    assert sorted(result.err.splitlines()) == [f"warning: skipped {line}" for line in sorted(listed)], result
    end = f"{len(spoilt)} skipped that cannot be read, as {run.name}/skipped.txt lists:"
    assert result.out.splitlines()[-1 - len(spoilt) :] == [end, *(f"  {line}" for line in sorted(listed))], result


def test_a_training_without_what_cannot_be_read(home, spoilt):
    """What takes the place of a file hangs on no worker, and on no run before that stopped at it."""
    for workers in (0, 1):
        result = daynight(f"{SPOILT} --skip-unreadable --num-workers {workers} --out out{workers}", home)
        check_skipped(result, home / f"out{workers}", spoilt)
    assert weights(home / "out0") == weights(home / "out1")
    stopped = daynight(SPOILT, home).line
    assert spoilt[0] in stopped and "--skip-unreadable" in stopped
    checkpoints = sorted((home / "out").glob("checkpoint-*"))
    assert checkpoints and not (home / "out/skipped.txt").exists()

    for path in (home / "out0").glob("checkpoint-*"):
        shutil.rmtree(path)
    shutil.copytree(checkpoints[-1], home / "out0" / checkpoints[-1].name)
    check_skipped(daynight(f"{SPOILT} --skip-unreadable", home), home / "out", spoilt)
    assert weights(home / "out") == weights(home / "out1")
    listed = (home / "out0/skipped.txt").read_text()
    again = daynight(f"{SPOILT} --skip-unreadable --out out0", home)
    assert (again.code, again.err) == (0, "") and f"  {spoilt[1]}" in again.out, again
    assert (home / "out0/skipped.txt").read_text() == listed and weights(home / "out0") == weights(home / "out1")


def test_a_translator_without_what_cannot_be_read(home, spoilt):
    line = f"{TRANSLATE_TRAIN} --day spoilt --skip-unreadable"
    check_skipped(daynight(line, home), home / "out", spoilt[:1])
    shutil.rmtree(home / "out/checkpoint-0000002")
    for path in (home / "out").rglob("model.safetensors"):  # or the run is not begun again
        path.unlink()
    trees.image(home / "data/spoilt/images/train/street/001.jpg")
    mended = daynight(line, home)
    assert (mended.code, mended.err) == (0, "") and "0 skipped that cannot be read\n" in mended.out, mended
    assert not (home / "out/skipped.txt").exists()


def test_what_is_skipped_is_drawn_again_from_the_same_generator():
    from daynight.data.sampling import batches, choose, generator
    from daynight.system.errors import Unreadable

    def draw(g, step):
        i = choose(4, g)
        if i in (1, 2):
            raise Unreadable(f"{i} is\nbroken")
        return {"i": i}

    class Told(list):
        add = list.append

    told = Told()
    items = [batch["i"].tolist() for batch in batches(draw, 0, range(9), range(2), 0, told)]
    expected, skipped = [], []
    for step in range(9):
        for slot in range(2):
            g = generator(0, step, slot)
            while (i := choose(4, g)) in (1, 2):
                skipped.append(f"{i} is broken")
            expected.append(i)
    assert sum(items, []) == expected and told == skipped and len(skipped) > 5


def test_a_training_of_which_nothing_can_be_read(home, broken):
    path = broken("image", "train", cut)
    refused = daynight(f"{SEG_TRAIN} --train-on day --skip-unreadable", home).line
    assert path.relative_to(home).as_posix() in refused and "99 drawn before it" in refused


# ---- data sets


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not JSON"),
        ('{"sky": [1, 2, 3]}', "expected a list"),
        ('[{"name": "sky"}]', "class 0 ('sky')"),
        (
            '[{"name": "sky", "color": [1, 2, 3]}, {"name": "Sky", "color": [4, 5, 6]}]',
            "class 1 is named 'Sky' like class 0",
        ),
    ],
    ids=["cut", "object", "colorless", "twice"],
)
def test_broken_classes(content, words, home):
    (home / "data/day/classes.json").write_text(content)
    for line in (f"{SEG_TRAIN} --train-on day", "eval --dataset day"):
        before = state(home)
        refused = daynight(line, home).line
        assert "data/day/classes.json: " in refused and words in refused
        assert state(home) == before


@pytest.mark.parametrize("line", [f"{SEG_TRAIN} --train-on day", "eval --dataset day", "eval --dry-run --dataset day"])
def test_labels_without_images_and_images_without_labels_are_counted(line, home):
    for split in ("train", "val"):
        trees.label(home / f"data/day/labels/{split}/more.png", [0, 1])
        (home / f"data/day/labels/{split}/street/001.png").unlink()
    split = "train" if "train" in line else "val"
    result = daynight(line, home)
    assert result.code == 0 and f"day: 1 label without an image, as labels/{split}/more.png" in result.out, result
    left_out = "1 of 2 images left out for want of a label"
    assert (left_out if "dry" not in line else f"{split}, 2 images, 1 label") in result.out, result


# ---- config files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"stepps": 3}', ["'stepps'", "'steps'"]),
        ('{"lambda_sssl": "1,2"}', ["'lambda_sssl'", "'lambda-ssl'"]),
        ('{"steps": true}', ["steps", "true", "number"]),
        ('{"steps": -3}', ["steps", "1"]),
        ('{"lr": 1e999}', ["lr"]),
        ('{"night": []}', ["night", "one or more"]),
        ('{"out": {"a": 1}}', ["out", '{"a": 1}', "string"]),
        ('{"ssl": ["yes"]}', ["ssl", "boolean"]),
        ('{"out": "a\\u0000b"}', ["out", "no text"]),
        ('{"options": 3}', ["no option 'options'"]),
        ("[" * 100_000, ["JSON object"]),
    ],
)
def test_config_that_is_wrong(content, words, home):
    (home / "given.json").write_text(content)
    before = state(home)
    refused = daynight(f"{SEG_TRAIN} --config given.json", home).line
    assert all(word in refused for word in ["--config given.json: ", *words]), refused
    assert state(home) == before


# ---- what is unusual and works


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def draw_modes(folder):
    """Pairs of images that show the same: one of an unusual mode (named), one plain (plain-…)."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (24, 40), np.uint8)
    colors = random.integers(0, 256, (24, 40, 3), np.uint8)
    plain = Image.fromarray(colors)
    palette = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142]], np.uint8)
    indices = Image.fromarray(levels % 3, "P")
    indices.putpalette(palette.ravel().tolist())
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: to be turned a quarter clockwise
    modes = {
        "grey.png": (Image.fromarray(levels), np.stack([levels] * 3, 2)),
        "grey16.png": (Image.fromarray(levels.astype(np.uint16) * 257), np.stack([levels] * 3, 2)),
        "deep.tif": (Image.fromarray(levels.astype(np.uint16) * 257), np.stack([levels] * 3, 2)),
        "palette.png": (indices, palette[levels % 3]),
        "rgba.png": (Image.fromarray(np.dstack([colors, levels])), colors),
        "cmyk.tif": (Image.fromarray(np.dstack([255 - colors, np.zeros_like(levels)]), "CMYK"), colors),
        "turned.png": (plain, np.rot90(colors, -1)),
    }
    folder.mkdir(parents=True)
    for name, (image, same) in modes.items():
        image.save(folder / name, **({"exif": exif} if name == "turned.png" else {}))
        Image.fromarray(same).save(folder / f"plain-{name}")
    return list(modes)


def test_images_of_other_modes_are_read_as_what_they_show(home):
    names = draw_modes(home / "data/modes")
    assert daynight("translate --in modes --out out", home).code == 0
    assert daynight("predict --in modes --out labelled", home).code == 0
    for name in names:
        assert (pixels(home / "out" / name) == pixels(home / "out" / f"plain-{name}")).all(), name
        overlays = [(home / "labelled/overlay" / n).with_suffix(".png") for n in (name, f"plain-{name}")]
        assert np.array_equal(*map(pixels, overlays)), name


SIZES = ((1, 1), (3, 5000), (5000, 3), (10, 12))


@pytest.fixture
def odd(home):
    """A data set of images of every odd size, all smaller than the crop on one side at least."""
    root = home / "data/odd"
    for size in SIZES:
        for split in ("train", "val"):
            name = f"{split}/{size[0]}x{size[1]}"
            trees.image(root / f"images/{name}.png", size)
            trees.label(root / f"labels/{name}.png", [0, 1, 2, 255], size)
    shutil.copy(home / "data/day/classes.json", root)
    trees.bare(home / "data/tiny", (1, 1))
    return root


@pytest.mark.parametrize(
    "line",
    [
        "translate --in odd --out out",
        "predict --in odd --out out --scales 0.5,1 --flip",
        "eval --dataset odd",
        f"{SEG_TRAIN} --day odd --night tiny --ssl --translator fourier --batch-size 8",
        f"{TRANSLATE_TRAIN} --day odd --night tiny --batch-size 8",
    ],
    ids=lambda line: line.split()[0],
)
def test_images_of_odd_sizes(line, home, odd):
    result = daynight(line, home)
    assert (result.code, result.err) == (0, ""), result
    for path in (home / "out").rglob("images/**/*.png"):
        assert f"{path.stem}.png" == "{}x{}.png".format(*pixels(path).shape[:2])
    made = {"translate": 8, "predict": 24}.get(line.split()[0], 0)
    assert len(list((home / "out").rglob("images/**/*.png"))) == made


def test_names_of_any_letters(home):
    day = trees.folder(home / "Tag: é [bold]", train=1, val=1)
    for top in ("images", "labels"):
        (day / top / "train").rename(day / top / "x")
        shutil.copytree(day / top / "x", day / top / "train/straße 夜")
        shutil.rmtree(day / top / "x")
    options = "--day 'Tag: é [bold]' --night dark"
    for line in (
        TRANSLATE_TRAIN.replace("--day day --night dark", options).replace("--out out", "--out 'ü 1'"),
        "translate --in 'Tag: é [bold]' --out 'ü: 2' --model 'ü 1'",
        SEG_TRAIN.replace("--day day --night dark", options).replace("--out out", "--out 'ü 3' --translated 'ü: 2'"),
        "predict --in 'Tag: é [bold]' --out 'ü 4' --model 'ü 3'",
        "eval --dataset 'Tag: é [bold]' --model 'ü 3' --json 'ü.json' --save 'ü 5'",
    ):
        result = daynight(line, home)
        assert (result.code, result.err) == (0, ""), (line, result)
    assert (home / "ü: 2/images/train/straße 夜/000.jpg").is_file()
    assert (home / "ü 4/ids/images/train/straße 夜/000.png").is_file()


def test_a_link_to_nowhere(home):
    os.symlink("/nowhere/else.jpg", home / "data/day/images/val/linked.jpg")
    before = {path for path in home.rglob("*")}
    assert "linked.jpg" in daynight(PREDICT, home).line
    assert {path for path in home.rglob("*")} == before


def test_links_in_circles_are_followed_once(home):
    os.symlink("..", home / "data/dark/deep/up")
    result = daynight("predict --in dark --out out", home)
    assert result.code == 0 and "dark → out: 3 images, 0 there" in result.out


@pytest.fixture
def unprivileged(home):
    """`home` where all may read it and none may write, and no right to write all the same."""
    with tempfile.TemporaryDirectory() as folder:
        place = shutil.copytree(home, Path(folder) / "home", symlinks=True)
        paths = [path for path in (place.parent, place, *place.rglob("*")) if not path.is_symlink()]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        root = os.getuid() == 0
        if root:
            os.setresuid(65534, 65534, 0)
        try:
            yield place
        finally:
            if root:
                os.setresuid(0, 0, 0)
            for path in paths:
                path.chmod(0o755)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (TRANSLATE_TRAIN, "--out out"),
        (f"{SEG_TRAIN} --train-on day", "--out out"),
        (TRANSLATE, "--out out"),
        (PREDICT, "--out out"),
        ("eval --dataset day --json out.json", "--json out.json"),
        ("eval --dataset day --save out", "--save out"),
        ("demo --out out", "--out out"),
    ],
    ids=lambda word: word.split()[0],
)
def test_a_folder_that_cannot_be_written_to(line, option, unprivileged):
    before = state(unprivileged)
    assert option in daynight(line, unprivileged).line
    assert state(unprivileged) == before


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
    """Models are read from safetensors only; nor does it help to call one so, or to be one of those too."""
    pickled(home / "runs/no-weights/pytorch_model.bin")
    assert "model.safetensors" in daynight("eval --dataset day --model runs/no-weights", home).line
    from safetensors.torch import save_file
    from timm import create_model

    save_file(create_model("test_resnet").state_dict(), home / "resnet.bin")
    for option, line in (("--backbone-weights", SEG_TRAIN), ("--feature-weights", TRANSLATE_TRAIN)):
        refused = daynight(f"{line} {option} resnet.bin", home).line
        assert f"{option}: resnet.bin is not called *.safetensors" in refused
    assert not Path(home / "ran").exists()
