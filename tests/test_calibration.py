"""Calibration recovers the known slope and offset and stays finite for separable classes; its
numbers on a test set are those of scikit-learn and statsmodels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.special import expit
from sklearn import calibration as sk
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from test_metrics import make_predictions

from hpc_ecg.evaluation.calibration import KINDS, apply_calibration, fit_calibration
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.reliability import (
    assess_calibration,
    fit_intercept,
    fit_slope,
)
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.scores import evaluate_predictions, fit_calibrators


def sample(rng, slope, offset, count=20_000):
    logits = rng.normal(0, 2, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-(slope * logits + offset)))).astype(float)
    return labels, logits


@pytest.mark.parametrize(("slope", "offset"), [(0.4, -1.5), (2.5, 0.7), (1.0, 0.0)])
def test_platt_recovers_slope_and_offset(rng, slope, offset):
    fit = fit_calibration(*sample(rng, slope, offset), "platt")
    assert fit["slope"] == pytest.approx(slope, rel=0.06)
    assert fit["offset"] == pytest.approx(offset, abs=0.06)


def test_platt_agrees_with_logistic_regression_where_the_prior_is_nothing(rng):
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
def test_separable_classes_give_a_finite_fit(kind):
    labels, logits = np.array([0.0] * 30 + [1.0] * 10), np.r_[-np.ones(30), np.ones(10)]
    fit = fit_calibration(labels, logits, kind)
    assert 0 < fit["slope"] < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positives", [1, 3, 8, 15, 60])
@pytest.mark.parametrize("rare", [1.0, 0.0])
def test_few_events_are_refused_or_warned_about(rng, kind, positives, rare):
    """Two ECGs of each patient: the patients count."""
    labels = np.where(np.arange(400) < 2 * positives, rare, 1 - rare)
    logits = rng.normal(size=400) + labels
    patients = np.arange(400) // 2
    word = "positive" if rare == 1 else "negative"
    if positives < 10:
        told = f"af: only {positives} {word} patients? in validation; {kind} calibration needs 10"
        with pytest.raises(ValueError, match=told):
            fit_calibration(labels, logits, kind, "af", patients)
        return
    fit = fit_calibration(labels, logits, kind, "af", patients)
    assert (fit[f"n_{word}"], fit[f"n_{word}_patients"]) == (2 * positives, positives)
    assert fit["n_positive_patients"] + fit["n_negative_patients"] == 200
    known = f"{kind} calibration rests on {positives} {word} patients in validation"
    assert fit.get("warning") == (known if positives < 50 else None)


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_few_events_shrink_the_slope_and_more_shrink_it_less(rng, kind):
    labels, logits = sample(rng, 1.5, 0.0, 4000)
    fitted = []
    for num in (60, 4000):
        known = LogisticRegression(C=np.inf, fit_intercept=kind == "platt", tol=1e-9)
        known.fit(logits[:num, None], labels[:num])
        fit = fit_calibration(labels[:num], logits[:num], kind)
        fitted.append(fit["slope"] / known.coef_[0, 0])
    assert 0.4 < fitted[0] < 0.95 and 0.98 < fitted[1] < 1


def test_a_calibration_that_few_events_forbid_leaves_its_reason():
    valid, test = make_predictions(num=400, seed=1), make_predictions(num=400, seed=2)
    valid.label_NK[:] = np.isin(np.arange(400), [0, 1, 8])[:, None]
    fits = fit_calibrators(valid)
    result = evaluate_predictions(test, "binary", None, 50, calibrators=fits)["labels"]["afib"]
    for kind in KINDS:
        assert "only 2 positive patients" in result["recalibrated"][kind]["reason"]


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


def label_sample(labels, logits, patients=None, replicates=200):
    patients = np.arange(len(labels)) if patients is None else patients
    drawn = draw_resamples(patients, replicates, 0)
    return LabelSample(
        record_N=np.arange(len(labels)),
        labels_N=labels,
        logits_N=logits,
        probabilities_N=expit(logits),
        patient_N=drawn.patient_N,
        multiplicity_RP=drawn.multiplicity_RP,
        groups={},
        weights_N=np.ones(len(labels)),
    )


def test_isotonic_is_scikit_learns_but_never_certain(rng):
    labels, logits = sample(rng, 0.8, -1.0, 400)
    fit = fit_calibration(labels, logits, "isotonic")
    known = IsotonicRegression(out_of_bounds="clip").fit(logits, labels)
    expected = np.clip(known.predict(logits), 1 / 402, 401 / 402)
    np.testing.assert_allclose(apply_calibration(logits, fit), expected)
    assert known.predict(logits).min() == 0  # with which a single case is infinitely unlikely
    assert apply_calibration(np.array([-99, 99]), fit) == pytest.approx([1 / 402, 401 / 402])
    assert json.loads(json.dumps(fit)) == fit


def test_slope_and_offset_are_applied_as_a_head_would():
    fit = {"kind": "platt", "slope": 2.0, "offset": -1.0}
    assert apply_calibration(np.array([0.5, 1.0]), fit) == pytest.approx([0.5, expit(1.0)])


@pytest.mark.parametrize("tied", [False, True])
def test_the_curve_is_that_of_scikit_learn(rng, tied):
    labels, logits = sample(rng, 0.7, -0.5, 1000)
    probabilities = np.round(expit(logits), 1) if tied else expit(logits)
    data = replace(label_sample(labels, logits), probabilities_N=probabilities)
    result = assess_calibration(data)
    known = sk.calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    for part, values in zip(("observed", "predicted"), known, strict=True):
        np.testing.assert_allclose([point[part] for point in result["curve"]], values)
    count = np.array([point["n"] for point in result["curve"]])
    assert count.sum() == 1000 and (tied or set(count) == {100})
    error = np.sum(count * np.abs(known[0] - known[1])) / 1000
    assert result["ece"]["value"] == pytest.approx(error)


@pytest.mark.parametrize("positive", [6, 60])
def test_the_interval_of_observed_over_expected_is_symmetric_on_the_log_scale(rng, positive):
    labels = (np.arange(400) < positive).astype(float)
    found = assess_calibration(label_sample(labels, labels + rng.normal(size=400) - 2))["o_e"]
    assert found["method"] == "t on the log scale"
    assert found["low"] * found["high"] == pytest.approx(found["value"] ** 2)
    # the relative error of a count of so many, for the t quantile of their number
    spread = np.log(found["high"] / found["value"]) / stats.t.ppf(0.975, positive - 1)
    assert spread == pytest.approx(1 / np.sqrt(positive), rel=0.25)


def test_slope_and_intercept_are_those_of_statsmodels(rng):
    labels, logits = sample(rng, 0.6, -0.4, 1500)
    glm = sm.GLM(labels, sm.add_constant(logits), family=sm.families.Binomial()).fit()
    assert fit_slope(labels, logits) == pytest.approx(tuple(glm.params), rel=1e-6)
    shift = sm.GLM(labels, np.ones(1500), family=sm.families.Binomial(), offset=logits).fit()
    assert fit_intercept(labels, logits) == pytest.approx(shift.params[0], rel=1e-6)
    result = assess_calibration(label_sample(labels, logits))
    for part, value in (("slope", glm.params[1]), ("intercept", shift.params[0])):
        assert result[part]["value"] == pytest.approx(value, rel=1e-6)
        assert result[part]["low"] < value < result[part]["high"]


@pytest.mark.slow
def test_one_newton_step_is_as_good_as_a_fit_of_every_replicate(rng):
    patients = np.repeat(np.arange(150), 3)
    labels, logits = sample(rng, 0.7, -0.5, 450)
    data = label_sample(labels, logits, patients, 120)
    refit = []
    for draw_P in data.multiplicity_RP:
        rows = np.repeat(np.arange(450), draw_P[data.patient_N])
        offset_and_slope = fit_slope(labels[rows], logits[rows])
        refit.append([offset_and_slope[1], fit_intercept(labels[rows], logits[rows])])
    slope, intercept = np.transpose(refit)
    result = assess_calibration(data)
    for part, values in (("slope", slope), ("intercept", intercept)):
        ends = np.quantile(values, [0.025, 0.975])
        width = ends[1] - ends[0]
        assert [result[part]["low"], result[part]["high"]] == pytest.approx(ends, abs=0.1 * width)


def test_intervals_widen_where_patients_repeat(rng):
    labels, logits = sample(rng, 1.0, 0.0, 300)
    alone = assess_calibration(label_sample(labels, logits))
    again = np.tile(np.arange(300), 4)
    four = assess_calibration(label_sample(np.tile(labels, 4), np.tile(logits, 4), again))
    for part in ("slope", "intercept"):
        width, twin = (part["high"] - part["low"] for part in (alone[part], four[part]))
        assert twin == pytest.approx(width, rel=0.15)  # not half of it


def test_perfect_calibration_is_in_the_interval_and_a_shift_is_not(rng):
    labels, logits = sample(rng, 1.0, 0.0, 3000)
    right = assess_calibration(label_sample(labels, logits))
    assert right["slope"]["low"] < 1 < right["slope"]["high"]
    assert right["intercept"]["low"] < 0 < right["intercept"]["high"]
    assert right["ece"]["low"] == 0 < right["ece"]["value"] < right["ece"]["high"]
    wrong = assess_calibration(label_sample(labels, 2 * logits + 1))
    assert wrong["slope"]["high"] < 0.7 and wrong["intercept"]["high"] < 0
    assert wrong["ece"]["low"] > 0.02
    observed = [point["observed"] for point in right["curve"]]
    assert observed == sorted(observed) and len(observed) == 10
    for point in right["curve"]:
        assert 0 <= point["low"] <= point["observed"] <= point["high"] <= 1


def test_an_ece_within_chance_has_a_lower_end_of_0(rng):
    drawn = [label_sample(*sample(rng, 1.0, 0.0, 400)) for _ in range(40)]
    low = [assess_calibration(data)["ece"]["low"] for data in drawn]
    assert np.mean(np.array(low) == 0) > 0.85


def test_separable_classes_have_no_slope():
    labels = np.r_[np.zeros(30), np.ones(30)]
    logits = np.linspace(-1, 1, 60)
    result = assess_calibration(label_sample(labels, logits))
    assert result["slope"]["value"] is None and result["slope"]["reason"] == "the classes are apart"
    assert np.isfinite(result["intercept"]["value"])
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_recalibration_is_scored_on_the_test_set():
    valid, test = make_predictions(num=3000, seed=1), make_predictions(num=2000, seed=2)
    fits = fit_calibrators(valid)
    result = evaluate_predictions(test, "binary", None, 100, calibrators=fits)["labels"]["afib"]
    assert set(result["recalibrated"]) == {"temperature", "platt", "isotonic"}
    for kind, own in result["recalibrated"].items():
        assert own["fit"]["fitted_on"] == "valid"
        changed = apply_calibration(test.logit_NK[:, 0], fits["afib"][kind])
        known = brier_score_loss(test.label_NK[:, 0], changed)
        assert own["brier"]["value"] == pytest.approx(known)
    # its logits are too high by far
    assert result["recalibrated"]["platt"]["ece"]["value"] < result["calibration"]["ece"]["value"]
