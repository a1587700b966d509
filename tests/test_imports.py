"""The house's order, read from its imports: a room imports what stands below it, and no files import in a circle.

Imports within functions count, and so do those for types alone.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400

# From the ground up. A room is a folder, or a file; a module belongs to the longest name that it begins with.
ROOMS = [
    "tasks.arithmetic",
    "tasks.answers",
    "tasks",
    "actors",
    "learners.objectives",
    "learners.options",
    "learners.model",
    "learners.memory",
    "learners.diagnosis",
    "learners.record",
    "learners.rollouts",
    "learners.update",
    "learners.checkpoints",
    "learners",
    "train",
    "scripts.parts",
    "scripts",
]


def modules_of(root: Path) -> dict[str, Path]:
    """Module name -> file, of everything that the table is about; a package by the name of its folder."""
    tops = sorted({room.partition(".")[0] for room in ROOMS})
    found = [path for top in tops for path in (root / f"{top}.py", *(root / top).rglob("*.py")) if path.exists()]
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in found]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, found, strict=True)}


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Those of the modules that a file imports, wherever in the file it does."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the whole way"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= parts & modules.keys() or {node.module}
    return named & modules.keys()


def floor(module: str) -> int:
    """Where in the table a module's room stands."""
    return ROOMS.index(max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len))


def faults(root: Path) -> list[str]:
    """A sentence on every import of a room above, and on one circle if there is any."""
    modules = modules_of(root)
    imports = {module: imports_of(path, modules) for module, path in modules.items()}
    found = [
        f"{module} imports {other}, and {ROOMS[floor(other)]} stands above {ROOMS[floor(module)]}"
        for module, others in imports.items()
        for other in others
        if floor(other) > floor(module)
    ]
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return sorted(found)


def test_rooms_import_what_stands_below_them_and_nothing_in_a_circle():
    assert faults(ROOT) == []


def test_the_table_names_every_room_and_no_other():
    modules = modules_of(ROOT)
    assert [room for room in ROOMS if room not in modules] == []
    folders = {".".join(path.relative_to(ROOT).parts) for path in (ROOT / "learners").iterdir() if path.is_dir()}
    assert {folder for folder in folders if folder not in ROOMS} <= {"learners.__pycache__"}


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("tasks/task.py", "from learners.options.config import Config", "tasks.task imports learners.options.config"),
        ("tasks/task.py", "if TYPE_CHECKING:\n    import learners.loop", "tasks.task imports learners.loop"),
        ("tasks/task.py", "def late():\n    from learners import loop", "tasks.task imports learners.loop"),
        ("tasks/prompts.py", "def late():\n    from tasks import task", "a circle: tasks."),
    ],
)
def test_a_broken_rule_is_found(tmp_path, file, line, fault):
    house = {
        "tasks/prompts.py": "",
        "tasks/task.py": "from tasks.prompts import Prompt\n",
        "learners/options/config.py": "",
        "learners/loop.py": "from learners.options.config import Config\n",
    }
    for name, content in house.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert faults(tmp_path) == []
    (tmp_path / file).write_text(house[file] + line)
    [found] = faults(tmp_path)
    assert found.startswith(fault)


def test_no_file_is_too_long_to_be_read_at_once():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules_of(ROOT).items()}
    lengths |= {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
