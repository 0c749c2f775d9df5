"""Dark Zurich: Zurich by day, twilight and night, without labels; labels for the night images of val."""

from collections.abc import Sequence
from pathlib import Path

from daynight.data.layouts.layout import Layout, images_in, of_kinds


class DarkZurich(Layout):
    name, short = "Dark Zurich", "dz"
    images = ("rgb_anon/{split}/**/*_rgb_anon",)
    labels = of_kinds("gt/{split}/**/*_gt_{kind}.png", "labelTrainIds", "labelIds", "labelColor")

    def time_of(self, image: Path) -> str:
        return self.inside(image)[1].parts[0]

    def choose(self, images: list[Path], splits: Sequence[str | None], time: str | None, where: str):
        """The time is a folder: train/day, train/twilight, train/night; val's day images are in val_ref/day."""
        chosen = []
        for folder in (self.splits[split] for split in splits) if time else ():
            own, reference = folder / time, folder.with_name(f"{folder.name}_ref") / time
            chosen += images_in(reference if reference.is_dir() and not own.is_dir() else own)
        return sorted(chosen) if time else images, []
