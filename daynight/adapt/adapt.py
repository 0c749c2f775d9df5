"""`adapt`: the whole method on own folders, in the hours given, with one page at its end."""

import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

from daynight.adapt.page import write_page
from daynight.adapt.plan import OPTIONS, SETTINGS, TRAININGS, make_plan, show_plan
from daynight.adapt.stages import Stage, follow, line_of, scores
from daynight.config import AdaptOptions, EvalOptions, SegTrainOptions, TranslateOptions
from daynight.data.sets import ImageSet, announce, check_disjoint, load
from daynight.evaluation.scoring import check_data
from daynight.inference.folders import claimed
from daynight.system.console import duration, say, warn
from daynight.system.errors import InputError
from daynight.system.files import claimable, read_json, write_json
from daynight.system.processes import gathered, make_accelerator
from daynight.training.dry_run import check_files

RECORD, PLAN = "adapt.json", "plan.json"
TITLES = {
    "baseline": "learn from the labelled days alone",
    "darken": "the method with darkened days, which need no translator",
    "translator": "learn to translate day into night",
    "translated": "translate the days; the baseline looks where classes moved",
    "ssl": "the full method: days, their translations, real nights",
    "scores and page": "score the three networks, show them side by side",
}
ROWS = "baseline", "darken", "ssl"


def adapt(options: AdaptOptions) -> None:
    """Check the data, plan, train, translate and score; write `results.json` and `index.html` into `options.out`.

    The same line goes on with its plan. Raises `InputError` where the hours do not suffice.
    """
    began, out = time.monotonic(), Path(options.out)
    accelerator = make_accelerator(options.precision)
    record = {name: getattr(options, name) for name in ("seed", "precision", "day", "night")}
    claimable(out, RECORD, record)
    shared = {name: getattr(options, name) for name in ("seed", "precision", "data_root", "num_workers", "debug")}
    sets, scored = check(options, shared)
    plan = read_json(out / PLAN) if (out / PLAN).is_file() else None
    if plan and plan["hours"] != options.hours:
        raise InputError(
            f"--hours {options.hours:g}: the plan in {out} is for {plan['hours']:g}; give that, or another --out"
        )
    images = sum(len(s.images) for s in scored)
    plan = plan or make_plan(options, sets, images, shared, accelerator.device.type)
    stages = stages_of(options, plan, shared)
    show_plan(plan, TITLES)
    if options.dry_run:
        return say(f"dry run: nothing was written to {out}")
    with claimed(out, RECORD, record, accelerator):
        if accelerator.is_main_process:
            write_json(out / PLAN, plan)
        follow(list(stages.values()))
        names = {s.name: "night" if s.name == options.night_labels else "day" for s in scored}
        runs = {row: str(out / row) for row in ROWS}
        results = scores(runs, names, shared) if names else []
        if accelerator.is_main_process:
            write_json(out / "results.json", results)
            lines = {name: line_of(stage.command, stage.options) for name, stage in stages.items()}
            write_page(out, plan, lines, results, sets, [s for s in scored if names[s.name] == "night"], accelerator)
        gathered(None)
    say(f"\n{duration(time.monotonic() - began)}. Look at {out / 'index.html'}.")


def check(options: AdaptOptions, shared: dict) -> tuple[dict[str, list[ImageSet]], list[ImageSet]]:
    """Option → what is trained on; and the labelled sets to score on: --night-labels, and the val or test images of the
    day. Reads every file and says what it finds. Raises `InputError` for what cannot be used."""
    root = Path(options.data_root)
    day = load(options.day, root, "--day", time="day", labelled=True)
    sets = {"--day": [day], "--night": [load(name, root, "--night", time="night") for name in options.night]}
    check_disjoint(sets["--day"], sets["--night"])
    announce([*chain(*sets.values())], {"--out": options.out})
    check_files(sets, {}, ("--day",), SegTrainOptions())
    scored = []
    with suppress(InputError):
        held = load(options.day, root, "--day", splits=None, labelled=True)
        scored += [held] * (held.split in ("val", "test"))
    if options.night_labels:
        check_data(EvalOptions(dataset=[options.night_labels], **shared))
        labelled = load(options.night_labels, root, "--night-labels", splits=None, labelled=True)
        ours, theirs = ({name.casefold() for name in s.classes.names} for s in (day, labelled))
        if not ours & theirs:
            told = f"none of its classes ({', '.join(labelled.classes.names)}) is one of --day"
            raise InputError(f"--night-labels {options.night_labels}: {told} ({', '.join(day.classes.names)})")
        seen = set(labelled.real_paths()).intersection(chain(*(s.real_paths() for s in sets["--night"])))
        if seen:
            warn(f"--night-labels: {len(seen):,} of its images are among --night: scores of new nights may be lower")
        scored.append(labelled)
    return sets, scored


def stages_of(options: AdaptOptions, plan: dict, shared: dict) -> dict[str, Stage]:
    """Name of its folder → the stage. The free answer comes first: it shows early what the data can give."""
    out, data = Path(options.out), {"day": options.day, "night": options.night}
    settings = SETTINGS | {"ssl": {"translated": str(out / "translated"), "ssl": True}}
    stages = {}
    for name, command in TRAININGS.items():
        given = plan[command] | settings[name] | shared | data | {"out": str(out / name)}
        if name == "baseline":
            del given["night"]  # it sees none
        stages[name] = Stage(TITLES[name], command, OPTIONS[command](**given))
    model, judge = str(out / "translator"), str(out / "baseline")
    translating = {"in_": options.day, "out": str(out / "translated"), "model": model, "audit": judge} | shared
    ssl = stages.pop("ssl")
    return stages | {
        "translated": Stage(TITLES["translated"], "translate", TranslateOptions(**translating)),
        "ssl": ssl,
    }
