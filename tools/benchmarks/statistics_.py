"""The patient bootstrap of a large test set, compared with a loop over scikit-learn.

132,050 ECGs of about 60,000 patients, 11.76 % positive, on one core. Both use the same draws of
patients, made before the clock starts (`draw_seconds`; one byte per patient and replicate).

  ratio_to_sklearn     AUROC and AUPRC of 2,000 replicates. The loop is timed on a few of them
                       (--loop; the median counts), where the values must agree within 1e-12. Its
                       time includes its resampling (repeated rows)
  growth_megabytes_R   peak memory while R replicates are ranked, less the memory before
  compare_8x5_seconds  8 strategies × 5 seeds: all replicates of both metrics, all 28 pairs of each
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = {
    "growth_megabytes_200": 64.0,
    "growth_megabytes_2000": 64.0,
    "largest_difference": 1e-12,
    "compare_8x5_seconds": 60.0,
}
AT_LEAST = {"ratio_to_sklearn": 50.0}
NUM_ECGS, NUM_PATIENTS, PREVALENCE = 132_050, 60_000, 0.1176


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ecgs", type=int, default=NUM_ECGS)
    parser.add_argument("--patients", type=int, default=NUM_PATIENTS)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=15, help="replicates of the loop (default 15)")
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> dict[str, float]:
    from hpc_ecg.evaluation.resampling import draw_resamples, ranking_replicates

    rng = np.random.default_rng(options.seed)
    extra = rng.integers(options.patients, size=options.ecgs - options.patients)
    patients_N = np.sort(np.r_[np.arange(options.patients), extra])
    labels_N = (rng.random(options.patients) < PREVALENCE).astype(float)[patients_N]
    scores_N = labels_N + rng.normal(size=options.ecgs)
    start = time.perf_counter()
    draws = draw_resamples(patients_N, options.replicates, options.seed)
    numbers = {"draw_seconds": time.perf_counter() - start}
    # compile it before the clock starts
    ranking_replicates(labels_N, scores_N, draws.patient_N, draws.multiplicity_RP[:2])
    for replicates in (200, options.replicates):
        before = _resident("VmRSS", reset=True)
        start = time.perf_counter()
        rows_RP = draws.multiplicity_RP[:replicates]
        values = ranking_replicates(labels_N, scores_N, draws.patient_N, rows_RP)
        seconds = time.perf_counter() - start
        numbers[f"growth_megabytes_{replicates}"] = (_resident("VmHWM") - before) / 1e6
    each = seconds / options.replicates
    numbers |= {"seconds": seconds} | _loop(labels_N, scores_N, draws, values, options.loop)
    numbers["ratio_to_sklearn"] = numbers["loop_seconds_per_replicate"] / each
    numbers["compare_8x5_seconds"] = _compare(labels_N, draws, rng)
    return numbers


def _loop(
    labels_N: np.ndarray, scores_N: np.ndarray, draws: Any, values: dict, count: int
) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    seconds, largest = [], 0.0
    for r in range(count):
        start = time.perf_counter()
        rows = np.repeat(np.arange(len(labels_N)), draws.multiplicity_RP[r][draws.patient_N])
        labels, scores = labels_N[rows], scores_N[rows]
        auroc, auprc = roc_auc_score(labels, scores), average_precision_score(labels, scores)
        seconds.append(time.perf_counter() - start)
        largest = max(largest, abs(auroc - values["auroc"][r]), abs(auprc - values["auprc"][r]))
    return {"loop_seconds_per_replicate": float(np.median(seconds)), "largest_difference": largest}


def _compare(labels_N: np.ndarray, draws: Any, rng: np.random.Generator) -> float:
    """Seconds for the comparisons in a report of 8 × 5 cells."""
    from hpc_ecg.evaluation.comparisons import SeedScores, estimate_mean
    from hpc_ecg.evaluation.families import compare_strategies
    from hpc_ecg.evaluation.metrics import auprc, auroc
    from hpc_ecg.evaluation.resampling import ranking_replicates

    score_8x5 = [[labels_N + rng.normal(size=len(labels_N)) for _ in range(5)] for _ in range(8)]
    positives = len(np.unique(draws.patient_N[labels_N == 1]))
    start = time.perf_counter()
    replicates = {
        (a, s): ranking_replicates(labels_N, scores_N, draws.patient_N, draws.multiplicity_RP)
        for a, row in enumerate(score_8x5)
        for s, scores_N in enumerate(row)
    }
    for name, metric in (("auroc", auroc), ("auprc", auprc)):
        scores = {
            str(a): SeedScores(
                value={s: metric(labels_N, scores_N) for s, scores_N in enumerate(row)},
                replicate_R={s: replicates[a, s][name] for s in range(5)},
            )
            for a, row in enumerate(score_8x5)
        }
        compare_strategies(scores, positives)
        for strategy in scores.values():
            values_S, rows_SR = list(strategy.value.values()), list(strategy.replicate_R.values())
            estimate_mean(np.array(values_S), np.stack(rows_SR), positives)
    return time.perf_counter() - start


def _resident(what: str, *, reset: bool = False) -> int:
    """Resident bytes of this process: current (VmRSS) or peak (VmHWM)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    raise SystemExit("tools/benchmark.py statistics")
