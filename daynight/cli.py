"""The console script: turns `config.py` into commands, and what goes wrong into one line."""

import ctypes
import difflib
import inspect
import json
import os
import signal
import sys
import traceback
from copy import copy
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Annotated, get_type_hints

import typer

from daynight import __version__, config
from daynight.system.errors import InputError, RunError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

# name, options, what it runs, help
COMMANDS = (
    ("translate-train", config.TranslateTrainOptions, "daynight.translation:train",
     "Learn day → night: CycleGAN with a feature loss (§3.2)."),
    ("translate", config.TranslateOptions, "daynight.inference.translate:translate",
     "Translate a tree of images; its labels come along."),
    ("seg-train", config.SegTrainOptions, "daynight.segmentation:train",
     "Train on day, translated and real night images (§3.3)."),
    ("eval", config.EvalOptions, "daynight.evaluation.scoring:evaluate",
     "Score teachers on labelled data sets, as Table 1 (§4.3)."),
    ("predict", config.PredictOptions, "daynight.inference.predict:predict",
     "Label a tree of images: ids, colours and overlays."),
    ("export", config.ExportOptions, "daynight.inference.export:export",
     "Write a teacher or generator as ONNX, and check it."),
    ("demo", config.DemoOptions, "daynight.demo.demo:demo",
     "The whole method in minutes, on drawn streets."),
)  # fmt: skip


def spelling(declaration: str) -> str:
    """How an option is spelt in a config file: "--lambda-cyc" → "lambda-cyc"."""
    return declaration.split("/")[0].lstrip("-")


def parameters(options: type) -> dict[str, str]:
    """Each field of a dataclass of options, with its spelling."""
    hints = get_type_hints(options, include_extras=True)
    return {f.name: spelling(hints[f.name].__metadata__[0].param_decls[0]) for f in fields(options)}


def variables(command: str, name: str) -> list[str]:
    """The environment variables of an option."""
    names = [f"DAYNIGHT_{command}_{name}".upper().replace("-", "_")]
    return names + ["DAYNIGHT_DATA"] * (name == "data-root")


def signature(command: str, options: type) -> inspect.Signature:
    """A dataclass of options as the signature that Typer reads."""
    hints, spellings, result = get_type_hints(options, include_extras=True), parameters(options), []
    panels, order = (config.DATA, config.MODEL, config.OPTIMISATION, config.OUTPUT, config.ADVANCED), tuple(hints)
    place = {name: panels.index(hints[name].__metadata__[0].rich_help_panel) for name in order}
    for f in sorted(fields(options), key=lambda f: (place[f.name], order.index(f.name))):
        base, info = hints[f.name].__origin__, copy(hints[f.name].__metadata__[0])
        info.envvar, info.show_envvar = variables(command, spellings[f.name]), False
        if f.name == "config":
            info.is_eager, info.callback = True, read_config
        default = config.default_of(f)
        default = inspect.Parameter.empty if default is MISSING else default
        annotation = Annotated[base, info]
        result.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return inspect.Signature(result)


def read_config(ctx: typer.Context, path: str | None) -> str | None:
    """Let the options in a JSON file stand in for the defaults; keys that begin with # are remarks."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not JSON ({error})") from None
    content = content.get("options", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: wanted: a JSON object, option: value")
    names = {spelling(p.opts[0]): p for p in ctx.command.params if p.name != "help"}
    defaults = {}
    for key, value in content.items():
        spelt = key.replace("_", "-")
        # the "config" of a run's options.json has been read into its other options
        if key.startswith("#") or value is None or spelt == "config":
            continue
        if spelt not in names:
            near = difflib.get_close_matches(spelt, names, 1)
            raise InputError(f"--config {path}: no option {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        try:
            check_kind(names[spelt], value)
            names[spelt].process_value(ctx, value)
        except (typer.TyperException, TypeError, ValueError) as error:
            message = error.format_message() if hasattr(error, "format_message") else error
            raise InputError(f"--config {path}: {key}: {message}") from None
        defaults[names[spelt].name] = value
    ctx.default_map = (ctx.default_map or {}) | defaults
    return path


def check_kind(parameter, value) -> None:
    """Raises `ValueError` for what Typer would make a string or a number of, and nobody means so: {"steps": true}."""
    if parameter.multiple and (not isinstance(value, list) or not value and parameter.default):
        raise ValueError("wanted: a list of one or more")
    wanted = "true or false" if parameter.is_flag else "a string or a number"
    for one in value if parameter.multiple else [value]:
        if isinstance(one, dict | list) or isinstance(one, bool) and not parameter.is_flag:
            raise ValueError(f"{json.dumps(one)}; wanted: {wanted}")
        if isinstance(one, str) and ("\0" in one or one != one.encode(errors="ignore").decode()):
            raise ValueError(f"{one!r} is no text; wanted: {wanted}")


def add(name: str, options: type, target: str, help: str) -> None:
    module, function = target.split(":")

    def command(**values):
        given = options(**values)
        try:
            getattr(import_module(module), function)(given)
        except Exception:
            if given.debug:
                traceback.print_exc()
            raise

    command.__signature__ = signature(name, options)
    app.command(name, help=help)(command)


for entry in COMMANDS:
    add(*entry)


def show_version(value: bool) -> None:
    if value:
        print(f"daynight {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Show it.", is_eager=True, callback=show_version)] = False,
):
    """Segmentation that works at night, learned from labelled day images alone."""


def unknown_variables() -> list[str]:
    known = {v for name, options, *_ in COMMANDS for s in parameters(options).values() for v in variables(name, s)}
    return sorted(v for v in os.environ if v.startswith("DAYNIGHT_") and v not in known)


def end_with_launcher() -> None:
    """Have Linux send SIGTERM when a launcher dies: `accelerate launch` of one process passes no signal on, and none
    can pass SIGKILL on."""
    if {"TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"} & os.environ.keys() and sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Run the command line. Exit status 0, 1 (a run failed) or 2 (usage, input), with one line on stderr."""
    end_with_launcher()
    # as Ctrl-C: what is being written is cleaned up (trainings, which save first, have their own handler)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    for variable in unknown_variables():
        print(f"warning: {variable} is set, but there is no such option", file=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
        message = "interrupted" * (code == 130)  # Typer makes an exit of Ctrl-C
    except (InputError, RunError) as error:
        # a loader's worker hands an error on as its traceback, of which this is the last line
        code, message = error.exit_code, str(error).rpartition(f"{type(error).__name__}: ")[2]
    except typer.TyperException as error:
        code, message = error.exit_code, error.format_message()
    except (KeyboardInterrupt, typer.Abort):
        code, message = 130, "interrupted"
    except Exception as error:
        kind = type(error).__name__
        code, message = 1, f"{kind}: {str(error).rpartition(f'{kind}: ')[2]} (--debug shows where)"
        if kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in message:
            message = (
                "out of memory; a smaller --crop, --size, --batch-size or network needs less (--debug shows where)"
            )
    if message:
        rank = os.environ.get("RANK", "0")
        who = "daynight" if rank == "0" else f"daynight, process {rank}"
        print(f"{who}: " + " ".join(message.split()), file=sys.stderr)
    # where others may have failed, parting could wait for them; a command that has not begun needs no torch
    if code not in (1, 2) and "daynight.system.processes" in sys.modules:
        sys.modules["daynight.system.processes"].leave()
    sys.exit(code)
