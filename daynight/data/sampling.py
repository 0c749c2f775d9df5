"""Which sample each place of each batch holds: a function of (seed, step, slot) and of nothing else."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from daynight.data.labels import read_label
from daynight.data.layouts import ImageSet
from daynight.data.transforms import resize_image, resize_label, target_size, to_tensor
from daynight.errors import InputError


def generator(seed: int, step: int, slot: int | str, device="cpu") -> torch.Generator:
    """The only source of randomness: what step `step` draws for `slot`, a sample's place in the global batch (or the
    name of a draw that belongs to no sample)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{slot}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def choose(length: int, generator: torch.Generator) -> int:
    return int(torch.randint(length, (), generator=generator))


class Images:
    """The images of some paths, read by Hugging Face datasets: `images[i]` is an RGB image, upright.

    Raises `InputError` naming a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        table = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
        self.table = table.cast_column("image", datasets.Image(mode="RGB"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> Image.Image:
        try:
            return self.table[i]["image"]
        except (OSError, SyntaxError, ValueError) as error:
            reason = "is empty" if self.paths[i].is_file() and not self.paths[i].stat().st_size else f"({error})"
            raise InputError(f"{self.paths[i]}: not a readable image {reason}".replace("\n", " ")) from error


class Photographs:
    """Images at `size`, as tensors: what trainings draw from."""

    def __init__(self, paths: Sequence[Path], size: str):
        self.images, self.size = Images(paths), size

    def __len__(self):
        return len(self.images)

    def image(self, i: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """3×H×W in [-1, 1], of `shape` where it is given, else as `size` says."""
        image = self.images[i]
        return to_tensor(resize_image(image, *(shape or target_size(image.height, image.width, self.size))))


class LabelledPhotographs(Photographs):
    """The images of an `ImageSet` with their labels."""

    def __init__(self, image_set: ImageSet, size: str):
        super().__init__(image_set.images, size)
        self.image_set = image_set

    def labelled(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The image, and its 1×H×W train ids (int64), 255 = ignore."""
        image = self.images[i]
        height, width = target_size(image.height, image.width, self.size)
        kind, classes = self.image_set.label_kind, self.image_set.classes
        label = read_label(self.image_set.labels[i], kind, classes, (image.height, image.width))
        label = torch.from_numpy(resize_label(label, height, width).copy()).long()
        return to_tensor(resize_image(image, height, width)), label[None]


class Samples(Dataset):
    """`samples[step, slot]` is what `draw` makes with the generator of (seed, step, slot), and the step."""

    def __init__(self, draw: Callable[[torch.Generator, int], dict], seed: int):
        self.draw, self.seed = draw, seed

    def __getitem__(self, key: tuple[int, int]):
        return self.draw(generator(self.seed, *key), key[0])


def batches(draw, seed: int, steps: range, slots: range, workers: int) -> DataLoader:
    """One batch for each step, of the samples in `slots` (those of the global batch that this process works on).

    The number of workers changes nothing. Never hand it to `Accelerator.prepare`, which would deal it out again.
    """
    keys = [[(step, slot) for slot in slots] for step in steps]
    return DataLoader(
        Samples(draw, seed),
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
