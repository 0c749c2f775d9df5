"""What a person sees while a loop runs: rate, time left, what is waited for, values; on a terminal and in a pipe."""

import io
import re
import time

import pytest
import torch
from rich.console import Console
from rich.table import Table

from daynight.config import SegTrainOptions
from daynight.system import console
from daynight.system.console import Meter, counted
from daynight.training.checkpoint import Checkpoint
from daynight.training.run import Run


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to: `clock.now += 3`."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


def paper(monkeypatch, width=None):
    """What is printed: to a terminal of a width, else to a pipe."""
    file = io.StringIO()
    settings = {"force_terminal": True, "width": width, "height": 40} if width else {}
    monkeypatch.setattr(console, "console", Console(file=file, highlight=False, soft_wrap=True, **settings))
    return file


def run(meter, clock, steps, wait=0.5, work=1.5, images=8):
    for step in range(steps):
        clock.now += wait
        meter.waiting(wait, images)
        clock.now += work
        meter.show({"ce_day": 2.0 - step})
        meter.advance()


def test_a_pipe_gets_a_line_soon_and_whenever_it_is_due(clock, monkeypatch):
    file = paper(monkeypatch)
    meter = Meter(10, 0, "steps", lambda done: done % 4 == 0, memory=lambda: "3.2 GiB of memory")
    with meter:
        run(meter, clock, 1, wait=30, work=30)  # warming up says nothing of the rest
        run(meter, clock, 9)
    lines = file.getvalue().splitlines()
    rate = "2 s per step, 4 images/s"
    waits = "3.2 GiB of memory, waits 25 % for data, 75 % for compute"
    assert lines == [
        f"4/10 steps  {rate}, 12 s left, {waits}  ce_day 0",
        f"5/10 steps  {rate}, 10 s left, {waits}  ce_day -1",
        f"8/10 steps  {rate}, 4 s left, {waits}  ce_day -4",
        f"10/10 steps  {rate}, 0 s left, {waits}",  # the values come in a table
        "10 steps in 78 s",
    ]


def test_the_time_left_knows_that_later_steps_are_dearer(clock, monkeypatch):
    file = paper(monkeypatch)
    with Meter(12, 0, "steps", lambda done: done == 5, lambda step: 3.0 if step >= 6 else 1.0) as meter:
        run(meter, clock, 5)
    assert "5/12 steps  2 s per step, 4 images/s, 38 s left, waits 25 %" in file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_view_that_fits_it(width, clock, monkeypatch):
    file = paper(monkeypatch, width)
    values = {f"a_rather_long_{i}": i / 7 for i in range(12)}
    with Meter(50_000, 0, "steps", lambda done: True, memory=lambda: "12.5 GiB of GPU memory") as meter:
        run(meter, clock, 12)
        meter.show(values)
        meter.live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", file.getvalue())
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    assert any(line.endswith("12/50,000 steps, 0%") for line in lines)
    assert "2 s per step, 4 images/s, 28 h left" in text or "1 d 3 h left, 12.5 GiB of GPU memory" in text
    assert "waits 25 % for data, 75 % for compute" in text
    for name, value in values.items():
        assert any(re.search(rf"{name} +{value:.4g}\b", line) for line in lines), name
    assert not [line for line in lines if line.startswith("12/50,000")]


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_never_read_as_markup(terminal, clock, monkeypatch, capsys):
    """A class or a folder may be called [/road] or [red]; read as markup, the first would end the command."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(console.console, "is_interactive", True)
    with Meter(2, 0, "[/steps]", lambda done: True) as meter:
        meter.show({"[/road]": 1.0, "[red]sky": float("nan")})
        meter.advance()
        meter.refresh()
    console.say("[/said]")
    table = Table(title="[/title]")
    table.add_column("[/column]")
    table.add_row("[/cell]")
    console.show(table)
    out = capsys.readouterr().out
    for name in ("[/steps]", "[/road]", "[red]sky", "[/said]", "[/title]", "[/column]", "[/cell]"):
        assert name in out, name
    assert ("\x1b" in out) == terminal


def test_other_loops_say_early_how_long_they_will_take(clock, monkeypatch):
    file = paper(monkeypatch)
    for _ in counted(range(60), 60, "images"):
        clock.now += 1
    shown = [line.split("/")[0] for line in file.getvalue().splitlines()[:-1]]
    assert shown == ["5", "20", "40", "60"]
    assert "5/60 images  1 images/s, 55 s left\n" in file.getvalue()


def test_a_run_tells_waiting_for_data_from_computing(tmp_path, capsys):
    run = Run(SegTrainOptions(out=str(tmp_path / "run"), steps=9, log_every=3, precision="no"))

    def loader():
        for _ in range(9):
            time.sleep(0.06)
            yield {"day": torch.zeros(2, 3, 4, 4), "night": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, 4, 4)}

    run.open({})
    checkpoint = Checkpoint(run.folder, run.accelerator, {}, None)
    for step, batch in run.steps(loader(), checkpoint):
        time.sleep(0.02)
        run.log(step, ce_day=batch["day"].sum())
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps/s" in line]
    assert [line.split()[0] for line in lines] == ["3/9", "5/9", "6/9", "9/9"]
    for line in lines:
        rate, images, data = (
            float(re.search(rf"([\d.]+){words}", line)[1]) for words in (" steps/s", " images/s", " % for data")
        )
        assert 50 < data < 95 and images == pytest.approx(4 * rate, rel=0.02) and rate < 12.5
        assert " GiB of memory, " in line and line.endswith("  ce_day 0") == (line[0] != "9")
