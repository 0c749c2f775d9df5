"""What a person sees: lines, tables, and progress with rate and time left. Plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line on standard output (of the first process only: see `Run`)."""
    console.print(text, markup=False)


def warn(text: str) -> None:
    """One line on standard error."""
    if not console.quiet:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "12 min", "3 h 20 min", "9 d 4 h"."""
    seconds = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds} s"


class Meter:
    """Shows how far a loop has come, how fast it goes and when it ends.

    `cost(i)` is what item i costs, in any unit: where later items are dearer, the time left says so from the start.
    """

    def __init__(self, total: int, first: int, unit: str, every: int, cost: Callable[[int], float] = lambda i: 1.0):
        self.total, self.done, self.first, self.unit, self.every = total, first, first, unit, every
        self.cost, self.spent = cost, 0.0
        self.left = sum(cost(i) for i in range(first, total))
        self.started = time.monotonic()
        self.text = ""
        self.bar = None
        if console.is_terminal and not console.quiet:
            columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=total, completed=first, text="")

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception):
        if self.bar:
            self.bar.stop()
        if self.done > self.first and exception[0] is None:
            say(f"{self.done - self.first:,} {self.unit} in {duration(time.monotonic() - self.started)}")

    def advance(self, count: int = 1) -> None:
        """Count items as done. The first is timed apart: it warms caches up and says little of the rest."""
        for i in range(self.done, self.done + count):
            self.left -= self.cost(i)
            self.spent += self.cost(i) if self.done > self.first else 0
        self.done += count
        if self.done == self.first + count:
            self.warm = time.monotonic()
        elapsed = time.monotonic() - (self.warm if self.spent else self.started)
        seconds_left = self.left * elapsed / (self.spent or self.cost(self.first))
        rate = (self.done - self.first - (count if self.spent else 0)) / max(elapsed, 1e-9)
        speed = f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s per {self.unit[:-1]}"
        text = f"{speed}, {duration(seconds_left)} left"
        if self.bar:
            self.bar.update(self.task, completed=self.done, text=f"{text}  {self.text}")
        elif self.done in (self.first + 5, self.first + 20) or self.done % self.every == 0 or self.done == self.total:
            say(f"{self.done:,}/{self.total:,} {self.unit}  {text}  {self.text}".rstrip())


def counted(items: Iterable, total: int, unit: str) -> Iterator:
    """Go through `items` under a `Meter`."""
    with Meter(total, 0, unit, every=max(20, total // 5)) as meter:
        for item in items:
            yield item
            meter.advance()


def show(table: Table) -> None:
    """A table; where no terminal bounds it, as in a file, as wide as it needs to be."""
    paper = console if console.is_terminal else Console(width=1000, quiet=console.quiet)
    paper.print(table)
