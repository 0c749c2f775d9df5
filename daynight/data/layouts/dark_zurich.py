"""Dark Zurich: Zurich by day, twilight and night, without labels; labels for the night images of val."""

from collections.abc import Sequence
from pathlib import Path

from daynight.data.layouts.layout import Layout, is_image, of_kinds, walk


class DarkZurich(Layout):
    name, short = "Dark Zurich", "dz"
    images = ("rgb_anon/{split}/**/*_rgb_anon",)
    labels = of_kinds("gt/{split}/**/*_gt_{kind}.png", "labelTrainIds", "labelIds", "labelColor")
    signs = "rgb_anon", "gt/val/night"

    def time_of(self, image: Path) -> str | None:
        parts = image.relative_to(self.root).parts
        return next((time for time in ("day", "twilight", "night") if time in parts), None)

    def choose(self, images: list[Path], splits: Sequence[str | None], time: str | None, where: str):
        """The time is a folder: train/day, train/twilight, train/night; val's day images are in val_ref/day."""
        chosen = [image for image in images if time in (None, self.time_of(image))]
        reference = (path for split in splits for path in walk(self.root / "rgb_anon" / f"{split}_ref" / f"{time}"))
        return chosen or sorted(filter(is_image, reference)), []
