"""What a training measures on held-out images and keeps: right numbers, and the same training with or without it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import trees
from safetensors.torch import load_file, save_file
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)
from test_processes import run
from test_run import assert_same_end, kill, metrics, one_thread, seg_options, stop_after, train, translate_options  # noqa: F401

from daynight import losses
from daynight.config import SegTrainOptions
from daynight.data.images import LabelledPhotographs, Photographs
from daynight.data.sets import load
from daynight.demo import streets
from daynight.evaluation.metrics import accuracy, confusion_matrix, kid, mean_iou
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import load_model
from daynight.models.perceptual import FeatureNetwork
from daynight.training.validation import Best, SegmentationValidation, held_out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    for name, night in (("day", False), ("night", True)):
        streets.write(root / name, 0, night, train=4, val=4, size=(32, 64))
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), root / "test_resnet.safetensors")
    return root


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Uninterrupted runs that validate after steps 2, 4, 6 and 7, and the options that made them."""
    root = tmp_path_factory.mktemp("runs")
    weights, validating = str(data / "test_resnet.safetensors"), {"validate_every": 2, "log_every": 1}
    seg = {"ssl": True, "train_on": "both", "translator": "darken", "validate_on": str(data / "night")} | validating
    made = {
        "seg": seg_options(data, root / "seg", **seg),
        "translation": translate_options(
            data, root / "translation", crop="32x64", feature_weights=weights, judge=str(root / "seg"), **validating
        ),
    }
    for options in made.values():
        train(options)
    return root, made


KINDS = ["seg", "translation"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_is_learned_with_and_without(kind, runs, tmp_path):
    root, made = runs
    train(replace(made[kind], out=str(tmp_path / "run"), validate_every=0))
    state = "checkpoint-0000007/state.safetensors"
    one, other = load_file(root / kind / state), load_file(tmp_path / "run" / state)
    assert {name for name in one if not name.startswith("best.")} == other.keys() < one.keys()
    assert [name for name, x in other.items() if not torch.equal(x, one[name])] == []
    assert not (tmp_path / "run/best").exists()
    for line, plain in zip(metrics(root / kind), metrics(tmp_path / "run"), strict=True):
        assert {name: line[name] for name in plain} == plain
        assert (line.keys() > plain.keys()) == (line["step"] in (2, 4, 6, 7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_keeps_the_same_best(step, kind, runs, tmp_path, monkeypatch):
    """Killed after the step that follows, or ends in, a validation; the checkpoint before it is left."""
    root, made = runs
    options = replace(made[kind], out=str(tmp_path / kind), save_every=3)
    stop_after(monkeypatch, step, kill, options)
    train(options)
    assert_same_end(root / kind, tmp_path / kind)
    parts = sorted(path.name for path in (root / kind / "best").iterdir())
    assert parts == (["teacher"] if kind == "seg" else ["day2night", "night2day"])
    for part in parts:
        best, found = (load_file(folder / kind / "best" / part / "model.safetensors") for folder in (root, tmp_path))
        assert [name for name, x in best.items() if not torch.equal(x, found[name])] == []


def test_best_is_the_model_of_the_best_validation():
    for measure, values, chosen in (
        ("kid", [3.0, 1.0, 2.0, 1.0], 1),
        ("validate_on_miou", [3.0, 5.0, 4.0, 5.0], 1),
        ("day_miou", [None, 2.0, 2.0, 1.0], 1),
        ("day_miou", [1.0, 2.0, None, 3.0], 3),
    ):
        model = torch.nn.Linear(1, 1, bias=False)
        best = Best(measure, {"model": model})
        for step, value in enumerate(values):
            with torch.no_grad():
                model.weight.fill_(step)
            best.take(step, {"other": 9.0} | ({measure: value} if value is not None else {}))
        assert best.models["model"].weight.item() == best.step == chosen
        # and after a resume
        again = Best(measure, {"model": model})
        again.load_state_dict(best.state_dict())
        again.take(9, {measure: best.value})
        assert again.models["model"].weight.item() == again.step == chosen
        # from a checkpoint of before the first validation, where that one was tried first
        again.load_state_dict(Best(measure, {"model": model}).state_dict())
        assert not again.models and again.value is None
    nothing = Best("none", {"model": model})
    nothing.take(1, {"kid": 1.0})
    assert not nothing.models


def test_what_a_translator_is_measured_by(data, runs):
    """The last line of metrics.jsonl against the same from the models on disk, on whole images, as large as a crop."""
    root, made = runs
    folder, found = root / "translation", metrics(root / "translation")[-1]
    there, back = (load_model(str(folder), part, "", Generator) for part in ("day2night", "night2day"))
    judge = load_model(str(root / "seg"), "teacher", "", DeepLabV2)
    weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(data / "test_resnet.safetensors")}}
    network = FeatureNetwork("test_resnet", ("layer1", "layer2"), **weights)
    scales = load_file(folder / "checkpoint-0000007/state.safetensors")["feature_norm.scales"]
    sets = {name: Photographs(sorted((data / name / "images/val").iterdir()), "native") for name in ("day", "night")}
    day, night = (torch.stack([images.image(i) for i in range(4)]) for images in sets.values())
    with torch.no_grad():
        fake = there(day)
        vectors = [
            torch.cat([f.mean((2, 3)) / s.sqrt() for f, s in zip(network(x), scales, strict=True)], 1)
            for x in (fake, night)
        ]
        content = [
            sum((a - b).square().mean() / s for a, b, s in zip(network(x), network(y), scales, strict=True))
            for x, y in zip(day[:, None], fake[:, None], strict=True)
        ]
        labels = judge(day).argmax(1), judge(fake).argmax(1)
        assert (found["kid"], found["kid_error"]) == pytest.approx(kid(*vectors), rel=1e-4)
        assert found["cycle"] == pytest.approx(float(losses.cycle(day, back(fake))), rel=1e-5)
    assert found["feature"] == pytest.approx(float(torch.stack(content).mean()), rel=1e-4)
    matrix = confusion_matrix(*labels, len(streets.CLASSES)).double()
    assert found["kept"] == pytest.approx(100 * accuracy(matrix))
    shares = matrix.diagonal() / matrix.sum(1)
    named = {name: float(100 * x) for (name, _), x in zip(streets.CLASSES, shares, strict=True) if x == x}
    assert {name[5:]: x for name, x in found.items() if name.startswith("kept/")} == pytest.approx(named)
    assert (found["held_out_day"], found["held_out_night"]) == (4, 4)


def test_what_a_teacher_is_measured_by(data, runs):
    root, _ = runs
    found, teacher = metrics(root / "seg")[-1], load_model(str(root / "seg"), "teacher", "", DeepLabV2)
    for name, measured in (("day", "day"), ("night", "validate_on")):
        photographs = LabelledPhotographs(load(str(data / name), Path(), "", splits=("val",)), "native")
        images = [photographs.image(i) for i in range(4)]
        labels = [photographs.label(i, *image.shape[1:]).long() for i, image in enumerate(images)]
        with torch.no_grad():
            matrix = confusion_matrix(torch.cat(labels), teacher(torch.stack(images)).argmax(1), len(streets.CLASSES))
        assert found[f"{measured}_miou"] == pytest.approx(100 * mean_iou(matrix))
        assert found[f"{measured}_accuracy"] == pytest.approx(100 * accuracy(matrix))
        assert 0 <= found[f"{measured}/road"] <= 100


class Stub(torch.nn.Module):
    """Sure (90 %) of the class of each column, whatever it sees: `columns` shares the width out evenly."""

    config = {"names": ["a", "b", "c", "d"]}

    def __init__(self, *columns):
        super().__init__()
        self.columns = torch.tensor(columns)

    def forward(self, images):
        width = images.shape[3]
        classes = self.columns[torch.arange(width) * len(self.columns) // width]
        probabilities = torch.full((4, width), 0.1 / 3)
        probabilities[classes, torch.arange(width)] = 0.9
        return probabilities.log()[None, :, None].expand(-1, -1, images.shape[2], -1)


@pytest.mark.parametrize(
    "teacher, student, rho, agreement, mask",
    [
        ((0, 1, 2, 3), (0, 1, 2, 3), "0,0.8", 100, 100),
        # the student takes half of a for b: IoU of a 1/2, of b 1/2 of the union
        ((0, 0, 1, 1), (0, 1, 1, 1), "0,0.95", 100 * (1 / 2 + 2 / 3) / 4, 0),
        # one class everywhere: nothing but the mask speaks for it
        ((2, 2, 2, 2), (2, 2, 2, 2), "0.95,0.5", 25, 100),
        ((0, 3, 3, 0), (3, 0, 0, 3), "0,0.8", 0, 100),
    ],
)
def test_what_is_measured_at_night_without_labels(teacher, student, rho, agreement, mask, data):
    options = seg_options(data, "", rho=rho)
    accelerator = SimpleNamespace(process_index=0, num_processes=1, autocast=lambda: torch.no_grad())
    run = SimpleNamespace(options=options, accelerator=accelerator, device="cpu", alive=lambda: None)
    held = {option: [load(str(data / option[2:]), Path(), "", splits=("val",))] for option in ("--day", "--night")}
    best = SimpleNamespace(measure="none")
    found = SegmentationValidation(run, best, None, held, None, Stub(*student), Stub(*teacher)).agreement()
    assert found == pytest.approx({"night_agreement": agreement, "night_mask": mask})


def test_two_processes_measure_as_one(data, tmp_path, monkeypatch):
    """Shares of the images that are not equally large."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    home, backbone = tmp_path, data / "test_resnet.safetensors"
    (home / "outputs").mkdir()
    for name, night in (("streets", False), ("dark", True)):
        streets.write(home / "data" / name, 0, night, train=4, val=5, size=(32, 64))
    common = "--day streets --night dark --crop 32 --size native --steps 2 --batch-size 2 --log-every 2 --lr 0"
    lines = [
        "seg-train --ssl --translator darken --head-width 8 --backbone test_resnet --backbone-weights "
        f"{backbone} --validate-on dark {common}",
        "translate-train --width 4 --blocks 1 --feature-network test_resnet --feature-layer layer1 --judge seg-train-1 "
        f"--feature-weights random {common}",
    ]
    for line in lines:
        name = line.split()[0]
        for count in (1, 2):
            assert run(f"{line} --out {name}-{count}", count, home).codes == [0] * count
        one, two = (metrics(home / f"{name}-{count}")[-1] for count in (1, 2))
        measured = [key for key in one if key.startswith(("day", "night", "validate", "kid", "kept", "cyc", "fe"))]
        measured = [key for key in measured if key not in ("cycle_day", "cycle_night", "feature_day", "feature_night")]
        assert len(measured) > 5 and {key: one[key] for key in measured} == {key: two[key] for key in measured}


def test_what_is_held_out(tmp_path, capsys):
    """The val split; else evenly spaced images, which nothing trains on, under whatever name it finds them."""
    trees.folder(tmp_path / "day", train=4, val=2)
    trees.bare(tmp_path / "night", count=65)
    trees.bare(tmp_path / "few", count=9)
    sets = {
        "--day": [load("day", tmp_path, "--day", labelled=True)],
        "--night": [
            load(name, tmp_path, "--night", time="night") for name in ("night", "few", str(tmp_path / "night"))
        ],
        "--unlabelled-day": [load("night", tmp_path, "--unlabelled-day")],
    }
    options = SegTrainOptions(validate_images=5)
    left, held = held_out(options, sets, tmp_path, labelled=("--day",))
    (day,), nights = held["--day"], held["--night"]
    assert left["--day"] == sets["--day"] and {path.parts[-2] for path in day.images} == {"val", "street"}
    assert len(day.images) == len(day.labels) == 2 and all(day.labels)
    assert [len(s.images) for s in nights] == [5, 0, 5] and nights[0].images == nights[2].images
    assert [len(s.images) for s in left["--night"]] == [60, 9, 60]
    numbers = [sets["--night"][0].images.index(path) for path in nights[0].images]
    assert {b - a for a, b in zip(numbers, numbers[1:], strict=False)} == {13}
    for image_set in left["--night"] + left["--unlabelled-day"]:
        assert not set(nights[0].images) & set(image_set.images)
    said = capsys.readouterr().out
    assert "night: images, a tenth, not trained on, 5 images" in said and "no images of few" in said
    assert held_out(replace(options, validate_images=100), sets, tmp_path)[1]["--night"][0].images.__len__() == 6
    assert held_out(replace(options, validate_every=0), sets, tmp_path) == (sets, {})


TRAIN = (
    "seg-train --day {data}/day --night {data}/night --size native --crop 32 --backbone test_resnet --backbone-weights "
    "random --head-width 8 --steps 2 --batch-size 2 --validate-images 4 "
)
TRANSLATE = (
    "translate-train --day {data}/day --night {data}/night --size native --crop 32 --width 4 --blocks 1 --steps 2 "
    "--feature-network test_resnet --feature-layer layer1 --feature-weights random "
)


@pytest.mark.parametrize(
    "line, message",
    [
        (TRANSLATE + "--judge {tmp}/none", "--judge {tmp}/none: no such folder"),
        (TRAIN + "--keep-best labelled", "--keep-best labelled: is the mIoU on --validate-on"),
        (TRAIN + "--validate-on {tmp}/own", "--validate-on {tmp}/own: its classes are not those of --day {data}/day"),
        (TRAIN + "--validate-on {tmp}/bare", "--validate-on: {tmp}/bare: no labels"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_done(line, message, data, tmp_path):
    trees.folder(tmp_path / "own")
    trees.bare(tmp_path / "bare")
    names = {"data": data, "tmp": tmp_path}
    result = daynight(f"{line} --out {tmp_path / 'run'}".format(**names))
    assert result.code == 2 and message.format(**names) in result.err and result.err.count("\n") == 1, result
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line, said, kept",
    [
        (TRANSLATE + "--lambda-feature 0", "KID is not measured: --lambda-feature 0", False),
        (TRANSLATE, "the best by --keep-best kid", True),
        (TRANSLATE + "--validate-images 2", "it needs 3 held-out images by day and by night, here are 2 and 2", False),
        (TRANSLATE + "--keep-best none", "to validate: ", False),
        (TRAIN + "--day {tmp}/own --train-on day", "no best/: --keep-best day is not measured", False),
        (TRAIN + "--train-on day", "the best by --keep-best day", True),
        (TRAIN + "--keep-best labelled --validate-on {data}/night", "the best by --keep-best labelled", True),
    ],
)
def test_what_is_kept(line, said, kept, data, tmp_path):
    trees.folder(tmp_path / "own", val=0)
    result = daynight(f"{line} --out {tmp_path / 'run'}".format(data=data, tmp=tmp_path))
    assert result.code == 0 and said in result.out, result
    assert (tmp_path / "run/best").exists() == kept
    if kept:
        command = "eval" if line.startswith("seg") else "translate"
        rest = f"--dataset {data}/night" if command == "eval" else f"--in {data}/day --out {tmp_path}/out"
        for model in ("run", "run/best"):
            assert daynight(f"{command} --model {tmp_path}/{model} {rest}").code == 0


def test_a_held_out_image_that_cannot_be_read_stops_no_run_in_its_middle(data, tmp_path):
    for name in ("day", "night"):
        trees.folder(tmp_path / name, val=3)
    (tmp_path / "night/images/val/street/001.jpg").write_bytes(b"no image")
    line = f"{TRANSLATE} --out {tmp_path}/run".format(data=tmp_path)
    refused = daynight(line)
    assert refused.code == 2 and "val/street/001.jpg: not a readable image" in refused.err, refused
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    result = daynight(f"{line} --skip-unreadable")
    assert result.code == 0 and "1 skipped that cannot be read" in result.out, result
    assert metrics(tmp_path / "run")[-1].keys() >= {"cycle", "feature"} and not (tmp_path / "run/best").exists()
