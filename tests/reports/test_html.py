"""The HTML that pages are made of: parsed back, against the numbers and images that went in."""

import base64
import io
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
import pytest
from PIL import Image

from daynight.reports.html import (
    PALETTE,
    Html,
    bars,
    beside,
    curves,
    figure,
    heatmap,
    legend,
    linked,
    page,
    section,
    strip,
    table,
)

VOID = {"meta", "br", "img"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Parser(HTMLParser):
    """An element tree of HTML in which every element that may be closed is closed, in order."""

    def __init__(self):
        super().__init__()
        self.builder, self.open = TreeBuilder(), []
        self.builder.start("root", {})

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag}: an attribute twice"
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)


def parse(html: str) -> Element:
    parser = Parser()
    parser.feed(html)
    parser.close()
    assert not parser.open
    parser.builder.end("root")
    return parser.builder.close()


def text(element: Element) -> str:
    return "".join(element.itertext())


def cells(html: str) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in parse(html).iter("tr")]


def percent(element: Element, name: str) -> float:
    return float(re.search(rf"{name}:([\d.]+)%", element.get("style"))[1])


def whole(name: str) -> str:
    """A page with everything in it, and `name` wherever a name can be."""
    image = Image.new("RGB", (40, 20), "navy")
    return page(
        name,
        name,
        section(name, name, table([name, f"{name}\n{name}"], [[name, 7.25], [figure(image, name), None]], name)),
        section(
            "Charts",
            legend({name: (1, 2, 3)}),
            bars([name, "sky"], {name: [1.5, None]}, name),
            heatmap(np.array([[3, 1, 0], [0, 0, 0]]), [name, "sky"], name),
            strip(name, figure(image, name), curves({name: [(0, 1.0), (1, 2.0)], "other": []}, name), name),
            beside([linked("previews/1.png", (40, 20), name)], [name]),
        ),
    )


def test_a_page_refers_to_nothing_outside():
    html = whole("plain")
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", html)
    targets = [e.get(key) for e in parse(html).iter() for key in ("src", "href", "srcset", "data") if e.get(key)]
    assert targets and all(target.startswith(("#s", "data:image/", "previews/")) for target in targets)
    policy = next(e for e in parse(html).iter("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content").startswith("default-src 'none'")


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "\"><img src=x onerror='x'>",
        "it's",
        "</style></title><b>",
        "&lt;夜",
        "<section><h2>",
    ],
)
def test_names_are_text_wherever_they_stand(name):
    def kinds(root):
        return Counter((element.tag, *sorted(element.keys())) for element in root.iter())

    def places(root, name):
        shown = [text(root), *(value for element in root.iter() for value in element.attrib.values())]
        return sum(part.count(name) for part in shown)

    plain, hostile = parse(whole("plain")), parse(whole(name))
    assert kinds(hostile) == kinds(plain)
    assert places(hostile, name) == places(plain, "plain") > 20


def test_sections_are_listed_once_there_are_several():
    root = parse(page("t", section("Day"), section("Night & day"), section("Day")))
    links = {link.get("href"): text(link) for link in root.iter("a")}
    assert links == {"#s1": "Day", "#s2": "Night & day", "#s3": "Day"}
    assert {f"#{s.get('id')}": text(s.find("h2")) for s in root.iter("section")} == links
    assert not list(parse(page("t", section("Day"))).iter("nav"))


def test_refresh():
    def again(html):
        return [e.get("content") for e in parse(html).iter("meta") if e.get("http-equiv") == "refresh"]

    assert again(page("t", refresh=30)) == ["30"]
    assert again(page("t")) == []


def test_table_shows_what_it_was_given():
    header = ["model", "nd test\nmIoU", "95 %", "dz test\nmIoU", "note"]
    rows = [
        ["runs/a", np.float32(43.26), "41.0 to 45.5", 1234567, "first"],
        ["runs/b", None, "– to –", float("nan"), 3],
        [Html("<b>x</b>"), 1.0, "", 0, ""],
    ]
    html = table(header, rows, "IoU, %")
    assert text(parse(html).find(".//figcaption")) == "IoU, %"
    assert cells(html) == [
        ["", "nd test", "dz test"],
        ["model", "mIoU", "95 %", "mIoU", "note"],
        ["runs/a", "43.3", "41.0 to 45.5", "1,234,567", "first"],
        ["runs/b", "–", "– to –", "–", "3"],
        ["x", "1.0", "", "0", ""],
    ]
    groups, names, *body = parse(html).iter("tr")
    assert [int(cell.get("colspan")) for cell in groups] == [1, 2, 2]
    for row in (names, *body):
        assert [cell.get("class") for cell in row] == ["text", "number", "number", "number", "text"]
    assert cells(table(["a", "b"], [])) == [["a", "b"]]


def test_bars_are_as_long_as_their_values():
    series = {"day": [80.0, 0.0, None], "night": [20.04, 100.0, float("nan")]}
    root = parse(bars(["road", "sky", "car"], series, "IoU, %"))
    assert [text(entry) for entry in root.iter("li")] == ["day", "night"]
    groups = root.findall(".//dl/div")
    assert [text(group.find("dt")) for group in groups] == ["road", "sky", "car"]
    for i, group in enumerate(groups):
        values = [series[run][i] for run in series]
        missing = [value is None or math.isnan(value) for value in values]
        lines = group.findall("dd")
        assert [text(line) for line in lines] == [
            "–" if none else f"{value:.1f}" for value, none in zip(values, missing, strict=True)
        ]
        widths = [percent(line.find("i"), "width") for line in lines]
        assert widths == [0 if none else value for value, none in zip(values, missing, strict=True)]
        colors = [line.find("i").get("style").split("background:")[1] for line in lines]
        assert colors == [entry.find("i").get("style").split("background:")[1] for entry in root.iter("li")]


PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("sight", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["full", "protanopia", "deuteranopia"])
def test_colours_of_runs_differ_for_colour_blind_readers(sight):
    """Seen as by Machado et al. (2009), whose matrices act on linear RGB; distances in CIELAB."""
    rgb = np.array(PALETTE) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(sight), 0, 1)
    xyz = seen @ np.transpose([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089]).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(PALETTE))
    assert distances.min() > 15, distances.round()


@pytest.mark.parametrize("void", [0, 1])
def test_heatmap_has_the_percentages_of_its_rows(void):
    names = ["road", "sky", "car", "train"]
    matrix = np.random.default_rng(0).integers(1, 1000, (4, 4 + void))
    matrix[1] = [0, 996, 4, 0, 0][: 4 + void]
    matrix[3] = 0
    head, *rows = cells(heatmap(matrix, names, "nd"))
    assert head[1:] == [*names, "none of them"][: 4 + void]
    assert [row[0] for row in rows] == names
    for i in (0, 2):
        shown = [int(cell or 0) for cell in rows[i][1:]]
        assert np.abs(np.array(shown) - 100 * matrix[i] / matrix[i].sum()).max() <= 0.5
        assert abs(sum(shown) - 100) <= len(shown) / 2
    assert rows[1][1:] == ["", "100", "", "", ""][: 4 + void]
    assert rows[3][1:] == ["–"] * (4 + void)
    body = parse(heatmap(matrix, names, "nd")).findall(".//tbody/tr")
    assert body[1][3].get("title") == "sky, predicted car: 4 pixels"
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    opacity = [[float(re.search(r"/([\d.]+)\)", cell.get("style"))[1]) for cell in row.findall("td")] for row in body]
    assert np.abs(opacity - shares).max() <= 0.0051


def image_of(html: str) -> tuple[Image.Image, Element]:
    element = parse(html).find(".//img")
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", element.get("src")).groups()
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format.lower() == kind
    assert (int(element.get("width")), int(element.get("height"))) == image.size
    return image, element


@pytest.mark.parametrize(
    "size, width, wanted", [((200, 100), 50, (50, 25)), ((30, 60), 50, (30, 60)), ((90, 1), 9, (9, 1))]
)
def test_figures_are_the_images_no_wider_than_asked(size, width, wanted):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    photograph = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    image, element = image_of(figure(photograph, "by night", width))
    assert image.size == wanted and element.get("alt") == "by night"
    expected = np.asarray(photograph.resize(wanted, Image.Resampling.BOX), float)
    assert np.abs(np.asarray(image.convert("RGB")) - expected).mean() < 12


def test_label_images_get_no_colours_between_those_of_their_classes():
    colors = np.random.default_rng(1).integers(0, 256, (19, 3), np.uint8)
    labels = Image.fromarray(colors[np.random.default_rng(2).integers(0, 19, (64, 128))])
    image, _ = image_of(figure(labels, "truth", 50))
    assert set(map(tuple, np.asarray(image).reshape(-1, 3))) <= set(map(tuple, colors))


def values_of(root: Element) -> list[list[list[tuple[float, float]]]]:
    """The points of each line of `curves`, in pieces, read off its axes as a person would."""

    def scale(tag, side):
        marks = [(percent(mark, side), float(text(mark).replace(",", ""))) for mark in root.iter(tag)]
        (p, low), (q, high) = marks[0], marks[-1]
        return lambda at: low + (at / 10 - p) * (high - low) / (q - p)

    across, along = scale("u", "left"), scale("b", "top")
    pieces = [re.findall(r"M[^M]+", path.get("d")) for path in root.iter("path")]
    pairs = re.compile(r"(-?[\d.]+),(-?[\d.]+)")
    return [[[(across(float(x)), along(float(y))) for x, y in pairs.findall(p)] for p in line] for line in pieces]


@pytest.mark.parametrize("scale, offset", [(1, 0), (0.002, 0.001), (3e5, -2e5), (0, 5), (0, 0), (0, -0.03), (1e-15, 1)])
def test_curves_can_be_read_off_their_axes(scale, offset):
    given = [(step, offset + scale * math.exp(-step / 300)) for step in range(100, 1100, 10)]
    root = parse(curves({"loss": given}, "losses"))
    [[points]] = values_of(root)
    levels = [float(text(mark).replace(",", "")) for mark in root.iter("b")]
    assert 3 <= len(levels) <= 7
    assert np.diff(levels) == pytest.approx(np.full(len(levels) - 1, levels[1] - levels[0]))
    assert levels[0] <= min(value for _, value in given) and max(value for _, value in given) <= levels[-1]
    assert [x for x, _ in points] == pytest.approx([step for step, _ in given], abs=1)
    span = levels[-1] - levels[0]
    assert [y for _, y in points] == pytest.approx([value for _, value in given], abs=span / 5000)
    assert text(root.find(".//li")) == f"loss  {given[-1][1]:.4g}"


def test_curves_with_gaps_and_of_little():
    line = [(0, 1.0), (1, None), (2, 3.0), (3, float("inf")), (4, 5.0), (5, 6.0), (6, float("nan"))]
    root = parse(curves({"a": line, "b": []}, "t"))
    assert [text(entry) for entry in root.iter("li")] == ["a  6", "b  –"]
    gaps, nothing = values_of(root)
    assert [[round(y, 6) for _, y in piece] for piece in gaps] == [[1], [3], [5, 6]] and nothing == []
    parse(curves({"one": [(7, 2.0)]}, "t"))
    parse(curves({}, "t"))


def test_pages_do_not_wait_for_torch():
    code = "import sys, daynight.reports.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_a_browser_shows_sorts_and_enlarges(tmp_path):
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8))
    rows = [["a", 43.2], ["b", None], ["c", 9.5], ["d", 1200]]
    panels = strip("row", figure(photograph, "image"), figure(photograph, "truth"))
    html = page("Night", section("Results", table(["model", "mIoU"], rows)), section("Images", panels))
    acts = "document.querySelectorAll('th')[1].click(); document.querySelectorAll('.strip img')[1].click();"
    acts += "document.querySelector('dialog img').click();"

    def browser(name, html, *options):
        (tmp_path / name).write_text(html, encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        result = subprocess.run(
            [*command, *options, (tmp_path / name).as_uri()], capture_output=True, timeout=120, check=True
        )
        return result.stdout.decode()

    browser("page.html", html, f"--screenshot={tmp_path / 'page.png'}", "--window-size=800,900")
    with Image.open(tmp_path / "page.png") as image:
        shown = np.asarray(image.convert("L"))
    assert (shown != shown[0, 0]).mean() > 0.1

    dom = browser("acts.html", html.replace("</body>", f"<script>{acts}</script></body>"), "--dump-dom")
    root = parse(dom)
    body = [[text(cell) for cell in row] for row in root.find(".//tbody")]
    assert body == [["c", "9.5"], ["a", "43.2"], ["d", "1,200"], ["b", "–"]]
    assert text(root.find(".//dialog//figcaption")) == "image"
