"""The state of a training in safetensors files, nested and without pickle, and the models that it produces."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from daynight.models.hub import save_model
from daynight.reports.record import numbered
from daynight.system.console import warn
from daynight.system.errors import InputError, RunError
from daynight.system.files import marked, read_json, replace, sync
from daynight.system.processes import gathered

PREFIX = "checkpoint-"


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by the number of steps done, the oldest first."""
    found = numbered(folder, PREFIX).items()
    return {steps: path for steps, path in found if path.is_dir() and not path.is_symlink()}


def left_in(folder: Path) -> str:
    """What remains of a run that fails, as the end of an error's line."""
    found = list(checkpoints_in(folder).values())
    return f"; the newest checkpoint is {found[-1]}" if found else "; there is no checkpoint yet"


@contextmanager
def writing(folder: Path, step: int):
    """Raise `RunError` naming what remains when a file cannot be written: a full disk, a folder that is gone."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"--out {folder}: cannot be written to at step {step:,} ({error}){left_in(folder)}") from error


class Checkpoint:
    """Saves and restores everything that a training changes; writes its products beside.

    `parts`: what is the same in all processes, by name: anything with `state_dict` and `load_state_dict`, or None.
    `local`: the same for what each process has of its own. `products`: the models to write to a subfolder of that name.
    `best`: a `Best`, whose weights go to `best/<product>`. `describe(folder, steps)` follows the files of each product.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        products: dict[str, torch.nn.Module],
        describe: Callable[[Path, int], None],
        best=None,
        local: dict | None = None,
        **parts,
    ):
        self.folder, self.accelerator, self.products, self.describe = folder, accelerator, products, describe
        self.best, self.local = best, local or {}
        self.parts = {name: part for name, part in {**parts, "best": best}.items() if part is not None}
        self.local_file = f"process-{accelerator.process_index}.safetensors"

    def restore(self, total: int = 0) -> tuple[int, dict, dict]:
        """Load the newest whole checkpoint: the number of steps done, and what `save` was given beside.

        (0, {}, {}) where the run begins. Raises `InputError` where there are checkpoints and none is whole: beginning
        again would overwrite what is left; and where the name of one up to step `total` is taken by something else.
        """
        found, named = gathered((checkpoints_in(self.folder), numbered(self.folder, PREFIX)))[0]
        for steps in named.keys() - found.keys():
            if max(found, default=0) < steps <= total:
                raise InputError(f"--out {self.folder}: {named[steps].name} is no folder of this run; move it away")
        for path in reversed(found.values()):
            problem = None
            try:
                step, values, page = self._load(path)
            except Exception as error:  # whatever a damaged file leads to
                problem = " ".join(str(error).split()) or type(error).__name__
            # where one process cannot read a checkpoint, no process goes on from it
            problem = next(filter(None, gathered(problem)), None)
            if not problem:
                return step, values, page
            warn(f"{path} is not whole ({problem}): trying the one before")
        if found:
            raise InputError(f"--out {self.folder}: none of its checkpoints is whole; give another to begin again")
        return 0, {}, {}

    def _load(self, path: Path) -> tuple[int, dict, dict]:
        states, extra = read_state(path / "state.safetensors", self.parts)
        # with more processes than before, the new ones begin with nothing of their own
        if self.local and self.accelerator.process_index < extra["processes"]:
            states |= read_state(path / self.local_file, self.local)[0]
        for name, state in states.items():
            (self.parts | self.local)[name].load_state_dict(state)
        return extra["step"], extra["values"], read_json(path / "page.json") if (path / "page.json").exists() else {}

    def save(self, step: int, values: dict[str, torch.Tensor], page: dict | None = None) -> None:
        """Write `checkpoint-<step>` under another name, flush it to disk and rename it; the newest two are kept.

        `values`, `page`: of `Log.state`. Raises `RunError`, and writes nothing, where a weight is no longer a number.
        """
        for name, model in self.parts.items():
            if isinstance(model, torch.nn.Module) and any(p.isnan().any() for p in model.parameters()):
                what = f"weights of {name} are nan after step {step:,}"
                raise RunError(f"{what}{left_in(self.folder)}; a lower --lr may help")
        final = self.folder / f"{PREFIX}{step:07d}"
        part = self.folder / marked(final.name)
        main = self.accelerator.is_main_process
        with writing(self.folder, step):
            if main:
                part.mkdir()
            gathered(None)
            try:
                if self.local:
                    save_state(part / self.local_file, self.local, {})
                if main:
                    if page:
                        replace(part / "page.json", lambda temporary: temporary.write_text(json.dumps(page)))
                    extra = {"step": step, "processes": self.accelerator.num_processes}
                    save_state(part / "state.safetensors", self.parts, extra, values)
                gathered(None)
                if main:
                    for path in (self.folder / "metrics.jsonl", part):
                        if path.exists():
                            sync(path)
                    shutil.rmtree(final, ignore_errors=True)
                    os.rename(part, final)
                    sync(self.folder)
                    self.tidy(step)
            finally:
                if main:
                    shutil.rmtree(part, ignore_errors=True)

    def tidy(self, step: int) -> None:
        """Leave the newest two checkpoints up to this step, and write the products as they are now."""
        found = checkpoints_in(self.folder)
        kept = [steps for steps in found if steps <= step][-2:]
        for steps, old in found.items():
            if steps not in kept:
                # rename it before deleting, so that a half-deleted checkpoint is never loaded
                part = old.with_name(marked(old.name))
                os.rename(old, part)
                shutil.rmtree(part)
        for name, model in self.written().items():
            save_model(model, self.folder / name)
            self.describe(self.folder / name, step if name in self.products else self.best.step)

    def written(self) -> dict[str, torch.nn.Module]:
        """The models that are written, by their folder in the run's: the products and their best."""
        best = self.best.models if self.best else {}
        return self.products | {f"best/{name}": model for name, model in best.items()}

    def bytes_when_full(self) -> tuple[int, int]:
        """What one checkpoint takes on disk, of all processes, and what the products take."""
        checkpoint = sum(map(size_of, self.parts.values()))
        checkpoint += sum(map(size_of, self.local.values())) * self.accelerator.num_processes
        models = sum(map(size_of, self.products.values()))
        # the best weights are another copy of the products, in the checkpoint too
        return (checkpoint + models, 2 * models) if self.best and self.best.measure != "none" else (checkpoint, models)


def pack(state, path: str, tensors: dict):
    """A nested state as JSON; its tensors go into `tensors` under their path."""
    if isinstance(state, torch.Tensor):
        tensors[path] = state.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(state, dict):
        return {"dict": [[key, pack(value, f"{path}.{key}", tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return {"list": [pack(value, f"{path}.{i}", tensors) for i, value in enumerate(state)]}
    return {"value": state}


def unpack(packed, tensors):
    """The inverse of `pack`; `tensors(path)` gives a tensor."""
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors(content)
    if kind == "dict":
        return {key: unpack(value, tensors) for key, value in content}
    if kind == "list":
        return [unpack(value, tensors) for value in content]
    return content


def save_state(path: Path, parts: dict, extra: dict, values: dict | None = None) -> None:
    tensors = {}
    packed = {name: pack(part.state_dict(), name, tensors) for name, part in parts.items()}
    packed["values"] = pack(values or {}, "values", tensors)  # as JSON they would outgrow the header
    metadata = {"state": json.dumps(packed), "extra": json.dumps(extra)}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_state(path: Path, parts: dict) -> tuple[dict, dict]:
    """The state of every part in a file of `save_state`, by name, and what was saved as `extra` and `values`.

    safetensors refuses a file that is shorter than its header says, so a file cut at any byte is recognised.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        packed = json.loads(metadata["state"])
        states = {name: unpack(packed[name], file.get_tensor) for name in parts}
        # a file without this part has the values in `extra`
        values = unpack(packed.get("values", {"dict": []}), file.get_tensor)
        return states, {"values": values} | json.loads(metadata["extra"])


def size_of(part) -> int:
    """Bytes of the tensors in what has a `state_dict`; of one that fills up (`filled`, 0 to 1) when it is full."""
    tensors = {}
    pack(part.state_dict(), "", tensors)
    return round(sum(tensor.nbytes for tensor in tensors.values()) / (getattr(part, "filled", 1) or 1))
