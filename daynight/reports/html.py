"""HTML pages that open from disk and load nothing from elsewhere.

Every function returns `Html`: pass it to another function, or to `page`, which returns the document. Any other string
is text and is escaped.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from html import escape
from itertools import count, groupby
from numbers import Integral
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from daynight.system import __version__

# Okabe and Ito, "Color Universal Design" (2008); violet replaces their yellow and black, which a theme would hide
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (112, 64, 200)]
STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))


class Html(str):
    """Markup. A string of any other class is text."""


def tag(name: str, /, *parts: Html | str, **attributes: object) -> Html:
    """An element. `class_` stands for the attribute "class"; an attribute that is None is left out."""
    given = {key.strip("_"): escape(str(value)) for key, value in attributes.items() if value is not None}
    start = "".join([f"<{name}", *(f' {key}="{value}"' for key, value in given.items()), ">"])
    inside = "".join(part if isinstance(part, Html) else escape(part) for part in parts)
    return Html(f"{start}{inside}</{name}>" if name != "img" else start)


def joined(parts: Sequence[Html | str]) -> Html:
    """Parts below each other. A text becomes a paragraph."""
    return Html("\n".join(part if isinstance(part, Html) else tag("p", part) for part in parts))


def page(title: str, *parts: Html | str, refresh: int | None = None) -> Html:
    """A document. Two or more sections are listed at its top. `refresh`: seconds after which it reloads itself."""
    body, number = joined(parts), count(1)
    titles = re.findall("<section><h2>([^<]*)</h2>", body)
    body = re.sub("<section>(?=<h2>)", lambda _: f'<section id="s{next(number)}">', body)
    links = [tag("a", Html(text), href=f"#s{i}") for i, text in enumerate(titles, 1)]
    contents = tag("nav", *links) if len(links) > 1 else ""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    name, made = f"daynight {__version__}", datetime.now().astimezone()
    reloads = f"; reloads itself every {refresh} s" if refresh else ""
    return Html(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{tag("title", title)}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{name}"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">"
        f"{again}<style>\n{STYLE}</style></head>\n<body><header>{tag('h1', title)}</header>{contents}\n"
        f"<main>{body}</main>\n<footer>Written by {name} on {made:%Y-%m-%d at %H:%M}{reloads}.</footer>"
        f"<script>\n{SCRIPT}</script></body></html>\n"
    )


def section(title: str, *parts: Html | str) -> Html:
    """Parts under a heading."""
    return tag("section", tag("h2", title), joined(parts))


def strip(title: str, *parts: Html | str) -> Html:
    """Parts side by side, as many in a row as fit. When one of its images is enlarged, → and ← show the others."""
    return tag("div", *[tag("h3", title)] * bool(title), tag("div", joined(parts)), class_="strip")


def beside(*columns: Sequence[Html | str]) -> Html:
    """Columns of parts, side by side if the window is wide enough."""
    return tag("div", *(tag("div", joined(column)) for column in columns), class_="beside")


def table(header: Sequence[str], rows: Sequence[Sequence[Html | str | float | None]], caption: str = "") -> Html:
    """A table; a click on a header sorts it. Floats get one decimal; None and NaN are shown as "–".

    A header of two lines, "group\\nname", starts a group of columns, which ends before the next such header.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    kinds = ["text" if any(map(is_text, column)) else "number" for column in columns]
    names = [text.split("\n", 1) for text in header]
    starts = [i for i, name in enumerate(names) if len(name) == 2]
    groups = [tag("td", colspan=starts[0])] if starts and starts[0] else []
    for start, end in zip(starts, [*starts, len(header)][1:], strict=True):
        groups.append(tag("th", names[start][0], scope="colgroup", colspan=end - start))
    heads = [tag("th", name[-1], scope="col", class_=kind, tabindex=0) for name, kind in zip(names, kinds, strict=True)]
    body = [[tag("td", cell(value), class_=kind) for value, kind in zip(row, kinds, strict=True)] for row in rows]
    return chart("values", caption, grid([groups, heads] if groups else [heads], body))


def legend(colors: dict[str, tuple[int, int, int]]) -> Html:
    """Names (of classes, for example) with their colours, RGB from 0 to 255."""
    entries = [tag("li", tag("i", style=f"background:{css(color)}"), name) for name, color in colors.items()]
    return tag("ul", *entries, class_="legend")


def bars(classes: Sequence[str], series: dict[str, Sequence[float | None]], title: str) -> Html:
    """One bar for each class and run. `series`: run → one value for each class, in percent (0 to 100) or None."""
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(series)}
    groups = []
    for name, *values in zip(classes, *series.values(), strict=True):
        lines = [
            tag("dd", tag("i", style=f"width:{value or 0:.2f}%;background:{css(color)}"), cell(value), title=run)
            for value, (run, color) in zip(map(finite, values), colors.items(), strict=True)
        ]
        groups.append(tag("div", tag("dt", name), *lines))
    return chart("bars", title, legend(colors), tag("dl", *groups))


def heatmap(matrix: np.ndarray, names: Sequence[str], title: str, axes=("truth", "prediction")) -> Html:
    """Pixel counts, C×C or C×(C+1) integers, shown as percent of their row. Rows are the truth and columns the
    prediction, or what `axes` calls them.

    Column C+1 counts pixels that got none of the C classes. A share below 0.5 % is left blank. The pointer over a cell
    shows its number of pixels.
    """
    columns, rows = [*names, "none of them"][: np.shape(matrix)[1]], []
    corner = tag("td", f"{axes[1]} →", Html("<br>"), f"{axes[0]} ↓", class_="corner")
    for i, (name, row) in enumerate(zip(names, np.asarray(matrix), strict=True)):
        cells, pixels = [tag("th", name, scope="row")], row.sum()
        for j, (column, n) in enumerate(zip(columns, row, strict=True)):
            share = n / pixels if pixels else 0.0
            shown = (f"{100 * share:.0f}" if share >= 0.005 else "") if pixels else "–"
            color = "rgb({} {} {}/{:.2f})".format(*PALETTE[0 if i == j else 3], share)
            says = {"style": f"background:{color}", "title": f"{name}, predicted {column}: {n:,} pixels"}
            cells.append(tag("td", shown, class_="dark" if share > 0.6 else None, **says))
        rows.append(cells)
    return chart("heatmap", title, grid([[corner, *(tag("th", tag("span", c), scope="col") for c in columns)]], rows))


def figure(image: Image.Image, caption: str, width: int = 640) -> Html:
    """An image inside the page, at most `width` pixels wide. Label images keep their exact colours."""
    image = image.convert("RGB")
    few_colors = image.getcolors(128) is not None
    if image.width > width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.NEAREST if few_colors else Image.Resampling.LANCZOS)
    content, kind = io.BytesIO(), "png" if few_colors else "jpeg"
    image.save(content, kind, optimize=True, quality=85)  # PNG ignores the quality
    return framed(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", image.size, caption)


def linked(path: str, size: tuple[int, int], caption: str) -> Html:
    """An image that stays in its own file. `path` is relative to the page; `size` is its width and height."""
    return framed(quote(path), size, caption, loading="lazy")


def framed(source: str, size: tuple[int, int], caption: str, loading: str | None = None) -> Html:
    image = tag("img", src=source, width=size[0], height=size[1], alt=caption, tabindex=0, loading=loading)
    return tag("figure", image, tag("figcaption", caption), class_="image")


def curves(series: dict[str, Sequence[tuple[float, float | None]]], title: str) -> Html:
    """Lines through all (step, value), with the last value in the legend. None, NaN and infinity leave a gap."""
    lines = {name: [(step, finite(value)) for step, value in line] for name, line in series.items()}
    steps = [step for line in lines.values() for step, _ in line] or [0]
    values = [value for line in lines.values() for _, value in line if value is not None] or [0]
    levels, left, right = ticks(min(values), max(values)), min(steps), max(max(steps), min(steps) + 1)
    x = partial(np.interp, xp=(left, right), fp=(0, 1000))
    y = partial(np.interp, xp=(levels[0], levels[-1]), fp=(1000, 0))
    paths, last = [], {}
    for i, (name, line) in enumerate(lines.items()):
        parts = groupby(line, lambda point: point[1] is not None)
        pieces = [list(zip(*part, strict=True)) for known, part in parts if known]
        drawn = ["L".join(map("{:.1f},{:.1f}".format, x(steps), y(values))) for steps, values in pieces]
        # h0 draws a dot for a point without neighbours; one without other pieces would still hardly be seen
        path = "".join(f"M{piece}" + "h0" * ("L" not in piece) for piece in drawn)
        color, point = PALETTE[i % len(PALETTE)], "point" if len(drawn) == 1 and "L" not in path else None
        dash = {"stroke-dasharray": "6 4"} if i >= len(PALETTE) else {}
        paths.append(tag("path", tag("title", name), d=path, stroke=css(color), class_=point, **dash))
        last[f"{name}  {pieces[-1][1][-1]:.4g}" if pieces else f"{name}  –"] = color
    labels = [tag("b", tag("i", f"{value:,.10g}"), style=f"top:{y(value) / 10:.2f}%") for value in levels]
    across = [step for step in ticks(left, right) if left <= step <= right and step % 1 == 0]
    labels += [tag("u", f"{step:,.10g}", style=f"left:{x(step) / 10:.2f}%") for step in across]
    frame = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "role": "img", "aria-label": title}
    plot = tag("div", *labels, tag("svg", *paths, **frame), class_="plot")
    return chart("curves", title, legend(last), plot, tag("p", "step", class_="axis"))


def chart(kind: str, title: str, *content: Html) -> Html:
    return tag("figure", *[tag("figcaption", title)] * bool(title), *content, class_=kind)


def grid(head: list[list[Html]], body: list[list[Html]]) -> Html:
    """Rows of cells as a table, which scrolls if the window is narrower."""
    top, rest = (joined([tag("tr", *cells) for cells in rows]) for rows in (head, body))
    return tag("div", tag("table", tag("thead", top), tag("tbody", rest)), class_="wide")


def css(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def cell(value: Html | str | float | None) -> Html | str:
    if isinstance(value, str | Integral):
        return value if isinstance(value, str) else f"{value:,}"
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def is_text(value: Html | str | float | None) -> bool:
    """Whether a cell is no number, to align and to sort it. "39.1 to 43.0", "41.2 ± 0.8" and "" are numbers."""
    return isinstance(value, Html) or bool(re.search(r"[^\d\s.,+±%−–-]", cell(value).replace(" to ", "")))


def ticks(low: float, high: float) -> list[float]:
    """At most 7 equally spaced round numbers. The first is at most `low`, the last at least `high`."""
    if math.isclose(low, high):
        low, high = low - (abs(low) or 1) / 2, high + (abs(low) or 1) / 2
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if math.ceil(high / (unit * k)) - math.floor(low / (unit * k)) <= 6)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
