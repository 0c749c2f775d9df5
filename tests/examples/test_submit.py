"""examples/submit.py: what a test server would find in the zip, and what never gets as far."""

import fnmatch
import importlib.util
import io
import json
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from test_cli import clean, daynight, in_process, shell  # noqa: F401 (clean is a fixture)

from daynight.data.labels import CITYSCAPES

SCRIPT = Path(__file__).parents[2] / "examples/submit.py"
TRAIN_IDS, LABEL_IDS = (0, 10, 13, 18), (7, 23, 26, 33)  # road, sky, car, bicycle
# the least that a softmax of 19 classes has, both sides of a half, certainty
CONFIDENCES = (3450, 32767, 32768, 65535)
IMAGES = {  # where the images of each test set lie, and what its server looks for
    "cityscapes": {
        "berlin/berlin_000000_000019_leftImg8bit": "berlin_000000_000019*.png",
        "munich/munich_000000_000019_leftImg8bit": "munich_000000_000019*.png",
    },
    "acdc": {
        "night/test/GOPR0364/GOPR0364_frame_000001_rgb_anon": "GOPR0364_frame_000001*.png",
        "fog/test/GP010475/GP010475_frame_000001_rgb_anon": "GP010475_frame_000001*.png",
    },
    "dark-zurich": {
        "night/GOPR0364/GOPR0364_frame_000001_rgb_anon": "GOPR0364_frame_000001*.png",
        "night/GP010376/GP010376_frame_000102_rgb_anon": "GP010376_frame_000102*.png",
    },
}


def stripes(values, size, dtype=np.uint8, shift=0):
    """Vertical stripes, one a value; height and width are those of the test images."""
    return np.broadcast_to(np.roll(np.repeat(np.array(values, dtype), size[1] // len(values)), shift), size)


def draw(folder, server, ids="trainIds"):
    """What `daynight predict --confidence` leaves, without the pictures: the folder, and (ids, confidence) of images.

    The confidence is shifted by half a stripe, so that no id has one confidence.
    """
    size = (1024, 2048) if server == "cityscapes" else (1080, 1920)
    drawn = {}
    for number, (image, pattern) in enumerate(IMAGES[server].items()):
        confidence = stripes(CONFIDENCES, size, np.uint16, size[1] // 8)
        save(folder / f"confidence/{image}.png", confidence)
        save(
            folder / f"ids/{image}.png",
            stripes(LABEL_IDS if ids == "labelIds" else TRAIN_IDS, size, shift=100 * number),
        )
        drawn[pattern] = stripes(TRAIN_IDS, size, shift=100 * number), confidence
    (folder / "prediction.json").write_text(json.dumps(record(ids)))
    return drawn


def record(ids="trainIds", classes=CITYSCAPES.names):
    return {"model": "0123456789ab", "size": "native", "ids": ids, "classes": list(classes)}


@pytest.fixture(scope="module")
def drawn_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, "dark-zurich")
    return folder


@pytest.fixture
def labelled(drawn_once, tmp_path):
    return shutil.copytree(drawn_once, tmp_path / "labelled")


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(values)).save(path)


def submit(cwd, line):
    return shell(sys.executable, str(SCRIPT), *line.split(), cwd=cwd, check=False, OMP_NUM_THREADS="1")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("submit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path):
    """The same in this process, for what does not need one of its own: exit code, stdout, stderr."""
    return lambda line: in_process(script.main, f"submit.py {line}", tmp_path)


def read(path, pattern, depth=8):
    """The one file of a zip that a server finds by a pattern: its pixels, after a look at the PNG's own header."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        (name,) = fnmatch.filter(archive.namelist(), pattern)
        content = archive.read(name)
    width, height, bits, color = struct.unpack(">IIBB", content[16:26])
    assert (bits, color) == (depth, 0)  # one grey channel
    with Image.open(io.BytesIO(content)) as image:
        values = np.array(image)
    assert values.shape == (height, width)
    return values


def names(path):
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


@pytest.mark.parametrize("ids", ["trainIds", "labelIds"])
@pytest.mark.parametrize("server", ["cityscapes", "acdc"])
def test_ids(server, ids, tmp_path):
    drawn = draw(tmp_path / "labelled", server, ids)
    result = submit(tmp_path, f"{server} --predictions labelled --out a.zip")
    assert result.returncode == 0 and result.stdout == "a.zip: 2 images\n"
    folder = "" if server == "cityscapes" else "labelTrainIds/"
    assert names(tmp_path / "a.zip") == sorted(folder + pattern.replace("*", "") for pattern in drawn)
    for pattern, (train_ids, _) in drawn.items():
        values = read(tmp_path / "a.zip", folder + pattern)
        # every class where it was drawn, as this server numbers it
        for train_id, label_id in zip(TRAIN_IDS, LABEL_IDS, strict=True):
            wanted = label_id if server == "cityscapes" else train_id
            assert np.array_equal(values == wanted, train_ids == train_id)


@pytest.mark.parametrize(("option", "least"), [("", 0), ("--invalid-below 0.5", 32768), ("--invalid-below 1", 65535)])
def test_dark_zurich(option, least, tmp_path):
    drawn = draw(tmp_path / "labelled", "dark-zurich")
    result = submit(tmp_path, f"dark-zurich --predictions labelled --out a.zip {option}")
    assert result.returncode == 0
    folders = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
    assert names(tmp_path / "a.zip") == sorted(
        f"{folder}/{pattern.replace('*', '')}" for folder in folders for pattern in drawn
    )
    for pattern, (ids, confidence) in drawn.items():
        assert np.array_equal(read(tmp_path / "a.zip", f"labelTrainIds/{pattern}"), ids)
        assert np.array_equal(read(tmp_path / "a.zip", f"confidence/{pattern}", depth=16), confidence)
        invalid = np.where(confidence < least, 255, ids)
        assert np.array_equal(read(tmp_path / "a.zip", f"labelTrainIds_invalid/{pattern}"), invalid)


def test_the_number_of_images(labelled, run, script, monkeypatch):
    code, out, err = run("dark-zurich --predictions labelled --out a.zip")
    assert code == 0 and err.count("\n") == 1 and "warning: 2 images" in err and "151" in err
    monkeypatch.setitem(script.SERVERS, "dark-zurich", script.SERVERS["dark-zurich"]._replace(counts=(500, 2)))
    assert run("dark-zurich --predictions labelled --out b.zip") == (0, "b.zip: 2 images\n", "")


def smaller(folder, image):
    save(folder / f"ids/{image}.png", stripes(TRAIN_IDS, (540, 960)))


def turned(folder, image):
    save(folder / f"ids/{image}.png", stripes(TRAIN_IDS, (1920, 1080)))


def no_class(folder, image):
    save(folder / f"ids/{image}.png", stripes((0, 19), (1080, 1920)))


def ignored(folder, image):
    save(folder / f"ids/{image}.png", stripes((0, 255), (1080, 1920)))


def void(folder, image):
    save(folder / f"ids/{image}.png", stripes((7, 5), (1080, 1920)))
    (folder / "prediction.json").write_text(json.dumps(record("labelIds")))


def colours(folder, image):
    save(folder / f"ids/{image}.png", np.zeros((1080, 1920, 3), np.uint8))


def damaged(folder, image):
    (folder / f"ids/{image}.png").write_bytes((folder / f"ids/{image}.png").read_bytes()[:200])


def no_confidence(folder, image):
    shutil.rmtree(folder / "confidence")


def eight_bits(folder, image):
    save(folder / f"confidence/{image}.png", stripes((100, 255), (1080, 1920)))


def smaller_confidence(folder, image):
    save(folder / f"confidence/{image}.png", stripes(CONFIDENCES, (540, 960), np.uint16))


def damaged_confidence(folder, image):
    path = folder / f"confidence/{image}.png"
    path.write_bytes(path.read_bytes()[:-200])


def of_another_set(folder, image):
    (folder / f"ids/{image}.png").rename(folder / "ids/berlin_000000_000019_leftImg8bit.png")


def with_its_reference(folder, image):
    shutil.copy(folder / f"ids/{image}.png", folder / f"ids/{image.replace('_rgb', '_ref_rgb')}.png")


def no_prediction(folder, image):
    (folder / "prediction.json").unlink()


def other_json(folder, image):
    (folder / "prediction.json").write_text("[]")


def of_classes(*names):
    def spoil(folder, image):
        (folder / "prediction.json").write_text(json.dumps(record(classes=names)))

    return spoil


def no_classes(folder, image):
    (folder / "prediction.json").write_text('{"ids": "trainIds"}')


def odd_classes(folder, image):
    (folder / "prediction.json").write_text(json.dumps(record() | {"classes": 19}))


def empty(folder, image):
    shutil.rmtree(folder / "ids")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (smaller, "{image} 960x540 1920x1080"), (turned, "{image} 1080x1920 1920x1080"), (no_class, "{image} 19"),
        (ignored, "{image} class"), (void, "class"), (colours, "{image} colour"), (damaged, "{image}"),
        (no_confidence, "confidence/ --confidence"), (eight_bits, "confidence/ {image} 16"),
        (smaller_confidence, "confidence/ {image} 960x540 1920x1080"), (damaged_confidence, "confidence/ {image}"),
        (of_another_set, "berlin GOPR0364_frame_000001"), (with_its_reference, "{image} _ref_rgb_anon.png"),
        (no_prediction, "--predictions predict"), (other_json, "--predictions predict"), (empty, "--predictions ids"),
        (of_classes("sky", "road", "car"), "--predictions classes road car Cityscapes"),
        (of_classes(*CITYSCAPES.names[::-1]), "--predictions classes order Cityscapes"),
        (of_classes(*CITYSCAPES.names[:18]), "--predictions classes Cityscapes"), (no_classes, "--predictions predict"),
        (odd_classes, "--predictions classes 19 Cityscapes"),
    ],
)  # fmt: skip
def test_refused(spoil, words, labelled, run, tmp_path):
    image = list(IMAGES["dark-zurich"])[1]
    spoil(labelled, image)
    check_refused(run("dark-zurich --predictions labelled --out a.zip"), words.format(image=image))
    assert list(tmp_path.iterdir()) == [labelled]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dark-zurich --predictions labelled --out there.zip", "--out there.zip new"),
        ("dark-zurich --predictions labelled --out missing/a.zip", "--out missing/a.zip folder"),
        ("dark-zurich --predictions labelled --out there.zip/a.zip", "--out there.zip/a.zip folder"),
        ("dark-zurich --predictions missing --out a.zip", "--predictions missing"),
        ("dark-zurich --predictions labelled --out a.zip --invalid-below 50", "--invalid-below 50"),
        ("dark-zurich --predictions labelled --out a.zip --invalid-below 0", "--invalid-below 0"),
        ("acdc --predictions labelled --out a.zip --invalid-below 0.5", "--invalid-below dark-zurich"),
        ("cityscapes --predictions labelled --out a.zip", "GOPR0364_frame_000001_rgb_anon.png berlin_000000_000019"),
    ],
)
def test_options_refused(line, words, labelled, run, tmp_path):
    (tmp_path / "there.zip").write_text("of another day")
    check_refused(run(line), words)
    assert set(tmp_path.iterdir()) == {labelled, tmp_path / "there.zip"}
    assert (tmp_path / "there.zip").read_text() == "of another day"


def test_refused_as_a_process(labelled, tmp_path):
    shutil.rmtree(labelled / "confidence")
    result = submit(tmp_path, "dark-zurich --predictions labelled --out a.zip")
    check_refused((result.returncode, result.stdout, result.stderr), "confidence/")


def check_refused(result, words):
    code, out, err = result
    assert code == 2 and out == "" and re.fullmatch(r"submit\.py: [^\n]+\n", err), result
    for word in words.split():
        assert word in err


def test_what_predict_writes(tmp_path):
    """The real command, on images of the real size and names: the zip holds its ids and its confidence."""
    import torch

    from daynight.models.deeplab import DeepLabV2
    from daynight.models.hub import save_model

    root, out = tmp_path / "test", tmp_path / "labelled"
    paths = [trees.image(root / f"{image}.png", (1080, 1920)) for image in IMAGES["dark-zurich"]]
    torch.manual_seed(0)
    model = DeepLabV2(CITYSCAPES.names, CITYSCAPES.colors, "test_resnet", 8, 8, frozen_norm=False, size="24x48").eval()
    small = np.stack([np.array(Image.open(path).resize((48, 24))) for path in paths])
    batch = torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():  # else one class everywhere, and nowhere surer than 1 in 19
        spread = model(batch).std((0, 2, 3)).mean()
        for layer in model.head.fc8:
            layer.weight *= 3 / spread
        model.head.fc8[0].bias -= model(batch).mean((0, 2, 3))
    save_model(model, tmp_path / "model")
    assert daynight(f"predict --in {root} --out {out} --model {tmp_path}/model --confidence").code == 0
    written = {
        pattern: [np.array(Image.open(out / f"{kind}/{image}.png")) for kind in ("ids", "confidence")]
        for image, pattern in IMAGES["dark-zurich"].items()
    }
    assert submit(tmp_path, "dark-zurich --predictions labelled --out a.zip --invalid-below 0.5").returncode == 0
    for pattern, (ids, confidence) in written.items():
        invalid = confidence < 0.5 * 65535
        assert len(np.unique(ids)) > 1 and confidence.min() >= 65535 // 19 and 0 < invalid.mean() < 1
        assert np.array_equal(read(tmp_path / "a.zip", f"labelTrainIds/{pattern}"), ids)
        assert np.array_equal(read(tmp_path / "a.zip", f"confidence/{pattern}", depth=16), confidence)
        assert np.array_equal(read(tmp_path / "a.zip", f"labelTrainIds_invalid/{pattern}"), np.where(invalid, 255, ids))
