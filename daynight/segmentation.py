"""`seg-train`: the student and its mean teacher of §3.3, and every row of Table 1 before it."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from daynight import losses
from daynight.config import SegTrainOptions, numbers, pair
from daynight.data.cache import open_cache, places
from daynight.data.images import LabelledPhotographs
from daynight.data.layouts.tree import resolve
from daynight.data.lists import listed
from daynight.data.sampling import Skipped, batches, generator
from daynight.data.sets import ImageSet, announce, check_disjoint, counterparts, load, thinned
from daynight.data.transforms import to_image
from daynight.data.translated import UNTRAINED, Draw, Folder, Network
from daynight.models.deeplab import DeepLabV2
from daynight.models.ema import EMA
from daynight.models.generator import Generator
from daynight.models.hub import find_model, identity, load_model, pretrained
from daynight.reports.card import write_card
from daynight.reports.previews import sheet
from daynight.system.console import say
from daynight.system.errors import InputError
from daynight.training.checkpoint import Checkpoint
from daynight.training.dry_run import Cost, check_files, check_labels
from daynight.training.health import TeacherHealth
from daynight.training.run import Run, ramp
from daynight.training.validation import (
    Best,
    SegmentationValidation,
    fingerprints,
    held_out,
    in_range,
    levels_and_labels,
    to_preview,
    unlabelled,
)

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# the value of a validation that --keep-best names
BEST_BY = {"day": "day_miou", "labelled": "validate_on_miou", "none": "none"}


def student_terms(student, teacher, batch, clean, noisy, valid, dropout, rho, weight, frozen=False, loss="square"):
    """The terms of Eq. 16, by name; and for each name in `noisy` the teacher's softmax and its mask.

    `batch`: images B×3×H×W in [-1, 1], by name. `clean`: the names of those of Eq. 12, by `batch["labels"]` (B×H×W of
    train ids; `valid`: how many there are). `noisy`: what the student sees under dropout (`dropout`: a generator
    for each image) → what the teacher sees of it without (Eq. 14, 15; `rho`, `weight` λ_ssl); empty before SSL starts.
    The student looks once: only from dropout on is anything computed twice. A `frozen` backbone, which both share,
    looks once for both. `loss`: "square" is Eq. 15; "ce" has every pixel learn, by the share of its image that Eq. 14
    accepts. `batch["pasted"]`, if it is there: the labels of what was pasted onto `strong_night` (B×H×W, 255: night).
    """
    looks = dict.fromkeys([*clean, *noisy])
    maps = shared_features(teacher, batch, looks | dict.fromkeys(noisy.values())) if frozen else lambda names: None
    images, given = torch.cat([batch[name] for name in looks]), {"features": maps(looks)}
    given |= {"clean": len(clean) * len(batch["day"]), "dropout": dropout} if noisy else {}
    logits, noisy_logits = student(images, **given) if noisy else (student(images, **given), None)
    terms = {f"ce_{n}": losses.cross_entropy(x, batch["labels"], valid) for n, x in split(logits, clean)}  # Eq. 12
    taught = {}
    if noisy:
        with torch.no_grad():
            images = torch.cat([batch[name] for name in noisy.values()])
            targets = teacher(images, features=maps(noisy.values())).float().softmax(1)
        for (name, x), target in zip(split(noisy_logits, noisy), targets.chunk(len(noisy)), strict=True):
            mask = losses.confidence_mask(target, rho)  # Eq. 14
            taught[name], weights, teach = (target, mask), mask, losses.consistency  # Eq. 15
            if loss == "ce":
                weights, teach = mask.mean((1, 2, 3), keepdim=True).expand_as(mask), losses.pseudo_labels
            if name == "strong_night" and (pasted := batch.get("pasted")) is not None:
                terms["ce_pasted"] = losses.cross_entropy(x, pasted, pasted.numel())
                weights = weights * (pasted == 255)[:, None]
            terms[f"ssl_{name}"] = weight * teach(target, x, weights)
    return terms, taught


@torch.no_grad()
def shared_features(network: DeepLabV2, batch: dict, names: dict):
    """A function: some of `names` → the feature maps of their images, one after the other; all computed at once."""
    maps = [dict(split(x, names)) for x in network.features(torch.cat([batch[name] for name in names]))]
    return lambda some: [torch.cat([x[name] for name in some]) for x in maps]


def train(options: SegTrainOptions, rehearsed: int = 2) -> Cost | None:
    """Train student and teacher (§3.3, §4.2); writes `options.out` with `teacher/`. A dry run returns its cost."""
    run, root, train_on = Run(options, rehearsed), Path(options.data_root), trained_on(options)
    sets, held, labelled = read_sets(options, root)
    days = {name[2:].replace("-", "_"): some[0] for name, some in sets.items() if some and name != "--night"}
    source = translation_source(options, days, root)
    say(f"training on {train_on}" + (f", translations from {source.name}" if source else "") + ", SSL" * options.ssl)
    torch.manual_seed(options.seed)
    student = prepare(build_student(options, days["day"]), options)
    check_norm(student, len(run.slots) * (1 + (train_on == "both")) + (options.ssl and not options.ssl_start), options)
    online = isinstance(source, Network)
    translator = load_model(source.name, "day2night", "--translator", Generator) if online else None
    draw = Draw(options, days, sets["--night"], source)
    if options.dry_run:
        found = [replace(days[n], name="translations", images=p.images.paths) for n, p in draw.translated().items()]
        checked = held | {"--validate-on": [labelled] if labelled else []}
        check_files(sets | {"--translated": found}, checked, ("--day", "--validate-on"), options)
    others = {"--translated": [isinstance(source, Folder) and source], "--validate-on": [labelled]}
    loaded = {"--translator": translator, "--init": options.init and student}
    loaded["--backbone-weights"] = options.backbone_weights != "random" and student.backbone
    run.open(fingerprints(sets | others, held, loaded) | {"translations": source.identity if source else "none"}, sets)
    draw.keep_in(cache := open_cache(options, run.folder))

    teacher = EMA(student.to(run.device), options.ema_decay)
    optimizer = OPTIMIZERS[options.optimizer](groups(student, options), fused=True)
    best = Best(BEST_BY[options.keep_best], {"teacher": teacher.model})
    card = partial(write_card, run=run.folder, options=options)
    checkpoint = Checkpoint(
        run.folder, run.accelerator, {"teacher": teacher.model}, card, best=best,
        student=student, teacher=teacher.model, optimizer=optimizer,
    )  # fmt: skip
    run.resume(checkpoint)
    skipped = Skipped(run.folder / "skipped.txt", run.resumed) if options.skip_unreadable else None
    validation = SegmentationValidation(run, best, skipped, held, labelled, student, teacher.model)
    patience = min(2000, max(100, run.total // 5))
    # of a class without accepted pixels for longer than that, the run has warned already
    health = TeacherHealth(days["day"].classes.names, patience, run.logger.lines(run.first, 2 * patience))
    run.begin_previews(previewer(held, sets, options.size, teacher.model, run.device))
    accelerator, plain_student, look = run.accelerator, student, teacher.model
    terms_of = partial(student_terms, frozen=options.freeze_backbone, loss=options.ssl_loss)
    student, optimizer = accelerator.prepare(student.train(), optimizer)
    if options.compile:
        student, look = torch.compile(student), torch.compile(look)
    if translator:
        translator = accelerator.prepare_model(translator.requires_grad_(False), evaluation_mode=True)
    loader = batches(draw, options.seed, range(run.first, run.total), run.slots, run.workers, skipped)
    # with Eq. 15 a step takes about twice the arithmetic
    cost = lambda step: 1.9 if step >= draw.ssl_start else 1.0  # noqa: E731
    for step, batch in run.steps(loader, checkpoint, validation, cache, cost):
        if translator:
            with torch.no_grad():
                batch |= {f"fake_{name}": translator(batch[name]) for name in days if name in batch}
        batch = laid_out(batch)
        clean = {"day": ["day"], "translated": ["fake_day"], "both": ["day", "fake_day"]}[train_on]
        valid = accelerator.reduce((batch["labels"] != 255).sum().float(), "mean")

        noisy, dropout, rho, weight = {}, [], 0.0, 0.0
        if step >= draw.ssl_start:
            # the day half of Eq. 15 uses the labelled batch's images, which the network sees anyway, unless
            # --unlabelled-day gives more
            more = "unlabelled_day" if "unlabelled_day" in batch else "day"
            noisy = ({f"fake_{more}": more} if train_on != "day" else {}) | {"strong_night": "weak_night"}
            dropout = [generator(options.seed, step, f"dropout {s}", run.device) for s in run.slots] * len(noisy)
            rho, weight = (ramp(step, run.total, *numbers(values)) for values in (options.rho, options.lambda_ssl))
        with accelerator.autocast():
            terms, taught = terms_of(student, look, batch, clean, noisy, valid, dropout, rho, weight)
        seen = {f"mask_{name}": mask.mean() for name, (_, mask) in taught.items()}
        if taught:
            seen |= health(*taught["strong_night"], batch["labels"])

        warm_up(optimizer, (step + 1) / max(1.0, options.warmup * run.total))
        optimizer.zero_grad()
        accelerator.backward(sum(terms.values()))  # Eq. 16
        optimizer.step()
        teacher.update(plain_student, step)  # Eq. 13
        health.follow(run.log(step, **terms, **seen, **validation(step)))
        run.preview(step + 1)
    if skipped:
        skipped.tell()
    return run.cost


def laid_out(batch: dict) -> dict:
    """A batch; on a GPU its images are in channels last, as tensor cores want them. On a CPU training gains nothing."""
    last = torch.channels_last
    wanted = {name for name, x in batch.items() if x.ndim == 4 and x.device.type == "cuda"}
    return {name: x.contiguous(memory_format=last) if name in wanted else x for name, x in batch.items()}


def read_sets(options: SegTrainOptions, root: Path) -> tuple[dict, dict, ImageSet | None]:
    """Option → the sets to train on; the same of what is held out of them; the set of --validate-on. All are said."""
    day_set = load(options.day, root, "--day", time="day", labelled=True)
    night_sets = [load(name, root, "--night", time="night") for name in options.night if options.needs_night]
    if not options.needs_night and options.night != SegTrainOptions().night:
        say(f"--night {' '.join(options.night)}: not used; it is for --ssl and --translator fourier")
    sets = {"--day": [day_set], "--night": night_sets, "--unlabelled-day": []}
    if options.unlabelled_day:
        splits = ("train", "train_extra")
        sets["--unlabelled-day"] = [load(options.unlabelled_day, root, "--unlabelled-day", splits=splits, time="day")]
    parts = iter(listed([s for some in sets.values() for s in some], options.list_))
    sets = {option: [next(parts) for _ in some] for option, some in sets.items()}
    check_disjoint(sets["--day"] + sets["--unlabelled-day"], sets["--night"])
    announce([s for some in sets.values() for s in some], places(options), labelled=1)
    if not options.dry_run:  # which first lists what cannot be read
        check_labels(sets["--day"][0])
    sets, held = held_out(options, sets, root, labelled=("--day",))
    return sets, held, labelled_set(options, sets["--day"][0], root)


def labelled_set(options: SegTrainOptions, day_set: ImageSet, root: Path) -> ImageSet | None:
    """What --validate-on names. Raises `InputError` where its classes are others, or its images are trained on."""
    if not options.validate_on or not options.validate_every:
        return None
    found = load(options.validate_on, root, "--validate-on", splits=None, labelled=True)
    if found.classes.names != day_set.classes.names:
        raise InputError(f"--validate-on {options.validate_on}: its classes are not those of --day {options.day}")
    found = thinned(found, options.validate_images)
    say(f"to validate: {found}")
    return found


def translation_source(options: SegTrainOptions, days: dict[str, ImageSet], root: Path):
    """Where G(x_s) comes from: `Folder`, `Network`, `Darken` or `Fourier`; None where the training is on day alone.

    The one that the options name; else `<day>_night`, in the working directory or the data root, if it holds every
    translation; else runs/day2night. Raises `InputError` where there is none.
    """
    if trained_on(options) == "day":
        return None
    if options.translated:
        return Folder(resolve(options.translated, root, "--translated"), days, options.size)
    name, default, run = f"{Path(options.day).name}_night", "runs/day2night", options.translator
    if run in UNTRAINED:
        return UNTRAINED[run]()
    for folder in (Path(name), root / name):
        if not run and folder.is_dir() and not counterparts(days["day"].images, days["day"].root, folder)[1]:
            return Folder(folder, days, options.size)
    if run or (Path(default) / "day2night" / "config.json").is_file():
        return Network(run or default, identity(find_model(run or default, "day2night", "--translator")))
    raise InputError(
        f"no translation of {options.day}: neither a whole {name}/ nor {default}; run daynight translate-train "
        "first, or give --translated DIR or --translator RUN|darken|fourier"
    )


def trained_on(options: SegTrainOptions) -> str:
    """The images of Eq. 12: "day", "translated" or "both"."""
    return options.train_on or ("both" if options.ssl or options.translated or options.translator else "day")


def build_student(options: SegTrainOptions, day_set: ImageSet) -> DeepLabV2:
    classes = day_set.classes
    if options.init:
        student = load_model(options.init, "teacher", "--init", DeepLabV2)
        if student.config["names"] != list(classes.names):
            raise InputError(f"--init {options.init}: its classes are not those of --day {options.day}")
        for name in ("backbone", "head"):
            given, had = getattr(options, name), student.config[name]
            if given not in (getattr(SegTrainOptions, name), had):
                raise InputError(f"--{name} {given}: --init {options.init} has {had}; leave it out")
        student.config["size"] = options.size
        return student

    def build(**timm_options):
        settings = options.backbone, options.output_stride, options.head_width, options.backbone_weights != "random"
        dropped = {"drop_path_rate": options.drop_path} if options.drop_path else {}
        given = {"size": options.size, "head": options.head} | timm_options | dropped
        return DeepLabV2(classes.names, classes.colors, *settings, **given)

    try:
        return pretrained(build, options.backbone, options.backbone_weights, "--backbone-weights")
    except (ValueError, TypeError) as error:
        raise InputError(f"--backbone {options.backbone}: {error}") from error


def prepare(student: DeepLabV2, options: SegTrainOptions) -> DeepLabV2:
    """Freeze the backbone and have it checkpoint activations, as asked; say how it runs otherwise than asked."""
    network, name = student.backbone, student.config["backbone"]
    if options.freeze_backbone:
        network.requires_grad_(False)
    if options.grad_checkpointing:
        checkpointed = [m for m in network.modules() if hasattr(m, "set_grad_checkpointing")][:1]
        if not checkpointed:
            raise InputError(f"--grad-checkpointing: {name} has none in timm; leave it out")
        checkpointed[0].set_grad_checkpointing()
    if network.strides[-1] != options.output_stride:
        say(f"{name} runs at output stride {network.strides[-1]}, its own")
    if getattr(network, "plan", None) and network.plan.tiles:
        side = network.plan.multiple
        say(f"{name} takes one size and sees tiles of {side}×{side}; --crop {side} fits it")
    return student


def groups(student: DeepLabV2, options: SegTrainOptions) -> list[dict]:
    """The parameters that learn, by rate and weight decay; one group with the paper's options."""
    found = {}
    for name, parameter in student.named_parameters():
        rate = options.lr * (options.backbone_lr if name.startswith("backbone.") else 1.0)
        decay = options.weight_decay * (parameter.ndim > 1)
        if parameter.requires_grad:
            found.setdefault((rate, decay), []).append(parameter)
    names = "lr", "initial_lr", "weight_decay"
    return [dict(zip(names, (rate, rate, decay), strict=True), params=some) for (rate, decay), some in found.items()]


def warm_up(optimizer, part: float) -> None:
    """Set the rate of each group of parameters, when `part` (0 to 1 and above) of the warm-up is over."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"]) * min(1.0, part)


@torch.no_grad()
def check_norm(student: DeepLabV2, images: int, options: SegTrainOptions) -> None:
    """Raises `InputError` where batch norm gets one value per channel: of one image whose maps are 1×1."""
    try:
        if images == 1:
            deepcopy(student).train()(torch.zeros(1, 3, *pair(options.crop)))
    except ValueError as error:
        given = f"--batch-size {options.batch_size}, --crop {options.crop}"
        raise InputError(f"{given}: too small for --backbone {options.backbone} ({error})") from error


def previewer(held: dict, sets: dict, size: str, teacher: DeepLabV2, device):
    """A function that makes the preview, of the same images each time."""
    labelled = to_preview(held, sets, "--day", levels_and_labels, LabelledPhotographs, size)
    nights = to_preview(held, sets, "--night", lambda i, images: images.levels(i), unlabelled, size)
    return partial(preview, teacher, labelled, nights, sets["--day"][0].classes, device)


@torch.no_grad()
def preview(teacher, labelled: list, nights: list, classes, device):
    """What the teacher makes of day images, with their labels, and of night images."""

    def labels_of(image):
        return teacher(in_range(image, device)).argmax(1)[0].cpu().numpy().astype("uint8")

    columns = {"day": [to_image(in_range(x, "cpu")[0]) for x, _ in labelled]}
    columns["labels"] = [labels[0].numpy() for _, labels in labelled]
    columns["teacher on day"] = [labels_of(x) for x, _ in labelled]
    if nights:
        columns["night"] = [to_image(in_range(x, "cpu")[0]) for x in nights]
        columns["teacher on night"] = list(map(labels_of, nights))
    return sheet(columns, classes)


def split(tensor, names: list[str]):
    return zip(names, tensor.chunk(len(names)), strict=True)
