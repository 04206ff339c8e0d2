"""Abstention: the rule is of validation, marks records, and is compared with random keeping."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from hpc_ecg.evaluation.abstention import (
    COVERAGES,
    check_rule,
    curve_rows,
    cut_of,
    fit_rule,
    spreads,
)
from hpc_ecg.evaluation.predictions import Predictions


def simulated(seed: int, wrong: float, num: int = 4000) -> tuple[Predictions, np.ndarray]:
    """Logits that are noise for a known part of the records, of doubt above 1: `wrong` of all."""
    rng = np.random.default_rng(seed)
    label_N = (rng.random(num) < 0.3).astype(float)
    logit_N = rng.normal(2 * label_N - 1.5, 1)
    is_noise_N = rng.random(num) < wrong
    logit_N[is_noise_N] = rng.normal(-0.8, 1, is_noise_N.sum())
    predictions = Predictions(
        record_N=np.arange(num).astype(str).astype(object),
        patient_N=(np.arange(num) // 2).astype(str).astype(object),
        labels=["af"],
        label_NK=label_N[:, None],
        logit_NK=logit_N[:, None],
        probability_NK=expit(logit_N)[:, None],
    )
    return predictions, is_noise_N + rng.random(num)


def test_doubt_that_knows_the_errors_beats_random_keeping_and_chance_does_not():
    valid, doubt_N = simulated(1, wrong=0.3)
    chance_N = np.random.default_rng(3).random(len(valid))
    rule = fit_rule(valid, {"chance": chance_N, "knows": doubt_N})
    assert rule["score"] == "knows"
    assert cut_of(rule, 0.7) == pytest.approx(1.0, abs=0.1)
    test, doubt_N = simulated(2, wrong=0.3)
    rows = {row["coverage"]: row for row in curve_rows(test, ["af"], doubt_N, rule, {})}
    assert list(rows) == list(COVERAGES) and rows[0.7]["kept"] == pytest.approx(0.7, abs=0.03)
    gain = rows[0.7]["auroc_gain"]
    kept = rows[0.7]["auroc"]["value"]
    assert gain["value"] == pytest.approx(kept - rows[1.0]["auroc"]["value"])
    assert gain["low"] > 0.03 and kept == pytest.approx(0.92, abs=0.02)
    rule = fit_rule(valid, {"chance": chance_N})
    for row in curve_rows(test, ["af"], np.random.default_rng(4).random(len(test)), rule, {})[1:]:
        assert row["auroc_gain"]["low"] < 0 < row["auroc_gain"]["high"], row["coverage"]


def test_rates_are_those_of_the_records_kept_at_the_threshold():
    test, doubt_N = simulated(2, wrong=0.3)
    rule = fit_rule(test, {"knows": doubt_N})
    point = {"af": {"youden": {"threshold": 0.4, "fitted_on": "valid"}}}
    row = curve_rows(test, ["af"], doubt_N, rule, point, 20)[4]
    kept_N = doubt_N <= cut_of(rule, 0.7)
    flagged_N = kept_N & (test.probability_NK[:, 0] >= 0.4)
    ill_N = test.label_NK[:, 0] == 1
    assert row["n"] == kept_N.sum()
    assert row["sensitivity"]["value"] == pytest.approx(
        ill_N[flagged_N].sum() / ill_N[kept_N].sum()
    )
    assert row["ppv"]["value"] == pytest.approx(ill_N[flagged_N].mean())
    brier = np.mean((test.probability_NK[:, 0] - test.label_NK[:, 0])[kept_N] ** 2)
    assert row["brier"]["value"] == pytest.approx(brier)


def test_doubt_that_never_differs_is_no_rule():
    valid, doubt_N = simulated(1, wrong=0.3, num=400)
    assert fit_rule(valid, {"same": np.zeros(400)}) == {}
    assert fit_rule(valid, {"same": np.zeros(400), "knows": doubt_N})["score"] == "knows"


def test_members_disagree_by_the_standard_deviation_over_them():
    logits_NMK = np.random.default_rng(0).normal(size=(5, 3, 2))
    found = spreads(logits_NMK)
    for name, values in (("probability_spread", expit(logits_NMK)), ("logit_spread", logits_NMK)):
        expected = [np.mean([np.std(v[:, k], ddof=1) for k in (0, 1)]) for v in values]
        np.testing.assert_allclose(found[name], expected)


GOOD = {"score": "distance", "percentiles": np.linspace(1.0, 2.0, 50).tolist()}


@pytest.mark.parametrize(
    "change",
    [
        {"score": "chance"},
        {"score": "logit_spread"},
        {"score": ["distance"]},
        {"percentiles": []},
        {"percentiles": [1.0, 2.0]},
        {"percentiles": ["1"] * 50},
        {"percentiles": [True] * 50},
        {"percentiles": [[1.0]] * 50},
        {"percentiles": GOOD["percentiles"][::-1]},
    ],
)
def test_a_rule_that_somebody_edited_is_refused_by_name(change):
    path = Path("abstention.json")
    assert check_rule(path, GOOD | {"curve": []}, members=1) == GOOD
    with pytest.raises(ValueError, match=r"abstention\.json is damaged"):
        check_rule(path, GOOD | change, members=1)


def test_a_fitted_rule_is_one_that_can_be_read():
    valid, doubt = simulated(1, 0.3, 500)
    for doubts, members in (({"distance": doubt}, 1), ({"logit_spread": np.round(doubt)}, 2)):
        rule = fit_rule(valid, doubts)
        assert check_rule(Path("x"), rule, members) == rule
