"""Intervals of one model: what they hold, what they warn of, how often they are right."""

import numpy as np
import pytest

from hpc_ecg.evaluation.evaluate import evaluate_predictions
from hpc_ecg.evaluation.intervals import few_patients_warning
from hpc_ecg.evaluation.predictions import Predictions


def patient_intervals(labels, scores, patients, name, replicates):
    """The intervals of one label, as `hpc-ecg evaluate` makes them."""
    predictions = Predictions(
        record_N=np.array([f"r{n}" for n in range(len(labels))], dtype=object),
        patient_N=np.asarray(patients),
        labels=[name],
        label_NK=np.asarray(labels, float)[:, None],
        logit_NK=np.asarray(scores, float)[:, None],
        probability_NK=1 / (1 + np.exp(-np.asarray(scores, float)[:, None])),
    )
    return evaluate_predictions(predictions, "binary", None, replicates)["labels"][name]


def cohort(num_patients, seed=0, prevalence=0.3):
    """1 to 4 ECGs per patient, labels by patient, scores that share a patient effect."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    labels = (rng.random(num_patients) < prevalence).astype(float)[patients]
    scores = labels + rng.normal(size=num_patients)[patients] + rng.normal(size=len(patients))
    return labels, scores, patients


def test_replicates_of_one_class_are_left_out_counted_and_reported():
    labels, scores, patients = cohort(40)
    labels[:] = 0
    labels[patients == 3] = 1
    result = patient_intervals(labels, scores, patients, name="afib", replicates=400)["auroc"]
    lost = 400 - result["replicates"]
    assert 100 < lost < 200  # the chance of missing one patient of 40 is 0.363
    assert f"{lost} replicates had one class only" in result["warning"]
    assert "only 1 positive patient:" in result["warning"]


def test_few_patients_of_either_class_are_warned_about_and_twenty_are_enough():
    counts = {"n_positive_patients": 7, "n_negative_patients": 90}
    text = "only 7 positive patients: a 95 % interval of this kind is known to cover 74–85 % there"
    assert few_patients_warning(counts) == text
    assert few_patients_warning(counts | {"n_positive_patients": 20}) is None
    counts = {"n_positive_patients": 90, "n_negative_patients": 7}
    assert few_patients_warning(counts).startswith("only 7 negative patients")


def test_repeat_ecgs_widen_the_interval():
    """Copies of each ECG hold no news: the interval by patient is that of the single ECGs."""
    labels, scores, patients = cohort(150)
    once = patient_intervals(labels, scores, patients, name="afib", replicates=500)["auroc"]
    again = [np.tile(a, 4) for a in (labels, scores, patients)]
    four = patient_intervals(*again, name="afib", replicates=500)["auroc"]
    assert four["low"] == pytest.approx(once["low"]) and four["high"] == pytest.approx(once["high"])
