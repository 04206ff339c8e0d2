"""The tree is the architecture: a floor imports from floors below and from itself, never above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hpc_ecg"
GROUND = {"", "config", "explain", "log", "run_folder", "writing", "cluster", "submit"}
GROUND |= {"rendezvous", "signals", "watchdog", "page", "plots", "ecg_paper"}
BELOW = {
    "ecg": set(),
    "cohort": {"ecg"},
    "shards": {"cohort", "ecg"},
    "data": {"shards", "cohort", "ecg"},
    "model": set(),
    "weights": {"model", "ecg"},
    "evaluation": set(),
    "training": {"data", "shards", "weights", "model", "ecg", "evaluation"},
    "sweep": {"training", "evaluation", "weights", "data", "shards", "cohort", "ecg"},
}
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


def parts_of(path: Path) -> set[str]:
    """First parts below hpc_ecg that a file imports: `data`, `config`, …"""
    ours = {name for name in imports_of(path) if name.startswith("hpc_ecg.")}
    return {name.split(".")[1] for name in ours} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_only_from_its_floor_and_floors_below(path):
    inside = path.relative_to(PACKAGE).parts
    if len(inside) > 1:
        allowed = BELOW[inside[0]] | {inside[0]} | GROUND
    elif inside[0].startswith(("cli", "__main__")):
        allowed = (
            set(BELOW) | GROUND | {name.removesuffix(".py") for name in NAMES if name[:3] == "cli"}
        )
    else:
        allowed = GROUND
    assert parts_of(path) <= allowed


def test_every_folder_of_the_package_is_a_known_floor():
    folders = {path.parent.name for path in FILES if path.parent != PACKAGE}
    assert folders == set(BELOW)


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
    users = [
        path.name
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    ]
    assert all(name.startswith("engine") for name in users)


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
