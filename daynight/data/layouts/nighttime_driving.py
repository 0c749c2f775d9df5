"""Nighttime Driving: 50 labelled night images to evaluate on."""

from daynight.data.layouts.layout import Layout, of_kinds

_LABELS = "gtCoarse_daytime_trainvaltest"


class NighttimeDriving(Layout):
    name, short = "Nighttime Driving", "nd"
    night_only = True
    images = ("leftImg8bit/{split}/**/*_leftImg8bit",)
    # papers scored the labelTrainIds of 2018; the labelIds, corrected in 2019, differ
    labels = of_kinds(_LABELS + "/{split}/**/*_gtCoarse_{kind}.png", "labelTrainIds", "labelIds", "color")
    signs = (_LABELS, "leftImg8bit/test/night")
    label_notes = {
        "labelTrainIds": "labels are the labelTrainIds of 2018; --labels labelIds takes those corrected in 2019"
    }
