"""KITTI's semantic benchmark: day, Karlsruhe, 200 labelled images in Cityscapes' label ids."""

from daynight.data.labels import LABEL_IDS
from daynight.data.layouts.layout import Layout


class KITTI(Layout):
    name, short = "KITTI", "kitti"
    split_names = {"training": "train", "testing": "test"}
    images = ("{split}/image_2/**/*",)
    labels = ((LABEL_IDS, "{split}/semantic/**/*.png"),)
    signs = ("training/semantic", "training/image_2", "testing/image_2")
