"""The processes of one command: how they start, and what they tell each other. Tensors go through Accelerate."""

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
    # on CPUs: it waits for the slowest process however long, and fails at once if a process has ended
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def gathered(value) -> list:
    """The `value` of every process, in order of rank. Raises `RunError` if one of them has ended."""
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
    """If a process raises `InputError` in this block, all processes end, and the first that raised it says why."""
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
    """This process's even share of the items for which `missing(item)`, and how many of them there are in all."""
    rank, world = _rank(), len(gathered(None))
    found = gathered([item for item in items[rank::world] if missing(item)])
    missing_items = sorted(item for part in found for item in part)
    return missing_items[rank::world], len(missing_items)


def leave() -> None:
    """Disconnect from the other processes: one that is still connected when Python ends may abort (1 in 20 did)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def make_accelerator(precision: str, **settings) -> Accelerator:
    """Start Accelerate: device, processes, precision ("auto": the launcher's, else bf16 on a GPU that has it)."""
    gpu = torch.accelerator.is_available()
    if precision == "auto":
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or ("bf16" if bf16 else "no")
    # without a GPU, Accelerate would take each of torchrun's processes for the only one
    accelerator = Accelerator(mixed_precision=precision, cpu="LOCAL_RANK" in os.environ and not gpu, **settings)
    console.quiet = not accelerator.is_main_process
    # connects the processes: from now on, if one ends, the others do not wait for it
    if (processes := len(gathered(None))) > 1:
        say(f"{processes} processes")
    return accelerator
