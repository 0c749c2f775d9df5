"""The command line itself: help, spelling, `--config` files and the environment. Nothing is trained here."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import MISSING, asdict, fields
from types import SimpleNamespace
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest

from daynight import __version__, cli
from daynight.config import declared, free

COMMANDS = {name: options for name, options, *_ in cli.COMMANDS}
REQUIRED = {"translate": "--in given --out given", "predict": "--in given --out given", "eval": "--dataset given"}
REQUIRED["adapt"] = "--day given --night given --hours 1 --out given"
# what an option is refused without
BESIDE = {
    ("seg-train", "keep-best"): "--validate-on given",
    ("seg-train", "unlabelled-day"): "--ssl",
    ("eval", "ids"): "--predictions given",
    ("eval", "resize"): "--predictions given",
}
VALUES = {"size": "32x64", "crop": "40x32", "rho": "0.125,0.25", "lambda-ssl": "1,2", "scales": "0.5,1"}


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr in which a command was refused."""
        assert self.code == 2, self
        assert self.err.count("\n") == 1 and self.err.startswith("daynight: ") and "Traceback" not in self.err, self
        return self.err


def in_process(main, line: str, cwd=None, **environment) -> Result:
    """Run a program's `main` on a command line, its name first, in this process: importing torch takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", shlex.split(line))
        if cwd:
            patch.chdir(cwd)
        for name, value in environment.items():
            patch.setenv(name, str(value))
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def console_script() -> None:
    cli.main()
    pytest.fail("it is to end with an exit status")


def daynight(line: str, cwd=None, **environment) -> Result:
    return in_process(console_script, f"daynight {line}", cwd, **environment)


def shell(*words, cwd, check=True, **environment) -> subprocess.CompletedProcess:
    """The same as a process of its own, with the virtual environment's scripts first in the path."""
    scripts = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"} | environment
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or result.returncode == 0, result
    return result


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DAYNIGHT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def parse(monkeypatch):
    """Runs a command line up to the function behind the command; returns the options that it would get."""

    def parse(line, **environment):
        got = []
        monkeypatch.setattr(cli, "check_places", lambda *_: None)
        monkeypatch.setattr(cli, "import_module", lambda _: SimpleNamespace(**dict.fromkeys(FUNCTIONS, got.append)))
        result = daynight(line, **environment)
        assert (result.code, result.err) == (0, ""), result
        return got[0]

    return parse


FUNCTIONS = {target.partition(":")[2] for *_, target in cli.COMMANDS}


def parameters(command):
    """(field, spelling, base type) of each option of a command."""
    hints = get_type_hints(COMMANDS[command])
    for f in fields(COMMANDS[command]):
        base = hints[f.name]
        kinds = [a for a in get_args(base) or () if a is not type(None)]
        if get_origin(base) is not list and get_origin(base) is not Literal and kinds:
            base = kinds[0]
        yield f, f.name.strip("_").replace("_", "-"), base


def default(f):
    return f.default_factory() if f.default_factory is not MISSING else f.default


def sample(f, spelt, base, number=0):
    """(as typed, as read): a value of an option that is not its default; another for another number."""
    if spelt in VALUES:
        return (VALUES[spelt],) * 2
    if base is bool:
        return ("0", False) if default(f) else ("1", True)
    if base is int:
        return str(11 + number), 11 + number
    if base is float:
        return str(0.25 + number / 8), 0.25 + number / 8
    if get_origin(base) is list:
        return f"one{number} two{number}", [f"one{number}", f"two{number}"]
    if get_origin(base) is Literal:
        others = [value for value in get_args(base) if value != default(f)]
        return (others[min(number, len(others) - 1)],) * 2
    return (f"some{number}",) * 2


def variable(command, spelt):
    return f"DAYNIGHT_{command}_{spelt}".upper().replace("-", "_")


def line_of(command, f, spelt, base, number=0):
    """The words that give an option a value on the command line."""
    typed, _ = sample(f, spelt, base, number)
    if base is bool:
        return f"--no-{spelt}" if default(f) else f"--{spelt}"
    values = typed.split() if get_origin(base) is list else [typed]
    return " ".join(f"--{spelt} {value}" for value in values)


def without(command, spelt):
    """The words that a command and one of its options cannot do without, but those of that option."""
    return re.sub(rf"--{spelt} \S+", "", REQUIRED.get(command, "")) + " " + BESIDE.get((command, spelt), "")


# help, version, and how it is started


def test_help_names_every_command():
    result = daynight("--help")
    assert result.code == 0 and result.err == ""
    assert all(f" {name} " in result.out for name in COMMANDS)


def test_without_arguments_it_shows_its_help():
    result = daynight("")
    assert result.out.strip() == daynight("--help").out.strip() and result.err == ""


def shows(line, spelt):
    return re.match(rf"│ [* ]*--{spelt}[ /]", line)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    result = daynight(f"{command} --help")
    assert result.code == 0 and result.err == ""
    for f, spelt, _ in parameters(command):
        help = declared(COMMANDS[command])[f.name]["settings"]["help"]
        assert help and len(help) > 10
        (line,) = (line for line in result.out.splitlines() if shows(line, spelt))
        assert help.split(":")[0] in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out = daynight(f"{command} --help").out
    for f, spelt, base in parameters(command):
        if default(f) not in (None, MISSING, False, True) and base in (int, float, str):
            line = next(line for line in out.splitlines() if shows(line, spelt))
            assert f"[default: {default(f)}" in line


def test_version():
    assert daynight("--version") == (0, f"daynight {__version__}\n", "")


@pytest.mark.parametrize("start", ["daynight", "python -m daynight"])
def test_a_process_of_its_own(start, tmp_path):
    words = [sys.executable if word == "python" else word for word in start.split()]
    assert shell(*words, "--version", cwd=tmp_path).stdout == f"daynight {__version__}\n"
    result = shell(*words, "eval", "--datset", "nd", cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert re.fullmatch("daynight: .*--datset.*--dataset.*\n", result.stderr)


@pytest.mark.parametrize("line", ["--help", "seg-train --help", "--version", "eval"])
def test_what_needs_no_network_does_not_import_torch(line, tmp_path):
    code = f"""import sys
from daynight import cli
sys.argv = ["daynight", *{line.split()!r}]
try:
    cli.main()
finally:
    assert not {{"torch", "accelerate", "datasets", "timm", "PIL"}} & sys.modules.keys()
"""
    result = shell(sys.executable, "-c", code, cwd=tmp_path, check=False)
    assert result.returncode == (2 if line == "eval" else 0) and "Assertion" not in result.stderr


# what is misspelt


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evall --dataset nd", ["evall", "Did you mean", "eval"]),
        ("seg_train", ["seg_train", "Did you mean", "seg-train"]),
        ("quite-another", ["quite-another"]),
        ("--verson", ["--verson", "--version"]),
        ("seg-train --backbon vgg16", ["--backbon", "--backbone"]),
        ("translate --in a --out b --reversed", ["--reversed", "--reverse"]),
        ("translate --out b", ["--in"]),
        ("translate --in a", ["--out"]),
        ("eval", ["--dataset"]),
        ("eval --dataset", ["--dataset", "argument"]),
        ("eval --dataset nd more", ["more"]),
        ("eval --dataset nd --mean some", ["--mean", "present", "official", "all"]),
        ("seg-train --train-on night", ["--train-on", "day", "translated", "both"]),
        ("seg-train --steps many", ["--steps"]),
        ("seg-train --steps 0", ["--steps", "1"]),
        ("seg-train --lr nan", ["--lr"]),
        ("seg-train --ema-decay 1.5", ["--ema-decay"]),
        ("seg-train --seed -1", ["--seed"]),
    ],
)
def test_misspelt(line, words):
    result = daynight(line)
    assert all(word in result.line for word in words), result.line
    assert result.out == ""


# what contradicts itself, and what may change


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("translate-train", {"crop": "24x32"}, "--crop 24x32: the discriminator needs at least 32 pixels"),
        ("seg-train", {"train_on": "day", "translated": "x"}, "--translated: with --train-on day"),
        ("seg-train", {"translated": "x", "translator": "y"}, "--translated and --translator: give one of them"),
        ("seg-train", {"unlabelled_day": "x"}, "--unlabelled-day: is for Eq. 15; give --ssl"),
        ("seg-train", {"keep_best": "labelled"}, "give --validate-on DATASET"),
        (
            "eval",
            {"dataset": ["x"], "predictions": ["y"], "size": "512"},
            "--size, --scales and --flip are for --model",
        ),
        ("eval", {"dataset": ["x"], "ids": "labelIds"}, "--ids and --resize are for --predictions"),
    ],
)
def test_options_that_contradict_each_other(command, given, words):
    """They are refused before anything is imported, and cannot be made by a program either."""
    with pytest.raises(ValueError, match=re.escape(words)):
        COMMANDS[command](**given)
    line = ((name, value[0] if isinstance(value, list) else value) for name, value in given.items())
    refused = daynight(f"{command} " + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in line)).line
    assert refused.startswith("daynight: --") and words in refused


def test_a_continued_run_may_have_other_values_of_some_options():
    first, second = (free(COMMANDS[command]) for command in ("translate-train", "seg-train"))
    assert (
        first - {"graph"}
        == second
        >= {"out", "save_every", "log_every", "num_workers", "cache", "debug", "stall_minutes"}
    )
    assert not first & {"day", "night", "steps", "seed", "precision", "batch_size", "lr", "ema_decay", "crop", "init"}


# where options come from


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_from_each_source(command, parse, tmp_path):
    """A variable, a key of a file and the command line all reach the dataclass, as the same value."""
    for f, spelt, base in parameters(command):
        if spelt == "config":
            continue
        typed, value = sample(f, spelt, base)
        words = without(command, spelt)
        got = parse(f"{command} {words}", **{variable(command, spelt): typed})
        assert getattr(got, f.name) == value, spelt
        (tmp_path / "c.json").write_text(json.dumps({spelt: value}))
        assert parse(f"{command} {words} --config {tmp_path}/c.json") == got_with(got, tmp_path), spelt
        assert parse(f"{command} {words} {line_of(command, f, spelt, base)}") == got, spelt


def got_with(options, tmp_path):
    return type(options)(**asdict(options) | {"config": f"{tmp_path}/c.json"})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_wins_over_the_environment_and_that_over_a_file(command, parse, tmp_path):
    for f, spelt, base in parameters(command):
        if spelt in {"config", *VALUES} or base is bool:
            continue
        (_, as_read), (in_variable, of_variable) = sample(f, spelt, base, 1), sample(f, spelt, base)
        (tmp_path / "c.json").write_text(json.dumps({spelt: as_read}))
        environment = {variable(command, spelt): in_variable}
        line = f"{command} {without(command, spelt)} --config {tmp_path}/c.json"
        assert getattr(parse(line, **environment), f.name) == of_variable, spelt
        given = parse(f"{line} {line_of(command, f, spelt, base, 2)}", **environment)
        assert getattr(given, f.name) == sample(f, spelt, base, 2)[1], spelt
        assert getattr(parse(f"{line} {line_of(command, f, spelt, base, 2)}"), f.name) == getattr(given, f.name), spelt


def test_the_data_root_has_a_variable_for_all_commands(parse):
    assert parse("seg-train", DAYNIGHT_DATA="there").data_root == "there"
    assert parse("translate --in a --out b", DAYNIGHT_DATA="there").data_root == "there"
    assert parse("seg-train", DAYNIGHT_DATA="there", DAYNIGHT_SEG_TRAIN_DATA_ROOT="here").data_root == "here"


def test_a_config_may_come_from_the_environment(parse, tmp_path):
    (tmp_path / "c.json").write_text('{"steps": 3}')
    assert parse("seg-train", DAYNIGHT_SEG_TRAIN_CONFIG=str(tmp_path / "c.json")).steps == 3


def test_an_empty_variable_is_none(parse):
    assert parse("seg-train", DAYNIGHT_SEG_TRAIN_STEPS="", DAYNIGHT_SEG_TRAIN_INIT="") == parse("seg-train")


@pytest.mark.parametrize("name", ["DAYNIGHT_SEG_TRAIN_STEP", "DAYNIGHT_STEPS", "DAYNIGHT_TRANSLATE_IN_"])
def test_an_unknown_variable_gets_a_warning(name):
    result = daynight("--version", **{name: "3"})
    assert result.code == 0
    assert result.err.startswith("warning: ") and name in result.err and result.err.count("\n") == 1


def test_a_bad_value_in_the_environment():
    result = daynight("seg-train", DAYNIGHT_SEG_TRAIN_CROP="big")
    assert "--crop" in result.line and "256" in result.line


# --config


@pytest.fixture
def config(tmp_path):
    """Writes a --config file; returns the words that give it."""

    def write(content):
        path = tmp_path / "given options.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return f"--config '{path}'"

    return write


def test_config_takes_every_spelling_and_remarks(config, parse):
    options = parse(
        "seg-train --steps 5 "
        + config({"#": "why", "#steps": 1, "steps": 7, "batch-size": 3, "lambda_ssl": "1,2", "ssl": True, "init": None})
    )
    assert (options.steps, options.batch_size, options.lambda_ssl, options.ssl) == (5, 3, "1,2", True)


def test_config_takes_what_a_run_wrote(config, parse):
    options = parse("seg-train --ssl --night a --night b --steps 5 --flip --rho 0.25,0.5 --no-resume")
    written = {name.rstrip("_").replace("_", "-"): value for name, value in asdict(options).items()}
    words = config({"options": written, "versions": {"torch": "2"}, "data": {"--day": "0"}})
    got = parse(f"seg-train {words}")
    assert asdict(got) | {"config": None} == asdict(options)
    assert parse(f"seg-train {words} --night c").night == ["c"]


def test_config_of_a_run_that_was_given_one(config, parse):
    """The file that a run was started with need not be there any more: its options are in options.json."""
    assert parse(f"seg-train {config({'options': {'config': 'gone.json', 'steps': 3}})}").steps == 3


def test_config_supplies_what_is_required(config, parse):
    options = parse("translate " + config({"in": "there", "out": "here"}))
    assert (options.in_, options.out) == ("there", "here")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"stepps": 3}, ["stepps", "steps"]),
        ({"lamda-ssl": "1,2"}, ["lamda-ssl", "lambda-ssl"]),
        ({"zzz": 3}, ["zzz"]),
        ({"help": True}, ["help"]),
        ({"steps": "many"}, ["steps"]),
        ({"steps": 0}, ["steps", "1"]),
        ({"steps": [1]}, ["steps"]),
        ({"crop": "big"}, ["crop", "256"]),
        ({"night": "bdd"}, ["night"]),
        ({"train-on": "night"}, ["train-on", "both"]),
        ([1], ["object"]),
        ('{"steps": 3', ["JSON"]),
        ("", ["JSON"]),
    ],
)
def test_config_that_is_wrong(content, words, config):
    result = daynight(f"seg-train {config(content)}")
    assert all(word in result.line for word in ["--config", "given options.json", *words]), result.line


def test_config_that_is_no_file(tmp_path):
    assert "--config nowhere.json" in daynight("seg-train --config nowhere.json").line
    assert f"--config {tmp_path}" in daynight(f"seg-train --config {tmp_path}").line


# how it ends


def failing(monkeypatch, error):
    def fail(_options):
        raise error

    monkeypatch.setattr(cli, "check_places", lambda *_: None)
    monkeypatch.setattr(cli, "import_module", lambda _: SimpleNamespace(train=fail))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (cli.InputError("a file:\n what"), 2, "daynight: a file: what\n"),
        (cli.RunError("lost"), 1, "daynight: lost\n"),
        (
            OSError(28, "No space left on device", "runs/seg/index.html"),
            1,
            "daynight: runs/seg/index.html: No space left on device (--debug shows where)\n",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                "workers are out of shared memory. Please try to raise your shared memory limit."
            ),
            1,
            "daynight: /dev/shm is too small for image readers; give --num-workers 0, or docker run --shm-size 8g\n",
        ),
        (ValueError("what nobody\nforesaw"), 1, "daynight: ValueError: what nobody foresaw (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "daynight: interrupted\n"),
    ],
)
def test_what_goes_wrong_is_one_line(error, code, words, monkeypatch):
    failing(monkeypatch, error)
    assert daynight("seg-train") == (code, "", words)


def test_debug_shows_where(monkeypatch):
    failing(monkeypatch, cli.InputError("what"))
    result = daynight("seg-train --debug")
    assert result.code == 2
    assert "Traceback" in result.err and "in fail" in result.err and result.err.endswith("daynight: what\n")


def test_a_signal_that_c_code_makes_an_error_of_is_no_error(monkeypatch):
    """As safetensors: what it raises for a signal while it reads a file tells of a damaged file."""
    import signal

    from daynight.inference import export

    def read(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise ValueError("not a whole file") from None

    monkeypatch.setattr("daynight.cli.check_places", lambda *_: None)
    monkeypatch.setattr(export, "export", read)
    # the line itself is written to the descriptor of standard error
    assert daynight("export") == Result(128 + signal.SIGTERM, "", "")
