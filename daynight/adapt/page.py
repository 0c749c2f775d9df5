"""The page at the end of `adapt`: which model to use, and what that answer rests on."""

from itertools import chain
from pathlib import Path

from daynight.adapt.plan import TRAININGS
from daynight.adapt.stages import labelled_by
from daynight.data.formats import open_image
from daynight.data.labels import read_label
from daynight.data.sets import ImageSet, counterparts, evenly
from daynight.reports import html as page
from daynight.reports.previews import label_image
from daynight.reports.record import newest_first
from daynight.reports.words import meaning
from daynight.system.console import duration, number, say
from daynight.system.files import read_json, write_text

SHOWN = 6  # images of each kind
ROWS = {"baseline": "day labels alone", "darken": "with darkened days", "ssl": "the full method"}
HEALTH = ("day_miou", "night_agreement", "night_mask", "entropy", "kid", "cycle", "feature")
LABELLING = (
    "Label 15 nights: copy 15 of your night images to LABELS/images/val, and classes.json of --day to LABELS.",
    "With any annotation tool (CVAT, labelme, …) write for each image a PNG of the same stem to LABELS/labels/val: one "
    "channel, the number of the class in classes.json for each pixel, 255 where you are not sure.",
    "Then type the same line again with --night-labels LABELS: only the scores and this page are made anew.",
)


def write_page(out: Path, plan: dict, lines: dict, results: list, sets: dict, labelled: list, accelerator) -> None:
    """Write `index.html` into `out`. lines: stage → its command line; results: as of `scores`; sets: option → what was
    trained on; labelled: the night images with labels, if there are some. Says which model to use."""
    answer, tips = advice(out, plan, results)
    columns = ["stage", "steps", "time planned", "command line"]
    planned = [
        [name, plan[TRAININGS[name]]["steps"] if name in TRAININGS else "", duration(taken), lines.get(name, "")]
        for name, taken in plan["seconds"].items()
    ]
    scored = [[ROWS[x["row"]], x["dataset"], x["images"], x["miou"], between(x), x["accuracy"]] for x in results]
    head = ["network", "images", "how many", "mIoU", "95 % interval", "accuracy"]
    parts = [
        page.section("Which model to use", *answer),
        page.section("Scores", page.table(head, scored) if scored else "Nothing is labelled but what was trained on."),
        nights(out, sets, labelled, accelerator),
        translations(out, sets["--day"][0]),
        page.section("Health", *health(out)),
        page.section("What to try next", *tips),
        page.section("The plan", f"Sizes {plan['size']!r}, for {plan['hours']:g} h.", page.table(columns, planned)),
    ]
    write_text(out / "index.html", page.page("daynight adapt", *parts))
    for line in answer:
        say(line)


def between(entry: dict) -> str:
    ends = entry["miou_interval"]
    return f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""


def advice(out: Path, plan: dict, results: list[dict]) -> tuple[list[str], list[str]]:
    """Which model to use and why, in sentences; and what to try next."""
    night = {x["row"]: x for x in results if x["dataset"] == "night" and x["miou"] is not None}
    tips = [] if night else list(LABELLING)
    if night:
        best = max(night, key=lambda row: night[row]["miou"])
        of = ", ".join(f"{ROWS[row]} {x['miou']:.1f}" for row, x in night.items())
        answer = [f"Use {out / best} ({ROWS[best]}): the best by night, in mIoU: {of}."]
        if best != "baseline" and night[best]["miou_interval"][0] <= night["baseline"]["miou_interval"][1]:
            answer.append(f"The 95 % intervals of {best} and baseline overlap: more labelled nights would tell more.")
    else:
        best, found = "ssl", {row: last(out / row).get("day_miou") for row in ROWS}
        days = ", ".join(f"{ROWS[row]} {number(value)}" for row, value in found.items())
        answer = [
            "Without night labels nothing here says which model is best by night: no measure that needs none is "
            f"trusted yet. Held-out days, mIoU: {days}. Compare the nights below by eye; in our measurements the full "
            f"method, {out / best}, was the best."
        ]
    if (kept := read_json(out / "translated/audit.json")["kept"]) < 50:
        tips.append(
            f"The baseline labels only {kept:.0f} % of the pixels the same after translation: look at "
            "translated/audit.html; more --hours, or a larger --lambda-feature for the translator, keep more in place."
        )
    if best != "ssl":
        tips.append(
            "The full method is not the best here: do its translations below look like nights, all in its place?"
        )
    if plan["more"] or best != "ssl":
        tips.append(f"More time: --hours {2 * plan['hours']:g} with another --out trains longer, or larger networks.")
    tips.append("Go on by hand: the command lines below take every option (daynight COMMAND --help).")
    tips.append(f"Use it: daynight predict --model {out / best} --in FOLDER --out labelled")
    return answer, tips


def last(run: Path) -> dict:
    """The last value of each name that a training has logged."""
    values = {}
    for line, _ in newest_first(run / "metrics.jsonl", 10**9):
        values = line | values
    return values


def health(out: Path) -> list:
    """What each training says of itself at its end."""
    rows, parts = [], []
    for run in TRAININGS:
        values = last(out / run)
        rows += [[run, *meaning(name), f"{values[name]:.4g}"] for name in HEALTH if values.get(name) is not None]
        unseen = [k.partition("/")[2] for k, x in values.items() if k.startswith("accepted/") and not x]
        if unseen:
            parts.append(f"{run}: at the end the teacher was sure of no night pixel of: {', '.join(unseen)}.")
    kept = read_json(out / "translated/audit.json")["kept"]
    parts.append(f"The baseline labels {kept:.1f} % of the pixels the same after translation.")
    pages = {f"{run}/index.html": f"the curves of {run}" for run in TRAININGS}
    pages |= {"translated/audit.html": "where the translation moved classes"}
    links = page.tag("p", *chain(*((page.tag("a", text, href=name), " · ") for name, text in pages.items())))
    return [page.table(["run", "what it is", "unit", "value"], rows), *parts, links]


def nights(out: Path, sets: dict, labelled: list[ImageSet], accelerator) -> page.Html:
    """Night images, the same ones each time, with the labels of every row, and the truth where there is one."""
    found = labelled or sets["--night"]
    files = [(image, label, s) for s in found for image, label in zip(s.images, s.labels, strict=True)]
    files = [files[i] for i in evenly(len(files), SHOWN)]
    images, day = [open_image(path).convert("RGB") for path, _, _ in files], sets["--day"][0].classes
    seen = {text: labelled_by(str(out / row), images, accelerator) for row, text in ROWS.items()}
    strips = []
    for i, (path, label, s) in enumerate(files):
        figures = [page.figure(images[i], "night", 480)]
        if labelled:
            figures.append(
                page.figure(label_image(read_label(label, s.label_kind, s.classes), s.classes), "truth", 480)
            )
        figures += [page.figure(label_image(labels[i], day), text, 480) for text, labels in seen.items()]
        strips.append(page.strip(path.name, *figures))
    return page.section("Nights", page.legend(dict(zip(day.names, day.colors, strict=True))), *strips)


def translations(out: Path, day: ImageSet) -> page.Html:
    """Whole day images, the same ones each time, and their translations."""
    few = [day.images[i] for i in evenly(len(day.images), SHOWN)]
    pairs = zip(few, counterparts(few, day.root, out / "translated")[0], strict=True)
    figures = [
        [page.figure(open_image(x), t, 480) for x, t in zip(p, ("day", "translated"), strict=True)] for p in pairs
    ]
    strips = [page.strip(path.name, *two) for path, two in zip(few, figures, strict=True)]
    return page.section("Translations", "The full method learned from all of these, and from real nights.", *strips)
