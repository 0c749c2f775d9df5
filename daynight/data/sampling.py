"""Which sample each place of each batch holds: a function of (seed, step, slot) and of nothing else."""

import hashlib
import multiprocessing.util
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, default_collate

from daynight.console import say, warn
from daynight.data.cache import Cache
from daynight.data.labels import read_label
from daynight.data.layouts import ImageSet
from daynight.data.transforms import resize_image, resize_label, scaled, target_size
from daynight.errors import Unreadable

# of damaged metadata, and of sizes that a camera may well have: whatever cannot be read raises an error besides
warnings.filterwarnings("ignore", module=r"PIL\.")
DRAWS = 100  # until a training gives up finding something that can be read


def generator(seed: int, step: int, slot: int | str, device="cpu") -> torch.Generator:
    """The only source of randomness: what step `step` draws for `slot`, a sample's place in the global batch (or the
    name of a draw that belongs to no sample)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{slot}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def choose(length: int, generator: torch.Generator) -> int:
    return int(torch.randint(length, (), generator=generator))


class Images:
    """The images of some paths, read by Hugging Face datasets: `images[i]` is an RGB image, upright.

    Raises `Unreadable` naming a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        # absolute: datasets takes what stands before a colon in a relative path for a protocol
        table = datasets.Dataset.from_dict({"image": [os.path.abspath(path) for path in paths]})
        self.table = table.cast_column("image", datasets.Image())

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> Image.Image:
        path = self.paths[i]
        try:
            return to_rgb(self.table[i]["image"])
        # Pillow answers damaged files with exceptions of any kind
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "in no format that Pillow knows" if path.stat().st_size else "the file is empty"
            raise Unreadable(f"{path}: not a readable image ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode in 8 bits a channel: of 16-bit grey 65535 becomes 255, alpha is dropped.

    Raises `ValueError` where it is not known which value is white.
    """
    if image.mode == "F":
        raise ValueError("of floating-point values; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("of 32 bits a pixel; expected 8 or 16")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    return image.convert("RGB")


class Photographs:
    """Images at `size`, as tensors: what trainings draw from."""

    def __init__(self, paths: Sequence[Path], size: str):
        self.images, self.size, self.kept = Images(paths), size, None
        self.file_sizes = {}  # height and width of the files that were read

    def __len__(self):
        return len(self.images)

    def keep_in(self, cache: Cache, name: str) -> None:
        """Have each file decoded and resized once; the cache says what it keeps of them."""
        self.kept = cache.add(name, self.images.paths, self.size, 3)

    def levels(self, i: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """3×H×W of 0 to 255 (uint8), of `shape` where it is given, else as `size` says."""

        def make() -> np.ndarray:
            image = self.images[i]
            self.file_sizes[i] = image.height, image.width
            return np.array(resize_image(image, *(shape or target_size(image.height, image.width, self.size))))

        array = self.kept(i, make) if self.kept else make()
        if shape and array.shape[:2] != tuple(shape):
            array = make()  # it is kept at another size
        return torch.from_numpy(array).permute(2, 0, 1)

    def image(self, i: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """The same, in [-1, 1] (float32)."""
        return scaled(self.levels(i, shape))


class LabelledPhotographs(Photographs):
    """The images of an `ImageSet` with their labels."""

    def __init__(self, image_set: ImageSet, size: str):
        super().__init__(image_set.images, size)
        self.image_set, self.kept_labels = image_set, None

    def keep_in(self, cache: Cache, name: str) -> None:
        super().keep_in(cache, name)
        self.keep_labels_in(cache, name)

    def keep_labels_in(self, cache: Cache, name: str) -> None:
        made_of = f"{self.image_set.label_kind} {self.image_set.classes}"
        self.kept_labels = cache.add(f"{name} labels", self.image_set.labels, self.size, 1, made_of)

    def labelled(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The image in [-1, 1], and its 1×H×W train ids (int64), 255 = ignore."""
        image = self.image(i)
        return image, self.label(i, *image.shape[1:]).long()

    def label(self, i: int, height: int, width: int, own_size: bool = True) -> torch.Tensor:
        """1×height×width train ids (uint8), 255 = ignore; `own_size`: the file must be as large as its image's."""

        def make() -> np.ndarray:
            if own_size and i not in self.file_sizes:
                image = self.images[i]
                self.file_sizes[i] = image.height, image.width
            path, size = self.image_set.labels[i], self.file_sizes[i] if own_size else None
            return resize_label(
                read_label(path, self.image_set.label_kind, self.image_set.classes, size), height, width
            )

        array = self.kept_labels(i, make) if self.kept_labels else make()
        if array.shape != (height, width):
            array = make()
        return torch.from_numpy(np.require(array, requirements="W"))[None]


class Skipped:
    """The files that a training went on without as they cannot be read: each is said once and listed in `file`.

    `goes_on`: with a run that is resumed, its list is.
    """

    def __init__(self, file: Path, goes_on: bool):
        self.file = file
        if not goes_on:
            file.unlink(missing_ok=True)
        self.lines = set(self._read())

    def _read(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.add(line)
            warn(f"skipped {line}")
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def tell(self) -> None:
        """List all of them, those that other processes met too."""
        lines = sorted(set(self._read()))
        say(f"{len(lines):,} skipped that cannot be read" + f", as {self.file} lists:" * bool(lines))
        for line in lines:
            say(f"  {line}")


class Samples(Dataset):
    """`samples[step, slot]` is what `draw` makes with the generator of (seed, step, slot), and the step.

    `skip`: what comes next from that generator takes the place of what cannot be read; beside it why, a line each.
    """

    def __init__(self, draw: Callable[[torch.Generator, int], dict], seed: int, skip: bool):
        self.draw, self.seed, self.skip = draw, seed, skip

    def __getitem__(self, key: tuple[int, int]) -> tuple[dict, list[str]]:
        g, skipped = generator(self.seed, *key), []
        while True:
            try:
                return self.draw(g, key[0]), skipped
            except Unreadable as error:
                if not self.skip:
                    raise Unreadable(f"{error}; --skip-unreadable goes on without it") from error
                skipped.append(" ".join(str(error).split()))
                if len(skipped) == DRAWS:
                    raise Unreadable(f"{error}; so were the {DRAWS - 1} drawn before it") from error


def _collate(samples: list[tuple[dict, list[str]]]) -> tuple[dict, list[str]]:
    drawn, skipped = zip(*samples, strict=True)
    return default_collate(drawn), [line for lines in skipped for line in lines]


def _leave_signals(_worker: int) -> None:
    # what Ctrl-C and launchers send to a whole process group is for the main process: it may still need its batch
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch raises an error at each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def loader(dataset: Dataset, workers: int, **settings) -> DataLoader:
    """A DataLoader whose workers leave signals to this process and end with it, however it ends.

    They are forked: the fork server that Python 3.14 would put between outlives a killed process, and they with it.
    """
    if not workers:
        return DataLoader(dataset, **settings)
    # when this process ends, multiprocessing sends SIGTERM to those that are left, and waits for them
    multiprocessing.util.Finalize(None, _end_workers, exitpriority=1)
    return DataLoader(
        dataset, num_workers=workers, worker_init_fn=_leave_signals, multiprocessing_context="fork", **settings
    )


def batches(
    draw, seed: int, steps: range, slots: range, workers: int, skipped: Skipped | None = None
) -> Iterator[dict]:
    """One batch for each step, of the samples in `slots` (those of the global batch that this process works on).

    The number of workers changes nothing. What cannot be read ends it, as `Unreadable`, or is added to `skipped`.
    Never hand it to `Accelerator.prepare`, which would deal it out again.
    """
    drawn = loader(
        Samples(draw, seed, skipped is not None),
        workers,
        batch_sampler=([(step, slot) for slot in slots] for step in steps),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )

    def told(item: tuple[dict, list[str]]) -> dict:
        for line in item[1]:
            skipped.add(line)
        return item[0]

    return map(told, drawn)  # which starts the workers now
