"""HTML pages that open from disk, load nothing from elsewhere, and hold what a reader compares.

Every function returns `Html`, to be given to another or to `page`, which returns the document. Any other string is text
and is escaped.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from itertools import pairwise
from numbers import Integral, Real
from urllib.parse import quote

import numpy as np
from PIL import Image

from daynight import __version__

# Okabe and Ito, "Color Universal Design" (2008), with a violet for yellow and black, which a theme would swallow
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (112, 64, 200)]


class Html(str):
    """Markup; whatever is not `Html` is text."""


def page(title: str, *parts: Html | str, refresh: int | None = None) -> Html:
    """A whole document; several sections are listed on top. `refresh`: seconds after which it loads itself again."""
    titles = []

    def numbered(match: re.Match) -> str:
        titles.append(match[1])
        return f'<section id="s{len(titles)}">{match[0].removeprefix("<section>")}'

    body = re.sub("<section><h2>([^<]*)</h2>", numbered, joined(parts))
    links = "".join(f'<a href="#s{i}">{text}</a>' for i, text in enumerate(titles, 1))
    contents = f"<nav>{links}</nav>" if len(titles) > 1 else ""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    name, made = f"daynight {__version__}", datetime.now().astimezone()
    reloads = f"; loads itself again every {refresh} s" if refresh else ""
    return Html(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{name}"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">"
        f"{again}<style>{STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1></header>{contents}\n"
        f"<main>{body}</main>\n<footer>Written by {name} on {made:%Y-%m-%d at %H:%M}{reloads}.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, *parts: Html | str) -> Html:
    """Parts under a heading; text is a paragraph."""
    return Html(f"<section><h2>{escape(title)}</h2>\n{joined(parts)}</section>\n")


def strip(title: str, *parts: Html | str) -> Html:
    """Parts side by side as far as the window is wide enough. One of its images enlarged, → and ← show the others."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return Html(f'<div class="strip">{heading}<div>{joined(parts)}</div></div>\n')


def beside(*columns: Sequence[Html | str]) -> Html:
    """Columns of parts, side by side where the window is wide enough."""
    return Html(f'<div class="beside">{"".join(f"<div>{joined(column)}</div>" for column in columns)}</div>\n')


def table(header: Sequence[str], rows: Sequence[Sequence[Html | str | float | None]], caption: str = "") -> Html:
    """A table that a click on a header sorts. Floats are shown with one decimal, None and NaN as "–".

    A header of two lines, "group\\nname", opens a group of columns that lasts until the next such header.
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
    """Name → RGB, 0 to 255, such as a data set's classes."""
    entries = "".join(f'<li><i style="background:{css(color)}"></i>{escape(n)}</li>' for n, color in colors.items())
    return Html(f'<ul class="legend">{entries}</ul>')


def bars(classes: Sequence[str], series: dict[str, Sequence[float | None]], title: str) -> Html:
    """One bar a class and run: `series` has a value in percent, 0 to 100, or None, for each of the classes."""
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
    """Pixels by truth (row) and prediction (column), or what `axes` calls them, C×C or C×(C+1) integers, as percent of
    each row's pixels.

    The column C+1 counts the pixels that were given none of the C classes. A share below 0.5 % is left blank; the
    pointer over a cell shows its pixels.
    """
    matrix = np.asarray(matrix)
    columns = [*names, "none of them"][: matrix.shape[1]]
    heads = [f'<td class="corner">{escape(axes[1])} →<br>{escape(axes[0])} ↓</td>']
    heads += [f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns]
    rows = []
    for i, (name, row, pixels) in enumerate(zip(names, matrix, matrix.sum(1), strict=True)):
        cells = [f'<th scope="row">{escape(name)}</th>']
        for j, (column, count) in enumerate(zip(columns, row, strict=True)):
            share = count / pixels if pixels else 0.0
            shown = (f"{100 * share:.0f}" if share >= 0.005 else "") if pixels else "–"
            color = "{} {} {}".format(*PALETTE[0 if i == j else 3])
            dark = ' class="dark"' if share > 0.6 else ""
            cells.append(
                f'<td{dark} style="background:rgb({color}/{share:.2f})" '
                f'title="{escape(name)}, predicted {escape(column)}: {count:,} pixels">{shown}</td>'
            )
        rows.append(cells)
    return chart("heatmap", title, grid([heads], rows))


def figure(image: Image.Image, caption: str, width: int = 640) -> Html:
    """An image inside the page, `width` pixels wide at most; label images keep their colours exactly."""
    image = image.convert("RGB")
    few_colors = image.getcolors(128) is not None
    if image.width > width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.NEAREST if few_colors else Image.Resampling.LANCZOS)
    content, kind = io.BytesIO(), "png" if few_colors else "jpeg"
    image.save(content, kind, optimize=True, **({} if few_colors else {"quality": 85}))
    data = base64.b64encode(content.getvalue()).decode()
    return Html(
        f'<figure class="image"><img src="data:image/{kind};base64,{data}" width="{image.width}" '
        f'height="{image.height}" alt="{escape(caption)}" tabindex="0"><figcaption>{escape(caption)}</figcaption>'
        "</figure>\n"
    )


def linked(path: str, size: tuple[int, int], caption: str) -> Html:
    """An image that stays in its own file: its path relative to the page, and its width and height."""
    return Html(
        f'<figure class="image"><img src="{escape(quote(path))}" width="{size[0]}" height="{size[1]}" loading="lazy" '
        f'alt="{escape(caption)}" tabindex="0"><figcaption>{escape(caption)}</figcaption></figure>\n'
    )


def curves(series: dict[str, Sequence[tuple[float, float | None]]], title: str) -> Html:
    """Lines through (step, value), with the last value in the legend; a value that is None or not finite is a gap.

    Of more than 500 points the means of 500 equal parts are drawn.
    """
    lines = {name: [(step, finite(value)) for step, value in line] for name, line in series.items()}
    drawn = {name: thinned(line) for name, line in lines.items()}
    steps = [step for line in drawn.values() for step, _ in line] or [0]
    values = [value for line in drawn.values() for _, value in line if value is not None] or [0]
    left, right = min(steps), max(max(steps), min(steps) + 1)
    levels = ticks(min(values), max(values))
    bottom, top = levels[0], levels[-1]
    paths, last = [], {}
    for i, (name, line) in enumerate(drawn.items()):
        color, path, pen = PALETTE[i % len(PALETTE)], "", "M"
        for step, value in line:
            if value is None:
                pen = "M"
                continue
            x, y = 1000 * (step - left) / (right - left), 1000 * (top - value) / (top - bottom)
            # h0 makes a dot of a point without neighbours
            path, pen = path + f"{pen}{x:.1f},{y:.1f}" + "h0" * (pen == "M"), "L"
        dash = ' stroke-dasharray="6 4"' if i >= len(PALETTE) else ""
        # a point alone would hardly be seen
        wide = ' class="point"' if path.count("M") == 1 and "L" not in path else ""
        paths.append(f'<path d="{path}" stroke="{css(color)}"{dash}{wide}><title>{escape(name)}</title></path>')
        ends = [value for _, value in lines[name] if value is not None]
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
    """Rows of cells as a table that scrolls where the window is narrower."""
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
    """Whether it is shown as a number, as are "39.1 to 43.0", "41.2 ± 0.8" and the empty text."""
    if isinstance(value, str):
        return not isinstance(value, Html) and bool(re.fullmatch(r"([\d\s.,+±%−–-]|\bto\b)*", value))
    return True


def ticks(low: float, high: float) -> list[float]:
    """At most 7 round numbers at equal distances, the first not above `low`, the last not below `high`."""
    if math.isclose(low, high):
        low, high = low - (abs(low) or 1) / 2, high + (abs(low) or 1) / 2
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if math.ceil(high / (unit * k)) - math.floor(low / (unit * k)) <= 6)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def thinned(line: list[tuple[float, float | None]], points: int = 500) -> list[tuple[float, float | None]]:
    if len(line) <= points:
        return line
    edges = [round(i * len(line) / points) for i in range(points + 1)]
    result = []
    for start, end in pairwise(edges):
        values = [value for _, value in line[start:end] if value is not None]
        step = sum(step for step, _ in line[start:end]) / (end - start)
        result.append((step, sum(values) / len(values) if values else None))
    return result


STYLE = """
:root{color-scheme:light dark;--ink:#1b1d20;--soft:#62676e;--line:#dfe2e6;--back:#fff;--shade:#f5f6f7}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6e9;--soft:#9aa0a8;--line:#33373c;--back:#15171a;--shade:#1d2024}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:80rem;padding:0 1.25rem;background:var(--back);color:var(--ink);overflow-wrap:anywhere;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:1.55rem;font-weight:600;line-height:1.25;margin:2rem 0 .75rem}
h2{font-size:1.15rem;font-weight:600;margin:2.5rem 0 .75rem}
section{scroll-margin-top:2rem}
h3,figcaption{font-size:.9rem;font-weight:600;line-height:1.35;margin:0 0 .5rem;text-align:left}
p{max-width:46rem;margin:.5rem 0 1rem}
nav{position:sticky;top:0;z-index:1;display:flex;gap:1.25rem;overflow-x:auto;white-space:nowrap;padding:.5rem 0;
background:var(--back);border-bottom:1px solid var(--line);font-size:.85rem}
a{color:var(--soft);text-decoration:none}a:hover{color:var(--ink);text-decoration:underline}
footer{margin:3rem 0 1.5rem;padding-top:.75rem;border-top:1px solid var(--line);color:var(--soft);font-size:.8rem}
figure{margin:0 0 1.75rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;overflow-wrap:normal}
.values th,.values td{padding:.3rem .7rem;text-align:left;border-bottom:1px solid var(--line)}
.values th:first-child,.values td:first-child{padding-left:0}
.values th{font-size:.85rem;font-weight:600;color:var(--soft);vertical-align:bottom}
.values [colspan]{padding-bottom:.1rem;border-bottom:0;color:var(--ink);text-align:center}
.values [scope=colgroup]{padding-left:1.7rem}
.values [tabindex]{cursor:pointer;white-space:nowrap}.values [tabindex]:hover{color:var(--ink)}
.values [aria-sort=ascending]::after{content:" ↑"}.values [aria-sort=descending]::after{content:" ↓"}
.values .number{text-align:right;white-space:nowrap}
.values td figure{margin:.2rem 0}
.values tbody tr:hover{background:var(--shade)}
.legend{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;margin:0 0 .75rem;padding:0;list-style:none;font-size:.8rem;
white-space:pre-wrap}
.legend i{display:inline-block;width:.75em;height:.75em;margin-right:.45em;border-radius:2px}
.bars dl{columns:22rem;column-gap:2.5rem;margin:0}
.bars dl>div{display:grid;grid-template-columns:7.5rem 1fr;gap:0 .6rem;break-inside:avoid;padding:.2rem 0}
.bars dt{grid-row:1/99;align-self:center;text-align:right;font-size:.85rem;line-height:1.2}
.bars dd{grid-column:2;display:flex;align-items:center;gap:.35rem;margin:0;padding-right:2.4rem;height:.95rem;
font-size:.72rem;white-space:nowrap;border-left:1px solid var(--soft)}
.bars i{flex:none;height:.75rem}
.heatmap{display:inline-block;vertical-align:top;max-width:100%;margin-right:1.4rem}
.heatmap table{font-size:.7rem}
.heatmap td{min-width:1.55rem;height:1.5rem;padding:0;text-align:center;border:1px solid var(--back)}
.heatmap .dark{color:#fff}
.heatmap th{font-weight:400;white-space:nowrap;padding:0 .5rem 0 0;text-align:right}
.heatmap th[scope=col]{padding:0 0 .35rem;text-align:left;vertical-align:bottom}
.heatmap th span{writing-mode:vertical-rl;transform:rotate(180deg);display:block;margin:auto}
.heatmap .corner{padding:0 .5rem .35rem 0;vertical-align:bottom;text-align:right;color:var(--soft);
white-space:nowrap}
.strip{margin:0 0 1.75rem}
.strip>div{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13.5rem),1fr));gap:1rem .75rem}
@media(max-width:40rem){.strip>div:has(.image){grid-template-columns:1fr 1fr}}
.strip>div:has(>.heatmap){display:flex;flex-wrap:wrap;gap:1.4rem}
.strip figure{margin:0;min-width:0}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:0 2rem}
.beside>div{min-width:0}
.image img{display:block;max-width:100%;height:auto;cursor:zoom-in;border-radius:2px}
.strip .image img{width:100%}
.image figcaption{margin:.3rem 0 0;font-size:.8rem;font-weight:400;color:var(--soft)}
.plot{position:relative;height:16rem;margin:.75rem 1.25rem 1.6rem 3.5rem}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round;vector-effect:non-scaling-stroke}
.plot .point{stroke-width:6}
.beside .plot,.strip .plot{height:11rem}
.plot b,.plot u{position:absolute;font-size:.75rem;font-weight:400;color:var(--soft);text-decoration:none;line-height:0;
white-space:nowrap}
.plot b{left:0;right:0;border-top:1px solid var(--line)}
.plot i{position:absolute;right:100%;padding-right:.6rem;font-style:normal}
.plot u{bottom:-.9rem;transform:translateX(-50%)}
.axis{margin:-.4rem 1.25rem 0 3.5rem;max-width:none;text-align:center;font-size:.75rem;color:var(--soft)}
dialog{max-width:none;max-height:none;width:100vw;height:100vh;margin:0;padding:1rem;border:0;background:var(--back);
color:var(--ink)}
dialog figure{height:100%;margin:0;display:flex;flex-direction:column}
dialog .image img{flex:1;min-height:0;width:100%;object-fit:contain;outline:0;cursor:default}
dialog .image figcaption{text-align:center;font-size:1rem}
"""

SCRIPT = """
const view = document.body.appendChild(document.createElement("dialog"));
let images = [], at = 0;
function show(i) {
  at = (i + images.length) % images.length;
  view.replaceChildren(images[at].cloneNode(true));
}
function sort(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = row => row.cells[column].textContent;
  const value = row => parseFloat(text(row).replace("\\u2212", "-").replaceAll(",", ""));
  const numeric = head.className === "number";
  const [filled, empty] = [[], []];
  for (const row of body.rows) (numeric && isNaN(value(row)) ? empty : filled).push(row);
  filled.sort((a, b) => (down ? -1 : 1) * (numeric ? value(a) - value(b) : text(a).localeCompare(text(b))));
  body.append(...filled, ...empty);
}
function press(target) {
  if (view.open) return target.matches("img") ? show(at + 1) : view.close();
  if (target.matches(".values th[tabindex]")) sort(target);
  if (!target.matches(".image img")) return;
  images = [...target.closest(".strip, main").querySelectorAll(".image")];
  show(images.indexOf(target.closest(".image")));
  view.showModal();
}
addEventListener("click", event => press(event.target));
addEventListener("keydown", event => {
  if (event.key === "Enter") press(event.target);
  if (view.open && event.key === "ArrowRight") show(at + 1);
  if (view.open && event.key === "ArrowLeft") show(at - 1);
});
"""
