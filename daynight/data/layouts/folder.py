"""Data of one's own: images with labels in folders of their own, or only images."""

from pathlib import Path

from daynight.data.labels import TRAIN_IDS, Classes, read_classes
from daynight.data.layouts.layout import Layout, has


class Folder(Layout):
    """images/<split> and labels/<split>, or both without splits; classes.json says what the train ids mean."""

    name = "folder"
    images = ("images/{split}/**/*",)
    labels = ((TRAIN_IDS, "labels/{split}/**/*.png"),)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        beside = has(root, "labels", "images/train", "images/val") or (root / "classes.json").exists()
        return has(root, "images") and beside

    def classes(self, needed: bool) -> Classes | None:
        path = self.root / "classes.json"
        return read_classes(path) if needed or path.exists() else None


class Images(Layout):
    """A bare tree of images, which is what every folder is that no other layout recognises."""

    name = "images"
    images = ("**/*",)

    def classes(self, needed: bool) -> Classes | None:
        return None

    def expected_labels(self, labels: str | None) -> str:
        return "images/<split>/ with labels/<split>/**/*.png and classes.json"
