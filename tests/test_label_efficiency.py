"""What more labelled patients are worth: the slope put in, and honesty where it is flat."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_compare import make_sweep

from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.label_efficiency import label_efficiency
from hpc_ecg.comparison.report import write_report
from hpc_ecg.evaluation.comparisons import SeedScores

pytestmark = pytest.mark.slow

SHARES = (0.1, 0.3, 1.0)


def sample(rng, slope, seeds=5, sd_patients=0.01, sd_seeds=0.003, bend=0.0):
    """Arms of three shares: patients shift all of them alike in part, seeds each on its own."""
    common, strategies, scores = rng.normal(0, sd_patients), [], {}
    draws_R = rng.normal(0, sd_patients, 400)
    for share in SHARES:
        own = rng.normal(0, sd_patients / 3)
        own_R = rng.normal(0, sd_patients / 3, 400)
        truth = 0.8 + slope * np.log2(share) + bend * np.log2(share) ** 2 + common + own
        value = {s: truth + rng.normal(0, sd_seeds) for s in range(seeds)}
        replicate = {s: value[s] + draws_R + own_R for s in value}
        name = f"a,label_fraction={share}"
        varied = {"data.label_fraction": share}
        strategies.append(
            SimpleNamespace(name=name, base="a", varied=varied, seeds=list(range(seeds)))
        )
        scores[name] = SeedScores(value=value, replicate_R=replicate)
    return strategies, scores


def test_the_interval_of_the_slope_holds_the_truth(rng):
    hits, slopes = 0, []
    for _ in range(200):
        (found,) = label_efficiency(*sample(rng, 0.01), num_patients=200)
        hits += found["slope"]["low"] <= 0.01 <= found["slope"]["high"]
        slopes.append(found["slope"]["value"])
    assert np.mean(slopes) == pytest.approx(0.01, abs=0.001)
    assert 0.9 <= hits / 200 <= 0.995


def test_a_steep_slope_says_how_many_more_and_a_flat_one_that_it_cannot_be_said(rng):
    (steep,) = label_efficiency(*sample(rng, 0.03, sd_patients=0.001), num_patients=200)
    slope, factor = steep["slope"], steep["factor"]
    assert factor["value"] == pytest.approx(2 ** (0.01 / slope["value"]))
    assert factor["low"] == pytest.approx(2 ** (0.01 / slope["high"]))
    assert factor["low"] < factor["value"] < factor["high"]
    assert steep["text"].endswith("if the line goes on, and more if the curve flattens")
    (flat,) = label_efficiency(*sample(rng, 0.0), num_patients=200)
    assert flat["slope"]["low"] < 0 < flat["slope"]["high"] and flat["factor"] is None
    assert flat["text"].endswith("how many more patients +0.01 needs cannot be said")


def test_a_curve_that_flattens_gives_a_lower_bound_and_no_factor(rng):
    """Along 0.8 + 0.002 x - 0.006 x² of x = log2 of the share, no number of patients gains 0.01."""
    (found,) = label_efficiency(*sample(rng, 0.002, sd_patients=0.001, bend=-0.006), 200)
    assert found["slope"]["low"] > 0 and found["factor"] is None
    least = 2 ** (0.01 / found["slope"]["high"])
    assert f"+0.01 needs more than {least:.3f} times the largest share" in found["text"]


@pytest.mark.parametrize(("keep", "seeds"), [(2, 3), (3, 1)])
def test_two_shares_or_one_seed_have_no_slope(rng, keep, seeds):
    strategies, scores = sample(rng, 0.01, seeds=seeds)
    assert label_efficiency(strategies[:keep], scores, 200) == []


def test_the_report_prints_it(tmp_path):
    arms = {f"a,label_fraction={share}": 0.5 + share for share in SHARES}
    make_sweep(tmp_path, arms)
    for share in SHARES:
        about = {"base": "a", "varied": {"data.label_fraction": share}}
        (tmp_path / f"a,label_fraction={share}/arm.json").write_text(json.dumps(about))
    (found,) = compare(tmp_path, 50).efficiency
    assert found["slope"]["value"] > 0
    page = write_report(tmp_path, 50).page.read_text()
    assert "for each doubling of the training patients" in page
