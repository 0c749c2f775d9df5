"""Data of one's own: images with labels in folders of their own, or only images."""

from daynight.data.labels import TRAIN_IDS
from daynight.data.layouts.layout import Layout


class Folder(Layout):
    """images/<split> and labels/<split>, or both without splits."""

    name = "folder"
    images = ("images/{split}/**/*",)
    labels = ((TRAIN_IDS, "labels/{split}/**/*.png"),)
    signs = ("labels", "images/train", "images/val", "classes.json")
    own_classes = True


class Images(Layout):
    """A bare tree of images, which is what every folder is that no other layout recognises."""

    name = "images"
    images = ("**/*",)
    own_classes = True
    expected = Folder.expected
