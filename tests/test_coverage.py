"""How often intervals and tests are right, by simulation: a small version of the tables that
tools/coverage_tables.py prints. Bounds are 95 % (or 5 %) and three standard errors."""

import argparse

import numpy as np
import pytest
from coverage_errors import type_1_error
from coverage_tables import (
    Design,
    main,
    one_model,
    sensitivities,
    true_auprc,
    two_models,
)
from sklearn.metrics import average_precision_score, roc_auc_score

pytestmark = pytest.mark.slow


def options(simulations, seed=0):
    return argparse.Namespace(simulations=simulations, replicates=300, seed=seed)


def percent(hits):
    return {name: 100 * np.mean(hit) for name, hit in hits.items()}


def test_the_truth_of_the_simulated_cohorts_is_that_of_a_very_large_one():
    design = Design(patients=200_000, prevalence=0.1, auroc=0.9)
    rng = np.random.default_rng(0)
    labels_N, *_ = design.draw(rng)
    scores_N = design.shift * labels_N + rng.normal(size=len(labels_N))
    assert roc_auc_score(labels_N, scores_N) == pytest.approx(0.9, abs=0.002)
    expected = true_auprc(design.shift, 0.1)
    assert average_precision_score(labels_N, scores_N) == pytest.approx(expected, abs=0.005)


def test_intervals_hold_the_truth_with_twenty_positive_patients_and_several_ecgs_each():
    held = percent(one_model(Design(patients=200, prevalence=0.1, auroc=0.9), options(500)))
    assert 92 <= held["auroc ours"] <= 98.5 and 92 <= held["auprc ours"] <= 98.5
    assert held["auroc percentile"] < held["auroc ours"]
    assert held["auroc old"] < 75 and held["auprc old"] < 75  # ECGs as if they were patients


def test_intervals_hold_the_truth_even_with_five_positive_patients():
    held = percent(one_model(Design(patients=300, positives=5, auroc=0.9), options(400)))
    assert held["auroc ours"] >= 92 and held["auprc ours"] >= 92
    assert held["auroc percentile"] < 87  # why it is not the percentiles


def test_intervals_of_a_sensitivity_hold_the_truth():
    held = percent(sensitivities(Design(patients=300, positives=20, auroc=0.9), options(400)))
    assert held["0.9 ours"] >= 92 and held["0.95 ours"] >= 92
    assert held["0.95 percentile"] < 90


def test_intervals_of_a_difference_hold_the_truth():
    held = percent(two_models(Design(patients=200, prevalence=0.2), options(500)))
    for name in ("auroc ours", "auprc ours", "auroc DeLong"):
        assert 92 <= held[name] <= 98.5


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "spread"), [(3, 0), (3, 2), (5, 1)])
def test_equal_strategies_are_found_to_differ_one_time_in_twenty(num_seeds, spread):
    wrong = type_1_error(num_seeds, spread, options(800, seed=1))
    for rate in wrong.values():
        assert 0.015 <= rate <= 0.073


def test_the_script_prints_a_line_per_row(capsys):
    main(["shares", "--simulations", "20", "--replicates", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "300 patients" in line]) == 5
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "no table nothing; there are intervals, few" in capsys.readouterr().err
