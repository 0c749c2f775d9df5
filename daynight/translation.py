"""`translate-train`: the day ↔ night translator of §3.2."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from daynight import losses
from daynight.config import TranslateTrainOptions, pair
from daynight.data.cache import open_cache, places
from daynight.data.images import Photographs
from daynight.data.lists import listed
from daynight.data.sampling import Skipped, batches, choose, generator
from daynight.data.sets import announce, check_disjoint, load
from daynight.data.transforms import cut, random_box, scaled, to_image
from daynight.inference.tiles import tiled
from daynight.models.deeplab import DeepLabV2
from daynight.models.discriminator import Discriminator
from daynight.models.ema import EMA
from daynight.models.generator import Generator
from daynight.models.hub import load_model, pretrained
from daynight.models.perceptual import FeatureNetwork
from daynight.reports.card import write_card
from daynight.reports.previews import sheet
from daynight.system.console import say
from daynight.system.errors import InputError
from daynight.training.checkpoint import Checkpoint
from daynight.training.dry_run import Cost, check_files
from daynight.training.graphs import Captured, recorder
from daynight.training.run import Run
from daynight.training.validation import Best, TranslationValidation, fingerprints, held_out, to_preview, unlabelled

CLIP = 5.0  # largest gradient norm, per network (§4.2)


class Generators(nn.Module):
    """Both generators, and in one forward all that they make in a step (DistributedDataParallel takes no more)."""

    def __init__(self, day2night: Generator, night2day: Generator):
        super().__init__()
        self.day2night, self.night2day = day2night, night2day

    def forward(self, day, night):
        """Eq. 2, 3, 5, 6: fake_night, fake_day, cycle_day, cycle_night; all B×3×H×W in [-1, 1]."""
        fake_night, fake_day = self.day2night(day), self.night2day(night)
        return fake_night, fake_day, self.night2day(fake_night), self.day2night(fake_day)


class Discriminators(nn.Module):
    """D_S `day` and D_T `night`."""

    def __init__(self, width: int):
        super().__init__()
        self.day, self.night = Discriminator(width), Discriminator(width)

    def forward(self, day, night, fake_day, fake_night):
        """The logits of real and of translated images, in the order of the arguments."""
        return self.day(day), self.night(night), self.day(fake_day), self.night(fake_night)


class History:
    """The last `size` fakes (CycleGAN's pool): D is shown, half of the time, an older one in the place of a new."""

    def __init__(self, size: int):
        self.size, self.images = size, []

    def exchange(self, fakes, generators):
        """Take in B×3×H×W and give as many back: new, or, each with p = 0.5 once full, an older one it replaces."""
        shown = []
        for fake, g in zip(fakes.detach().float(), generators, strict=True):
            if len(self.images) < self.size:
                self.images.append(fake)
            elif self.size and torch.rand((), generator=g) < 0.5:
                i = choose(self.size, g)
                fake, self.images[i] = self.images[i].to(fake.device), fake
            shown.append(fake)
        return torch.stack(shown)

    @property
    def filled(self) -> float:
        return len(self.images) / max(1, self.size)

    def state_dict(self):
        return {"images": self.images}

    def load_state_dict(self, state):
        self.images = state["images"]


def generator_terms(day, night, translated, discriminators: Discriminators, features, options) -> dict:
    """The terms of Eq. 11, by name: Eq. 4 and 7 and, with `features` (a `FeatureNetwork` or None), Eq. 10, each
    weighted. `translated`: what `Generators` makes of day and night."""
    fake_night, fake_day, cycle_day, cycle_night = translated
    terms = {
        "gan_night": losses.adversarial_generator(discriminators.night(fake_night), options.gan),
        "gan_day": losses.adversarial_generator(discriminators.day(fake_day), options.gan),
        "cycle_day": options.lambda_cyc * losses.cycle(day, cycle_day),
        "cycle_night": options.lambda_cyc * losses.cycle(night, cycle_night),
    }
    if features:
        weight, scales = options.lambda_feature, features.norm.scales
        terms["feature_day"] = weight * losses.feature(features(day), features(fake_night), scales)
        terms["feature_night"] = weight * losses.feature(features(night), features(fake_day), scales)
    return terms


def discriminator_terms(day, night, fake_day, fake_night, discriminators, options) -> dict:
    """The discriminators' side of Eq. 4, by name. `fake_day`, `fake_night`: translations that the history shows."""
    real_day, real_night, false_day, false_night = discriminators(day, night, fake_day, fake_night)
    return {
        "d_night": losses.adversarial_discriminator(real_night, false_night, options.gan),
        "d_day": losses.adversarial_discriminator(real_day, false_day, options.gan),
    }


class Step:
    """The halves of a step. Each is a function of tensors of fixed shapes and of numbers, as `Captured` wants it."""

    def __init__(self, accelerator, generators, discriminators, optimizers, averages, features, options):
        self.accelerator, self.averages, self.features, self.options = accelerator, averages, features, options
        self.plain_generators, self.plain_discriminators = generators, discriminators
        prepared = accelerator.prepare(generators, discriminators, *optimizers)
        self.generators, self.discriminators, self.generator_optimizer, self.discriminator_optimizer = prepared

    def generate(self, day, night, step, rate):
        """Eq. 11, 13: update the generators at the learning rate `rate`, then their averages, for the `step`-th time.
        Returns fake_night and fake_day, and the terms."""
        self.plain_discriminators.requires_grad_(False)
        translated = self.generators(day, night)
        with self.accelerator.autocast():
            terms = generator_terms(day, night, translated, self.plain_discriminators, self.features, self.options)
        self.update(self.plain_generators, self.generator_optimizer, terms, rate)
        for name, average in self.averages.items():
            average.update(getattr(self.plain_generators, name), step)
        return tuple(x.detach() for x in translated[:2]), {name: x.detach() for name, x in terms.items()}

    def discriminate(self, day, night, fake_day, fake_night, rate):
        """Eq. 4: update the discriminators, which are shown these translations. Returns the terms."""
        self.plain_discriminators.requires_grad_(True)
        terms = discriminator_terms(day, night, fake_day, fake_night, self.discriminators, self.options)
        self.update(self.plain_discriminators, self.discriminator_optimizer, terms, rate)
        return {name: x.detach() for name, x in terms.items()}

    def update(self, networks: nn.Module, optimizer, terms: dict, rate) -> None:
        optimizer.zero_grad()
        self.accelerator.backward(sum(terms.values()))
        for network in networks.children():
            self.accelerator.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.param_groups[0].update(lr=rate, capturable=isinstance(rate, torch.Tensor))
        optimizer.step()


def train(options: TranslateTrainOptions, rehearsed: int = 2) -> Cost | None:
    """Train both generators (§3.2, §4.2); writes `options.out` with `day2night/` and `night2day/`, their averages.
    A dry run returns the cost."""
    run, root = Run(options, rehearsed), Path(options.data_root)
    sets, held = read_sets(options, root)
    features, judge, loaded = load_networks(options)
    torch.manual_seed(options.seed)
    generators, discriminators = build_generators(options), Discriminators(options.width)
    run.open(fingerprints(sets, held, loaded | {"--init": options.init and generators}), sets)
    cache = open_cache(options, run.folder)
    draw = unpaired(sets, options.size, pair(options.crop), cache)

    generators.to(run.device)
    averages = {name: EMA(model, options.ema_decay) for name, model in generators.named_children()}
    averaged = {name: average.model for name, average in averages.items()}
    adam = dict(lr=options.lr, betas=(0.5, 0.999), fused=True)
    generator_optimizer = torch.optim.Adam(generators.parameters(), **adam)
    discriminator_optimizer = torch.optim.Adam(discriminators.to(run.device).parameters(), **adam)
    day_history, night_history = History(options.history), History(options.history)
    best = Best(options.keep_best, averaged)
    checkpoint = Checkpoint(
        run.folder, run.accelerator, averaged, partial(write_card, run=run.folder, options=options), best=best,
        local={"day_history": day_history, "night_history": night_history},
        generators=generators, discriminators=discriminators,
        generator_optimizer=generator_optimizer, discriminator_optimizer=discriminator_optimizer,
        day2night_average=averaged["day2night"], night2day_average=averaged["night2day"],
        feature_norm=features.to(run.device).norm if features else None,
    )  # fmt: skip
    run.resume(checkpoint)
    skipped = Skipped(run.folder / "skipped.txt", run.resumed) if options.skip_unreadable else None
    if features and not run.resumed:
        sample = batches(draw, options.seed, range(16), range(1), 0, skipped)
        features.calibrate(batch[domain].to(run.device) for batch in sample for domain in ("day", "night"))
    validation = TranslationValidation(run, best, skipped, held, features, averaged, judge and judge.to(run.device))

    run.begin_previews(previewer(held, sets, options, averaged, run.device))

    if options.compile:
        for network in (*generators.children(), *discriminators.children()):
            network.compile()
    optimizers = generator_optimizer, discriminator_optimizer
    parts = Step(run.accelerator, generators, discriminators, optimizers, averages, features, options)
    on_graph = recorder(run.accelerator, options.graph)
    generate, discriminate = Captured(parts.generate, on_graph), Captured(parts.discriminate, on_graph)
    loader = batches(draw, options.seed, range(run.first, run.total), run.slots, run.workers, skipped)
    for step, batch in run.steps(loader, checkpoint, validation, cache):
        day, night = batch["day"], batch["night"]
        rate = options.lr / 2 if step >= options.lr_drop * run.total else options.lr
        # generators: Eq. 11, and their averages: Eq. 13
        (fake_night, fake_day), terms = generate(day, night, step, rate)
        # discriminators: Eq. 4
        draws = [generator(options.seed, step, f"history {slot}") for slot in run.slots]
        shown = day_history.exchange(fake_day, draws), night_history.exchange(fake_night, draws)
        d_terms = discriminate(day, night, *shown, rate)
        run.log(step, **terms, **d_terms, **validation(step))
        run.preview(step + 1)
    if skipped:
        skipped.tell()
    return run.cost


def unpaired(sets: dict, size: str, crop: tuple[int, int], cache):
    """A function that draws a sample: a crop of a `day` and of a `night` image, 3×crop in [-1, 1] each."""
    photographs = {}
    for option, some in sets.items():
        images = Photographs([path for s in some for path in s.images], size)
        images.keep_in(cache, option)
        photographs[option.removeprefix("--")] = images

    def draw(g: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        images = {name: some.levels(choose(len(some), g)) for name, some in photographs.items()}
        return {name: scaled(cut(x, random_box(*x.shape[1:], crop, g), crop)) for name, x in images.items()}

    return draw


def read_sets(options: TranslateTrainOptions, root: Path) -> tuple[dict, dict]:
    """Option → the sets to train on; the same of what is held out of them. All are said."""
    day_set = load(options.day, root, "--day", splits=("train", "train_extra"), time="day")
    night_sets = [load(name, root, "--night", time="night") for name in options.night]
    day_set, *night_sets = listed([day_set, *night_sets], options.list_)
    check_disjoint([day_set], night_sets)
    announce([day_set, *night_sets], places(options), labelled=0)
    sets, held = held_out(options, {"--day": [day_set], "--night": night_sets}, root)
    if options.dry_run:
        # no network of Eq. 10, no KID: held-out nights are not read
        check_files(sets, {x: some for x, some in held.items() if x == "--day" or options.lambda_feature}, (), options)
    return sets, held


def feature_network(options: TranslateTrainOptions) -> FeatureNetwork:
    def build(**timm_options):
        return FeatureNetwork(options.feature_network, tuple(options.feature_layer), **timm_options)

    try:
        network = pretrained(build, options.feature_network, options.feature_weights, "--feature-weights")
        say(f"feature loss: {options.feature_network}, {' '.join(network.layers)}")
        return network
    except ValueError as error:
        raise InputError(f"--feature-network, --feature-layer: {error}") from error


def load_networks(options: TranslateTrainOptions) -> tuple[FeatureNetwork | None, DeepLabV2 | None, dict]:
    """The feature network and the --judge, None where nothing asks for it; and what of them comes from files."""
    features, judge = feature_network(options) if options.lambda_feature else None, None
    if options.judge and options.validate_every:
        judge = load_model(options.judge, "teacher", "--judge", DeepLabV2).requires_grad_(False)
    from_file = features and options.feature_weights != "random"
    return features, judge, {"--feature-weights": from_file and features.network, "--judge": judge}


def build_generators(options: TranslateTrainOptions) -> Generators:
    if options.init:
        found = [load_model(options.init, part, "--init", Generator) for part in ("day2night", "night2day")]
        wanted = {"blocks": options.blocks, "width": options.width, "upsample": options.upsample}
        for name, value in wanted.items():
            if found[0].config[name] != value:
                raise InputError(f"--{name} {value}: --init {options.init} has {found[0].config[name]}")
        for model in found:
            model.config |= {"size": options.size, "crop": options.crop}
        return Generators(*found).train()
    settings = options.blocks, options.width, options.upsample, options.size, options.crop
    return Generators(*(Generator(*settings) for _ in range(2)))


def previewer(held: dict, sets: dict, options: TranslateTrainOptions, averaged: dict, device):
    """A function that makes the preview, of the same images each time."""
    whole = {}
    for option in sets:
        images = to_preview(held, sets, option, lambda i, images: images.image(i), unlabelled, options.size)
        whole[option.removeprefix("--")] = images
    return partial(preview, averaged, whole, pair(options.crop), device)


@torch.no_grad()
def preview(averaged: dict[str, Generator], whole: dict[str, list], crop: tuple[int, int], device):
    """Whole images and their translations, both ways."""
    columns = {}
    for name, there, other in (("day", "day2night", "night"), ("night", "night2day", "day")):
        columns[name], columns[f"{name} as {other}"] = pictures, fakes = [], []
        for image in whole[name]:
            # a large one in tiles, so that it takes no more memory than some crops do
            large = image[0].numel() > 16 * crop[0] * crop[1]
            image, network = image[None].to(device), averaged[there]
            fakes.append(to_image((tiled(network, image, crop) if large else network(image))[0]))
            pictures.append(to_image(image[0]))
    return sheet(columns)
