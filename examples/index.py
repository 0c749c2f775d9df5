"""Whether the index that `seg-train` finds on night images without a label tells how good a teacher is there.

    python examples/index.py [--out DIR] [--seeds N] [--steps N]    # on drawn streets
    python examples/index.py --day D --night D --dataset LABELLED-NIGHT --config FILE [-- MORE OPTIONS OF SEG-TRAIN]
    python examples/index.py --runs RUN…                            # that were trained with --validate-on

Trains short runs that differ, each with `--validate-on` a labelled night set, and compares at every validation what was
measured without night labels (`daynight/validation.py`) with the true mIoU. Stopped, the same line goes on. Prints a
table and writes index.json. For each measure, with a 95 % interval by resampling whole runs (checkpoints of one run are
no independent draws):

all: Spearman's rank correlation over the checkpoints of all runs. within: its mean over runs, on which hangs how well
  `best` is chosen in a run. gain: true mIoU of the checkpoint that would be chosen, minus that of the last; mean over
  runs.
"step" stands for choosing the last, "truth" for the best that could be chosen.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from daynight.config import SegTrainOptions
from daynight.demo import streets
from daynight.system.errors import InputError
from daynight.system.files import read_json, write_json

MEASURES = ("index", "night_agreement", "night_flip", "night_scale", "night_mask", "day_miou", "day_accuracy", "step")
# row: options of seg-train, and what --lr is multiplied by
ROWS = {
    "baseline": (["--train-on", "day"], 1),
    "darken+day": (["--train-on", "both", "--translator", "darken"], 1),
    "ssl without translation": (["--train-on", "day", "--ssl"], 1),
    "fourier+ssl": (["--translator", "fourier", "--ssl"], 1),
    "darken+ssl": (["--translator", "darken", "--ssl"], 1),
    "darken+ssl, lr × 4": (["--translator", "darken", "--ssl"], 4),
}


def train(row: str, seed: int, given: argparse.Namespace, config: Path) -> Path:
    """The finished run of a row. Ends this program where the training fails."""
    options, factor = ROWS[row]
    lr = factor * read_json(config).get("lr", SegTrainOptions.lr)
    run = given.out / f"{row}-{seed}"
    every = ["--validate-every", given.every, "--log-every", given.every, "--save-every", 10 * given.every]
    words = ["--config", config, "--day", given.day, "--night", given.night, "--out", run, "--seed", seed, *every]
    words += ["--validate-on", given.dataset, "--keep-best", "index", "--lr", lr]
    words += [*options, *(["--steps", given.steps] if given.steps else []), *given.options]
    code = subprocess.run([sys.executable, "-m", "daynight", "seg-train", *map(str, words)]).returncode
    if code:
        sys.exit(code)
    return run


def checkpoints(run: Path, classes: list[str]) -> dict[str, np.ndarray]:
    """Each measure, and "truth", at the validations of a run. Raises `InputError` where it has none."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    lines = [line for line in lines if "validate_on_miou" in line]
    if len(lines) < 2:
        raise InputError(f"{run}: wanted: a run of seg-train with at least 2 validations and --validate-on DATASET")
    found = {name: np.array([line[name] for line in lines]) for name in MEASURES if all(name in line for line in lines)}
    truth = [
        np.mean([line[f"validate_on/{c}"] for c in classes]) if classes else line["validate_on_miou"] for line in lines
    ]
    return found | {"truth": np.array(truth)}


def ranks(values: np.ndarray) -> np.ndarray:
    """From 0; equal values share the mean of theirs."""
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them is constant and tells nothing."""
    a, b = (ranks(x) - ranks(x).mean() for x in (a, b))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else 0.0


def gain(run: dict, measure: str) -> float:
    return float(run["truth"][run[measure].argmax()] - run["truth"][-1])


def compare(runs: list[dict], samples: int = 1000) -> list[dict]:
    """A row for each measure: value and interval of "all", "within" and "gain"."""

    def figures(drawn: list[dict], name: str) -> tuple[float, float, float]:
        pooled = spearman(*(np.concatenate([run[key] for run in drawn]) for key in (name, "truth")))
        within = [run["within"][name] for run in drawn]
        return pooled, np.mean(within), np.mean([run["gain"][name] for run in drawn])

    names = [name for name in (*MEASURES, "truth") if all(name in run for run in runs)]
    for run in runs:
        run["within"] = {name: spearman(run[name], run["truth"]) for name in names}
        run["gain"] = {name: gain(run, name) for name in names}
    chance, rows = np.random.default_rng(0), []
    draws = [[runs[i] for i in chance.integers(len(runs), size=len(runs))] for _ in range(samples)]
    for name in names:
        ends = np.percentile([figures(drawn, name) for drawn in draws], [2.5, 97.5], axis=0)
        columns = zip(("all", "within", "gain"), figures(runs, name), ends.T.tolist(), strict=True)
        rows.append({"measure": name} | {key: [float(value), *interval] for key, value, interval in columns})
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| measure | all | within | gain |", "|---|---|---|---|"]
    for row in rows:
        cells = [f"{value:.2f} [{low:.2f} to {high:.2f}]" for value, low, high in list(row.values())[1:]]
        lines.append(f"| {row['measure']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, help="compare these, train none")
    parser.add_argument("--out", type=Path, default=Path("runs/index"), help="default: %(default)s")
    parser.add_argument("--day", type=Path, help="with labels; default: drawn streets")
    parser.add_argument("--night", type=Path)
    parser.add_argument("--dataset", type=Path, help="labelled night images; default: the drawn night's val split")
    parser.add_argument("--config", type=Path, help="of seg-train, JSON with lr; default: the demo's")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--every", type=int, default=20, help="steps between validations; default: %(default)s")
    parser.add_argument("--classes", nargs="+", default=[], help="whose IoU is averaged; default: all labelled ones")
    parser.add_argument("options", nargs="*", help="further options of seg-train, after --")
    given = parser.parse_args()
    runs, config = given.runs, given.config
    if not runs:
        given.out.mkdir(parents=True, exist_ok=True)
        if not given.day:
            given.day, given.night = given.out / "streets", given.out / "streets_dark"
            streets.write(given.day, 0, night=False, train=40, val=40)
            streets.write(given.night, 0, night=True, train=150, val=80)
        given.dataset = given.dataset or given.night
        if not config:
            from daynight.demo.demo import SEGMENTATION  # brings all of the package

            config = given.out / "config.json"
            write_json(config, SEGMENTATION | {"size": "64", "crop": "64x128"})
        runs = [train(row, seed, given, config) for seed in range(given.seeds) for row in given.rows]
    try:
        rows = compare([checkpoints(run, given.classes) for run in runs])
    except InputError as error:
        print(f"index.py: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "index.json", {"runs": list(map(str, runs)), "measures": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
