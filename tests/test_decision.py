"""Decision curves: net benefit by its definition, and the lines of treating all and none."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
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
    np.testing.assert_allclose(curve["net_benefit"], net_benefit(labels, 1 / (1 + np.exp(-logits))))
    assert len({len(values) for values in curve.values()}) == 1


def test_a_calibrated_model_is_worth_more_than_treating_all_or_none(rng):
    labels, logits = sample(rng, 1.0, -1.0, 20_000)
    curve = {
        name: np.array(values)
        for name, values in decision_curve(label_sample(labels, logits, replicates=50)).items()
    }
    usual = (curve["threshold"] >= 0.1) & (curve["threshold"] <= 0.6)
    assert (curve["net_benefit"] > np.maximum(curve["treat_all"], 0))[usual].all()


def test_the_interval_is_that_of_the_resamples(rng):
    labels, logits = sample(rng, 1.0, -1.0, 200)
    data = label_sample(labels, logits, np.arange(200) // 2, 60)
    curve = decision_curve(data)
    drawn = []
    for draw_P in data.multiplicity_RP:
        rows = np.repeat(np.arange(200), draw_P[data.patient_N])
        drawn.append(net_benefit(labels[rows], data.probabilities_N[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curve["low"], low, atol=1e-12)
    np.testing.assert_allclose(curve["high"], high, atol=1e-12)
