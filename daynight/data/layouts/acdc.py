"""ACDC: adverse conditions; read are its night images, with labels."""

from daynight.data.layouts.layout import Layout, of_kinds


class ACDC(Layout):
    name, short = "ACDC", "acdc"
    night_only = True
    images = ("rgb_anon/night/{split}/**/*_rgb_anon",)
    labels = of_kinds("gt/night/{split}/**/*_gt_{kind}.png", "labelTrainIds", "labelIds", "labelColor")
    # Dark Zurich has the same folders, but with the split in them and not the condition
    signs = ("gt/night", "rgb_anon/night", "rgb_anon/fog", "rgb_anon/rain", "rgb_anon/snow")
