"""A training's page, `index.html` in its folder: previews over time beside the curves of metrics.jsonl."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from daynight.data.formats import open_image
from daynight.reports import html as page
from daynight.reports.record import parsed, previews_in
from daynight.reports.words import meaning
from daynight.system.files import write_text

PREVIEWS = 24  # on the page, of however many there are
POINTS = 500  # of a curve, at least, where there are as many
LINES = 7  # of a chart, at most
REFRESH = 30  # seconds
# what `TeacherHealth` measures of each class, and the words for it
MIXES = {"labelled": "day labels", "predicted": "predicted at night", "learned": "accepted at night"}
HEALTH = {"accepted", *MIXES}


class Curve:
    """Steps and values; of a long curve, the means of as many neighbours each, at most 2 × `POINTS` in all."""

    def __init__(self, points=(), block=(), joined: int = 1, last=(0, 0.0)):
        self.points, self.block, self.joined, self.last = [*points], [*block], joined, last

    def add(self, step: int, value: float) -> None:
        self.last = step, value
        self.block.append(self.last)
        if len(self.block) == self.joined:
            self.points.append(mean(self.block))
            self.block = []
            if len(self.points) == 2 * POINTS:
                self.points = [mean(pair) for pair in zip(self.points[::2], self.points[1::2], strict=True)]
                self.joined *= 2

    def line(self) -> list[tuple[float, float]]:
        return self.points + ([mean(self.block)] if self.block else [])


def mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return tuple(sum(values) / len(points) for values in zip(*points, strict=True))


class Report:
    """Writes the page, from what is new in metrics.jsonl each time; its size is bounded however long the run."""

    def __init__(self, folder: Path, read: int = 0, step: int = 0, curves=(), seen=()):
        self.folder, self.read, self.step = folder, read, step
        self.curves = defaultdict(Curve, {name: Curve(**curve) for name, curve in dict(curves).items()})
        self.seen = dict(seen)  # the last step at which a value was above 0

    def state(self) -> dict:
        """What it was made of and has read since, for JSON: to parse the lines of a long run again takes a minute."""
        curves = {name: vars(curve) for name, curve in self.curves.items()}
        return vars(self) | {"folder": None, "curves": curves}

    def write(self, step: int, total: int, now: str | None) -> None:
        """The page after `step` of `total` steps. Of a run that goes on it says `now`, and loads itself again; None: it
        has ended or stopped."""
        self._read()
        lines = {name: curve.line() for name, curve in self.curves.items()}
        columns = charts({name: line for name, line in lines.items() if "/" not in name}), self._previews(step)
        parts = [now or "", "Curves come with the first preview."]
        if any(columns):
            parts[1] = page.section("Curves and previews", page.beside(*filter(None, columns)))
        of_classes = {name: x for name, x in lines.items() if "/" in name and name.partition("/")[0] not in HEALTH}
        if of_classes:
            parts.append(page.section("By class", page.strip("", *charts(of_classes))))
        if any(name.startswith("accepted/") for name in lines):
            parts.append(self._health())
        title = f"{self.folder.resolve().name}: step {step:,} of {total:,}"
        text = page.page(title, *filter(None, parts), refresh=None if now is None else REFRESH)
        write_text(self.folder / "index.html", text)

    def _read(self) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        with open(path, "rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # is being written
                self.read += len(line)
                values = parsed(line)
                if values is None:
                    continue
                self.step = values.pop("step")
                for name, value in values.items():
                    if type(value) in (int, float) and abs(value) < 1e30:  # not NaN either
                        self.curves[name].add(self.step, value)
                        if value > 0:
                            self.seen[name] = self.step

    def _previews(self, step: int) -> list[page.Html]:
        """The newest first; of more than `PREVIEWS`, so many evenly spaced ones."""
        found = list(previews_in(self.folder, step).items())
        if len(found) > PREVIEWS:
            found = [found[round(i * (len(found) - 1) / (PREVIEWS - 1))] for i in range(PREVIEWS)]
        figures = []
        for n, path in reversed(found):
            # Pillow answers damaged files with exceptions of any kind
            with suppress(Exception), open_image(path) as image:
                figures.append(page.linked(f"previews/{path.name}", image.size, f"step {n:,}"))
        return figures

    def _health(self) -> page.Html:
        classes = [name.partition("/")[2] for name in self.curves if name.startswith("predicted/")]

        def percent(kind: str, name: str) -> float | None:
            """Of the newest line; None where it has none, as nothing was counted."""
            step, value = self.curves[f"{kind}/{name}"].last if f"{kind}/{name}" in self.curves else (0, 0.0)
            return 100 * value if step == self.step else None

        mix = {words: [percent(kind, name) for name in classes] for kind, words in MIXES.items()}
        rows = [[name, percent("accepted", name), self.seen.get(f"accepted/{name}", "never")] for name in classes]
        accepted = {name: c.line() for name, c in self.curves.items() if name.startswith("accepted/")}
        return page.section(
            "Health of the teacher",
            "What the teacher makes of night images, and what of it the mask of Eq. 14 lets the student learn from. "
            "A class that is rarely accepted is forgotten; one whose share grows beyond that of the day labels takes "
            "over.",
            page.beside(
                [page.bars(classes, mix, f"Share of pixels at step {self.step:,}, %")],
                [page.table(["class", "accepted of what is predicted, %", "last accepted at step"], rows)],
            ),
            page.strip("Share of each class's predictions that is accepted", *charts(accepted)),
        )


def charts(lines: dict[str, list[tuple[float, float]]]) -> list[page.Html]:
    """Curves of a few lines each, together what means the same: "ce_day" and "ce_fake_day"; or "kept/road" and
    "kept/sky", of which the legend says the classes alone. No two have one title."""
    groups = defaultdict(dict)
    for name, line in lines.items():
        groups[meaning(name)][name.partition("/")[2] or name] = line
    found = []
    for (words, unit), group in groups.items():
        parts = [list(group)[i : i + LINES] for i in range(0, len(group), LINES)]
        for i, names in enumerate(parts, 1):
            title = words + f", {unit}" * bool(unit) + f" ({i} of {len(parts)})" * (len(parts) > 1)
            found.append(page.curves({name: group[name] for name in names}, title))
    return found
