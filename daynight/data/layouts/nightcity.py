"""NightCity: 4,297 labelled night images of many cities, in Cityscapes' label ids."""

from daynight.data.labels import LABEL_IDS, LABEL_TRAIN_IDS
from daynight.data.layouts.layout import Layout


class NightCity(Layout):
    name, short = "NightCity", "nightcity"
    night_only = True
    images = ("NightCity-images/images/{split}/**/*",)
    labels = (
        (LABEL_IDS, "NightCity-label/label/{split}/**/*_labelIds.png"),
        (LABEL_TRAIN_IDS, "NightCity-label/label/{split}/**/*_trainIds.png"),
    )
    signs = ("NightCity-images", "NightCity-label")
