"""What trains networks that the paper did not have: optimiser, rates, a frozen backbone, recipes."""

import json
import re
import shutil
from dataclasses import fields

import pytest
import timm
import torch
import trees
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)

from daynight.config import SegTrainOptions, TranslateTrainOptions
from daynight.models.deeplab import DeepLabV2
from daynight.models.ema import EMA
from daynight.segmentation import groups, student_terms

SMALL = "--day day --night dark --size native --crop 32 --batch-size 2 --validate-every 0"
SEG = f"seg-train {SMALL} --head-width 8 --ssl --ssl-start 0 --translator darken --rho 0.01,0.05"
MODERN = "--optimizer adamw --weight-decay 0.05 --warmup 0.5 --backbone-lr 0.1 --drop-path 0.3 --grad-checkpointing"


@pytest.fixture
def home(tmp_path):
    trees.folder(tmp_path / "data/day", train=2, val=1)
    trees.bare(tmp_path / "data/dark")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    return tmp_path


def state(run, step):
    return load_file(run / f"checkpoint-{step:07d}/state.safetensors")


def trained_and_resumed(line: str, home):
    """What the training of 4 steps says, whose second half a resumed run repeats to the bit."""
    whole = daynight(f"{line} --steps 4 --save-every 2 --out whole", home)
    assert whole.code == 0, whole
    shutil.copytree(home / "whole", home / "again")
    for path in ((home / "again").glob("checkpoint-0000004*"), (home / "again").glob("*teacher")):
        for folder in path:
            shutil.rmtree(folder)
    again = daynight(f"{line} --steps 4 --save-every 2 --out again", home)
    assert again.code == 0 and "at step 2 of 4" in again.out
    expected, found = state(home / "whole", 4), state(home / "again", 4)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in expected.items())
    return whole


def test_what_goes_beyond_the_paper_is_trained_and_resumed_bit_for_bit(home):
    line = f"{SEG} --config best --backbone test_resnet --backbone-weights random --log-every 1"
    line += " --mix --rare-classes 0.01 --ssl-loss ce --lambda-ssl 1,1"
    assert trained_and_resumed(line, home).err == ""
    logged = [json.loads(text) for text in (home / "whole/metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 4 and all(entry["ce_pasted"] > 0 for entry in logged)
    options = json.loads((home / "whole/options.json").read_text())["options"]
    assert (options["mix"], options["rare-classes"], options["ssl-loss"], options["head"]) == (True, 0.01, "ce", "fuse")


def test_a_vision_transformer_is_trained_and_resumed_bit_for_bit(home):
    whole = trained_and_resumed(f"{SEG} --backbone test_vit --backbone-weights vit.safetensors {MODERN}", home)
    assert whole.err == "" and "test_vit runs at output stride 16, its own" in whole.out
    assert daynight("predict --in dark --out labels --model whole", home).code == 0


# networks of four families, and a layer of each for Eq. 10
FAMILIES = {
    "test_vit": "blocks.3",
    **{"vit_small_patch14_dinov2": "blocks.5", "swin_tiny_patch4_window7_224": "layers.1"},
    **{"hiera_tiny_224": "blocks.3", "convnextv2_atto": "stages.1"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "test_vit")) for name in FAMILIES]
)
def test_a_family_by_the_command_line(name, home):
    line = f"{SEG} --backbone {name} --backbone-weights random --steps 4 --save-every 2"
    dry = daynight(f"{line} --dry-run --out dry", home)
    assert dry.code == 0 and "nothing is wrong" in dry.out and not (home / "dry").exists()
    assert daynight(f"{line} --out whole", home).code == 0
    shutil.copytree(home / "whole", home / "again")
    shutil.rmtree(home / "again/checkpoint-0000004")
    assert "at step 2 of 4" in daynight(f"{line} --out again", home).out
    expected, found = state(home / "whole", 4), state(home / "again", 4)
    assert all(torch.equal(found[key], x) for key, x in expected.items())
    words = f"torchrun --standalone --nproc_per_node 2 -m daynight {line} --out two".split()
    assert "4 steps done" in shell(*words, cwd=home, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true").stdout
    line = f"translate-train {SMALL.replace('--batch-size 2', '')} --steps 2 --width 4 --blocks 1 --validate-every 1"
    features = f"--feature-network {name} --feature-layer {FAMILIES[name]} --feature-weights random"
    assert daynight(f"{line} {features} --out gan", home).code == 0
    values = [json.loads(row) for row in (home / "gan/metrics.jsonl").read_text().splitlines()]
    assert all(row["feature_day"] > 0 for row in values) and any("feature" in row for row in values)


def test_rates_decay_and_warmup():
    model = DeepLabV2(["a"], [(0, 0, 0)], "test_vit", 16, 8, pretrained=False)
    (paper,) = groups(model, SegTrainOptions())
    assert [*map(id, paper["params"])] == [*map(id, model.parameters())] and paper["lr"] == 1e-4
    assert paper["weight_decay"] == 0
    named = {id(p): name for name, p in model.named_parameters()}
    options = SegTrainOptions(lr=1.0, backbone_lr=0.1, weight_decay=0.5)
    for group in groups(model, options):
        for parameter in group["params"]:
            inside = named.pop(id(parameter)).startswith("backbone.")
            assert group["lr"] == pytest.approx(0.1 if inside else 1.0)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)
    assert named == {}


def rates(run, step):
    with safe_open(run / f"checkpoint-{step:07d}/state.safetensors", "pt") as file:
        return [float(x) for x in re.findall(r'\["lr", \{"value": ([\d.e-]+)\}\]', file.metadata()["state"])]


def test_the_rate_grows_through_the_warmup(home):
    line = f"seg-train {SMALL} --train-on day --backbone test_resnet --backbone-weights random --head-width 8"
    assert daynight(f"{line} --steps 4 --warmup 1 --lr 0.01 --save-every 1 --out run", home).code == 0
    # two checkpoints are kept
    assert (rates(home / "run", 3), rates(home / "run", 4)) == ([0.0075], [0.01])
    assert daynight(f"{line} --steps 2 --lr 0.01 --save-every 1 --out plain", home).code == 0
    assert rates(home / "plain", 1) == rates(home / "plain", 2) == [0.01]


def test_a_frozen_backbone_stays_as_it_was(home):
    line = f"{SEG} --backbone test_vit --backbone-weights vit.safetensors --steps 2 --freeze-backbone --out run"
    assert daynight(line, home).code == 0
    given, teacher = load_file(home / "vit.safetensors"), load_file(home / "run/teacher/model.safetensors")
    kept = {name: x for name, x in teacher.items() if name.startswith("backbone.")}
    assert len(kept) > 20 and all(torch.equal(x, given[name.split(".model.")[1]]) for name, x in kept.items())
    optimised = [name for name in state(home / "run", 2) if name.startswith("optimizer") and name.endswith("exp_avg")]
    assert len(optimised) == len(teacher) - len(kept)


def test_a_frozen_backbone_looks_once_for_student_and_teacher():
    torch.manual_seed(0)
    student = DeepLabV2(["a", "b"], [(0, 0, 0)] * 2, "test_resnet", 16, 8, head="fuse", pretrained=False)
    student.backbone.requires_grad_(False)
    student.train()
    teacher, looks = EMA(student, 0.9).model, []
    assert all(a is b for a, b in zip(student.backbone.parameters(), teacher.backbone.parameters(), strict=True))
    for network in (student, teacher):
        network.backbone.register_forward_hook(lambda module, images, maps: looks.append(len(images[0])))
    batch = {name: torch.rand(2, 3, 32, 32) * 2 - 1 for name in ("day", "fake_day", "strong_night", "weak_night")}
    batch["labels"] = torch.randint(2, (2, 32, 32))
    noisy = {"fake_day": "day", "strong_night": "weak_night"}
    found = {}
    for frozen in (False, True):
        looks.clear()
        dropout = [torch.Generator().manual_seed(i) for i in range(4)]
        terms, taught = student_terms(
            student, teacher, batch, ["day", "fake_day"], noisy, None, dropout, 0.1, 10.0, frozen
        )
        found[frozen] = torch.stack([*terms.values(), *(target.sum() for target, _ in taught.values())])
        assert sum(looks) == (8 if frozen else 6 + 4)
    assert torch.allclose(found[True], found[False], rtol=1e-5) and found[True].requires_grad


def test_what_is_asked_of_a_backbone_holds_for_one_that_was_trained_before(home):
    vit = f"{SEG} --backbone test_vit --backbone-weights vit.safetensors --steps 2"
    assert daynight(f"{vit} --out first", home).code == 0
    again = f"{SEG} --init first --steps 2 --out second --freeze-backbone"
    result = daynight(again, home)
    assert result.code == 0 and "test_vit runs at output stride 16, its own" in result.out
    first, second = (load_file(home / f"{run}/teacher/model.safetensors") for run in ("first", "second"))
    assert all(torch.equal(x, first[name]) for name, x in second.items() if name.startswith("backbone."))
    assert not all(torch.equal(x, first[name]) for name, x in second.items())
    refused = daynight(f"{again} --drop-path 0.1", home).line
    assert "--drop-path: is built into a backbone; with --init leave it out" in refused


def test_recipes_are_listed_and_used(home):
    listed = daynight("seg-train --config list", home)
    assert listed.code == 0 and [line.partition(":")[0] for line in listed.out.splitlines()] == [
        "best",
        "cnn",
        "paper",
        "quick",
        "vit",
    ]
    assert [x.partition(":")[0] for x in daynight("translate-train --config list", home).out.splitlines()] == [
        "best",
        "paper",
        "quick",
    ]
    line = f"{SEG} --config vit --backbone test_vit --backbone-weights random --steps 1 --out run"
    assert daynight(line, home).code == 0
    options = json.loads((home / "run/options.json").read_text())["options"]
    assert options["optimizer"] == "adamw" and options["backbone"] == "test_vit" and options["crop"] == "32"
    refused = daynight("seg-train --config vitt", home).line
    assert "--config vitt: cannot be read" in refused
    assert "nor is it one of the recipes best, cnn, paper, quick, vit" in refused


@pytest.mark.parametrize("name", ["best", "cnn", "paper", "quick", "vit"])
def test_every_recipe_is_of_options_that_there_are(name):
    from daynight import cli

    folder = cli.Path(cli.__file__).parent / "recipes"
    recipe = json.loads((folder / f"{name}.json").read_text())
    kinds = {"seg-train": SegTrainOptions, "translate-train": TranslateTrainOptions}
    for command, values in recipe.items():
        if command != "#":
            given = {key.replace("-", "_"): value for key, value in values.items() if not key.startswith("#")}
            assert given.keys() <= {f.name for f in fields(kinds[command])}
            kinds[command](**given)


def test_checkpointing_that_timm_lacks_is_refused(home):
    line = f"seg-train {SMALL} --train-on day --backbone vgg16 --backbone-weights random --steps 1"
    assert "--grad-checkpointing: vgg16 has none in timm" in daynight(f"{line} --grad-checkpointing", home).line
