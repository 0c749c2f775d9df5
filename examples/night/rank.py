"""Which measures without night labels rank models as their true night scores do?

    python examples/night/rank.py MODEL… --day ../shared/camvid_day --night ../shared/bdd --truth ../shared/bdd_night \\
        --translator RUN --judge RUN --out DIR

MODEL: runs of seg-train (RUN or RUN/best), all with the classes of --day. JUDGE: one that was trained on day alone.
TRANSLATOR: a run of translate-train. --out keeps what was measured of each model with these options, so that more
models can follow.
Each measure is in percent, the higher the better:

day: mIoU on held-out labelled day images, what --keep-best uses. translated: the same of their translations.
judge: night images are translated to day and labelled by JUDGE; mIoU of the model's labels of the nights by these.
vote: mIoU of the model's labels by those that most of the models give.
steady: mIoU of the labels of a night image under A_s by those of the image itself.
prior: 1 - total variation distance of the mean softmax from the classes' shares of the labelled day pixels.
sure: 1 - mean entropy of the softmax / log C. balanced: the entropy of the mean softmax less the mean entropy, / log C.
density: soft neighbourhood density (Saito et al. 2021) of 500 pixels of each image, / log of their number.
reverse: a small network learns the model's labels of night images; its mIoU on translated labelled day images.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from run import figures
from torch.nn import functional as F

from daynight import losses
from daynight.config import EvalOptions, pair
from daynight.data.cache import digest
from daynight.data.images import Images, LabelledPhotographs
from daynight.data.sampling import generator
from daynight.data.sets import evenly, load, thinned
from daynight.data.transforms import add_noise, jitter, resize_image, target_size, to_image, to_tensor
from daynight.evaluation.metrics import confusion_matrix, mean_iou
from daynight.evaluation.scoring import compare, score
from daynight.inference.tiles import logits_of, translations
from daynight.models.deeplab import DeepLabV2
from daynight.models.generator import Generator
from daynight.models.hub import classes_of, load_model
from daynight.system.console import say
from daynight.system.files import write_json
from daynight.system.processes import make_accelerator

PARTS = "day2night", "night2day"
MEASURES = "day", "translated", "judge", "vote", "steady", "prior", "sure", "balanced", "density", "reverse"


def resized(images, size: str) -> list[Image.Image]:
    return [resize_image(x, *target_size(x.height, x.width, size)) for x in images]


def miou(labels, predictions, classes: int) -> float:
    """Of lists of H×W, in percent, over the classes that occur in the labels."""
    pairs = zip(labels, predictions, strict=True)
    return 100 * mean_iou(sum(confusion_matrix(a, b, classes) for a, b in pairs))


class Measures:
    """What models are measured on: night images without labels, labelled day images and their translations."""

    def __init__(self, given, accelerator, kept: Path):
        self.accelerator = accelerator
        judge, self.size, self.weights = self.model(given.judge), given.size, given.weights
        self.names, self.colors = classes_of(judge)
        nights = load(given.night, Path("data"), "--night", time="night").images
        nights = Images([nights[i] for i in evenly(len(nights), given.images)])
        day2night, night2day = (load_model(given.translator, part, "--translator", Generator) for part in PARTS)
        day_set = load(given.day, Path("data"), "--day", splits=("val",), time="day", labelled=True)
        day_set = thinned(day_set, given.images)
        self.nights = resized(nights, self.size)
        labelled = LabelledPhotographs(day_set, self.size)
        self.days = [to_image(labelled.image(i)) for i in range(len(labelled))]
        self.labels = [labelled.label(i, x.height, x.width)[0] for i, x in enumerate(self.days)]
        pixels = torch.cat([x.flatten() for x in self.labels]).bincount(minlength=256)[: len(self.names)]
        self.shares = pixels / pixels.sum()

        def translated(network, images):
            crop = pair(network.config["crop"])
            found = translations(
                network.to(accelerator.device), images, network.config["size"], crop, None, accelerator
            )
            return resized([image for _, _, image in found], self.size)

        if kept.is_file():
            found = torch.load(kept)
            self.translated, self.judged = [Image.fromarray(x.numpy()) for x in found["translated"]], found["judged"]
        else:
            self.translated = translated(day2night, labelled.images)
            self.judged = [self.label(judge, x) for x in translated(night2day, nights)]
            images = [torch.from_numpy(np.array(x)) for x in self.translated]
            torch.save({"translated": images, "judged": self.judged}, kept)

    def model(self, name: str) -> DeepLabV2:
        return load_model(name, "teacher", "--model", DeepLabV2).to(self.accelerator.device)

    def logits(self, model, image):
        return logits_of(model, [image], model.config["size"], self.accelerator)[0]

    def label(self, model, image):
        return self.logits(model, image).argmax(0).to(torch.uint8).cpu()

    @torch.no_grad()
    def of(self, name: str) -> tuple[dict, list]:
        """The measures of a model, without "vote"; and its labels of the night images."""
        model, classes = self.model(name), len(self.names)
        seen = [self.logits(model, x) for x in self.nights]
        own = [x.argmax(0).to(torch.uint8).cpu() for x in seen]
        soft = [x.softmax(0) for x in seen]
        strong = []
        for i, image in enumerate(self.nights):
            g = generator(0, i, "strong")
            strong.append(to_image(add_noise(jitter(to_tensor(image), 0.4, g), 0.1, g)))
        entropy = [float(torch.special.entr(p).sum(0).mean()) / math.log(classes) for p in soft]
        mean = torch.stack([p.mean((1, 2)) for p in soft]).mean(0)
        found = {
            "day": miou(self.labels, [self.label(model, x) for x in self.days], classes),
            "translated": miou(self.labels, [self.label(model, x) for x in self.translated], classes),
            "judge": miou(self.judged, own, classes),
            "steady": miou(own, [self.label(model, x) for x in strong], classes),
            "prior": 100 - 50 * float((mean.cpu() - self.shares).abs().sum()),
            "sure": 100 * (1 - np.mean(entropy)),
            "balanced": 100 * (float(torch.special.entr(mean).sum()) / math.log(classes) - np.mean(entropy)),
            "density": 100 * np.mean([density(p, generator(0, i, "density")) for i, p in enumerate(soft)]),
        }
        return found, own

    def reverse(self, own: list, steps: int, size: str = "120") -> float:
        """Reverse validation: of a network that learns `own`, the labels of the night images."""
        torch.manual_seed(0)
        weights = {"pretrained_cfg_overlay": {"file": self.weights}} if self.weights else {}
        small = DeepLabV2(self.names, self.colors, "tf_efficientnet_lite0", 16, 64, True, size, "aspp", **weights)
        small = small.to(self.accelerator.device).train()
        optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
        images = torch.stack([to_tensor(x) for x in resized(self.nights, size)])
        labels = F.interpolate(torch.stack(own)[:, None].float(), images.shape[2:], mode="nearest")[:, 0].long()
        for step in range(steps):
            chosen = torch.randint(len(images), (8,), generator=generator(0, step, "reverse"))
            with self.accelerator.autocast():
                loss = losses.cross_entropy(small(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        small.eval()
        return miou(self.labels, [self.label(small, x) for x in self.translated], len(self.names))


def density(probabilities, g, pixels: int = 500, temperature: float = 0.05) -> float:
    """Of some pixels' softmax (C×H×W): the mean entropy of each one's similarity to the others, 0 to 1."""
    p = probabilities.flatten(1)
    p = F.normalize(p[:, torch.randperm(p.shape[1], generator=g)[:pixels]].float(), dim=0)
    near = (p.T @ p) / temperature
    near.fill_diagonal_(-math.inf)
    return float(torch.special.entr(near.softmax(1)).sum(1).mean()) / math.log(pixels - 1)


def method(name: str) -> str:
    """What the model's run learned from."""
    folder = next(f for f in (Path(name), *Path(name).parents) if (f / "options.json").is_file())
    options = json.loads((folder / "options.json").read_text())["options"]
    return "SSL" if options["ssl"] else options["train-on"] or "day"


def ranks(values):
    return torch.as_tensor(values).double().argsort().argsort().double()


def spearman(a, b) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1]) if len(a) > 2 else math.nan


def spread_of(values, truth, samples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of Spearman's coefficient over samples of the models, drawn with replacement; a model that is
    drawn again counts once."""
    g, found = torch.Generator().manual_seed(0), []
    values, truth = torch.tensor(values), torch.tensor(truth)
    for _ in range(samples):
        drawn = torch.randint(len(values), (len(values),), generator=g).unique()
        found.append(spearman(values[drawn], truth[drawn]))
    return tuple(torch.tensor(found).nanquantile(torch.tensor([0.025, 0.975])).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    for name in ("day", "night", "truth", "translator", "judge"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--weights", help="of tf_efficientnet_lite0, for reverse: a .safetensors file in timm's names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60, help="night images, evenly spaced; default: 60")
    parser.add_argument("--steps", type=int, default=150, help="of the small network of reverse; default: 150")
    parser.add_argument("--size", default="240", help="at which labels are compared; default: 240")
    parser.add_argument("--precision", default="auto", help="as of seg-train")
    given = parser.parse_args()
    accelerator, measures = make_accelerator(given.precision), None
    given.out.mkdir(parents=True, exist_ok=True)
    rows, own = {}, {}
    asked = {name: value for name, value in vars(given).items() if name not in ("models", "out")}
    for name in given.models:
        key = f"{Path(name).name}-{digest(f'{Path(name).resolve()} {asked}')}"
        file, kept = given.out / f"{key}.json", given.out / f"{key}.pt"
        if not file.is_file():
            if measures is None:
                measures = Measures(given, accelerator, given.out / f"images-{digest(str(asked))}.pt")
            found, labels = measures.of(name)
            found["reverse"] = measures.reverse(labels, given.steps)
            options = EvalOptions(model=[name], dataset=[given.truth])
            result = score(*compare(options, accelerator)[2][0], options, accelerator)
            entry = result.entry | {"of_images": result.of_images.tolist()}
            found |= {"method": method(name), "truth": float(figures([entry])[0].split()[0])}
            torch.save(labels, kept)
            write_json(file, found)
            say(f"{name}: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items() if k != "method"))
        rows[name] = json.loads(file.read_text())
        own[name] = torch.load(kept)
    classes = 1 + max(int(x.max()) for labels in own.values() for x in labels)
    images = zip(*own.values(), strict=True)
    votes = [sum(F.one_hot(x.long(), classes) for x in same).argmax(-1).to(torch.uint8) for same in images]
    for name, row in rows.items():
        row["vote"] = miou(votes, own[name], classes)
    text = report(rows)
    (given.out / "table.md").write_text(text + "\n")
    print(text)


def report(rows: dict[str, dict]) -> str:
    truth = [row["truth"] for row in rows.values()]
    lines = [
        "| model | method | true mIoU | " + " | ".join(MEASURES) + " |",
        "|---|---|" + "---|" * (1 + len(MEASURES)),
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["truth"]):
        cells = [f"{row[x]:.1f}" for x in ("truth", *MEASURES)]
        lines.append(f"| {Path(name).name} | {row['method']} | " + " | ".join(cells) + " |")
    lines += ["", "| measure | Spearman, all | 95 % | within methods | regret |", "|---|---|---|---|---|"]
    methods = sorted({row["method"] for row in rows.values()})
    for x in MEASURES:
        values = [row[x] for row in rows.values()]
        low, high = spread_of(values, truth)
        within = []
        for m in methods:
            some = [row for row in rows.values() if row["method"] == m]
            if len(some) > 2:
                within.append(f"{m} {spearman([r[x] for r in some], [r['truth'] for r in some]):.2f} ({len(some)})")
        regret = max(truth) - truth[int(np.argmax(values))]
        lines.append(
            f"| {x} | {spearman(values, truth):.2f} | {low:.2f} to {high:.2f} | {', '.join(within)} | {regret:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
