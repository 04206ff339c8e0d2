"""Strategies over seeds: the parts of the variance, Holm's correction, and how often it errs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from hpc_ecg.evaluation.comparisons import (
    SeedScores,
    _degrees_of_freedom,
    detectable_difference,
    estimate_mean,
    holm,
    non_inferior,
)
from hpc_ecg.evaluation.families import compare_strategies, probability_best
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.metrics import auroc
from hpc_ecg.evaluation.resampling import draw_resamples, ranking_replicates


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


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(3)
    for size in (1, 2, 7, 28):
        p_values = rng.random(size) ** 3
        p_values[: size // 3] = p_values[-1]  # ties
        expected = multipletests(p_values, method="holm")[1]
        assert holm(list(p_values)) == pytest.approx(expected, abs=1e-15)


def parts(values, common, own, num=9):
    """Replicates whose covariance over seeds is exactly common² for two seeds, and own² more for a
    seed with itself."""
    basis = np.linalg.qr(np.column_stack([np.ones(num), np.eye(num)[:, : len(values) + 1]]))[0]
    basis = basis[:, 1:] * np.sqrt(num - 1)  # mean 0, variance 1, uncorrelated
    rows = [v + common * basis[:, 0] + own * basis[:, s + 1] for s, v in enumerate(values)]
    return np.array(values), np.stack(rows)


def test_the_variance_adds_patients_and_seeds_and_counts_neither_twice():
    values, replicates = parts([0.70, 0.74, 0.78], common=0.03, own=0.02)
    estimate = estimate_mean(values, replicates, num_patients=101)
    patients, seeds = 0.03**2 * 101 / 100, 0.04**2 / 3  # what a seed has of its own is in the 0.04
    assert estimate.standard_error == pytest.approx(np.sqrt(patients + seeds))
    share = seeds / (patients + seeds)  # with 2 degrees of freedom, the divisor has squares only
    inverse = share**2 / 2 / (share**2 + (1 - share) ** 2) + (1 - share) ** 2 / 100
    freedom = 1 / inverse
    assert estimate.degrees_of_freedom == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * estimate.standard_error
    assert (estimate.low, estimate.high) == pytest.approx((0.74 - half, 0.74 + half))
    assert estimate.seed_sd == pytest.approx(0.04)
    assert estimate.sampling_sd == pytest.approx(np.sqrt((0.03**2 + 0.02**2 / 3) * 101 / 100))
    assert estimate.includes_seeds


def test_with_seeds_or_patients_alone_the_degrees_of_freedom_are_theirs():
    seeds_alone = estimate_mean(*parts([0.70, 0.74, 0.78], common=0.0, own=0.01), 101)
    assert seeds_alone.degrees_of_freedom == pytest.approx(2)
    patients_alone = estimate_mean(*parts([0.74, 0.74, 0.74], common=0.03, own=0.0), 101)
    assert patients_alone.degrees_of_freedom == pytest.approx(100)


def test_the_error_is_near_its_level_whatever_part_of_the_variance_seeds_have():
    """Exact for normal values, patients' variance known: the chance that |D̄| passes the t limit,
    averaged over the estimated variance of seeds."""
    middle = (np.arange(400) + 0.5) / 400
    for num_seeds, low, high in ((3, 4.5, 5.8), (5, 4.7, 5.1), (10, 4.7, 5.1)):
        ratio_K1 = np.exp(np.linspace(-4, 5, 19))[:, None]  # seeds' variance, in patients'
        seen_KM = ratio_K1 * stats.chi2.ppf(middle, num_seeds - 1) / (num_seeds - 1)
        freedom = np.vectorize(_degrees_of_freedom)(seen_KM / (1 + seen_KM), num_seeds - 1, 10**6)
        limit_KM = stats.t.ppf(0.975, freedom) * np.sqrt(1 + seen_KM)
        error_K = 100 * np.mean(2 * stats.norm.sf(limit_KM / np.sqrt(1 + ratio_K1)), axis=1)
        assert low < error_K.min() and error_K.max() < high


def test_the_mean_of_a_ranking_metric_has_the_interval_of_a_single_model():
    values, replicates = parts([0.97], common=0.02, own=0.0)
    estimate = estimate_mean(values, replicates, 30, metric="auroc")
    single = bootstrap_interval(0.97, replicates[0], metric="auroc", num_patients=30)
    assert (estimate.low, estimate.high) == pytest.approx((single["low"], single["high"]))
    assert estimate.low < 0.97 < estimate.high < 1.0
    assert estimate_mean(values, replicates, 30).high > 1.0


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
    assert pair.estimate.value == pytest.approx(0.01) and pair.p_adjusted < 1e-6


def test_all_pairs_are_compared_with_the_higher_one_first_and_on_all_seeds():
    scores = {
        "a": constant_seeds([0.70, 0.71], 0.01),
        "b": constant_seeds([0.75], 0.02, seed=1),
        "c": constant_seeds([0.72, 0.73], 0.01, seed=2),
    }
    pairs = {(p.first, p.second): p.seeds for p in compare_strategies(scores, 200)}
    assert pairs == {("b", "a"): [0, 1], ("c", "a"): [0, 1], ("b", "c"): [0, 1]}


def test_equal_predictions_do_not_differ():
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
            drawn = ranking_replicates(labels, score, draws.patient_N, draws.multiplicity_RP)
            seeds.replicate_R[s] = drawn["auroc"]
        scores[name] = seeds
    smaller_class = int(min(len(np.unique(patients[labels == c])) for c in (0, 1)))
    return compare_strategies(scores, smaller_class)[0].estimate.p_value


@pytest.mark.slow
def test_one_seed_errs_often_where_seeds_differ():
    """Why the report warns about one seed: this is far above one in twenty."""
    rng = np.random.default_rng(12)
    wrong = np.mean([simulated_p(rng, 1, seed_sd=0.3) < 0.05 for _ in range(100)])
    assert wrong > 0.25


def strategies(values, spread=0.02, num=4000):
    """One seed each, patients' parts independent."""
    return {
        name: constant_seeds([value], spread, num, seed=n)
        for n, (name, value) in enumerate(values.items())
    }


def test_the_chance_of_being_best_is_that_of_normal_means():
    scores = strategies({"a": 0.80, "b": 0.82}, num=40_000)
    chance = probability_best(scores, num_patients=10**6)
    assert chance["b"] == pytest.approx(stats.norm.cdf(0.02 / (0.02 * np.sqrt(2))), abs=0.01)
    assert sum(chance.values()) == pytest.approx(1.0)


def test_the_chance_of_being_best_accounts_for_shared_patients():
    shared = {"a": constant_seeds([0.80], 0.02), "b": constant_seeds([0.81], 0.02)}
    assert probability_best(shared, 100)["b"] == 1.0
    assert probability_best({"a": shared["a"], "b": shared["a"]}, 100) == {"a": 0.5, "b": 0.5}


def test_the_chance_of_being_best_counts_the_spread_over_seeds_once():
    """Patients' part none: the difference of two means over 3 seeds, with a t of 2 degrees."""
    rng, num = np.random.default_rng(1), 40_000
    spread = {"a": [0.79, 0.80, 0.81], "b": [0.815, 0.80, 0.83]}
    scores = {
        name: SeedScores(
            value=dict(enumerate(values)),
            replicate_R={s: v + rng.normal(0, 1e-6, num) for s, v in enumerate(values)},
        )
        for name, values in spread.items()
    }
    difference = np.subtract(spread["b"], spread["a"])
    expected = stats.t.cdf(difference.mean() / (difference.std(ddof=1) / np.sqrt(3)), 2)
    assert probability_best(scores, 10**6)["b"] == pytest.approx(expected, abs=0.01)
    # a spread that is no more than what the same patients do to the seeds is not counted again
    noisy = {
        name: SeedScores(
            value=dict(enumerate(values)),
            replicate_R={s: v + rng.normal(0, 0.03, num) for s, v in enumerate(values)},
        )
        for name, values in spread.items()
    }
    expected = stats.norm.cdf(difference.mean() / (0.03 * np.sqrt(2 / 3)))
    assert probability_best(noisy, 10**6)["b"] == pytest.approx(expected, abs=0.01)


def a_difference(value=0.004, spread=0.005):
    scores = {
        "a": constant_seeds([0.80 + value] * 2, spread, seed=1),
        "b": constant_seeds([0.80] * 2, 1e-9, seed=2),
    }
    (pair,) = compare_strategies(scores, 40)
    return pair


def test_non_inferiority_is_the_one_sided_t_test_against_the_margin():
    pair = a_difference()
    e = pair.estimate
    found = non_inferior(pair, 0.01)
    t = (e.value + 0.01) / e.standard_error
    assert found["p_value"] == pytest.approx(stats.t.sf(t, e.degrees_of_freedom))
    assert found["margin"] == 0.01 and found["low"] == e.low


@pytest.mark.parametrize("value", [-0.02, -0.008, -0.0002, 0.0, 0.001, 0.01])
def test_non_inferior_means_an_interval_above_minus_the_margin(value):
    e = a_difference().estimate
    shifted = replace(e, value=value, low=value - e.value + e.low, high=value - e.value + e.high)
    pair = replace(a_difference(), estimate=shifted)
    assert non_inferior(pair, 0.01)["is_non_inferior"] == (shifted.low > -0.01)
    single = replace(pair, estimate=replace(shifted, includes_seeds=False))
    assert not non_inferior(single, 0.01)["is_non_inferior"]
    assert 0 <= non_inferior(pair, 0.01)["p_value"] <= 1


@pytest.mark.parametrize("margin", [0.0, -0.01, float("nan")])
def test_a_margin_must_be_positive(margin):
    with pytest.raises(ValueError, match="the margin must be positive"):
        non_inferior(a_difference(), margin)


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_detectable_difference_is_that_of_statsmodels_t_test(power):
    e = a_difference().estimate
    freedom = e.degrees_of_freedom
    effect = TTestPower().solve_power(nobs=freedom + 1, alpha=0.05, power=power)
    expected = effect * np.sqrt(freedom + 1) * e.standard_error
    assert detectable_difference(e, power) == pytest.approx(expected, rel=1e-4)
