"""Subgroups: their levels, those too small for a number, and the test for interaction."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.meta_analysis import combine_effects
from test_metrics import make_predictions

from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.scores import evaluate_predictions
from hpc_ecg.evaluation.subgroups import heterogeneity, one_ecg_per_patient, subgroup_levels


def text(values):
    return np.array(values, dtype=object)


def test_levels_are_age_bands_and_columns_of_few_kinds():
    groups = {
        "machine": text([*"aabbccdd", ""]),
        "note": text([f"n{i}" for i in range(9)]),
        "one": text(["x"] * 9),
        "time": text(["2019-01-01", "2020-01-01"] * 4 + [""]),
        "sex": text(["F", "M"] * 4 + ["F"]),
        "age": np.array([49.9, 50, 64, 65, 79, 80, 300, np.nan, 20]),
    }
    levels = subgroup_levels(groups)
    assert list(levels) == ["age", "sex", "machine"]
    bands = ["< 50", *["50–64"] * 2, *["65–79"] * 2, *["≥ 80"] * 2, "not known", "< 50"]
    assert levels["age"].tolist() == bands
    assert levels["machine"].tolist() == [*"aabbccdd", "not known"]


def test_many_sites_are_all_listed():
    groups = {"site": text([f"s{i:02d}" for i in range(30)])}
    assert list(subgroup_levels(groups)) == ["site"]


def test_the_interaction_test_is_cochrans_q_where_levels_are_independent():
    rng = np.random.default_rng(2)
    value = np.array([0.80, 0.74, 0.77])
    noise = rng.normal(size=(3, 4000))
    noise -= noise.mean(axis=1, keepdims=True)
    noise = np.linalg.qr(noise.T)[0].T * np.sqrt(3999)  # uncorrelated to the last digit
    spread = np.array([0.01, 0.02, 0.015])
    many = np.full(3, 10**6)
    q, p = heterogeneity(value, value[:, None] + spread[:, None] * noise, many)
    # under the hypothesis, variances are those of the common AUROC
    weight = value * (1 - value) / spread**2
    common = np.average(value, weights=weight)
    known = combine_effects(value, common * (1 - common) / weight)
    assert q == pytest.approx(known.q, rel=1e-4)
    assert p == pytest.approx(stats.chi2.sf(known.q, 2), rel=1e-3)


def test_a_difference_of_two_levels_is_judged_by_its_own_variance():
    rng = np.random.default_rng(2)
    common = rng.normal(size=(1, 5000))
    replicates = 0.02 * common + 0.005 * rng.normal(size=(2, 5000)) + 0.8
    q, _ = heterogeneity(np.array([0.80, 0.82]), replicates, np.full(2, 10**6))
    difference = replicates[1] - replicates[0]
    # the common part is not in it
    assert q == pytest.approx(0.02**2 / difference.var(ddof=1), rel=0.1)


def test_a_level_without_an_error_is_no_proof_that_levels_differ():
    """10 positive patients without an error, against one whose AUROC is 0.985: 40 are too few."""
    rng = np.random.default_rng(3)
    replicates = np.stack([np.ones(2000), 0.985 + 0.006 * rng.normal(size=2000)])
    value = np.array([1.0, 0.985])
    _, p = heterogeneity(value, replicates, np.array([10, 40]))
    assert p > 0.2
    _, p = heterogeneity(np.array([1.0, 0.7]), replicates - [[0], [0.285]], np.array([40, 40]))
    assert p < 0.01


def groups_of(num, gap):
    """Predictions where women are ranked worse by `gap`."""
    predictions = make_predictions(num=num)
    sex = text(np.where(np.arange(num) // 2 % 2 == 0, "F", "M"))
    rng = np.random.default_rng(8)
    logit_NK = predictions.logit_NK + gap * (sex == "F")[:, None] * rng.normal(size=(num, 1))
    probability_NK = 1 / (1 + np.exp(-logit_NK))
    age = np.where(np.arange(num) < 8, 30.0, 70.0)
    groups = {"sex": sex, "age": age}
    return replace(predictions, logit_NK=logit_NK, probability_NK=probability_NK, groups=groups)


def rows_of(predictions):
    return evaluate_predictions(predictions, "binary", None, 300)["labels"]["afib"]["subgroups"]


def test_each_level_has_its_own_auroc_and_small_ones_a_reason():
    predictions = groups_of(800, 0.0)
    rows = {(row["group"], row["level"]): row for row in rows_of(predictions)}
    assert list(rows) == [("age", "< 50"), ("age", "65–79"), ("sex", "F"), ("sex", "M")]
    women = predictions.groups["sex"] == "F"
    known = roc_auc_score(predictions.label_NK[women, 0], predictions.logit_NK[women, 0])
    row = rows["sex", "F"]
    assert row["auroc"]["value"] == pytest.approx(known)
    assert row["auroc"]["low"] < known < row["auroc"]["high"]
    assert (row["n"], row["n_patients"]) == (400, 200)
    assert row["mean_prediction"] == pytest.approx(predictions.probability_NK[women, 0].mean())
    small = rows["age", "< 50"]
    assert small["reason"].startswith("fewer than 10") and "auroc" not in small
    assert small["interaction_p"] is None  # one level is left: nothing to compare
    assert 0 < row["interaction_p"] == row["interaction_p_holm"] < 1
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_true_difference_is_found_and_no_false_one():
    p_of = lambda rows: next(r["interaction_p"] for r in rows if r["group"] == "sex")  # noqa: E731
    assert p_of(rows_of(groups_of(3000, 3.0))) < 0.001
    assert p_of(rows_of(groups_of(3000, 0.0))) > 0.05


def test_the_unknown_level_is_left_out_of_the_test():
    predictions = groups_of(1200, 0.0)
    site = text(np.where(np.arange(1200) < 600, "a", ""))
    site[:300] = "b"
    predictions.groups["site"] = site
    worse = predictions.logit_NK.copy()
    worse[600:] *= -1  # the unknown ones are ranked the wrong way round
    rows = rows_of(replace(predictions, logit_NK=worse))
    rows = {row["level"]: row for row in rows if row["group"] == "site"}
    assert list(rows) == ["a", "b", "not known"]
    assert rows["not known"]["auroc"]["value"] < 0.5
    assert rows["a"]["interaction_p"] > 0.05


@pytest.mark.parametrize("timed", [True, False])
def test_one_ecg_is_each_patients_first(timed):
    predictions = make_predictions(num=400)  # two records of each patient
    time = text(["2020-05-01T10:00:00", "2019-05-01"] * 200 if timed else [""] * 400)
    predictions = replace(predictions, groups={"time": time})
    resamples = draw_resamples(predictions.patient_N, 100, 0)
    data = LabelSample.from_predictions(predictions, 0, resamples)
    result = one_ecg_per_patient(data)
    assert result["chosen_by"] == ("time" if timed else "record") and result["n"] == 200
    rows = slice(1, None, 2) if timed else slice(0, None, 2)
    known = roc_auc_score(predictions.label_NK[rows, 0], predictions.logit_NK[rows, 0])
    assert result["auroc"]["value"] == pytest.approx(known)
    assert result["auprc"]["low"] < result["auprc"]["value"] < result["auprc"]["high"]


def test_the_first_ecg_is_one_with_the_label():
    predictions = make_predictions(num=400)
    predictions.label_NK[::2] = np.nan
    result = evaluate_predictions(predictions, "binary", None, 50)["labels"]["afib"]
    assert result["one_ecg_per_patient"]["n"] == 200
    known = roc_auc_score(predictions.label_NK[1::2, 0], predictions.logit_NK[1::2, 0])
    assert result["one_ecg_per_patient"]["auroc"]["value"] == pytest.approx(known)
