"""What a training reads: where any of it changes between kill and resume, the resume is refused by name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from timm import create_model

from daynight import translation
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import identity, save_model

COMMON = "--day day --night dark --crop 32 --size native --steps 4 --save-every 2 --validate-every 4 --out out"
SEG_TRAIN = f"seg-train {COMMON} --batch-size 2 --head-width 8 --backbone test_resnet"
LINES = {
    "translations": f"{SEG_TRAIN} --ssl --unlabelled-day more --validate-on target --translated data/day_night "
    "--backbone-weights resnet.safetensors",
    "networks": f"{SEG_TRAIN} --ssl --init seg --translator gan",
    "translator": f"translate-train {COMMON} --width 4 --blocks 1 --init gan --judge seg --feature-network test_resnet "
    "--feature-layer layer1 --feature-weights resnet.safetensors",
}


@pytest.fixture
def home(tmp_path):
    """Everything that any of `LINES` names."""
    data = tmp_path / "data"
    trees.folder(data / "day", train=2, val=2)
    trees.folder(data / "dark", train=2, val=2, classes=None, labelled=False, brightness=60)
    trees.folder(data / "more", train=2, val=0, classes=None, labelled=False)
    trees.folder(data / "target", train=0, val=1)
    trees.folder(data / "day_night", train=2, val=0, classes=None, labelled=False, brightness=40)
    made = {"model": "0123456789ab", "size": None, "tiles": "32"}
    (data / "day_night/translation.json").write_text(json.dumps(made))
    torch.manual_seed(0)
    save_file(create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors", {"format": "pt"})
    names, colors = zip(*trees.CLASSES, strict=True)
    save_model(DeepLabV2(names, colors, "test_resnet", 8, 8, size="native"), tmp_path / "seg/teacher")
    for part in ("day2night", "night2day"):
        save_model(Generator(1, 4, "bilinear", "native"), tmp_path / "gan" / part)
    for path in data.rglob("*"):
        if path.suffix in (".jpg", ".png"):
            path.write_bytes(path.read_bytes() + bytes(2**12))  # room for other pixels
    return tmp_path


def begin(line, home):
    """A run with a checkpoint, which is not done."""
    begun = daynight(line, home)
    assert (begun.code, begun.err) == (0, ""), begun
    shutil.rmtree(home / "out/checkpoint-0000004")


def change(path):
    """Other content, of the same length and time where the file is an image or weights."""
    before, content = path.stat(), path.read_bytes()
    if path.suffix == ".json":
        found = json.loads(content)
        if isinstance(found, list):
            found.reverse()
        else:
            of_kinds = ([key for key in found if isinstance(found[key], kind)] for kind in (bool, int, str))
            key = next(filter(None, of_kinds))[-1]
            found[key] = "31" if isinstance(found[key], str) else found[key] + 1 if found[key] > 1 else not found[key]
        path.write_text(json.dumps(found))
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        name = max(sorted(tensors), key=lambda name: "fc" not in name and tensors[name].numel())
        save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
    else:
        image = Image.open(path)
        Image.fromarray(np.roll(np.asarray(image), 9, 1)).save(path)
        path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    assert path.read_bytes() != content
    if path.suffix != ".json":
        assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return lambda: (path.write_bytes(content), os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)))


def places_of(line, home):
    """The file or folder that each option names."""
    words = line.split()
    given = {option: name for option, name in zip(words, words[1:], strict=False) if option.startswith("--")}
    places = {option: (home / name, home / "data" / name) for option, name in given.items() if option != "--out"}
    return {option: path for option, both in places.items() if (path := next(filter(Path.exists, both), None))}


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", LINES)
def test_each_file_that_changes_between_kill_and_resume_is_refused_by_name(kind, home):
    begin(LINES[kind], home)
    state, swept = content_of(home / "out"), 0
    if kind == "networks":
        shutil.rmtree(home / "gan/night2day")  # no night is translated
    for option, place in places_of(LINES[kind], home).items():
        for path in [place] if place.is_file() else sorted(place.rglob("*.*")):
            restore = change(path)
            refused = daynight(LINES[kind], home).line
            assert f"{option} " in refused, (path, refused)
            restore()
            swept += 1
    assert swept > 15 and content_of(home / "out") == state
    resumed = daynight(LINES[kind], home)
    assert (resumed.code, resumed.err) == (0, "") and "going on with out at step 2 of 4" in resumed.out, resumed


DAY = f"{SEG_TRAIN} --train-on day --backbone-weights random"


def test_what_ids_mean_is_part_of_a_run(home):
    begin(DAY, home)
    path = home / "data/day/classes.json"
    entries = json.loads(path.read_text())
    for changed in (
        entries[::-1],
        [entries[0] | {"color": [1, 2, 3]}, *entries[1:]],
        [*entries, entries[0] | {"name": "x"}],
    ):
        path.write_text(json.dumps(changed))
        refused = daynight(DAY, home).line
        assert (
            "--day day (classes.json, label ids): not what the run in out began with; give that, or another" in refused
        )
    path.write_text(json.dumps(entries, indent=4))
    assert daynight(DAY, home).code == 0


def test_a_copy_of_the_data_with_other_times_goes_on_with_a_warning(home):
    begin(DAY, home)
    shutil.copytree(home / "data", home / "disk", copy_function=shutil.copyfile)
    shutil.rmtree(home / "data")
    resumed = daynight(f"{DAY} --data-root disk", home)
    assert resumed.code == 0 and "at step 2 of 4" in resumed.out, resumed
    warned = resumed.err.splitlines()
    assert len(warned) == 2 and all(line.endswith("taken for a copy of its files") for line in warned), warned
    assert warned[0].startswith("warning: --day day (times): not those that the run in out began with")


def test_a_run_that_recorded_less_goes_on(home):
    """One of a version that knew names and lengths only."""
    begin(DAY, home)
    path = home / "out/options.json"
    record = json.loads(path.read_text())
    record["data"] = {name: value for name, value in record["data"].items() if "(" not in name}
    assert record["data"].keys() == {"--day", "--day to validate", "translations"}
    path.write_text(json.dumps(record))
    assert daynight(DAY, home).code == 0


def test_weights_from_the_hub_are_part_of_a_run(home, monkeypatch):
    line = LINES["translator"].replace("resnet.safetensors", "pretrained")
    there = translation.pretrained
    monkeypatch.setattr(
        translation, "pretrained", lambda build, network, _, option: there(build, network, "resnet.safetensors", option)
    )
    begin(line, home)
    restore = change(home / "resnet.safetensors")
    assert "--feature-weights pretrained (weights): not what the run in out began with" in daynight(line, home).line
    restore()
    assert daynight(line, home).code == 0


def test_the_identity_of_a_network():
    torch.manual_seed(0)
    network = DeepLabV2(["a"], [(1, 2, 3)], "test_resnet", 8, 8)
    first = identity(network)
    network.config["frozen_norm"] = False
    second = identity(network)
    network.backbone.bn1.running_var[0] += 1
    assert len({first, second, identity(network)}) == 3
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1) for name in ("features", "pre_logits")})
    first = identity(layers)
    torch.nn.init.zeros_(layers["pre_logits"].weight)  # VGG's, not in files that have convolutions only
    assert identity(layers) == first
    torch.nn.init.zeros_(layers["features"].weight)
    assert identity(layers) != first
