"""Sweeps that leave out one site at a time: who is trained on, what is refused, and the report."""

import json
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
from hpc_ecg.comparison import baselines
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.flow import read_flow
from hpc_ecg.comparison.heartbeat import FEATURES
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_shards
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.views import leave_out_site
from hpc_ecg.evaluation.comparisons import holm
from hpc_ecg.evaluation.metrics import auroc
from hpc_ecg.evaluation.predictions import read_predictions, write_predictions
from hpc_ecg.evaluation.sites import (
    mean_over_seeds,
    random_effects,
    site_differences,
    site_values,
)
from hpc_ecg.hashing import write_record
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


def fake_sweep(folder, sites, seeds=(0, 1), qualities=MappingProxyType({"net": 1.5}), labels=1):
    """A finished sweep; `sites`: name → (patients, prevalence), `qualities` by strategy."""
    for number, (site, (patients, prevalence)) in enumerate(sites.items()):
        names = ("afib_5y", "death")[:labels]
        test_set = make_test_set(patients, names, seed=number, prevalence=prevalence)
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


NETS = MappingProxyType({"good": 3.0, "poor": 0.5})


def report_on(folder, *more):
    assert main(["report", str(folder), *more]) == 0
    return read_json(folder / "report/across.json")


def test_strategies_are_compared_over_the_sites(tmp_path):
    sites = {name: (120 + 10 * k, 0.4) for k, name in enumerate("ABCDE")}
    folder = fake_sweep(tmp_path / "sweep", sites, qualities=NETS)
    found = report_on(folder, "--no-baselines")["comparisons"]["afib_5y"]
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"]) == ("good", "poor") and [*pair["sites"]] == [*sites]
    values = []
    for site in sites:
        arms = [folder / f"{base},left_out_site={site}" for base in NETS]
        tests = [
            [read_predictions(a / f"seed-{s}/predictions/test.parquet") for s in (0, 1)]
            for a in arms
        ]
        label_N = tests[0][0].label_NK[:, 0]
        aurocs = [np.mean([auroc(label_N, t.logit_NK[:, 0]) for t in two]) for two in tests]
        assert pair["sites"][site][0] == pytest.approx(aurocs[0] - aurocs[1])
        logits = {b: [t.logit_NK[:, 0] for t in two] for b, two in zip(NETS, tests, strict=True)}
        difference = site_differences(logits, [(*NETS,)], label_N, tests[0][0].patient_N)
        values.append(difference[(*NETS,)])
    mean = random_effects(*np.array(values).T)
    for key in ("value", "low", "high"):
        assert pair["estimate"][key] == pytest.approx(mean[key])
    assert pair["new_low"] == pytest.approx(mean["new_low"]) and pair["p_adjusted"] < 0.05
    assert pair["estimate"]["degrees_of_freedom"] == 4
    verdict = " ".join(found["verdict"])
    assert (
        verdict.startswith("Over 5 sites: good is best (mean AUROC ") and "At a new site" in verdict
    )
    page = (folder / "report/index.html").read_text()
    assert "good − poor" in page and "Over 5 sites: good is best" in page
    card = (folder / "report/cards/poor/MODEL_CARD.md").read_text()
    for text in (
        "10 DeepECG-SSL transformers",
        "| a new site |",
        "Over 5 sites",
        "poor,left",
        "Synthetic",
    ):
        assert text in card


@pytest.mark.parametrize(
    ("sites", "seeds", "texts"),
    [
        (
            "A",
            (0, 1),
            ["Strategies are not compared: that takes two of them, at two sites or more"],
        ),
        (
            "AB",
            (0, 1),
            ["2 sites show little", "reach 12.7 standard errors", "nothing can be said"],
        ),
        ("ABC", (0, 1), ["3 sites show little", "4.3 standard errors", "At a new site"]),
        ("ABCDE", (0,), ["cannot be said from one seed"]),
    ],
)
def test_the_verdict_says_how_little_few_sites_and_single_seeds_tell(tmp_path, sites, seeds, texts):
    chosen = dict.fromkeys(sites, (100, 0.4))
    folder = fake_sweep(tmp_path / "sweep", chosen, seeds, NETS)
    found = report_on(folder, "--no-baselines")["comparisons"]["afib_5y"]
    verdict = " ".join(found["verdict"])
    assert all(text in verdict for text in texts) and "is better" not in verdict
    assert len(found["pairs"]) == (len(sites) > 1)


def test_p_holds_for_all_pairs_and_labels_of_a_sweep(tmp_path):
    sites = dict.fromkeys("ABCD", (100, 0.4))
    qualities = {"one": 1.5, "two": 1.4, "three": 1.3}
    folder = fake_sweep(tmp_path / "sweep", sites, qualities=qualities, labels=2)
    for found in report_on(folder, "--no-baselines")["comparisons"].values():
        p_values = [pair["estimate"]["p_value"] for pair in found["pairs"]]
        expected = [min(2 * p, 1) for p in holm(p_values)]
        assert [pair["p_adjusted"] for pair in found["pairs"]] == pytest.approx(expected)
        for pair in found["pairs"]:
            half = stats.t.ppf(1 - 0.025 / 6, 3) * pair["estimate"]["standard_error"]
            assert pair["high"] - pair["estimate"]["value"] == pytest.approx(half)


def test_a_site_that_one_strategy_lacks_counts_in_no_pair(tmp_path):
    folder = fake_sweep(tmp_path / "sweep", dict.fromkeys("ABC", (90, 0.4)), qualities=NETS)
    shutil.rmtree(folder / "poor,left_out_site=B")
    (pair,) = report_on(folder, "--no-baselines")["comparisons"]["afib_5y"]["pairs"]
    assert [*pair["sites"]] == ["A", "C"]


def test_weights_against_censoring_count_at_each_site(tmp_path):
    folder = fake_sweep(tmp_path / "sweep", dict.fromkeys("ABC", (90, 0.4)), qualities=NETS)
    plain = report_on(folder, "--no-baselines")
    for path in folder.glob("*/seed-*/predictions/test.parquet"):
        test = read_predictions(path)
        weight_N = 1.0 + 3.0 * (test.logit_NK[:, 0] > 1)
        write_predictions(path, replace(test, groups={WEIGHT_PREFIX + "afib_5y": weight_N}))
    found = report_on(folder, "--no-baselines")
    path = folder / "good,left_out_site=A/seed-0/predictions/test.parquet"
    test = read_predictions(path)
    row = found["labels"]["good, afib_5y"]["table"][0]
    tests = [
        read_predictions(path.parents[2] / f"seed-{s}/predictions/test.parquet") for s in (0, 1)
    ]
    ratios = [
        (t.weights(0) @ t.label_NK[:, 0]) / (test.weights(0) @ t.probability_NK[:, 0])
        for t in tests
    ]
    assert row["observed_expected"] == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-6)
    first, before = (result["comparisons"]["afib_5y"]["pairs"][0] for result in (found, plain))
    values = [auroc(t.label_NK[:, 0], t.logit_NK[:, 0], test.weights(0)) for t in tests]
    poor = path.parents[3] / "poor,left_out_site=A"
    others = [read_predictions(poor / f"seed-{s}/predictions/test.parquet") for s in (0, 1)]
    values = np.mean(values) - np.mean(
        [auroc(t.label_NK[:, 0], t.logit_NK[:, 0], test.weights(0)) for t in others]
    )
    assert first["sites"]["A"][0] == pytest.approx(values) != before["sites"]["A"][0]


def write_site_baselines(folder, sites):
    for base in sites:
        run = folder / f"good,left_out_site={base}/seed-0/predictions"
        made = folder / f"baselines/left_out_site={base}"
        files = []
        for name, sign in {"age_sex": 0.02, "prevalence": 0.0}.items():
            for split in ("valid", "test"):
                test = read_predictions(run / f"{split}.parquet")
                logit_NK = sign * test.logit_NK + np.sin(np.arange(len(test)))[:, None] * (sign > 0)
                weak = replace(test, logit_NK=logit_NK, probability_NK=expit(logit_NK))
                files.append(made / name / f"{split}.parquet")
                write_predictions(files[-1], weak)
        note = {"made": ["prevalence", "age_sex"], "left_out": {"rr_irregularity": "no leads"}}
        write_record(made / "baselines.json", note | {"details": {}}, files)


def test_baselines_stand_beside_the_strategies_unless_they_are_left_out(tmp_path):
    folder = fake_sweep(tmp_path / "sweep", dict.fromkeys("ABCDE", (120, 0.4)), qualities=NETS)
    write_site_baselines(folder, "ABCDE")
    found = report_on(folder)
    about = found["comparisons"]["afib_5y"]
    assert about["models"] == ["good", "poor", "age and sex"]
    pairs = [(pair["first"], pair["second"]) for pair in about["pairs"]]
    assert pairs == [("good", "poor"), ("good", "age and sex"), ("poor", "age and sex")]
    assert "good beats age and sex alone (mean AUROC " in about["verdict"][-1] or (
        "Every network beats age and sex alone" in about["verdict"][-1]
    )
    table = found["labels"]["age and sex, afib_5y"]["table"]
    assert [row["site"] for row in table] == [*"ABCDE", "mean over sites", "a new site"]
    assert "beat-to-beat irregularity, without A: no leads" in found["notes"]
    without = report_on(folder, "--no-baselines")
    assert without["comparisons"]["afib_5y"]["models"] == ["good", "poor"]
    assert not any("age and sex" in name for name in without["labels"])


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
    first = index["patient"].eq(index["patient"].iloc[0])
    index.loc[first.idxmax(), "site"] = "B"
    assert first.sum() > 1, "a patient of two sites"
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
