#!/usr/bin/env bash
# The method against its own baseline on real photographs, on a CPU: see README.md.
# usage: examples/night/run.sh [DATA] [OUT]     (run it again to go on where it was stopped)
set -euo pipefail
data=${1:-../shared} out=${2:-runs/night}
weights=$data/weights/tf_efficientnet_lite0.safetensors
here=$(dirname "$0")

daynight translate-train --config "$here/translator.json" --day "$data/camvid_day" --night "$data/bdd" \
    --feature-weights "$weights" --out "$out/translator"
daynight translate --in "$data/camvid_day" --out "$out/camvid_day_night" --model "$out/translator"

common=(--config "$here/segmentation.json" --day "$data/camvid_day" --night "$data/bdd" --backbone-weights "$weights")
daynight seg-train "${common[@]}" --train-on day --out "$out/baseline"
daynight seg-train "${common[@]}" --ssl --translated "$out/camvid_day_night" --out "$out/full"

daynight eval --model "$out/baseline" --model "$out/full" --dataset "$data/bdd_night" --dataset "$data/bdd_day" \
    --dataset "$data/camvid_day" --json "$out/results.json" --save "$out/pictures"
python "$here/five.py" "$out/results.json"
