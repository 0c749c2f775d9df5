"""Data of one's own: images with labels in folders of their own, or only images."""

from pathlib import Path

from daynight.data.labels import TRAIN_IDS, Classes, read_classes
from daynight.data.layouts.layout import Layout, folders


class Folder(Layout):
    """images/<split> and labels/<split>, or both without splits; classes.json says what the train ids mean."""

    name = "folder"
    images = ("images/{split}/**/*",)
    labels = ((TRAIN_IDS, "labels/{split}/**/*.png"),)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        described = bool(folders(root, "images")) and (root / "classes.json").exists()
        return described or bool(folders(root, "labels", "images/train", "images/val"))

    @classmethod
    def expected(cls) -> str:
        return f"{super().expected()} and classes.json"

    def classes(self, needed: bool) -> Classes | None:
        path = self.root / "classes.json"
        return read_classes(path) if needed or path.exists() else None


class Images(Layout):
    """A bare tree of images, which is what every folder is that no other layout recognises."""

    name = "images"
    images = ("**/*",)
    expected = Folder.expected

    def classes(self, needed: bool) -> Classes | None:
        return None
