"""Strategies over seeds: the parts of the variance, Holm's correction, and how often it errs."""

import numpy as np
import pytest

from hpc_ecg.evaluation.comparisons import SeedScores, compare_strategies, estimate_mean, holm
from hpc_ecg.evaluation.metrics import auroc
from hpc_ecg.evaluation.resampling import draw_resamples, ranked_replicates


def constant_seeds(values, spread, num=4000, seed=0):
    """Scores whose replicates have the standard deviation `spread`, the same in every seed."""
    noise = np.random.default_rng(seed).normal(0, spread, num)
    return SeedScores(
        value=dict(enumerate(values)), replicate_R={s: v + noise for s, v in enumerate(values)}
    )


def test_holm_is_the_step_down_rule():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_variance_has_a_part_of_patients_and_a_part_of_seeds():
    values = np.array([0.70, 0.74, 0.78])
    replicates = np.array([v + np.array([-0.03, 0.03]) for v in values])
    estimate = estimate_mean(values, replicates, num_patients=100)
    expected = np.var([-0.03, 0.03], ddof=1) + np.var(values, ddof=1) / 3
    assert estimate.standard_error == pytest.approx(np.sqrt(expected))
    assert estimate.seed_sd == pytest.approx(0.04)
    assert estimate.includes_seeds


def test_one_seed_holds_sampling_error_only_and_says_so():
    estimate = estimate_mean(np.array([0.7]), np.array([[0.68, 0.72]]), num_patients=100)
    assert not estimate.includes_seeds and estimate.seed_sd is None
    assert estimate.degrees_of_freedom == pytest.approx(99)


def test_a_difference_that_seeds_share_is_found_and_is_paired():
    """Both strategies move together over seeds and patients; only pairing sees the 0.01."""
    scores = {
        "a": constant_seeds([0.70, 0.80, 0.75], 0.03),
        "b": constant_seeds([0.69, 0.79, 0.74], 0.03),
    }
    (pair,) = compare_strategies(scores, num_patients=200)
    assert (pair.first, pair.second, pair.seeds) == ("a", "b", [0, 1, 2])
    assert pair.estimate.value == pytest.approx(0.01) and pair.p_holm < 1e-6


def test_all_pairs_are_compared_with_the_higher_one_first_and_on_shared_seeds():
    scores = {
        "a": constant_seeds([0.70, 0.71], 0.01),
        "b": constant_seeds([0.75], 0.02, seed=1),
        "c": constant_seeds([0.72, 0.73], 0.01, seed=2),
    }
    pairs = {(p.first, p.second): p.seeds for p in compare_strategies(scores, 200)}
    assert pairs == {("b", "a"): [0], ("c", "a"): [0, 1], ("b", "c"): [0]}


def test_equal_predictions_differ_by_nothing():
    scores = {"a": constant_seeds([0.7, 0.7], 0.02), "b": constant_seeds([0.7, 0.7], 0.02)}
    (pair,) = compare_strategies(scores, 50)
    assert pair.estimate.p_value == 1.0 and pair.estimate.low == pair.estimate.high == 0.0


def simulated_p(rng, num_seeds, seed_sd, num_patients=150):
    """One cohort, two strategies that are equally good on average: the p-value of their difference.
    Patients have 1 to 3 ECGs; each strategy sees patients in its own way; seeds differ."""
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    labels = (rng.random(num_patients) < 0.3).astype(float)[patients]

    def noise(by_patient, by_ecg):
        return (by_patient * rng.normal(size=num_patients))[patients] + by_ecg * rng.normal(
            size=len(patients)
        )

    common, scores = noise(0.7, 0.5), {}
    draws = draw_resamples(patients, 100, int(rng.integers(2**31)))
    for name in "ab":
        own, seeds = noise(0.4, 0.3), SeedScores(value={}, replicate_R={})
        for s in range(num_seeds):
            score = labels * (1 + seed_sd * rng.normal()) + common + own + noise(0, 0.4)
            seeds.value[s] = auroc(labels, score)
            drawn = ranked_replicates(labels, score, draws.patient_N, draws.multiplicity_RP)
            seeds.replicate_R[s] = drawn["auroc"]
        scores[name] = seeds
    smaller_class = int(min(len(np.unique(patients[labels == c])) for c in (0, 1)))
    return compare_strategies(scores, smaller_class)[0].estimate.p_value


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_strategies_that_do_not_differ_are_told_apart_about_one_time_in_twenty(num_seeds):
    rng = np.random.default_rng(11)
    wrong = np.mean([simulated_p(rng, num_seeds, seed_sd=0.1) < 0.05 for _ in range(200)])
    assert 0.005 <= wrong <= 0.10  # 0.05 ± 3 standard errors of 200 trials


def test_one_seed_errs_often_where_seeds_differ():
    """Why the report warns about one seed: this is far above one in twenty."""
    rng = np.random.default_rng(12)
    wrong = np.mean([simulated_p(rng, 1, seed_sd=0.3) < 0.05 for _ in range(100)])
    assert wrong > 0.25
