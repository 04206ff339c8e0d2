"""The summary over sites: published examples, variances, intervals at a new site, and the page."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from hpc_ecg.cli import main
from hpc_ecg.evaluation.delong import delong_difference
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.sites import (
    PRIOR_J,
    mean_difference,
    random_effects,
    site_differences,
    site_interval,
    site_values,
    summarize_sites,
)
from hpc_ecg.hashing import write_record

# BCG vaccine trials (Colditz et al. 1994): tuberculosis yes and no, vaccinated, then control.
BCG = np.array(
    [
        *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619)),
        *((33, 5036, 47, 5761), (180, 1361, 372, 1079), (8, 2537, 10, 619)),
        *((505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600)),
        *((186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
    ]
).T


def log_risk_ratios():
    a, b, c, d = BCG
    value_k = np.log(a / (a + b)) - np.log(c / (c + d))
    return value_k, 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def log_odds_ratios():
    a, b, c, d = BCG
    return np.log(a * d / (b * c)), 1 / a + 1 / b + 1 / c + 1 / d


def test_the_summary_agrees_with_published_results_of_metafor():
    """rma(yi, vi, test="knha") on log risk ratios: tau² 0.3132, -0.7145 (-1.1084, -0.3206);
    predict(), whose interval is normal there: -1.8667 to 0.4376. On log odds ratios, rma(yi, vi):
    tau² 0.3378, -0.7452, SE 0.1860."""
    found = random_effects(*log_risk_ratios())
    assert found["sd_between"] ** 2 == pytest.approx(0.3132, abs=5e-5)
    assert found["value"] == pytest.approx(-0.7145, abs=5e-5)
    assert [found["low"], found["high"]] == pytest.approx([-1.1084, -0.3206], abs=1e-4)
    half = (0.4376 + 1.8667) / 2 * stats.t.ppf(0.975, 11) / stats.norm.ppf(0.975)
    assert (found["t_high"] - found["t_low"]) / 2 == pytest.approx(half, abs=0.002)
    found = random_effects(*log_odds_ratios())
    assert found["sd_between"] ** 2 == pytest.approx(0.3378, abs=5e-5)
    assert found["value"] == pytest.approx(-0.7452, abs=5e-5)


@pytest.mark.parametrize("seed", range(6))
def test_no_spread_is_better_than_the_one_found(seed):
    rng = np.random.default_rng(seed)
    variance_k = rng.uniform(0.01, 1.0, rng.integers(2, 9))
    value_k = rng.normal(0, np.sqrt(variance_k + rng.choice([0.0, 0.2, 5.0])))

    def likelihood(tau2):
        weight_k = 1 / (variance_k + tau2)
        mean = np.average(value_k, weights=weight_k)
        log_weights = np.log(weight_k).sum() - np.log(weight_k.sum())
        return log_weights - weight_k @ (value_k - mean) ** 2

    found = random_effects(value_k, variance_k)["sd_between"] ** 2
    others = np.concatenate([[0.0], np.geomspace(1e-6, 100, 4000)])
    assert likelihood(found) >= max(likelihood(tau2) for tau2 in others) - 1e-6


def test_sites_that_agree_by_chance_give_no_narrower_interval_than_a_common_value():
    value_k, variance_k = np.array([1.0, 1.001, 0.999]), np.full(3, 0.09)
    found = random_effects(value_k, variance_k)
    assert found["sd_between"] == 0
    half = (found["high"] - found["low"]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * np.sqrt(0.03))
    assert found["t_high"] - found["value"] == pytest.approx(stats.t.ppf(0.975, 1) * 0.03**0.5)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_a_new_site_is_predicted_as_often_as_stated(spread):
    """Eight sites with errors of 0.1 to 0.4; the usual t covers 91 % with a spread of 0.1."""
    rng = np.random.default_rng(0)
    variance_nk = rng.uniform(0.1, 0.4, (200, 8)) ** 2
    value_nk = rng.normal(1.0, np.sqrt(variance_nk + spread**2))
    new_n = rng.normal(1.0, spread, 200)
    fits = [random_effects(*pair) for pair in zip(value_nk, variance_nk, strict=True)]
    pairs = [*zip(fits, new_n, strict=True)]
    assert np.mean([fit["new_low"] < new < fit["new_high"] for fit, new in pairs]) > 0.92
    assert np.mean([fit["low"] < 1.0 < fit["high"] for fit in fits]) > 0.92


def test_the_distribution_of_the_spread_is_that_of_drawn_ones():
    """Cochran's Q at the true variance is chi-square: draw it, solve for the variance, then draw
    the mean and the new site."""
    value_k, variance_k = log_risk_ratios()
    rng, grid_T = np.random.default_rng(0), np.concatenate([[0], np.geomspace(1e-5, 1e3, 20000)])
    weight_Tk = 1 / (variance_k + grid_T[:, None])
    mean_T = weight_Tk @ value_k / weight_Tk.sum(1)
    q_T = (weight_Tk * (value_k - mean_T[:, None]) ** 2).sum(1)
    tau2 = np.interp(rng.chisquare(12, 200_000), q_T[::-1], grid_T[::-1])
    error2 = np.interp(tau2, grid_T, 1 / weight_Tk.sum(1))
    drawn = rng.normal(np.interp(tau2, grid_T, mean_T), np.sqrt(tau2 + error2))
    found = random_effects(value_k, variance_k)
    ends = np.quantile(drawn, [0.025, 0.975])
    assert [found["new_low"], found["new_high"]] == pytest.approx(ends, abs=0.03)


@pytest.mark.parametrize("measure", ["auroc", "slope", "observed_expected"])
def test_with_few_sites_only_the_auroc_has_a_prior_for_their_spread(measure):
    variance = 0.0004 / (0.8 * 0.2) ** 2 if measure == "auroc" else 0.0004
    one, two = (summarize_sites(measure, [(0.8, variance)] * k) for k in (1, 2))
    assert one["low"] is None and two["low"] is not None
    if measure == "auroc":
        assert np.sqrt(PRIOR_J).mean() == pytest.approx(0.055, abs=2e-4)
        assert np.sqrt(PRIOR_J).std() == pytest.approx(0.015, abs=3e-4)
        half = stats.norm.ppf(0.975) * np.sqrt(2 * PRIOR_J.mean() + 0.0004)
        assert [one["new_low"], one["new_high"]] == pytest.approx(
            [0.8 - half, 0.8 + half], abs=5e-3
        )
        assert one["new_high"] > two["new_high"] > 0.8 + 1.96 * 0.055
        half = stats.norm.ppf(0.975) * np.sqrt((PRIOR_J.mean() + 0.0004) / 2)
        assert [two["low"], two["high"]] == pytest.approx([0.8 - half, 0.8 + half], abs=5e-3)
        top = summarize_sites(measure, [(0.97, 1e-4 / (0.97 * 0.03) ** 2)])
        assert top["new_high"] == 1.0
    else:
        assert [s[k] for s in (one, two) for k in ("new_low", "new_high")] == [None] * 4
    three = summarize_sites(measure, [(0.8, variance)] * 3)
    assert three["new_low"] < 0.8 < three["new_high"]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -1.0])
def test_a_variance_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a finite variance above 0"):
        random_effects(np.array([1.0, 2.0]), np.array([1.0, bad]))


def make_site(seed, num_patients=400, ecgs=3, slope=1.0, shift=0.0):
    """Labels, logits and patients, whose logits are right for slope 1 and shift 0."""
    rng = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(num_patients), ecgs)
    logit_N = rng.normal(-1, 1.2, num_patients)[patient_N] + rng.normal(0, 0.4, len(patient_N))
    truth_P = expit(slope * logit_N.reshape(-1, ecgs).mean(1) + shift)
    label_N = (rng.random(num_patients) < truth_P).astype(float)[patient_N]
    return label_N, logit_N, patient_N


@pytest.mark.parametrize("ecgs", [1, 4])
def test_variances_of_a_site_are_those_that_cohorts_show(ecgs):
    """Patients with several equally labelled ECGs count as one."""
    cohorts = [make_site(seed, 300, ecgs) for seed in range(120)]
    found = [site_values(y, x, expit(x), patients) for y, x, patients in cohorts]
    for measure, to_scale in (("auroc", logit), ("slope", float), ("observed_expected", np.log)):
        values, variances = zip(*(site[measure] for site in found), strict=True)
        shown = np.var([to_scale(value) for value in values])
        assert np.mean(variances) == pytest.approx(shown, rel=0.35), measure


def test_the_interval_of_a_site_is_turned_back_from_its_scale():
    low, high = site_interval("auroc", 0.9, 0.04)
    assert [logit(low), logit(high)] == pytest.approx(
        logit(0.9) + np.array([-1, 1]) * 1.96 * 0.2, 1e-4
    )
    low, high = site_interval("observed_expected", 2.0, 0.01)
    assert [low, high] == pytest.approx(2 * np.exp(np.array([-1, 1]) * 1.95996 * 0.1))


def test_a_measure_that_a_site_does_not_have_is_left_out():
    label_N, patient_N = np.array([0.0, 0, 0, 1, 1, 1]), np.arange(6)
    found = site_values(label_N, np.arange(6.0), np.full(6, 0.5), patient_N)
    assert found.keys() == {"observed_expected"}
    with pytest.raises(ValueError, match="a variance needs at least 2 of each"):
        site_values(np.array([0.0, 0, 1]), np.arange(3.0), np.full(3, 0.5), np.arange(3))


def test_an_ecg_of_weight_two_counts_as_two_in_every_measure():
    label_N, logit_N, patient_N = make_site(0, 200, 2, slope=0.8)
    weights = np.random.default_rng(0).integers(1, 4, len(label_N))
    again = np.repeat(np.arange(len(label_N)), weights)
    arrays = label_N, logit_N, expit(logit_N), patient_N
    found = site_values(*arrays, weights.astype(float))
    expected = site_values(*(array[again] for array in arrays))
    for measure, pair in expected.items():
        assert found[measure] == pytest.approx(pair, rel=1e-5), measure


def two_models(seed, seeds=(2, 2), spread=0.0, num_patients=300):
    """Labels, patients, and by model the scores of its seeds, whose quality has this spread."""
    label_N, logit_N, patient_N = make_site(seed, num_patients, 2)
    rng = np.random.default_rng(seed + 1000)
    scores = {
        name: [
            logit_N + spread * rng.normal() * label_N + 0.5 * rng.normal(size=len(label_N))
            for _ in range(num)
        ]
        for name, num in zip("ab", seeds, strict=True)
    }
    return label_N, patient_N, scores


def test_a_difference_at_a_site_is_paired_by_patient():
    label_N, patient_N, scores = two_models(0, seeds=(1, 1))
    found = site_differences(scores, [("b", "a")], label_N, patient_N)
    expected = delong_difference(label_N, scores["b"][0], scores["a"][0], patient_N)
    value, variance = found["b", "a"]
    assert value == pytest.approx(expected["difference"])
    assert variance == pytest.approx(expected["standard_error"] ** 2)
    same = {"a": scores["a"], "b": scores["a"]}
    assert site_differences(same, [("a", "b")], label_N, patient_N) == {}


@pytest.mark.parametrize(("seeds", "spread"), [((1, 1), 0.0), ((3, 3), 0.6), ((5, 1), 0.0)])
def test_the_variance_of_a_difference_is_the_one_that_sites_show(seeds, spread):
    found = []
    for number in range(150):
        label_N, patient_N, scores = two_models(number, seeds, spread, 100)
        found.append(site_differences(scores, [("a", "b")], label_N, patient_N)["a", "b"])
    values, variances = zip(*found, strict=True)
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.35)


@pytest.mark.parametrize("num_sites", [2, 3, 7])
def test_the_mean_difference_is_tested_with_one_degree_of_freedom_less_than_sites(num_sites):
    """Where all sites say the same of each other, Hartung and Knapp's test is Student's."""
    values = dict(zip("abcdefg", np.linspace(-0.02, 0.10, num_sites), strict=False))
    estimate, more = mean_difference({s: (v, 1e-9) for s, v in values.items()}, True)
    expected = stats.ttest_1samp([*values.values()], 0)
    assert estimate.value == pytest.approx(0.04) and estimate.includes_seeds
    assert estimate.p_value == pytest.approx(expected.pvalue, rel=1e-3)
    assert [estimate.low, estimate.high] == pytest.approx(expected.confidence_interval(), rel=1e-3)
    assert more["sites"]["a"] == pytest.approx([-0.02, -0.02 - 6.2e-5, -0.02 + 6.2e-5], abs=1e-6)
    assert (more["new_low"] is None) == (num_sites == 2)
    if num_sites > 2:
        assert more["new_low"] < estimate.low and estimate.high < more["new_high"]


def write_site(
    folder, seed, labels=("af",), probabilities=True, file="predictions.parquet", **options
):
    label_N, logit_N, patient_N = make_site(seed, **options)
    shape = (1, len(labels))
    logit_NK = np.tile(logit_N[:, None], shape)
    predictions = Predictions(
        record_N=np.array([f"r{i}" for i in range(len(label_N))], dtype=object),
        patient_N=patient_N.astype(str).astype(object),
        labels=list(labels),
        label_NK=np.tile(label_N[:, None], shape),
        logit_NK=logit_NK,
        probability_NK=expit(logit_NK) if probabilities else None,
    )
    path = folder / file
    write_predictions(path, predictions)
    write_record(folder / "evaluation.json", {"labels": {}}, [path])
    return str(folder)


def test_the_page_says_what_to_expect_at_the_next_hospital(tmp_path, capfd):
    sites = [write_site(tmp_path / name, k, shift=0.3 * k) for k, name in enumerate("abc")]
    of_run = "predictions/test.parquet"  # as in the folder of a run that left the site out
    sites.append(write_site(tmp_path / "d", 3, file=of_run, shift=0.9))
    out = tmp_path / "across"
    assert main(["report", "--across", *sites, "--out", str(out)]) == 0
    assert f"report: {out / 'index.html'}" in capfd.readouterr().out
    page, result = (out / "index.html").read_text(), json.loads((out / "across.json").read_text())
    label = result["labels"]["af"]
    assert result["sites"] == sites and page.count("<svg") == 3
    oe = [row["observed_expected"] for row in label["table"][:4]]
    assert oe[0] < oe[3] and label["table"][4]["site"] == "mean over sites"
    summary = label["summary"]
    assert summary.keys() == {"auroc", "slope", "observed_expected"}
    for measure in summary.values():
        assert measure["new_low"] < measure["low"] < measure["value"] < measure["high"]
        assert measure["high"] < measure["new_high"]
    assert "at a new site, 95 % prediction interval" in page and "van Leeuwen" not in page
    assert (out / "across.csv").read_text().count("\n") == 1 + 4 + 2
    assert main(["report", "--across", *sites[:1], "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "van Leeuwen 2025" in page and "cannot be said from 1 site" in page


def test_sites_that_do_not_belong_together_are_refused(tmp_path, capfd):
    a, b = (write_site(tmp_path / name, k) for k, name in enumerate("ab"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    same = write_site(tmp_path / "same", 0)
    other = write_site(tmp_path / "other", 3, labels=("death",))
    numbers = write_site(tmp_path / "numbers", 4, probabilities=False)
    (tmp_path / "empty").mkdir()
    edited = write_site(tmp_path / "edited", 5)
    write_site(tmp_path / "b2", 6)
    (tmp_path / "b2/predictions.parquet").rename(tmp_path / "edited/predictions.parquet")
    out = ["--out", str(tmp_path / "out")]
    for words, text in {
        (a, a, *out): "hold the same predictions",
        (a, same, *out): "same hold the same predictions",
        (a, other, *out): "other predicts ['death']",
        (numbers, *out): "needs one model's yes/no labels",
        (a, str(tmp_path / "empty"), *out): "empty is no evaluation",
        (a, edited, *out): "predictions.parquet has changed since",
        (a, b, "--out", str(tmp_path / "mine")): "index.html",
        (a, b): "give SWEEP_DIR, or --across",
    }.items():
        assert main(["report", "--across", *words]) == 2, text
        printed = capfd.readouterr().err
        assert text in printed and printed.count("\n") == 1
    assert main(["report"]) == 2
    assert (tmp_path / "mine/index.html").read_text() == "mine" and not (tmp_path / "out").exists()
