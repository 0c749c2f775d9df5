"""`seg-train`: the student and its mean teacher of §3.3, and every row of Table 1 before it."""

from dataclasses import replace
from pathlib import Path

import torch

from daynight import losses
from daynight.config import SegTrainOptions, numbers, pair
from daynight.data.cache import Cache
from daynight.data.images import LabelledPhotographs, Photographs
from daynight.data.layouts.tree import locate, resolve
from daynight.data.sampling import Skipped, batches, choose, generator
from daynight.data.sets import ImageSet, check_disjoint, counterparts, load, missing, thinned
from daynight.data.transforms import add_noise, cut, darken, fourier, jitter, random_box, scaled, to_image
from daynight.inference.audit import ignoring
from daynight.models.deeplab import DeepLabV2
from daynight.models.ema import EMA
from daynight.models.generator import Generator
from daynight.models.hub import find_model, identity, load_model, pretrained
from daynight.reports.previews import grid, label_image
from daynight.system.console import say
from daynight.system.errors import InputError
from daynight.system.files import read_json
from daynight.training.headers import check_files
from daynight.training.health import TeacherHealth
from daynight.training.run import Run, ramp
from daynight.training.validation import Best, SegmentationValidation, fingerprints, held_out


def read_sets(options: SegTrainOptions, root: Path) -> tuple[dict, dict, ImageSet | None]:
    """Option → the sets to train on; the same of what is held out of them; the set of --validate-on. All are said."""
    day_set = load(options.day, root, "--day", time="day", labelled=True)
    night_needed = options.ssl or options.translator == "fourier" or options.keep_best == "index"
    night_sets = [load(name, root, "--night", time="night") for name in options.night if night_needed]
    sets = {"--day": [day_set], "--night": night_sets, "--unlabelled-day": []}
    if options.unlabelled_day:
        splits = ("train", "train_extra")
        sets["--unlabelled-day"] = [load(options.unlabelled_day, root, "--unlabelled-day", splits=splits, time="day")]
    check_disjoint(sets["--day"] + sets["--unlabelled-day"], night_sets)
    for image_set in (s for some in sets.values() for s in some):
        say(str(image_set))
        for note in image_set.notes:
            say(f"  {note}")
    sets, held = held_out(options, sets, root, labelled=("--day",))
    return sets, held, labelled_set(options, sets["--day"][0], root)


def materials(options: SegTrainOptions, day_set: ImageSet, root: Path) -> tuple[str, str | None, str | None]:
    """What Eq. 12 is on, "day", "translated" or "both", and who translates: see `translation_source`. It is said."""
    train_on = options.train_on or ("both" if options.ssl or options.translated or options.translator else "day")
    how, where = translation_source(options, day_set, root) if train_on != "day" else (None, None)
    if options.darken and not how and not options.ssl:
        raise InputError("--darken: nothing of night is seen with --train-on day; give --ssl, or leave it out")
    if options.darken and how == "run":
        raise InputError(f"--darken: translate --day with {where} first (daynight translate), or leave it out")
    mixed = f" and {options.translator}" * bool(options.translated and options.translator)
    say(f"training on {train_on}" + f", translations from {where or how}{mixed}" * bool(how) + ", SSL" * options.ssl)
    return train_on, how, where


def rehearse_reading(options: SegTrainOptions, draw: "Draw", sets: dict, held: dict, labelled: ImageSet | None) -> None:
    """Open every file that the run will read."""
    with_labels = [*sets["--day"], *held.get("--day", []), *filter(None, [labelled])]
    others = sets["--night"] + sets["--unlabelled-day"] + held.get("--night", [])
    check_files(with_labels, others, draw.made(), options.skip_unreadable)


def student_terms(student, teacher, batch, clean, noisy, labels, valid, dropout, rho, weight) -> tuple[dict, dict]:
    """The terms of Eq. 16, by name, and of each name in `noisy` the teacher's softmax and its mask.

    `batch`: images B×3×H×W in [-1, 1]; of those named in `clean` Eq. 12, by `labels` (B×H×W of train ids) and `valid`,
    how many of these there are. `noisy`: what the student sees under dropout (`dropout`: a generator for each image) →
    what the teacher sees of it without (Eq. 14, 15; `rho`, `weight` λ_ssl); none before SSL starts. The student looks
    once: what is in both is computed twice only from dropout on.
    """
    images = torch.cat([batch[name] for name in dict.fromkeys([*clean, *noisy])])
    logits, noisy_logits = (
        student(images, clean=len(clean) * len(batch["day"]), dropout=dropout) if noisy else (student(images), None)
    )
    terms = {f"ce_{n}": losses.cross_entropy(x, labels[n], valid[n]) for n, x in split(logits, clean)}
    taught = {}
    if noisy:
        with torch.no_grad():
            targets = teacher(torch.cat([batch[name] for name in noisy.values()])).float().softmax(1)
        for (name, x), target in zip(split(noisy_logits, noisy), targets.chunk(len(noisy)), strict=True):
            mask = losses.confidence_mask(target, rho)
            terms[f"ssl_{name}"] = weight * losses.consistency(target, x, mask)
            taught[name] = target, mask
    return terms, taught


def train(options: SegTrainOptions) -> None:
    """Train a student and its teacher (§3.3, §4.2); writes `options.out` with `teacher/`."""
    root = Path(options.data_root)
    run = Run(options)
    sets, held, labelled = read_sets(options, root)
    day_set = sets["--day"][0]
    train_on, how, where = materials(options, day_set, root)
    torch.manual_seed(options.seed)
    student = build_student(options, day_set)
    translator = load_model(where, "day2night", "--translator", Generator) if how == "run" else None
    draw = Draw(options, sets, how, where)
    if options.dry_run:
        rehearse_reading(options, draw, sets, held, labelled)
    data = {name: " ".join(s.fingerprint() for s in some) for name, some in sets.items()}
    data |= {"translations": f"{how} {translator_identity(how, where)}"} | fingerprints(held)
    run.open(data | ({"--validate-on": labelled.fingerprint()} if labelled else {}), sets)
    draw.keep_in(run.cache)

    student.to(run.device)
    teacher = EMA(student, options.ema_decay)
    optimizer = torch.optim.Adam(student.parameters(), lr=options.lr, fused=True)
    run.track(student=student, teacher=teacher.model, optimizer=optimizer)
    run.keep(teacher=teacher.model)
    measure = {"day": "day_miou", "labelled": "validate_on_miou"}.get(options.keep_best, options.keep_best)
    best = Best(run, measure, {"teacher": teacher.model})
    run.restore()
    accelerator, plain_student, look = run.accelerator, student, teacher.model
    student, optimizer = accelerator.prepare(student.train(), optimizer)
    if options.compile:
        student, look = torch.compile(student), torch.compile(look)
    if translator:
        translator = accelerator.prepare_model(translator.requires_grad_(False), evaluation_mode=True)
    ssl_start = options.ssl_start * run.total
    skipped = Skipped(run.folder / "skipped.txt", run.first > 0) if options.skip_unreadable else None
    validation = SegmentationValidation(run, best, skipped, held, labelled, plain_student, teacher.model)
    health = TeacherHealth(day_set.classes.names, min(2000, max(100, run.total // 5)), run.lines())
    loader = batches(draw, options.seed, range(run.first, run.total), run.slots, run.workers, skipped)
    # with Eq. 15 a step takes about twice the arithmetic
    cost = lambda step: 1.9 if options.ssl and step >= ssl_start else 1.0  # noqa: E731
    for step, batch in run.steps(loader, cost):
        batch = {name: tensor.to(run.device, non_blocking=True) for name, tensor in batch.items()}
        if translator:
            with torch.no_grad():
                for name in {"day", "unlabelled_day"} & batch.keys():
                    batch[f"fake_{name}"] = translator(batch[name])
        clean = {"day": ["day"], "translated": ["fake_day"], "both": ["day", "fake_day"]}[train_on]
        labels = {"day": batch["labels"], "fake_day": batch.get("fake_labels", batch["labels"])}
        valid = {name: run.mean((labels[name] != 255).sum().float()) for name in clean}

        noisy, dropout, rho, weight = {}, [], 0.0, 0.0
        if options.ssl and step >= ssl_start:
            # the day half of Eq. 15 is on the labelled batch's images, unless more are given: then the network has
            # them already
            more = "unlabelled_day" if "unlabelled_day" in batch else "day"
            noisy = ({f"fake_{more}": more} if train_on != "day" else {}) | {"strong_night": "weak_night"}
            dropout = [generator(options.seed, step, f"dropout {s}", run.device) for s in run.slots] * len(noisy)
            rho, weight = (ramp(step, run.total, *numbers(values)) for values in (options.rho, options.lambda_ssl))
        with accelerator.autocast():
            terms, taught = student_terms(student, look, batch, clean, noisy, labels, valid, dropout, rho, weight)
        seen = {f"mask_{name}": mask.mean() for name, (_, mask) in taught.items()}
        if taught:
            seen |= health(*taught["strong_night"], labels["day"])

        optimizer.zero_grad()
        accelerator.backward(sum(terms.values()))  # Eq. 16
        optimizer.step()
        teacher.update(plain_student, step)
        health.follow(run.log(step, **terms, **seen, **validation(step)))
        if run.due(step):
            run.preview(step, preview(teacher.model, batch, day_set.classes))
    if skipped:
        skipped.tell()


class Draw:
    """Draws a sample: `day` and `labels` from one place, and, where they are needed, `fake_day` from the same place,
    `weak_night` A_w(x_t) and `strong_night` A_s(x_t), `unlabelled_day` and `fake_unlabelled_day`.

    Images are 3×crop in [-1, 1], labels are train ids. `how` says who translates: "folder" (`where` it is), "darken",
    "fourier", or None for nobody or a network in the training loop.
    """

    def __init__(self, options: SegTrainOptions, sets: dict[str, list[ImageSet]], how: str | None, where: str | None):
        self.options, self.how, self.crop = options, how, pair(options.crop)
        self.ssl_start = options.ssl_start * options.steps if options.ssl else options.steps
        self.nights = Photographs([path for s in sets["--night"] for path in s.images], options.size)
        self.days = {"day": LabelledPhotographs(sets["--day"][0], options.size)}
        for image_set in sets["--unlabelled-day"]:
            self.days["unlabelled_day"] = Photographs(image_set.images, options.size)
        self.translated, self.audited = {}, None
        if how == "folder":
            for name, image_set in zip(self.days, sets["--day"] + sets["--unlabelled-day"], strict=True):
                self.translated[name] = Photographs(translations_of(image_set, Path(where)), options.size)
            if ignoring(Path(where)):
                self.audited = LabelledPhotographs(audited_labels(sets["--day"][0], Path(where)), options.size)

    def __call__(self, g: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        sample = self.day("day", g)
        if step >= self.ssl_start:
            if "unlabelled_day" in self.days:
                sample |= self.day("unlabelled_day", g)
            night = self.night(g)
            sample["weak_night"] = add_noise(night, self.options.weak_noise, g)
            strong = jitter(night, self.options.jitter, g)
            sample["strong_night"] = self.darker(add_noise(strong, self.options.strong_noise, g), g)
        return sample

    def keep_in(self, cache: Cache) -> None:
        """Have each file decoded and resized once."""
        for name, photographs in self.days.items():
            photographs.keep_in(cache, f"--{name.replace('_', '-')}")
        for name, photographs in self.translated.items():
            photographs.keep_in(cache, f"translated --{name.replace('_', '-')}")
        if self.audited:
            self.audited.keep_labels_in(cache, "audited")
        if len(self.nights):
            self.nights.keep_in(cache, "--night")

    def made(self) -> list[Path]:
        """The translated images, and the labels beside them that are learned from."""
        images = [path for photographs in self.translated.values() for path in photographs.images.paths]
        return images + list(self.audited.image_set.labels if self.audited else [])

    def day(self, name: str, g: torch.Generator) -> dict[str, torch.Tensor]:
        """A crop of a day image: with its labels (of the labelled set) and its translation."""
        photographs = self.days[name]
        i, labels = choose(len(photographs), g), None
        image = photographs.levels(i)
        if name == "day":
            labels = photographs.label(i, *image.shape[1:])
        place = self.place(image, g)
        sample = {name: place(image)}
        if labels is not None:
            sample["labels"] = place(labels, fill=255)[0]
        how = self.how
        # with translations of two kinds each crop takes one
        if self.options.translated and self.options.translator and torch.rand((), generator=g) < 0.5:
            how = self.options.translator
        if how == "folder":
            fake = place(self.translated[name].levels(i, tuple(image.shape[1:])))
        elif how == "darken":
            fake = darken(sample[name], g)
        elif how == "fourier":
            fake = fourier(sample[name], self.night(g))
        else:
            return sample
        sample[f"fake_{name}"] = self.darker(fake, g)
        if self.audited and name == "day":
            sample["fake_labels"] = sample["labels"]
            if how == "folder":
                sample["fake_labels"] = place(self.audited.label(i, *image.shape[1:], own_size=False), fill=255)[0]
        return sample

    def darker(self, image: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        """Some of what the student sees of night, `--darken` of it, is darkened on top."""
        return darken(image, g) if self.options.darken and torch.rand((), generator=g) < self.options.darken else image

    def night(self, g: torch.Generator) -> torch.Tensor:
        image = self.nights.levels(choose(len(self.nights), g))
        return self.place(image, g)(image)

    def place(self, image: torch.Tensor, g: torch.Generator):
        """Draws a crop (and whether it is mirrored), to be cut from an image and, with `fill`, from its labels."""
        box = random_box(*image.shape[1:], self.crop, g)
        flip = self.options.flip and torch.rand((), generator=g) < 0.5

        def cut_there(tensor, fill=None):
            tensor = cut(tensor, box, self.crop, fill)
            tensor = tensor.flip(2) if flip else tensor
            return scaled(tensor) if fill is None else tensor.long()

        return cut_there


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


def translation_source(options: SegTrainOptions, day_set: ImageSet, root: Path) -> tuple[str, str | None]:
    """Where G(x_s) comes from: ("folder", its path), ("run", its path), ("darken", None) or ("fourier", None).

    What is asked for; else `<day>_night`, in the working directory or the data root, where it is whole; else
    runs/day2night. Raises `InputError` where there is none.
    """
    if options.translated:
        folder = resolve(options.translated, root, "--translated")
        translations_of(day_set, folder)
        return "folder", str(folder)
    if options.translator in ("darken", "fourier"):
        return options.translator, None
    if options.translator:
        find_model(options.translator, "day2night", "--translator")
        return "run", options.translator
    name = f"{Path(options.day).name}_night"
    for folder in (Path(name), root / name):
        if folder.is_dir() and counterparts(day_set.images, day_set.root, folder):
            return "folder", str(folder)
    if (Path("runs/day2night") / "day2night" / "config.json").is_file():
        return "run", "runs/day2night"
    raise InputError(
        f"no translation of {options.day}: neither a whole {name}/ nor runs/day2night; run daynight translate-train "
        "first, or give --translated DIR or --translator RUN|darken|fourier"
    )


def translations_of(image_set: ImageSet, folder: Path) -> list[Path]:
    """The translation of each image. Raises `InputError` naming one that is missing."""
    found = counterparts(image_set.images, image_set.root, folder)
    if found is None:
        without = missing(image_set.images, image_set.root, folder)
        raise InputError(
            f"--translated {folder}: {len(without):,} of {len(image_set.images):,} images of {image_set.name} have no "
            f"translation there, as {without[0].relative_to(image_set.root)}; daynight translate goes on with it"
        )
    return found


def audited_labels(image_set: ImageSet, folder: Path) -> ImageSet:
    """The images with the labels that `daynight translate --audit-ignore` left beside their translations. Raises
    `InputError` naming one that is missing."""
    root = locate(folder).root
    labels = tuple(root / label.relative_to(image_set.root) for label in image_set.labels)
    without = [label for label in labels if not label.is_file()]
    if without:
        raise InputError(f"--translated {folder}: no label {without[0]}; daynight translate goes on with it")
    return replace(image_set, labels=labels)


def translator_identity(how: str | None, where: str | None) -> str | None:
    """What tells a source of translations from another: a translated folder's record, or a generator's weights."""
    if how == "run":
        return identity(find_model(where, "day2night", "--translator"))
    record = Path(where or "") / "translation.json"
    if how != "folder" or not record.is_file():
        return where
    audit = ignoring(record.parent)
    return read_json(record).get("model") if not audit else f"{read_json(record).get('model')} audited by {audit}"


def build_student(options: SegTrainOptions, day_set: ImageSet) -> DeepLabV2:
    classes = day_set.classes
    if options.init:
        student = load_model(options.init, "teacher", "--init", DeepLabV2)
        if student.config["names"] != list(classes.names):
            raise InputError(f"--init {options.init}: its classes are not those of --day {options.day}")
        if options.backbone not in (SegTrainOptions.backbone, student.config["backbone"]):
            had = student.config["backbone"]
            raise InputError(f"--backbone {options.backbone}: --init {options.init} has {had}; leave it out")
        student.config["size"] = options.size
        return student

    def build(**timm_options):
        return DeepLabV2(
            classes.names,
            classes.colors,
            options.backbone,
            options.output_stride,
            options.head_width,
            frozen_norm=options.backbone_weights != "random",
            size=options.size,
            **timm_options,
        )

    try:
        return pretrained(build, options.backbone, options.backbone_weights, "--backbone-weights")
    except ValueError as error:
        raise InputError(f"--backbone {options.backbone}: {error}") from error


@torch.no_grad()
def preview(teacher, batch, classes):
    """What went in, and what the teacher makes of it: day, its labels, its translation, night."""
    captions = {"day": "day", "fake_day": "its translation", "weak_night": "night"}
    columns = {caption: batch[name] for name, caption in captions.items() if name in batch}
    pictures = {name: [to_image(x) for x in images[:4]] for name, images in columns.items()}
    pictures["labels"] = [label_image(x.cpu().numpy().astype("uint8"), classes) for x in batch["labels"][:4]]
    for name, images in columns.items():
        predictions = teacher(images[:4]).argmax(1).cpu().numpy().astype("uint8")
        pictures[f"teacher on {name}"] = [label_image(x, classes) for x in predictions]
    return grid(list(map(list, zip(*pictures.values(), strict=True))), list(pictures))


def split(tensor, names: list[str]):
    return zip(names, tensor.chunk(len(names)), strict=True)
