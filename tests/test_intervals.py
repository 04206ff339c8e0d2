"""The patient bootstrap against scikit-learn on resamples that were really built."""

import numpy as np
import pytest
from sklearn import metrics as sk

from hpc_ecg.evaluation.evaluate import evaluate_predictions
from hpc_ecg.evaluation.intervals import few_patients_warning
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import (
    draw_multiplicities,
    draw_resamples,
    ranked_replicates,
    regression_replicates,
)


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


def cohort(num_patients, seed=0, prevalence=0.3, levels=None):
    """1 to 4 ECGs per patient, labels by patient, scores that share a patient effect."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    labels = (rng.random(num_patients) < prevalence).astype(float)[patients]
    scores = labels + rng.normal(size=num_patients)[patients] + rng.normal(size=len(patients))
    return labels, np.round(scores * levels) / levels if levels else scores, patients


def rows_of_replicate(patients, multiplicity_P):
    """The resample itself: the row numbers of all ECGs of the patients that were drawn."""
    rows = [np.flatnonzero(patients == p) for p in range(len(multiplicity_P))]
    return np.concatenate([r for p, m in enumerate(multiplicity_P) for r in [rows[p]] * m])


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct scores", "many ties"])
def test_each_replicate_is_scikit_learn_on_the_resample(levels):
    labels, scores, patients = cohort(40, prevalence=0.4, levels=levels)
    draws = draw_resamples(patients, 200, seed=1)
    values = ranked_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    for r, multiplicity_P in enumerate(draws.multiplicity_RP):
        rows = rows_of_replicate(patients, multiplicity_P)
        auroc = sk.roc_auc_score(labels[rows], scores[rows])
        auprc = sk.average_precision_score(labels[rows], scores[rows])
        assert values["auroc"][r] == pytest.approx(auroc, abs=1e-12)
        assert values["auprc"][r] == pytest.approx(auprc, abs=1e-12)


def test_each_regression_replicate_is_scikit_learn_on_the_resample():
    _, values_N, patients = cohort(30)
    labels = 60 + 5 * values_N + np.random.default_rng(5).normal(size=len(values_N))
    draws = draw_resamples(patients, 50, seed=1)
    predicted = 60 + 4 * values_N
    values = regression_replicates(labels, predicted, draws.patient_N, draws.multiplicity_RP)
    for r, multiplicity_P in enumerate(draws.multiplicity_RP):
        rows = rows_of_replicate(patients, multiplicity_P)
        y, x = labels[rows], predicted[rows]
        assert values["r2"][r] == pytest.approx(sk.r2_score(y, x), abs=1e-10)
        assert values["mae"][r] == pytest.approx(sk.mean_absolute_error(y, x), abs=1e-10)
        assert values["rmse"][r] == pytest.approx(sk.root_mean_squared_error(y, x), abs=1e-10)
        assert values["pearson"][r] == pytest.approx(np.corrcoef(y, x)[0, 1], abs=1e-10)


def test_chunks_do_not_change_the_values(monkeypatch):
    labels, scores, patients = cohort(40)
    draws = draw_resamples(patients, 100, seed=1)
    whole = ranked_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    monkeypatch.setattr("hpc_ecg.evaluation.resampling.CHUNK_ELEMENTS", 700)
    parts = ranked_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    np.testing.assert_array_equal(whole["auprc"], parts["auprc"])


def test_draws_are_a_function_of_the_seed_and_keep_the_number_of_patients():
    first = draw_multiplicities(50, 20, seed=7)
    assert (first == draw_multiplicities(50, 20, seed=7)).all()
    assert (first != draw_multiplicities(50, 20, seed=8)).any()
    assert (first.sum(axis=1) == 50).all()


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
