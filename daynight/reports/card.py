"""The model card, README.md: with it a model folder is a Hub repository as it stands."""

import json
import os
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

from daynight.config import SegTrainOptions, TranslateTrainOptions, default_of, free
from daynight.models.hub import identity
from daynight.system.console import number
from daynight.system.files import read_json, replace

CARD, PREVIEW = "README.md", "preview.png"
BEGIN, END = "<!-- results of daynight eval -->", "<!-- end of results -->"
INDEX = re.compile(r"^model-index: (\[.*\])\n", re.MULTILINE)  # JSON, which is YAML too
COMMANDS = {SegTrainOptions: "daynight seg-train", TranslateTrainOptions: "daynight translate-train"}
# by the class in config.json: what the Hub calls the task and the model, its title, how it is used
KINDS = {
    "DeepLabV2": (
        "image-segmentation",
        ["semantic-segmentation", "night", "domain-adaptation"],
        "Semantic segmentation of streets by day and by night",
        'segmenter = daynight.load_segmenter("USER/REPOSITORY")\n'
        'labels = segmenter(Image.open("night.jpg"))  # height × width, train ids',
    ),
    "Generator": (
        "image-to-image",
        ["unpaired-image-translation", "cyclegan", "night"],
        "Translation of street images, {}",
        'generator = daynight.load_generator("USER/REPOSITORY")\n'
        'translated = generator(Image.open("street.jpg"))  # an image of the same size',
    ),
}
DIRECTIONS = {"day2night": "day to night", "night2day": "night to day"}


def write_card(folder: Path, step: int, run: Path, options) -> None:
    """Write README.md and preview.png of the model in `folder`, as it is in `run` after `step` steps; a card that has
    the identity of its weights already is left as it is, with the results and whatever else was added to it.

    What is written is a function of what the run has up to that step.
    """
    weights = identity(folder)
    path = folder / CARD
    if not (run / "options.json").is_file():  # a dry run
        return
    if path.is_file() and f"`{weights}`" in path.read_text(encoding="utf-8", errors="replace"):
        return
    config, record = read_json(folder / "config.json"), read_json(run / "options.json")
    task, tags, title, use = KINDS[config["class"]]
    title = title.format(DIRECTIONS.get(folder.name, folder.name))
    command = COMMANDS.get(type(options))
    previews = [file for file in sorted((run / "previews").glob("*.png")) if file.stem.isdigit()]
    previews = [file for file in previews if int(file.stem) <= step]
    if previews:
        replace(folder / PREVIEW, lambda temporary: shutil.copyfile(previews[-1], temporary))
    parts = [
        front_matter(task, tags),
        f"# {title}",
        f"{architecture(config)}, after {step:,} of {options.steps:,} steps" + f" of `{command}`" * bool(command) + "; "
        f"weights `{weights}`.",
        *[f"![What went in, and what the model makes of it]({PREVIEW})"] * bool(previews),
        "## Use",
        "With `daynight` installed; the name is that of this repository, or of a folder with these files:",
        f"```python\nimport daynight\nfrom PIL import Image\n\n{use}\n```",
        "## Data",
        *listed(record.get("sets", {})),
        "## Training",
        f"```sh\n{command or '#'}{words(options)}\n```",
        f"Seed {options.seed}; {', '.join(f'{name} {value}' for name, value in record['versions'].items() if value)}.",
        *metrics(run / "metrics.jsonl", step),
        *([f"## Results\n\n{BEGIN}\n{END}"] if task == "image-segmentation" else []),
    ]
    text = "\n\n".join(parts) + "\n"
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def front_matter(task: str, tags: list[str]) -> str:
    """What the Hub reads. The licence is not ours to choose: it depends on the data too."""
    lines = ["---", "library_name: daynight", f"pipeline_tag: {task}", f"tags: {json.dumps(tags)}"]
    return "\n".join([*lines, "license: unknown # yours to choose; that of the training images may bind it", "---"])


def architecture(config: dict) -> str:
    if config["class"] == "Generator":
        return f"CycleGAN's generator of {config['blocks']} blocks and {config['width']} filters, crop {config['crop']}"
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(config["names"]))
    return f"DeepLabV2 on {config['backbone']} at size {config['size']}, for the classes {classes}"


def listed(sets: dict[str, list[str]]) -> list[str]:
    lines = [f"- `{option}` {text}" for option, texts in sets.items() for text in texts]
    return ["\n".join(lines) or "Not recorded."]


def words(options) -> str:
    """The options that are not the defaults, as typed."""
    result = ""
    for f in fields(options):
        value = getattr(options, f.name)
        if f.name in free(type(options)) or value == default_of(f):
            continue
        for one in value if isinstance(value, list) else [value]:
            result += f" --{f.name.replace('_', '-')}" + ("" if one is True else f" {shlex.quote(str(one))}")
    return result


def metrics(file: Path, step: int) -> list[str]:
    """The values that were logged last up to this step, as a table."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.is_file() else []
    last = [line for line in lines if line["step"] <= step][-1:]
    if not last:
        return []
    values = [f"| {name} | {value:.4g} |" for name, value in last[0].items() if name != "step" and "/" not in name]
    table = "\n".join([f"| mean up to step {last[0]['step']:,} | |", "|---|---:|", *values])
    return [table]


def add_results(folder: Path, weights: str, entries: list[dict]) -> bool:
    """Put what `eval` found (entries as in `--json`) into the card of the model in `folder`, in the place of what it
    found before on the same data in the same way.

    False, and nothing is changed, where there is no card that can be read and written, as in the Hub's cache, or it is
    not of these `weights`.
    """
    path = folder / CARD
    if not path.is_file() or path.is_symlink() or not (os.access(path, os.W_OK) and os.access(folder, os.W_OK)):
        return False
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    if f"`{weights}`" not in body or BEGIN not in body or END not in body.split(BEGIN)[1]:
        return False
    new = [result_of(entry) for entry in entries]
    again = [(result["dataset"], result["metrics"][1]["args"]) for result in new]
    found = INDEX.search(head + "\n")
    if not found and "model-index:" in head:  # somebody else's
        return False
    try:
        known = json.loads(found[1])[0]["results"] if found else []
        results = [old for old in known if (old["dataset"], old["metrics"][1]["args"]) not in again] + new
        rows = table(results)
    except (ValueError, LookupError, TypeError):  # edited by hand
        return False
    index = f"model-index: {json.dumps([{'name': 'daynight', 'results': results}], ensure_ascii=False)}"
    head = "\n".join([*INDEX.sub("", head + "\n").rstrip("\n").split("\n"), index])
    before, _, rest = body.partition(BEGIN)
    text = f"---\n{head}\n---\n{before}{BEGIN}\n{rows}\n{END}{rest.partition(END)[2]}"
    try:
        replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return False
    return True


def result_of(entry: dict) -> dict:
    """An entry of `--json` as the Hub's model-index has it; of a data set's path the last part alone."""
    name = Path(entry["dataset"]).name
    settings = {key: entry[key] for key in ("images", "size", "labels", "mean", "label_set", "scales", "flip")}
    of_miou = settings | {"interval": entry["miou_interval"]}
    return {
        "task": {"type": "image-segmentation"},
        "dataset": {"type": name, "name": name, "split": entry["split"]},
        "metrics": [
            {"type": "mean_iou", "name": "mIoU, %", "value": entry["miou"], "args": of_miou},
            {"type": "accuracy", "name": "pixel accuracy, %", "value": entry["accuracy"], "args": settings},
        ],
    }


def table(results: list[dict]) -> str:
    lines = ["| data set | images | size | classes | mIoU, % | 95 % interval | pixel accuracy, % |", "|---" * 7 + "|"]
    for result in results:
        (miou, accuracy), dataset = result["metrics"], result["dataset"]
        args = miou["args"]
        several = [f"scales {args['scales']}"] * (args["scales"] != [1.0]) + ["flip"] * args["flip"]
        cells = [
            " ".join(filter(None, [dataset["name"], dataset["split"]])),
            f"{args['images']:,}",
            ", ".join([str(args["size"]), *several]),
            args["mean"],
            number(miou["value"]),
            " to ".join(map(number, args["interval"] or [None])),
            number(accuracy["value"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
