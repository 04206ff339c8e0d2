"""What a test holds on to: folders that version 0.1 wrote, and values that were recorded.

`tests/fixtures/v0_1/make.py` says how the folders were made; its words.json holds the commands.
Values lie in `tests/fixtures/unchanged/`; HPC_ECG_WRITE_GOLDEN=1 records them anew.
"""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from unittest import mock

from conftest import FIXTURES

from hpc_ecg.cli import main

V0_1 = FIXTURES / "v0_1"
WORDS = json.loads((V0_1 / "words.json").read_text())
VALUES = FIXTURES / "unchanged"


def copy_of_0_1(folder: Path) -> Path:
    """The folders of 0.1, to go on with: their paths are relative to where they lie."""
    own = shutil.ignore_patterns("make.py", "words.json", "__pycache__")
    return Path(shutil.copytree(V0_1, folder / "v0_1", ignore=own))


def hpc_ecg(folder: Path, *words: str) -> int:
    """The exit code of a command that is given in this folder, on the CPU."""
    on_cpu = mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="")
    with contextlib.chdir(folder), on_cpu:
        try:
            return main(words)
        except SystemExit as stop:  # argparse: a mistake, or --help
            return int(stop.code or 0)


def same_as_recorded(name: str, found: object, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Compare with the recorded value, floats with these tolerances; the assertion names the first
    few places that differ."""
    path = VALUES / f"{name}.json"
    found = json.loads(json.dumps(found))
    if os.environ.get("HPC_ECG_WRITE_GOLDEN"):
        VALUES.mkdir(exist_ok=True)
        path.write_text(to_lines(found) + "\n")
    differing = differences(json.loads(path.read_text()), found, rtol, atol)
    assert not differing, f"{name}: {len(differing)} differ: " + "; ".join(differing[:5])


def to_lines(value: object) -> str:
    """Compact JSON, a line for each entry of the outermost object, so that diffs can be read."""
    if not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    lines = (f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def differences(
    then: object, now: object, rtol: float, atol: float = 0.0, where: str = ""
) -> list[str]:
    """A line for each place in which two JSON values differ; order of keys and items counts."""
    if isinstance(then, dict) and isinstance(now, dict) and list(then) != list(now):
        gone = [f"{where}/{key} is gone" for key in then.keys() - now.keys()]
        new = [f"{where}/{key} is new" for key in now.keys() - then.keys()]
        return sorted(gone) + sorted(new) or [f"{where}: the order of keys is another"]
    if isinstance(then, list) and isinstance(now, list) and len(then) != len(now):
        return [f"{where}: {len(then)} items then, {len(now)} now"]
    if isinstance(then, dict | list) and type(then) is type(now):
        keys = then if isinstance(then, dict) else range(len(then))
        found = (differences(then[k], now[k], rtol, atol, f"{where}/{k}") for k in keys)
        return [line for lines in found for line in lines]
    if isinstance(then, float) and isinstance(now, float):
        same = math.isclose(then, now, rel_tol=rtol, abs_tol=max(atol, rtol * 1e-3))
    else:
        same = type(then) is type(now) and then == now
    return [] if same else [f"{where}: {then!r} then, {now!r} now"]


def make_sweep(folder: Path) -> Path:
    """A folder with the sweep `s` of two evaluated runs, its soup and its baselines."""
    from hpc_ecg.sweep.soups import make_soup  # it imports torch
    from hpc_ecg.training.open_run import load_run

    folder = copy_of_0_1(folder)
    for seed in (0, 1):
        words = [*WORDS["run"], "init.checkpoint=random", "train.max_epochs=1"]
        run = f"s/a/seed-{seed}"
        assert hpc_ecg(folder, "finetune", *words, f"seed={seed}", f"run_dir={run}") == 0
        assert hpc_ecg(folder, "evaluate", run) == 0
    (folder / "s/sweep.yaml").write_text("strategies: [a]\nseeds: [0, 1]\n")
    config = load_run(str(folder / "s/a/seed-0"), [f"data.shards={folder}/shards"])
    make_soup(config, [str(folder / f"s/a/seed-{k}") for k in (0, 1)], [0, 1], folder / "s/a/soup")
    assert hpc_ecg(folder, "report", "s", "--replicates", "200") == 0
    return folder
