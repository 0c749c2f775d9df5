"""Kill commands at random moments and start them again after each kill. At the end compare their files, byte for byte,
with those of a command that nobody disturbed.

    python examples/kill.py [--kills 200] [--seed 0] [--folder DIR] [COMMAND …]

The networks are small, the streets are drawn, and everything runs on the CPU. The imports alone take seconds, so one
process imports everything and the commands run in its children. Three of eight kills are `kill -9`: at any moment,
while a file is being written, just after. SIGTERM and SIGHUP come at any moment, and these and SIGINT as the command
starts.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file

from daynight.data.formats import open_image
from daynight.demo import streets

SMALL = "--size native --crop 32 --batch-size 2 --steps 10 --save-every 2 --log-every 3 --precision no"
COMMANDS = {
    "translate-train": "translate-train --day ../day --night ../night --out out --width 4 --blocks 1 --history 3 "
    f"--feature-network test_resnet --feature-weights random --feature-layer layer1 {SMALL}",
    "seg-train": "seg-train --ssl --rho 0.01,0.05 --day ../day --night ../night --translator darken --out out "
    f"--backbone test_resnet --backbone-weights random --head-width 8 {SMALL}",
    "translate": "translate --in ../day --model ../translate-train-model --out out",
    "audit": "translate --in ../day --model ../translate-train-model --out out --audit ../seg-train-model",
    "predict": "predict --in ../night --model ../seg-train-model --out out",
    "eval": "eval --dataset ../day --split train --model ../seg-train-model --save out --json out/scores.json",
}
EARLY = 0.3  # seconds, in which a command starts
KILLS = (
    ("at any moment", signal.SIGKILL),
    ("as it starts", signal.SIGTERM),
    ("while something is written", signal.SIGKILL),
    ("at any moment", signal.SIGHUP),
    ("as it starts", signal.SIGINT),
    ("just after", signal.SIGKILL),
    ("as it starts", signal.SIGHUP),
    ("at any moment", signal.SIGTERM),
)


# a server loads torch and all of daynight first; the commands are its children
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([f"daynight.{name}" for name in ("cli", "translation", "segmentation", "evaluation")])


def command_line(words: list[str], folder: Path, log: Path, first) -> None:
    """Run in a child: `first()`, if given, then the command as typed in `folder`, in its own process group."""
    import torch

    from daynight.cli import main

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would raise an error before `main` has one
    os.setsid()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    os.chdir(folder)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    sys.argv = ["daynight", *words]
    if first:
        first()
    main()


def start(line: str, folder: Path, log: str = "log", first=None) -> multiprocessing.process.BaseProcess:
    """Start the command line as a process in `folder`; its output goes to `<folder>.<log>`."""
    folder.mkdir(exist_ok=True)
    log = folder.with_name(f"{folder.name}.{log}")
    log.touch()
    child = forks.Process(target=command_line, args=(shlex.split(line), folder, log, first))
    child.start()
    with contextlib.suppress(ProcessLookupError):
        while os.getpgid(child.pid) != child.pid:
            time.sleep(0.001)
    return child


def prepare(folder: Path) -> None:
    """Drawn streets in day/ and night/, and models that were trained for a step."""
    for name, night in (("day", False), ("night", True)):
        streets.write(folder / name, 0, night, train=24, val=6, size=(32, 64))
    for command in ("translate-train", "seg-train"):
        child = start(COMMANDS[command].replace("--steps 10", "--steps 1"), folder / "first")
        child.join()
        (folder / "first/out").rename(folder / f"{command}-model")


def written(out: Path) -> set[str]:
    """List the files and folders below a folder that are being written."""
    return {
        os.path.join(place, name)
        for place, folders, files in os.walk(out)
        for name in folders + files
        if name.endswith(".part")
    }


def contents(out: Path) -> dict[str, object]:
    """Read every file below a folder. For safetensors these are the tensors and metadata, because their order varies;
    for a page everything except the time it was written."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy") as file:
                content = (
                    file.metadata(),
                    {name: (x.dtype, x.shape, x.tobytes()) for name, x in load_file(path).items()},
                )
        elif path.suffix == ".html":
            content = re.sub(rb"<footer>.*?</footer>", b"", content)
        found[path.relative_to(out).as_posix()] = content
    return found


def newest(out: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none. Raises AssertionError unless all files with a final
    name are complete."""
    for path in out.rglob("[!.]*.png"):
        with open_image(path) as image:
            image.load()
    checkpoints = sorted(out.glob("checkpoint-*"))
    for path in checkpoints:
        assert (path / "state.safetensors").is_file(), path
        for file in path.glob("*.safetensors"):
            load_file(file)
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    assert steps == sorted(set(steps)), steps
    return int(checkpoints[-1].name.removeprefix("checkpoint-")) if checkpoints else 0


@dataclass
class Tally:
    kills: int = 0
    writing: int = 0
    ends: int = 0
    resumed: int = 0
    wrong: list[list[str]] = field(default_factory=list)  # for each run that ended otherwise: its files that differ

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.writing} of them amid writing; {self.resumed} starts found what to go "
            f"on from; {self.ends} runs ended, {len(self.wrong)} otherwise than undisturbed"
        )


def await_moment(when: str, child, out: Path, old: set[str], took: float, chance: random.Random) -> None:
    """Return at the moment to kill the child, or when it has ended. `old`: files left half-written before it began."""
    if when in ("at any moment", "as it starts"):
        child.join(chance.uniform(0, EARLY if when == "as it starts" else took))
        return
    child.join(chance.uniform(0, took / 2))
    while child.is_alive() and not written(out) - old:
        old &= written(out)
    while child.is_alive() and when == "just after" and written(out):
        pass
    time.sleep(chance.uniform(0, 0.003))


def differing(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Return the names of the files that differ. The second newest checkpoint may be of another step, as a training
    saves one upon a signal."""
    wrong = {name for name in wanted | found if wanted.get(name) != found.get(name)}
    kept = sorted({name.split("/")[0] for name in found if name.startswith("checkpoint-")})
    both = {name for name in wrong if name in wanted and name in found}
    return sorted(name for name in wrong if not name.startswith("checkpoint-") or name in both or name[:18] in kept[1:])


def kill(command: str, kills: int, folder: Path, seed: int = 0) -> Tally:
    """Kill `command` `kills` times and continue it each time. When it has ended, start it from the beginning."""
    line, chance, tally = COMMANDS[command], random.Random(seed), Tally()
    undisturbed, disturbed = folder / f"{command}-undisturbed", folder / command
    began = time.monotonic()
    child = start(line, undisturbed)
    child.join()
    took = time.monotonic() - began
    assert child.exitcode == 0, undisturbed.with_name(f"{undisturbed.name}.log").read_text()
    out, step = disturbed / "out", 0
    wanted = contents(undisturbed / "out")
    for number, (when, how) in enumerate(itertools.cycle(KILLS)):
        last, old = tally.kills == kills, written(out)
        child = start(line, disturbed, f"{number}.log")
        if not last:
            await_moment(when, child, out, old.copy(), took, chance)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, how)
        child.join()
        output = disturbed.with_name(f"{disturbed.name}.{number}.log").read_text()
        going_on = re.search(r"going on .* at step (\d+)| ([1-9]\d*) there", output)
        tally.resumed += bool(going_on)
        assert not going_on or int(going_on[1] or 0) == step, output
        assert "Traceback" not in output, output
        if child.exitcode in (-how, 128 + how):
            tally.kills += 1
            assert child.exitcode == -how or not written(out) - old, written(out)
            tally.writing += bool(written(out) - old)
            before, step = step, newest(out)
            assert step >= before, f"{out}: its newest checkpoint was of step {before}"
        else:
            assert child.exitcode == 0, output
            tally.ends += 1
            if wrong := differing(contents(out), wanted):
                tally.wrong.append(wrong)
            if last:
                return tally
            shutil.rmtree(disturbed)
            step = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=200, help="number of kills of each command; default: 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep all files there, with the output of each start")
    given = parser.parse_args()
    unknown = set(given.commands) - COMMANDS.keys()
    if unknown:
        parser.error(f"no command {min(unknown)}; wanted: {', '.join(COMMANDS)}")
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder.resolve())
        wrong = []
        for command in given.commands or COMMANDS:
            began = time.monotonic()
            tally = kill(command, given.kills, folder.resolve(), given.seed)
            print(f"{command}: {tally}; {time.monotonic() - began:.0f} s", flush=True)
            wrong += tally.wrong
    sys.exit(f"differ: {', '.join(map(str, wrong))}" if wrong else 0)


if __name__ == "__main__":
    main()
