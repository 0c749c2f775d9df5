"""What the processes of one command tell each other, apart from tensors, which are Accelerate's."""

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator

from daynight.system.console import console, say
from daynight.system.errors import InputError, RunError


@functools.cache
def _hosts() -> torch.distributed.ProcessGroup:
    # over the CPUs: waits for no GPU, but for the slowest process however long, and fails at once where one is gone
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def gathered(value) -> list:
    """Every process's `value`, by rank, on every process. Raises `RunError` where one of them has ended."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    try:
        torch.distributed.all_gather_object(values, value, group=_hosts())
    except RuntimeError as error:
        raise RunError("another process of this command has ended; what it said is the cause") from error
    return values


@contextmanager
def together():
    """Where a process raises `InputError` in this block, all of them end, and the first that did says why."""
    refused = None
    try:
        yield
    except InputError as error:
        refused = error
    refusals = gathered(refused)
    if refused and not any(refusals[: _rank()]):
        raise refused
    if any(refusals):
        raise SystemExit(InputError.exit_code)


def share_out(items: Sequence, missing: Callable) -> tuple[list, int]:
    """This process's share of the items that are `missing`, and how many are in all: evenly, each item once."""
    rank, world = _rank(), len(gathered(None))
    found = gathered([item for item in items[rank::world] if missing(item)])
    missing_items = sorted(item for part in found for item in part)
    return missing_items[rank::world], len(missing_items)


def leave() -> None:
    """Part from the other processes; one that is still connected when Python ends may abort (1 in 20 did)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def make_accelerator(precision: str, **settings) -> Accelerator:
    """Accelerate's device, processes and precision; "auto" is the launcher's word, else bf16 on a GPU that has it."""
    gpu = torch.accelerator.is_available()
    if precision == "auto":
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or ("bf16" if bf16 else "no")
    # torchrun without a GPU: Accelerate would start every process as the only one
    accelerator = Accelerator(mixed_precision=precision, cpu="LOCAL_RANK" in os.environ and not gpu, **settings)
    console.quiet = not accelerator.is_main_process
    processes = len(gathered(None))  # connects them: from here on one that ends does not leave the others waiting
    if processes > 1:
        say(f"{processes} processes")
    return accelerator
