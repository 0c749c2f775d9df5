"""`demo`: the complete method in minutes, on drawn street scenes. It calls the functions behind the commands."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from daynight import segmentation, translation
from daynight.config import DemoOptions, EvalOptions, SegTrainOptions, TranslateOptions, TranslateTrainOptions
from daynight.data.formats import open_image
from daynight.data.images import save_image
from daynight.data.labels import Classes
from daynight.demo import streets
from daynight.evaluation import scoring
from daynight.inference.folders import claimed
from daynight.inference.tiles import segment
from daynight.inference.translate import translate
from daynight.models.deeplab import DeepLabV2
from daynight.models.hub import load_model
from daynight.reports.previews import grid, label_image
from daynight.system.console import duration, say
from daynight.system.files import write_json
from daynight.system.processes import gathered, make_accelerator

ROWS = {"baseline": {"train_on": "day"}, "cyclegan+fl+day": {"train_on": "both"}, "ssl": {"ssl": True}}
# much smaller than in the paper, for a few minutes on a CPU; random weights, so that nothing is downloaded
TRANSLATOR = {
    "steps": 800, "width": 16, "blocks": 2, "gan": "lsgan", "lr": 3e-4, "lr_drop": 0.6, "ema_decay": 0.98,
    "feature_network": "vgg11", "feature_layer": ["features.7"], "feature_weights": "random",
}  # fmt: skip
SEGMENTATION = {
    "steps": 400, "batch_size": 8, "flip": True, "lr": 2e-3, "ema_decay": 0.98, "lambda_ssl": "10,20", "ssl_start": 0.3,
    "backbone": "test_resnet", "backbone_weights": "random", "head_width": 64,
}  # fmt: skip


def demo(options: DemoOptions) -> None:
    """Draw day and night streets, train small networks, score them; write `results.json` and `panel.png`."""
    accelerator, started, out = make_accelerator(options.precision), time.monotonic(), Path(options.out)
    with claimed(out, "demo.json", {"seed": options.seed}, accelerator):
        say(f"the method on drawn streets, seed {options.seed}: labelled day, unlabelled night, in {out}")
        results = run_all(options, out / "data", out / "runs", accelerator)
        if accelerator.is_main_process:
            write_json(out / "results.json", results)
            draw_panel(out / "data", out / "runs", out / "panel.png", accelerator)
    say(f"\n{duration(time.monotonic() - started)}, seed {options.seed}. Look at {out / 'panel.png'}.")
    say("With your own images, DAY with labels and NIGHT without: the commands above, and seg-train with --ssl.")


def run_all(options: DemoOptions, data: Path, runs: Path, accelerator) -> list[dict]:
    """The commands of the method, one after the other. Returns the entries of `results.json`."""
    if accelerator.is_main_process:
        streets.write(data / "streets", options.seed, night=False, train=40, val=40, extra=110)
        streets.write(data / "streets_dark", options.seed, night=True, train=150, val=40)
    gathered(None)
    shared = {"seed": options.seed, "precision": options.precision, "data_root": str(data), "debug": options.debug}
    training = shared | {"day": "streets", "night": ["streets_dark"], "size": "64", "crop": "64x128", "log_every": 100}

    say("\n1. learn to translate day into night: daynight translate-train --day DAY --night NIGHT")
    translation.train(TranslateTrainOptions(out=str(runs / "day2night"), **TRANSLATOR, **training))
    say("\n2. translate the labelled day images: daynight translate --in DAY --out DAY_night")
    translate(TranslateOptions(in_="streets", out=str(data / "streets_night"), model=str(runs / "day2night"), **shared))
    for i, (row, settings) in enumerate(ROWS.items(), 3):
        say(f"\n{i}. train a segmentation network, {row}: daynight seg-train --day DAY --night NIGHT")
        segmentation.train(SegTrainOptions(out=str(runs / row), **settings, **SEGMENTATION, **training))

    say("\n6. score them by day and by night: daynight eval --dataset DAY")
    models, sets = [str(runs / row) for row in ROWS], {"streets": "day", "streets_dark": "night"}
    results = scoring.evaluate(EvalOptions(model=models, dataset=list(sets), **shared))
    return [x | {"row": Path(x["model"]).name, "dataset": sets[Path(x["dataset"]).name]} for x in results]


def draw_panel(data: Path, runs: Path, path: Path, accelerator) -> None:
    """day | translated | night | truth | baseline | ssl, for scenes that no training has seen."""
    classes = Classes(*zip(*streets.CLASSES, strict=True))

    def images(folder: str) -> list[Image.Image]:
        return [open_image(data / folder / f"{i:05d}.png") for i in range(4)]

    columns = {
        "labelled day": images("streets/images/val"),
        "its translation": images("streets_night/images/val"),
        "real night": images("streets_dark/images/val"),
        "truth": [label_image(np.asarray(label), classes) for label in images("streets_dark/labels/val")],
    }
    for row, caption in (("baseline", "before: day labels alone"), ("ssl", "after: the full method")):
        model = load_model(str(runs / row), "teacher", "--model", DeepLabV2).to(accelerator.device)
        results = segment(model, columns["real night"], model.config["size"], None, accelerator)
        columns[caption] = [label_image(labels.cpu().numpy(), classes) for _, _, labels, _ in results]
    save_image(grid(list(map(list, zip(*columns.values(), strict=True))), list(columns)), path)
