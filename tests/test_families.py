"""Families of differences: adjusted p-values and intervals that hold for all of them at once."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from hpc_ecg.evaluation import max_t
from hpc_ecg.evaluation.comparisons import SeedScores, estimate_mean
from hpc_ecg.evaluation.families import compare_family, compare_strategies, correct_best
from hpc_ecg.evaluation.max_t import Means, bias_of_best, judge_family, moderate


def sweep(rng, num, seeds, training_sd, patients_sd=0.01, replicates=200):
    """Equal strategies: patients move all seeds of one alike, training each seed on its own."""
    scores = {}
    for name in map(str, range(num)):
        mean = 0.8 + patients_sd * rng.normal()
        drawn_R = patients_sd * rng.normal(size=replicates)
        values = mean + training_sd * rng.normal(size=seeds)
        scores[name] = SeedScores(
            value=dict(enumerate(values.tolist())),
            replicate_R={s: v + drawn_R for s, v in enumerate(values)},
        )
    return scores


def means(value_K, patients_sd=1.0, seed_variance=0.0, known=0.0, seeds=3):
    num = len(value_K)
    return Means(
        value_K=np.array(value_K, dtype=float),
        patients_KK=np.eye(num) * patients_sd**2,
        patient_freedom=10**6,
        seed_variance_K=np.full(num, seed_variance),
        known_K=np.full(num, known),
        num_seeds_K=np.full(num, seeds),
    )


def all_pairs(num):
    return np.array(list(combinations(range(num), 2)))


def test_with_patients_alone_the_adjusted_p_is_that_of_the_studentized_range():
    family = judge_family(means([0.0, 1.0, 3.5, 0.5]), all_pairs(4))
    expected = stats.studentized_range.sf(np.abs(family.value_M), 4, np.inf)
    assert family.p_M == pytest.approx(expected, abs=0.01)
    assert family.error_M == pytest.approx(np.full(6, np.sqrt(2)))


def test_an_interval_excludes_0_exactly_where_the_adjusted_p_is_below_5_percent():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        for pair in compare_strategies(sweep(rng, 4, 3, 0.02), 500):
            is_outside = pair.low > 0 or pair.high < 0
            assert is_outside == (pair.p_adjusted < 0.05)
            assert pair.low <= pair.estimate.low <= pair.estimate.high <= pair.high
            assert pair.p_adjusted >= pair.estimate.p_value
            seen.add(is_outside)
    assert seen == {True, False}


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_strategies_of_noisy_training_are_seldom_found_to_differ(seeds, monkeypatch):
    """Holm's correction of pairwise t tests errs in 14 % with 6 strategies and 3 seeds."""
    monkeypatch.setattr(max_t, "DRAWS", 1000)
    rng, sd = np.random.default_rng(seeds), 0.01 * 1.5
    wrong = [
        any(pair.p_adjusted < 0.05 for pair in compare_strategies(sweep(rng, 6, seeds, sd), 500))
        for _ in range(300)
    ]
    assert np.mean(wrong) < 0.08


def test_a_difference_is_found_where_there_is_one():
    rng = np.random.default_rng(5)
    scores = sweep(rng, 6, 3, 0.005, patients_sd=0.004)
    scores["0"] = SeedScores(
        value={s: v + 0.06 for s, v in scores["0"].value.items()},
        replicate_R={s: r + 0.06 for s, r in scores["0"].replicate_R.items()},
    )
    better = [p for p in compare_strategies(scores, 500) if "0" in (p.first, p.second)]
    assert all(pair.first == "0" and pair.p_adjusted < 0.01 for pair in better)


def test_variances_are_moderated_towards_what_all_strategies_show():
    """Smyth 2004: variances drawn around 2 with 4 degrees of freedom give these back."""
    rng = np.random.default_rng(0)
    true_K = 2.0 * 4 / rng.chisquare(4, 20_000)
    seen_K = true_K * rng.chisquare(6, 20_000) / 6
    moderated_K, freedom_K = moderate(seen_K, np.full(20_000, 6))
    assert freedom_K[0] == pytest.approx(4 + 6, abs=0.3)
    slope, intercept = np.polyfit(seen_K, moderated_K, 1)
    assert (slope, intercept) == pytest.approx((0.6, 2.0 * 0.4), rel=0.03)


def test_equal_variances_are_pooled_and_zeros_are_left_alone():
    moderated_K, freedom_K = moderate(np.array([1.0, 1.0, 1.0, 0.0]), np.array([2, 2, 2, 2]))
    assert moderated_K == pytest.approx([1, 1, 1, 0], rel=0.01)
    assert freedom_K[:3] == pytest.approx([6, 6, 6])  # no more than all of them have


@pytest.mark.parametrize(
    ("freedom_K", "prior"),
    [
        ([2, 6], 1.0),
        ([2, 9, 9, 9], 1.5),
        ([1, 9, 9, 9], 1.5),  # as if it had 2
        ([2, 2, 9, 9], 3.0),
        ([2, 2, 2, 9], 4.5),
        ([2, 9, 9, 9, 0], 1.5),  # a fixed model takes no part
    ],
)
def test_the_prior_counts_for_less_where_others_have_more_seeds(freedom_K, prior):
    freedom_K = np.array(freedom_K)
    variance_K = np.where(freedom_K > 0, 1.0, 0.0)
    moderated_K, joint_K = moderate(variance_K, freedom_K)
    is_few_K = (freedom_K > 0) & (freedom_K < freedom_K.max())
    assert moderated_K == pytest.approx(variance_K)
    assert joint_K[is_few_K] == pytest.approx(freedom_K[is_few_K] + prior)
    assert joint_K[freedom_K == freedom_K.max()] == pytest.approx(freedom_K.sum())


def test_one_strategy_of_two_seeds_that_spreads_more_is_seldom_found_to_differ(monkeypatch):
    """8.4 % (5,000 sweeps) where its variance is averaged with that of the others unbounded."""
    monkeypatch.setattr(max_t, "DRAWS", 1000)
    rng, seeds_K = np.random.default_rng(0), np.array([2, 10, 10, 10])
    known = 0.5  # of the variance over seeds, beside what training adds
    seed_sd_K = np.sqrt(known + np.array([2.0, 0.5, 0.5, 0.5]) ** 2)
    wrong = []
    for _ in range(1000):
        score_KS = rng.normal(size=(4, 10)) * seed_sd_K[:, None]
        score_KS += rng.normal(size=(4, 1))
        given = [row_S[:num] for row_S, num in zip(score_KS, seeds_K, strict=True)]
        seen = replace(
            means([row_S.mean() for row_S in given], known=known),
            patients_KK=np.diag(1 + known / seeds_K),
            seed_variance_K=np.array([row_S.var(ddof=1) for row_S in given]),
            num_seeds_K=seeds_K,
        )
        wrong.append((judge_family(seen, all_pairs(4)).p_M < 0.05).any())
    assert np.mean(wrong) < 0.06


def test_seeds_that_happen_to_agree_do_not_make_the_interval_narrower_than_the_bootstraps():
    rng = np.random.default_rng(1)
    replicate_SR = 0.7 + 0.05 * rng.normal(size=(3, 2000))  # each seed fits the patients its way
    e = estimate_mean(np.array([0.7, 0.7, 0.7]), replicate_SR, 200)
    assert e.standard_error >= e.sampling_sd * 0.99
    assert e.standard_error == pytest.approx(0.05 / np.sqrt(3), rel=0.05)
    scores = {
        name: SeedScores(value={0: v, 1: v, 2: v}, replicate_R=dict(enumerate(rows)))
        for name, v, rows in (
            ("a", 0.70, replicate_SR),
            ("b", 0.69, 0.7 + 0.05 * rng.normal(size=(3, 2000))),
            ("c", 0.68, 0.7 + 0.05 * rng.normal(size=(3, 2000))),
        )
    }
    for pair in compare_strategies(scores, 200):
        assert pair.estimate.standard_error >= pair.estimate.sampling_sd * 0.99


def test_a_single_seed_is_compared_apart_and_takes_nothing_from_the_family():
    scores = sweep(np.random.default_rng(2), 3, 3, 0.01)
    alone = {(p.first, p.second): p.p_adjusted for p in compare_strategies(scores, 500)}
    single = SeedScores(value={0: 0.9}, replicate_R={0: 0.9 + np.zeros(200)})
    pairs = compare_strategies(scores | {"single": single}, 500)
    for pair in pairs:
        assert pair.estimate.includes_seeds == ("single" not in (pair.first, pair.second))
        if pair.estimate.includes_seeds:
            assert pair.p_adjusted == alone[pair.first, pair.second]


def test_a_fixed_model_is_known_from_one_score():
    scores = sweep(np.random.default_rng(3), 2, 3, 0.01)
    fixed = SeedScores(value={0: 0.5}, replicate_R={0: np.full(200, 0.5)}, is_fixed=True)
    pairs = [("0", "age"), ("1", "age")]
    found = compare_family(scores | {"age": fixed}, pairs, 500)
    assert [(p.first, p.second, p.seeds) for p in found] == [(*p, [0, 1, 2]) for p in pairs]
    assert all(p.estimate.includes_seeds and p.p_adjusted < 0.001 for p in found)
    (paired,) = compare_family({"0": scores["0"], "age": fixed}, pairs[:1], 500)
    expected = np.mean(list(scores["0"].value.values())) - 0.5
    assert paired.estimate.value == pytest.approx(expected)


def test_several_families_are_corrected_for_each_other():
    scores = sweep(np.random.default_rng(4), 3, 3, 0.01)
    one, four = compare_strategies(scores, 500), compare_strategies(scores, 500, 4)
    for single, many in zip(one, four, strict=True):
        assert many.p_adjusted == pytest.approx(min(1, 4 * single.p_adjusted), rel=0.01)
        assert many.low < single.low and many.high > single.high


def test_the_best_of_equal_strategies_is_too_high_by_the_expected_maximum():
    assert bias_of_best(means([0.0] * 6)) == pytest.approx(1.267, abs=0.02)  # of 6 normal values
    assert bias_of_best(means([0.0] * 2)) == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert bias_of_best(means([30.0, 0.0, 0.0])) == pytest.approx(0.0, abs=0.02)


def test_the_corrected_value_and_its_lower_limit_are_lower_and_need_two_seeds():
    scores = sweep(np.random.default_rng(6), 4, 3, 0.01)
    best = estimate_mean(*scores["0"].arrays(), 500)
    corrected = correct_best(scores, best, 500)
    assert corrected is not None and corrected.value < best.value
    assert best.low - corrected.low == pytest.approx(best.value - corrected.value)
    assert corrected.high == best.high
    single = SeedScores(value={0: 0.9}, replicate_R={0: np.full(200, 0.9)})
    assert correct_best(scores | {"single": single}, best, 500) is None


def test_the_detectable_difference_is_found_in_80_percent(monkeypatch):
    monkeypatch.setattr(max_t, "DRAWS", 1000)
    rng, found = np.random.default_rng(7), []
    for _ in range(300):
        scores = sweep(rng, 4, 5, 0.01)
        size = np.mean([p.detectable for p in compare_strategies(scores, 500)])
        first = scores["0"]
        shifted = {s: v + size for s, v in first.value.items()}
        scores["0"] = SeedScores(value=shifted, replicate_R=first.replicate_R)
        pairs = [p for p in compare_strategies(scores, 500) if "0" in (p.first, p.second)]
        found += [p.first == "0" and p.p_adjusted < 0.05 for p in pairs]
    assert 0.7 < np.mean(found) < 0.9
