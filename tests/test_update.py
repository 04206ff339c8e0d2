"""A run is updated for a new hospital as far as its patients support it, and judged on others."""

import json
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, plan_for, reseal, words_for
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from synthetic import Population, write_cohort

from hpc_ecg.cli.command import main
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.views import as_split
from hpc_ecg.evaluation.closed_testing import METHODS, UpdateSample, choose_update
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.hashing import check_record
from hpc_ecg.inference.update import _change_head
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.weights import load_model
from hpc_ecg.weights.reading import read_checkpoint


def hospital(rng, shift=0.0, slope=1.0, missed=0.0, patients=600, tuned=0.0) -> UpdateSample:
    """1 to 5 ECGs a patient, a label for each patient; logits that are right where `shift` is 0 and
    `slope` 1. `missed`: what the old head does not use; `tuned`: what fine-tuning adds."""
    patient_N = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    risk_P = rng.normal(-1.0, 1.0, patients)
    others_PD, hidden_P = rng.normal(size=(patients, 3)), rng.normal(size=patients)
    true_P = risk_P + missed * others_PD[:, 0] + tuned * hidden_P
    label_N = (rng.random(patients) < expit(true_P)).astype(float)[patient_N]
    features_ND = np.column_stack([risk_P, others_PD])[patient_N]
    tuned_N = np.where(patient_N % 2, (risk_P + tuned * hidden_P)[patient_N], np.nan)
    logit_N, ones_N = slope * risk_P[patient_N] - shift, np.ones(len(patient_N))
    return UpdateSample(label_N, logit_N, patient_N, ones_N, features_ND, tuned_N)


@pytest.mark.parametrize(
    ("wrong", "method"),
    [
        ({}, "none"),
        ({"shift": 1.0}, "intercept"),
        ({"slope": 2.5}, "recalibration"),
        ({"missed": 1.0}, "head"),
        ({"tuned": 1.5}, "finetune"),
    ],
)
def test_the_smallest_update_that_suffices_is_chosen(rng, wrong, method):
    sample = hospital(rng, **wrong)
    about, change_D = choose_update(sample, "finetune", "af")
    assert about["method"] == method
    before = METHODS[: METHODS.index(method)]
    assert all(about["p_values"][m] < 0.05 for m in before) and about["p_values"][method] >= 0.05
    line_N = about["offset"] + about["slope"] * sample.logits_N
    if about["made"] == "head":
        line_N = line_N + sample.features_ND @ change_D
        assert change_D[1] == pytest.approx(1.0, abs=0.3) and abs(change_D[2]) < 0.3
    # the fit of all ECGs predicts as many cases as there are
    assert expit(line_N).mean() == pytest.approx(sample.labels_N.mean(), abs=0.03)
    expected = {"intercept": (1.0, 1.0), "recalibration": (0.4, 0.0), "none": (1.0, 0.0)}
    if method in expected:
        assert (about["slope"], about["offset"]) == pytest.approx(expected[method], abs=0.3)
        assert change_D is None


@pytest.mark.parametrize("up_to", ["intercept", "recalibration", "head"])
def test_no_larger_update_is_made_than_is_allowed(rng, up_to):
    about, _ = choose_update(hospital(rng, shift=1.0, slope=2.0, missed=1.0), up_to, "af")
    assert (
        about["method"] == up_to
        and list(about["p_values"]) == [*METHODS][: METHODS.index(up_to) + 1]
    )


def test_where_fine_tuning_is_best_the_run_of_the_head_has_the_next_update(rng):
    about, _ = choose_update(hospital(rng, tuned=1.5, shift=1.0), "finetune", "af")
    assert (about["method"], about["made"]) == ("finetune", "intercept")


def test_a_right_model_is_left_alone_although_patients_have_several_ecgs():
    """In 5 % and three standard errors; tools/coverage_tables.py update has more."""
    rng, needless = np.random.default_rng(5), 0
    for _ in range(150):
        sample = hospital(rng, patients=120)
        needless += choose_update(sample, "recalibration", "af")[0]["method"] != "none"
    assert needless <= 15
    sample = hospital(rng)
    as_patients = replace(sample, patient_N=np.arange(len(sample.patient_N)))
    one = choose_update(sample, "recalibration", "af")[0]["p_values"]["none"]
    assert one != choose_update(as_patients, "recalibration", "af")[0]["p_values"]["none"]


def test_weights_against_censoring_count_in_tests_and_fit(rng):
    """Half of the negatives are lost, and the others weigh double: the model is right."""
    sample = hospital(rng, patients=4000)
    lost = (sample.labels_N == 0) & (sample.patient_N % 2 == 1)
    arrays = [a[~lost] for a in vars(sample).values()]
    weight_n = np.where(arrays[0] == 0, 2.0, 1.0)
    unweighted = UpdateSample(*arrays)
    assert choose_update(unweighted, "recalibration", "af")[0]["method"] != "none"
    weighted = replace(unweighted, weights_N=weight_n)
    assert choose_update(weighted, "recalibration", "af")[0]["method"] == "none"


def test_classes_that_are_apart_end_in_a_method_and_finite_numbers(rng):
    patient_N = np.arange(60)
    label_N = (patient_N >= 40).astype(float)
    logit_N = np.linspace(-3, 3, 60)
    nan_N = np.full(60, np.nan)
    sample = UpdateSample(label_N, logit_N, patient_N, np.ones(60), logit_N[:, None], nan_N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        about, _ = choose_update(sample, "head", "af")
    assert about["method"] in METHODS and np.isfinite([about["slope"], about["offset"]]).all()


def test_logits_that_rank_the_wrong_way_round_are_said(rng):
    sample = hospital(rng, slope=-1.0)
    with pytest.raises(ValueError, match=r"af: platt calibration has slope .* wrong way round"):
        choose_update(sample, "recalibration", "af")


def test_splits_are_drawn_by_patient_and_all_but_test_is_for_validation():
    patients = np.repeat([f"p{n}" for n in range(200)], 2)
    index = pd.DataFrame({"patient": patients, "split": "test"})
    split = as_split(index, {"held_out": 0.5})["split"]
    assert split.groupby(patients).nunique().max() == 1
    assert split.value_counts(normalize=True)["test"] == pytest.approx(0.5, abs=0.1)
    merged = as_split(index, {"held_out": 0.5, "all_validate": True})["split"]
    assert ((merged == "test") == (split == "test")).all() and set(merged) == {"valid", "test"}
    assert (as_split(index, {"held_out": None, "all_validate": False})["split"] == "test").all()


def test_the_head_of_each_label_changes_as_its_tests_say(rng, monkeypatch):
    """Three labels: one with another slope, one with new weights, one with too few events."""
    model = build_model(TINY, 3, ModelConfig())
    sample, width = hospital(rng), TINY.encoder_embed_dim
    num = len(sample.labels_N)
    features_ND = rng.normal(size=(num, width)).astype(np.float32)
    label_NK = np.column_stack([sample.labels_N, sample.labels_N, np.zeros(num)])
    label_NK[:50, 0] = np.nan
    change_D = rng.normal(size=width)
    made = [({"made": "recalibration", "slope": 0.5, "offset": -1.0}, None)]
    made += [({"made": "head", "slope": 0.8, "offset": 2.0}, change_D)]
    seen = []

    def choose(sample, up_to, name):
        seen.append((name, len(sample.labels_N), sample.logits_N))
        return made[len(seen) - 1]

    monkeypatch.setattr("hpc_ecg.inference.update.choose_update", choose)
    monkeypatch.setattr("hpc_ecg.inference.update.predict", lambda *_: features_ND)
    valid = SimpleNamespace(
        labels_NK=label_NK.astype(np.float32),
        weights_NK=np.ones_like(label_NK),
        patients=sample.patient_N.astype(str).tolist(),
        records=[str(n) for n in range(num)],
        label_names=["a", "b", "c"],
    )
    prepared = SimpleNamespace(
        start=SimpleNamespace(model=model, report={}),
        data=SimpleNamespace(valid=valid),
        config=SimpleNamespace(data=SimpleNamespace(batch_size=8)),
    )
    old_NK = model.classify(torch.from_numpy(features_ND)).detach().numpy()
    engine = SimpleNamespace(prepare_inference=lambda module: None)
    _change_head(engine, prepared, up_to="head", tuned=None)
    new_NK = model.classify(torch.from_numpy(features_ND)).detach().numpy()
    assert [(name, n) for name, n, _ in seen] == [("a", num - 50), ("b", num)]
    assert seen[1][2] == pytest.approx(old_NK[:, 1], abs=1e-5)
    assert new_NK[:, 0] == pytest.approx(0.5 * old_NK[:, 0] - 1, abs=1e-5)
    expected_N = 0.8 * old_NK[:, 1] + 2 + features_ND @ change_D
    assert new_NK[:, 1] == pytest.approx(expected_N, abs=1e-4)
    assert (new_NK[:, 2] == old_NK[:, 2]).all()
    found = prepared.start.report["update"]
    assert found["a"]["n"] == num - 50 and "c: only 0 positive patients" in found["c"]["reason"]


# A run


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    assert main(["finetune", *words_for(shards, folder, "train.max_epochs=1")]) == 0
    return folder


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    """Shards of a new hospital without splits, where the log-odds of the label are 2 higher than
    the run says."""
    folder = tmp_path_factory.mktemp("other")
    table = write_cohort(folder, num_patients=60, seed=11, population=Population(af_prevalence=0.5))
    shard_ecgs(plan_for(table, folder / "mhi", fractions=(0.0, 0.0, 1.0)))
    opened, labels = open_shards(DataConfig(shards=str(folder / "mhi")))
    dataset = open_split(opened, "test", labels)
    counts = dataset.read(np.arange(len(dataset)))
    with torch.inference_mode():
        ecg_BCS = torch.from_numpy(counts * np.float32(dataset.millivolts_per_count))
        logit_N = load_model(run / "best")(ecg_BCS)[:, 0].numpy()
    index = pd.read_parquet(folder / "mhi" / "index.parquet")
    index["label.af"] = (np.random.default_rng(4).random(len(index)) < expit(logit_N + 2)) * 1.0
    reseal(folder / "mhi", index)
    return folder / "mhi"


@pytest.fixture
def few_suffice(monkeypatch):
    monkeypatch.setattr("hpc_ecg.evaluation.events.MIN_EVENTS", 3)


@pytest.mark.slow
def test_a_run_is_updated_and_the_new_run_is_whole(run, other, tmp_path, capsys, few_suffice):
    out = tmp_path / "new"
    assert main(["update", str(run), "--shards", str(other), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    about = json.loads((out / "update.json").read_text())
    assert about["tests"]["af"]["method"] == about["tests"]["af"]["made"] == "intercept"
    assert "- af: intercept is what the data support (that none suffices: p " in said
    assert "warning: the update rests on" in said and "Held out: 50.0 % of the patients" in said
    # the held-out patients are in nothing but the test
    valid = read_predictions(out / "predictions" / "valid.parquet")
    test = read_predictions(out / "predictions" / "test.parquet").sorted()
    index = pd.read_parquet(other / "index.parquet")
    assert not set(valid.patient_N) & set(test.patient_N)
    assert {*valid.record_N, *test.record_N} == set(index["record"])
    # the update is in the head, and nothing else has changed
    old = read_predictions(out / "evaluations" / "before" / "predictions.parquet").sorted()
    offset = about["tests"]["af"]["offset"]
    assert offset > 0.3
    assert test.logit_NK == pytest.approx(old.logit_NK + offset, abs=1e-4)
    gained = about["gained"]["af"]
    assert gained["auroc"]["value"] == 0 and gained["log_loss"]["high"] < 0
    ratio = {when: about[when]["af"]["o_e"]["value"] for when in ("before", "after")}
    assert abs(ratio["after"] - 1) < abs(ratio["before"] - 1)
    # where it comes from
    source = run / "best" / "model.safetensors"
    last = read_checkpoint(out / "best").provenance[-1]
    assert last["update"] == {"af": "intercept"} and last["sha256"] == sha256_of(source)
    assert check_record(out / "update.json") and check_record(out / "finished.json")
    # started again, it goes on where it was
    assert main(["update", str(run), "--shards", str(other), "--out", str(out)]) == 0
    assert json.loads((out / "update.json").read_text()) == about
    words = ["update", str(run), "--shards", str(other), "--out", str(out), "--up-to"]
    for up_to in ("intercept", "finetune"):
        assert main([*words, up_to]) == 2
        assert "was made with --up-to head; give another --out" in capsys.readouterr().err
    assert not out.with_name("new-finetune").exists()
    # what others read
    assert main(["bundle", str(out), str(tmp_path / "bundle")]) == 0
    assert "af: intercept is what the data support" in (tmp_path / "bundle/CARD.md").read_text()
    assert main(["report", str(out), "--replicates", "200"]) == 0
    page = (out / "report" / "index.html").read_text()
    assert "Updated for a new hospital" in page and "calibration slope" in page
    card = next((out / "report" / "cards").glob("*/MODEL_CARD.md")).read_text()
    assert "af: intercept is what the data support" in card


@pytest.mark.parametrize("share", ["1e-09", "0.999999"])
def test_a_share_that_leaves_nobody_is_refused_before_anything_is_written(
    run, other, tmp_path, capsys, share
):
    words = ["update", str(run), "--shards", str(other), "--out", str(tmp_path / "new")]
    assert main([*words, "--share", share]) == 2
    error = capsys.readouterr().err
    assert (
        f"--share {share} holds no patient out, or leaves none" in error and error.count("\n") == 1
    )
    assert not (tmp_path / "new").exists()


def test_too_few_events_are_refused_before_anything_is_written(run, other, tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["update", str(run), "--shards", str(other), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "negative patients in the part to update on; an update needs 10" in error
    assert not (out / "config.yaml").exists()


@pytest.mark.parametrize("by", ["signal", "pseudonym"])
def test_patients_that_the_run_was_trained_on_are_refused(
    run, shards, other, tmp_path, capsys, monkeypatch, by
):
    folder = tmp_path / "mixed"
    shutil.copytree(other, folder)
    index = pd.read_parquet(folder / "index.parquet")
    known = pd.read_parquet(shards / "index.parquet")
    first = known[known["split"] == "train"].iloc[0]
    if by == "signal":
        index.loc[0, "sha256"] = first["sha256"]
    else:  # as if one key had made the pseudonyms of both
        monkeypatch.setattr("hpc_ecg.training.evaluate.KEYED", "p[0-9]{8}")
    reseal(folder, index)
    assert main(["update", str(run), "--shards", str(folder)]) == 2
    assert "(or their patients) are among those that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--share", "1.5"], "held_out must be"),
        (["--up-to", "all"], "invalid choice: 'all'"),
    ],
)
def test_a_wrong_option_is_one_line(run, other, capsys, words, error):
    try:
        code = main(["update", str(run), "--shards", str(other), *words])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and error in lines[-1]
