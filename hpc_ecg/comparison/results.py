"""The runs of a sweep on disk: `<sweep_dir>/<arm>/seed-<N>/`, each one run's folder.

In: the sweep's folder. Out: the finished runs with their test predictions, and for every other
run the reason why it is not there. The runs that should exist are read from `sweep.yaml`; what
an arm is, from the `arm.json` in its folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.atomic_io import read_json
from hpc_ecg.comparison.run_settings import check_comparable
from hpc_ecg.evaluation.metrics import check_finite, check_not_constant
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.sweep.folder import expected_cells, read_events, read_optional
from hpc_ecg.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunResult:
    strategy: str
    """The arm's name."""
    seed: int
    folder: RunFolder
    finished: dict[str, Any]
    settings: dict[str, Any]
    """By dotted key, with the digest of the data's index."""
    test: Predictions
    """Sorted by record."""
    base: str
    """The strategy of the arm …"""
    varied: dict[str, Any]
    """… and what a grid sets in it, by dotted key."""

    @property
    def name(self) -> str:
        return f"{self.strategy}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A run that takes no part in the comparison."""

    strategy: str
    seed: int
    reason: str


def read_results(sweep_dir: Path) -> tuple[list[RunResult], list[Problem]]:
    """All runs in the order of sweep.yaml. Raises `ValueError` where test sets differ."""
    if not sweep_dir.is_dir():
        raise ValueError(f"{sweep_dir} is not a folder; give the folder that a sweep made")
    runs: list[RunResult] = []
    problems: list[Problem] = []
    for strategy, seed in expected_cells(sweep_dir):
        outcome = _read_result(sweep_dir, strategy, seed)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            runs.append(_on_the_same_records(outcome, runs))
    if runs:
        check_comparable([(run.name, run.strategy, run.settings) for run in runs])
    return runs, problems


def _read_result(sweep_dir: Path, strategy: str, seed: int) -> RunResult | Problem:
    run = RunFolder(sweep_dir / strategy / f"seed-{seed}")
    reason = _why_not_finished(run)
    if reason is not None:
        return Problem(strategy=strategy, seed=seed, reason=reason)
    try:
        return _read_finished(run, strategy, seed)
    except (ValueError, OSError) as error:
        return Problem(strategy=strategy, seed=seed, reason=f"cannot be used: {error}")


def _read_finished(run: RunFolder, strategy: str, seed: int) -> RunResult:
    test = read_predictions(run.predictions / "test.parquet").sorted()
    for k, label in enumerate(test.labels):
        check_finite(test.logit_NK[:, k], label)
        check_not_constant(test.logit_NK[:, k], label)
    settings = run.read_settings()
    settings["data_index_sha256"] = read_json(run.environment)["data_index_sha256"]
    read_json(run.init_report)  # the report shows what the run started from
    arm = read_optional(run.path.parent / "arm.json")
    return RunResult(
        strategy=strategy,
        seed=seed,
        folder=run,
        finished=read_json(run.finished),
        settings=settings,
        test=test,
        base=arm.get("base", strategy),
        varied=arm.get("varied", {}),
    )


def _why_not_finished(run: RunFolder) -> str | None:
    error = run.path / "error.txt"
    if run.finished.exists() and not error.exists():
        return None
    if error.exists():
        lines = error.read_text().strip().splitlines()
        return f"failed: {lines[-1] if lines else 'error.txt is empty'}"
    if not run.path.exists():
        return "not started"
    steps = [e["step"] for e in read_events(run.metrics) if "step" in e]
    return f"not finished: at step {max(steps)}" if steps else "not finished: no step yet"


def _on_the_same_records(run: RunResult, others: list[RunResult]) -> RunResult:
    """Refuse another test set than the first run's; share its arrays, which are the same."""
    if not others:
        return run
    first, test = others[0].test, run.test
    _check_same_records(others[0], run)
    shared = replace(
        test, record_N=first.record_N, patient_N=first.patient_N, label_NK=first.label_NK
    )
    return replace(run, test=shared)


def _check_same_records(first: RunResult, run: RunResult) -> None:
    a, b = first.test, run.test
    who, do = f"{first.name} and {run.name}", "run both on one data set and one split"
    if a.labels != b.labels:
        raise ValueError(f"{who} predict different labels ({a.labels} and {b.labels}); {do}")
    only = set(a.record_N.tolist()) ^ set(b.record_N.tolist())
    if only:
        raise ValueError(
            f"{who} were tested on different records ({len(a)} and {len(b)}, {len(only)} in one "
            f"of them only, such as {min(only)!r}); {do}"
        )
    if not np.array_equal(a.patient_N, b.patient_N):
        raise ValueError(f"{who} give a record to different patients; {do}")
    if not np.array_equal(a.label_NK, b.label_NK, equal_nan=True):
        raise ValueError(f"{who} have different labels for the same test records; {do}")
