"""`combine`: covariates that tell something add it, others nothing; a risk needs all covariates."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import words_for
from scipy.special import expit, logit
from simulate_covariates import simulate

import hpc_ecg
from hpc_ecg.cli.command import main
from hpc_ecg.comparison.run_records import read_combined
from hpc_ecg.config.load import load_config
from hpc_ecg.evaluation import covariates as covariates_module
from hpc_ecg.evaluation.covariates import combine_label, encode, learn_covariate
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.hashing import SHA256, sha256_of_value
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.open_run import load_run
from hpc_ecg.training.settings import FinetuneConfig

NAMES = ["age", "smoker"]


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariates_module, "REPLICATES", 300)
        patch.setattr(covariates_module, "REFITS", 60)
        yield


def texts(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    ("values", "learned"),
    [
        (np.array([40.0, 60, 80, np.nan, 60]), {"mean": 60.0, "sd": 200**0.5 / 3**0.5 * 1.0}),
        (np.array([0.0, 1, 0, 0]), {"levels": ["0", "1"]}),
        (texts("0", "1.0", "1", "0.0", "1"), {"levels": ["1", "0"]}),
        (texts("b", "a", "b", "c", ""), {"levels": ["b", "a", "c"]}),
        (texts("yes", "no", "n/a", "no", "yes", "no"), {"levels": ["no", "yes"]}),
        (texts("1", "2", "3.5", " 2 "), {"mean": 2.125}),
    ],
)
def test_a_column_is_a_number_or_has_levels_the_commonest_first(values, learned):
    found = learn_covariate("x", values)
    assert found["name"] == "x" and set(found) - {"name"} >= set(learned)
    for key, value in learned.items():
        if key == "sd":
            value = np.nanstd(values, ddof=1)
        assert found[key] == (value if key == "levels" else pytest.approx(value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (texts("a", "b", "", "NA"), "x is missing in 50% of validation, allowed are 20%"),
        (texts("a", "a", "a"), "x has one value in all of validation"),
        (np.array([1.0, 1, 1, 1, 1]), "x has one value in all of validation"),
        (texts(*"abcdefghi"), "x has 9 values that are not all numbers, allowed are 8"),
        (texts("2", "3", "4", "5", "6", "7", "8", "9", "0,5"), "not all numbers, allowed are 8"),
    ],
)
def test_a_column_that_no_model_can_use_is_refused_with_its_reason(values, message):
    with pytest.raises(ValueError, match=message):
        learn_covariate("x", values)


def test_a_record_without_a_known_value_of_each_covariate_has_a_reason():
    covariates = [
        {"name": "age", "mean": 60.0, "sd": 12.0},
        {"name": "sex", "levels": ["F", "M", "O"]},
    ]
    cells = {
        "age": ("50", "", "744", "x", "50.5", "50"),
        "sex": ("M", "M", "F", "F", "unknown", "W"),
    }
    frame, why = encode(covariates, cells)
    assert list(frame) == ["age", "sex M", "sex O"]
    assert frame.iloc[0].tolist() == [50.0, 1.0, 0.0] and frame["age"][4] == 50.5
    near, levels = "age: expected is a number near 60 (SD 12)", "sex: known are F, M, O"
    assert why.tolist() == ["", "age is missing", near, near, "sex is missing", levels]


@pytest.mark.parametrize("levels", [["M", "F"], ["male", "female"], ["F", "W", "M"], ["m", "f"]])
def test_sex_is_understood_in_any_spelling_and_whatever_else_the_table_holds(levels):
    cells = texts("F", "female", "M", "male", "f", "W", "1")
    frame, why = encode([{"name": "sex", "levels": levels}], {"sex": cells})
    if "W" not in levels:
        assert frame.iloc[:5, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert [bool(text) for text in why] == [False] * 5 + ["W" not in levels, True]
    other, _ = encode([{"name": "arm", "levels": ["M", "F"]}], {"arm": cells})
    assert other["arm F"].tolist() == [1.0] + [0.0] * 6


def fitted(valid: Predictions, *tests: Predictions, names=NAMES, **thresholds: float) -> dict:
    covariates = [learn_covariate(name, valid.groups[name]) for name in names]
    return combine_label([valid, *tests], 0, covariates, thresholds)


def rows_of(fit: dict, split: str) -> dict[str, dict]:
    return {row["metric"]: row for row in fit["scores"] if row["split"] == split}


@pytest.fixture(scope="module")
def told() -> dict:
    """A fit where covariates tell much: 0.8 per SD of age, 1.6 of smoking."""
    rng = np.random.default_rng(4)
    return fitted(simulate(rng, 0.8, 600), simulate(rng, 0.8, 600), youden=0.3)


def test_covariates_that_tell_something_are_found_and_gain_on_the_test_split(told):
    truth = {"logit of the network": 0.5, "age": 0.8 / 12, "smoker yes": 1.6}
    assert [term["name"] for term in told["terms"]] == list(truth)
    for term in told["terms"]:
        assert term["per_sd"]["low"] < truth[term["name"]] * term["sd"] < term["per_sd"]["high"]
    for split in ("validation", "test"):
        rows = rows_of(told, split)
        assert rows["auroc"]["over_network"]["low"] > 0 < rows["auprc"]["over_network"]["low"]
        assert rows["brier"]["over_network"]["high"] < 0 < rows["youden"]["over_network"]["low"]
        assert rows["auroc"]["over_covariates"]["low"] > 0
        gain = rows["auroc"]["combined"]["value"] - rows["auroc"]["network"]["value"]
        assert rows["auroc"]["over_network"]["value"] == pytest.approx(gain)
        assert rows["slope"]["combined"]["low"] < 1 < rows["slope"]["combined"]["high"]
    # the risk at which the network flags: its logit is 2z - 1, the true slope 0.5 (less here, as
    # covariates are left out of it), so the risk is near the prevalence
    assert rows["youden"]["risk"] == pytest.approx(expit(-2 + (logit(0.3) + 1) / 2), abs=0.08)
    assert told["warnings"] == []


def test_covariates_that_tell_nothing_gain_nothing():
    rng = np.random.default_rng(3)
    rows = rows_of(fitted(simulate(rng, 0, 400), simulate(rng, 0, 400), youden=0.3), "test")
    for metric in ("auroc", "auprc", "brier", "youden"):
        assert rows[metric]["over_network"]["low"] < 0 < rows[metric]["over_network"]["high"]


def test_weights_against_censoring_count_as_so_many_records():
    """Twice the weight is the ECG twice, in the fit and in the scores."""
    valid = simulate(np.random.default_rng(5), 0.8, 200)
    weight_N = (np.random.default_rng(6).random(len(valid)) < 0.3) + 1.0
    take = np.repeat(np.arange(len(valid)), weight_N.astype(int))
    arrays = {name: getattr(valid, name)[take] for name in ("patient_N", "label_NK", "logit_NK")}
    twice = Predictions(
        record_N=np.arange(len(take)).astype(str),
        labels=["af"],
        probability_NK=expit(arrays["logit_NK"]),
        groups={name: values_N[take] for name, values_N in valid.groups.items()},
        **arrays,
    )
    weighted = valid.rows(np.arange(len(valid)))
    weighted.groups["ipcw.af"] = weight_N
    one, other = fitted(weighted), fitted(twice)
    for a, b in zip(one["terms"], other["terms"], strict=True):
        scale = a["sd"] / b["sd"]  # a ridge penalty per SD, which no weight changes
        assert a["per_sd"]["value"] == pytest.approx(b["per_sd"]["value"] * scale, rel=0.05)
    plain = fitted(valid)["terms"]
    assert plain[1]["per_sd"]["value"] != pytest.approx(
        one["terms"][1]["per_sd"]["value"], rel=1e-6
    )


def test_few_events_are_refused_or_said():
    valid = simulate(np.random.default_rng(7), 0.8, 300)
    positive = np.unique(valid.patient_N[valid.label_NK[:, 0] == 1])
    for num, expected in (
        (9, "only 9 positive patients"),
        (25, "25 positive patients in validation are few for 3 coefficients"),
    ):
        keep = ~np.isin(valid.patient_N, positive[num:])
        if num < 10:
            with pytest.raises(ValueError, match=expected):
                fitted(valid.rows(np.flatnonzero(keep)))
            continue
        assert fitted(valid.rows(np.flatnonzero(keep)))["warnings"] == [expected]


def test_records_without_a_covariate_are_left_out_and_counted():
    valid = simulate(np.random.default_rng(8), 0.8, 200)
    lacks = np.arange(len(valid)) % 9 == 0
    valid.groups["smoker"][lacks] = ""
    fit = fitted(valid)
    assert fit["counts"]["num_lacking"] == lacks.sum() and fit["counts"]["n"] == (~lacks).sum()


# A run, from end to end


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    """A finished run, not yet tested."""
    folder = tmp_path_factory.mktemp("combine") / "sweep" / "ssl" / "seed-0"
    finetune(load_config(FinetuneConfig, [], words_for(shards, folder)))
    return folder


@pytest.fixture
def copied(run, tmp_path, few_events_suffice) -> Path:
    folder = tmp_path / "sweep" / "ssl" / "seed-0"
    shutil.copytree(run, folder)
    return folder


def command(*words: object) -> int:
    return main([*map(str, words)])


def status_of(run: Path) -> str:
    return read_combined(run)["status"]


@pytest.mark.slow
def test_a_run_is_combined_and_predict_bundle_report_and_card_follow(
    copied, shards, cohort, tmp_path, capsys
):
    assert command("combine", copied, "--covariates", "age, sex") == 0
    assert status_of(copied) == "test closed"
    assert {row["split"] for row in read_combined(copied)["labels"]["af"]["scores"]} == {
        "validation"
    }
    evaluate(load_run(str(copied), []))
    assert command("combine", copied, "--covariates", "age,sex") == 0
    fit = read_combined(copied)["labels"]["af"]
    assert status_of(copied) == "fixed before the test" and fit["scores"][-1]["split"] == "test"
    capsys.readouterr()

    # the formula, with shards, a table, the bundle and from Python
    table = pd.read_csv(cohort, dtype=str, keep_default_na=False)
    table.loc[3, "sex"], table.loc[5, "age"] = "", "700"
    some = tmp_path / "some.csv"
    table.to_csv(some, index=False)
    bundle = tmp_path / "bundle"
    assert command("bundle", copied, bundle) == 0
    words = ["--signals", cohort.parent, "--workers", 1, "--out"]
    assert command("predict", copied, shards, "--workers", 1, "--out", tmp_path / "a.parquet") == 0
    assert command("predict", bundle, some, *words, tmp_path / "b.parquet") == 3
    from_shards, from_table = (
        pd.read_parquet(tmp_path / f"{name}.parquet").set_index("record") for name in "ab"
    )
    index = hpc_ecg.shards.remote.open_shard_set(shards).index.set_index("record")
    z = {t["name"]: (t["mean"], t["sd"], t["per_sd"]["value"]) for t in fit["terms"]}
    for name, row in from_shards.iterrows():
        other = "female" if "sex female" in z else "male"
        x = [row["af_logit"], index["age"][name], float(index["sex"][name] == other)]
        odds = fit["intercept"] + sum(
            (v - m) / s * b for v, (m, s, b) in zip(x, z.values(), strict=True)
        )
        assert row["af_combined_probability"] == pytest.approx(expit(odds), rel=1e-9)
    assert (from_shards["combined_reason"] == "").all()
    lacking = from_table["combined_reason"] != ""
    assert set(from_table["combined_reason"][lacking]) == {"sex is missing", "age is missing"}
    assert from_table["af_combined_probability"].isna().sum() == lacking.sum() + 5
    same = from_table.index[~lacking & (from_table["reason"] == "")]
    shared = from_shards.loc[same, "af_combined_probability"]
    assert np.allclose(from_table.loc[same, "af_combined_probability"], shared, rtol=1e-6)
    with hpc_ecg.load_predictor(bundle) as model:
        mine = model.predict(cohort).set_index("record")
    assert np.allclose(mine.loc[same, "af_combined_probability"], shared, rtol=1e-6)

    files = sorted(cohort.parent.glob("records/r*.hea"))[:2]
    assert command("predict", copied, *files, "--workers", 1, "--out", tmp_path / "c.csv") == 0
    said = capsys.readouterr().out
    assert "no combined probability: 2 no columns age, sex (column combined_reason)" in said
    bare = pd.read_csv(tmp_path / "c.csv")
    assert bare["af_combined_probability"].isna().all() and bare["af_probability"].notna().all()

    assert command("report", copied.parents[1], "--replicates", 200, "--no-baselines") == 0
    page = (copied.parents[1] / "report" / "index.html").read_text()
    assert 'id="combined-test-1-1"' in page and "before the test was opened" in page
    for card in (*copied.parents[1].glob("report/cards/*/MODEL_CARD.md"), bundle / "CARD.md"):
        assert "## With clinical data" in card.read_text() and "| age |" in card.read_text(), card
    assert "columns age, sex" in (bundle / "README.md").read_text()


def test_covariates_chosen_after_the_test_are_exploratory_unless_fixed_before(copied):
    protocol = copied.parents[1] / "protocol.json"
    valid = copied / "predictions" / "valid.parquet"
    shutil.copy(valid, copied / "predictions" / "test.parquet")
    command("combine", copied, "--covariates", "age")
    assert status_of(copied) == "exploratory"
    content = {"strategies": {}, "seeds": [0], "margin": 0.02}
    version = {"version": 1, "time": "x", "before": "", "content": content, SHA256: "x"}
    closed = {"versions": [version], "opened": None, "predictions": {}}
    opened = {"time": "x", "version": 1, "runs": [], "early": []}
    found, test = {}, copied / "predictions" / "test.parquet"
    for name, state in (("closed", None), ("opened", opened)):
        record = closed | {"opened": state}
        test.unlink() if state is None else shutil.copy(valid, test)
        protocol.write_text(json.dumps(record | {SHA256: sha256_of_value(record)}))
        command("combine", copied, "--covariates", "age")
        found[name] = read_combined(copied)
    assert [found[n]["status"] for n in found] == ["test closed", "fixed before the test"]
    assert found["closed"]["fixed"] == found["opened"]["fixed"] is not None
    splits = {n: {r["split"] for r in f["labels"]["af"]["scores"]} for n, f in found.items()}
    assert splits == {"closed": {"validation"}, "opened": {"validation", "test"}}
    command("combine", copied, "--covariates", "age,sex")
    assert status_of(copied) == "exploratory"
    test.unlink()  # the sweep's test is open, also if this run has not been tested
    command("combine", copied, "--covariates", "sex")
    assert status_of(copied) == "exploratory" and read_combined(copied)["fixed"] is None


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        ("age,smokr", "'smokr' is no column, or named twice; the shards keep age, sex"),
        ("age,age", "'age' is no column, or named twice"),
        ("", "'' is no column"),
        ("agee", "did you mean age?"),
        ("af", "'af' is no column"),
    ],
)
def test_a_mistake_in_the_columns_is_one_line(copied, capsys, covariates, message):
    assert command("combine", copied, "--covariates", covariates) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (copied / "combine.json").exists()


def test_few_events_are_refused_by_the_command(run, capsys):
    assert command("combine", run, "--covariates", "age") == 2
    error = "af: only 4 negative patients in validation (data shard --fractions sets its size);"
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("covariates", 0, "sd"), "1"),
        (("covariates", 0), ["age"]),
        (("covariates", 1, "levels"), ["female", 3]),
        (("covariates", 1, "levels"), ["female", "male", "other"]),
        (("labels", "af", "terms"), []),
        (("labels", "af", "terms", 0, "sd"), 0),
        (("labels", "af", "terms", 1, "per_sd", "value"), None),
        (("labels", "af", "intercept"), True),
        (("labels", "af", "scores"), []),
        (("labels", "af", "scores", 0, "network"), 0.5),
        (("labels", "af", "scores", 0, "over_network", "low"), "0"),
        (("labels", "af", "counts", "n"), 1.5),
        (("status",), None),
    ],
)
def test_a_record_of_another_shape_is_refused_though_its_digest_fits(made, place, value):
    run, content = made
    content = json.loads(json.dumps(content))
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    content = {key: value for key, value in content.items() if key not in (SHA256, "digests")}
    if place[0] != "status":  # a file without digests, too, is looked through
        content |= {"digests": made[1]["digests"]}
        content[SHA256] = sha256_of_value(content)
    path = run / "combine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"combine\.json is damaged"):
        read_combined(run)


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> tuple[Path, dict]:
    """A combined run's folder, and the content of its combine.json."""
    folder = tmp_path_factory.mktemp("made") / "sweep" / "ssl" / "seed-0"
    shutil.copytree(run, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpc_ecg.evaluation.events.MIN_EVENTS", 1)
        assert command("combine", folder, "--covariates", "age,sex") == 0
    return folder, json.loads((folder / "combine.json").read_text())


def test_a_record_is_bound_to_its_predictions(made):
    run, content = made
    path = run / "combine.json"
    path.write_text(json.dumps(content))
    assert set(read_combined(run)["labels"]) == {"af"}
    path.write_text(path.read_text().replace("test closed", "test opened"))
    with pytest.raises(ValueError, match="has changed since it was written"):
        read_combined(run)
    path.write_text(json.dumps(content))
    valid = run / "predictions" / "valid.parquet"
    valid.write_bytes(valid.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"valid\.parquet has changed"):
        read_combined(run)
