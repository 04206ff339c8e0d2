"""Curves with bands: the curve is scikit-learn's, the band is that of resampled records."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from hpc_ecg.evaluation.bands import GRID_POINTS, precision_recall_band, roc_band
from hpc_ecg.evaluation.resampling import draw_resamples


def roc_on_grid(labels, scores):
    known = ~np.isnan(labels)
    false_rate, true_rate, _ = roc_curve(labels[known], scores[known])
    grid = np.linspace(0, 1, GRID_POINTS)
    return grid, np.r_[0.0, np.interp(grid[1:], false_rate, true_rate)]


def precision_recall_on_grid(labels, scores):
    known = ~np.isnan(labels)
    precision, recall, _ = precision_recall_curve(labels[known], scores[known])
    grid = np.linspace(0, 1, GRID_POINTS)[1:]
    first = np.searchsorted(recall[::-1], grid - 1e-12, side="left")
    return grid, precision[::-1][first]


CURVES = [(roc_band, roc_on_grid), (precision_recall_band, precision_recall_on_grid)]


def cohort(num_patients=60, seed=0):
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    labels = (rng.random(num_patients) < 0.4).astype(float)[patients]
    scores = np.round(labels + rng.normal(size=len(labels)), 1)  # with ties
    labels[3] = np.nan
    return patients, labels, scores


@pytest.mark.parametrize(("band", "on_grid"), CURVES)
def test_the_curve_of_a_seed_is_that_of_scikit_learn(band, on_grid):
    patients, labels, scores = cohort()
    draws = draw_resamples(patients, 20, 0)
    found = band(labels, [scores, -scores], draws.patient_N, draws.multiplicity_RP)
    for row, seed_scores in zip(found.seed_SG, (scores, -scores), strict=True):
        x, y = on_grid(labels, seed_scores)
        np.testing.assert_allclose(found.x_G, x)
        np.testing.assert_allclose(row, y, atol=1e-12)


@pytest.mark.parametrize(("band", "on_grid"), CURVES)
def test_the_band_is_that_of_records_taken_as_often_as_their_patient_was_drawn(band, on_grid):
    patients, labels, scores = cohort()
    draws = draw_resamples(patients, 40, 1)
    found = band(labels, [scores], draws.patient_N, draws.multiplicity_RP)
    curves = []
    for draw in draws.multiplicity_RP:
        rows = np.repeat(np.arange(len(labels)), draw[draws.patient_N])
        curves.append(on_grid(labels[rows], scores[rows])[1])
    np.testing.assert_allclose(found.low_G, np.quantile(curves, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.high_G, np.quantile(curves, 0.975, axis=0), atol=1e-12)


def test_replicates_of_one_class_are_left_out_of_the_band():
    labels, scores = np.array([1.0, 0, 0, 0]), np.array([2.0, 1, 0, 3])
    draws = np.array([[0, 1, 2, 1], [1, 1, 1, 1], [2, 0, 1, 1]])
    found = roc_band(labels, [scores], np.arange(4), draws)
    assert np.isfinite(found.low_G).all()
