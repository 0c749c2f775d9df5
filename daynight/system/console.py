"""What a person sees: lines, tables, and progress with rate and time left. Plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line on standard output (of the first process only: see `Run`)."""
    console.print(text, markup=False)


def warn(text: str) -> None:
    """One line on standard error."""
    if not console.quiet:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def number(value: float | None, form: str = ".1f") -> str:
    """As in tables; "–" for what is not known."""
    return "–" if value is None else f"{value:{form}}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "12 min", "3 h 20 min", "9 d 4 h"."""
    seconds = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds} s"


class Meter:
    """Shows how far a loop has come, how fast it goes, when it ends and what it waits for.

    On a terminal a live view, else a line after 5 items and 20, so that one soon knows, and whenever `due(items done)`.
    `cost(i)` is what item i costs, in any unit: where later items are dearer, the time left says so from the start.
    `memory()` says how much is taken, in words.
    """

    def __init__(
        self,
        total: int,
        first: int,
        unit: str,
        due: Callable[[int], bool],
        cost: Callable[[int], float] = lambda i: 1.0,
        memory: Callable[[], str] = str,
    ):
        self.total, self.done, self.first, self.unit, self.due = total, first, first, unit, due
        self.cost, self.spent, self.memory = cost, 0.0, memory
        self.left = sum(cost(i) for i in range(first, total))
        self.started = self.since = time.monotonic()
        self.waited, self.images = 0.0, 0
        self.values: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.smoothed: dict[str, tuple[float, int]] = {}
        live = console.is_terminal and not console.quiet
        self.live = Live(get_renderable=self.view, console=console, transient=True) if live else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception):
        if self.live:
            self.live.stop()
        if self.done > self.first and exception[0] is None:
            say(f"{self.done - self.first:,} {self.unit} in {duration(time.monotonic() - self.started)}")

    def waiting(self, seconds: float, images: int) -> None:
        """The data of an item, so many images, took so long to come."""
        self.waited, self.images = self.waited + seconds, self.images + images

    def show(self, values: dict[str, float]) -> None:
        """What to show beside: named values; the live view also smooths them, over some ten such calls."""
        for name, value in values.items():
            before, count = self.smoothed.get(name, (0.0, 0))
            self.smoothed[name] = before + (value - before) / min(10, count + 1), count + 1
        # new dicts: the live view reads them in a thread of its own
        self.values, self.last = values, self.last | values

    def advance(self) -> None:
        """Count an item as done. The first is timed apart: it warms caches up and says little of the rest."""
        self.left -= self.cost(self.done)
        if self.done == self.first:
            self.since, self.waited, self.images = time.monotonic(), 0.0, 0
        else:
            self.spent += self.cost(self.done)
        self.done += 1
        soon = self.done - self.first in (5, 20)
        if not self.live and (soon or self.due(self.done) or self.done == self.total):
            values = [f"{name} {value:.3g}" for name, value in self.values.items()]
            say("  ".join([f"{self.done:,}/{self.total:,} {self.unit}", self.status(), *values]))

    def status(self) -> str:
        """Speed and what is waited for, in one line."""
        return ", ".join(filter(None, [self.speed(), self.waits()]))

    def speed(self) -> str:
        """ "2.31 steps/s, 18.5 images/s, 5 h 52 min left, 3.2 GiB of memory"."""
        if self.done == self.first:
            return "starting"
        elapsed = self._elapsed()
        rate, images = max(1, self.done - self.first - 1) / elapsed, self.images / elapsed
        parts = [f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / rate:.3g} s per {self.unit[:-1]}"]
        parts += [f"{images:.3g} images/s"] * bool(self.images)
        parts.append(f"{duration(self.left * elapsed / (self.spent or self.cost(self.first)))} left")
        return ", ".join(filter(None, [*parts, self.memory()]))

    def waits(self) -> str:
        """ "waits 4 % for data, 96 % for compute", where it was told of data."""
        if not self.images or self.done == self.first:
            return ""
        data = round(100 * min(1.0, self.waited / self._elapsed()))
        return f"waits {data} % for data, {100 - data} % for compute"

    def _elapsed(self) -> float:
        """Seconds since the first item, or of it where there is no other yet."""
        return max(1e-9, time.monotonic() - (self.since if self.spent else self.started))

    def view(self) -> Group:
        """A bar, the rate, and a table of the values, in two groups where there is the width."""
        count = f"{self.done:,}/{self.total:,} {self.unit}, {self.done / max(1, self.total):.0%}"
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(self.total, self.done), count)
        parts = [bar, Text(self.speed()), *[Text(self.waits())] * bool(self.waits())]
        if last := self.last:
            groups = 2 if console.width >= 100 and len(last) > 4 else 1
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for _ in range(groups):
                table.add_column("")
                table.add_column("smoothed", justify="right")
                table.add_column("last", justify="right")
            cells = [(name, f"{self.smoothed[name][0]:.4g}", f"{x:.4g}") for name, x in last.items()]
            rows = -(-len(cells) // groups)
            for i in range(rows):
                table.add_row(*(text for row in cells[i::rows] for text in row))
            parts.append(table)
        return Group(*parts)


def counted(items: Iterable, total: int, unit: str) -> Iterator:
    """Go through `items` under a `Meter`."""
    every = max(20, total // 5)
    with Meter(total, 0, unit, lambda done: done % every == 0) as meter:
        for item in items:
            yield item
            meter.advance()


def show(table: Table) -> None:
    """A table; where no terminal bounds it, as in a file, as wide as it needs to be."""
    paper = console if console.is_terminal else Console(width=1000, quiet=console.quiet)
    paper.print(table)
