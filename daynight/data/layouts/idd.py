"""IDD, the India Driving Dataset: day, Indian roads, in Cityscapes' 19 classes."""

from pathlib import Path

from daynight.data.labels import COLORS, LABEL_TRAIN_IDS, LabelKind
from daynight.data.layouts.layout import Layout

_OWN = "of IDD's own classes; --id-type csTrainId of its createLabels.py makes those of Cityscapes"


class IDD(Layout):
    """Its authors' tool (github.com/AutoNUE/public-code, preperation/createLabels.py) draws label files from polygons
    and names them after the ids asked for. Of these, csTrainIds are Cityscapes' 19 classes; converters for
    mmsegmentation copy them as labelTrainIds. The ids of IDD's four levels (26 classes on level 3) mean other classes.
    """

    name, short = "IDD", "idd"
    images = ("leftImg8bit/{split}/**/*_leftImg8bit",)
    labels = (
        (LABEL_TRAIN_IDS, "gtFine/{split}/**/*_gtFine_labelcsTrainIds.png"),
        (LABEL_TRAIN_IDS, "gtFine/{split}/**/*_gtFine_labelTrainIds.png"),
        (LabelKind("level3Ids", refused=_OWN), "gtFine/{split}/**/*_gtFine_labellevel3Ids.png"),
        (COLORS, "gtFine/{split}/**/*_gtFine_labelColors.png"),
        (LabelKind("polygons", refused=f"polygons {_OWN}"), "gtFine/{split}/**/*_gtFine_polygons.json"),
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """IDD numbers its drives (leftImg8bit/train/0) where Cityscapes names cities, and has no file of labelIds."""
        drives = [path.name for path in root.glob("leftImg8bit/*/*") if path.name[0] != "."]
        numbered = bool(drives) and all(map(str.isdecimal, drives))
        return numbered and next(root.glob("gtFine/*/*/*_gtFine_labelIds.png"), None) is None
