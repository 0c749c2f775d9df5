"""Where G(x_s) of a sample comes from, and the samples of a segmentation training (§3.3).

A source of translations has a `name` for messages, an `identity` that a resumed run compares, and the call `(crop, g)`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from daynight.config import SegTrainOptions, pair
from daynight.data.cache import Cache, digest
from daynight.data.images import LabelledPhotographs, Photographs
from daynight.data.layouts.tree import locate
from daynight.data.sampling import RareClasses, choose
from daynight.data.sets import ImageSet, counterparts, fingerprint
from daynight.data.transforms import add_noise, cut, darken, fourier, half_of_classes, jitter, random_box, scaled
from daynight.system.errors import InputError
from daynight.system.files import read_json


class DayCrop(NamedTuple):
    """A crop of day image `number` of the set `name`: `image`, 3×crop in [-1, 1].

    `cut_from` cuts the same place from another tensor of the image's `shape` (height, width). `night` draws a crop of a
    real night image.
    """

    name: str
    number: int
    image: torch.Tensor
    shape: tuple[int, int]
    cut_from: Callable[[torch.Tensor], torch.Tensor]
    night: Callable[[torch.Generator], torch.Tensor]


class Darken:
    """Translates without training: a random gamma, gain, tint and sensor noise."""

    name = identity = "darken"

    def __call__(self, crop: DayCrop, g: torch.Generator) -> torch.Tensor:
        return darken(crop.image, g)


class Fourier:
    """Translates without training: the low frequencies' amplitudes of a real night image."""

    name = identity = "fourier"

    def __call__(self, crop: DayCrop, g: torch.Generator) -> torch.Tensor:
        return fourier(crop.image, crop.night(g))


class Network:
    """A generator, `name` its run or folder. It translates whole batches on the device, in the training's loop,
    so nothing comes from here. `weights`: its identity."""

    def __init__(self, name: str, weights: str):
        self.name, self.identity = name, f"run {weights}"

    def __call__(self, crop: DayCrop, g: torch.Generator) -> None:
        return None


class Folder:
    """The translations of whole images in a folder. `sets`: by the name of a sample's image ("day", …) the images.

    Raises `InputError` naming an image that has no translation there.
    """

    def __init__(self, path: Path, sets: dict[str, ImageSet], size: str):
        self.name, self.photographs = str(path), {}
        for name, image_set in sets.items():
            found, without = counterparts(image_set.images, image_set.root, path)
            if without:
                missing = f"{len(without):,} of {len(image_set.images):,} images of {image_set.name}"
                told = f"{missing} have no translation there, as {without[0].relative_to(image_set.root)}"
                raise InputError(f"--translated {path}: {told}; daynight translate goes on with it")
            self.photographs[name] = Photographs(found, size)
        self.root = locate(path).root
        self.record = next(filter(Path.is_file, (f / "translation.json" for f in (path, self.root))), None)
        self.identity = f"folder {read_json(self.record).get('model') if self.record else path}"

    def __call__(self, crop: DayCrop, g: torch.Generator) -> torch.Tensor:
        return crop.cut_from(self.photographs[crop.name].levels(crop.number, crop.shape))

    def fingerprint(self) -> dict[str, str]:
        """Of names, contents and times, as that of an `ImageSet`; and of how the translations were made."""
        paths = [path for photographs in self.photographs.values() for path in photographs.images.paths]
        made = digest(str(self.record and read_json(self.record) | {"files": None}))  # of more images it may be
        return fingerprint(self.root, paths) | {" (translation.json)": made}


UNTRAINED = {"darken": Darken, "fourier": Fourier}


PLACES = 10  # tries of a crop that holds the rare class


class Draw:
    """Draws a sample: `day` and `labels` from one place, and, where they are needed, `fake_day` from the same place,
    `weak_night` A_w(x_t) and `strong_night` A_s(x_t), `unlabelled_day` and `fake_unlabelled_day`. With `--mix` parts of
    `fake_day` are pasted onto x_t before A_s; `pasted` has their labels, and 255 elsewhere.

    Images are 3×crop in [-1, 1], labels are train ids. `source` makes the translations, None where there are none.
    Night images come from step `--ssl-start` on. `days`: the images by their name in the sample, of which "day" has
    labels.
    """

    def __init__(self, options: SegTrainOptions, days: dict[str, ImageSet], nights: Sequence[ImageSet], source):
        self.options, self.source, self.crop = options, source, pair(options.crop)
        self.ssl_start = options.ssl_start * options.steps if options.ssl else options.steps
        self.nights = Photographs([path for s in nights for path in s.images], options.size)
        self.days = {name: Photographs(s.images, options.size) for name, s in days.items() if name != "day"}
        self.days = {"day": LabelledPhotographs(days["day"], options.size)} | self.days
        self.rare = None
        if options.ssl and options.mix and isinstance(source, Network):
            given = f"--mix: pastes from translations in a folder, not from {source.name} on the fly"
            raise InputError(f"{given}; daynight translate writes them, --translated takes them")

    def __call__(self, g: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        sample = self.day("day", g)
        if step >= self.ssl_start:
            if "unlabelled_day" in self.days:
                sample |= self.day("unlabelled_day", g)
            night = self.night(g)
            sample["weak_night"] = add_noise(night, self.options.weak_noise, g)
            if self.options.mix:
                pasted = half_of_classes(sample["labels"], g)
                night = torch.where(pasted, sample.get("fake_day", sample["day"]), night)
                sample["pasted"] = sample["labels"].where(pasted, 255)
            sample["strong_night"] = add_noise(jitter(night, self.options.jitter, g), self.options.strong_noise, g)
        return sample

    def day(self, name: str, g: torch.Generator) -> dict[str, torch.Tensor]:
        """A crop of a day image: with its labels (of the labelled set) and its translation."""
        photographs, rare = self.days[name], self.rare if name == "day" else None
        i, drawn = rare(g) if rare else (choose(len(photographs), g), None)
        image = photographs.levels(i)
        shape = tuple(image.shape[1:])
        # read before anything more is drawn: a label that cannot be read leaves the generator where it is
        labels = photographs.label(i, *shape) if name == "day" else None
        for _ in range(PLACES if rare else 1):
            cut_from = self.place(shape, g)
            if rare and rare.in_crop(cut_from(labels, fill=255), drawn):
                break
        sample = {name: cut_from(image)}
        if labels is not None:
            sample["labels"] = cut_from(labels, fill=255)[0]
        fake = self.source(DayCrop(name, i, sample[name], shape, cut_from, self.night), g) if self.source else None
        return sample if fake is None else sample | {f"fake_{name}": fake}

    def night(self, g: torch.Generator) -> torch.Tensor:
        image = self.nights.levels(choose(len(self.nights), g))
        return self.place(image.shape[1:], g)(image)

    def place(self, shape: tuple[int, int], g: torch.Generator) -> Callable[..., torch.Tensor]:
        """Draws a crop, and whether it is mirrored: a function that cuts it from an image or, with `fill`, labels."""
        box = random_box(*shape, self.crop, g)
        flip = self.options.flip and torch.rand((), generator=g) < 0.5

        def cut_from(tensor, fill=None):
            tensor = cut(tensor, box, self.crop, fill)
            tensor = tensor.flip(2) if flip else tensor
            return scaled(tensor) if fill is None else tensor.long()

        return cut_from

    def translated(self) -> dict[str, Photographs]:
        """The translated images in a folder, by what each is a translation of."""
        return self.source.photographs if isinstance(self.source, Folder) else {}

    def keep_in(self, cache: Cache) -> None:
        """Have each file decoded and resized once."""
        for kind, some in (("", self.days), ("translated ", self.translated())):
            for name, photographs in some.items():
                photographs.keep_in(cache, f"{kind}--{name.replace('_', '-')}")
        if len(self.nights):
            self.nights.keep_in(cache, "--night")
        if self.options.rare_classes:
            counts = self.days["day"].counts(cache, self.options.skip_unreadable)
            self.rare = RareClasses(counts, self.options.rare_classes)
