"""What a training measures on held-out images, and the weights that it keeps for the best result (`best/`).

Nothing here changes what is learned: it draws no random number of the training and leaves each module's mode as it was.
The processes share the images, and each image goes through the networks alone, so no value depends on how many
processes there are.
"""

import math
import time
from contextlib import suppress
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
from daynight.data.sets import ImageSet, evenly, hold_out, thinned, without
from daynight.data.transforms import cut, random_box, scaled, target_size
from daynight.evaluation.metrics import accuracy, confusion_matrix, iou, kid, mean_iou
from daynight.models.hub import identity
from daynight.system.console import say
from daynight.system.errors import InputError, Unreadable
from daynight.system.processes import gathered, together

LOWER = {"kid"}  # of all other measures the highest is the best


def held_out(options, sets: dict[str, list[ImageSet]], root: Path, labelled=()) -> tuple[dict, dict]:
    """The sets of each option that are left to train on, and the images held out of them to validate on.

    `labelled` names the options whose held-out images need labels. With `--validate-every 0` nothing is held out.
    `--unlabelled-day` is never split; images that other sets hold out are removed from it.
    """
    if not options.validate_every:
        return sets, {}
    held = {}
    for option in [option for option in sets if option in ("--day", "--night")]:
        asked = {"time": option.removeprefix("--"), "labelled": option in labelled}
        held[option] = [hold_out(s, root, option, options.validate_images, **asked) for s in sets[option]]
    taken = [s for some in held.values() for s in some if s.split != "val"]
    left = {option: [without(s, taken) for s in some] for option, some in sets.items()}
    trained_on = [s for some in left.values() for s in some]
    held = {option: [without(s, trained_on) for s in some] for option, some in held.items()}
    for option, image_set in ((option, s) for option, some in held.items() for s in some):
        told = str(image_set) if option in labelled else image_set.unlabelled()
        say(f"to validate: {told}" if image_set.images else f"to validate: no images of {image_set.name}")
    return left, held


def fingerprints(sets: dict[str, list], held: dict[str, list], networks: dict | None = None) -> dict[str, str]:
    """For `Run.open`: option, and a part of what it names → what identifies that: of `sets` or what else has a
    `fingerprint`, of those `held` out, of `networks` that are loaded."""
    named = sets | {f"{option} to validate": some for option, some in held.items()}
    found = {name: [s.fingerprint() for s in some if s] for name, some in named.items() if any(some)}
    data = {name + end: " ".join(f[end] for f in of_sets) for name, of_sets in found.items() for end in of_sets[0]}
    return data | {f"{name} (weights)": identity(network) for name, network in (networks or {}).items() if network}


class Best:
    """The weights of a run at its best validation so far, by the value named `measure` ("none": nothing is kept).

    `live`: the models that the run averages, by name. `models`: copies of them, none before the first validation.
    """

    def __init__(self, measure: str, live: dict[str, nn.Module]):
        self.measure, self.live = measure, live
        self.value, self.step, self.models = None, 0, {}

    def take(self, step: int, values: dict[str, float]) -> None:
        """The values of the validation when `step` steps are done; of equal ones the first is kept."""
        value, sign = values.get(self.measure), -1 if self.measure in LOWER else 1
        if value is not None and (self.value is None or sign * value > sign * self.value):
            models = {name: model.state_dict() for name, model in self.live.items()}
            self.load_state_dict({"value": value, "step": step, "models": models})

    def state_dict(self):
        models = {name: model.state_dict() for name, model in self.models.items()}
        return {"value": self.value, "step": self.step, "models": models}

    def load_state_dict(self, state):
        # restoring may have tried a newer, damaged checkpoint first: its models are forgotten
        self.value, self.step = state["value"], state["step"]
        self.models = {name: self.models.get(name) or deepcopy(self.live[name]).cpu() for name in state["models"]}
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])


class Validation:
    """When a training validates, and this process's share of the held-out images."""

    def __init__(self, run, best: Best, skipped):
        self.run, self.best, self.skipped = run, best, skipped
        self.every, self.accelerator = run.options.validate_every, run.accelerator
        self.images: dict[str, dict[int, tuple]] = {}  # by kind and number

    def __call__(self, step: int) -> dict[str, float]:
        """What to log after this step: nothing, unless a validation is due."""
        last = step + 1 == self.run.total
        if not self.every or self.run.options.dry_run or ((step + 1) % self.every and not last):
            return {}
        with torch.no_grad():
            values = {name: value for name, value in self.measure().items() if math.isfinite(value)}
        self.best.take(step + 1, values)
        if last and self.best.models:
            by = f"--keep-best {self.run.options.keep_best}, {self.best.value:.4g} after {self.best.step:,} steps"
            say(f"{self.run.folder / 'best'}: the best by {by}")
        return values

    def seconds(self) -> float:
        """How long a validation will take, measured on one image of each kind."""
        total = 0.0
        for kind, images in self.images.items():
            first = copy(self)
            first.images = {name: dict(list(some.items())[: name == kind]) for name, some in self.images.items()}
            began = time.monotonic()
            with torch.no_grad():
                first.measure()
            total += (time.monotonic() - began) * len(images)
        return total

    def tell_unmeasured(self, measured: bool) -> None:
        if not measured and self.best.measure != "none":
            say(f"no best/: --keep-best {self.run.options.keep_best} is not measured")

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

    def all_of(self, found: dict[int, object]) -> list:
        """The values that the processes have found, by the number of the image, in the images' order."""
        return [value for _, value in sorted((x for part in gathered(found) for x in part.items()), key=itemgetter(0))]

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

    def __init__(self, run, best: Best, skipped, held, features, averaged, judge):
        super().__init__(run, best, skipped)
        self.features, self.judge = features, judge
        self.day2night, self.night2day = averaged["day2night"], averaged["night2day"]
        if not self.every:
            return
        self.images = {"day": self.crops(held["--day"]), "night": self.crops(held["--night"] if features else [])}
        days, nights = (sum(gathered(len(crops))) for crops in self.images.values())
        self.counts = {"held_out_day": days} | ({"held_out_night": nights} if features else {})
        with_kid = features is not None and min(days, nights) >= 3
        if not features:
            say("KID is not measured: --lambda-feature 0 loads no network to see with")
        elif not with_kid:
            say(f"KID is not measured: it needs 3 held-out images by day and by night, here are {days} and {nights}")
        self.tell_unmeasured(with_kid)
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
        if self.real is None:
            nights = {i: self.vector(self.features(x[None].to(device))) for i, (x, _) in self.images["night"].items()}
            self.real = self.all_of(nights)
        names = self.judge.config["names"] if self.judge else []
        found, judged = {}, torch.zeros(len(names), len(names), dtype=torch.int64)
        for i, (day, seen_at) in self.images["day"].items():
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
        of_images = self.all_of(found)
        if not of_images:
            return {}
        values = {}
        if min(len(of_images), len(self.real)) >= 3:
            vectors = torch.stack([one["vector"] for one in of_images])
            values["kid"], values["kid_error"] = kid(vectors, torch.stack(self.real))
        for name in ("feature", "cycle") if self.features else ("cycle",):
            values[name] = sum(one[name] for one in of_images) / len(of_images)
        if self.judge:
            judged = self.total(judged)
            shares = (100 * judged.diagonal() / judged.sum(1)).tolist()
            values["kept"] = 100 * accuracy(judged)
            values |= {f"kept/{name}": x for name, x in zip(names, shares, strict=True)}
        return values | self.counts

    def vector(self, features) -> torch.Tensor:
        """Of one image what KID compares: D numbers."""
        means = [f.float().transpose(0, 1).flatten(1).mean(1) for f in features]
        return torch.cat([m / s for m, s in zip(means, self.features.norm.scales.sqrt(), strict=True)]).cpu()

    def labels(self, image, shape: tuple[int, int]) -> torch.Tensor:
        if image.shape[2:] != shape:
            image = F.interpolate(image.float(), shape, mode="bilinear", antialias=True, align_corners=False)
        with self.accelerator.autocast():
            return self.judge(image).argmax(1)


def to_preview(held: dict[str, list[ImageSet]], sets: dict[str, list[ImageSet]], option: str, read, kind, size) -> list:
    """`read(i, photographs)` of up to three images, always the same, of what is held out, else of what is trained on.

    `kind(image set, size)` makes the photographs. What cannot be read is left out: whoever uses it says what is wrong.
    """
    some, found = [s for s in held.get(option) or () if s.images] or sets[option], []
    for image_set in some[:3]:
        photographs = kind(thinned(image_set, -(-3 // len(some))), size)
        for i in range(len(photographs)):
            with suppress(InputError):
                found.append(read(i, photographs))
    return found[:3]


def unlabelled(image_set: ImageSet, size: str) -> Photographs:
    return Photographs(image_set.images, size)


def levels_and_labels(i: int, images: LabelledPhotographs) -> tuple[torch.Tensor, torch.Tensor]:
    image = images.levels(i)
    return image, images.label(i, *image.shape[1:])


def in_range(image: torch.Tensor, device) -> torch.Tensor:
    """3×H×W of uint8 → 1×3×H×W in [-1, 1]."""
    return scaled(image[None].to(device))


class SegmentationValidation(Validation):
    """Of the student and its teacher, at the training's size, whole images; all values in percent.

    `day_miou`, `day_accuracy`: the teacher on held-out labelled day images (classes that occur), `day/<class>` IoU.
    `validate_on_miou`, `validate_on_accuracy`, `validate_on/<class>`: the same on --validate-on. On held-out night
    images, without labels: `night_agreement`, the mean over all classes of the IoU of teacher and student, a class that
    the teacher never predicts counting 0; `night_mask`, the pixels that Eq. 14 accepts at the last value of ρ.
    """

    def __init__(self, run, best: Best, skipped, held, labelled: ImageSet | None, student, teacher):
        super().__init__(run, best, skipped)
        self.student, self.teacher = student, teacher
        if not self.every:
            return
        options = run.options
        # in memory, as bytes: a run should not end at a later validation because a file is gone by then
        for name, some in {"day": held["--day"], "validate_on": [labelled] if labelled else []}.items():
            for image_set in (s for s in some if s.images):
                photographs = LabelledPhotographs(image_set, options.size)
                self.images[name] = self.readable(levels_and_labels, photographs)
        self.tell_unmeasured(best.measure.removesuffix("_miou") in self.images)
        nights = [path for s in held.get("--night", []) for path in s.images]
        nights = [nights[i] for i in evenly(len(nights), options.validate_images)]
        self.images["night"] = self.readable(lambda i, images: images.levels(i), Photographs(nights, options.size))

    def measure(self) -> dict[str, float]:
        modes = {module: module.training for module in self.student.modules()}
        self.student.eval()
        try:
            found = [self.scores(n, x) for n, x in self.images.items() if n != "night"] + [self.agreement()]
        finally:
            for module, mode in modes.items():
                module.training = mode
        return {name: value for values in found for name, value in values.items()}

    def logits(self, model, image: torch.Tensor) -> torch.Tensor:
        """Of 3×H×W, uint8."""
        with self.accelerator.autocast():
            return model(in_range(image, self.run.device)).float()

    def scores(self, name: str, images: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        """The teacher's scores on labelled images."""
        names = self.teacher.config["names"]
        matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
        for image, labels in images.values():
            predictions = self.logits(self.teacher, image).argmax(1)
            matrix += confusion_matrix(labels, predictions.cpu(), len(names))
            self.run.alive()
        matrix = self.total(matrix)
        if not matrix.sum():
            return {}
        values = {f"{name}_miou": 100 * mean_iou(matrix), f"{name}_accuracy": 100 * accuracy(matrix)}
        occurs = (matrix.sum(1) > 0).tolist()
        ious = (100 * iou(matrix)).tolist()
        return values | {f"{name}/{c}": x for c, x, there in zip(names, ious, occurs, strict=True) if there}

    def agreement(self) -> dict[str, float]:
        """What teacher and student make of night images, without labels."""
        classes, rho = len(self.teacher.config["names"]), numbers(self.run.options.rho)[1]
        matrix, pixels = torch.zeros(classes, classes, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        for image in self.images["night"].values():
            logits, others = self.logits(self.teacher, image), self.logits(self.student, image)
            matrix += confusion_matrix(logits.argmax(1), others.argmax(1), classes).cpu()
            accepted = losses.confidence_mask(logits.softmax(1), rho)
            pixels += torch.tensor([int(accepted.sum()), accepted.numel()])
            self.run.alive()
        matrix, (accepted, seen) = self.total(matrix), self.total(pixels).tolist()
        if not seen:
            return {}
        return {"night_agreement": 100 * mean_iou(matrix, "all"), "night_mask": 100 * accepted / seen}
