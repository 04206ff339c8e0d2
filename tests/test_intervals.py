"""Intervals of one model: their limits, and what they warn of."""

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.proportion import proportion_confint

from hpc_ecg.evaluation.events import scarce
from hpc_ecg.evaluation.intervals import FEW_PATIENTS, bootstrap_interval
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.scores import evaluate_predictions


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
    assert scarce(counts, FEW_PATIENTS) == "7 positive patients"
    assert scarce(counts | {"n_positive_patients": 20}, FEW_PATIENTS) is None
    counts = {"n_positive_patients": 90, "n_negative_patients": 1}
    assert scarce(counts, FEW_PATIENTS) == "1 negative patient"


def replicates_like(value, spread, num=20_000):
    return np.random.default_rng(1).normal(value, spread, num)


def test_average_precision_has_a_t_interval_on_the_logit_scale():
    value_R = special.expit(replicates_like(special.logit(0.9), 0.4))
    found = bootstrap_interval(0.9, value_R, metric="auprc", num_patients=12)
    half = stats.t.ppf(0.975, 11) * 0.4 * np.sqrt(12 / 11)
    expected = special.expit(special.logit(0.9) + np.array([-half, half]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=0.03)
    assert found["low"] < expected[0]  # a part of the bound that is 12 patients'
    many = bootstrap_interval(0.9, value_R, metric="auprc")
    expected = special.expit(special.logit(0.9) + 1.96 * np.array([-0.4, 0.4]))
    assert (many["low"], many["high"]) == pytest.approx(tuple(expected), abs=0.002)


def test_an_auroc_far_from_1_has_wilsons_interval_of_its_variance():
    value_R = replicates_like(0.8, 0.02)
    found = bootstrap_interval(0.8, value_R, metric="auroc", num_patients=200)
    num = 0.8 * 0.2 / (0.02**2 * 200 / 199)
    expected = proportion_confint(0.8 * num, num, method="wilson")
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=2e-3)


def test_near_1_an_interval_grows_into_the_bound_of_the_patients_and_does_not_jump():
    """With hardly any error seen, 20 patients allow what 20 cases without an error allow."""
    lows = [
        bootstrap_interval(v, replicates_like(v, sd), metric="auroc", num_patients=20)["low"]
        for v, sd in ((0.9982, 0.0018), (0.9998, 0.0002), (0.99999, 0.00001))
    ]
    assert all(0.75 < low < 0.92 for low in lows)
    at_1 = bootstrap_interval(1.0, np.ones(50), metric="auroc", num_patients=20)["low"]
    assert abs(lows[-1] - at_1) < 0.04


@pytest.mark.parametrize("metric", ["sensitivity", "specificity", "ppv", "npv", "f1", "brier"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rates_and_losses_do_not_jump_at_their_edges(metric, mirrored):
    """One, two, three of 300 patients make all of the error: no more certain than none of 300."""
    ends = []
    for errors in (0, 1, 2, 3):
        value_R = np.random.default_rng(1).poisson(errors, 20_000) / 300
        value, value_R = errors / 300, np.minimum(value_R, 1)
        if mirrored:
            value, value_R = 1 - value, 1 - value_R
        found = bootstrap_interval(value, value_R, metric, num_patients=300)
        ends.append(1 - found["low"] if mirrored else found["high"])
    exact = [proportion_confint(k, 300, method="beta")[1] for k in range(4)]
    assert ends == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("metric", ["intercept", "slope"])
def test_few_patients_give_slope_and_intercept_t_limits(metric):
    found = bootstrap_interval(1.0, replicates_like(1.0, 0.1), metric, num_patients=6)
    half = stats.t.ppf(0.975, 5) * 0.1 * np.sqrt(6 / 5)
    assert (found["low"], found["high"]) == pytest.approx((1 - half, 1 + half), rel=0.02)


@pytest.mark.parametrize("skew", [-1.0, 0.0, 0.5, 1.5])
def test_few_patients_give_a_log_loss_t_limits_on_the_log_scale_further_above_for_skewness(skew):
    z = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    z = stats.pearson3.ppf(stats.norm.cdf(z), skew)
    value_R = 0.2 * (1 + 0.02 * z)
    found = bootstrap_interval(0.2, value_R, "log_loss", num_patients=6)
    error, quantile = np.std(np.log(value_R)) * np.sqrt(6 / 5), stats.t.ppf(0.975, 5)
    more = max(skew, 0) * (2 * 1.96**2 + 1) / 12
    expected = 0.2 * np.exp([-quantile * error, (quantile + more) * error])
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), rel=1e-3)


@pytest.mark.parametrize("num_patients", [1, 2, 4])
def test_a_log_loss_of_very_few_patients_has_no_limits_and_says_why(num_patients):
    found = bootstrap_interval(0.1, replicates_like(0.1, 0.05), "log_loss", num_patients)
    assert (found["value"], found["low"], found["high"]) == (0.1, None, None)
    assert f"only {num_patients} patient" in found["warning"]


def test_a_proportion_of_independent_patients_has_wilsons_interval():
    """A replicate of n patients with k hits is binomial; statsmodels has Wilson's interval."""
    value_R = np.random.default_rng(1).binomial(500, 0.9, 200_000) / 500
    found = bootstrap_interval(0.9, value_R, metric="sensitivity")
    expected = proportion_confint(450, 500, method="wilson")
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("metric", ["auroc", "auprc", "sensitivity"])
def test_at_0_and_1_the_interval_is_that_of_the_number_of_patients(metric):
    found = bootstrap_interval(1.0, np.ones(50), metric=metric, num_patients=20)
    square = stats.t.ppf(0.975, 19) ** 2
    low = 20 / (20 + square)  # Wilson's with a t quantile; Clopper and Pearson's is close
    assert (found["low"], found["high"]) == pytest.approx((low, 1))
    assert low == pytest.approx(proportion_confint(20, 20, method="beta")[0], abs=0.015)
    if metric == "auprc":
        return  # it is never 0
    found = bootstrap_interval(0.0, np.zeros(50), metric=metric, num_patients=20)
    assert (found["low"], found["high"]) == pytest.approx((0.0, 1 - low))


@pytest.mark.parametrize("metric", ["auroc", "sensitivity"])
def test_one_patient_tells_nothing(metric):
    found = bootstrap_interval(0.9, replicates_like(0.9, 0.01), metric=metric, num_patients=1)
    assert (found["low"], found["high"]) == (0.0, 1.0)


@pytest.mark.parametrize("metric", ["auroc", "auprc", "sensitivity", "ppv"])
@pytest.mark.parametrize("value", [1e-7, 0.3, 0.99999])
@pytest.mark.parametrize("num_patients", [2, 7, None])
def test_an_interval_contains_its_value_and_stays_between_0_and_1(metric, value, num_patients):
    value_R = np.clip(replicates_like(value, 0.05), 0, 1)
    found = bootstrap_interval(value, value_R, metric=metric, num_patients=num_patients)
    assert 0 <= found["low"] <= value <= found["high"] <= 1


def test_other_metrics_have_the_percentiles():
    value_R = np.append(np.arange(1001.0), np.nan)
    found = bootstrap_interval(500.0, value_R, metric="mae")
    assert (found["low"], found["high"]) == pytest.approx((25.0, 975.0))
    assert found["replicates"] == 1001
    assert found["method"] == "percentile"
    assert found["warning"] == "1 replicate had one class only and was left out"


def test_without_replicates_there_is_no_interval():
    with pytest.raises(ValueError, match="only 1 of 3 replicates hold both classes"):
        bootstrap_interval(0.9, np.array([0.9, np.nan, np.nan]), metric="auroc", num_patients=5)


def test_repeat_ecgs_widen_the_interval():
    """Copies of each ECG hold no news: the interval by patient is that of the single ECGs."""
    labels, scores, patients = cohort(150)
    once = patient_intervals(labels, scores, patients, name="afib", replicates=500)["auroc"]
    again = [np.tile(a, 4) for a in (labels, scores, patients)]
    four = patient_intervals(*again, name="afib", replicates=500)["auroc"]
    assert four["low"] == pytest.approx(once["low"]) and four["high"] == pytest.approx(once["high"])
