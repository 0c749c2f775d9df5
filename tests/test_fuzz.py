"""Whatever stands in a config file, in classes.json or in a model's folder: it is read, or refused in one line."""

import json
import warnings
from dataclasses import asdict
from typing import get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cli import COMMANDS, FUNCTIONS, REQUIRED, clean, daynight, parameters  # noqa: F401 (clean is a fixture)

from daynight import cli
from daynight.config import is_size, pair
from daynight.data.labels import Classes, colorize, read_classes
from daynight.data.transforms import target_size
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import classes_of, load_model, save_model
from daynight.system.errors import InputError

# the same examples every time; none between 5 and 10**12, which would be a network that fits no memory
FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 5, 10**12, 2**63, 10**400, 0.5, -0.0, 1e999, float("nan"), 255, 256])
TEXTS = st.text(max_size=5) | st.sampled_from(
    ["", "\0", "\ud800", "1e3", "nan", "native", "0x5", "sky", "../x", "a" * 300]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
ODD = [True, [], {}, [True], ["a"], [["a"]], {"a": 1}, "a", "\0", "\ud800", "nan", -1, 1e999, 10**12, 2.5, 3.0]
VALUES = st.sampled_from(ODD) | st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)


def odd(test):
    """Also each of `ODD` as `value`, which chance need not find."""
    for value in ODD:
        test = example(value=value)(test)
    return test


def as_bytes(content) -> bytes:
    return json.dumps(content).encode()


def spoilt(data: st.DataObject, content: bytes) -> bytes:
    """A file cut short, or with other bytes in it, or of others alone."""
    kind = data.draw(st.sampled_from(["cut", "changed", "other"]))
    if kind == "cut":
        return content[: data.draw(st.integers(0, len(content)))]
    if kind == "other":
        return data.draw(st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}"]))
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        # most of a weights file is weights; what can go wrong stands in its header
        content[data.draw(st.integers(0, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content)


# ---- config files


def fits(value, base) -> bool:
    if value is None or base is float:
        return value is None or isinstance(value, int | float)
    if get_origin(base) is list:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if base in (int, str, bool):
        return type(value) is base
    return value in get_args(base)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Runs a command with a --config file up to the function behind it; returns its options, or None if refused."""
    path, got = tmp_path_factory.mktemp("config") / "given.json", []

    class Module:
        def __getattr__(self, name):
            return got.append if name in FUNCTIONS else lambda: None

    def read(command: str, content: bytes):
        path.write_bytes(content)
        got.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "check_places", lambda *_: None)
            patch.setattr(cli, "import_module", lambda _: Module())
            result = daynight(f"{command} {REQUIRED.get(command, '')} --config '{path}'")
        if result.code == 0:
            assert not result.err
            return got[0]
        assert f"--config {path}: " in result.line

    return read


@FUZZ
@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)))
def test_config_files(data, command, read):
    names = [spelt for _, spelt, _ in parameters(command)]
    content = data.draw(st.dictionaries(st.sampled_from([*names, "#", "stepps"]) | TEXTS, VALUES, max_size=4))
    whole = data.draw(VALUES)
    content = data.draw(st.sampled_from([content, content, {"options": content}, {"options": whole}, whole]))
    content = as_bytes(content) if data.draw(st.integers(0, 4)) else spoilt(data, as_bytes(content))
    options = read(command, content)
    if options:
        for f, spelt, base in parameters(command):
            value = asdict(options)[f.name]
            assert fits(value, base), (spelt, value)


@pytest.mark.parametrize("name", ["steps", "lr", "out", "crop", "train-on", "ssl", "night", "num-workers"])
@settings(FUZZ, max_examples=10)
@odd
@given(value=VALUES)
def test_one_option_of_a_config_file(name, value, read):
    """What is accepted is of the option's type, and was something like it."""
    options = read("seg-train", as_bytes({name: value}))
    if options is None:
        return
    f, base = next((f, base) for f, spelt, base in parameters("seg-train") if spelt == name)
    assert fits(asdict(options)[f.name], base)
    for one in value if get_origin(base) is list and value is not None else [value]:
        assert one is None or isinstance(one, str | int | float) and (base is bool or not isinstance(one, bool))
        assert not isinstance(one, str) or one.isascii() and "\0" not in one


# ---- classes.json

NAMES = st.sampled_from(["sky", "Sky", "road", "Straße", "STRASSE", "\ud800", " "])
COLORS = st.lists(st.sampled_from([0, 255, 256, -1, True, 1.0, "1"]), min_size=2, max_size=4)


@FUZZ
@given(data=st.data())
def test_classes(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "classes.json"
    content = [{"name": name, "color": [1, 2, 3]} for name in data.draw(st.lists(NAMES, min_size=1, max_size=3))]
    if data.draw(st.booleans()):
        content[0][data.draw(st.sampled_from(["name", "color"]))] = data.draw(COLORS | VALUES)
    path.write_bytes(as_bytes(content) if data.draw(st.integers(0, 3)) else spoilt(data, as_bytes(content)))
    try:
        classes = read_classes(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert len({name.casefold() for name in classes.names}) == len(classes) > 0
        " ".join(classes.names).encode()
        drawn = colorize(np.arange(len(classes), dtype=np.uint8), classes)
        assert list(map(tuple, drawn.tolist())) == list(classes.colors)


# ---- weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each kind of model, and what its two files hold."""
    found = {}
    for model in (
        Generator(1, 2),
        DeepLabV2(["sky", "road"], [[1, 2, 3], [4, 5, 6]], "test_resnet", 8, 4, size="native"),
    ):
        folder = tmp_path_factory.mktemp("model")
        save_model(model, folder)
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        found[type(model)] = folder, files
    return found


def check_loads_or_not(kind, folder):
    """A model that is loaded labels or translates an image; one that is not is refused, without a word besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            model = load_model(str(folder), "teacher", "--model", kind)
        except InputError as error:
            assert str(folder) in str(error)
            return
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 16, 16)).shape[-2:] == (16, 16)
        assert is_size(model.config["size"]) and min(target_size(24, 32, model.config["size"])) > 0
        crop = model.config.get("crop")
        assert crop is None or min(pair(crop)) > 0
        if kind is DeepLabV2:
            colorize(np.zeros((1, 1), np.uint8), Classes(*classes_of(model)))
            " ".join(model.config["names"]).encode()


FIELDS = {
    Generator: ["class", "blocks", "width", "upsample", "size", "crop"],
    DeepLabV2: ["names", "colors", "backbone", "output_stride", "hidden", "frozen_norm", "size", "pretrained"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FIELDS.items() for name in names])
@settings(FUZZ, max_examples=10)
@odd
@given(value=VALUES | st.lists(NAMES, max_size=3) | st.lists(COLORS, max_size=3))
def test_config_of_a_model(kind, name, value, models):
    folder, files = models[kind]
    (folder / "config.json").write_bytes(as_bytes(json.loads(files["config.json"]) | {name: value}))
    (folder / "model.safetensors").write_bytes(files["model.safetensors"])
    check_loads_or_not(kind, folder)


@pytest.mark.parametrize("which", ["config.json", "model.safetensors"])
@FUZZ
@given(data=st.data())
def test_spoilt_file_of_a_model(which, data, models):
    folder, files = models[Generator]
    for name, content in files.items():
        (folder / name).write_bytes(spoilt(data, content) if name == which else content)
    check_loads_or_not(Generator, folder)


@FUZZ
@given(data=st.data())
def test_header_of_weights(data, models):
    """A header that is JSON, and lies."""
    folder, files = models[Generator]
    content = files["model.safetensors"]
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()):
        header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
            st.sampled_from(["I32", "F16", "BF16", "F64", "BOOL"]) | st.lists(NUMBERS, max_size=4) | VALUES
        )
    else:
        header[data.draw(TEXTS)] = header.pop(name) if data.draw(st.booleans()) else data.draw(VALUES)
    header = as_bytes(header)
    length = data.draw(st.sampled_from([len(header), len(header), 0, 2**63, len(header) - 1]))
    (folder / "config.json").write_bytes(files["config.json"])
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + content[begin:])
    check_loads_or_not(Generator, folder)
