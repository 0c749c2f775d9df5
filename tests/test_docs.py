"""Every command line of the README and of the examples' pages is run, in order, on small trees.

Options that make networks and trainings small come from the environment, so the lines are run as they stand.
"""

import re
from pathlib import Path

import forms
import pytest
import test_adapt
import test_commands
import trees
from test_cli import clean, daynight  # noqa: F401 (clean is a fixture)

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("examples/**/*.md")))]
# what installs, unpacks, or needs machines: how else it is tried
ELSEWHERE = {
    "python3 -m venv": ".ci/run types the test line; the demo's is the same with another command",
    "unzip": "no archives here",
    "for zip": "no archives here",
    "sbatch": "tests/system/test_processes.py runs the script",
    "accelerate launch --config_file examples/cluster/nodes.yaml": "tests/system/test_processes.py: two launchers",
    "python examples/paper/run.py": "tests/examples/test_paper.py",
    "python examples/night/": "tests/examples/test_table1.py, test_night.py",
    "python examples/submit.py": "tests/examples/test_submit.py",
    "python examples/video.py": "tests/examples/test_video.py",
    "python examples/convert_cyclegan.py": "tests/examples/test_convert_cyclegan.py",
    "python examples/import_labels.py": "tests/examples/test_import_labels.py",
    "python examples/kill.py": "tests/training/test_kill.py",
    "python examples/benchmark.py": "tests/examples/test_benchmark.py",
    "python -m pytest": "this",
    "ruff": "no test",
}
COMMAND = re.compile(r"(accelerate launch (-m )?)?daynight [a-z]")


def lines_of(text: str) -> list[str]:
    """The lines of a text's code blocks, continued ones joined, and the commands in its sentences."""
    text = text.replace("\\\n", " ")
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    inline = re.findall(r"`([^`]+)`", "\n".join(x for x in text.splitlines() if not x.startswith("    ")))
    inline = [" ".join(code.split()) for code in inline]
    return blocks + [code for code in inline if COMMAND.match(code) and "COMMAND" not in code]


def is_command(line: str) -> bool:
    return bool(
        re.match(r"(daynight|accelerate|torchrun|python3?|pip|unzip|for|sbatch|source|\$VENV|ruff|[A-Z_]+=)\b", line)
    )


def make_home(home: Path) -> Path:
    """All data sets, as the pages name them."""
    test_commands.draw_data(home / "data")
    trees.bdd100k(home / "data/bdd", ten_k=3)
    trees.acdc(home / "data/acdc")
    trees.idd(home / "data/idd")
    trees.mapillary_vistas(home / "data/vistas")
    trees.folder(home / "data/street_day")
    forms.kitti(home / "data/kitti")
    forms.nightcity(home / "data/nightcity")
    forms.write(home / "gt_trainval_night_correct_filenames.txt", "seg/labels/val/val-000_train_id.png")
    trees.bare(home / "data/street_night")
    test_adapt.table(home, test_adapt.TINY)
    (home / "examples").symlink_to(ROOT / "examples")
    return home


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page(page, tmp_path):
    """Sections go on in the folder of those before them, but for one that says how it would all be done otherwise."""
    home = make_home(tmp_path / "0")
    for number, section in enumerate(re.split(r"^## ", (ROOT / page).read_text(), flags=re.M), 1):
        lines = [line for line in lines_of(section) if is_command(line)]
        if section.startswith("The paper's experiment"):
            home = make_home(tmp_path / str(number))
        for line in lines:
            if any(line.startswith(start) for start in ELSEWHERE):
                continue
            words = re.sub(r"^accelerate launch (--\S+ \S+ )*(-m )?", "", line)
            assert words.startswith("daynight "), f"{page}: {line}: nobody tries this"
            result = daynight(
                words.removeprefix("daynight "), home, **test_commands.SMALL, DAYNIGHT_ADAPT_TABLE="table.json"
            )
            assert result.code == 0, (line, result)
