"""Strategies that no seed changes: run once, said so, and compared without a seed's variance."""

import json

import pytest
from test_compare import REPLICATES, make_run, make_sweep, make_test_set
from test_sweep import words_of_sweep

from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.scoring import is_better
from hpc_ecg.comparison.verdict import verdict
from hpc_ecg.sweep.dry_run import describe_launch
from hpc_ecg.sweep.folder import ONE_RUN, expected_cells
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.launch import _write_sweep
from hpc_ecg.sweep.status import read_status

pytestmark = pytest.mark.slow

NAMES = "strategies=[afib_keep_head,afib_reset_head]"


def untrained(shards, folder):
    return load_sweep([], words_of_sweep(shards, folder, NAMES, "run.train.max_epochs=0"))


def test_what_no_seed_changes_runs_once_and_the_dry_run_says_so(shards, tmp_path):
    sweep = untrained(shards, tmp_path)
    kept = [cell.seed for cell in sweep.cells if cell.arm.name == "afib_keep_head"]
    assert kept == [0] and len(sweep.cells) == 4, "a new head is drawn with the seed"
    (line,) = [line for line in describe_launch(sweep) if line.startswith("afib_keep_head")]
    assert ONE_RUN in line and "–" in line and "4 of 4 runs to do" in describe_launch(sweep)
    _write_sweep(tmp_path, sweep)
    assert expected_cells(tmp_path)[:2] == [("afib_keep_head", 0), ("afib_reset_head", 0)]
    assert next(cell.name for cell in read_status(tmp_path)) == "afib_keep_head/seed-0"


@pytest.mark.parametrize("more", ["run.train.max_epochs=1", "run.train.max_steps=3"])
def test_what_trains_runs_with_every_seed(shards, tmp_path, more):
    assert len(load_sweep([], words_of_sweep(shards, tmp_path, NAMES, more)).cells) == 6


def test_an_older_sweep_keeps_the_seeds_that_it_has(shards, tmp_path):
    (tmp_path / "afib_keep_head/seed-2").mkdir(parents=True)
    kept = [c.seed for c in untrained(shards, tmp_path).cells if c.arm.name == "afib_keep_head"]
    assert kept == [0, 2]


def test_one_run_is_compared_without_the_chance_of_seeds(tmp_path):
    make_sweep(tmp_path, {"a": 2.0, "b": 0.2, "fixed": 0.3})
    for seed in (1, 2):
        for path in sorted((tmp_path / f"fixed/seed-{seed}").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / f"fixed/seed-{seed}").rmdir()
    (tmp_path / "fixed/arm.json").write_text(
        json.dumps({"base": "fixed", "varied": {}, "is_fixed": True})
    )
    comparison = compare(tmp_path, REPLICATES)
    assert not comparison.problems
    assert f"fixed: {ONE_RUN}." in comparison.warnings
    assert not any("Only one seed" in text for text in comparison.warnings)
    (pair,) = [p for p in comparison.pairs if {p.first, p.second} == {"a", "fixed"}]
    assert pair.estimate.includes_seeds and is_better(pair)
    assert "cannot be said from one seed" not in verdict(comparison)


def test_seeds_that_gave_the_same_are_named(tmp_path):
    make_sweep(tmp_path, {"a": 2.0, "same": 0.3})
    for seed in (1, 2):
        make_run(tmp_path / f"same/seed-{seed}", make_test_set(), 0.3, 0)
    texts = compare(tmp_path, REPLICATES).warnings
    assert "All seeds of same gave the same result: they count as one run." in texts
