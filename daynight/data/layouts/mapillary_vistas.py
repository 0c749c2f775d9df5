"""Mapillary Vistas 1.2 and 2.0: day, all continents; its 66 or 124 classes are mapped to Cityscapes' 19."""

from pathlib import Path

from daynight.data.labels import CITYSCAPES, LabelKind
from daynight.data.layouts.layout import Layout, folders

# Ids by the order of `labels` in the data set's own config_v1.2.json and config_v2.0.json. The map follows the
# definitions of Cityscapes' classes (cityscapes-dataset.com/dataset-overview): markings, bike and service lanes are
# road; kerbs, traffic islands and pedestrian areas sidewalk; sand is terrain; the back of a sign, poles in groups,
# guard rails, bridges, tunnels, rail tracks and trailers are of no class. So are parking lots and driveways: published
# maps differ on them (CVRN, init_vistas2cityscapes_format.py; tue-mps/benchmark-vfm-ss, mappings.py).
_IDS = {  # class: ids of 1.2, ids of 2.0
    "road": ((7, 8, 13, 14, 23, 24, 41, 43), (13, 14, 21, 22, 23, *range(35, 59), 74, 77)),
    "sidewalk": ((2, 9, 11, 15), (4, 15, 19, 24, 25)),
    "building": ((17,), (27, 28)),
    "wall": ((6,), (12,)),
    "fence": ((3,), (5,)),
    "pole": ((45, 47), (85, 88)),
    "traffic light": ((48,), range(90, 96)),
    "traffic sign": ((50,), (99, 100, 101, 103)),
    "vegetation": ((30,), (64,)),
    "terrain": ((26, 29), (60, 63)),
    "sky": ((27,), (61,)),
    "person": ((19,), (30, 31)),
    "rider": ((20, 21, 22), (32, 33, 34)),
    "car": ((55,), (108,)),
    "truck": ((61,), (114,)),
    "bus": ((54,), (107,)),
    "train": ((58,), (111,)),
    "motorcycle": ((57,), (110,)),
    "bicycle": ((52,), (105,)),
}


def _kind(version: str, column: int, count: int) -> LabelKind:
    train_ids = {i: CITYSCAPES.names.index(name) for name, ids in _IDS.items() for i in ids[column]}
    return LabelKind(f"Vistas {version} ids", f"Mapillary Vistas {version} id", count, train_ids)


V1, V2 = _kind("1.2", 0, 66), _kind("2.0", 1, 124)


class MapillaryVistas(Layout):
    """2.0 brings the labels of 1.2 along, which are read where both are there: most published results are theirs."""

    name, short = "Mapillary Vistas", "vistas"
    split_names = {"training": "train", "validation": "val", "testing": "test"}
    images = ("{split}/images/**/*",)
    labels = (
        (V1, "{split}/v1.2/labels/**/*.png"),
        (V1, "{split}/labels/**/*.png"),
        (V2, "{split}/v2.0/labels/**/*.png"),
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Anyone could have such folders with labels of other classes: a file or a folder must tell the version."""
        told = folders(root, "{split}/v1.2", "{split}/v2.0") or any(
            b"construction--barrier--curb" in path.read_bytes() for path in root.glob("config*.json")
        )
        return bool(told and folders(root, *(f"{split}/images" for split in cls.split_names)))
