"""Decision curves: net benefit by its definition, and the lines of treating all and none."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint
from test_calibration import label_sample, sample

from hpc_ecg.evaluation.decision import THRESHOLDS, decision_curve, net_benefit


def test_net_benefit_is_cases_found_less_false_alarms_at_their_price(rng):
    labels, logits = sample(rng, 1.0, -1.0, 500)
    probabilities = 1 / (1 + np.exp(-logits))
    for threshold in (0.05, 0.2, 0.5, 0.9):
        _, fp, _, tp = confusion_matrix(labels, probabilities >= threshold).ravel()
        known = tp / 500 - fp / 500 * threshold / (1 - threshold)
        (found,) = net_benefit(labels, probabilities, np.array([threshold]))
        assert found == pytest.approx(known)


def test_treating_all_and_treating_none_have_their_known_benefit(rng):
    labels, logits = sample(rng, 1.0, -1.0, 500)
    curve = decision_curve(label_sample(labels, logits))
    prevalence, odds = labels.mean(), THRESHOLDS / (1 - THRESHOLDS)
    np.testing.assert_allclose(curve["treat_all"], prevalence - (1 - prevalence) * odds, atol=1e-12)
    assert set(curve["treat_none"]) == {0.0}
    known = net_benefit(labels, 1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(curve["net_benefit"], known, atol=1e-12)
    assert len({len(values) for values in curve.values()}) == 1


def test_a_calibrated_model_is_worth_more_than_treating_all_or_none(rng):
    labels, logits = sample(rng, 1.0, -1.0, 20_000)
    curve = {
        name: np.array(values)
        for name, values in decision_curve(label_sample(labels, logits, replicates=50)).items()
    }
    usual = (curve["threshold"] >= 0.1) & (curve["threshold"] <= 0.6)
    assert (curve["net_benefit"] > np.maximum(curve["treat_all"], 0))[usual].all()


def test_with_many_cases_the_interval_is_that_of_the_resamples(rng):
    labels, logits = sample(rng, 1.0, -1.0, 2000)
    data = label_sample(labels, logits, np.arange(2000) // 2, 400)
    curve = decision_curve(data, np.array([0.1, 0.3, 0.5]))
    drawn = []
    for draw_P in data.multiplicity_RP:
        rows = np.repeat(np.arange(2000), draw_P[data.patient_N])
        drawn.append(
            net_benefit(labels[rows], data.probabilities_N[rows], np.array([0.1, 0.3, 0.5]))
        )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    width = high - low
    assert np.abs(curve["low"] - low).max() < 0.15 * width.max()
    assert np.abs(curve["high"] - high).max() < 0.15 * width.max()


@pytest.mark.parametrize("patients", [60, 300])
def test_where_nobody_is_flagged_the_interval_is_what_so_many_patients_leave_possible(patients):
    labels = (np.arange(patients) < 10).astype(float)
    curve = decision_curve(label_sample(labels, np.full(patients, -9.0)), np.array([0.5, 0.8]))
    assert curve["net_benefit"] == [0, 0]
    most = proportion_confint(0, patients, method="wilson")[1]
    assert curve["high"] == pytest.approx([most, most], rel=0.1)
    assert curve["low"] == pytest.approx([-most, -4 * most], rel=0.1)  # a false alarm costs 1, 4


def test_flagging_one_patient_does_not_make_the_interval_jump():
    labels, logits = (np.arange(200) < 20).astype(float), np.full(200, -9.0)
    nobody = decision_curve(label_sample(labels, logits, replicates=500), np.array([0.5]))
    logits[0] = 9.0
    one = decision_curve(label_sample(labels, logits, replicates=500), np.array([0.5]))
    assert one["low"][0] == pytest.approx(nobody["low"][0], abs=0.01)
    assert one["high"][0] == pytest.approx(nobody["high"][0], abs=0.015)
