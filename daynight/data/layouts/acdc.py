"""ACDC: adverse conditions; read are its night images, with labels."""

from pathlib import Path

from daynight.data.layouts.layout import Layout, folders, of_kinds


class ACDC(Layout):
    name, short = "ACDC", "acdc"
    night_only = True
    images = ("rgb_anon/night/{split}/**/*_rgb_anon",)
    labels = of_kinds("gt/night/{split}/**/*_gt_{kind}.png", "labelTrainIds", "labelIds", "labelColor")

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Dark Zurich has the same folders, but with the split in them and not the condition."""
        return bool(folders(root, "gt/night", *(f"rgb_anon/{name}" for name in ("night", "fog", "rain", "snow"))))
