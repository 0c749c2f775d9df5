"""What a person sees: lines, tables, and progress with rate and time left. Without a terminal all are plain lines."""

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

# names of classes, files and options may hold square brackets and colons
PLAIN = {"highlight": False, "markup": False, "emoji": False}
console = Console(soft_wrap=True, **PLAIN)


class Stream(io.TextIOWrapper):
    """Standard output or error that never fails: a letter that its encoding lacks becomes "?", and what nobody reads,
    or what fits on no disk, is dropped."""

    def write(self, text: str) -> int:
        try:
            super().write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        discard(self.fileno())  # also what is buffered, which Python would try to write at its end
        if error.errno != errno.EPIPE and self is sys.stdout:
            warn(f"standard output: {error.strerror}; going on without it")


def discard(descriptor: int) -> None:
    """Let what is written to a file descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def open_streams() -> None:
    """Make a `Stream` of standard output and of standard error."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # the shell has closed it; the next file to be opened would take its place
            discard(number)
            setattr(sys, name, Stream(open(number, "wb", closefd=False), line_buffering=True))
        elif type(stream) is io.TextIOWrapper:  # a test's or a notebook's stays as it is
            lines = stream.line_buffering or number == 2
            setattr(sys, name, Stream(stream.buffer, stream.encoding, "replace", line_buffering=lines))


def plain(text: str) -> str:
    """Text in which nothing can move a terminal's cursor or change its colours: "\\x1b" for ESC."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """One line on standard output. Only the first process prints: `make_accelerator` makes the others quiet."""
    console.print(plain(text))


def warn(text: str) -> None:
    """One line on standard error."""
    if not console.quiet:
        print(f"warning: {plain(text)}", file=sys.stderr, flush=True)


def number(value: float | None, form: str = ".1f") -> str:
    """A number as text; "–" if it is not known."""
    return "–" if value is None else f"{value:{form}}"


def duration(seconds: float) -> str:
    """Seconds in the words of a person: "45 s", "12 min", "3 h 20 min", "9 d 4 h"."""
    seconds = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds} s"


class Meter(Progress):
    """Shows how far a loop has come, how fast it goes, when it ends and what it waits for.

    On a terminal this is a live view. Elsewhere it prints a line after 5 items, after 20, and whenever
    `due(items done)`. `cost(i)` is what item i costs, in any unit, so that the time left is right from the start if
    later items cost more. `memory()` says in words how much memory is taken. `slow(seconds)`: what to say beside the
    first time that is left.
    """

    def __init__(
        self, total: int, first: int, unit: str, due: Callable, cost=lambda i: 1.0, memory=str, slow=lambda seconds: ""
    ):
        self.total, self.done, self.first, self.unit, self.due, self.slow = total, first, first, unit, due, slow
        self.cost, self.spent, self.memory = cost, 0.0, memory
        self.left = sum(cost(i) for i in range(first, total))
        self.started = self.since = time.monotonic()
        self.waited, self.images, self.values = 0.0, 0, {}
        count = TextColumn("{task.completed:,}/{task.total:,} {task.description}, {task.percentage:.0f}%", markup=False)
        settings = {"console": console, "transient": True, "expand": True, "refresh_per_second": 4}
        super().__init__(BarColumn(None), count, disable=console.quiet or not console.is_interactive, **settings)
        self.bar = self.add_task(unit, total=total, completed=first)

    def __exit__(self, *exception):
        super().__exit__(*exception)
        if self.done > self.first and exception[0] is None:
            say(f"{self.done - self.first:,} {self.unit} in {duration(time.monotonic() - self.started)}")

    def waiting(self, seconds: float, images: int) -> None:
        """Count the seconds that the data of an item, so many images, took to come."""
        self.waited, self.images = self.waited + seconds, self.images + images

    def show(self, values: dict[str, float]) -> None:
        """Show named values, until others are given."""
        self.values = {plain(name): value for name, value in values.items()}

    def advance(self) -> None:
        """Count an item as done. The first is timed apart: it warms caches up and says little about the others."""
        self.left -= self.cost(self.done)
        if self.done == self.first:
            self.since, self.waited, self.images = time.monotonic(), 0.0, 0
        else:
            self.spent += self.cost(self.done)
        self.done += 1
        self.update(self.bar, completed=self.done)
        told = self.done - self.first in (5, 20) or self.due(self.done) or self.done == self.total
        slow = self.slow(self.seconds_left()) if told else ""
        if self.disable and told:
            values = [f"{name} {value:.3g}" for name, value in self.values.items()] * (self.done < self.total)
            say("  ".join([f"{self.done:,}/{self.total:,} {self.unit}", self.status() + slow, *values]))
        elif slow:
            say(f"{self.status()}{slow}")
        if told:
            self.slow = lambda seconds: ""

    def elapsed(self) -> float:
        return max(1e-9, time.monotonic() - (self.since if self.spent else self.started))

    def seconds_left(self) -> float:
        return self.left * self.elapsed() / (self.spent or self.cost(self.first))

    def status(self, separator: str = ", ") -> str:
        """ "2.31 steps/s, 18.5 images/s, 5 h 52 min left, 3.2 GiB of memory, waits 4 % for data, 96 % for compute"; the
        last two after `separator`, and only if `waiting` was called."""
        if self.done == self.first:
            return "starting"
        elapsed = self.elapsed()
        rate = max(1, self.done - self.first - 1) / elapsed
        parts = [f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / rate:.3g} s per {self.unit[:-1]}"]
        parts += [f"{self.images / elapsed:.3g} images/s"] * bool(self.images)
        parts.append(f"{duration(self.seconds_left())} left")
        said, data = ", ".join(filter(None, [*parts, self.memory()])), round(100 * min(1.0, self.waited / elapsed))
        return said + f"{separator}waits {data} % for data, {100 - data} % for compute" * bool(self.images)

    def get_renderables(self) -> Iterator[RenderableType]:
        """The live view: a bar, what `status` says, and the values in as many columns as fit."""
        yield from super().get_renderables()
        yield Text(self.status("\n"))
        values = [Text(f"{name} {value:.4g}") for name, value in self.values.items()]
        yield Columns(values, padding=(0, 4), column_first=True)


def counted(items: Iterable, total: int, unit: str) -> Iterator:
    """Go through `items` under a `Meter`."""
    every = max(20, total // 5)
    with Meter(total, 0, unit, lambda done: done % every == 0) as meter:
        for item in items:
            yield item
            meter.advance()


def show(table: Table) -> None:
    """Print a table. In a file, where no terminal bounds it, it is as wide as it needs to be."""
    paper = console if console.is_terminal else Console(width=1000, quiet=console.quiet, **PLAIN)
    paper.print(table)
