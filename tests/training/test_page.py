"""A training's page: what of metrics.jsonl and the previews stands on it, and that it does not grow."""

import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image
from test_html import CHROMIUM, cells, parse, text, values_of

from daynight.training.page import POINTS, PREVIEWS, Curve, Report

MANY = [f"day/{name}" for name in "abcdefgh"]


def add_lines(folder, lines):
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def add_preview(folder, step, color="navy"):
    (folder / "previews").mkdir(exist_ok=True)
    Image.new("RGB", (120, 40), color).save(folder / f"previews/{step:07d}.png")


def page(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def health(step, **accepted):
    shares = {"predicted": (0.6, 0.4, 0.0), "learned": (0.7, 0.3, 0.0), "labelled": (0.5, 0.3, 0.2)}
    line = {f"{k}/{n}": x for k, row in shares.items() for n, x in zip(("road", "sky", "bus"), row, strict=True)}
    return {"step": step, "entropy": 0.5} | line | {f"accepted/{name}": x for name, x in accepted.items()}


def test_what_is_logged_alike_is_drawn_together(tmp_path):
    names = ["ce_day", "ce_fake_day", "kid", "kept", "kept/road", "kept/sky", "cycle_day", "cycle", *MANY, "mine"]
    add_lines(tmp_path, [{"step": s} | {n: s + i for i, n in enumerate(names)} for s in (10, 20)])
    report = Report(tmp_path)
    report.write(20, 30, "2 steps/s")
    add_lines(
        tmp_path, [{"step": 30, "ce_day": 9.0, "ce_fake_day": 8.0, "remark": "text", "nothing": None, "flag": True}]
    )
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "ce_d')  # is being written
    report.write(30, 30, None)
    root = parse(page(tmp_path))
    charts = {}
    for figure in root.iter("figure"):
        if figure.get("class") == "curves":
            titles = [text(line) for line in figure.iter("title")]
            charts[text(figure.find("figcaption")), tuple(titles)] = values_of(figure)
    ce = "error against the labels (Eq. 12), cross entropy"
    assert list(charts) == [
        (ce, ("ce_day", "ce_fake_day")),
        ("held-out days, translated: distance to real nights (KID), squared distance", ("kid",)),
        ("held-out days: pixels that the judge labels as before, %", ("kept",)),
        ("what is lost by translating there and back, weighted (Eq. 7), loss", ("cycle_day",)),
        ("held-out days: what is lost there and back (Eq. 7), of 2, the range of an image", ("cycle",)),
        ("mine", ("mine",)),
        ("the same of each class, %", ("road", "sky")),
        ("held-out labelled days: IoU of each class, % (1 of 2)", tuple("abcdefg")),
        ("held-out labelled days: IoU of each class, % (2 of 2)", ("h",)),
    ]
    assert len({title for title, _ in charts}) == len(charts)
    [day], _ = charts[ce, ("ce_day", "ce_fake_day")]
    assert np.array(day) == pytest.approx(np.array([(10, 10), (20, 20), (30, 9)]), abs=0.05)


def test_the_page_loads_itself_again_until_the_run_ends(tmp_path):
    report = Report(tmp_path)
    report.write(0, 30, "starting")  # there is nothing yet
    assert 'http-equiv="refresh"' in page(tmp_path) and "starting" in page(tmp_path)
    report.write(30, 30, None)
    assert "refresh" not in page(tmp_path) and "step 30 of 30" in page(tmp_path)


def test_health_has_a_row_a_class(tmp_path):
    add_lines(tmp_path, [health(100, road=0.9, sky=0.2), health(200, road=0.95, bus=0.0)])
    Report(tmp_path).write(200, 300, "")
    root = parse(page(tmp_path))
    (rows,) = (t for t in root.iter("table") if "last accepted at step" in text(t))
    found = [[text(cell) for cell in row] for row in rows.iter("tr")]
    # sky was not predicted any more
    assert found[1:] == [["road", "95.0", "200"], ["sky", "–", "100"], ["bus", "0.0", "never"]]
    (bars,) = (f for f in root.iter("figure") if f.get("class") == "bars")
    shown = [text(line) for line in bars.iter("dd")]
    assert shown == ["50.0", "60.0", "70.0", "30.0", "40.0", "30.0", "20.0", "0.0", "0.0"]


def test_a_run_of_any_length_has_a_page_of_bounded_size(tmp_path):
    """And it is the same whether it was followed or is read at the end, as by a run that was resumed."""
    rng = np.random.default_rng(0)
    followed, sizes = Report(tmp_path), []
    for thousand in range(1, 15):
        steps = range(50 * 1000 * (thousand - 1) + 50, 50 * 1000 * thousand + 50, 50)
        add_lines(tmp_path, [{"step": s, "a_x": s / 7e5, "a_y": rng.normal()} for s in steps])
        add_preview(tmp_path, thousand * 50_000)
        for more in range(1, 4):
            add_preview(tmp_path, thousand * 50_000 - more)
        followed.write(50_000 * thousand, 700_000, None)
        sizes.append(len(page(tmp_path)))
    assert max(sizes) < 100_000
    body = re.sub("<footer>.*?</footer>", "", page(tmp_path))
    Report(tmp_path).write(700_000, 700_000, None)
    assert re.sub("<footer>.*?</footer>", "", page(tmp_path)) == body
    lines = values_of(parse(body))
    assert all(POINTS <= len(line[0]) <= 2 * POINTS for line in lines)
    x = np.array(lines[0][0])
    assert x[:, 1] == pytest.approx(x[:, 0] / 7e5, abs=2e-3) and x[-1, 0] > 690_000
    sources = [image.get("src") for image in parse(body).iter("img")]
    assert len(sources) == PREVIEWS and len(set(sources)) == PREVIEWS
    assert sources[0] == "previews/0700000.png" and sources[-1] == "previews/0049997.png"


def test_curves_keep_the_mean():
    curve, values = Curve(), np.random.default_rng(1).normal(size=12_345)
    for step, value in enumerate(values):
        curve.add(step, value)
    line, joined = curve.line(), 16  # 12,345 / 16 = 771 full blocks and one of 9 values
    assert len(line) == 772
    for i, (step, value) in enumerate(line):
        block = range(len(values))[i * joined : (i + 1) * joined]
        assert step == pytest.approx(np.mean(block)) and value == pytest.approx(values[block].mean())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_a_browser_opens_it_from_disk_with_its_previews(tmp_path):
    add_lines(tmp_path, [health(step, road=0.9, sky=0.2) | {"ce_day": 1 / step} for step in range(10, 100, 10)])
    add_preview(tmp_path, 50, "navy")
    add_preview(tmp_path, 90, (200, 30, 60))
    Report(tmp_path).write(90, 100, "2 steps/s, 5 s left")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1000", (tmp_path / "index.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    with Image.open(tmp_path / "page.png") as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    for color in [(200, 30, 60), (0, 0, 128)]:  # the previews, beside the curves
        rows, columns = np.nonzero(np.abs(shown - color).max(-1) < 12)
        assert len(rows) > 4000 and columns.min() > 550, color
    rows, columns = np.nonzero(np.abs(shown - (0, 114, 178)).max(-1) < 12)
    assert columns.min() < 200
    assert cells(page(tmp_path))[1][0] == "road"
