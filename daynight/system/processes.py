"""The processes of one command: how they start, and what they tell each other. Tensors go through Accelerate."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator

from daynight.system.console import console, duration, say
from daynight.system.errors import InputError, RunError
from daynight.system.watchdog import Watchdog, at_once, insist

CONNECT, PATIENCE = 50, 30 * 60  # seconds that a process waits for the others, to connect and at the start
# ACCELERATE_…, as launchers set it, and what of it changes no result unseen; --precision goes before the first
ASKED = {"MIXED_PRECISION": ("no", "bf16", ""), "GRADIENT_ACCUMULATION_STEPS": ("1",), "DYNAMO_BACKEND": ("no",)}
ENGINES = "USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG"
ASKED |= dict.fromkeys(ENGINES, ("false", "", "0", "n", "no", "f", "off"))
INSTEAD = {"MIXED_PRECISION": " or bf16, or --precision", "DYNAMO_BACKEND": ", or --compile"}
warnings.filterwarnings("ignore", "OMP_NUM_THREADS")  # Accelerate says that it sets the number


@functools.cache
def _hosts() -> torch.distributed.ProcessGroup:
    # on CPUs: it waits for the slowest process however long, and fails at once if a process has ended
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def gathered(value) -> list:
    """The `value` of every process, in order of rank. Raises `RunError` if one of them has ended."""
    insist()
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
    with Watchdog(PATIENCE, lambda: f"another process has not moved for {duration(PATIENCE)}", stacks=False):
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


def make_accelerator(precision: str, stall: float = CONNECT, **settings) -> Accelerator:
    """Start Accelerate: device, processes, precision ("auto": the launcher's, else bf16 on a GPU that has it).

    The other processes have `CONNECT` seconds to come, or `stall` if that is less. Raises `InputError` for variables of
    a launcher that ask for what would change results, or do not fit.
    """
    asked = {name: os.environ.get(f"ACCELERATE_{name}", good[0]).strip().lower() for name, good in ASKED.items()}
    for name, value in asked.items():
        if value not in ASKED[name] and (precision == "auto" or name != "MIXED_PRECISION"):
            wanted = ASKED[name][0] + INSTEAD.get(name, "")
            raise InputError(f"ACCELERATE_{name}={value}, of a launcher or the shell: wanted: {wanted}")
    gpu = torch.accelerator.is_available()
    if precision == "auto":
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        given = "ACCELERATE_MIXED_PRECISION" in os.environ and asked["MIXED_PRECISION"]
        precision = given or ("bf16" if bf16 else "no")
    words, limit = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"), min(CONNECT, stall or CONNECT)
    launched = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(words))
    alone = f"({launched}); without a launcher, unset these"
    unmet = f"the other processes did not come within {duration(limit)} {alone}"
    with at_once(), Watchdog(limit, lambda: unmet, stacks=False):
        try:
            # without a GPU, Accelerate would take each of torchrun's processes for the only one
            accelerator = Accelerator(mixed_precision=precision, cpu="LOCAL_RANK" in os.environ and not gpu, **settings)
        except (ValueError, ImportError, torch.distributed.DistError) as error:
            raise InputError(f"a launcher's variables do not fit: {error} {alone}") from error
        console.quiet = not accelerator.is_main_process
        # connects the processes: from now on, if one ends, the others do not wait for it
        processes = len(gathered(None))
    if processes > 1:
        say(f"{processes} processes")
    return accelerator
