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
from html import escape
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from daynight import __version__

# Okabe and Ito, "Color Universal Design" (2008); violet replaces their yellow and black, which a theme would hide
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (112, 64, 200)]
STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))


class Html(str):
    """Markup. A string of any other class is text."""


def page(title: str, *parts: Html | str, refresh: int | None = None) -> Html:
    """A document. Two or more sections are listed at its top. `refresh`: seconds after which it reloads itself."""
    body, number = joined(parts), count(1)
    titles = re.findall("<section><h2>([^<]*)</h2>", body)
    body = re.sub("<section>(?=<h2>)", lambda _: f'<section id="s{next(number)}">', body)
    links = "".join(f'<a href="#s{i}">{text}</a>' for i, text in enumerate(titles, 1))
    contents = f"<nav>{links}</nav>" if len(titles) > 1 else ""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    name, made = f"daynight {__version__}", datetime.now().astimezone()
    reloads = f"; reloads itself every {refresh} s" if refresh else ""
    return Html(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{name}"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">"
        f"{again}<style>\n{STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1></header>{contents}\n"
        f"<main>{body}</main>\n<footer>Written by {name} on {made:%Y-%m-%d at %H:%M}{reloads}.</footer>"
        f"<script>\n{SCRIPT}</script></body></html>\n"
    )


def section(title: str, *parts: Html | str) -> Html:
    """Parts under a heading. A text becomes a paragraph."""
    return Html(f"<section><h2>{escape(title)}</h2>\n{joined(parts)}</section>\n")


def strip(title: str, *parts: Html | str) -> Html:
    """Parts side by side, as many in a row as fit. When one of its images is enlarged, → and ← show the others."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return Html(f'<div class="strip">{heading}<div>{joined(parts)}</div></div>\n')


def beside(*columns: Sequence[Html | str]) -> Html:
    """Columns of parts, side by side if the window is wide enough."""
    return Html(f'<div class="beside">{"".join(f"<div>{joined(column)}</div>" for column in columns)}</div>\n')


def table(header: Sequence[str], rows: Sequence[Sequence[Html | str | float | None]], caption: str = "") -> Html:
    """A table; a click on a header sorts it. Floats get one decimal; None and NaN are shown as "–".

    A header of two lines, "group\\nname", starts a group of columns, which ends before the next such header.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    kinds = ["number" if all(map(is_number, column)) else "text" for column in columns]
    names = [text.split("\n", 1) for text in header]
    starts = [i for i, lines in enumerate(names) if len(lines) == 2]
    groups = [f'<td colspan="{starts[0]}"></td>'] if starts and starts[0] else []
    for start, end in zip(starts, [*starts, len(header)][1:], strict=True):
        groups.append(f'<th scope="colgroup" colspan="{end - start}">{escape(names[start][0])}</th>')
    heads = [
        f'<th scope="col" class="{kind}" tabindex="0">{escape(lines[-1])}</th>'
        for lines, kind in zip(names, kinds, strict=True)
    ]
    lines = [[f'<td class="{kind}">{cell(value)}</td>' for value, kind in zip(row, kinds, strict=True)] for row in rows]
    return chart("values", caption, grid([groups, heads] if groups else [heads], lines))


def legend(colors: dict[str, tuple[int, int, int]]) -> Html:
    """Names (of classes, for example) with their colours, RGB from 0 to 255."""
    entries = "".join(f'<li><i style="background:{css(color)}"></i>{escape(n)}</li>' for n, color in colors.items())
    return Html(f'<ul class="legend">{entries}</ul>')


def bars(classes: Sequence[str], series: dict[str, Sequence[float | None]], title: str) -> Html:
    """One bar for each class and run. `series`: run → one value for each class, in percent (0 to 100) or None."""
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(series)}
    groups = []
    for name, *values in zip(classes, *series.values(), strict=True):
        lines = "".join(
            f'<dd title="{escape(run)}"><i style="width:{value or 0:.2f}%;background:{css(color)}"></i>'
            f"{cell(value)}</dd>"
            for value, (run, color) in zip(map(finite, values), colors.items(), strict=True)
        )
        groups.append(f"<div><dt>{escape(name)}</dt>{lines}</div>")
    return chart("bars", title, legend(colors) + f"<dl>{''.join(groups)}</dl>")


def heatmap(
    matrix: np.ndarray, names: Sequence[str], title: str, axes: tuple[str, str] = ("truth", "prediction")
) -> Html:
    """Pixel counts, C×C or C×(C+1) integers, shown as percent of their row. Rows are the truth and columns the
    prediction, or what `axes` calls them.

    Column C+1 counts pixels that got none of the C classes. A share below 0.5 % is left blank. The pointer over a cell
    shows its number of pixels.
    """
    matrix = np.asarray(matrix)
    columns = [*names, "none of them"][: matrix.shape[1]]
    heads = [f'<td class="corner">{escape(axes[1])} →<br>{escape(axes[0])} ↓</td>']
    heads += [f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns]
    rows = []
    for i, (name, row, pixels) in enumerate(zip(names, matrix, matrix.sum(1), strict=True)):
        cells = [f'<th scope="row">{escape(name)}</th>']
        for j, (column, n) in enumerate(zip(columns, row, strict=True)):
            share = n / pixels if pixels else 0.0
            shown = (f"{100 * share:.0f}" if share >= 0.005 else "") if pixels else "–"
            color = "{} {} {}".format(*PALETTE[0 if i == j else 3])
            dark = ' class="dark"' if share > 0.6 else ""
            cells.append(
                f'<td{dark} style="background:rgb({color}/{share:.2f})" '
                f'title="{escape(name)}, predicted {escape(column)}: {n:,} pixels">{shown}</td>'
            )
        rows.append(cells)
    return chart("heatmap", title, grid([heads], rows))


def figure(image: Image.Image, caption: str, width: int = 640) -> Html:
    """An image inside the page, at most `width` pixels wide. Label images keep their exact colours."""
    image = image.convert("RGB")
    few_colors = image.getcolors(128) is not None
    if image.width > width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.NEAREST if few_colors else Image.Resampling.LANCZOS)
    content, kind = io.BytesIO(), "png" if few_colors else "jpeg"
    image.save(content, kind, optimize=True, **({} if few_colors else {"quality": 85}))
    return framed(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", image.size, caption)


def linked(path: str, size: tuple[int, int], caption: str) -> Html:
    """An image that stays in its own file. `path` is relative to the page; `size` is its width and height."""
    return framed(escape(quote(path)), size, caption, ' loading="lazy"')


def framed(source: str, size: tuple[int, int], caption: str, attribute: str = "") -> Html:
    """An image over its caption."""
    return Html(
        f'<figure class="image"><img src="{source}" width="{size[0]}" height="{size[1]}"{attribute} '
        f'alt="{escape(caption)}" tabindex="0"><figcaption>{escape(caption)}</figcaption></figure>\n'
    )


def curves(series: dict[str, Sequence[tuple[float, float | None]]], title: str) -> Html:
    """Lines through (step, value), with the last value in the legend. None, NaN and infinity leave a gap.

    Every point is drawn: the caller keeps their number small.
    """
    lines = {name: [(step, finite(value)) for step, value in line] for name, line in series.items()}
    steps = [step for line in lines.values() for step, _ in line] or [0]
    values = [value for line in lines.values() for _, value in line if value is not None] or [0]
    left, right = min(steps), max(max(steps), min(steps) + 1)
    levels = ticks(min(values), max(values))
    bottom, top = levels[0], levels[-1]
    paths, last = [], {}
    for i, (name, line) in enumerate(lines.items()):
        color, path, pen = PALETTE[i % len(PALETTE)], "", "M"
        for step, value in line:
            if value is None:
                pen = "M"
                continue
            x, y = 1000 * (step - left) / (right - left), 1000 * (top - value) / (top - bottom)
            # h0 draws a dot for a point without neighbours
            path, pen = path + f"{pen}{x:.1f},{y:.1f}" + "h0" * (pen == "M"), "L"
        dash = ' stroke-dasharray="6 4"' if i >= len(PALETTE) else ""
        # a single point would hardly be seen
        wide = ' class="point"' if path.count("M") == 1 and "L" not in path else ""
        paths.append(f'<path d="{path}" stroke="{css(color)}"{dash}{wide}><title>{escape(name)}</title></path>')
        ends = [value for _, value in line if value is not None]
        last[f"{name}  {ends[-1]:.4g}" if ends else f"{name}  –"] = color
    across = [step for step in ticks(left, right) if left <= step <= right and step % 1 == 0]
    labels = [f'<b style="top:{100 * (top - v) / (top - bottom):.2f}%"><i>{v:,.10g}</i></b>' for v in levels]
    labels += [f'<u style="left:{100 * (s - left) / (right - left):.2f}%">{s:,.10g}</u>' for s in across]
    return chart(
        "curves",
        title,
        f'{legend(last)}<div class="plot">{"".join(labels)}<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(title)}">{"".join(paths)}</svg></div><p class="axis">step</p>',
    )


def joined(parts: Sequence[Html | str]) -> str:
    return "".join(part if isinstance(part, Html) else f"<p>{escape(part)}</p>\n" for part in parts)


def chart(kind: str, title: str, content: str) -> Html:
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return Html(f'<figure class="{kind}">{caption}{content}</figure>\n')


def grid(head: list[list[str]], body: list[list[str]]) -> str:
    """Rows of cells as a table, which scrolls if the window is narrower."""
    top, rest = ("\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows) for rows in (head, body))
    return f'<div class="wide"><table><thead>{top}</thead>\n<tbody>{rest}</tbody></table></div>'


def css(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def cell(value: Html | str | float | None) -> str:
    if isinstance(value, Html):
        return value
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, Real):
        return "–" if math.isnan(value) else f"{value:.1f}"
    return "–" if value is None else escape(value)


def is_number(value: Html | str | float | None) -> bool:
    """Whether a cell is aligned and sorted as a number. "39.1 to 43.0", "41.2 ± 0.8" and "" are."""
    if isinstance(value, str):
        return not isinstance(value, Html) and bool(re.fullmatch(r"([\d\s.,+±%−–-]|\bto\b)*", value))
    return True


def ticks(low: float, high: float) -> list[float]:
    """At most 7 equally spaced round numbers. The first is at most `low`, the last at least `high`."""
    if math.isclose(low, high):
        low, high = low - (abs(low) or 1) / 2, high + (abs(low) or 1) / 2
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if math.ceil(high / (unit * k)) - math.floor(low / (unit * k)) <= 6)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
