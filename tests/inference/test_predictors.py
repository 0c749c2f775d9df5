"""Labelling images needs no data-set library."""

import sys

import trees
from test_cli import shell
from test_scoring import CLASSES, draw_model

CODE = """import sys
import daynight
from daynight import cli
from PIL import Image

def check():
    assert "torch" in sys.modules and not {"pyarrow", "datasets"} & sys.modules.keys()

daynight.load_segmenter("model")(Image.open("in/0.png"))
check()
sys.argv = "daynight predict --in in --out out --model model".split()
try:
    cli.main()
finally:
    check()
"""


def test_load_segmenter_and_predict_import_no_data_set_library(tmp_path):
    draw_model(tmp_path / "model", CLASSES, 0)
    trees.image(tmp_path / "in/0.png", (24, 48))
    shell(sys.executable, "-c", CODE, cwd=tmp_path)
    assert (tmp_path / "out/ids/0.png").is_file()
