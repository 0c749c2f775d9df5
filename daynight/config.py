"""What can be asked of each command: one dataclass a command, with the paper's values as defaults.

An option's name, range, help and default live here and nowhere else: the command line, the environment, `--config`
files and `options.json` come from these fields.
"""

import math
import re
from dataclasses import MISSING, Field, dataclass, field
from typing import Annotated, Literal

import typer

DATA, MODEL, OPTIMISATION, OUTPUT, ADVANCED = "Data", "Model", "Optimisation", "Output", "Advanced"

# what may differ between a run and its continuation
FREE = {"config", "resume", "out", "debug", "data_root", "num_workers"}
FREE |= {"save_every", "log_every", "log", "dry_run", "stall_minutes", "skip_unreadable", "cache", "cache_limit"}


def option(name: str, panel: str, help: str, **settings):
    return typer.Option(..., name, help=help, rich_help_panel=panel, **settings)


def is_size(value: str) -> bool:
    return re.fullmatch(r"native|[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?", value) is not None


def check_size(value: str | None) -> str | None:
    if value is not None and not is_size(value):
        raise typer.BadParameter(
            "wanted: 512 (the shorter side), 512x1024 (height x width) or native, in pixels up to 99999"
        )
    return value


def check_crop(value: str) -> str:
    if value == "native" or not is_size(value):
        raise typer.BadParameter("wanted: 256 (a square) or 192x256 (height x width), in pixels up to 99999")
    return value


def check_ramp(value: str) -> str:
    try:
        start, end = map(float, value.split(","))
    except ValueError:
        raise typer.BadParameter("wanted: two numbers, first and last value, as 0.5,0.9") from None
    if not (0 <= start < math.inf and 0 <= end < math.inf):
        raise typer.BadParameter("wanted: two numbers of at least 0")
    return value


def check_shares(value: str) -> str:
    if max(numbers(check_ramp(value))) > 1:
        raise typer.BadParameter("wanted: two numbers from 0 to 1, first and last value, as 0.5,0.9")
    return value


def pair(value: str) -> tuple[int, int]:
    """A crop as (height, width): "256" → (256, 256), "192x256" → (192, 256)."""
    numbers = [int(n) for n in value.split("x")]
    return numbers[0], numbers[-1]


def numbers(value: str) -> tuple[float, float]:
    """The two ends of a ramp: "0.5,0.9" → (0.5, 0.9)."""
    start, end = map(float, value.split(","))
    return start, end


def check_factors(value: str) -> str:
    try:
        good = all(0 < factor <= 16 for factor in factors(value))
    except ValueError:
        good = False
    if not good:
        raise typer.BadParameter("wanted: factors of the size up to 16, as 0.75,1,1.25")
    return value


def factors(value: str) -> tuple[float, ...]:
    """ "0.75,1,1.25" → (0.75, 1.0, 1.25)."""
    return tuple(map(float, value.split(",")))


Size = Annotated[
    str,
    option(
        "--size", DATA, "Resize images to: 512 the shorter side, 512x1024 height x width, native.", callback=check_size
    ),
]
ModelSize = Annotated[
    str | None,
    option(
        "--size", MODEL, "Run the network at: 512, 512x1024 or native; default: its training size.", callback=check_size
    ),
]
Scales = Annotated[
    str,
    option(
        "--scales",
        MODEL,
        "Mean of the probabilities at these factors of the size: 0.75,1,1.25.",
        callback=check_factors,
    ),
]
Flip = Annotated[bool, option("--flip", MODEL, "And of the mirrored image.")]
AtOnce = Annotated[
    int | None,
    option(
        "--batch-size",
        ADVANCED,
        "Images beside each other, each in a pass of its own: no result depends on it; default: one a core, at most 8, "
        "and 2 on a GPU.",
        min=1,
        max=1024,
    ),
]
Crop = Annotated[
    str, option("--crop", DATA, "Random crop, pixels: 256 or 192x256 height x width (§4.2).", callback=check_crop)
]
Day = Annotated[str, option("--day", DATA, "Day images: a path, or a folder's name under --data-root.")]
Night = Annotated[list[str], option("--night", DATA, "Unlabelled night images, as --day; repeatable.")]
Steps = Annotated[
    int, option("--steps", OPTIMISATION, "Optimiser steps; schedules are fractions of them.", min=1, max=10_000_000)
]
BatchSize = Annotated[
    int,
    option(
        "--batch-size",
        OPTIMISATION,
        "Samples a step, over all processes; a multiple of their number.",
        min=1,
        max=65536,
    ),
]
LearningRate = Annotated[float, option("--lr", OPTIMISATION, "Adam's learning rate (§4.2).", min=0, max=1)]
EmaDecay = Annotated[float, option("--ema-decay", OPTIMISATION, "α of Eq. 13, at most.", min=0, max=1)]


def default_of(f: Field):
    """A field's default; dataclasses.MISSING where it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


@dataclass(kw_only=True)
class Options:
    """What every command takes."""

    config: Annotated[
        str | None,
        option("--config", ADVANCED, "JSON file of options, as options.json of a run; the command line wins."),
    ] = None
    seed: Annotated[int, option("--seed", ADVANCED, "Everything random follows from it.", min=0, max=2**32 - 1)] = 0
    precision: Annotated[
        Literal["auto", "no", "bf16"],
        option(
            "--precision", ADVANCED, "auto: what the launcher says, else bf16 on a GPU that has it, else no (float32)."
        ),
    ] = "auto"
    num_workers: Annotated[
        int | None,
        option(
            "--num-workers",
            ADVANCED,
            "What reads images ahead, in each process: in trainings processes, by default 4 on a GPU, 0 on a CPU; else "
            "threads, 8 and 2.",
            min=0,
            max=256,
        ),
    ] = None
    data_root: Annotated[str, option("--data-root", DATA, "Where data sets are looked up by name.")] = "data"
    debug: Annotated[bool, option("--debug", ADVANCED, "Show the traceback of an error.")] = False


@dataclass(kw_only=True)
class TrainingOptions(Options):
    resume: Annotated[
        bool,
        option("--resume/--no-resume", OUTPUT, "Go on with the run in --out; --no-resume refuses to touch one."),
    ] = True
    save_every: Annotated[int, option("--save-every", OUTPUT, "Steps between checkpoints and previews.", min=1)] = 1000
    cache: Annotated[
        str | None,
        option(
            "--cache",
            DATA,
            "Keep images and labels, decoded and resized, in this folder: a mapped file where it fits, images else as "
            "JPEG at quality 95; off: read anew every time; default: cache in --out.",
        ),
    ] = None
    cache_limit: Annotated[
        float, option("--cache-limit", DATA, "Gigabytes that the cache may take, and no more than is free.", min=0)
    ] = 16.0
    skip_unreadable: Annotated[
        bool,
        option("--skip-unreadable", DATA, "Go on without images and labels that cannot be read; listed at the end."),
    ] = False
    log_every: Annotated[int, option("--log-every", OUTPUT, "Steps between lines of metrics.jsonl.", min=1)] = 50
    validate_every: Annotated[
        int,
        option(
            "--validate-every",
            OUTPUT,
            "Steps between validations on held-out images, and after the last; 0: never, and nothing is held out.",
            min=0,
        ),
    ] = 1000
    validate_images: Annotated[
        int,
        option(
            "--validate-images",
            OUTPUT,
            "Held-out images by day and by night, at most: of the val splits; of a set without one a tenth at most is "
            "not trained on.",
            min=1,
        ),
    ] = 100
    log: Annotated[
        list[str],
        option(
            "--log",
            OUTPUT,
            "Log, with previews, also to one of Accelerate's trackers: tensorboard, wandb, mlflow, …; repeatable.",
        ),
    ] = field(default_factory=list)
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            OUTPUT,
            "Look at every file, run two steps, say memory, time and disk of the whole run; write nothing.",
        ),
    ] = False
    compile: Annotated[
        bool,
        option(
            "--compile",
            ADVANCED,
            "torch.compile the networks: for a GPU; the first steps take minutes. A CPU gains nothing.",
        ),
    ] = False
    stall_minutes: Annotated[
        float,
        option(
            "--stall-minutes",
            ADVANCED,
            "End the run, saying where it hangs, when no step ends for so long; 0: never.",
            min=0,
            max=525_600,
        ),
    ] = 30.0


@dataclass(kw_only=True)
class TranslateTrainOptions(TrainingOptions):
    day: Day = "cs"
    night: Night = field(default_factory=lambda: ["bdd", "dz"])
    out: Annotated[str, option("--out", OUTPUT, "The run's folder.")] = "runs/day2night"
    init: Annotated[str | None, option("--init", MODEL, "Start from this run's generators.")] = None
    size: Size = "512"
    crop: Crop = "256"
    width: Annotated[int, option("--width", MODEL, "Filters of the first layer of G and D.", min=1, max=1024)] = 64
    blocks: Annotated[int, option("--blocks", MODEL, "Residual blocks of G (§4.2).", min=1, max=1000)] = 9
    upsample: Annotated[
        Literal["bilinear", "deconv"], option("--upsample", MODEL, "bilinear is the paper's, deconv CycleGAN's.")
    ] = "bilinear"
    steps: Steps = 700_000
    batch_size: BatchSize = 1
    gan: Annotated[Literal["bce", "lsgan"], option("--gan", OPTIMISATION, "Eq. 4, or least squares.")] = "bce"
    lambda_cyc: Annotated[float, option("--lambda-cyc", OPTIMISATION, "Weight of Eq. 7.", min=0, max=1e6)] = 10.0
    lambda_feature: Annotated[
        float,
        option(
            "--lambda-feature",
            OPTIMISATION,
            "Weight of Eq. 10; 0 loads no network. Not measured with VGG-19; with two layers of EfficientNet 0, 0.5, "
            "2, 8 kept 51, 74, 82, 84 % of what a day model sees, and 8 left skies bright (examples/night).",
            min=0,
            max=1e6,
        ),
    ] = 1.0
    feature_network: Annotated[
        str, option("--feature-network", MODEL, "Frozen network of Eq. 10: any of timm's (§3.2).")
    ] = "vgg19"
    feature_layer: Annotated[
        list[str],
        option("--feature-layer", MODEL, "Module path of a layer of Eq. 10 (features.31: block5_conv2); repeatable."),
    ] = field(default_factory=lambda: ["features.31"])
    feature_weights: Annotated[
        str, option("--feature-weights", MODEL, "pretrained (from the Hub), random, or a .safetensors file.")
    ] = "pretrained"
    lr: LearningRate = 2e-4
    lr_drop: Annotated[
        float, option("--lr-drop", OPTIMISATION, "Fraction of the steps after which --lr is halved.", min=0, max=1)
    ] = 1 / 7
    history: Annotated[
        int, option("--history", OPTIMISATION, "Fakes kept to show to D again (CycleGAN); 0: none.", min=0)
    ] = 50
    ema_decay: EmaDecay = 0.9999
    judge: Annotated[
        str | None,
        option("--judge", MODEL, "A run of seg-train: validations count what it labels as before translation (kept)."),
    ] = None
    keep_best: Annotated[
        Literal["kid", "none"],
        option("--keep-best", OUTPUT, "What chooses best/: kid, the distance of translations to real nights."),
    ] = "kid"


@dataclass(kw_only=True)
class TranslateOptions(Options):
    in_: Annotated[str, option("--in", DATA, "The tree to translate: a path, or a name under --data-root.")]
    out: Annotated[str, option("--out", OUTPUT, "The folder to write: the same tree.")]
    model: Annotated[
        str, option("--model", MODEL, "A run of translate-train (RUN/best: its best), a model folder, or a Hub id.")
    ] = "runs/day2night"
    reverse: Annotated[bool, option("--reverse", MODEL, "Night to day.")] = False
    size: Annotated[
        str | None,
        option(
            "--size",
            OUTPUT,
            "Write images of this size: 512, 512x1024, native; default: run at the training size, write the input's.",
            callback=check_size,
        ),
    ] = None
    whole: Annotated[
        bool,
        option(
            "--whole/--tiles",
            MODEL,
            "Translate images whole, or in tiles of the training crop's size that overlap by half: nearer to what was "
            "learned, at two to four times the time.",
        ),
    ] = False
    audit: Annotated[
        str | None,
        option(
            "--audit",
            MODEL,
            "Compare what a segmentation model sees before and after (audit.html, audit.json): a run of seg-train that "
            "has seen night, a model folder, or a Hub id.",
        ),
    ] = None
    batch_size: Annotated[int, option("--batch-size", ADVANCED, "Images of one size at once.", min=1, max=1024)] = 1


@dataclass(kw_only=True)
class SegTrainOptions(TrainingOptions):
    day: Day = "cs"
    night: Night = field(default_factory=lambda: ["bdd", "dz"])
    unlabelled_day: Annotated[
        str | None,
        option("--unlabelled-day", DATA, "More day images for Eq. 15 (train and train_extra, or any folder)."),
    ] = None
    train_on: Annotated[
        Literal["day", "translated", "both"] | None,
        option("--train-on", DATA, "Images of Eq. 12; default: both with --ssl or a translation, else day."),
    ] = None
    translated: Annotated[
        str | None, option("--translated", DATA, "The translated day set; default: <day>_night where it is whole.")
    ] = None
    translator: Annotated[
        str | None,
        option(
            "--translator",
            MODEL,
            "Translate on the fly: a run, darken or fourier (these two also beside --translated: each crop takes one); "
            "default: runs/day2night if there.",
        ),
    ] = None
    out: Annotated[str, option("--out", OUTPUT, "The run's folder.")] = "runs/seg"
    size: Size = "512"
    crop: Crop = "256"
    flip: Annotated[bool, option("--flip", DATA, "Mirror half of the crops (not in the paper).")] = False
    backbone: Annotated[str, option("--backbone", MODEL, "vgg16 is the paper's; or any of timm's.")] = "vgg16"
    backbone_weights: Annotated[
        str, option("--backbone-weights", MODEL, "pretrained (from the Hub), random, or a .safetensors file.")
    ] = "pretrained"
    output_stride: Annotated[
        int,
        option(
            "--output-stride", MODEL, "Of the backbone: 8 is the paper's; 16 takes a third of the time.", min=8, max=32
        ),
    ] = 8
    head_width: Annotated[
        int, option("--head-width", MODEL, "Channels inside the head (1024 in DeepLabV2).", min=1, max=8192)
    ] = 1024
    init: Annotated[str | None, option("--init", MODEL, "Start from this run's teacher.")] = None
    steps: Steps = 50_000
    batch_size: BatchSize = 8
    lr: LearningRate = 1e-4
    ema_decay: EmaDecay = 0.999
    ssl: Annotated[bool, option("--ssl", OPTIMISATION, "Add Eq. 15, with real night images.")] = False
    rho: Annotated[str, option("--rho", OPTIMISATION, "ρ of Eq. 14, first,last step.", callback=check_shares)] = (
        "0.5,0.9"
    )
    lambda_ssl: Annotated[
        str, option("--lambda-ssl", OPTIMISATION, "λ_ssl of Eq. 16, first,last step.", callback=check_ramp)
    ] = "50,100"
    ssl_start: Annotated[
        float, option("--ssl-start", OPTIMISATION, "Fraction of the steps before Eq. 15 (§4.2).", min=0, max=1)
    ] = 0.2
    weak_noise: Annotated[float, option("--weak-noise", OPTIMISATION, "σ of A_w, images in [-1, 1].", min=0, max=2)] = (
        0.02
    )
    strong_noise: Annotated[
        float, option("--strong-noise", OPTIMISATION, "σ of A_s, images in [-1, 1].", min=0, max=2)
    ] = 0.1
    jitter: Annotated[
        float, option("--jitter", OPTIMISATION, "Colour jitter of A_s: factors 1 ± this.", min=0, max=1)
    ] = 0.4
    validate_on: Annotated[
        str | None,
        option("--validate-on", DATA, "A labelled set, as of night: validations score it, too (validate_on_miou)."),
    ] = None
    keep_best: Annotated[
        Literal["day", "labelled", "none"],
        option("--keep-best", OUTPUT, "What chooses best/: mIoU on held-out day images, or on --validate-on."),
    ] = "day"


Model = Annotated[
    str, option("--model", MODEL, "A run of seg-train (or RUN/best), a model folder, or a Hub id (also id@revision).")
]


@dataclass(kw_only=True)
class EvalOptions(Options):
    model: Annotated[
        list[str],
        option(
            "--model",
            MODEL,
            "A run of seg-train (RUN/best: its best), a model folder, or a Hub id; repeatable; default: runs/seg.",
        ),
    ] = field(default_factory=list)
    predictions: Annotated[
        list[str],
        option(
            "--predictions",
            MODEL,
            "In place of --model: a folder with a PNG of ids for each image, found by its stem; repeatable.",
        ),
    ] = field(default_factory=list)
    ids: Annotated[
        Literal["trainIds", "labelIds"] | None,
        option("--ids", MODEL, "What --predictions hold (labelIds: Cityscapes); default: trainIds."),
    ] = None
    resize: Annotated[
        bool, option("--resize", MODEL, "Resize --predictions to their labels, by nearest neighbour.")
    ] = False
    size: ModelSize = None
    scales: Scales = "1"
    flip: Flip = False
    dataset: Annotated[list[str], option("--dataset", DATA, "A labelled data set, as --day elsewhere; repeatable.")]
    split: Annotated[str | None, option("--split", DATA, "Default: val, else test, else the only one.")] = None
    labels: Annotated[
        Literal["labelIds", "labelTrainIds"] | None,
        option("--labels", DATA, "Which label files; default: labelIds for cs, labelTrainIds for nd."),
    ] = None
    class_map: Annotated[
        str | None,
        option(
            "--class-map",
            DATA,
            'JSON file, {"class of the model": "class of the data set" or null}; default: equal names.',
        ),
    ] = None
    mean: Annotated[
        Literal["present", "official", "all"],
        option(
            "--mean",
            OUTPUT,
            "mIoU over: classes that occur in the labels (the paper), classes with TP+FP+FN > 0 (cityscapesScripts), "
            "all (absent ones count 0).",
        ),
    ] = "present"
    json: Annotated[str | None, option("--json", OUTPUT, "Write the results to this file.")] = None
    save: Annotated[
        str | None, option("--save", OUTPUT, "Write a page, colour predictions and panels to this folder.")
    ] = None
    dry_run: Annotated[
        bool, option("--dry-run", ADVANCED, "Say what each data set holds and read its labels; score nothing.")
    ] = False
    batch_size: AtOnce = None


@dataclass(kw_only=True)
class PredictOptions(Options):
    in_: Annotated[str, option("--in", DATA, "The tree to label: a path, or a name under --data-root.")]
    out: Annotated[str, option("--out", OUTPUT, "The folder to write: ids, color and overlay, each the same tree.")]
    model: Model = "runs/seg"
    size: ModelSize = None
    scales: Scales = "1"
    flip: Flip = False
    ids: Annotated[
        Literal["trainIds", "labelIds"], option("--ids", OUTPUT, "What the id images hold (labelIds: Cityscapes).")
    ] = "trainIds"
    confidence: Annotated[
        bool,
        option("--confidence", OUTPUT, "Also confidence: 16-bit PNGs, 65535 × the largest softmax probability."),
    ] = False
    batch_size: AtOnce = None


@dataclass(kw_only=True)
class ExportOptions(Options):
    model: Annotated[
        str,
        option("--model", MODEL, "A run (its teacher or day2night), a model folder, as RUN/night2day, or a Hub id."),
    ] = "runs/seg"
    size: ModelSize = None
    whole: Annotated[
        bool, option("--whole/--tiles", MODEL, "A generator takes images whole, or in tiles, as in translate.")
    ] = False
    out: Annotated[
        str | None, option("--out", OUTPUT, "The file to write; default: teacher.onnx, day2night.onnx, … here.")
    ] = None


@dataclass(kw_only=True)
class DemoOptions(Options):
    out: Annotated[str, option("--out", OUTPUT, "Where the drawn data, the runs and the panel go.")] = "demo"
