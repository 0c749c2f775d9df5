"""Every option of every command: one dataclass per command, with the paper's values as defaults.

A field is an option and says everything about it: name, type, panel of the help, default, range, and whether it may
change when a run is resumed. The command line, the environment, `--config` files and `options.json` follow from it.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field
from functools import partial
from typing import Literal

import typer

PANELS = "Data", "Model", "Optimisation", "Output", "Advanced"


def option(panel: str, default, help: str, *, off: str = "", free: bool = False, **settings):
    """A field that is an option, spelled like the field: `validate_every` is --validate-every, `in_` is --in.

    `default`: `...` if the option must be given. `off`: what switches a flag off. `free`: a resumed run may have
    another value than before. `settings` of `typer.Option`: min, max, callback.
    """
    facts = {"off": off, "free": free, "settings": settings | {"rich_help_panel": panel, "help": help}}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=facts)
    return field(default=MISSING if default is ... else default, metadata=facts)


Data, Model, Optimisation, Output, Advanced = (partial(option, panel) for panel in PANELS)


def declared(options: type) -> dict[str, Mapping]:
    """What `option` was told of each field. A subclass may give a field another default; the rest stays as it was."""
    classes = [getattr(cls, "__dataclass_fields__", {}) for cls in reversed(options.__mro__)]
    return {f.name: f.metadata for of_class in classes for f in of_class.values() if f.metadata}


def free(options: type) -> set[str]:
    """The fields that may differ between a run and its continuation."""
    return {name for name, facts in declared(options).items() if facts["free"]}


def default_of(f: Field):
    """The default that `option` was told; `...` if the option must be given."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return ... if f.default is MISSING else f.default


def is_size(value: str) -> bool:
    return re.fullmatch(r"native|[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?", value) is not None


def pair(value: str) -> tuple[int, int]:
    """A crop as (height, width): "256" → (256, 256), "192x256" → (192, 256)."""
    numbers = [int(n) for n in value.split("x")]
    return numbers[0], numbers[-1]


def numbers(value: str) -> tuple[float, float]:
    """The two ends of a ramp: "0.5,0.9" → (0.5, 0.9)."""
    start, end = map(float, value.split(","))
    return start, end


def factors(value: str) -> tuple[float, ...]:
    """ "0.75,1,1.25" → (0.75, 1.0, 1.25)."""
    return tuple(map(float, value.split(",")))


def checked(is_good: Callable[[str], bool], wanted: str) -> Callable:
    """A callback for Typer. It refuses values for which `is_good` is false or raises `ValueError`."""

    def check(value: str | None) -> str | None:
        with suppress(ValueError):
            if value is None or is_good(value):
                return value
        raise typer.BadParameter(f"wanted: {wanted}")

    return check


check_size = checked(is_size, "512 (the shorter side), 512x1024 (height x width) or native, in pixels up to 99999")
check_crop = checked(lambda value: value != "native" and is_size(value), "256 or 192x256 (height x width), up to 99999")
check_ramp = checked(lambda value: all(0 <= n <= 1e6 for n in numbers(value)), "two numbers from 0 to 1e6, as 50,100")
check_shares = checked(lambda value: all(0 <= n <= 1 for n in numbers(value)), "two numbers from 0 to 1, as 0.5,0.9")
check_factors = checked(lambda value: all(0 < n <= 16 for n in factors(value)), "factors up to 16, as 0.75,1,1.25")


def lists():
    """The field `list_`, --list."""
    help = "File of names or stems, one a line: read only these images of a set that has some; repeatable."
    return Data([], help, free=True)  # a resumed run checks which images are read


@dataclass(kw_only=True)
class Options:
    """What every command takes. `__post_init__` raises `ValueError` if options contradict each other."""

    config: str | None = Advanced(None, "JSON file, as a run's options.json, or a recipe (list shows them).", free=True)
    seed: int = Advanced(0, "Seed of everything random.", min=0, max=2**32 - 1)
    precision: Literal["auto", "no", "bf16"] = Advanced(
        "auto", "auto: what the launcher says, else bf16 on a GPU that has it, else no (float32)."
    )
    num_workers: int | None = Advanced(
        None, "Image readers per process; trainings: 4 on a GPU, else 0; others: 8, else 2.", min=0, max=256, free=True
    )
    data_root: str = Data("data", "Folder in which data sets are looked up by name.", free=True)
    debug: bool = Advanced(False, "Show the traceback of an error.", free=True)


@dataclass(kw_only=True)
class TrainingOptions(Options):
    """What both trainings take. Each of them gives a default to the fields that have none here."""

    day: str = Data("cs", "Day images: a path, or a folder's name under --data-root.")
    night: list[str] = Data(["bdd", "dz"], "Night images without labels: as --day; repeatable.")
    list_: list[str] = lists()
    size: str = Data("512", "Resize images to 512 (the shorter side), 512x1024 or native.", callback=check_size)
    crop: str = Data("256", "Random crop in pixels: 256, or 192x256 (height x width) (§4.2).", callback=check_crop)
    cache: str | None = Data(None, "Folder for decoded images; off: none; default: cache in --out.", free=True)
    skip_unreadable: bool = Data(False, "Go on without files that cannot be read; list them at the end.", free=True)
    init: str | None = Model(None, "Start from the networks of this run.")
    steps: int = Optimisation(..., "Optimiser steps; schedules are fractions of them.", min=1, max=10_000_000)
    batch_size: int = Optimisation(
        ..., "Samples per step, over all processes; a multiple of their number.", min=1, max=65536
    )
    lr: float = Optimisation(..., "Adam's learning rate (§4.2).", min=0, max=1)
    ema_decay: float = Optimisation(..., "α of Eq. 13, at most.", min=0, max=1)
    out: str = Output(..., "Folder of the run.", free=True)
    resume: bool = Output(True, "Continue the run in --out, or refuse to touch one.", off="--no-resume", free=True)
    save_every: int = Output(1000, "Steps between checkpoints and previews.", min=1, free=True)
    log_every: int = Output(50, "Steps between lines of metrics.jsonl.", min=1, free=True)
    validate_every: int = Output(1000, "Steps between validations; 0: never, and no images are held out.", min=0)
    validate_images: int = Output(100, "At most so many day and night images of val, else a tenth of the set.", min=1)
    log: list[str] = Output([], "Log to one of Accelerate's trackers: tensorboard, wandb, …; repeatable.", free=True)
    card_preview: bool = Output(False, "Put a preview (training images) into model folders: mind licences.", free=True)
    dry_run: bool = Output(False, "Read all files, run two steps, tell memory, time, disk; write nothing.", free=True)
    compile: bool = Advanced(False, "Run the networks through torch.compile: faster on a GPU, minutes to begin.")
    stall_minutes: float = Advanced(30.0, "End a run whose step takes longer; 0: never.", min=0, max=525_600, free=True)


@dataclass(kw_only=True)
class TranslateTrainOptions(TrainingOptions):
    """Learn day → night: CycleGAN with a feature loss (§3.2)."""

    then = "daynight translate --in {day} --out {translated} --model {out}"
    out: str = "runs/day2night"
    steps: int = 700_000
    batch_size: int = 1
    lr: float = 2e-4
    ema_decay: float = 0.9999
    width: int = Model(64, "Filters of the first layer of G and D.", min=1, max=1024)
    blocks: int = Model(9, "Residual blocks of G (§4.2).", min=1, max=1000)
    upsample: Literal["bilinear", "deconv"] = Model("bilinear", "bilinear (the paper) or deconv (CycleGAN).")
    feature_network: str = Model("vgg19", "Frozen network of Eq. 10: any of timm's (§3.2).")
    feature_layer: list[str] = Model(
        [], "Layer of Eq. 10; repeatable; default: features.31 (block5_conv2), else stride 16."
    )
    feature_weights: str = Model("pretrained", "pretrained (Hub), random, lite (extra) or a .safetensors file.")
    judge: str | None = Model(None, "A run of seg-train: measure how many pixels it labels the same after translation.")
    gan: Literal["bce", "lsgan"] = Optimisation("bce", "bce: Eq. 4; lsgan: least squares.")
    lambda_cyc: float = Optimisation(10.0, "Weight of Eq. 7.", min=0, max=1e6)
    lambda_feature: float = Optimisation(1.0, "Weight of Eq. 10; 0: no network is loaded.", min=0, max=1e6)
    lr_drop: float = Optimisation(1 / 7, "Fraction of the steps after which --lr is halved.", min=0, max=1)
    history: int = Optimisation(50, "Translations kept to show to D again (CycleGAN); 0: none.", min=0)
    graph: bool = Advanced(
        True, "Run steps as CUDA graphs, on one GPU: it waits less for the host.", off="--no-graph", free=True
    )
    keep_best: Literal["kid", "none"] = Output("kid", "What chooses best/: kid, the distance to real nights.")

    def __post_init__(self):
        if not self.feature_layer and self.feature_network.partition(".")[0] == "vgg19":
            self.feature_layer = ["features.31"]
        if min(pair(self.crop)) < 32:
            raise ValueError(f"--crop {self.crop}: the discriminator needs at least 32 pixels a side")


@dataclass(kw_only=True)
class TranslateOptions(Options):
    """Translate a folder of images and copy its labels."""

    in_: str = Data(..., "Folder to translate, or an image: a path, or a name under --data-root.")
    list_: list[str] = lists()
    model: str = Model("runs/day2night", "A run of translate-train (RUN/best: its best), a model folder, or a Hub id.")
    reverse: bool = Model(False, "Translate night to day.")
    whole: bool = Model(False, "Translate whole images, or tiles as in training (2 to 4 times slower).", off="--tiles")
    audit: str | None = Model(None, "Compare what this segmentation model (as --model) sees before and after.")
    out: str = Output(..., "Folder to write; it gets the same tree. Of one image: a folder or a file.")
    size: str | None = Output(None, "Size to write: 512, 512x1024, native; default: the input's.", callback=check_size)
    link: bool = Output(False, "Hard links to the labels, not copies: an edit of one changes both.")
    batch_size: int | None = Advanced(None, "Images of one size at once; default: 1; GPU: 4.", min=1, max=1024)


@dataclass(kw_only=True)
class SegTrainOptions(TrainingOptions):
    """Train on day, translated and real night images (§3.3)."""

    then = "daynight predict --in {night} --out labelled --model {out}"
    out: str = "runs/seg"
    steps: int = 50_000
    batch_size: int = 8
    lr: float = 1e-4
    ema_decay: float = 0.999
    unlabelled_day: str | None = Data(None, "More day images for Eq. 15 (train and train_extra, or any folder).")
    train_on: Literal["day", "translated", "both"] | None = Data(
        None, "Images of Eq. 12; default: both with --ssl or a translation, else day."
    )
    translated: str | None = Data(None, "The translated day set; default: <day>_night, if it is complete.")
    flip: bool = Data(False, "Mirror half of the crops (not in the paper).")
    validate_on: str | None = Data(None, "A labelled set that validations score too (validate_on_miou).")
    translator: str | None = Model(None, "Translate on the fly: a run (default: runs/day2night), darken or fourier.")
    backbone: str = Model("vgg16", "vgg16 (the paper), or any of timm's networks.")
    backbone_weights: str = Model("pretrained", "pretrained (Hub), random, lite (extra) or a .safetensors file.")
    output_stride: int = Model(8, "Output stride of the backbone; 16 takes a third of the time.", min=8, max=32)
    head: Literal["aspp", "linear", "fuse"] = Model("aspp", "aspp (DeepLabV2), linear, or fuse (with finer stages).")
    head_width: int = Model(1024, "Channels inside the head (DeepLabV2: 1024).", min=1, max=8192)
    optimizer: Literal["adam", "adamw"] = Optimisation("adam", "adam (the paper), or adamw, usual for transformers.")
    weight_decay: float = Optimisation(0.0, "Decay of weight matrices; none of biases and norms.", min=0, max=1)
    warmup: float = Optimisation(0.0, "Fraction of the steps in which --lr grows from 0.", min=0, max=1)
    backbone_lr: float = Optimisation(1.0, "The backbone learns at this times --lr.", min=0, max=100)
    freeze_backbone: bool = Optimisation(False, "Train the head alone.")
    drop_path: float = Optimisation(0.0, "Share of the backbone's blocks that a step leaves out.", min=0, max=0.9)
    grad_checkpointing: bool = Advanced(False, "Less memory: compute activations twice.")
    ssl: bool = Optimisation(False, "Add Eq. 15, with real night images.")
    rho: str = Optimisation("0.5,0.9", "ρ of Eq. 14, at the first and the last step.", callback=check_shares)
    lambda_ssl: str = Optimisation("50,100", "λ_ssl of Eq. 16, at the first and the last step.", callback=check_ramp)
    ssl_start: float = Optimisation(0.2, "Fraction of the steps before Eq. 15 starts (§4.2).", min=0, max=1)
    weak_noise: float = Optimisation(0.02, "σ of the noise of A_w, for images in [-1, 1].", min=0, max=2)
    strong_noise: float = Optimisation(0.1, "σ of the noise of A_s, for images in [-1, 1].", min=0, max=2)
    jitter: float = Optimisation(0.4, "Colour jitter of A_s: factors of 1 ± this.", min=0, max=1)
    mix: bool = Optimisation(False, "Paste half of a translated crop's classes onto the student's nights (DACS).")
    ssl_loss: Literal["square", "ce"] = Optimisation("square", "square: Eq. 15; ce: cross-entropy (DAFormer).")
    rare_classes: float = Optimisation(
        0.0, "Draw day images by their rare classes: T of DAFormer, as 0.01; 0: all alike.", min=0, max=1
    )
    keep_best: Literal["day", "labelled", "none"] = Output("day", "What chooses best/: held-out day, or --validate-on.")

    @property
    def needs_night(self) -> bool:
        return self.ssl or self.translator == "fourier"

    def __post_init__(self):
        for name in ("translated", "translator"):
            if getattr(self, name) and self.train_on == "day":
                raise ValueError(f"--{name}: with --train-on day nothing is translated; leave one of them out")
        if self.translated and self.translator:
            raise ValueError("--translated and --translator: give one of them")
        if self.init and self.drop_path:
            raise ValueError("--drop-path: is built into a backbone; with --init leave it out")
        if self.unlabelled_day and not self.ssl:
            raise ValueError("--unlabelled-day: is for Eq. 15; give --ssl, or leave it out")
        if self.keep_best == "labelled" and not self.validate_on:
            raise ValueError("--keep-best labelled: is the mIoU on --validate-on; give --validate-on DATASET")


@dataclass(kw_only=True)
class InferenceOptions(Options):
    """What commands take that label images with a segmentation network."""

    size: str | None = Model(None, "Run at 512, 512x1024 or native; default: the training size.", callback=check_size)
    scales: str = Model(
        "1", "Average predictions at these factors of the size, as 0.75,1,1.25.", callback=check_factors
    )
    flip: bool = Model(False, "Average the prediction with that of the mirrored image.")
    batch_size: int | None = Advanced(None, "Images at once; default: one a core, at most 8; GPU: 4.", min=1, max=1024)


@dataclass(kw_only=True)
class EvalOptions(InferenceOptions):
    """Score models on labelled data sets, as in Table 1 (§4.3)."""

    model: list[str] = Model([], "A run of seg-train, a model folder, or a Hub id; default: runs/seg; repeatable.")
    predictions: list[str] = Model([], "Folder with a PNG of ids of each image's stem, not --model; repeatable.")
    ids: Literal["trainIds", "labelIds"] | None = Model(None, "What --predictions hold; default: trainIds.")
    resize: bool = Model(False, "Resize --predictions to their labels, by nearest neighbour.")
    dataset: list[str] = Data(..., "A labelled data set: a path, or a name under --data-root; repeatable.")
    list_: list[str] = lists()
    split: str | None = Data(None, "Default: val, else test, else the only one.")
    labels: Literal["labelIds", "labelTrainIds"] | None = Data(None, "Default: labelIds for cs, labelTrainIds for nd.")
    class_map: str | None = Data(None, "JSON file: {class of the model: class of the data set, or null}.")
    mean: Literal["present", "official", "all"] = Output(
        "present", "mIoU over classes: present in the labels (the paper), official (TP+FP+FN > 0), all (absent: 0)."
    )
    json: str | None = Output(None, "Write the results to this file.")
    save: str | None = Output(None, "Write a page, colour predictions and panels to this folder.")
    dry_run: bool = Advanced(False, "Read the labels of each data set and say what it holds; score nothing.")

    def __post_init__(self):
        if self.predictions and not self.model and (self.size or self.flip or self.scales != "1"):
            raise ValueError("--size, --scales and --flip are for --model; --predictions are scored as they are")
        if not self.predictions and (self.ids or self.resize):
            raise ValueError("--ids and --resize are for --predictions")


@dataclass(kw_only=True)
class PredictOptions(InferenceOptions):
    """Label a folder of images: ids, colours and overlays."""

    in_: str = Data(..., "Folder to label, or an image: a path, or a name under --data-root.")
    list_: list[str] = lists()
    model: str = Model("runs/seg", "A run of seg-train (RUN/best: its best), a model folder, or a Hub id.")
    out: str = Output(..., "Folder to write: ids, color and overlay, each the same tree. Of one image also a .png.")
    ids: Literal["trainIds", "labelIds"] = Output("trainIds", "Write trainIds, or labelIds of Cityscapes.")
    confidence: bool = Output(False, "Write the largest softmax probability too, as 16-bit PNGs (65535: 1).")


@dataclass(kw_only=True)
class ExportOptions(Options):
    """Write a model as ONNX, and check it."""

    model: str = Model("runs/seg", "A run (its teacher or day2night), a model folder (RUN/night2day), or a Hub id.")
    size: str | None = Model(None, "Size at which the network runs; default: as in training.", callback=check_size)
    whole: bool = Model(False, "A generator translates whole images, or tiles, as in translate.", off="--tiles")
    out: str | None = Output(None, "File to write; default: teacher.onnx, day2night.onnx, … in the run.")


@dataclass(kw_only=True)
class AdaptOptions(Options):
    """The whole method on your own folders, in the hours that you give; it ends with one page."""

    day: str = Data(..., "Labelled day images: a path, or a name under --data-root.")
    night: list[str] = Data(..., "Night images without labels: as --day; repeatable.")
    night_labels: str | None = Data(None, "A few labelled night images, as --day: they tell which model is best.")
    hours: float = Optimisation(..., "Hours that all of it may take.", min=0.001, max=100_000)
    out: str = Output(..., "Folder for the runs, the translation and the page.")
    table: str | None = Advanced(None, "JSON file of the sizes to choose from; default: the recipe adapt's.")
    dry_run: bool = Advanced(False, "Check, measure and show the plan; write nothing.")


@dataclass(kw_only=True)
class DemoOptions(Options):
    """The whole method in minutes, on drawn streets."""

    out: str = Output("demo", "Folder for the drawn data, the runs and the panel.")
