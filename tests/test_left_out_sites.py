"""Sweeps that leave out one site at a time: who is trained on, what is refused, and the report."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from conftest import reseal, words_for
from scipy import stats
from scipy.special import expit, logit
from test_baselines import MEASURED
from test_compare import make_run, make_test_set
from test_sweep import words_of_sweep

from hpc_ecg.cli import main
from hpc_ecg.cohort.table import WEIGHT_PREFIX
from hpc_ecg.comparison import across, baselines
from hpc_ecg.comparison.across import _compare, _sentences, _summarize
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.flow import read_flow
from hpc_ecg.comparison.heartbeat import FEATURES
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_shards
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.views import leave_out_site
from hpc_ecg.evaluation.comparisons import SeedScores, holm
from hpc_ecg.evaluation.metrics import auroc
from hpc_ecg.evaluation.predictions import Predictions, read_predictions, write_predictions
from hpc_ecg.evaluation.reliability import fit_slope
from hpc_ecg.evaluation.sites import (
    mean_over_seeds,
    random_effects,
    site_differences,
    site_values,
)
from hpc_ecg.hashing import SHA256, write_record
from hpc_ecg.safe_reading import read_json
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.sweep.folder import expected_cells
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.launch import _write_sweep, prepare_sweep
from hpc_ecg.sweep.left_out_sites import describe_design
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = pytest.mark.slow

KEYS = ("patient", "site", "split")


def index_of(*rows):
    return pd.DataFrame(rows, columns=KEYS)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "A", s) for s in ("train", "valid", "test")], ["test"] * 3),
        ([("b", "B", s) for s in ("train", "valid", "test")], ["train", "valid", "left_out"]),
        ([("c", "B", "train"), ("c", "A", "train")], ["left_out", "test"]),
        ([("d", "B", "valid"), ("d", "", "valid")], ["left_out", "left_out"]),
        ([("e", None, "train"), ("e", "A", "train")], ["left_out", "test"]),
        ([("f", "AB", "train")], ["train"]),
    ],
    ids=["the site", "another", "a patient of both", "unknown", "none and the site", "no prefix"],
)
def test_nobody_of_the_left_out_site_is_trained_on(rows, expected):
    found = leave_out_site(index_of(*rows, ("z", "A", "train")), "A", "site")
    assert found["split"].tolist() == [*expected, "test"]


@pytest.mark.parametrize(
    ("site", "column", "message"),
    [
        ("C", "site", "data.left_out_site=C: column site has A, B"),
        ("", "site", "data.left_out_site=: column site has A, B"),
        ("A", "sites", r"data.site_column=sites: the index has no such column.*mean site\?"),
        ("1", "label.af", "data.site_column=label.af: the index has no such column"),
    ],
)
def test_what_is_no_site_is_refused_in_one_line(site, column, message):
    index = index_of(("a", "A", "train"), ("b", "B", "train")).assign(**{"label.af": 1.0})
    with pytest.raises(ValueError, match=message) as error:
        leave_out_site(index, site, column)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"left_out_site": "A", "fold": 1}, "data.fold and data.left_out_site both choose"),
        ({"site_column": "clinic"}, "data.site_column=clinic has no effect without"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(shards="s", **settings)


@pytest.fixture(scope="module")
def sited(shards, tmp_path_factory):
    """Write shards whose patients are at these sites, in turn."""

    @cache
    def write(*sites, column="site"):
        folder = tmp_path_factory.mktemp("sited") / "set"
        shutil.copytree(shards, folder)
        index = read_shard_set(folder).index
        codes = pd.factorize(index["patient"])[0] % len(sites)
        reseal(folder, index.assign(**{column: np.array(sites, dtype=object)[codes]}))
        return folder

    return write


def words(folder, tmp_path, *more):
    names = "strategies=[ssl_new_head,ssl_linear_probe]"
    return [*words_of_sweep(folder, tmp_path / "sweep", names, "seeds=[0,1]"), *more]


EACH = "sites=leave_one_out"


def test_each_strategy_runs_without_each_site_in_turn(sited, tmp_path, few_events_suffice):
    folder, column = sited("North", "Süd/2", column="clinic"), "clinic"
    more = [EACH, "run.data.site_column=clinic"]
    sweep = prepare_sweep(load_sweep([], words(folder, tmp_path, *more)))
    names = [f"{s},left_out_site={p}" for s in sweep.config.strategies for p in ("North", "Süd-2")]
    assert [cell.name for cell in sweep.cells] == [f"{n}/seed-{k}" for n in names for k in (0, 1)]
    index = open_shards(sweep.cells[2].run.data)[0].index
    assert set(index[column][index["split"] == "test"]) == {"Süd/2"}
    assert set(index[column][index["split"].isin(["train", "valid"])]) == {"North"}
    data = {"shards": str(folder), "left_out_site": "Süd/2", "site_column": column}
    flow = read_flow({f"data.{key}": value for key, value in data.items()})
    assert [s["records"] for s in flow.splits] == [
        int((index["split"] == s["split"]).sum()) for s in flow.splits
    ]
    assert describe_design(sweep.config)["left_out_sites"]["sites"] == ["North", "Süd/2"]
    _write_sweep(tmp_path / "sweep", sweep)
    assert expected_cells(tmp_path / "sweep") == [(n, k) for n in names for k in (0, 1)]
    again = load_sweep([str(tmp_path / "sweep/sweep.yaml")], [], of_folder=True)
    assert again.config.grid == sweep.config.grid


def test_only_the_sites_that_are_named_are_left_out(sited, tmp_path):
    folder = sited("A", "B", "C")
    more = (EACH, "grid.data.left_out_site=[B,C]")
    arms = {cell.arm.name for cell in load_sweep([], words(folder, tmp_path, *more)).cells}
    assert {arm.partition("=")[2] for arm in arms} == {"B", "C"}


@pytest.mark.parametrize(
    ("sites", "more", "message"),
    [
        (("A",), (), "sites=leave_one_out needs two sites or more; column site of .* has A"),
        (("",), (), "needs two sites or more; column site of .* has no site"),
        (("A", "B"), ("run.data.site_column=town",), "site_column=town: the index has no such"),
        (("A", "B"), ("tune.optim.lr=[0.1,0.2]",), "without tune, soup or other grid"),
        (("A", "B"), ("soup=true",), "without tune, soup or other grid"),
        (("A", "B"), ("grid.optim.lr=[0.1]",), "without tune, soup or other grid"),
        (("A", "A", "A", "B"), ("grid.data.left_out_site=[B]",), "B: af: .* at this site; 10 with"),
        (("A", "B"), (), "left_out_site=A: af: .* in validation without this site; 10 with each"),
        (("A", "B"), ("sites=each",), "sites must be one of together, leave_one_out"),
    ],
)
def test_what_cannot_be_left_out_is_refused_before_the_first_run(
    sited, tmp_path, sites, more, message
):
    with pytest.raises(ValueError, match=message) as error:
        prepare_sweep(load_sweep([], words(sited(*sites), tmp_path, EACH, *more)))
    assert "\n" not in str(error.value) and not (tmp_path / "sweep").exists()


def test_a_sweep_of_all_sites_keeps_its_protocol(shards, tmp_path):
    assert describe_design(load_sweep([], words(shards, tmp_path)).config) == {}


def fake_sweep(folder, sites, seeds=(0, 1), qualities=MappingProxyType({"net": 1.5})):
    """A finished sweep; `sites`: name → (patients, prevalence), `qualities` by strategy."""
    for number, (site, (patients, prevalence)) in enumerate(sites.items()):
        test_set = make_test_set(patients, seed=number, prevalence=prevalence)
        for base, quality in qualities.items():
            arm = folder / f"{base},left_out_site={site}"
            for seed in seeds:
                make_run(arm / f"seed-{seed}", test_set, quality, seed)
                config = json.loads((arm / f"seed-{seed}/config.yaml").read_text())
                config["data"]["left_out_site"] = site
                (arm / f"seed-{seed}/config.yaml").write_text(json.dumps(config))
            about = {"base": base, "varied": {"data.left_out_site": site}}
            (arm / "arm.json").write_text(json.dumps(about))
    plan = {"strategies": [*qualities], "seeds": [*seeds], "note": "Synthetic."}
    plan["grid"] = {"data": {"left_out_site": [*sites]}}
    (folder / "sweep.yaml").write_text(json.dumps(plan))
    return folder


def test_the_report_summarizes_each_strategy_over_the_sites(tmp_path, capfd):
    sites = {"A": (90, 0.3), "B": (80, 0.3), "C": (70, 0.4), "tiny": (60, 0.1)}
    folder = fake_sweep(tmp_path / "sweep", sites)
    shutil.rmtree(folder / "net,left_out_site=B/seed-1")
    assert main(["report", str(folder)]) == 0
    assert "report/index.html" in capfd.readouterr().out
    found = read_json(folder / "report/across.json")
    about = found["labels"]["net, afib_5y"]
    assert found["sites"] == [*sites] and about["summary"]["auroc"]["sites"] == 3
    by_seed = []
    for seed in (0, 1):
        path = folder / f"net,left_out_site=A/seed-{seed}/predictions/test.parquet"
        test = read_predictions(path).sorted()
        pair = test.logit_NK[:, 0], test.probability_NK[:, 0]
        by_seed.append(site_values(test.label_NK[:, 0], *pair, test.patient_N))
    first, tiny = about["table"][0], about["table"][3]
    values = [values["auroc"][0] for values in by_seed]
    assert first["auroc"] == pytest.approx(expit(logit(values).mean()))
    assert first["auroc_low"] < min(values) and first["auroc_high"] > max(values)
    assert tiny["n_positive_patients"] < 10 and "auroc" not in tiny
    summary = about["summary"]["auroc"]
    assert summary["new_low"] <= summary["low"] < summary["value"] < summary["high"]
    page = (folder / "report/index.html").read_text()
    for text in ("Trained without 4 sites", "Synthetic.", "There was no protocol", "not started"):
        assert text in page
    table = pd.read_csv(folder / "report/across.csv")
    assert table["site"].tolist() == [*sites, "mean over sites", "a new site"]
    with pytest.raises(ValueError, match="leaves out one site at a time"):
        compare(folder, 50)


def in_memory(sites, qualities, seeds=(0, 1), labels=1, patients=120):
    """Test predictions by model and site, and the seeds of each model."""
    models = {name: {} for name in qualities}
    for number, site in enumerate(sites):
        rng = np.random.default_rng(number)
        label_NK = (rng.random((patients, labels)) < 0.4).astype(float)
        for name, quality in qualities.items():
            logits = [quality * label_NK + rng.normal(size=label_NK.shape) for _ in seeds]
            models[name][site] = [
                Predictions(
                    record_N=np.arange(patients),
                    patient_N=np.arange(patients) // 2 * 2,
                    labels=["af", "death"][:labels],
                    label_NK=label_NK,
                    logit_NK=logit_NK,
                    probability_NK=expit(logit_NK),
                )
                for logit_NK in logits
            ]
    return models, {name: fake_seeds(seeds) for name in qualities}


def fake_seeds(seeds, is_fixed=False):
    return SeedScores(value=dict.fromkeys(seeds, 0.0), replicate_R={}, is_fixed=is_fixed)


def compared(models, seeds, pairs, families=1):
    found = _compare(models, pairs, 0, seeds, families)
    value = {"value": 0.8, "low": 0.7, "high": 0.9}
    return found, " ".join(_sentences(dict.fromkeys(models, value), found, []))


PAIR = ("good", "poor")


def test_strategies_are_compared_by_random_effects_over_sites():
    models, seeds = in_memory("ABCDE", {"good": 2.0, "poor": 0.5})
    ((pair, more),), verdict = compared(models, seeds, [PAIR])
    at = []
    for site in "ABCDE":
        tests = {name: models[name][site] for name in models}
        label_N = tests["good"][0].label_NK[:, 0]
        values = {
            n: np.mean([auroc(label_N, t.logit_NK[:, 0]) for t in ts]) for n, ts in tests.items()
        }
        assert more["sites"][site][0] == pytest.approx(values["good"] - values["poor"])
        logits = {name: [t.logit_NK[:, 0] for t in ts] for name, ts in tests.items()}
        at.append(site_differences(logits, [PAIR], label_N, tests["good"][0].patient_N)[PAIR])
    mean = random_effects(*np.array(at).T)
    for key in ("value", "low", "high"):
        assert getattr(pair.estimate, key) == pytest.approx(mean[key])
    assert (more["new_low"], more["new_high"]) == (mean["new_low"], mean["new_high"])
    assert pair.seeds == [0, 1] and pair.estimate.degrees_of_freedom == 4
    assert verdict.startswith("Over 5 sites: good is best (mean AUROC 0.800 (0.700–0.900)): better")
    assert "At a new site, good differs by 0." in verdict and "show little" not in verdict


@pytest.mark.parametrize(
    ("sites", "seeds", "texts", "absent"),
    [
        ("A", (0, 1), ["Strategies are not compared: that takes two of them"], "Over"),
        ("AB", (0, 1), ["12.7 standard errors", "at a new site cannot be said"], "is best"),
        ("ABC", (0, 1), ["3 sites show little", "4.3 standard", "At a new site, good"], "cannot"),
        ("ABCDE", (0,), ["cannot be said from one seed"], "is best"),
    ],
)
def test_the_verdict_says_how_little_few_sites_and_single_seeds_tell(sites, seeds, texts, absent):
    models, of_seeds = in_memory(sites, {"good": 2.0, "poor": 0.5}, seeds)
    found, verdict = compared(models, of_seeds, [PAIR])
    assert all(text in verdict for text in texts) and absent not in verdict
    assert len(found) == (len(sites) > 1)


def test_what_trains_nothing_needs_no_second_seed():
    models, seeds = in_memory("ABCDE", {"good": 2.0, "poor": 0.5}, (0,))
    fixed = {name: fake_seeds((0,), is_fixed=True) for name in seeds}
    ((pair, _),), verdict = compared(models, fixed, [PAIR])
    assert pair.estimate.includes_seeds and pair.seeds == [] and "good is best" in verdict


def test_p_and_intervals_hold_for_all_pairs_and_labels():
    models, seeds = in_memory("ABCD", {"a": 1.5, "b": 1.4, "c": 1.2})
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    found = [pair for pair, _ in compared(models, seeds, pairs, families=2)[0]]
    expected = [min(2 * p, 1.0) for p in holm([pair.estimate.p_value for pair in found])]
    assert [pair.p_adjusted for pair in found] == pytest.approx(expected)
    for pair in found:
        half = stats.t.ppf(1 - 0.025 / 6, 3) * pair.estimate.standard_error
        assert pair.high - pair.estimate.value == pytest.approx(half)


def test_a_site_that_one_of_them_lacks_or_that_has_few_events_counts_in_no_pair():
    models, seeds = in_memory("ABCD", {"good": 2.0, "poor": 0.5})
    del models["poor"]["B"]
    for tests in models.values():
        few = [
            replace(t, label_NK=np.where(t.record_N[:, None] < 15, t.label_NK, 0))
            for t in tests["C"]
        ]
        tests["C"] = few
    ((_, more),), _ = compared(models, seeds, [PAIR])
    assert [*more["sites"]] == ["A", "D"]


def test_weights_against_censoring_count_at_each_site():
    models, seeds = in_memory("ABC", {"good": 2.0, "poor": 0.5})
    rng = np.random.default_rng(0)
    for site in "ABC":
        groups = {WEIGHT_PREFIX + "af": rng.uniform(0.5, 4, 120)}
        for tests in models.values():
            tests[site] = [replace(test, groups=groups) for test in tests[site]]
    ((_, more),), _ = compared(models, seeds, [PAIR])
    of_strategy = {}
    for name, tests in models.items():
        first = tests["A"][0]
        data = first.label_NK[:, 0], first.weights(0)
        found = [auroc(data[0], t.logit_NK[:, 0], data[1]) for t in tests["A"]]
        of_strategy[name] = np.mean(found)
        row = _summarize(tests, 0)["table"][0]
        assert row["auroc"] == pytest.approx(expit(logit(found).mean()))
        ratios = [data[1] @ data[0] / (data[1] @ t.probability_NK[:, 0]) for t in tests["A"]]
        assert row["observed_expected"] == pytest.approx(np.exp(np.log(ratios).mean()))
        slopes = [fit_slope(data[0], t.logit_NK[:, 0], data[1])[1] for t in tests["A"]]
        assert row["slope"] == pytest.approx(np.mean(slopes))
    assert more["sites"]["A"][0] == pytest.approx(of_strategy["good"] - of_strategy["poor"])


def write_site_baselines(folder, sites):
    """Age and sex that hardly tell, a constant, one that could not be made."""
    for site in sites:
        made, files = folder / f"baselines/left_out_site={site}", []
        for name, share in {"prevalence": 0.0, "age_sex": 0.05, "ecg_measurements": 0.1}.items():
            for split in ("valid", "test"):
                run = folder / f"good,left_out_site={site}/seed-0/predictions/{split}.parquet"
                test = read_predictions(run)
                logit_NK = (share > 0) * np.sin(np.arange(len(test)))[:, None]
                logit_NK = logit_NK + share * test.logit_NK
                files.append(made / name / f"{split}.parquet")
                made_of = replace(test, logit_NK=logit_NK, probability_NK=expit(logit_NK))
                write_predictions(files[-1], made_of)
        note = {"made": ["prevalence", "age_sex", "ecg_measurements"], "details": {}}
        write_record(made / "baselines.json", note | {"left_out": {"other": "no leads"}}, files)


def test_page_and_cards_hold_the_comparison_of_strategies_and_baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(across, "_draw", lambda label, measure: "")  # for speed
    sites = dict.fromkeys("ABC", (90, 0.4))
    folder = fake_sweep(tmp_path / "sweep", sites, qualities={"poor": 0.5, "good": 4.0})
    write_site_baselines(folder, "ABC")
    assert main(["report", str(folder)]) == 0
    found = read_json(folder / "report/across.json")
    about = found["comparisons"]["afib_5y"]
    named = ["age and sex", "ECG measurements, age and sex"]
    assert about["models"] == ["good", "poor", *named]
    pairs = [(pair["first"], pair["second"]) for pair in about["pairs"]]
    assert pairs == [PAIR, *((model, name) for name in named for model in PAIR)]
    assert any("beats age and sex alone (mean AUROC 0." in text for text in about["verdict"])
    assert [row["site"] for row in found["labels"]["age and sex, afib_5y"]["table"]][:3] == [*"ABC"]
    assert "other, without A: no leads" in found["notes"]
    page = (folder / "report/index.html").read_text()
    card = (folder / "report/cards/poor/MODEL_CARD.md").read_text()
    for text in ("Over 3 sites", "3 sites show little", "age and sex alone", "Synthetic"):
        assert text in page and text in card
    assert "good − poor" in page and "6 DeepECG-SSL transformers" in card
    assert re.findall(r'href="([^"#]+)"', page) == [
        *("across.csv", "across.json"),
        *(f"cards/{name}/MODEL_CARD.md" for name in about["models"][:2]),
    ]
    headings = re.findall(r'<h2 id="([^"]+)"', page)
    assert re.findall(r'href="#([^"]+)"', page) == headings and len(headings) == 5
    assert "| a new site |" in card and "good,left" not in card
    assert main(["report", str(folder), "--no-baselines"]) == 0
    assert read_json(folder / "report/across.json")["comparisons"]["afib_5y"]["models"] == [*PAIR]


def test_the_site_that_is_left_out_teaches_its_baselines_nothing(sited, tmp_path, monkeypatch):
    """Other labels of all who were ever at the site change no prediction."""

    def measure(splits, folder, minutes):
        rows = {split: np.arange(len(dataset)) for split, dataset in splits.items()}
        drawn = {s: [int(name[:8], 16) for name in splits[s].sha256_N] for s in splits}
        x = {s: np.array(n)[:, None] / 2**32 * np.ones(len(FEATURES)) for s, n in drawn.items()}
        return rows, x

    monkeypatch.setattr(baselines, "measure_splits", measure)
    before = sited("A", "B", "C")
    index = read_shard_set(before).index
    elsewhere = index[(index["split"] == "train") & (index["site"] != "B")]
    at_both = elsewhere["patient"].value_counts().loc[lambda counts: counts > 1].index[0]
    index.loc[elsewhere.index[elsewhere["patient"] == at_both][0], "site"] = "B"
    after = tmp_path / "after"
    shutil.copytree(before, after)
    reseal(before, index)
    of_site = index["patient"].isin(index["patient"][index["site"] == "B"])
    flipped = index.assign(**{"label.af": index["label.af"].where(~of_site, 1 - index["label.af"])})
    reseal(after, flipped)
    predicted = []
    for folder in (before, after):
        config = load_config(
            FinetuneConfig, [], words_for(folder, tmp_path / "run", "data.left_out_site=B")
        )
        made = tmp_path / f"made-{folder.name}"
        assert baselines.write_baselines(config, made) == ["prevalence", *MEASURED]
        assert read_json(made / "baselines.json")["data"]["left_out_site"] == "B"
        predicted.append([read_predictions(made / n / "test.parquet").logit_NK for n in MEASURED])
    assert all(np.array_equal(*pair) for pair in zip(*predicted, strict=True))
    site_C = load_config(FinetuneConfig, [], words_for(before, tmp_path, "data.left_out_site=C"))
    baselines.write_baselines(site_C, tmp_path / "made-set")
    assert read_json(tmp_path / "made-set/baselines.json")["data"]["left_out_site"] == "C"


def test_runs_that_left_out_one_site_must_share_their_test(tmp_path, capfd):
    folder = fake_sweep(tmp_path / "sweep", {"A": (60, 0.3), "B": (60, 0.3)})
    make_run(folder / "net,left_out_site=A/seed-1", make_test_set(61, prevalence=0.3), 1.0, 1)
    assert main(["report", str(folder)]) == 2
    assert "were tested on different records" in capfd.readouterr().err


def test_a_mean_over_seeds_holds_the_chance_of_patients_and_of_seeds():
    one = {"auroc": (0.8, 0.04), "slope": (1.0, 0.01)}
    other = {"auroc": (0.9, 0.06), "observed_expected": (1.2, 0.02)}
    ((name, (value, variance)),) = mean_over_seeds([one, other]).items()
    between = np.var(logit([0.8, 0.9]), ddof=1) / 2
    assert name == "auroc" and value == pytest.approx(expit(logit([0.8, 0.9]).mean()))
    assert variance == pytest.approx(0.05 + between)
    for measure, (value, variance) in mean_over_seeds([one]).items():
        assert (value, variance) == pytest.approx(one[measure])


@pytest.mark.parametrize("num_sites", [3, 4, 8])
def test_a_new_site_is_no_surer_than_the_mean(num_sites):
    rng = np.random.default_rng(num_sites)
    for _ in range(5):
        found = random_effects(rng.normal(1, 0.1, num_sites), rng.uniform(0.01, 0.1, num_sites))
        assert found["new_low"] <= found["low"] and found["high"] <= found["new_high"]


def test_non_inferiority_over_sites_is_a_one_sided_t_test_with_the_given_margin(tmp_path):
    sites, qualities = dict.fromkeys("ABCD", (90, 0.3)), {"net": 1.5, "like": 1.45, "poor": 0.1}
    folder = fake_sweep(tmp_path / "sweep", sites, qualities=MappingProxyType(qualities))
    for margin in (None, 0.25):
        given = [] if margin is None else ["--margin", str(margin)]
        assert main(["report", str(folder), "--no-baselines", *given]) == 0
        found = read_json(folder / "report/across.json")
        of_label = found["comparisons"]["afib_5y"]
        best = of_label["models"][0]
        pairs = {p["second"]: p["estimate"] for p in of_label["pairs"] if p["first"] == best}
        tests = {test["strategy"]: test for test in found["non_inferior"]}
        assert tests.keys() == pairs.keys() == qualities.keys() - {best}
        assert found["margin"] == (margin or 0.02)
        for name, test in tests.items():
            e = pairs[name]
            t = (found["margin"] - e["value"]) / e["standard_error"]
            assert test["p_value"] == pytest.approx(stats.t.sf(t, 3)) and test["to"] == best
            assert test["is_non_inferior"] == (e["high"] < found["margin"])
    passed = [name for name, test in tests.items() if test["is_non_inferior"]]
    assert passed and "poor" not in passed and not tests["poor"]["is_non_inferior"]
    sentence = f"Not worse than {best} by more than 0.25 mean AUROC (non-inferior, one-sided"
    assert sentence in of_label["verdict"][-1] and of_label["verdict"][-1].endswith(f"{passed[0]}.")
    page = (folder / "report/index.html").read_text()
    assert sentence.replace("<", "&lt;") in page
    assert f"poor is not shown to be non-inferior to {best} (margin 0.250; one-sided p" in page
    table = pd.read_csv(folder / "report/non_inferiority.csv")
    assert table["strategy"].tolist() == [*tests] and set(table["label"]) == {"afib_5y"}
    assert sentence in (folder / f"report/cards/{best}/MODEL_CARD.md").read_text()
    for name in {*qualities} - {best}:
        for arm in folder.glob(f"{name},*"):
            shutil.rmtree(arm)
    assert main(["report", str(folder), "--no-baselines"]) == 0
    assert not (folder / "report/non_inferiority.csv").exists()


def test_the_margin_over_sites_is_the_protocols_and_another_one_is_exploratory(tmp_path):
    folder = fake_sweep(
        tmp_path / "sweep",
        dict.fromkeys("AB", (60, 0.4)),
        qualities=MappingProxyType({"a": 1.5, "b": 1.0}),
    )
    runs = [f"{s},left_out_site={p}/seed-{k}" for s in "ab" for p in "AB" for k in (0, 1)]
    strategies = {name.split("/")[0]: {SHA256: "x"} for name in runs}
    content = {"strategies": strategies, "seeds": [0, 1], "margin": 0.05, "metric": "auroc"}
    version = {"version": 1, "time": "1 May", "before": "", "content": content, SHA256: "x"}
    opened = {"time": "2 May", "version": 1, "runs": runs, "early": []}
    protocol = {"versions": [version], "opened": opened, "predictions": {}}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    for given, margin in (([], 0.05), (["--margin", "0.1"], 0.1)):
        assert main(["report", str(folder), "--no-baselines", *given]) == 0
        found = read_json(folder / "report/across.json")
        assert found["margin"] == found["non_inferior"][0]["margin"] == margin
        notes = " ".join(found["notes"])
        assert ("margin: 0.1 (locked: 0.05)" in notes) == (margin == 0.1)
