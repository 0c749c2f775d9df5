"""ACDC: adverse conditions; read are its night images, with labels."""

from pathlib import Path

from daynight.data.layouts.layout import Layout, has, of_kinds


class ACDC(Layout):
    name, short = "ACDC", "acdc"
    night_only = True
    images = ("rgb_anon/night/{split}/**/*_rgb_anon",)
    labels = of_kinds("gt/night/{split}/**/*_gt_{kind}.png", "labelTrainIds", "labelIds", "labelColor")

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Dark Zurich keeps its images in rgb_anon too, but has the split there and not the condition."""
        return has(root, *(f"rgb_anon/{condition}" for condition in ("night", "fog", "rain", "snow")))
