"""Results of a sweep's runs, as they lie in `SWEEP/<arm>/seed-<N>/`.

Finished runs are read with their test predictions; every other run gets the reason why it is left
out. `sweep.yaml` lists the runs to expect; `arm.json` says which strategy an arm varies.
"""

from collections.abc import Iterable
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
    """finished.json."""
    settings: dict[str, Any]
    """By dotted key, with the digest of the data's index."""
    test: Predictions
    """Sorted by record."""
    base: str
    """The strategy that the arm varies."""
    varied: dict[str, Any]
    """What a grid sets in it, by dotted key."""

    @property
    def name(self) -> str:
        return f"{self.strategy}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A run that is left out of the comparison."""

    strategy: str
    seed: int
    reason: str

    @property
    def name(self) -> str:
        return f"{self.strategy}/seed-{self.seed}"


def read_results(sweep_dir: Path) -> tuple[list[RunResult], list[Problem]]:
    """Read all runs, in the order of sweep.yaml.

    Raises `ValueError` if runs were tested on different records or differ in settings that must
    agree.
    """
    if not sweep_dir.is_dir():
        raise ValueError(f"{sweep_dir} is not a folder; give the folder that a sweep made")
    runs: list[RunResult] = []
    problems: list[Problem] = []
    for strategy, seed in expected_cells(sweep_dir):
        result = _read_result(sweep_dir, strategy, seed)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            runs.append(_share_test_set(result, runs[0]) if runs else result)
    if runs:
        check_comparable([(run.name, run.strategy, run.settings) for run in runs])
    return runs, problems


def by_strategy(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Group runs by strategy, in the order of each strategy's first run."""
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(run.strategy, []).append(run)
    return groups


def _read_result(sweep_dir: Path, strategy: str, seed: int) -> RunResult | Problem:
    folder = RunFolder(sweep_dir / strategy / f"seed-{seed}")
    reason = _why_not_finished(folder)
    if reason is None:
        try:
            return _read_finished(folder, strategy, seed)
        except (ValueError, OSError) as error:
            reason = f"cannot be used: {error}"
    return Problem(strategy=strategy, seed=seed, reason=reason)


def _read_finished(folder: RunFolder, strategy: str, seed: int) -> RunResult:
    test = read_predictions(folder.predictions / "test.parquet").sorted()
    for k, label in enumerate(test.labels):
        check_finite(test.logit_NK[:, k], label)
        check_not_constant(test.logit_NK[:, k], label)
    settings = folder.read_settings()
    settings["data_index_sha256"] = read_json(folder.environment)["data_index_sha256"]
    read_json(folder.init_report)  # the report reads it later and needs it whole
    arm = read_optional(folder.path.parent / "arm.json")
    return RunResult(
        strategy=strategy,
        seed=seed,
        folder=folder,
        finished=read_json(folder.finished),
        settings=settings,
        test=test,
        base=arm.get("base", strategy),
        varied=arm.get("varied", {}),
    )


def _why_not_finished(folder: RunFolder) -> str | None:
    error = folder.path / "error.txt"
    if error.is_file():
        lines = error.read_text().strip().splitlines()
        return f"failed: {lines[-1] if lines else 'error.txt is empty'}"
    if folder.finished.exists():
        return None
    if not folder.path.exists():
        return "not started"
    steps = [e["step"] for e in read_events(folder.metrics) if "step" in e]
    return f"not finished: at step {max(steps)}" if steps else "not finished: no step yet"


def _share_test_set(run: RunResult, first: RunResult) -> RunResult:
    """Refuse a test set that differs from the first run's; share its arrays to save memory."""
    a, b = first.test, run.test
    names, advice = f"{first.name} and {run.name}", "run both on one data set and one split"
    if a.labels != b.labels:
        raise ValueError(f"{names} predict different labels ({a.labels} and {b.labels}); {advice}")
    in_one = set(a.record_N.tolist()) ^ set(b.record_N.tolist())
    if in_one:
        raise ValueError(
            f"{names} were tested on different records ({len(a)} and {len(b)}, {len(in_one)} in "
            f"only one of them, such as {min(in_one)!r}); {advice}"
        )
    if not np.array_equal(a.patient_N, b.patient_N):
        raise ValueError(f"{names} assign a record to different patients; {advice}")
    if not np.array_equal(a.label_NK, b.label_NK, equal_nan=True):
        raise ValueError(f"{names} have different labels for the same test records; {advice}")
    shared = replace(b, record_N=a.record_N, patient_N=a.patient_N, label_NK=a.label_NK)
    return replace(run, test=shared)
