"""How often intervals and tests are right, by simulation: a small version of the tables that
tools/coverage_tables.py prints. Bounds are 95 % (or 5 %) and three standard errors."""

import argparse

import numpy as np
import pytest
from coverage_errors import type_1_error
from coverage_sites import SITE_TABLES, differences, judge, logits_of, true_values
from coverage_tables import (
    Design,
    main,
    one_model,
    sensitivities,
    true_auprc,
    two_models,
)
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score

from hpc_ecg.evaluation.sites import site_values

pytestmark = [pytest.mark.slow, pytest.mark.docs]


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


def test_equal_strategies_are_found_to_differ_over_sites_only_where_all_share_luck():
    """In the Gaussian limit, 10 sites with errors of 0.003 to 0.01."""
    found = {}
    for luck in (0.0, 0.005):
        rng, rows = np.random.default_rng(3), []
        for _ in range(250):
            error_k = rng.uniform(0.003, 0.01, 10)
            value_k = rng.normal(differences(rng, 10, 0.02, luck), error_k)
            rows.append(judge(rng, 0.02, [*zip(value_k, error_k**2, strict=True)]))
        found[luck] = 100 * np.array(rows)[:, :3].mean(axis=0)
    wrong, mean, new_site = found[0.0]
    assert wrong <= 9.5 and mean == 100 - wrong and 90 <= new_site <= 99
    assert found[0.005][0] > wrong


def test_the_true_values_of_sites_are_those_of_a_very_large_one():
    design = Design(patients=150_000, prevalence=0.3, auroc=0.9)
    rng = np.random.default_rng(0)
    label_N, patient_N, _ = design.draw(rng)
    logit_N = logits_of(design.shift * label_N + rng.normal(size=len(label_N)))
    found = site_values(label_N, logit_N, expit(logit_N), patient_N)
    true = true_values(np.array([[design.shift, logit(0.3)]]))
    for name, (value, _) in found.items():
        assert value == pytest.approx(true[name][0], rel=0.02), name


@pytest.mark.parametrize("name", SITE_TABLES)
def test_the_tables_of_sites_have_a_row_for_each_case(capsys, name):
    main([name, "--simulations", "2", "--sites", "3"])
    title, *lines = capsys.readouterr().out.split("\n")[1:-1]
    expected = {"sites": 6, "sites_gaussian": 8, "new_site": 9, "new_site_gaussian": 16}
    assert title == f"{name}: 2 simulations per row" and len(lines) == expected[name]
    assert all(" sites, " in line and "nan" not in line for line in lines)


def test_the_script_prints_a_line_per_row(capsys):
    main(["shares", "--simulations", "20", "--replicates", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "300 patients" in line]) == 5
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "no table nothing; there are intervals, few" in capsys.readouterr().err
