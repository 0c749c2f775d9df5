"""`demo`: the complete method in minutes, on drawn street scenes. It calls the functions behind the commands."""

import time
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from daynight.adapt.stages import Stage, follow, labelled_by, scores
from daynight.config import DemoOptions, SegTrainOptions, TranslateOptions, TranslateTrainOptions
from daynight.data.formats import open_image
from daynight.data.images import save_image
from daynight.data.labels import Classes
from daynight.demo import streets
from daynight.inference.folders import claimed
from daynight.models.hub import lite
from daynight.reports.previews import sheet
from daynight.system.console import duration, say
from daynight.system.errors import InputError
from daynight.system.files import copy, read_json, write_json
from daynight.system.processes import gathered, make_accelerator

# beyond the paper: half of the classes of a crop pasted onto a night, and cross-entropy in place of Eq. 15
BEYOND = {"mix": True, "ssl_loss": "ce", "lambda_ssl": "1,1", "rho": "0.9,0.9"}
ROWS = {
    "baseline": {"train_on": "day", "steps": 400},
    "cyclegan+fl+day": {"train_on": "both"},
    "ssl": {"ssl": True, **BEYOND},
}
# much smaller than in the paper, for a few minutes on a CPU
TRANSLATOR = {
    "steps": 800, "width": 16, "blocks": 2, "gan": "lsgan", "lr": 6e-4, "lr_drop": 0.6, "ema_decay": 0.98,
    "lambda_cyc": 5.0, "lambda_feature": 2.0, "feature_network": "tf_efficientnet_lite0", "feature_weights": "lite",
    "feature_layer": ["blocks.0", "blocks.1", "blocks.2"], "validate_every": 400,
}  # fmt: skip
# what sees the translation without the extra `lite`: a network that has seen no photograph
UNSEEING = {
    "lr": 3e-4, "lambda_cyc": 10.0, "lambda_feature": 1.0, "feature_network": "vgg11", "feature_weights": "random",
    "feature_layer": ["features.7"],
}  # fmt: skip
SEGMENTATION = {
    "steps": 200, "batch_size": 8, "flip": True, "lr": 2e-3, "ema_decay": 0.98, "ssl_start": 0.1,
    "backbone": "test_resnet", "backbone_weights": "random", "head": "fuse", "head_width": 64,
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
    say("With your own images: daynight adapt --day DAY --night NIGHT --hours 3 --out RUN")


def run_all(options: DemoOptions, data: Path, runs: Path, accelerator) -> list[dict]:
    """The commands of the method, one after the other. Returns the entries of `results.json`."""
    if accelerator.is_main_process:
        streets.write(data / "streets", options.seed, night=False, train=40, val=40, extra=110)
        streets.write(data / "streets_dark", options.seed, night=True, train=150, val=40)
        link_all(data, ("streets", "streets_dark"), data / "both")
    gathered(None)
    shared = {"seed": options.seed, "precision": options.precision, "data_root": str(data), "debug": options.debug}
    training, seeing = {"size": "64", "crop": "64x128", "log_every": 100} | shared, TRANSLATOR
    pair = {"day": "streets", "night": ["streets_dark"]}
    try:
        lite("tf_efficientnet_lite0", "--feature-weights")
    except InputError as error:
        say(f"{error}; going on with a feature loss of random weights, which moves more of what is in the images")
        seeing = TRANSLATOR | UNSEEING

    def segmenting(row: str, **given) -> SegTrainOptions:
        return SegTrainOptions(out=str(runs / row), **(SEGMENTATION | training | given))

    model, judge = str(runs / "day2night"), segmenting("judge", train_on="day", day="both", validate_every=0)
    baseline = segmenting("baseline", **pair, **ROWS["baseline"])
    translator = TranslateTrainOptions(out=model, **seeing, **training, **pair)
    translating = TranslateOptions(
        in_="streets", out=str(data / "streets_night"), model=model, audit=judge.out, **shared
    )
    follow([
        Stage("learn to translate day into night", "translate-train", translator),
        Stage("a judge, which alone has night labels and teaches nobody: what is kept?", "seg-train", judge),
        Stage("translate the labelled day images", "translate", translating),
        Stage("train baseline; the others go on from it", "seg-train", baseline),
        *(
            Stage(f"train {row}", "seg-train", segmenting(row, init=baseline.out, **pair, **ROWS[row]))
            for row in list(ROWS)[1:]
        ),
    ])  # fmt: skip
    results = scores({row: str(runs / row) for row in ROWS}, {"streets": "day", "streets_dark": "night"}, shared)
    kept = read_json(data / "streets_night/audit.json")["kept"]
    say(f"the translation keeps {kept:.1f} % of what a network with labels of day and night sees")
    return results


def link_all(data: Path, names: tuple[str, ...], both: Path) -> None:
    """Make a data set of links to the labelled training images of others."""
    for kind, name in product(("images", "labels"), names):
        (both / kind / "train").mkdir(parents=True, exist_ok=True)
        if not (link := both / kind / "train" / name).is_symlink():
            link.symlink_to(f"../../../{name}/{kind}/train")
    if not (both / "classes.json").exists():
        copy(data / names[0] / "classes.json", both / "classes.json")


def draw_panel(data: Path, runs: Path, path: Path, accelerator) -> None:
    """day | translated | night | truth | baseline | ssl, for scenes that no training has seen."""
    classes = Classes(*zip(*streets.CLASSES, strict=True))

    def images(folder: str) -> list[Image.Image]:
        return [open_image(data / folder / f"{i:05d}.png") for i in range(4)]

    columns = {
        "labelled day": images("streets/images/val"),
        "its translation": images("streets_night/images/val"),
        "real night": images("streets_dark/images/val"),
        "truth": list(map(np.asarray, images("streets_dark/labels/val"))),
    }
    for row, caption in (("baseline", "before: day labels alone"), ("ssl", "after: the full method")):
        columns[caption] = labelled_by(str(runs / row), columns["real night"], accelerator)
    save_image(sheet(columns, classes), path)
