"""KITTI's semantic benchmark: day, Karlsruhe, 200 labelled images in Cityscapes' label ids."""

from daynight.data.labels import LABEL_IDS
from daynight.data.layouts.layout import Layout


class KITTI(Layout):
    """Its 200 images without labels (testing/) are not read."""

    name, short = "KITTI", "kitti"
    images = ("training/image_2/**/*",)
    labels = ((LABEL_IDS, "training/semantic/**/*.png"),)
    signs = ("training/semantic",)
