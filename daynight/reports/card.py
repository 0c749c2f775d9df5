"""The model card, README.md. With it, a model folder can be uploaded to the Hub as it is: it holds no data."""

import filecmp
import os
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from daynight.config import default_of, free
from daynight.models.hub import identity
from daynight.models.place import hub_id
from daynight.reports.record import newest_first, previews_in
from daynight.system.console import number
from daynight.system.files import read_json, replace, write_text

CARD, PREVIEW = "README.md", "preview.png"
CAPTION = f"![Inputs and what the model makes of them]({PREVIEW})"
PICTURE = f"{CAPTION}\nIt shows training images; their licences may forbid passing them on.\n\n"
ODD = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"  # control characters, half characters
BEGIN, END = "<!-- results of daynight eval -->", "<!-- end of results -->"
# for each class in config.json: its training, the Hub's name of the task, tags, title, architecture, how it is used
KINDS = {
    "DeepLabV2": (
        "daynight seg-train",
        "image-segmentation",
        ["semantic-segmentation", "night", "domain-adaptation"],
        "Semantic segmentation of streets by day and by night",
        "DeepLabV2 on {backbone} at size {size}, for the classes {classes}",
        'daynight.load_segmenter("USER/REPOSITORY")\nlabels = model(Image.open("night.jpg"))  # H×W train ids',
    ),
    "Generator": (
        "daynight translate-train",
        "image-to-image",
        ["unpaired-image-translation", "cyclegan", "night"],
        "Translation of street images, {direction}",
        "CycleGAN's generator of {blocks} blocks and {width} filters, crop {crop}",
        'daynight.load_generator("USER/REPOSITORY")\ntranslated = model(Image.open("street.jpg"))  # of the same size',
    ),
}
# what results must share to be of the same measurement
SETTINGS = ("images", "size", "labels", "mean", "label_set", "scales", "flip")


def write_card(folder: Path, step: int, run: Path, options) -> None:
    """Write README.md of the model in `folder`, from what `run` has recorded up to `step`. `options`: its dataclass.

    With `card_preview` also preview.png; without it, one that a run has written is removed. A card of the same weights
    stays as it is, with its results and the user's changes, but for the picture.
    """
    path, weights, picture = folder / CARD, identity(folder), folder / PREVIEW
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = previews_in(run, options.steps)
    same = not picture.exists() or any(filecmp.cmp(picture, x, False) for x in found.values())
    ours = same or CAPTION in before and not found  # with no preview left to compare it with
    previews = [file for n, file in found.items() if n <= step] if options.card_preview and ours else []
    if previews:
        replace(picture, lambda temporary: shutil.copyfile(previews[-1], temporary))
    elif ours:
        picture.unlink(missing_ok=True)
    if f"`{weights}`" in before:
        if bool(previews) != (CAPTION in before):
            before = re.sub(rf"{re.escape(CAPTION)}(\n.+)?\n*", "", before)
            write_text(path, before.replace("## Use\n", f"{PICTURE * bool(previews)}## Use\n", 1))
        return
    config, record = read_json(folder / "config.json"), read_json(run / "options.json")
    command, task, tags, title, what, use = KINDS[config["class"]]
    config |= {key: in_text(public(value)) for key, value in config.items() if isinstance(value, str)}
    config["classes"] = ", ".join(f"{i} {in_text(name)}" for i, name in enumerate(config.get("names", [])))
    named = [(option, text.rpartition(": ")) for option, texts in record.get("sets", {}).items() for text in texts]
    data = ModelCardData(
        library_name="daynight", pipeline_tag=task, tags=tags, license="unknown", base_model=base_model(options),
        datasets=sorted({found for _, (name, *_) in named if (found := hub_set(name))}) or None,
    )  # fmt: skip
    sets = [f"- `{option}` {in_text(f'{public(name)}: {held}')}" for option, (name, _, held) in named]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title.format(direction=folder.name.replace('2', ' to '))}",
        f"{what.format(**config)}, after {step:,} of {options.steps:,} steps of `{command}`; weights `{weights}`.",
        PICTURE.strip() if previews else "",
        "## Use",
        "With `daynight` installed; the name is that of this repository, or of a folder with these files:",
        f"```python\nimport daynight\nfrom PIL import Image\n\nmodel = {use}\n```",
        "## Data",
        "\n".join(sets) or "Not recorded.",
        "Choose the licence in this file's header; the licences of the training images may limit it.",
        "## Training",
        f"```sh\n{command}{words(options)}\n```",
        f"Seed {options.seed}; {', '.join(f'{name} {value}' for name, value in record['versions'].items() if value)}.",
        last_metrics(run / "metrics.jsonl", step),
        f"## Results\n\n{BEGIN}\n{END}" if task == "image-segmentation" else "",
    ]
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")


def base_model(options) -> str | None:
    """The Hub's repository of the weights that a training began with, as far as the options tell."""
    if options.init:
        return hub_id(options.init)
    pretrained = getattr(options, "backbone_weights", None) == "pretrained"
    return timm.get_pretrained_cfg(options.backbone).hf_hub_id if pretrained else None


def hub_set(name: str) -> str | None:
    """The Hub's repository of a data set that an option names (`hf:USER/NAME…`); None for a folder."""
    found = re.match(r"hf:([\w-][\w.-]*(?:/[\w.-]+)?)(?=[@:#]|$)", name)
    return found[1] if found and not os.path.exists(found[1]) else None


def words(options) -> str:
    """The options that are not the defaults, as typed on one line, without the folders of paths."""
    result = ""
    for f in fields(options):
        value = getattr(options, f.name)
        if f.name not in free(type(options)) and value != default_of(f):
            for one in value if isinstance(value, list) else [value]:
                result += f" --{f.name.replace('_', '-')}" + ("" if one is True else f" {shlex.quote(public(one))}")
    return re.sub(f"{ODD}|<(?=!--)", "\ufffd", result)  # in a block of code nothing can be escaped


def last_metrics(file: Path, step: int) -> str:
    """The values that were last logged up to this step, as a table; "" if there are none."""
    last, _ = next(newest_first(file, step), (None, 0)) if file.is_file() else (None, 0)
    if not last:
        return ""
    values = [f"| {name} | {value:.4g} |" for name, value in last.items() if name != "step" and "/" not in name]
    return "\n".join([f"| mean up to step {last['step']:,} | |", "|---|---:|", *values])


def add_results(folder: Path, weights: str, entries: list[dict]) -> bool:
    """Add results of `eval` (entries as in `--json`) to the card of the model in `folder`. They replace results of the
    same data and settings; an entry without a mIoU is left out.

    Returns False, and changes nothing, if the card cannot be read and written, is a link (as in the Hub's cache), is
    not of these `weights`, or holds results that are not from here.
    """
    path = folder / CARD
    new = [result for entry in entries if entry["miou"] is not None for result in results_of(entry)]
    try:
        text, writable = path.read_text(encoding="utf-8"), os.access(path, os.W_OK) and not path.is_symlink()
        if not writable or not text.startswith("---\n") or f"`{weights}`" not in text:
            return False
        card = ModelCard(text)
        before, rest = card.text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        again = [measurement(result) for result in new]
        results = [old for old in card.data.eval_results or [] if measurement(old) not in again] + new
        card.data.model_name, card.data.eval_results = card.data.model_name or "daynight", results
        card.text = f"{before}{BEGIN}\n{table(results)}\n{END}{after}"
        replace(path, card.save)
    # the file cannot be written, or was edited by hand: YAML and ModelCard raise many classes
    except Exception:
        return False
    return True


def results_of(entry: dict) -> list:
    """The mIoU and the accuracy of an entry of `--json`."""
    name, task, settings = public(entry["dataset"]), "image-segmentation", {key: entry[key] for key in SETTINGS}
    shared = {"task_type": task, "dataset_type": name, "dataset_name": name, "dataset_split": entry["split"]}
    metrics = (
        ("mean_iou", "mIoU, %", entry["miou"], settings | {"interval": entry["miou_interval"]}),
        ("accuracy", "pixel accuracy, %", entry["accuracy"], settings),
    )
    return [
        EvalResult(**shared, metric_type=kind, metric_name=name, metric_value=value, metric_args=arguments)
        for kind, name, value, arguments in metrics
    ]


def measurement(result) -> tuple:
    """The data and settings of an `EvalResult`. The Hub's format has no None: what is missing is None."""
    return result.dataset_name, result.dataset_split, [result.metric_args.get(key) for key in SETTINGS]


def table(results: list) -> str:
    lines = ["| data set | images | size | classes | mIoU, % | 95 % interval | pixel accuracy, % |", "|---" * 7 + "|"]
    mious, accuracies = ([r for r in results if r.metric_type == kind] for kind in ("mean_iou", "accuracy"))
    for result in mious:
        args = result.metric_args
        several = [f"scales {args['scales']}"] * (args["scales"] != [1.0]) + ["flip"] * args["flip"]
        cells = [
            in_text(" ".join(filter(None, [result.dataset_name, result.dataset_split]))),
            f"{args['images']:,}",
            ", ".join([str(args["size"]), *several]),
            args["mean"],
            number(result.metric_value),
            " to ".join(map(number, args.get("interval") or [None])),
            number(next(other.metric_value for other in accuracies if measurement(other) == measurement(result))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def public(value: object) -> str:
    """An option's value as others may read it: the last part of what names a path."""
    text = str(value)
    is_path = (os.sep in text or os.path.exists(text)) and not hub_set(text)
    return os.path.basename(os.path.abspath(text)) if is_path else text


def in_text(name: str) -> str:
    """A name as text of Markdown, in a sentence or a table."""
    # two backslashes before a bracket would be a formula on the Hub
    special = r"[\\`*\[\]<>&|~$]|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])"
    line = re.sub(ODD, "\ufffd", " ".join(name.split()))
    return re.sub(special, lambda found: "&#92;" if found[0] == "\\" else f"\\{found[0]}", line)
