"""What leaves a run: the card of a model folder, models on the Hub (a stand-in of its file interface), the functions of
the package."""

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import trees
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt
from PIL import Image
from test_cli import clean, daynight, shell  # noqa: F401 (clean is a fixture)
from test_scoring import draw_model, pixels

import daynight as package
from daynight.config import SegTrainOptions
from daynight.models.generator import Generator
from daynight.models.hub import identity, save_model
from daynight.reports.card import BEGIN, END, add_results, public, write_card
from daynight.system.errors import InputError

REPOSITORY = Path(__file__).parents[2]
SMALL = "--day own --night dark --size native --crop 32 --steps 4 --save-every 2 --log-every 1 --validate-every 0"
SEG = f"seg-train {SMALL} --batch-size 2 --backbone test_resnet --backbone-weights random --head-width 8"
TRANSLATE = f"translate-train {SMALL} --width 4 --blocks 1 --lambda-feature 0"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    trees.folder(home / "data/own")
    trees.bare(home / "data/dark")
    for line in (f"{SEG} --seed 3", TRANSLATE):
        assert daynight(line, home).code == 0
    draw_model(home / "model", trees.CLASSES, 0)
    for i, part in enumerate(("day2night", "night2day")):
        torch.manual_seed(i)
        save_model(Generator(1, 4, size="24", crop="16"), home / "translator" / part)
    return home


@pytest.fixture
def run(home, tmp_path):
    return shutil.copytree(home / "runs/seg", tmp_path / "seg")


# the card


FILES = {"README.md", "config.json", "model.safetensors"}


def test_a_model_folder_is_a_repository(home):
    """Each product of a run has what the Hub reads, and what a reader wants to know."""
    for folder, task in (("seg/teacher", "image-segmentation"), ("day2night/night2day", "image-to-image")):
        folder = home / "runs" / folder
        assert {path.name for path in folder.iterdir()} == FILES
        card = ModelCard.load(folder / "README.md")
        assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("daynight", task, "unknown")
        assert "night" in card.data.tags and card.data.eval_results is None
        assert card.data.base_model is None and card.data.datasets is None
        assert "4 of 4 steps" in card.text and identity(folder) in card.text
        assert "- `--day` own: folder, train, 4 images" in card.text
        assert ("- `--night` dark: images, 3 images" in card.text) == (task == "image-to-image")
        last = json.loads((folder.parent / "metrics.jsonl").read_text().splitlines()[-1])
        for name in {"ce_day", "gan_night"} & last.keys():
            assert f"| {name} | {last[name]:.4g} |" in card.text
        assert str(home) not in card.text
    card = (home / "runs/seg/teacher/README.md").read_text()
    assert "Seed 3" in card and "0 sky, 1 road, 2 car" in card and f"torch {torch.__version__}" in card
    line = next(line for line in card.splitlines() if line.startswith("daynight seg-train"))
    assert set(SEG.split()) - {"--save-every", "--log-every", "1", "2"} <= set(line.split())


def test_a_model_folder_tells_no_path_and_holds_no_image(home, tmp_path):
    """Every product, also the best: options and data sets are named by the last part of their path. So is what `eval`
    adds."""
    shutil.copytree(home / "data/own", tmp_path / "in/own_translated")
    shutil.copytree(home / "data/own", tmp_path / "in/more")
    paths = f"--day {home}/data/own/ --night ./data/../data/dark --out {tmp_path}/out --validate-every 2"
    train = SEG.replace("--day own --night dark", "").replace("--validate-every 0", "")
    more = f"--translated {tmp_path}/in/own_translated --init {home}/runs/seg --ssl --unlabelled-day {tmp_path}/in/more"
    assert daynight(f"{train} {paths} {more} --validate-on {tmp_path}/in/more", home).code == 0
    assert daynight(f"eval --model {tmp_path}/out --dataset {tmp_path}/in/more/", home).code == 0
    assert daynight(f"eval --model {tmp_path}/out/best --dataset .", home / "data/own").code == 0
    train = TRANSLATE.replace("--day own --night dark", "").replace("--validate-every 0", "")
    paths = paths.replace("/out", "/translators")
    assert daynight(f"{train} {paths} --judge {home}/runs/seg/teacher --keep-best none", home).code == 0
    products = [path.parent for path in tmp_path.rglob("config.json")]
    assert {path.relative_to(tmp_path).as_posix() for path in products} == {
        "out/teacher", "out/best/teacher", "translators/day2night", "translators/night2day"
    }  # fmt: skip
    for folder in products:
        assert {path.name for path in folder.iterdir()} == FILES
        for path in folder.iterdir():
            content = path.read_bytes()
            for part in (home, tmp_path):
                assert all(name.encode() not in content for name in (str(part), part.name)), path
        card = (folder / "README.md").read_text()
        assert "--day own" in card and "--night dark" in card and "- `--day` own: folder, train" in card
        if "out" in folder.parts:
            assert "--translated own_translated --" in card and "--init seg" in card and "--validate-on more" in card
            assert "- `--unlabelled-day` more: folder, train" in card
        else:
            assert "--judge teacher" in card
    for folder, name in ((tmp_path / "out/teacher", "more"), (tmp_path / "out/best/teacher", "own")):
        card = ModelCard.load(folder / "README.md")
        assert {result.dataset_name for result in card.data.eval_results} == {name} and f"| {name} val |" in card.text


def test_a_value_is_shown_as_its_last_part_if_it_names_a_path(tmp_path, monkeypatch):
    (tmp_path / "here/in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/in")
    given = {"cs": "cs", "/home/me/cs": "cs", "data/cs/": "cs", "../in": "in", ".": "in", "..": "here", "./": "in",
             "~/x.safetensors": "x.safetensors", "0.5,0.9": "0.5,0.9", 0.5: "0.5", "user/x@main": "x@main"}  # fmt: skip
    assert {value: public(value) for value in given} == given


def shows(folder):
    """Whether a model folder has the newest preview of its run, as its card says."""
    text, picture = (folder / "README.md").read_text(), folder / "preview.png"
    assert picture.exists() == ("](preview.png)" in text) == ("licences may forbid passing them on" in text)
    return picture.exists()


def test_a_preview_comes_by_option_alone(home, run):
    """It comes and goes with the option, also where the run has ended; results and the user's words stay."""
    folder, newest = run / "teacher", sorted((run / "previews").iterdir())[-1]
    path = folder / "README.md"
    assert not shows(folder)
    assert daynight(f"eval --model {run} --dataset own", home).code == 0
    path.write_text(path.read_text().replace("## Use", "My own words.\n\n## Use"))
    before, line = path.read_text(), f"{SEG} --seed 3 --out {run}"
    assert daynight(f"{line} --card-preview", home).code == 0
    assert shows(folder) and (folder / "preview.png").read_bytes() == newest.read_bytes()
    after = path.read_text()
    assert "My own words." in after and "| own val |" in after
    assert daynight(f"{line} --card-preview", home).code == 0 and path.read_text() == after
    assert daynight(line, home).code == 0
    assert not shows(folder) and path.read_text() == before
    # a card of other weights is written anew
    path.write_text(before.replace(identity(folder), "0" * 12))
    assert daynight(f"{line} --card-preview", home).code == 0
    assert shows(folder) and "My own words." not in path.read_text()


@pytest.mark.parametrize("known_by", ["the card", "the previews"])
def test_a_preview_of_an_earlier_version_goes(known_by, home, run):
    """Such a run is resumed without --card-preview: what it wrote is not published by surprise."""
    folder, previews = run / "teacher", sorted((run / "previews").iterdir())
    path = folder / "README.md"
    before = path.read_text()
    shutil.copy(previews[0], folder / "preview.png")
    if known_by == "the card":
        shutil.rmtree(run / "previews")
        image = "![Inputs and what the model makes of them](preview.png)\n\n"
        path.write_text(before.replace("## Use", f"{image}## Use"))
    assert daynight(f"{SEG} --seed 3 --out {run}", home).code == 0
    assert not shows(folder) and path.read_text() == before


@pytest.mark.parametrize("words", ["", "--card-preview"])
@pytest.mark.parametrize("weights", ["same", "other"])
def test_a_picture_of_the_users_own_stays(words, weights, home, run):
    folder = run / "teacher"
    (folder / "preview.png").write_bytes(b"my own picture")
    if weights == "other":
        (folder / "README.md").write_text("none")
    assert daynight(f"{SEG} --seed 3 --out {run} {words}", home).code == 0
    assert (folder / "preview.png").read_bytes() == b"my own picture"
    assert "preview.png" not in (folder / "README.md").read_text()


def test_the_use_in_the_card_works(home):
    for name in ("seg/teacher", "day2night/day2night"):
        text = (home / "runs" / name / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0].replace("USER/REPOSITORY", str(home / "runs" / name))
        for image in ("night.jpg", "street.jpg"):
            code = code.replace(f'"{image}"', repr(str(home / "data/own/images/train/000.jpg")))
        found = {}
        exec(code, found)
        assert found.get("labels", np.zeros((48, 96))).shape == (48, 96)


def test_results_land_in_the_card(home, run):
    """Those of the same data and settings are replaced, others added; what the user wrote stays."""
    path = run / "teacher/README.md"
    text = path.read_text().replace("license: unknown", "license: mit").replace("## Use", "My own words.\n\n## Use")
    path.write_text(text)
    for words in ("", "", "--flip"):
        results = run.parent / f"results{words}.json"
        result = daynight(f"eval --model {run} --dataset own --json {results} {words}", home)
        assert result.code == 0 and f"added to {path}" in result.out
        entry = json.loads(results.read_text())[0]
    card = ModelCard.load(path)
    assert card.data.license == "mit" and "My own words." in card.text
    of_miou = [result for result in card.data.eval_results if result.metric_type == "mean_iou"]
    assert len(of_miou) == 2 and of_miou[1].metric_value == entry["miou"]
    assert (of_miou[1].dataset_name, of_miou[1].dataset_split) == ("own", "val")
    rows = [line for line in card.text.splitlines() if line.startswith("| own val |")]
    assert len(rows) == 2 and "flip" in rows[1] and "flip" not in rows[0]
    low, high = entry["miou_interval"]
    for cell in (f"{entry['miou']:.1f}", f"{low:.1f} to {high:.1f}", f"{entry['accuracy']:.1f}"):
        assert f" {cell} " in rows[1]
    before = path.read_text()
    assert daynight(f"{SEG} --seed 3 --out {run}", home).code == 0  # the run has ended: nothing is new
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["a: [1]|\n---\n# b", "null", "夜 'x' \"y\" {z}", "1.0", BEGIN])
def test_odd_names_of_data_do_not_break_the_card(name, home, run):
    line = f"eval --model {run} --dataset own --json {run.parent}/results.json"
    assert daynight(line, home).code == 0
    (entry,) = json.loads((run.parent / "results.json").read_text())
    path, weights = run / "teacher/README.md", identity(run / "teacher")
    before = ModelCard.load(path)
    for miou in (12.5, None, 25.0):  # the last replaces the first; where nothing was labelled there is no mIoU
        odd = entry | {"dataset": f"data/{name}", "split": None, "miou": miou, "miou_interval": None}
        assert add_results(run / "teacher", weights, [odd])
    card = ModelCard.load(path)
    assert len(card.data.eval_results) == 4 and before.data.eval_results == card.data.eval_results[:2]
    assert (card.data.eval_results[2].dataset_name, card.data.eval_results[2].metric_value) == (name, 25.0)
    ours, others = card.text.split(END)[0].splitlines(), before.text.splitlines()
    assert set(others) <= set(card.text.splitlines()) and len(card.text.splitlines()) == len(others) + 1
    assert "| 25.0 | – |" in ours[-1] and ours[-1].replace("\\|", "").count("|") == 8


def test_names_of_classes_do_not_break_the_card(home, tmp_path):
    names = [("a\n---\n# b", (1, 2, 3)), ('x: y|"z', (4, 5, 6)), ("c", (7, 8, 9))]
    model = tmp_path / "seg/teacher"
    draw_model(model, names, 0)
    shutil.copy(home / "runs/seg/options.json", tmp_path / "seg")
    options = SegTrainOptions(steps=4)
    write_card(model, 4, tmp_path / "seg", options)
    card = ModelCard.load(model / "README.md")
    assert card.data.pipeline_tag == "image-segmentation" and "\n# b" not in card.text
    assert "0 a --- # b, 1 x: y" in card.text and add_results(model, identity(model), [])


@pytest.mark.parametrize("options, base", [
    ({"backbone": "resnet50"}, "timm/resnet50.a1_in1k"),
    ({"backbone_weights": "random"}, None),
    ({"backbone_weights": "some.safetensors"}, None),
    ({"init": "someone/model@v1"}, "someone/model"),
    ({"init": "runs/seg"}, None),
])  # fmt: skip
def test_the_header_names_base_model_and_data_sets(options, base, home, tmp_path, monkeypatch):
    model, options = tmp_path / "seg/teacher", SegTrainOptions(steps=4, day="hf:someone/day@v1:small", **options)
    draw_model(model, trees.CLASSES, 0)
    record = json.loads((home / "runs/seg/options.json").read_text())
    (tmp_path / "data/sets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    nights = [f"{name}: images, 2 images" for name in ("hf:x/n", "dark", f"hf:{tmp_path}/data/sets", "hf:data/sets")]
    sets = {"--day": ["hf:someone/day@v1:small: folder, train, 1 image"], "--night": nights}
    (tmp_path / "seg/options.json").write_text(json.dumps(record | {"sets": sets}))
    write_card(model, 4, tmp_path / "seg", options)
    card = ModelCard.load(model / "README.md")
    assert card.data.base_model == base and card.data.datasets == ["someone/day", "x/n"]
    assert "--day hf:someone/day@v1:small" in card.text


STRANGE = [
    BEGIN, END, "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](y.png)",
    "`rm -rf`", "```", "a\n```\n# b\n```", "a\n---\nb", "a|b", "**a** *b* __c__ _d_ ~~e~~", "&lt;&#60;", "a\\",
    "\\(x\\)",
    "$$x$$", "https://example.com", "www.example.com", "a\x1b[31m\x07\x85b", "a\u2028b", "'", '"', "- a: [b]", "{size}",
    "%s {0}", "a_b", "traffic light", "夜 'x'", "<!--", "-->", "$(reboot)", "#",
]  # fmt: skip


def structure(card):
    """What a renderer sees: the elements of a card, without their text."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(card.text):
        inside = [child.type for child in token.children or []]
        found.append((token.type, token.tag, [kind for kind in inside if kind != "text"]))
    return found


def shown(card):
    """The text of a card, as a renderer shows it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    inline = ("".join(c.content for c in t.children) if t.children else t.content for t in tokens)
    return "\n".join(inline)


def one_line(name):
    return re.sub("[\x00-\x1f\x7f-\x9f]", "\ufffd", " ".join(name.split()))


@pytest.fixture(scope="module")
def plain_card(tmp_path_factory):
    return strange_card(tmp_path_factory.mktemp("plain"), "name")


def strange_card(folder, name):
    """The card of a run in which everything that anyone can name has this name, with two results."""
    model = folder / "seg/teacher"
    draw_model(model, [(name, (1, 2, 3)), ("other", (4, 5, 6))], 0)
    record = {"options": {}, "versions": {"daynight": "1"}, "data": {}}
    record["sets"] = {"--day": [f"/data/{name}: folder, train, 1 image"], "--night": [f"{name}: images, 2 images"]}
    (folder / "seg/options.json").write_text(json.dumps(record))
    options = SegTrainOptions(steps=4, day=f"/data/{name}", night=[name, "dark"], init=f"x/{name}")
    write_card(model, 4, folder / "seg", options)
    entry = {key: None for key in ("images", "size", "labels", "mean", "label_set", "scales", "flip")}
    entry |= {"images": 2, "size": "native", "mean": "present", "scales": [1.0], "flip": False, "split": name}
    entry |= {"dataset": f"/data/{name}", "accuracy": 50.0, "miou_interval": None}
    for miou in (12.5, 25.0):
        assert add_results(model, identity(model), [entry | {"miou": miou}])
    return ModelCard.load(model / "README.md")


@pytest.mark.parametrize("name", STRANGE)
def test_any_name_is_text_in_the_card(name, plain_card, tmp_path):
    """The card has the same elements whatever the names are, shows them as they are, and takes results again."""
    card = strange_card(tmp_path, name)
    assert structure(card) == structure(plain_card)
    # in the code block nothing can be escaped
    sentences = re.sub("```sh.*?```", "", card.text, flags=re.DOTALL)
    text, last = shown(card), one_line(public(f"/data/{name}"))
    for words in (
        f"0 {one_line(name)}, 1 other",
        f"{last}: folder, train",
        f"{last}: images",
        one_line(f"{last} {name}"),
    ):
        assert words in text
    for marker in (BEGIN, END):
        assert card.text.count(marker) == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", str(card)), "what a terminal would act on"
    assert not re.search(r"(?<!\\):(?=//)|www\.", sentences), "what GitHub makes a link of"
    (miou, accuracy) = card.data.eval_results
    assert (miou.dataset_name, miou.dataset_split, miou.metric_value) == (public(f"/data/{name}"), name, 25.0)
    (row,) = (line for line in card.text.splitlines() if line.startswith("| ") and "25.0" in line)
    assert row.replace("\\|", "").count("|") == 8
    assert card.data.pipeline_tag == "image-segmentation" and card.text.count("\n# ") + card.text.startswith("# ") == 1


def test_no_null_reaches_the_hub(home, run):
    """Neither for what is not known (a split, an interval) nor for a data set in which nothing of it was labelled."""
    assert daynight(f"eval --model {run} --dataset own --json {run.parent}/results.json", home).code == 0
    (entry,) = json.loads((run.parent / "results.json").read_text())
    for name, more in {"a": {"split": None, "miou_interval": None}, "b": {"miou": None}}.items():
        assert add_results(run / "teacher", identity(run / "teacher"), [entry | more | {"dataset": name}])
    header = (run / "teacher/README.md").read_text().split("---\n")[1]
    assert not re.search(r"null|~$|nan|None|: *$(?!\n *-|\n  )", header, re.MULTILINE | re.IGNORECASE), header
    names = {result.dataset_name for result in ModelCard.load(run / "teacher/README.md").data.eval_results}
    assert names == {"own", "a"}


def test_any_name_is_text_on_a_page(home, tmp_path):
    """A data set, its classes, its images, and a model, with markup in their names."""
    name, other = "<img src=x onerror=alert(1)>", "<b>&amp;\"'"
    root = trees.folder(tmp_path / name, classes=[(name, (1, 2, 3)), (other, (4, 5, 6)), ("c", (7, 8, 9))])
    for path in [*root.glob("*/val/*.*")]:
        path.rename(path.with_name(f"{name}{path.suffix}"))
    draw_model(tmp_path / other, [(name, (1, 2, 3)), (other, (4, 5, 6)), ("c", (7, 8, 9))], 0)
    words = ["eval", "--dataset", str(root), "--model", str(tmp_path / other), "--save", str(tmp_path / "saved")]
    assert daynight(shlex.join(words), home).code == 0
    text = (tmp_path / "saved/index.html").read_text()
    assert "<img src=x" not in text and '<b>&amp;"' not in text and "onerror=alert(1)&gt;" in text
    elements = set(re.findall(r"<([a-z0-9]+)", text)) - {"b"}
    saved = tmp_path / "plain"
    assert daynight(f"eval --dataset own --model model --save {saved}", home).code == 0
    assert elements == set(re.findall(r"<([a-z0-9]+)", (saved / "index.html").read_text())) - {"b"}


def test_a_card_of_other_weights_takes_no_results(home, run):
    """A training that went on meanwhile; and a run that goes on writes a card without the old results."""
    assert daynight(f"eval --model {run} --dataset own", home).code == 0
    path = run / "teacher/README.md"
    before = path.read_text()
    assert "| own val |" in before
    other = shutil.copytree(home / "model", run.parent / "other")
    assert not add_results(run / "teacher", identity(other), [])
    shutil.copy(other / "model.safetensors", run / "teacher")
    assert daynight(f"{SEG} --seed 3 --out {run}", home).code == 0
    assert path.read_text() == before  # its weights are as they were
    path.write_text(before.replace(identity(run / "teacher"), "0" * 12))
    assert daynight(f"{SEG} --seed 3 --out {run}", home).code == 0
    assert "| own val |" not in path.read_text() and identity(run / "teacher") in path.read_text()


def test_what_has_no_card_or_is_not_ours_is_left_alone(home, run, tmp_path):
    path = run / "teacher/README.md"
    written = path.read_text()
    own_index = ("license:", "model-index:\n- name: mine\nlicense:")
    weights = identity(run / "teacher")
    for text in (
        "# My model\n",
        f"`{weights}`\n{BEGIN}\n{END}\n",
        written.replace("end of results", "x"),
        written.replace(*own_index),
        written.replace("license:", "license: ["),
    ):
        path.write_text(text)
        result = daynight(f"eval --model {run} --dataset own", home)
        assert (result.code, result.err) == (0, "") and "added to" not in result.out and path.read_text() == text
    path.unlink()
    path.symlink_to(home / "runs/seg/teacher/README.md")  # as the Hub's cache has it
    before = path.read_text()
    assert daynight(f"eval --model {run} --dataset own --model model", home).code == 0
    assert path.is_symlink() and path.read_text() == before
    assert {path.name for path in (home / "model").iterdir()} == {"config.json", "model.safetensors"}


# the Hub

GATED, SECRET = "someone/gated", "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers to HEAD and GET of /<repository>/resolve/<revision>/<file>, /api/models/<repository>, its
    /revision/<revision> and its /tree/<commit>. The latter three are open for gated repositories too."""

    def do_HEAD(self):
        with contextlib.suppress(BrokenPipeError):
            self.answer()

    do_GET = do_HEAD

    def answer(self):
        self.server.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").removeprefix("api/models/").split("/")
        repository, kind = "/".join(parts[:2]), (*parts, "")[2]
        revision, name = (*parts[3:4], "main")[0], "/".join(parts[4:])
        found = self.server.repositories.get(repository)
        if repository == GATED and kind == "resolve" and self.headers.get("authorization") != f"Bearer {SECRET}":
            return self.refuse(401, "GatedRepo")
        if found is None:
            return self.refuse(404, "RepoNotFound")
        folder, commits = found
        if revision not in commits and revision not in commits.values():
            return self.refuse(404, "RevisionNotFound")
        commit = commits.get(revision, revision)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        if kind == "tree":
            listed = [{"type": "file", "path": f, "oid": "0", "size": p.stat().st_size} for f, p in files.items()]
            return self.send(json.dumps(listed).encode(), commit)
        if kind != "resolve":
            names = [{"rfilename": file} for file in files]
            return self.send(json.dumps({"id": repository, "sha": commit, "siblings": names}).encode(), commit)
        if name not in files:
            return self.refuse(404, "EntryNotFound", commit)
        self.send(files[name].read_bytes(), commit)

    def send(self, content, commit):
        self.send_response(200)
        for key, value in {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Content-Length": len(content),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status, code, commit=None):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(home, tmp_path, monkeypatch):
    """A server that has someone/model, someone/run (its parts in subfolders) and someone/gated."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.md").write_text("no model here")
    commits = {"main": "a" * 40, "v1": "b" * 40}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.repositories = [], {
            "someone/model": (home / "runs/seg/teacher", commits),
            "someone/run": (home / "translator", commits),
            "someone/empty": (tmp_path / "empty", commits),
            GATED: (home / "model", commits),
        }  # fmt: skip
        server.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at(monkeypatch, server.endpoint, tmp_path / "cache")
        yield server
        server.shutdown()


def at(monkeypatch, endpoint, cache):
    """HF_ENDPOINT and HF_HUB_CACHE, which the library reads once, when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE",
                        constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False)  # fmt: skip


def test_a_model_is_taken_from_the_hub(home, hub, tmp_path, monkeypatch):
    """The same predictions as from the folder; the second time, without the Hub, from the cache."""
    assert daynight(f"predict --in own --out {tmp_path}/here --model runs/seg", home).code == 0
    assert daynight(f"predict --in own --out {tmp_path}/there --model someone/model", home).code == 0
    assert not any("README" in path or "preview" in path for path in hub.asked)
    at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert daynight(f"predict --in own --out {tmp_path}/again --model someone/model", home).code == 0
    expected = sorted((tmp_path / "here").rglob("*.png"))
    assert len(expected) == 18
    for path in expected:
        for other in ("there", "again"):
            assert path.read_bytes() == (tmp_path / other / path.relative_to(tmp_path / "here")).read_bytes()


def test_in_a_process_of_its_own(home, hub, tmp_path):
    words = f"eval --dataset own --model someone/model --json {tmp_path}/found.json".split()
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    result = shell(sys.executable, "-m", "daynight", *words, cwd=home, **environment)
    assert result.stderr == "" and "added to" not in result.stdout
    (entry,) = json.loads((tmp_path / "found.json").read_text())
    assert entry["model"] == "someone/model" and any("/api/models/someone/model" in line for line in hub.asked)


def test_revisions_and_parts(home, hub, tmp_path):
    """A run with a folder for each of its models; both files of one commit."""
    line = "translate --in dark --model someone/run"
    assert daynight(f"{line}@v1 --out {tmp_path}/there --reverse", home).code == 0
    weights = [path for path in hub.asked if "model.safetensors" in path]
    assert weights and all(f"/resolve/{'b' * 40}/night2day/model.safetensors" in path for path in weights)
    assert daynight(f"translate --in dark --model translator --out {tmp_path}/here --reverse", home).code == 0
    for path in (tmp_path / "here").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "there" / path.relative_to(tmp_path / "here")).read_bytes()
    assert json.loads((tmp_path / "there/translation.json").read_text())["model"] == identity(
        home / "translator/night2day"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (GATED, "gated: ask for access on its page"),
        ("someone/nothing", "no such repository, or a private one"),
        ("someone/model@v2", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(name, said, home, hub):
    line = daynight(f"predict --in own --out {home}/refused --model {name}", home).line
    assert said in line and f"--model {name}: no such folder" in line and "give a folder" in line
    assert not (home / "refused").exists()


def test_a_repository_without_a_model_holds_none(home, hub):
    assert "--model someone/empty: holds no model" in daynight("eval --dataset own --model someone/empty", home).line


def test_with_a_token_a_gated_model_is_had(home, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert package.load_segmenter(GATED, "cpu").names == ("sky", "road", "car")


def test_a_hub_out_of_reach_is_said_in_a_line(home, tmp_path, monkeypatch):
    at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    started = time.monotonic()
    assert "cannot be reached" in daynight("eval --dataset own --model someone/model", home).line
    assert time.monotonic() - started < 5
    with pytest.raises(InputError, match="load_generator: someone/model.*cannot be reached"):
        package.load_generator("someone/model")


# from Python


def test_a_segmenter_labels_as_predict_does(home, tmp_path):
    assert daynight(f"predict --in own --out {tmp_path}/p --model model", home).code == 0
    segmenter = package.load_segmenter(home / "model")
    assert segmenter.names == ("sky", "road", "car") and segmenter.colors[2] == (0, 0, 142)
    for path in sorted((home / "data/own/images").rglob("*.jpg")):
        labels = segmenter(Image.open(path))
        inside = path.relative_to(home / "data/own").with_suffix(".png")
        assert labels.dtype == np.uint8 and np.array_equal(labels, pixels(tmp_path / "p/ids" / inside))
        assert np.array_equal(np.asarray(segmenter.colorize(labels)), pixels(tmp_path / "p/color" / inside))
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize(("part", "whole"), [("day2night", False), ("night2day", False), ("day2night", True)])
def test_a_generator_translates_as_translate_does(part, whole, home, tmp_path):
    words = "--reverse " * (part == "night2day") + "--whole" * whole
    assert daynight(f"translate --in dark --out {tmp_path}/t --model translator {words}", home).code == 0
    translator = package.load_generator(str(home / "translator"), part, device="cpu")
    path = next((home / "data/dark").rglob("*.PNG"))
    result = translator(Image.open(path), whole)
    assert np.array_equal(np.asarray(result), pixels(tmp_path / "t" / path.relative_to(home / "data/dark")))


def test_images_of_any_mode_and_orientation(home):
    """As a phone stores them: on their side, and the file says so."""
    segmenter, image = package.load_segmenter(home / "model"), Image.open(home / "data/own/images/train/000.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert np.array_equal(segmenter(turned), segmenter(image))
    assert segmenter(image.convert("L")).shape == segmenter(image.convert("RGBA")).shape == (48, 96)


def test_importing_the_package_is_light():
    code = "import sys, daynight; daynight.load_segmenter; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
    with pytest.raises(InputError, match="load_segmenter: nowhere: no such folder"):
        package.load_segmenter("nowhere")
