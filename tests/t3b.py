import json, shutil, os, subprocess, sys
import pytest, torch
from PIL import Image
from test_foreign import *
SEG = COMMANDS["seg-train"]
def show(*x): print(*x, flush=True)

def test_cache_among(home):
    from daynight.data import cache
    # JPEG caches
    import daynight.data.cache as c
    old=c.LIMIT; c.LIMIT=20000
    try:
        show(daynight(f"{SEG} --ssl --translator darken --train-on both --night dark --cache data/dark --out run", home))
        show(os.listdir(home/"data/dark"))
    finally: c.LIMIT=old

def test_out_here(home):
    show(daynight(f"{SEG.replace('--out out','')} --day . --data-root .. --out runs/seg", home/"data/day"))
    show(daynight(f"eval --dataset . --model ../../model --save scores", home/"data/day"))
    show(daynight(f"eval --dataset . --model ../../model --save images/scores", home/"data/day"))
    show(daynight(f"predict --in day/images/val/000.jpg --model model --out one", home))

def test_metrics_lost(home):
    line=f"{SEG} --steps 6 --save-every 2 --log-every 1 --out run"
    show(daynight(line,home).code)
    for p in (home/"run").glob("checkpoint*"): shutil.rmtree(p)
    shutil.rmtree(home/"run/teacher"); 
    show(os.listdir(home/"run"), len((home/"run/metrics.jsonl").read_text()))
    show(daynight(line.replace("--steps 6","--steps 2"),home)); show(len((home/"run/metrics.jsonl").read_text()), os.listdir(home/"run/previews"))

def test_tensorboard(home):
    r=daynight(f"{SEG} --log tensorboard --out run",home); show(r); 
    show([os.path.join(a,f) for a,_,fs in os.walk(home/"run") for f in fs])
    show(daynight(f"{SEG} --log tensorboard --log wandb --out run2",home));

def test_tb_place_is_file(home):
    # a fresh run, then resume where run/daynight is something else
    (home/"run").mkdir()
    line=f"{SEG} --steps 4 --save-every 2 --out run"
    show(daynight(line,home).code); shutil.rmtree(home/"run/checkpoint-0000004")
    (home/"run/daynight").write_text("x")
    show(daynight(f"{line} --log tensorboard",home))

def test_config(home):
    (home/"c.json").write_text(json.dumps({"steps":3,"ssl":True,"translator":"darken","train-on":"day"}))
    show(daynight(f"{SEG} --config c.json --out run",home))
    show(daynight(f"{SEG} --out run3",home, DAYNIGHT_SEG_TRAIN_TRANSLATED="x"))
    show(daynight(f"{SEG} --out run3",home, DAYNIGHT_SEG_TRAIN_NIGHT="a b", DAYNIGHT_SEG_TRAIN_SSL="maybe"))
    show(daynight(f"{SEG} --out run3",home, DAYNIGHT_SEG_TRAIN_STEPS="1e3"))
    show(daynight(f"{SEG} --out run3",home, DAYNIGHT_SEG_TRAIN_CONFIG="nope.json"))
    show(daynight(f"{SEG} --out run3 --dry-run",home, DAYNIGHT_SEG_TRAIN_FLIP=""))
    show(daynight(f"eval --dataset day --model model",home, DAYNIGHT_EVAL_PREDICTIONS="out"))
    show(daynight(f"eval --dataset day",home, DAYNIGHT_EVAL_MODEL="model model"))

def test_export(home):
    shutil.copytree(home/"model", home/"run/teacher")
    show(daynight("export --model run --out x.onnx",home).code)
    (home/"l.onnx").symlink_to("x.onnx")
    show(daynight("export --model run --out l.onnx",home)); show(os.path.islink(home/"l.onnx"))
    show(daynight("export --model run --out x.onnx/y.onnx",home))
    show(daynight("export --model run --out run/teacher/model.safetensors",home))
    show(daynight("export --model run --out ''",home), daynight("export --model run --out a/../../../../../../proc/x.onnx",home))
    show(daynight("export --model run --out new/",home), os.listdir(home))
    show(daynight("export --model run --out new/ --size 64",home))
    show(daynight("export --model . --out dd.onnx",home/"run"))

def test_dryrun(home):
    before=state(home/"data")
    show(daynight(f"{SEG} --dry-run --out run --cache kept --skip-unreadable --log tensorboard",home).code, (home/"run").exists(), (home/"kept").exists())
