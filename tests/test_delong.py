"""DeLong's covariance against published numbers and a double loop over pairs of records."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hpc_ecg.evaluation.delong import delong, delong_difference

# DeLong, DeLong & Clarke-Pearson 1988: 43 patients with ovarian cancer, as printed in the SAS/STAT
# user's guide (PROC LOGISTIC, comparing ROC curves): albumin, total protein, K-G score, outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1   3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1   3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0   4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1   2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1   2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


def ovarian():
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 3], np.stack([table[:, 0], table[:, 1], 10 - table[:, 2]])


def cohort(seed, num_patients=40):
    """1 to 4 ECGs per patient, whose label may change, and two scores with ties."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    risk = rng.normal(size=num_patients)[patients]
    labels = (risk + rng.normal(size=len(patients)) > 0.8).astype(float)
    scores = [np.round(labels + risk + rng.normal(size=len(patients)), 1) for _ in range(2)]
    return labels, np.stack(scores), patients


def by_pairs(labels, scores, patients):
    """Obuchowski's formulas (1997), word by word, with every pair of records looked at."""
    names = np.unique(patients)
    place = {name: i for i, name in enumerate(names)}
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, num = len(positive), len(negative), len(names)
    auroc, x_sums, y_sums = [], [], []
    for score in scores:
        x, y, total = np.zeros(num), np.zeros(num), 0.0
        for i in positive:
            for j in negative:
                win = float(score[i] > score[j]) + 0.5 * float(score[i] == score[j])
                x[place[patients[i]]] += win / n
                y[place[patients[j]]] += win / m
                total += win
        auroc.append(total / (m * n))
        x_sums.append(x)
        y_sums.append(y)
    m_i = np.array([np.sum(patients[positive] == name) for name in names])
    n_i = np.array([np.sum(patients[negative] == name) for name in names])
    i10, i01 = np.sum(m_i > 0), np.sum(n_i > 0)
    covariance = np.zeros((len(scores), len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            xa, xb = x_sums[a] - m_i * auroc[a], x_sums[b] - m_i * auroc[b]
            ya, yb = y_sums[a] - n_i * auroc[a], y_sums[b] - n_i * auroc[b]
            s10 = i10 / ((i10 - 1) * m) * np.sum(xa * xb)
            s01 = i01 / ((i01 - 1) * n) * np.sum(ya * yb)
            s11 = num / (num - 1) * (np.sum(xa * yb) + np.sum(xb * ya))
            covariance[a, b] = s10 / m + s01 / n + s11 / (m * n)
    return np.array(auroc), covariance


def test_the_published_example_is_reproduced():
    labels, scores = ovarian()
    auroc_M, covariance_MM = delong(labels, scores, np.arange(len(labels)))
    assert auroc_M == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    assert np.sqrt(np.diag(covariance_MM)) == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
    contrast = np.array([[1, 0, -1], [0, 1, -1]])  # each against the K-G score
    difference = contrast @ auroc_M
    covariance = contrast @ covariance_MM @ contrast.T
    assert difference @ np.linalg.solve(covariance, difference) == pytest.approx(2.5340, abs=5e-5)


@pytest.mark.parametrize("seed", range(3))
def test_patients_with_several_ecgs_and_both_labels_follow_obuchowskis_formulas(seed):
    labels, scores, patients = cohort(seed)
    both = [np.ptp(labels[patients == p]) > 0 for p in np.unique(patients)]
    assert np.sum(both) > 3  # the product of both classes is in it
    auroc_M, covariance_MM = delong(labels, scores, patients)
    expected_M, expected_MM = by_pairs(labels, scores, patients)
    assert auroc_M == pytest.approx(expected_M, abs=1e-12)
    assert auroc_M[0] == pytest.approx(roc_auc_score(labels, scores[0]), abs=1e-12)
    np.testing.assert_allclose(covariance_MM, expected_MM, atol=1e-14)


def test_copies_of_an_ecg_do_not_shrink_the_variance():
    """Only with patients as clusters: DeLong by record would halve the variance."""
    labels, scores = ovarian()
    once = delong(labels, scores, np.arange(43))[1]
    again = delong(np.tile(labels, 3), np.tile(scores, 3), np.tile(np.arange(43), 3))[1]
    np.testing.assert_allclose(again, once, rtol=1e-10)


def test_two_models_are_compared_with_an_interval_and_a_p_value():
    labels, scores = ovarian()
    found = delong_difference(labels, scores[0], scores[2], np.arange(43))
    assert found["difference"] == pytest.approx(0.0108, abs=5e-5)
    assert found["standard_error"] == pytest.approx(0.0953, abs=5e-5)
    assert found["p_value"] == pytest.approx(0.9102, abs=5e-5)
    assert found["low"] == pytest.approx(-0.1761, abs=5e-5)
    assert found["high"] == pytest.approx(0.1976, abs=5e-5)


def test_a_model_does_not_differ_from_itself():
    labels, scores = ovarian()
    found = delong_difference(labels, scores[0], scores[0], np.arange(43))
    assert (found["difference"], found["p_value"]) == (0.0, 1.0)


def test_a_class_of_one_patient_has_no_variance():
    labels = np.array([1.0, 1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="1 positive patient and 2 negative"):
        delong(labels, np.array([[4.0, 1.0, 2.0, 3.0]]), np.array(["a", "a", "b", "c"]))


@pytest.mark.parametrize("seed", range(3))
def test_an_ecg_of_weight_two_counts_as_two_of_its_patient(seed):
    labels, scores, patients = cohort(seed)
    weights = np.random.default_rng(seed).integers(1, 4, len(labels))
    again = np.repeat(np.arange(len(labels)), weights)
    found = delong(labels, scores, patients, weights.astype(float))
    for part, expected in zip(
        found, delong(labels[again], scores[:, again], patients[again]), strict=True
    ):
        np.testing.assert_allclose(part, expected, rtol=1e-10)
    expected = roc_auc_score(labels, scores[0], sample_weight=weights)
    assert found[0][0] == pytest.approx(expected)
