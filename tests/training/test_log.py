"""`--log`: Accelerate's trackers get what metrics.jsonl gets, and previews; a training never dies of one."""

import json
from dataclasses import replace

import accelerate.tracking
import numpy as np
import pytest
import trees
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_run import data, metrics, one_thread, seg_options, train  # noqa: F401 (fixtures)

from daynight.system.errors import InputError
from daynight.training import log as trackers


@pytest.fixture
def told(monkeypatch):
    """What TensorBoard's tracker of Accelerate is told; it is not installed."""
    calls = []

    class Fake(GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name, logging_dir, **settings):
            calls.append(("init", run_name, str(logging_dir), settings))

        def store_init_configuration(self, values):
            calls.append(("options", values))

        def log(self, values, step=None, **kwargs):
            calls.append(("log", step, values))

        def log_images(self, values, step=None, **kwargs):
            calls.append(("images", step, values, kwargs))

        def finish(self):
            calls.append(("finish",))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    available = [accelerate.utils.LoggerType.TENSORBOARD]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", available)
    return calls


def test_a_tracker_gets_every_line_and_preview(data, tmp_path, told, monkeypatch):  # noqa: F811
    options = seg_options(data, tmp_path / "run", log=["tensorboard"])
    train(options)
    folder = tmp_path / "run"
    (begun,) = (call for call in told if call[0] == "init")
    assert begun[2] == str(folder)
    (options_told,) = (call[1] for call in told if call[0] == "options")
    assert options_told["lr"] == 1e-3 and options_told["night"] == str([str(data / "night")])
    assert all(isinstance(value, bool | int | float | str) for value in options_told.values())
    assert [{"step": call[1]} | call[2] for call in told if call[0] == "log"] == metrics(folder)
    images = {call[1]: call[2]["preview"] for call in told if call[0] == "images"}
    assert list(images) == [0, 2, 4, 6, 7]
    assert all(x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3 and x.std() > 5 for x in images.values())
    assert told[-1] == ("finish",) and len([call for call in told if call[0] == "finish"]) == 1
    assert json.loads((folder / "options.json").read_text())["options"]["log"] == ["tensorboard"]
    count = len(told)
    train(replace(options, log=[]))  # it may differ in a continuation
    assert len(told) == count


def test_one_that_fails_is_gone_on_without(data, tmp_path, told, monkeypatch, capsys):  # noqa: F811
    def fail(self, values, step=None, **kwargs):
        raise ConnectionError("the network\nis away")

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "log", fail)
    train(seg_options(data, tmp_path / "run", log=["tensorboard"]))
    err = capsys.readouterr().err
    assert "warning: --log tensorboard: going on without it (the network is away)" in err and err.count("--log") == 1
    assert [line["step"] for line in metrics(tmp_path / "run")] == [3, 6, 7]


def test_one_that_cannot_begin_is_said_in_a_line(data, tmp_path, told, monkeypatch):  # noqa: F811
    def fail(self, *given, **settings):
        raise PermissionError("no key")

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "__init__", fail)
    with pytest.raises(InputError, match=r"^--log tensorboard: cannot begin \(no key\)$"):
        train(seg_options(data, tmp_path / "run", log=["tensorboard"]))


def test_what_is_no_tracker_or_not_installed_is_refused(monkeypatch, tmp_path):
    trees.image(tmp_path / "day/0.png")
    line = daynight("seg-train --day day --log tensorbord", tmp_path).line
    assert "--log tensorbord" in line and all(name in line for name in LOGGER_TYPE_TO_CLASS)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    for name in LOGGER_TYPE_TO_CLASS:
        line = daynight(f"translate-train --day day --night day --log {name}", tmp_path).line
        assert f"--log {name}: the package {name} is not installed; pip install {name}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["day"]
