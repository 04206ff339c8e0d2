"""The patient bootstrap against scikit-learn on explicit resamples."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from hpc_ecg.evaluation import resampling
from hpc_ecg.evaluation.resampling import (
    draw_multiplicities,
    draw_resamples,
    ranking_replicates,
    regression_replicates,
    sum_replicates,
)


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


@pytest.mark.parametrize("levels", [None, 2, 1], ids=["distinct scores", "ties", "few values"])
def test_each_replicate_equals_scikit_learn_on_the_resample(levels):
    labels, scores, patients = cohort(40, prevalence=0.4, levels=levels)
    draws = draw_resamples(patients, 200, seed=1)
    values = ranking_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    for r, multiplicity_P in enumerate(draws.multiplicity_RP):
        rows = rows_of_replicate(patients, multiplicity_P)
        auroc = sk.roc_auc_score(labels[rows], scores[rows])
        auprc = sk.average_precision_score(labels[rows], scores[rows])
        assert values["auroc"][r] == pytest.approx(auroc, abs=1e-12)
        assert values["auprc"][r] == pytest.approx(auprc, abs=1e-12)


def test_labels_that_change_within_a_patient_and_float32_scores_are_ranked_as_well():
    _, scores, patients = cohort(40, levels=3)
    labels = (np.random.default_rng(3).random(len(scores)) < 0.3).astype(float)
    scores = scores.astype(np.float32)
    draws = draw_resamples(patients, 40, seed=1)
    values = ranking_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    for r, multiplicity_P in enumerate(draws.multiplicity_RP):
        rows = rows_of_replicate(patients, multiplicity_P)
        auprc = sk.average_precision_score(labels[rows], scores[rows])
        assert values["auprc"][r] == pytest.approx(auprc, abs=1e-12)


def test_a_replicate_without_both_classes_has_no_value():
    draws_RP = np.array([[1, 1], [2, 0], [0, 2]], dtype=np.uint8)
    for labels, scores in (([1.0, 0.0], [0.3, 0.2]), ([1.0, 0.0], [0.2, 0.2])):
        values = ranking_replicates(np.array(labels), np.array(scores), np.arange(2), draws_RP)
        for metric in ("auroc", "auprc"):
            assert np.isfinite(values[metric]).tolist() == [True, False, False]


def test_sums_of_every_replicate_are_those_of_the_resample(monkeypatch):
    labels, scores, patients = cohort(40)
    columns = np.stack([labels, scores, (scores > 0.5) * labels], axis=1)
    draws = draw_resamples(patients, 50, seed=2)
    monkeypatch.setattr(resampling, "CHUNK_ELEMENTS", 7 * 40)
    sums_RV = sum_replicates(columns, draws.patient_N, draws.multiplicity_RP)
    for r, multiplicity_P in enumerate(draws.multiplicity_RP):
        rows = rows_of_replicate(patients, multiplicity_P)
        np.testing.assert_allclose(sums_RV[r], columns[rows].sum(axis=0), atol=1e-10)


def test_each_regression_replicate_equals_scikit_learn_on_the_resample():
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


def test_the_size_of_a_block_does_not_change_the_values(monkeypatch):
    labels, scores, patients = cohort(40)
    draws = draw_resamples(patients, 100, seed=1)
    whole = ranking_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    monkeypatch.setattr(resampling, "BLOCK", 7)
    parts = ranking_replicates(labels, scores, draws.patient_N, draws.multiplicity_RP)
    np.testing.assert_array_equal(whole["auprc"], parts["auprc"])


def test_draws_are_a_function_of_the_seed_and_keep_the_number_of_patients():
    first = draw_multiplicities(50, 20, seed=7)
    assert (first == draw_multiplicities(50, 20, seed=7)).all()
    assert (first != draw_multiplicities(50, 20, seed=8)).any()
    assert (first.sum(axis=1) == 50).all()


@pytest.mark.slow
def test_ranking_works_where_numba_cannot_write_its_cache(tmp_path):
    """A read-only installation and no home: numba's cache has no folder that it can write."""
    package = Path(resampling.__file__).parents[2]
    code = """
import numpy as np, numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
from hpc_ecg.evaluation.resampling import ranking_replicates
draws = np.ones((2, 4), dtype=np.uint8)
print(ranking_replicates(np.array([0, 1, 0, 1.]), np.arange(4.), np.arange(4), draws)["auroc"][0])
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "0.75"
