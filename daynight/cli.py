"""The console script: it makes commands of the options in `config.py`, and one line of every error."""

from daynight.system.watchdog import at_once, heed, insist

with at_once():
    import ctypes
    import difflib
    import inspect
    import json
    import os
    import signal
    import sys
    import traceback
    from contextlib import suppress
    from dataclasses import fields
    from importlib import import_module
    from pathlib import Path
    from typing import Annotated, get_type_hints

    import typer

    from daynight import config
    from daynight.system import __version__
    from daynight.system.console import open_streams, plain
    from daynight.system.errors import InputError, RunError
    from daynight.system.files import read_json

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

# name, options, what it runs; the options' docstring is its help
COMMANDS = (
    ("translate-train", config.TranslateTrainOptions, "daynight.translation:train"),
    ("translate", config.TranslateOptions, "daynight.inference.translate:translate"),
    ("seg-train", config.SegTrainOptions, "daynight.segmentation:train"),
    ("eval", config.EvalOptions, "daynight.evaluation.scoring:evaluate"),
    ("predict", config.PredictOptions, "daynight.inference.predict:predict"),
    ("export", config.ExportOptions, "daynight.inference.export:export"),
    ("adapt", config.AdaptOptions, "daynight.adapt.adapt:adapt"),
    ("demo", config.DemoOptions, "daynight.demo.demo:demo"),
)
VARIABLES: set[str] = set()  # of the environment, that stand for options


def signature(command: str, options: type) -> inspect.Signature:
    """A dataclass of options as the signature that Typer reads, one panel of the help after the other. The field
    `lambda_cyc` is --lambda-cyc, and `in_` is --in."""
    hints, facts, result = get_type_hints(options), config.declared(options), []
    for f in sorted(fields(options), key=lambda f: config.PANELS.index(facts[f.name]["settings"]["rich_help_panel"])):
        spelt, off = f.name.strip("_").replace("_", "-"), facts[f.name]["off"]
        variables = [f"DAYNIGHT_{command}_{spelt}".upper().replace("-", "_")]
        variables += ["DAYNIGHT_DATA"] * (f.name == "data_root")
        VARIABLES.update(variables)
        settings = {"envvar": variables, "show_envvar": False} | facts[f.name]["settings"]
        if f.name == "config":
            settings |= {"is_eager": True, "callback": read_config}
        info = typer.Option(config.default_of(f), f"--{spelt}" + (off and f"/{off}"), **settings)
        result.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=hints[f.name]))
    return inspect.Signature(result)


def read_config(ctx: typer.Context, path: str | None) -> str | None:
    """Let the options in a JSON file, or in a recipe of the package, replace the defaults; "list" shows the recipes.
    Keys that begin with # are remarks."""
    if path is None:
        return None
    command, recipes = ctx.command.name, {}
    for file in sorted((Path(__file__).parent / "recipes").glob("*.json")) if not os.path.exists(path) else ():
        recipe = read_json(file)
        recipes |= {file.stem: recipe} if command in recipe else {}
    if path == "list" and recipes:
        print("\n".join(f"{name}: {recipe['#']}" for name, recipe in recipes.items()))
        raise typer.Exit()
    try:
        content = recipes[path][command] if path in recipes else read_json(Path(path))
    except InputError as error:
        known = f"; nor is it one of the recipes {', '.join(recipes)}" * bool(recipes)
        raise InputError(f"--config {error}{known}") from None
    if isinstance(content.get("options"), dict):
        content = content["options"]
    names, defaults = {p.opts[0].removeprefix("--"): p for p in ctx.command.params if p.name != "help"}, {}
    for key, value in content.items():
        spelt = key.replace("_", "-")
        # the file named by "config" in a run's options.json was read when the run began
        if key.startswith("#") or value is None or spelt == "config":
            continue
        if spelt not in names:
            near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(spelt, names, 1))
            raise InputError(f"--config {path}: no option {key!r}{near}")
        parameter, values = names[spelt], value if isinstance(value, list) else [value]
        text = "".join(map(str, values))
        good = isinstance(value, list) == parameter.multiple and all(type(one) in (str, int, float) for one in values)
        try:
            text.encode()  # raises for half a character
            if "\0" in text:
                raise ValueError(f"{text!r} is no text")
            # Typer would quietly make a string or a number of something else, as of {"steps": true}
            if not parameter.is_flag and (not good or not values and parameter.default):
                wanted = "a list of one or more" if parameter.multiple else "a string or a number"
                raise ValueError(f"{json.dumps(value)}; wanted: {wanted}")
            parameter.process_value(ctx, value)
        except (typer.TyperException, TypeError, ValueError) as error:
            raise InputError(f"--config {path}: {key}: {getattr(error, 'message', error)}") from None
        defaults[parameter.name] = value
    ctx.default_map = (ctx.default_map or {}) | defaults
    return path


def check_places(command: str, options) -> None:
    """Raise `InputError` for an option whose data, model or file is not there, before torch is imported: that takes
    seconds. What needs a look inside is checked later, and of several processes everything: one tells the others."""
    if any(name.startswith("ACCELERATE_") or name in ("RANK", "LOCAL_RANK") for name in os.environ):
        return
    from daynight.data.layouts.tree import find, tagged_night
    from daynight.data.sets import check_images
    from daynight.models.place import hub_id, model_folder, weights_file

    data = {"day", "night", "unlabelled_day", "translated", "validate_on", "night_labels", "dataset", "in_"}
    root, own = Path(options.data_root), "day2night" if command.startswith("translate") else "teacher"
    unread = {"night"} if not getattr(options, "needs_night", True) else set()
    for name, given in vars(options).items():
        option = f"--{name.strip('_').replace('_', '-')}"
        for value in given if isinstance(given, list) else filter(None, [given]):
            if name in data - unread:
                if not value.startswith("hf:") and not tagged_night(value, root):
                    place = find(value, root, option, name == "in_")
                    if name != "translated":  # what is missing there is told by the days
                        check_images(place, option)
            elif name in ("feature_weights", "backbone_weights"):
                weights_file(value, options.backbone if name[0] == "b" else options.feature_network, option)
            elif name in ("list_", "class_map", "table") and not os.path.exists(value):
                raise InputError(f"{option} {value}: cannot be read (No such file or directory)")
            elif name in ("model", "init", "judge", "audit", "translator"):
                places = [Path(value, inside, "config.json") for inside in ("", "teacher", "day2night", "night2day")]
                if value not in ("darken", "fourier") and not hub_id(value) and not any(map(os.path.isfile, places)):
                    part = {"judge": "teacher", "audit": "teacher", "translator": "day2night"}.get(name, own)
                    model_folder(Path(value), part, f"{option} {value}")


def add(name: str, options: type, target: str) -> None:
    """Make a command of a dataclass of options and `target`, the module:function that takes them."""
    module, function = target.split(":")

    def command(**values):
        try:
            given = options(**values)
        except ValueError as error:  # options that contradict each other
            raise InputError(str(error)) from None
        try:
            check_places(name, given)
            run = getattr(import_module(module), function)
            heed()
            run(given)
        except Exception:
            insist()  # C code may have made an error of its own of what a signal raised
            if given.debug:
                traceback.print_exc()
            raise

    command.__signature__ = signature(name, options)
    app.command(name, help=options.__doc__)(command)


with at_once():
    for entry in COMMANDS:
        add(*entry)


def show(version: bool) -> None:
    if version:
        print(f"daynight {__version__}")
        raise typer.Exit()


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", help="Show it.", is_eager=True, callback=show)] = False):
    """Segmentation that works at night, learned from labelled day images alone."""


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """The cores that a container may use, where it sees more; torch would start a thread for each that it sees."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):
        quota, period = map(int, file.read_text().split())
        return -(-quota // period) if quota < seen * period else None


def main() -> None:
    """Run the command line. Exit status 0, 1 (a run failed) or 2 (usage, input), with one line on stderr."""
    open_streams()
    if {"TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"} & os.environ.keys() and sys.platform == "linux":
        # have Linux send SIGTERM to this process if its launcher dies: `accelerate launch` of one process passes no
        # signal on, and no launcher can pass SIGKILL on
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # before torch is imported: it repeats every attempt to connect that fails, with the stack
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # threads that spin while they wait for one another made a step 30 times slower on two busy cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if quota := cpu_quota():
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))
    for variable in sorted(name for name in os.environ.keys() - VARIABLES if name.startswith("DAYNIGHT_")):
        print(f"warning: {variable} is set, but there is no such option", file=sys.stderr)
    try:
        with at_once():
            code = app(standalone_mode=False) or 0
        message = "interrupted" * (code == 130)  # Typer turns Ctrl-C into an exit
    except (KeyboardInterrupt, typer.Abort):
        code, message = 130, "interrupted"
    except typer.TyperException as error:
        code, message = error.exit_code, error.format_message()
    except Exception as error:
        kind = type(error).__name__
        # the message of an error in a loader's worker is a whole traceback; its last line is the message meant
        code, message = 1, str(error).rpartition(f"{kind}: ")[2]
        if isinstance(error, InputError | RunError):
            code = error.exit_code
        elif kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in message:
            message = "out of memory; give a smaller --crop, --size, --batch-size or network (--debug shows where)"
        elif "shared memory" in message:
            message = "/dev/shm is too small for image readers; give --num-workers 0, or docker run --shm-size 8g"
        elif isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror} (--debug shows where)"
        else:
            message = f"{kind}: {message} (--debug shows where)"
    if message:
        rank = os.environ.get("RANK", "0")
        who = "daynight" + f", process {rank}" * (rank != "0")
        print(f"{who}: {plain(' '.join(message.split()))}", file=sys.stderr)
    # after an error `leave` could wait for processes that failed; without this module in use there is nothing to leave
    if code not in (1, 2) and "daynight.system.processes" in sys.modules:
        sys.modules["daynight.system.processes"].leave()
    sys.exit(code)
