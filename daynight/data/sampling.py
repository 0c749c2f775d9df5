"""Which sample each place of each batch holds: a function of (seed, step, slot) and of nothing else."""

import hashlib
import multiprocessing.util
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from daynight.system.console import say, warn
from daynight.system.errors import RunError, Unreadable
from daynight.system.watchdog import SIGNALS

DRAWS = 100  # until a training gives up finding something that can be read


def generator(seed: int, step: int, slot: int | str, device="cpu") -> torch.Generator:
    """The only source of randomness: what step `step` draws for `slot`, a sample's place in the global batch (or the
    name of a draw that belongs to no sample)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{slot}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def choose(length: int, generator: torch.Generator) -> int:
    return int(torch.randint(length, (), generator=generator))


class RareClasses:
    """Rare class sampling (Hoyer et al. 2022, DAFormer): draws a class c, p(c) ∝ exp((1 - f_c) / T), where f_c is its
    share of all labelled pixels, and an image that has it.

    `counts`: pixels of each class in each image, images×classes. `temperature`: T. A class is in an image, or in a
    crop, of which at least a part of `LEAST` is it.
    """

    LEAST = 1 / 2000

    def __init__(self, counts: torch.Tensor, temperature: float):
        shares = counts.sum(0).double() / counts.sum().clamp(min=1)
        has = counts >= self.LEAST * counts.sum(1, keepdim=True).clamp(min=1)
        self.images = [column.nonzero()[:, 0] for column in has.T]
        self.chances = torch.softmax((1 - shares) / temperature, 0) * has.any(0)

    def __call__(self, generator: torch.Generator) -> tuple[int, int]:
        """An image's number and the class that it was drawn for."""
        drawn = int(torch.multinomial(self.chances, 1, generator=generator))
        return int(self.images[drawn][choose(len(self.images[drawn]), generator)]), drawn

    def in_crop(self, labels: torch.Tensor, drawn: int) -> bool:
        return bool((labels == drawn).sum() >= self.LEAST * labels.numel())


class Skipped:
    """The files that a training could not read and left out: each is said once and listed in `file`.

    A run that `resumed` adds to the list that is there.
    """

    def __init__(self, file: Path, resumed: bool):
        self.file = file
        if not resumed:
            file.unlink(missing_ok=True)
        self.lines = set(self._read())

    def _read(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.add(line)
            warn(f"skipped {line}")
            try:
                with open(self.file, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise RunError(f"{self.file}: cannot be written ({error.strerror})") from error

    def tell(self) -> None:
        """List all of them, those that other processes met too."""
        lines = sorted(set(self._read()))
        say(f"{len(lines):,} skipped that cannot be read" + f", as {self.file} lists:" * bool(lines))
        for line in lines:
            say(f"  {line}")


class Samples(Dataset):
    """`samples[step, slot]` is what `draw` makes with the generator of (seed, step, slot), and the step.

    `skip`: if a file cannot be read, draw another sample from the same generator and give a line that says why.
    """

    def __init__(self, draw: Callable[[torch.Generator, int], dict], seed: int, skip: bool):
        self.draw, self.seed, self.skip = draw, seed, skip

    def __getitem__(self, key: tuple[int, int]) -> tuple[dict, list[str]]:
        g, skipped = generator(self.seed, *key), []
        while True:
            try:
                return self.draw(g, key[0]), skipped
            except Unreadable as error:
                if not self.skip:
                    raise Unreadable(f"{error}; --skip-unreadable goes on without it") from error
                skipped.append(" ".join(str(error).split()))
                if len(skipped) == DRAWS:
                    raise Unreadable(f"{error}; so were the {DRAWS - 1} drawn before it") from error


def _collate(samples: list[tuple[dict, list[str]]]) -> tuple[dict, list[str]]:
    drawn, skipped = zip(*samples, strict=True)
    return default_collate(drawn), [line for lines in skipped for line in lines]


def _leave_signals(_worker: int) -> None:
    # what Ctrl-C and launchers send to a whole process group is for the main process: it may still need its batch
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch raises an error at each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def batches(
    draw, seed: int, steps: range, slots: range, workers: int, skipped: Skipped | None = None
) -> Iterator[dict]:
    """One batch for each step, of the samples in `slots` (those of the global batch that this process works on).

    The number of workers changes nothing. What cannot be read ends it, as `Unreadable`, or is added to `skipped`.
    Workers leave signals to this process and end with it, however it ends. Never hand this to `Accelerator.prepare`,
    which would deal it out again.
    """
    forked = {}
    if workers:
        # when this process ends, multiprocessing sends SIGTERM to those that are left, and waits for them
        multiprocessing.util.Finalize(None, _end_workers, exitpriority=1)
        # the fork server of Python 3.14 outlives a killed process, and its workers too
        forked = {"multiprocessing_context": "fork", "worker_init_fn": _leave_signals, "persistent_workers": True}
    drawn = DataLoader(
        Samples(draw, seed, skipped is not None),
        num_workers=workers,
        batch_sampler=([(step, slot) for slot in slots] for step in steps),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        **forked,
    )

    def told(item: tuple[dict, list[str]]) -> dict:
        for line in item[1]:
            skipped.add(line)
        return item[0]

    return map(told, drawn)  # which starts the workers now
