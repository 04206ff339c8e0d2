"""Calibration recovers what it should and stays finite where classes are apart."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hpc_ecg.evaluation.calibration import fit_calibration


def sample(rng, slope, offset, count=20_000):
    logits = rng.normal(0, 2, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-(slope * logits + offset)))).astype(float)
    return labels, logits


@pytest.mark.parametrize(("slope", "offset"), [(0.4, -1.5), (2.5, 0.7), (1.0, 0.0)])
def test_platt_recovers_slope_and_offset(rng, slope, offset):
    fit = fit_calibration(*sample(rng, slope, offset), "platt")
    assert fit["slope"] == pytest.approx(slope, rel=0.06)
    assert fit["offset"] == pytest.approx(offset, abs=0.06)


def test_platt_agrees_with_logistic_regression_where_the_smoothing_is_nothing(rng):
    labels, logits = sample(rng, 0.7, -0.8, 200_000)
    fit = fit_calibration(labels, logits, "platt")
    known = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    assert fit["slope"] == pytest.approx(known.coef_[0, 0], rel=1e-3)
    assert fit["offset"] == pytest.approx(known.intercept_[0], abs=1e-3)


def test_temperature_has_no_offset_and_does_not_depend_on_the_unit(rng):
    labels, logits = sample(rng, 0.5, 0.0)
    fit = fit_calibration(labels, logits, "temperature")
    assert fit["offset"] == 0 and fit["slope"] == pytest.approx(0.5, rel=0.05)
    larger = fit_calibration(labels, logits * 1000, "temperature")
    assert larger["slope"] == pytest.approx(fit["slope"] / 1000, rel=1e-5)


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_classes_that_are_apart_give_a_finite_fit(kind):
    labels, logits = np.array([0.0] * 10 + [1.0] * 5), np.r_[-np.ones(10), np.ones(5)]
    fit = fit_calibration(labels, logits, kind)
    assert 0 < fit["slope"] < 20


def test_missing_labels_are_left_out(rng):
    labels, logits = sample(rng, 0.5, 0.3, 500)
    holes = labels.copy()
    holes[::3] = np.nan
    kept = ~np.isnan(holes)
    fit = fit_calibration(holes, logits, "platt")
    assert fit == fit_calibration(labels[kept], logits[kept], "platt")
    assert fit["n"] == kept.sum()


def test_logits_that_rank_the_wrong_way_are_refused(rng):
    labels, logits = sample(rng, -1.0, 0.0, 2000)
    with pytest.raises(ValueError, match=r"af: platt calibration has slope -.*the wrong way round"):
        fit_calibration(labels, logits, "platt", "af")
    with pytest.raises(ValueError, match="class"):
        fit_calibration(np.ones(10), rng.normal(size=10), "platt", "af")
