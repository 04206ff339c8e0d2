"""Results of a sweep's runs, as they lie in `SWEEP/<arm>/seed-<N>/`.

Finished runs are read with their test predictions; every other run gets the reason why it is left
out. `sweep.yaml` lists the runs to expect; `arm.json` says which strategy an arm varies.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.comparison.run_settings import check_comparable
from hpc_ecg.evaluation.metrics import check_finite, check_not_constant
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.hashing import check_kinds, read_record
from hpc_ecg.log import describe_error
from hpc_ecg.sweep.arms import LEFT_OUT_SITE
from hpc_ecg.sweep.folder import expected_cells, parse_error, read_events
from hpc_ecg.sweep.protocol import TO_OPEN
from hpc_ecg.training.run_folder import RunFolder

NUMBER = int | float
FINISHED = {"metric": str, "steps": int, "best_step": int | None, "best_score": NUMBER | None}
FINISHED |= {"stopped": str, "device": str, "processes": int}
FINISHED |= {"train_seconds": NUMBER, "process_seconds": NUMBER}
FINISHED |= dict.fromkeys(("energy_kwh?", "ecg_per_s?"), NUMBER | None)
TENSORS = {f"tensors_{kind}": int for kind in ("loaded", "fresh", "frozen")}
INIT_REPORT: dict[str, Any] = {"head": {"taken": str, "reason?": str}, "checkpoint": dict | None}
INIT_REPORT |= {"counts": TENSORS, "signal?": {"spec": dict | None}}
CHECKPOINT = {"path": str, "sha256": str}
SPEC: dict[str, Any] = {"leads": [str], "num_samples": int, "sample_rate_hz": NUMBER}
SPEC |= dict.fromkeys(("unit", "amplitude", "preprocessing", "window"), str)


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
    is_fixed: bool = False
    """Whether it stands for all seeds, because nothing is trained."""
    is_verified: bool = True
    """False for a run of version 0.1, which wrote no digests."""

    @property
    def name(self) -> str:
        """Of a run without a sweep: its folder's name."""
        seed = f"seed-{self.seed}"
        is_cell = self.folder.path.absolute().name == seed
        return f"{self.strategy}/{seed}" if is_cell else self.strategy


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
    """Read all runs, in the order of sweep.yaml; of a run's folder, that run.

    Raises `ValueError` if runs were tested on different records (unless they left out different
    sites) or differ in settings that must agree.
    """
    if not sweep_dir.is_dir():
        raise ValueError(f"{sweep_dir} is not a folder; give the folder that a sweep made")
    if is_run(sweep_dir):
        return [_read_single(RunFolder(sweep_dir))], []
    runs: list[RunResult] = []
    problems: list[Problem] = []
    first: dict[Any, RunResult] = {}
    for strategy, seed in expected_cells(sweep_dir):
        result = _read_result(sweep_dir, strategy, seed)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            site = result.varied.get(LEFT_OUT_SITE)
            runs.append(_share_test_set(result, first.setdefault(site, result)))
    if runs:
        check_comparable([(run.name, run.strategy, run.settings) for run in runs])
    return runs, problems


def is_run(folder: Path) -> bool:
    """Whether this is the folder of one run, not of a sweep."""
    return RunFolder(folder).config.exists()


def _read_single(folder: RunFolder) -> RunResult:
    """ValueError for a run that is not finished, or has not been tested yet."""
    if reason := _why_not_finished(folder):
        raise ValueError(f"{folder.path} cannot be reported: {reason}")
    if not (folder.predictions / "test.parquet").exists():
        raise ValueError(
            f"{folder.path} has no predictions of the test set; make them with: "
            f"hpc-ecg evaluate {folder.path}"
        )
    path, seed = folder.path.resolve(), folder.read_settings()["seed"]
    strategy = path.parent.name if path.name == f"seed-{seed}" else path.name
    return _read_finished(folder, strategy, seed)


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
            reason = f"cannot be used: {describe_error(error)}"
    return Problem(strategy=strategy, seed=seed, reason=reason)


def _read_finished(folder: RunFolder, strategy: str, seed: int) -> RunResult:
    is_verified = folder.check_unchanged()
    test = read_predictions(folder.predictions / "test.parquet").sorted()
    for k, label in enumerate(test.labels):
        check_finite(test.logit_NK[:, k], label)
        check_not_constant(test.logit_NK[:, k], label)
        if test.probability_NK is not None:
            check_finite(test.probability_NK[:, k], label)
    settings = folder.read_settings()
    index = read_record(folder.environment, {"data_index_sha256": str})["data_index_sha256"]
    settings["data_index_sha256"] = index
    report = read_record(folder.init_report, INIT_REPORT)
    signal = report.get("signal", {}).get("spec")
    for part, kinds in ((report["checkpoint"], CHECKPOINT), (signal, SPEC)):
        check_kinds(folder.init_report, part or {}, kinds if part else {})
    arm = _read_arm(folder, strategy, settings)
    return RunResult(
        strategy=strategy,
        seed=seed,
        folder=folder,
        finished=read_record(folder.finished, FINISHED),
        settings=settings,
        test=test,
        base=arm["base"],
        varied=arm["varied"],
        is_fixed=bool(arm.get("is_fixed")),
        is_verified=is_verified,
    )


def _read_arm(folder: RunFolder, strategy: str, settings: dict[str, Any]) -> dict[str, Any]:
    """arm.json, or what stands for it. ValueError if it contradicts the run's settings."""
    path = folder.path.parent / "arm.json"
    if not path.exists():
        return {"base": strategy, "varied": {}}
    arm = read_record(path, {"base": str, "varied": dict})
    if any(settings.get(key, value) != value for key, value in arm["varied"].items()):
        raise ValueError(f"{path} and {folder.config} state other values of what the grid varies")
    return arm


def _why_not_finished(folder: RunFolder) -> str | None:
    error = folder.path / "error.txt"
    if error.exists():
        return f"failed: {parse_error(error.read_text())[0]}"
    if folder.finished.exists():
        test = folder.predictions / "test.parquet"
        return None if test.exists() or folder.evaluation.exists() else f"not tested: {TO_OPEN}"
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
