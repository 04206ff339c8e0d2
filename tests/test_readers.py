"""Whole runs with either reader, sampling and augmentation: the same on any number of ranks."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import reseal, words_for
from ranks import run_on_ranks
from safetensors.torch import load_file

from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.data.loader import MicroBatch
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.model_inputs import model_inputs
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model

pytestmark = pytest.mark.slow  # each runs several trainings
NO_DROPOUT = "model.activation_dropout=0"
STREAM = ("data.read=stream", "data.stream_lanes=2", "data.stream_buffer=8")
AUGMENT = ("augment.noise_mv=0.05", "augment.lead_mask=0.1", "augment.shift_s=0.2")


def run(words) -> RunFolder:
    return finetune(load_config(FinetuneConfig, [], words))


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "more",
    [
        (*STREAM, *AUGMENT, "data.sampling=balanced"),
        (*STREAM, "train.freeze=backbone"),
    ],
    ids=["stream, balanced, augmented", "features of a stream"],
)
def test_a_run_stopped_in_mid_epoch_resumes_to_the_same_bits(shards, tmp_path, monkeypatch, more):
    more = ("train.save_every=1", "train.max_epochs=1", *more)
    whole = run(words_for(shards, tmp_path / "whole", *more))
    real, taken = Engine.take_step, []

    def take_step(self, *arguments, **named):
        if len(taken) == 2:
            raise StoppedError
        taken.append(1)
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "take_step", take_step)
        with pytest.raises(StoppedError):
            run(words_for(shards, tmp_path / "run", *more))
    folder = run(words_for(shards, tmp_path / "run", *more))
    assert losses(folder) == losses(whole)
    ours, theirs = (load_file(f.best / "model.safetensors") for f in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_ranks_give_the_curve_and_predictions_of_one_process(shards, tmp_path):
    # a batch of 13 is uneven over the ranks; a micro-batch of 2 makes dummies
    more = (*STREAM, *AUGMENT, NO_DROPOUT, "data.batch_size=13", "engine.micro_batch_size=2")
    one = run(words_for(shards, tmp_path / "one", *more))
    run_on_ranks(2, ["finetune", *words_for(shards, tmp_path / "two", *more)])
    two = RunFolder(tmp_path / "two")
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    a, b = (pd.read_parquet(f.predictions / "valid.parquet") for f in (one, two))
    assert a["record"].tolist() == b["record"].tolist()
    np.testing.assert_allclose(a["af.logit"], b["af.logit"], rtol=1e-3, atol=1e-3)


def test_predictions_do_not_depend_on_the_reader(shards, tmp_path):
    more = ("train.max_epochs=0", "train.freeze=none")
    by_map = run(words_for(shards, tmp_path / "map", *more))
    by_stream = run(words_for(shards, tmp_path / "stream", *more, *STREAM))
    a, b = (f.predictions / "valid.parquet" for f in (by_map, by_stream))
    pd.testing.assert_frame_equal(pd.read_parquet(a), pd.read_parquet(b))


def test_augmentation_changes_the_training_and_nothing_else(shards, tmp_path):
    """Also with a frozen backbone, whose features could have been cached."""
    probe = ("train.freeze=backbone", "train.max_steps=2", "optim.lr=1e-30")
    plain = run(words_for(shards, tmp_path / "plain", *probe))
    noisy = run(words_for(shards, tmp_path / "noisy", *probe, "augment.noise_mv=0.5"))
    assert losses(plain) != losses(noisy)
    a, b = (pd.read_parquet(f.predictions / "valid.parquet") for f in (plain, noisy))
    np.testing.assert_allclose(a["af.logit"], b["af.logit"], atol=1e-5)


# Records padded with zeros


@pytest.fixture(scope="module")
def padded(shards, tmp_path_factory):
    """The shards, with an index that states that every third record is 6 s long."""
    folder = shutil.copytree(shards, tmp_path_factory.mktemp("padded") / "set")
    index = pd.read_parquet(folder / "index.parquet")
    index["samples"] = np.where(np.arange(len(index)) % 3 == 0, 1500, 2500)
    reseal(folder, index)
    return folder


def test_only_padded_records_get_a_mask(padded, shards):
    for folder, expected in ((padded, {1500, 2500}), (shards, None)):
        opened, names = open_shards(DataConfig(shards=str(folder)))
        dataset = open_split(opened, "train", names)
        samples = dataset.samples(np.arange(len(dataset)))
        assert expected == (None if samples is None else set(samples.tolist()))
    micro = MicroBatch(
        counts_nCS=np.ones((2, 12, 2500), np.int16),
        samples_n=np.array([1500, 2500]),
        positions=np.array([0, 1]),
        labels_nK=np.zeros((2, 1), np.float32),
    )
    ecg_nCS, mask_nS, _ = model_inputs(micro, torch.device("cpu"), 0.001)
    assert mask_nS.sum(1).tolist() == [1000, 0] and not mask_nS[0, :1500].any()
    assert ecg_nCS[0, :, 1500:].abs().max() == 0 and (ecg_nCS[1] != 0).all()


@pytest.mark.parametrize("freeze", ["none", "backbone"], ids=["the model", "cached features"])
def test_predictions_ignore_padding(padded, tmp_path, freeze):
    more = ("train.max_epochs=0", f"train.freeze={freeze}")
    folder = run(words_for(padded, tmp_path / "run", *more))
    logits_N = pd.read_parquet(folder.predictions / "valid.parquet")["af.logit"].to_numpy()
    opened, names = open_shards(DataConfig(shards=str(padded)))
    valid = open_split(opened, "valid", names)
    model = load_model(folder.best)
    samples_N = valid.samples(np.arange(len(valid)))
    ecg = torch.from_numpy(valid.read(np.arange(len(valid)))).float() / 1000
    mask = torch.arange(2500) >= torch.from_numpy(samples_N)[:, None]
    with torch.inference_mode():
        expected_N = model(ecg.masked_fill(mask[:, None], 0), mask)[:, 0].numpy()
        unmasked_N = model(ecg)[:, 0].numpy()
    np.testing.assert_allclose(logits_N, expected_N, atol=1e-4)
    assert np.abs(unmasked_N - expected_N)[samples_N == 1500].min() > 1e-3


def test_padded_records_train(padded, tmp_path):
    folder = run(words_for(padded, tmp_path / "run", "train.max_steps=3", *AUGMENT))
    assert np.isfinite(losses(folder)).all()
