"""Data of one's own: images with labels in folders of their own, or only images."""

from pathlib import Path

from daynight.data.labels import TRAIN_IDS
from daynight.data.layouts.layout import Layout, folders


class Folder(Layout):
    """images/<split> and labels/<split>, or both without splits."""

    name = "folder"
    images = ("images/{split}/**/*",)
    labels = ((TRAIN_IDS, "labels/{split}/**/*.png"),)
    own_classes = True

    @classmethod
    def recognises(cls, root: Path) -> bool:
        described = bool(folders(root, "images")) and (root / "classes.json").exists()
        return described or bool(folders(root, "labels", "images/train", "images/val"))


class Images(Layout):
    """A bare tree of images, which is what every folder is that no other layout recognises."""

    name = "images"
    images = ("**/*",)
    expected = Folder.expected
