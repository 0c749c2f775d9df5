"""Cityscapes: day, European cities, 19 classes."""

from daynight.data.layouts.layout import Layout, of_kinds


class Cityscapes(Layout):
    name, short = "Cityscapes", "cs"
    images = ("leftImg8bit/{split}/**/*_leftImg8bit",)
    labels = of_kinds("gtFine/{split}/**/*_gtFine_{kind}.png", "labelIds", "labelTrainIds", "color")
