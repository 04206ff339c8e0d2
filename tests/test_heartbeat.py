"""ECGs are measured in their time, once, for this user; irregular rhythms differ from others."""

import csv
import os
import shutil

import numpy as np
import pytest
from conftest import words_for
from sklearn.metrics import roc_auc_score

from hpc_ecg.comparison import heartbeat
from hpc_ecg.comparison.baselines import write_baselines
from hpc_ecg.comparison.heartbeat import FEATURES, IRREGULARITY, features_of, rhythm_of
from hpc_ecg.comparison.label_models import fit_best
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.files import find_recording, read_recording
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.hashing import read_record
from hpc_ecg.training import user_key
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def config(shards, tmp_path) -> FinetuneConfig:
    ignored = shutil.ignore_patterns("features")
    shutil.copytree(shards, tmp_path / "shards", ignore=ignored)
    return load_config(FinetuneConfig, [], words_for(tmp_path / "shards", tmp_path / "run"))


@pytest.fixture
def splits(config):
    opened, labels = open_shards(config.data)
    return {split: open_split(opened, split, labels) for split in ("train", "valid", "test")}


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """One entry for each ECG that is measured in this process."""
    seen, real = [], heartbeat.features_of
    monkeypatch.setattr(heartbeat, "features_of", lambda *a: seen.append(1) or real(*a))
    return seen


def become(monkeypatch, folder):
    monkeypatch.setenv("HPC_ECG_CACHE", str(folder))
    user_key._key.cache_clear()


def test_the_features_are_those_of_the_rr_intervals():
    rr = np.array([200.0, 220.0, 180.0, 200.0])
    beats = np.r_[100, 100 + np.cumsum(rr)].astype(int)
    changes = np.array([20.0, 40.0, 20.0])
    rmssd = np.sqrt(np.mean(changes**2))
    # similar pairs of the first three intervals: (200, 220), (200, 180); then (220, 180) is not
    # similar and (220, 200) is
    known = [np.log(rmssd / 200), np.log(rr.std() / 200), np.log(20 / 200), 1 / 3, np.log(2)]
    np.testing.assert_allclose(rhythm_of(beats), known)
    assert np.isnan(rhythm_of(beats[:2])).all()
    assert np.isfinite(rhythm_of(np.array([0, 250, 500]))).all()  # perfectly regular


def test_what_was_measured_is_found_again_and_is_the_same_in_many_processes(
    splits, tmp_path, counted, monkeypatch
):
    rows, x_NF = heartbeat.measure_splits(splits, tmp_path / "made", 10)
    total = sum(len(dataset) for dataset in splits.values())
    assert len(counted) == total and [len(rows[s]) for s in splits] == [
        len(splits[s]) for s in splits
    ]
    again, y_NF = heartbeat.measure_splits(splits, tmp_path / "made", 10)
    assert len(counted) == total and not (tmp_path / "made").exists()
    shutil.rmtree(tmp_path / "shards" / "features")
    monkeypatch.setattr(heartbeat, "MAX_IN_ONE_PROCESS", 1)
    _, z_NF = heartbeat.measure_splits(splits, tmp_path / "made", 10)
    assert len(counted) == total
    test = splits["test"]
    signal = test.shards.signal
    for split in splits:
        np.testing.assert_array_equal(rows[split], again[split])
        np.testing.assert_array_equal(x_NF[split], y_NF[split])
        np.testing.assert_array_equal(x_NF[split], z_NF[split])
    ecg_CS = test.read(np.array([rows["test"][2]]))[0] * test.millivolts_per_count
    plain_F = features_of(ecg_CS, signal.leads, signal.sample_rate_hz)
    np.testing.assert_array_equal(x_NF["test"][2], plain_F)


def test_what_somebody_else_left_beside_the_shards_is_measured_again(
    splits, tmp_path, counted, monkeypatch, caplog
):
    try:
        become(monkeypatch, tmp_path / "they")
        heartbeat.measure_splits(splits, tmp_path / "made", 10)
        total = len(counted)
        become(monkeypatch, tmp_path / "we")
        heartbeat.measure_splits(splits, tmp_path / "made", 10)
        assert len(counted) == 2 * total
        for path in (tmp_path / "shards" / "features").glob("*.npy"):
            path.write_bytes(path.read_bytes()[:-8] + b"12345678")
        heartbeat.measure_splits(splits, tmp_path / "made", 10)
        assert len(counted) == 3 * total and "not as this user wrote it" in caplog.text
    finally:
        user_key._key.cache_clear()


def test_where_the_shards_cannot_be_written_it_is_kept_with_the_baselines(
    splits, tmp_path, counted, monkeypatch
):
    access = os.access
    is_shards = lambda path: str(path) == str(tmp_path / "shards")  # noqa: E731
    monkeypatch.setattr(os, "access", lambda p, mode: not is_shards(p) and access(p, mode))
    heartbeat.measure_splits(splits, tmp_path / "made", 10)
    assert len(list((tmp_path / "made" / "features").glob("measured-*.npy"))) == 1
    assert not (tmp_path / "shards" / "features").exists()


def test_the_next_report_goes_on_where_the_time_was_over(config, tmp_path, counted, monkeypatch):
    monkeypatch.setattr(heartbeat, "CHUNK", 8)
    monkeypatch.setattr(heartbeat, "MIN_TRAINING_RECORDS", 8)
    assert write_baselines(config, tmp_path / "made", 0) == ["prevalence", "age_sex"]
    reasons = read_record(tmp_path / "made" / "baselines.json")["left_out"]
    assert set(reasons) == {"rr_irregularity", "ecg_measurements"}
    assert reasons["ecg_measurements"].startswith("0 minutes sufficed for 8 of ")
    assert "--baseline-minutes" in reasons["rr_irregularity"] and len(counted) == 8
    monkeypatch.setattr(heartbeat, "CHUNK", 16)
    for _ in range(8):
        made = write_baselines(config, tmp_path / "made", 0)
        if "ecg_measurements" in made:
            break
    assert made == ["prevalence", "age_sex", "rr_irregularity", "ecg_measurements"]
    details = read_record(tmp_path / "made" / "baselines.json")["details"]["ecg_measurements"]
    assert 8 <= details["trained_on"] < details["of_training_records"]
    before = len(counted)
    assert write_baselines(config, tmp_path / "made", 0) == made and len(counted) == before


def known_of(label_N, is_regression=False):
    names = np.array([f"{i}" for i in range(len(label_N))], dtype=object)
    label_NK = label_N[:, None].astype(float)
    p_NK = None if is_regression else np.full_like(label_NK, 0.5)
    zeros_NK = np.zeros_like(label_NK)
    patients = np.array([f"p{i // 2}" for i in range(len(label_N))], dtype=object)
    return Predictions(
        record_N=names,
        patient_N=patients,
        labels=["y"],
        label_NK=label_NK,
        logit_NK=zeros_NK,
        probability_NK=p_NK,
    )


@pytest.mark.parametrize("is_regression", [False, True])
def test_the_kind_of_model_that_fits_best_is_chosen(rng, is_regression):
    x_NF = rng.normal(size=(600, 3))
    noise_N = rng.normal(size=600) / 2
    for score_N, kind in ((x_NF[:, 0], "linear"), (2 * np.abs(x_NF[:, 1]) - 1.6, "gradient")):
        score_N = score_N + noise_N
        label_N = score_N if is_regression else (score_N > 0).astype(float)
        known_NF = np.where(rng.random(x_NF.shape) < 0.02, np.nan, x_NF)
        model, name = fit_best(known_of(label_N, is_regression), 0, known_NF)
        assert name.startswith(kind)
        assert np.corrcoef(model(x_NF), score_N)[0, 1] > 0.75
    few_N = np.zeros(600)
    few_N[:16:2] = 1  # of 8 patients
    assert fit_best(known_of(few_N), 0, x_NF)[1] == "linear, penalty 10"
    with pytest.raises(ValueError, match="y: "):
        fit_best(known_of(np.zeros(20)), 0, x_NF[:20])


def test_irregularity_fitted_on_other_sources_separates_af_in_ptb_xl(real_data):
    """The first 100 recordings of PTB-XL, and all with AF, are enough for the time of a test."""
    features, labels, is_ptb = [], [], []

    def add(folder, name, label):
        recording = read_recording(find_recording(folder, name), ArrayLayout())
        counts_LS = prepare(recording, SignalSpec(), "zero")[0].counts_LS
        features.append(features_of(counts_LS / 1000, SignalSpec().leads, 250))
        labels.append(float(label))
        is_ptb.append(folder.name == "ptbxl")

    ecgs = real_data / "ecg"
    for header in sorted((ecgs / "cpsc2018").glob("*.hea")):
        add(header.parent, header.stem, "#Dx: AF" in header.read_text())
    with (ecgs / "ptbxl" / "table.csv").open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            if row["af"] == "1" or number < 100:
                add(ecgs / "ptbxl", row["file"], row["af"])
    x_NF = np.array(features)[:, [FEATURES.index(name) for name in IRREGULARITY]]
    y_N, is_ptb_N = np.array(labels), np.array(is_ptb)
    model, _ = fit_best(known_of(y_N[~is_ptb_N]), 0, x_NF[~is_ptb_N])
    assert roc_auc_score(y_N[is_ptb_N], model(x_NF[is_ptb_N])) > 0.96
