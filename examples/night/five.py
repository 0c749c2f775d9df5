"""Mean IoU over the five classes by which the hand-drawn labels of bdd_night and bdd_day are to be read."""

import json
import sys
from pathlib import Path

FIVE = ("sky", "building", "road", "tree", "car")

print(f"{'model':10} {'data set':10} {'five classes':>12} {'accuracy':>9}   " + " ".join(f"{name:>8}" for name in FIVE))
for entry in json.loads(Path(sys.argv[1]).read_text()):
    ious = [entry["iou"][name] or 0.0 for name in FIVE]
    names = Path(entry["model"]).name, Path(entry["dataset"]).name
    print(f"{names[0]:10} {names[1]:10} {sum(ious) / len(ious):12.1f} {entry['accuracy']:9.1f}   ", end="")
    print(" ".join(f"{value:8.1f}" for value in ious))
