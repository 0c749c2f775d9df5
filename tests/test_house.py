"""One way down: a room of `daynight/` imports rooms below it, and none above."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "daynight"
# from the top floor down; files that lie directly in daynight/ are rooms of their own
FLOORS = (
    ("__main__", "__init__"),
    ("cli",),
    ("demo",),
    ("adapt",),
    ("translation", "segmentation"),
    ("training",),
    ("evaluation",),
    ("inference",),
    ("reports",),
    ("data",),
    ("models",),
    ("system",),
    ("config", "losses"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
# which libraries a room knows nothing of
UNKNOWN = {"models": {"accelerate", "typer", "rich"}, "data": {"accelerate", "typer", "timm"}}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module's path below daynight/: its folder, or its own name."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides its room"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(path: Path) -> set[str]:
    """The rooms that a file imports from, its own left out."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("daynight.")}
    # what is no room is a name in daynight/__init__.py
    return {name if name in FLOOR_OF else "__init__" for name in names} - {room_of(path.relative_to(PACKAGE).parts)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    room = room_of(path.relative_to(PACKAGE).parts)
    assert room in FLOOR_OF, f"{path}: of no room in tests/test_house.py"
    above = {used for used in rooms_used(path) if FLOOR_OF[used] <= FLOOR_OF[room]}
    assert not above, f"{path}: imports {', '.join(sorted(above))}, which is not below {room}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_knows_only_its_own_libraries(path):
    parts = path.relative_to(PACKAGE).parts
    libraries = {name.split(".")[0] for name in imports(path)}
    assert not libraries & UNKNOWN.get(room_of(parts), set())
    if parts[0] == "data":
        assert "models" not in rooms_used(path), f"{path}: data/ knows nothing of models"
    if room_of(parts) == "losses":
        assert not rooms_used(path) and libraries <= {"torch"}


def test_every_import_of_the_package_is_seen():
    """The rule is worth nothing if `rooms_used` misses imports."""
    used = rooms_used(PACKAGE / "segmentation.py")
    assert {"training", "data", "models", "system", "config", "losses"} <= used
    assert sum(len(rooms_used(path)) for path in FILES) > len(FILES)


def test_sizes():
    """What a reader can take in: no function over 80 lines, no class over 200, no file over 450."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= (80 if isinstance(node, ast.FunctionDef) else 200), f"{path}: {node.name}"
