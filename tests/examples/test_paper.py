"""examples/paper: its configurations hold §4.2's numbers, which reach what is built, and its script makes Table 1."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isgenerator
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from test_cli import clean, daynight, parse, shell  # noqa: F401 (two are fixtures)
from test_commands import draw_data, entries, metrics, times
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from daynight import losses, segmentation, translation
from daynight.config import numbers, pair
from daynight.data.labels import CITYSCAPES
from daynight.data.transforms import target_size
from daynight.models.discriminator import Discriminator
from daynight.models.ema import EMA
from daynight.models.generator import Generator, Residual, UpConv
from daynight.models.perceptual import FeatureNetwork
from daynight.training.run import ramp

PAPER = Path(__file__).parents[2] / "examples/paper"
SPEC = spec_from_file_location("paper", PAPER / "run.py")
SCRIPT = module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
TRANSLATORS = ("cyclegan", "cyclegan+fl")
# Table 1: mIoU and accuracy on Cityscapes, on Nighttime Driving; and the control that the paper does not have
TABLE = {
    "baseline": "68.8 94.7 35.0 80.0",
    "baseline-equal-images": "– – – –",
    "cyclegan": "52.9 90.9 40.34 84.8",
    "cyclegan+fl": "63.7 93.5 44.7 85.4",
    "cyclegan+fl+day": "67.4 94.3 45.1 85.5",
    "ssl": "68.2 94.4 56.5 90.1",
}
DAY = SimpleNamespace(classes=CITYSCAPES)
# only sizes: learning rates, decays, batch sizes, weights of losses and their schedules stay the configurations'
SMALL = {
    "DAYNIGHT_TRANSLATE_SIZE": "native",
    **{f"DAYNIGHT_{command}_{name}": value for command in ("TRANSLATE_TRAIN", "SEG_TRAIN")
       for name, value in {"STEPS": "7", "CROP": "32", "SIZE": "native", "LOG_EVERY": "1"}.items()},
    "DAYNIGHT_TRANSLATE_TRAIN_WIDTH": "4",
    "DAYNIGHT_TRANSLATE_TRAIN_BLOCKS": "1",
    "DAYNIGHT_TRANSLATE_TRAIN_FEATURE_NETWORK": "test_resnet",
    "DAYNIGHT_TRANSLATE_TRAIN_FEATURE_LAYER": "layer1",
    "DAYNIGHT_TRANSLATE_TRAIN_FEATURE_WEIGHTS": "random",
    "DAYNIGHT_SEG_TRAIN_STEPS": "10",
    "DAYNIGHT_SEG_TRAIN_BACKBONE": "test_resnet",
    "DAYNIGHT_SEG_TRAIN_BACKBONE_WEIGHTS": "random",
    "DAYNIGHT_SEG_TRAIN_HEAD_WIDTH": "8",
}  # fmt: skip


class Seen:
    """What trainings do, by the run's name: learning rates at each step, clipped norms, decays, ρ, batches."""

    def __init__(self, patch):
        self.runs, self.patch = defaultdict(lambda: defaultdict(list)), patch
        self.watch(Accelerator, "clip_grad_norm_", lambda _, parameters, norm: (len(parameters), norm))
        self.watch(EMA, "__init__", lambda _, model, decay: (type(model).__name__, decay))
        self.watch(losses, "confidence_mask", lambda _, rho: rho)
        self.watch(segmentation, "ramp", lambda step, steps, *ends: ramp(step, steps, *ends))
        self.watch(losses, "cross_entropy", lambda logits, *_: tuple(logits.shape))
        self.hook = register_optimizer_step_pre_hook(self.step)

    def watch(self, owner, name, what):
        function = getattr(owner, name)

        def watched(*arguments):
            arguments = [list(a) if isgenerator(a) else a for a in arguments]
            self.runs[self.run][name].append(what(*arguments))
            return function(*arguments)

        self.patch.setattr(owner, name, watched)

    def step(self, optimizer, *_):
        (group,) = optimizer.param_groups
        self.runs[self.run][type(optimizer).__name__].append((group["lr"], group["betas"]))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the script has run on small data sets, what it printed, and what its trainings did."""
    home = tmp_path_factory.mktemp("home")
    draw_data(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        seen = Seen(patch)
        yield home, script(home, seen=seen), seen.runs
        seen.hook.remove()


def script(home, *words, seen=None, only_say=False):
    """Run the script, and the commands it starts in this process: importing torch takes each of them seconds."""

    class Process:
        def __init__(self, words):
            self.wait = lambda: 0
            if only_say:
                return
            assert words[:3] == [sys.executable, "-m", "daynight"]
            if seen:
                seen.run = Path(words[words.index("--out") + 1]).name if "--out" in words else None
            result = daynight(shlex.join(words[3:]), home, **SMALL)
            print(result.out, end="")
            print(result.err, end="", file=sys.stderr)
            self.wait = lambda: result.code

    handlers, printed = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(SCRIPT, "subprocess", SimpleNamespace(Popen=Process))
        patch.setattr(sys, "argv", ["run.py", "--data-root", "data", *words])
        patch.chdir(home)
        try:
            SCRIPT.main()
        finally:
            for s, handler in handlers:
                signal.signal(s, handler)
    return printed.getvalue()


def commands(printed):
    return [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("$ ")]


def table(printed):
    """The rows of the table: ours, and the paper's."""
    lines = [re.findall(r"[^|]+(?= \|)", line) for line in printed.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:]] for line in lines[2:]]
    return [line[0::2] for line in cells], [line[1::2] for line in cells]


# §4.2


def test_section_4_2(parse, ran):  # noqa: F811
    """§4.2 in its order: what the configurations build, what they make the trainings do, and what is the default."""
    home, _, runs = ran
    cyclegan, fl = (parse(f"translate-train --config '{PAPER}/translator-{name}.json'") for name in TRANSLATORS)
    rows = {row: parse(f"seg-train --config '{PAPER}/{row}.json'") for row in TABLE}
    ssl, with_fl = rows["ssl"], runs["translator-cyclegan+fl"]

    # CycleGAN's generators, with 9 blocks; a bilinear upsampling and a convolution of the same filter size and channels
    # are where a deconvolution was
    with torch.device("meta"):
        networks, original = translation.build_generators(fl), Generator(upsample="deconv")
    for generator in (networks.day2night, networks.night2day):
        assert len(of_kind(generator, Residual)) == 9 and not of_kind(generator, nn.ConvTranspose2d)
        assert shapes(of_kind(generator, UpConv)) == shapes(of_kind(original, nn.ConvTranspose2d)) != []
    layer, x = UpConv(3, 2), torch.rand(1, 3, 8, 8)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(layer(x)[..., 1:-1, 1:-1], F.conv2d(bilinear, layer.weight), atol=1e-5)
    # the discriminator is a PatchGAN
    assert receptive_field(of_kind(Discriminator(fl.width), nn.Conv2d)) == 70
    # Adam, β 0.5 and 0.999, learning rate 0.0002 for 100,000 of 700,000 iterations (1 of 7) and then 0.0001
    assert fl.steps == 700_000 and fl.lr_drop * fl.steps == 100_000
    assert with_fl["Adam"] == 2 * [(2e-4, (0.5, 0.999))] + 6 * 2 * [(1e-4, (0.5, 0.999))]  # G and D
    # gradients are clipped to 5.0 for each network; the average of the generators is kept, its decay being 0.9999
    g, d = (len(list(network.parameters())) for network in (Generator(1, 4), Discriminator(4)))
    assert with_fl["clip_grad_norm_"] == 7 * [(g, 5.0), (g, 5.0), (d, 5.0), (d, 5.0)]
    assert with_fl["__init__"] == 2 * [("Generator", 0.9999)]
    assert_averages(home / "runs/paper/translator-cyclegan+fl", "generators.{}", ["day2night", "night2day"])
    # feature loss on the second convolution of the fifth block of VGG-19, of ImageNet (§3.2)
    assert fl.lambda_feature > 0 and fl.feature_weights == "pretrained" and fl.feature_layer == ["features.31"]
    with torch.device("meta"):
        vgg = FeatureNetwork(fl.feature_network, tuple(fl.feature_layer)).network.features
    assert len(of_kind(vgg, nn.Conv2d)) == 16 and imagenet("vgg19")
    assert [type(m).__name__ for m in vgg[27:32]] == ["MaxPool2d", "Conv2d", "ReLU", "Conv2d", "ReLU"]
    assert len(of_kind(vgg[:28], nn.MaxPool2d)) == 4
    # CycleGAN without it differs in nothing else (§4.3)
    assert asdict(cyclegan) == asdict(fl) | {"config": cyclegan.config, "lambda_feature": 0}
    assert {**runs["translator-cyclegan"]} == {**with_fl}

    for row, options in rows.items():
        # student and teacher are DeepLabV2 on a VGG-16 of ImageNet
        assert options.backbone_weights == "pretrained" and imagenet(options.backbone)
        with torch.device("meta"):
            network = segmentation.build_student(replace(options, backbone_weights="random"), DAY)
        assert options.backbone == "vgg16" and len(of_kind(network.backbone, nn.Conv2d)) == 13
        assert [branch.dilation[0] for branch in network.head.fc6] == [6, 12, 18, 24]
        # the teacher is what is evaluated, also without SSL; its decay is 0.999
        assert runs[row]["__init__"] == [("DeepLabV2", 0.999)]
        assert_averages(home / "runs/paper" / row, "student", ["teacher"])
        # 50,000 iterations with batches of 8, of 256×256 from 512×1024
        assert options.steps == 50_000 or row == "baseline-equal-images"
        assert pair(options.crop) == (256, 256) and target_size(1024, 2048, options.size) == (512, 1024)
        assert options.batch_size == 8 and set(runs[row]["cross_entropy"]) == {(8, 19, 32, 32)}
        # Adam, learning rate 0.0001
        assert runs[row]["Adam"] == 10 * [(1e-4, (0.9, 0.999))]
        assert options.ssl == (row == "ssl")
    # ρ rises linearly from 0.5 to 0.9; the first 10,000 steps are without the SSL loss, then both losses are used
    assert numbers(ssl.rho) == (0.5, 0.9) and ssl.ssl_start * ssl.steps == 10_000
    rho = [0.5 + 0.4 * step / 9 for step in range(2, 10)]
    # what follows is the validation after the last step
    assert runs["ssl"]["confidence_mask"][:16] == pytest.approx([each for each in rho for _ in range(2)])
    # a batch has day images, the same translated, and night images
    supervised, consistent = {"ce_day", "ce_fake_day"}, {"ssl_fake_unlabelled_day", "ssl_strong_night"}
    terms = [{name for name in line if name[:2] in ("ce", "ss")} for line in metrics(home / "runs/paper/ssl")]
    assert terms == 2 * [supervised] + 8 * [supervised | consistent]
    # λ_ssl is 50 and doubles linearly
    assert numbers(ssl.lambda_ssl) == (50, 100)
    assert runs["ssl"]["ramp"][1::2] == pytest.approx([50 + 50 * step / 9 for step in range(2, 10)])
    # the translator is not trained any more: it has made its images
    assert entries(home / "runs/paper/ssl/options.json")["options"]["translated"] == "runs/paper/cs_night-cyclegan+fl"


def test_the_configurations_say_all_of_it(parse):  # noqa: F811
    """Each number, also where it is the default; and nothing else, so that the rows differ in what they are about."""
    written = {path.stem: entries(path) for path in PAPER.glob("*.json")}
    assert written.keys() == {"translate", "eval", *TABLE, *(f"translator-{name}" for name in TRANSLATORS)}
    seg = "day train-on size crop backbone backbone-weights steps batch-size lr ema-decay".split()
    ssl = "ssl night unlabelled-day ssl-start rho lambda-ssl weak-noise strong-noise jitter".split()
    gan = "day night size crop batch-size width blocks upsample gan lambda-cyc lambda-feature steps lr lr-drop"
    assert all(set(seg) <= written[row].keys() for row in TABLE) and set(ssl) <= written["ssl"].keys()
    assert all({*gan.split(), "ema-decay"} <= written[f"translator-{name}"].keys() for name in TRANSLATORS)
    for line, config in (
        ("translate-train", "translator-cyclegan+fl"),
        ("translate-train --lambda-feature 0", "translator-cyclegan"),
        ("seg-train --train-on day", "baseline"),
        ("seg-train --train-on day --steps 180000", "baseline-equal-images"),
        ("seg-train --train-on translated", "cyclegan"),
        ("seg-train --train-on translated", "cyclegan+fl"),
        ("seg-train --train-on both", "cyclegan+fl+day"),
        ("seg-train --train-on both --ssl --unlabelled-day cs", "ssl"),
    ):
        given = parse(f"{line.split()[0]} --config '{PAPER}/{config}.json'")
        assert given == replace(parse(line), config=given.config)


def test_the_control_is_shown_as_many_images_as_ssl(parse):  # noqa: F811
    control, ssl = (parse(f"seg-train --config '{PAPER}/{row}.json'") for row in ("baseline-equal-images", "ssl"))
    # day and its translation; then also an unlabelled day image's translation and a night image
    before = ssl.ssl_start * ssl.steps
    assert control.steps * control.batch_size == ssl.batch_size * (2 * before + 4 * (ssl.steps - before))


# the script


def test_every_row_in_order(ran):
    _, printed, _ = ran
    made = [(words[3], *words[6:]) for words in commands(printed)]
    root = ("--data-root", "data")
    expected = [("eval", *root, "--dry-run")]
    for row in TABLE:
        out, translated = f"runs/paper/{row}", ()
        if row not in ("baseline", "baseline-equal-images"):
            name = "cyclegan" if row == "cyclegan" else "cyclegan+fl"
            network, folder = f"runs/paper/translator-{name}", f"runs/paper/cs_night-{name}"
            translated = ("--translated", folder)
            if row in TRANSLATORS:
                expected.append(("translate-train", *root, "--out", network))
                expected.append(("translate", *root, "--model", network, "--out", folder))
        expected.append(("seg-train", *root, *translated, "--out", out))
        expected.append(("eval", *root, "--model", out, "--json", f"runs/paper/results/{row}.json"))
    assert made == expected


def test_the_table_is_ours_beside_the_papers(ran, tmp_path):
    home, printed, _ = ran
    models = " ".join(f"--model runs/paper/{row}" for row in TABLE)
    result = daynight(f"eval {models} --dataset cs --dataset nd --json {tmp_path}/all.json", home)
    assert result.code == 0, result
    scored = entries(tmp_path / "all.json")
    assert [(entry["dataset"], entry["split"]) for entry in scored[:2]] == [("cs", "val"), ("nd", "test")]
    assert [entry for row in TABLE for entry in entries(home / f"runs/paper/results/{row}.json")] == scored
    ours, papers = table(printed)
    assert sum(ours, []) == [f"{entry[score]:.1f}" for entry in scored for score in ("miou", "accuracy")]
    assert papers == [line.split() for line in TABLE.values()]


def test_each_row_has_its_own_results(tmp_path):
    """As networks that have hardly learned do not show."""
    for i, row in enumerate(TABLE):
        scores = [{"miou": i + 0.06, "accuracy": i + 0.24}, {"miou": i + 0.44, "accuracy": i + 0.96}]
        (tmp_path / f"{row}.json").write_text(json.dumps(scores))
    (tmp_path / "cyclegan.json").unlink()
    ours, _ = table(SCRIPT.table(tmp_path))
    expected = [[f"{i}.1", f"{i}.2", f"{i}.4", f"{i + 1}.0"] for i in range(len(TABLE))]
    assert ours == [*expected[:2], 4 * ["–"], *expected[3:]]


def test_again_nothing_is_done(ran):
    home, printed, _ = ran
    before = times(home)
    again = script(home)
    assert not commands(again) and table(again) == table(printed) and times(home) == before


def test_it_goes_on_where_it_stopped(ran):
    home, printed, _ = ran
    path = home / "runs/paper/results/ssl.json"
    content = path.read_bytes()
    path.unlink()
    assert table(script(home, "--rows"))[0][-1] == 4 * ["–"]
    again = script(home)
    assert [words[3] for words in commands(again)] == ["eval", "translate-train", "translate", "seg-train", "eval"]
    for done in ("at step 7 of 7", "8 images, 8 there", "at step 10 of 10"):
        assert done in again
    assert path.read_bytes() == content and table(again) == table(printed)


def test_launch_and_rows(ran, tmp_path):
    said = script(tmp_path, "--launch", "accelerate launch -m daynight", "--rows", "ssl", "baseline", only_say=True)
    plain, launched = [sys.executable, "-m", "daynight"], "accelerate launch -m daynight".split()
    starts = [(words[: words.index("--config")]) for words in commands(said)]
    assert starts == [
        [*plain, "eval"],
        [*plain, "translate-train"],  # of one image a step
        *([*launched, command] for command in ("translate", "seg-train", "eval", "seg-train", "eval")),
    ]


def test_an_error_is_the_steps_own(tmp_path):
    """As a process of its own, and so are its steps: also from a folder that is not the repository."""
    words = [PAPER / "run.py", "--data-root", "nowhere", "--out", tmp_path / "out"]
    result = shell(sys.executable, *words, cwd=tmp_path, check=False)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch("daynight: --dataset: .*nowhere/cs.*\n", result.stderr)


STEP = """import signal, sys, time
def stop(number, _):
    print("asked to stop", flush=True)
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_step_that_is_interrupted_may_save_first(number, to, tmp_path):
    """Ctrl-C goes to both processes, SIGTERM to the script alone."""
    (tmp_path / "step.py").write_text(STEP)
    code = f"import runpy, sys; runpy.run_path({str(PAPER / 'run.py')!r})['run']([sys.executable, 'step.py'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = iter(process.stdout)
    while next(until) != "started\n":
        pass
    to(process.pid, number)
    assert process.wait(10) == 128 + number
    assert list(until) == ["asked to stop\n", "saved\n"]


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_the_exit_status_is_the_steps(end, code):
    with pytest.raises(SystemExit) as stopped, pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCRIPT.signal, "signal", lambda *_: None)
        SCRIPT.run([sys.executable, "-c", f"import os, sys; {end}"])
    assert stopped.value.code == code


def of_kind(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def shapes(layers):
    return [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in layers]


def receptive_field(layers):
    """Of one output of convolutions that follow each other, in pixels."""
    field = 1
    for layer in reversed(layers):
        field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    return field


def imagenet(network):
    """Whether `pretrained` means weights of ImageNet's 1,000 classes."""
    return timm.models.get_pretrained_cfg(network).tag.endswith("in1k")


def assert_averages(run, trained, products):
    """What a run leaves is the average of its networks, not the networks."""
    (checkpoint,) = run.glob("checkpoint-*/state.safetensors")
    state = load_file(checkpoint)
    for product in products:
        kept = load_file(run / product / "model.safetensors")
        average = "teacher" if product == "teacher" else f"{product}_average"
        assert all(torch.equal(tensor, state[f"{average}.{name}"]) for name, tensor in kept.items())
        assert any(not torch.equal(kept[name], state[f"{trained.format(product)}.{name}"]) for name in kept)
