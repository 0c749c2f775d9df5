"""What a training measures of itself on images that it does not learn from, and which weights it keeps for that
(`best/`). Nothing here changes what is learned: no random number of a training's is drawn, no module's mode is left
changed.

The images are shared out over the processes and each goes through the networks alone, so that no value depends on how
many processes there are.
"""

import math
import time
from copy import copy, deepcopy
from operator import itemgetter
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from daynight import losses
from daynight.config import numbers, pair
from daynight.data.images import LabelledPhotographs, Photographs
from daynight.data.sampling import generator
from daynight.data.sets import ImageSet, evenly, hold_out, without
from daynight.data.transforms import cut, random_box, scaled, target_size
from daynight.evaluation.metrics import accuracy, confusion_matrix, iou, kid, mean_iou
from daynight.system.console import say
from daynight.system.errors import Unreadable
from daynight.system.processes import gathered, together

LOWER = {"kid", "feature", "cycle"}  # of all other measures the highest is the best
SCALE = 0.75  # of the scale consistency


def held_out(options, sets: dict[str, list[ImageSet]], root: Path, labelled=()) -> tuple[dict, dict]:
    """The sets of each option as they are left to train on, and what of them is held out to validate on.

    An option in `labelled` needs labels there. From none is held out with `--validate-every 0`, nor from
    --unlabelled-day, from which is left out what others hold out.
    """
    if not options.validate_every:
        return sets, {}
    held = {
        option: [
            hold_out(
                s, root, option, options.validate_images, time=option.removeprefix("--"), labelled=option in labelled
            )
            for s in some
        ]
        for option, some in sets.items()
        if option in ("--day", "--night")
    }
    taken = [s for some in held.values() for s in some if s.split != "val"]
    left = {option: [without(s, taken) for s in some] for option, some in sets.items()}
    trained_on = [s for some in left.values() for s in some]
    held = {option: [without(s, trained_on) for s in some] for option, some in held.items()}
    for image_set in (s for some in held.values() for s in some):
        say(f"to validate: {image_set}" if image_set.images else f"to validate: no images of {image_set.name}")
    return left, held


def fingerprints(held: dict[str, list[ImageSet]]) -> dict[str, str]:
    """For `Run.open`."""
    return {"images to validate": " ".join(s.fingerprint() for some in held.values() for s in some)} if held else {}


class Best:
    """The models of a run as they were, by `measure`, at the best validation so far; in the run's checkpoints, and
    written with them to `best/`. `models`: by name, as they are averaged; `measure`: "none" keeps nothing."""

    def __init__(self, run, measure: str, models: dict[str, nn.Module]):
        self.run, self.measure, self.live = run, measure, models
        self.value, self.step, self.models = None, 0, {}
        if run.options.validate_every and measure != "none":
            run.track(best=self)

    def take(self, step: int, values: dict[str, float]) -> None:
        """The values of the validation when `step` steps are done; of equal ones the first is kept."""
        value = values.get(self.measure)
        if value is None:
            return
        if self.value is None or (value < self.value if self.measure in LOWER else value > self.value):
            self.value, self.step = value, step
            self._copy({name: model.state_dict() for name, model in self.live.items()})

    def tell(self) -> None:
        if self.models:
            folder = self.run.folder / "best"
            by = self.run.options.keep_best
            say(f"{folder}: the best by --keep-best {by}, {self.value:.4g} after {self.step:,} steps")

    def state_dict(self):
        models = {name: model.state_dict() for name, model in self.models.items()}
        return {"value": self.value, "step": self.step, "models": models}

    def load_state_dict(self, state):
        self.value, self.step, self.models = state["value"], state["step"], {}
        # a checkpoint after this one may have been tried before it
        for name in self.live:
            self.run.products.pop(f"best/{name}", None)
        self._copy(state["models"])

    def _copy(self, states: dict[str, dict]) -> None:
        for name, state in states.items():
            if name not in self.models:
                self.models[name] = deepcopy(self.live[name]).cpu()
                self.run.keep(**{f"best/{name}": self.models[name]})
            self.models[name].load_state_dict(state)


class Validation:
    """When a training validates, and its share of the held-out images."""

    def __init__(self, run, best: Best, skipped):
        self.run, self.best, self.skipped = run, best, skipped
        self.every, self.accelerator = run.options.validate_every, run.accelerator
        run.try_validation = self.seconds

    def __call__(self, step: int) -> dict[str, float]:
        """What to log after this step: mostly nothing."""
        if not self.every or self.run.options.dry_run or ((step + 1) % self.every and step + 1 != self.run.total):
            return {}
        with torch.no_grad():
            values = {name: value for name, value in self.measure().items() if math.isfinite(value)}
        self.best.take(step + 1, values)
        if step + 1 == self.run.total:
            self.best.tell()
        return values

    def seconds(self) -> float:
        """What a validation will take, by trying an image of each kind."""
        total = 0.0
        for first, count in self.firsts() if self.every else ():
            began = time.monotonic()
            with torch.no_grad():
                first.measure()
            total += (time.monotonic() - began) * count
        return total

    def readable(self, read, photographs: Photographs) -> dict:
        """`read(i, photographs)` of this process's share of them, by number, without those that cannot be read."""
        found, accelerator = {}, self.accelerator
        with together():
            for i in range(accelerator.process_index, len(photographs), accelerator.num_processes):
                try:
                    found[i] = read(i, photographs)
                except Unreadable as error:
                    if not self.skipped:
                        raise Unreadable(f"{error}; --skip-unreadable goes on without it") from error
                    self.skipped.add(" ".join(str(error).split()))
        return found

    def all_of(self, found) -> list:
        """What the processes have found, (number of the image, value), each value on all of them, in one order."""
        return [
            value for _, value in sorted((one for part in gathered(list(found)) for one in part), key=itemgetter(0))
        ]

    def total(self, found: torch.Tensor) -> torch.Tensor:
        """The sum of whole numbers over the processes: the same in any order."""
        return sum(gathered(found.cpu()))


class TranslationValidation(Validation):
    """Of held-out day images, translated by the averages: how night-like they become and what they keep.

    One crop of each image, of the training's size and the same at every validation, stands for it: what `translate`
    makes of a tile, at a twentieth of the cost of whole images. `kid` ± `kid_error`: `features`' layers, averaged over
    the crop and divided by their root mean square over real images, against those of crops of `held_out_night` real
    nights (`metrics.kid`; by another network or layer it is another number). `feature`: Eq. 10, and `cycle`: Eq. 7, by
    day. `kept`: share, in percent, of the pixels that the judge labels as before; `kept/<class>`: of those it took for
    one of this class.
    """

    def __init__(self, run, best: Best, skipped, held, features, averages, judge):
        super().__init__(run, best, skipped)
        self.features, self.judge = features, judge
        self.day2night, self.night2day = averages["day2night"].model, averages["night2day"].model
        if not self.every:
            return
        self.days, self.nights = self.crops(held["--day"]), self.crops(held["--night"] if features else [])
        days, nights = (sum(gathered(len(crops))) for crops in (self.days, self.nights))
        self.counts = {"held_out_day": days} | ({"held_out_night": nights} if features else {})
        self.with_kid = features is not None and min(days, nights) >= 3
        if not features:
            say("KID is not measured: --lambda-feature 0 loads no network to see with")
        elif not self.with_kid:
            say(f"KID is not measured: it needs 3 held-out images by day and by night, here are {days} and {nights}")
        measured = {"kid": self.with_kid, "feature": features, "kept": judge, "cycle": True, "none": True}
        if not (days and measured[best.measure]):
            say(f"no best/: --keep-best {best.measure} is not measured")
        self.real = None  # found at the first validation, when the layers' mean squares are known

    def crops(self, sets: list[ImageSet]) -> dict[int, tuple[torch.Tensor, tuple[int, int]]]:
        """This process's crops, by number, and the size at which the judge sees them."""
        options = self.run.options
        crop, paths = pair(options.crop), [path for s in sets for path in s.images]
        paths = [paths[i] for i in evenly(len(paths), options.validate_images)]

        def read(i, photographs):
            image = photographs.image(i)
            height, width = image.shape[1:]
            wanted = target_size(height, width, self.judge.config["size"]) if self.judge else (height, width)
            seen_at = tuple(max(1, round(c * w / h)) for c, w, h in zip(crop, wanted, (height, width), strict=True))
            return cut(image, random_box(height, width, crop, generator(0, 0, f"held out {i}")), crop), seen_at

        return self.readable(read, Photographs(paths, options.size))

    def measure(self) -> dict[str, float]:
        device = self.run.device
        if self.real is None and self.with_kid:
            nights = {i: self.vector(self.features(x[None].to(device))) for i, (x, _) in self.nights.items()}
            self.real = torch.stack(self.all_of(nights.items()))
        names = self.judge.config["names"] if self.judge else []
        found, judged = {}, torch.zeros(len(names), len(names), dtype=torch.int64)
        for i, (day, seen_at) in self.days.items():
            day = day[None].to(device)
            with self.accelerator.autocast():
                fake = self.day2night(day)
                back = self.night2day(fake)
            fake = fake.float()
            found[i] = {"cycle": float(losses.cycle(day, back))}
            if self.features:
                seen, scales = self.features(fake), self.features.norm.scales
                found[i]["feature"] = float(losses.feature(self.features(day), seen, scales))
                found[i]["vector"] = self.vector(seen)
            if self.judge:
                labels = [self.labels(x, seen_at) for x in (day, fake)]
                judged += confusion_matrix(*labels, len(names)).cpu()
            self.run.alive()
        of_images = self.all_of(found.items())
        if not of_images:
            return {}
        values = {}
        if self.with_kid:
            values["kid"], values["kid_error"] = kid(torch.stack([one["vector"] for one in of_images]), self.real)
        for name in ("feature", "cycle") if self.features else ("cycle",):
            values[name] = sum(one[name] for one in of_images) / len(of_images)
        if self.judge:
            judged = self.total(judged)
            shares = (100 * judged.diagonal() / judged.sum(1)).tolist()
            values["kept"] = 100 * accuracy(judged)
            values |= {f"kept/{name}": x for name, x in zip(names, shares, strict=True)}
        return values | self.counts

    def firsts(self):
        """Validations of one image, and how many there are like it."""
        first = copy(self)
        first.days, first.with_kid = dict(list(self.days.items())[:1]), False
        yield first, len(self.days)

    def vector(self, features) -> torch.Tensor:
        """Of one image what KID compares: D numbers."""
        scales = self.features.norm.scales.sqrt()
        return torch.cat([f[0].float().mean((1, 2)) / s for f, s in zip(features, scales, strict=True)]).cpu()

    def labels(self, image, shape: tuple[int, int]) -> torch.Tensor:
        if image.shape[2:] != shape:
            image = F.interpolate(image.float(), shape, mode="bilinear", antialias=True, align_corners=False)
        with self.accelerator.autocast():
            return self.judge(image).argmax(1)


def levels_and_labels(i: int, images: LabelledPhotographs) -> tuple[torch.Tensor, torch.Tensor]:
    image = images.levels(i)
    return image, images.label(i, *image.shape[1:])


def in_range(image: torch.Tensor, device) -> torch.Tensor:
    """3×H×W of uint8 → 1×3×H×W in [-1, 1]."""
    return scaled(image[None].to(device))


class SegmentationValidation(Validation):
    """Of the student and its teacher, at the training's size, whole images; all values but these in percent.

    `day_miou`, `day_accuracy`: the teacher on held-out labelled day images (classes that occur), `day/<class>` IoU.
    On held-out night images, by no label, four parts and their mean, `index`: `night_agreement` of the teacher with the
    student, `night_flip` with itself on the mirrored image, `night_scale` on the image at 0.75 of the size, each the
    mean over all classes of the IoU of both predictions, a class that the teacher never predicts counting 0, so that a
    teacher which sees one class everywhere agrees with nobody; `night_mask`: pixels that Eq. 14 accepts at ρ's last
    value. `validate_on_miou`, `validate_on_accuracy`, `validate_on/<class>`: on --validate-on.

    Rank correlation with the true night mIoU, over 12 runs on drawn streets with 15 validations each
    (`examples/index.py --steps 240 --every 16 -- --batch-size 4`): of all checkpoints 0.54 [0.19 to 0.85], where
    `day_miou` has 0.39 [0.20 to 0.73], intervals that overlap; within a run 0.72 [0.47 to 0.91] against 0.76
    [0.53 to 0.93], so it is not what chooses `best/` by default. Of its parts the mask tells least (0.09), scale and
    flip most (0.89, 0.84). On real photographs (`examples/night`: 2 runs, 6 validations each) of all 0.44 against 0.62,
    within a run 0.77 against 0.89: the run that was 24 points worse ended 4 points lower by the index, its teacher
    being sure of what was wrong.
    """

    def __init__(self, run, best: Best, skipped, held, labelled: ImageSet | None, student, teacher):
        super().__init__(run, best, skipped)
        self.student, self.teacher = student, teacher
        if not self.every:
            return
        options = run.options
        nights = [path for s in held.get("--night", []) for path in s.images]
        nights = [nights[i] for i in evenly(len(nights), options.validate_images)]
        # in memory, as bytes: a run should not end at a later validation of a file that is gone by then
        self.nights = self.readable(lambda i, images: images.levels(i), Photographs(nights, options.size))
        sets = {"day": held["--day"][0], "validate_on": labelled}
        self.labelled = {
            name: self.readable(levels_and_labels, LabelledPhotographs(image_set, options.size))
            for name, image_set in sets.items()
            if image_set and image_set.images
        }
        if best.measure not in ("none", *(["index"] if nights else []), *(f"{name}_miou" for name in self.labelled)):
            say(f"no best/: --keep-best {options.keep_best} is not measured, there are no images for it")

    def measure(self) -> dict[str, float]:
        modes = {module: module.training for module in self.student.modules()}
        self.student.eval()
        values = {}
        try:
            for name, images in self.labelled.items():
                values |= self.scores(name, images)
            return values | self.index()
        finally:
            for module, mode in modes.items():
                module.training = mode

    def firsts(self):
        """Validations of one image, and how many there are like it."""
        for name, images in {"night": self.nights, **self.labelled}.items():
            first, one = copy(self), dict(list(images.items())[:1])
            first.nights, first.labelled = (one, {}) if name == "night" else ({}, {name: one})
            yield first, len(images)

    def logits(self, model, image) -> torch.Tensor:
        with self.accelerator.autocast():
            return model(image).float()

    def scores(self, name: str, images: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        names = self.teacher.config["names"]
        matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
        for image, labels in images.values():
            predictions = self.logits(self.teacher, in_range(image, self.run.device)).argmax(1)
            matrix += confusion_matrix(labels, predictions.cpu(), len(names))
            self.run.alive()
        matrix = self.total(matrix)
        if not matrix.sum():
            return {}
        values = {f"{name}_miou": 100 * mean_iou(matrix), f"{name}_accuracy": 100 * accuracy(matrix)}
        occurs = (matrix.sum(1) > 0).tolist()
        ious = (100 * iou(matrix)).tolist()
        return values | {f"{name}/{c}": x for c, x, there in zip(names, ious, occurs, strict=True) if there}

    def index(self) -> dict[str, float]:
        classes, rho = len(self.teacher.config["names"]), numbers(self.run.options.rho)[1]
        matrices = torch.zeros(3, classes, classes, dtype=torch.int64)
        pixels = torch.zeros(2, dtype=torch.int64)
        for image in self.nights.values():
            image = in_range(image, self.run.device)
            shape = tuple(max(1, round(SCALE * n)) for n in image.shape[2:])
            smaller = F.interpolate(image, shape, mode="bilinear", antialias=True, align_corners=False)
            logits = self.logits(self.teacher, image)
            scaled = F.interpolate(
                self.logits(self.teacher, smaller), image.shape[2:], mode="bilinear", align_corners=False
            )
            others = self.logits(self.student, image), self.logits(self.teacher, image.flip(3)).flip(3), scaled
            labels = logits.argmax(1)
            for matrix, other in zip(matrices, others, strict=True):
                matrix += confusion_matrix(labels, other.argmax(1), classes).cpu()
            accepted = losses.confidence_mask(logits.softmax(1), rho)
            pixels += torch.tensor([int(accepted.sum()), accepted.numel()])
            self.run.alive()
        matrices, (accepted, seen) = self.total(matrices), self.total(pixels).tolist()
        if not seen:
            return {}
        named = zip(("agreement", "flip", "scale"), matrices, strict=True)
        parts = {f"night_{name}": 100 * mean_iou(matrix, "all") for name, matrix in named}
        parts["night_mask"] = 100 * accepted / seen
        return parts | {"index": sum(parts.values()) / len(parts)}
