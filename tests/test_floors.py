"""The tree is the architecture: a floor imports from floors below and from itself, never above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hpc_ecg"
GROUND = {"__init__", "__main__", "atomic_io", "hashing", "log"}
FLOORS = ["config", "reporting", "ecg", "model", "distributed", "jobs", "cohort", "shards"]
FLOORS += ["weights", "evaluation", "data", "training", "preflight", "sweep", "comparison", "cli"]
"""From the ground up; log, atomic_io and hashing lie below all of them."""
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


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


def floor_of(module: str) -> int:
    """`hpc_ecg.data.sampler` -> the floor of data, counted from the ground (0)."""
    part = module.split(".")[1]
    return FLOORS.index(part) + 1 if part in FLOORS else 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_only_from_its_floor_and_floors_below(path):
    inside = path.relative_to(PACKAGE).parts
    floor = FLOORS.index(inside[0]) + 1 if len(inside) > 1 else 0
    floor = len(FLOORS) if inside[0] == "__main__.py" else floor
    ours = {name for name in imports_of(path) if name.startswith("hpc_ecg.")}
    assert [name for name in ours if floor_of(name) > floor] == []


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
def test_only_the_engine_imports_the_libraries_that_spread_the_work(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert all(user.startswith("distributed/") for user in users - {"training/engine.py"})


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_of_the_package_is_longer_than_two_ideas(path):
    assert len(path.read_text().splitlines()) <= 250


def test_the_story_of_one_run_stays_short():
    story = ("training/finetune", "training/loop", "training/engine", "model/transformer")
    story += (
        "model/attention",
        "data/batches",
        "weights/initialize",
        "training/checkpoint",
        "evaluation/metrics",
    )
    lines = [len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in story]
    assert sum(lines) <= 1500
