"""Table of tools/coverage_tables.py on follow-up that ends too early.

censoring   mean, and coverage of 95 % intervals, for a model whose risks of an event within five
            years are right: before (`--censored exclude`, no weights) and now (`--censored ipcw`
            with a logistic model on age); Kaplan–Meier: weights without a model. Half of the
            variance of the risk's logit is age, half the ECG. Censoring depends on nothing, on
            age, or on the risk itself, which age tells only in part. Weights are fitted on as many
            other patients
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from coverage_before import beside, quoted
from scipy import special, stats
from simulated_cohorts import noise

from hpc_ecg.cohort.censoring import WeightPlan, weigh
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import auroc
from hpc_ecg.evaluation.reliability import assess_calibration
from hpc_ecg.evaluation.resampling import draw_multiplicities

# N records, P patients, R replicates, S simulations

YEARS = 5.0
PER_YEAR, PER_SD = 0.22, 0.5  # hazard of censoring at the mean, and its log ratio for one SD
WAYS = {"exclude": None, "Kaplan–Meier": "", "ipcw": "age"}
"""The model of censoring; None: no weights."""
Found = dict[str, dict[str, dict]]
"""Intervals by way and metric."""


def censoring_table(options: argparse.Namespace) -> Iterator[str]:
    big = _cohort(np.random.default_rng(9), 100_000, "nothing")
    area = auroc(big["outcome"].to_numpy(), big["risk"].to_numpy())
    truth = {"O/E": 1.0, "intercept": 0.0, "AUROC": area}
    for patients, cause in product(options.patients, ("nothing", "age", "risk")):
        rng = np.random.default_rng(options.seed)
        draws_RP = draw_multiplicities(patients, options.replicates, options.seed + 1)
        found_S: list[Found] = []
        lost = 0.0
        while len(found_S) < options.simulations:
            cohort = _cohort(rng, 2 * patients, cause)
            if found := _measure(cohort, draws_RP):
                lost += cohort["label"].isna().mean() / options.simulations
                found_S.append(found)
        cell = f"{patients:5d} patients, {lost:3.0%} censored by {cause:7s}"
        yield from (_line(cell, cause, name, true, found_S) for name, true in truth.items())


def _line(cell: str, cause: str, metric: str, true: float, found_S: list[Found]) -> str:
    mean, held = {}, {}
    for way in WAYS:
        rows = [found[way][metric] for found in found_S]
        mean[way] = float(np.mean([row["value"] for row in rows]))
        held[way] = 100 * float(np.mean([row["low"] <= true <= row["high"] for row in rows]))
    means = beside(mean["ipcw"], computed=mean["exclude"], digits=2)
    covered = beside(held["ipcw"], computed=held["exclude"])
    other = f"Kaplan–Meier {mean['Kaplan–Meier']:5.2f}, covered {held['Kaplan–Meier']:5.1f}"
    old = quoted(("censoring", cause, metric), figures=True)
    return f"{cell}  {metric:9s} true {true:4.2f}  {means}  covered: {covered}  {other}{old}"


def _cohort(rng: np.random.Generator, patients: int, cause: str) -> pd.DataFrame:
    """Patients with 1 to 4 ECGs; `label` is missing where an ECG is censored, `outcome` never."""
    patient_N = np.repeat(np.arange(patients), rng.permutation(np.arange(patients) % 4 + 1))
    age_N, ecg_N = noise(rng, patient_N, 1.0), noise(rng, patient_N, 1.0)
    both_N = (age_N + ecg_N) / np.sqrt(2)
    risk_N = special.expit(0.92 * both_N - 2)
    # exponential times with these hazards; those of one patient's ECGs are alike
    event_N, lost_N = (-stats.norm.logsf(noise(rng, patient_N, 1.0)) for _ in range(2))
    event_N *= YEARS / -np.log1p(-risk_N)
    follows_N = {"nothing": 0.0, "age": age_N, "risk": both_N}[cause]
    lost_N /= PER_YEAR * np.exp(PER_SD * follows_N)
    exit_N = np.minimum(event_N, YEARS)
    outcome_N = (event_N <= YEARS).astype(float)
    table = {"patient": patient_N, "age": age_N, "risk": risk_N, "outcome": outcome_N}
    table |= {"label": np.where(lost_N < exit_N, np.nan, outcome_N)}
    return pd.DataFrame(table | {"exit_days": np.minimum(exit_N, lost_N)})


def _measure(cohort: pd.DataFrame, draws_RP: np.ndarray) -> Found:
    """Of the patients who are not for training; {} with fewer than 2 of a class."""
    patients = draws_RP.shape[1]
    is_test_N = cohort["patient"] >= patients
    given = cohort[["age"]].astype(str)
    given["split"] = np.where(is_test_N, "test", "train")
    test = cohort[is_test_N & cohort["label"].notna()]
    labels_n, risk_n = test["label"].to_numpy(), test["risk"].to_numpy()
    found: Found = {}
    for way, model in WAYS.items():
        weight_N = np.ones(len(cohort))
        if model is not None:
            plan = WeightPlan(censoring_model=model, split="split")
            weight_N, _ = weigh(cohort, given, cohort["patient"], plan, Path("cohort.csv"))
        sample = LabelSample(
            record_N=test.index.to_numpy(),
            labels_N=labels_n,
            logits_N=special.logit(risk_n),
            probabilities_N=risk_n,
            patient_N=test["patient"].to_numpy() - patients,
            multiplicity_RP=draws_RP,
            groups={},
            weights_N=weight_N[test.index],
        )
        if sample.patients_in_smaller_class() < 2:
            return {}
        fit, values_R = assess_calibration(sample), sample.ranking_replicates()
        area = metric_intervals(sample.rankings(), values_R, sample)["auroc"]
        found[way] = {"O/E": fit["o_e"], "intercept": fit["intercept"], "AUROC": area}
    return found
