"""The tree is the architecture: a floor imports from floors below and from itself, never above.

Also held here: sizes, one name for one thing, and texts that describe the tree.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hpc_ecg"
GROUND = {"__init__", "__main__", "atomic_io", "hashing", "log", "safe_reading", "version"}
# From the ground up, with the most lines that a folder may have.
FLOORS = {
    "config": 600,
    "reporting": 640,
    "ecg": 2330,
    "model": 1660,
    "distributed": 1190,
    "jobs": 1020,
    "cohort": 1880,
    "shards": 2100,
    "weights": 2590,
    "evaluation": 3370,
    "data": 1570,
    "training": 3270,
    "preflight": 1360,
    "sweep": 2610,
    "comparison": 4040,
    "inference": 2530,
    "cli": 2100,
}
MOST_LINES = 35_510
BANNED = {"ties", "called", "own", "here", "there", "told", "said", "heed", "wish", "wishes"}
BANNED |= {"meeting", "alone", "places", "heard", "rivals", "caveats"}
"""Names that hid standard ideas in version 0.1; tied scores are called so in prose."""
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
EXEMPT_BASENAMES = {"__init__", "settings"}


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(part: str) -> int:
    """`data` -> its floor, counted from the ground (0)."""
    floors = list(FLOORS)
    return floors.index(part) + 1 if part in floors else 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_only_from_its_floor_and_floors_below(path):
    parts = path.relative_to(PACKAGE).parts
    floor = len(FLOORS) if parts[0] == "__main__.py" else floor_of(parts[0])
    ours = {name for name in imports_of(path) if name.startswith("hpc_ecg.")}
    assert [name for name in ours if floor_of(name.split(".")[1]) > floor] == []


def test_every_folder_of_the_package_is_a_known_floor():
    folders = {path.parent.name for path in FILES if path.parent != PACKAGE}
    assert folders == set(FLOORS)


def test_nothing_but_the_ground_lies_beside_the_floors():
    assert {path.stem for path in PACKAGE.glob("*.py")} == GROUND


def test_no_two_files_import_each_other_in_a_circle():
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    modules = set(names.values())
    edges = {names[path]: imports_of(path) & modules for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for below in edges[module]:
                visit(below, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("library", ["accelerate", "deepspeed"])
def test_only_the_engine_and_its_backends_import_the_libraries_that_spread_the_work(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert all(user.startswith("distributed/") for user in users - {"training/engine.py"})


# Names


def definitions(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text()).body


def test_no_two_public_classes_have_one_name():
    names = [
        node.name
        for path in FILES
        for node in definitions(path)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_no_two_modules_have_one_name():
    stems = [path.stem for path in FILES if path.parent.name != "cli"]
    twice = {name for name, count in Counter(stems).items() if count > 1}
    assert twice - EXEMPT_BASENAMES == set()


def identifiers(path: Path) -> set[str]:
    """Names of variables, attributes, functions, classes and arguments in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            found.add(node.arg)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_name_is_of_the_dialect_of_version_0_1(path):
    assert identifiers(path) & BANNED == set()


# Sizes


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_of_the_package_is_longer_than_two_ideas(path):
    assert lines_of(path) <= 250


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_keeps_its_budget_of_lines(folder):
    assert sum(lines_of(path) for path in (PACKAGE / folder).glob("*.py")) <= FLOORS[folder]


def test_the_package_keeps_its_budget_of_lines():
    assert sum(lines_of(path) for path in FILES) <= MOST_LINES


# Texts


def test_the_tour_names_files_that_exist_and_one_run_stays_short():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tour = re.findall(r"^\d\. `(hpc_ecg/[\w/]+\.py)`", text, re.MULTILINE)
    assert len(tour) == 8
    assert sum(lines_of(ROOT / name) for name in tour) <= 1500
    named = re.findall(r"`((?:hpc_ecg|tests|tools)/[\w/.]+\.(?:py|sh))`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tree_of_the_texts_is_that_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = re.findall(r"^  (\w+)/ ", text.split("hpc_ecg/\n", 1)[1].split("```")[0], re.MULTILINE)
    assert tree == list(reversed(FLOORS))
