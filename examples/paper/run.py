"""Run every row of the paper's Table 1 on the real data, and print the table beside the paper's: see README.md.

Run it again to continue after a stop: trainings resume, `translate` makes the missing images, and a scored row
(OUT/results/ROW.json is there) is done.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DAYNIGHT = [sys.executable, "-m", "daynight"]
# row: its name in Table 1, its translator, the paper's mIoU and accuracy on Cityscapes and on Nighttime Driving
ROWS = {
    "baseline": ("Baseline - Daytime (CS)", None, (68.8, 94.7, 35.0, 80.0)),
    "baseline-equal-images": ("not in the paper: baseline, as many images as SSL", None, (None,) * 4),
    "cyclegan": ("CycleGAN - Day2Night (CS)", "cyclegan", (52.9, 90.9, 40.34, 84.8)),
    "cyclegan+fl": ("CycleGAN + FL - Day2Night (CS)", "cyclegan+fl", (63.7, 93.5, 44.7, 85.4)),
    "cyclegan+fl+day": (
        "CycleGAN + FL - Day2Night (CS) + Daytime (CS)",
        "cyclegan+fl",
        (67.4, 94.3, 45.1, 85.5),
    ),
    "ssl": ("SSL + CycleGAN + FL - (CS + Day2Night (CS) + DZ + BDD)", "cyclegan+fl", (68.2, 94.4, 56.5, 90.1)),
}


def run(words: list[str]) -> None:
    """Run a step. If it fails or is interrupted, the script ends with its exit status."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    process = subprocess.Popen(words)
    # a training saves before it stops, so wait for it (Ctrl-C reaches it by itself, SIGTERM does not)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    if code:
        sys.exit(code if code > 0 else 128 - code)


def table(results: Path) -> str:
    """Write Table 1 in Markdown: each value of ours followed by the paper's; "–" for a missing value."""
    columns = [f"{data} {score}" for data in ("Cityscapes", "Nighttime") for score in ("mIoU", "acc.")]
    lines = [["Method - Train Data", *(cell for column in columns for cell in (column, "paper"))]]
    for row, (name, _, papers) in ROWS.items():
        path = results / f"{row}.json"
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        ours = [round(entry[score], 1) for entry in entries for score in ("miou", "accuracy")] or [None] * 4
        pairs = zip(ours, papers, strict=True)
        lines.append([name, *("–" if value is None else str(value) for pair in pairs for value in pair)])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    rows = ([f"{line[0]:{widths[0]}}", *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder of cs, bdd, dz and nd; default: data, or DAYNIGHT_DATA's value")
    parser.add_argument("--out", default="runs/paper", type=Path, help="default: %(default)s")
    parser.add_argument(
        "--rows", nargs="*", choices=ROWS, default=list(ROWS), help="default: all; none: the table alone"
    )
    parser.add_argument(
        "--launch",
        help='command that starts the steps in several processes, such as "accelerate launch -m daynight"; '
        "the translators train on one image a step, so they run in one process",
    )
    given = parser.parse_args()
    launched = shlex.split(given.launch) if given.launch else DAYNIGHT
    out, results, translated = given.out, given.out / "results", set()

    def step(start: list[str], command: str, config: str, *words) -> None:
        root = ["--data-root", given.data_root] if given.data_root else []
        run([*start, command, "--config", str(HERE / f"{config}.json"), *root, *map(str, words)])

    todo = [row for row in given.rows if not (results / f"{row}.json").is_file()]
    if todo:  # find a missing label now, not after days of training
        step(DAYNIGHT, "eval", "eval", "--dry-run")
    for row in todo:
        _, translator, _ = ROWS[row]
        network, folder = out / f"translator-{translator}", out / f"cs_night-{translator}"
        if translator and translator not in translated:
            step(DAYNIGHT, "translate-train", network.name, "--out", network)
            step(launched, "translate", "translate", "--model", network, "--out", folder)
            translated.add(translator)
        step(launched, "seg-train", row, *["--translated", folder] * bool(translator), "--out", out / row)
        step(launched, "eval", "eval", "--model", out / row, "--json", results / f"{row}.json")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
