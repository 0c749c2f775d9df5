"""BDD100K: 100,000 images by time of day, and 10,000 others with labels, some of which have a time of day."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from daynight.data.labels import COLORS, TRAIN_IDS
from daynight.data.layouts.layout import Layout, counted
from daynight.data.layouts.times import expected_files, times_of_day
from daynight.system.errors import InputError

_TAGS = {"day": "daytime", "twilight": "dawn/dusk", "night": "night"}


class BDD100K(Layout):
    name, short = "BDD100K", "bdd"
    night_by_tags = True
    images = ("images/100k/{split}/**/*", "images/10k/{split}/**/*", "seg/images/{split}/**/*")
    labels = (
        (TRAIN_IDS, "labels/sem_seg/masks/{split}/**/*.png"),
        (TRAIN_IDS, "seg/labels/{split}/**/*_train_id.png"),
        (COLORS, "labels/sem_seg/colormaps/{split}/**/*.png"),
        (COLORS, "seg/color_labels/{split}/**/*_train_color.png"),
    )
    # some of its zips unpack to 100k/ or 10k/ alone
    signs = ("images/100k", "images/10k", "labels/sem_seg", "seg/images", "seg/labels", "100k", "10k")

    def __init__(self, root: Path, notes: tuple[str, ...] = (), ten_k: bool = False):
        """The images of the 100k set, without labels; with `ten_k` those of the 10k set, with labels."""
        self.ten_k = ten_k
        if ten_k:
            self.name, self.images = "BDD100K 10k", self.images[1:]
        else:
            self.images, self.labels = self.images[:1], ()
        super().__init__(root, notes)

    def parts(self) -> list[Layout]:
        return [self, BDD100K(self.root, self.notes, ten_k=True)]

    @cached_property
    def _tags(self) -> dict[str, str]:
        """By an image's stem, of all splits: the 10k images of a split are in any split of the 100k, or in none."""
        return times_of_day(self.root / "labels", ("train", "val", "test"))

    def choose(self, images: list[Path], splits: Sequence[str | None], time: str | None, where: str):
        """Without what the 10k's val and test score, as the sets overlap. Images without a tag are never guessed."""
        notes, (_, ten_k) = [], self.parts()
        scored = [] if self.ten_k else {"val", "test"} & ten_k.splits.keys() - set(splits)
        stems = {image.stem for _, image in ten_k.files(ten_k.pattern, scored)}
        kept = [image for image in images if image.stem not in stems]
        if len(kept) < len(images):
            notes.append(f"{counted(len(images) - len(kept), 'image')} left out that the 10k set scores")
        if time is None:
            return kept, notes
        if not self._tags:
            wanted = expected_files("train" if self.ten_k else splits[0] or "train")
            raise InputError(f"{where}: no time of day; expected {wanted}")
        counts, tag = Counter(self._tags.get(image.stem, "undefined") for image in kept), _TAGS[time]
        unknown = f"; {counts['undefined']:,} without a time of day are left out" if counts["undefined"] else ""
        notes.append(f"{counts[tag]:,} of {counted(len(kept), 'image')} are tagged {tag}{unknown}")
        return [image for image in kept if self._tags.get(image.stem) == tag], notes

    def time_of(self, image: Path) -> str | None:
        return self._tags.get(image.stem, "no entry") if self._tags else None
