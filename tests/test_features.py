"""Features of a frozen backbone: computed once, found again, the same numbers as without."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES, reseal, words_for
from ranks import run_on_ranks

from hpc_ecg.config.load import load_config
from hpc_ecg.safe_reading import read_json, sha256_of
from hpc_ecg.training import features, user_key
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model
from hpc_ecg.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow  # each runs several trainings
PROBE = "train.freeze=backbone"


@pytest.fixture
def own_shards(shards, tmp_path) -> Path:
    """A copy: features are kept beside the shards."""
    return Path(
        shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("features"))
    )


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The splits that went through a backbone, in order."""
    splits, real = [], features.predict

    def predict(engine, dataset, *more):
        splits.append(dataset.split)
        return real(engine, dataset, *more)

    monkeypatch.setattr(features, "predict", predict)
    return splits


def run(words) -> RunFolder:
    return finetune(load_config(FinetuneConfig, [], words))


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] in ("step", "eval")]


def logits(folder, split="valid"):
    return pd.read_parquet(folder.predictions / f"{split}.parquet")["af.logit"]


def cached(folder) -> list[str]:
    return sorted(path.name.split("-")[-1] for path in (folder / "features").glob("*.npy"))


def test_cached_and_uncached_probes_agree(own_shards, tmp_path, computed):
    with_cache = run(words_for(own_shards, tmp_path / "a", PROBE))
    assert computed == ["train", "valid"]
    without = run(words_for(own_shards, tmp_path / "b", PROBE, "train.feature_cache=null"))
    assert computed == ["train", "valid"]
    np.testing.assert_allclose(losses(with_cache), losses(without), atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits(with_cache), logits(without), atol=1e-5, rtol=0)
    for folder in (with_cache, without):
        evaluate(load_config(FinetuneConfig, [str(folder.config)], []))
    np.testing.assert_allclose(logits(with_cache, "test"), logits(without, "test"), atol=1e-5)
    assert computed == ["train", "valid", "test"]


def test_the_backbone_runs_once_for_all_seeds_rates_and_evaluations(own_shards, tmp_path, computed):
    for k, more in enumerate(([], ["seed=1"], ["optim.lr=0.01"])):
        folder = run(words_for(own_shards, tmp_path / f"run-{k}", PROBE, *more))
        evaluate(load_config(FinetuneConfig, [str(folder.config)], []))
    assert sorted(computed) == ["test", "train", "valid"]
    assert cached(own_shards) == ["test.npy", "train.npy", "valid.npy"]


def test_recalibration_looks_at_validation_alone(
    own_shards, tmp_path, computed, few_events_suffice
):
    words = words_for(own_shards, tmp_path / "run", PROBE, "train.max_epochs=0")
    words = [word for word in words if not word.startswith("init.")]
    words += [
        f"init.checkpoint={FIXTURES / 'tiny_wcr_afib_5y.pt'}",
        "train.calibration=temperature",
    ]
    folder = run(words)
    assert computed == ["valid"]
    assert read_json(folder.finished)["steps"] == 0
    fit = read_json(folder.best / "calibration.json")["af"]
    assert fit["kind"] == "temperature" and fit["fitted_on"] == "valid"
    start, best = load_model(FIXTURES / "tiny_wcr_afib_5y.pt"), load_model(folder.best)
    assert torch.allclose(best.head.weight, start.head.weight * fit["slope"])
    done = [step["action"] for step in read_checkpoint(folder.best).provenance]
    assert done == ["finetune", "calibrate"]
    evaluate(load_config(FinetuneConfig, [str(folder.config)], []))
    assert computed == ["valid", "test"]


def test_a_calibration_is_not_done_twice_if_the_run_died_after_it(
    own_shards, tmp_path, monkeypatch, few_events_suffice
):
    def words(name):
        chosen = words_for(own_shards, tmp_path / name, PROBE, "train.calibration=platt")
        return [*chosen, "train.max_epochs=8", "optim.lr=0.05"]  # so that it ranks rightly

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", _die)
        with pytest.raises(RuntimeError, match="died"):
            run(words("a"))
    again, whole = run(words("a")), run(words("b"))
    assert read_json(whole.best / "calibration.json")["af"]["kind"] == "platt"
    for part in ("calibration.json", "operating_point.json"):
        assert read_json(again.best / part) == read_json(whole.best / part)
    np.testing.assert_allclose(logits(again), logits(whole), atol=1e-6)
    assert torch.equal(load_model(again.best).head.weight, load_model(whole.best).head.weight)


def _die(*_):
    raise RuntimeError("died")


def test_labels_do_not_matter_to_the_cache(own_shards, tmp_path, computed):
    """Other labels for the same signals: the index is another one, the features are the same."""
    run(words_for(own_shards, tmp_path / "a", PROBE))
    index = pd.read_parquet(own_shards / "index.parquet")
    index["label.af"] = 1 - index["label.af"]
    reseal(own_shards, index)
    run(words_for(own_shards, tmp_path / "b", PROBE))
    assert computed == ["train", "valid"]


@pytest.mark.parametrize("events", ["few", "enough"])
def test_a_label_that_cannot_be_calibrated_costs_nothing_but_the_calibration(
    own_shards, tmp_path, monkeypatch, events
):
    if events == "enough":
        monkeypatch.setattr("hpc_ecg.evaluation.events.MIN_EVENTS", 1)
    words = [w for w in words_for(own_shards, tmp_path / "a", PROBE) if not w.startswith("init.")]
    words += [f"init.checkpoint={FIXTURES / 'tiny_wcr_afib_5y.pt'}", "train.max_epochs=0"]
    folder = run([*words, "train.calibration=platt"])  # its weights are random: they rank wrongly
    fit = read_json(folder.best / "calibration.json")["af"]
    assert fit["kind"] == "none" and fit["reason"] != ""
    told = {"few": "platt calibration needs 10 with each outcome", "enough": "the wrong way round"}
    assert told[events] in fit["reason"]
    start, best = load_model(FIXTURES / "tiny_wcr_afib_5y.pt"), load_model(folder.best)
    assert torch.equal(start.head.weight, best.head.weight)


def test_other_weights_or_arithmetic_have_features_of_their_own(own_shards, tmp_path, computed):
    run(words_for(own_shards, tmp_path / "a", PROBE))
    other = [w for w in words_for(own_shards, tmp_path / "b", PROBE) if not w.startswith("init.")]
    run([*other, f"init.checkpoint={FIXTURES / 'tiny_wcr_afib_5y.pt'}", "init.head=new"])
    assert computed == ["train", "valid"] * 2
    run(words_for(own_shards, tmp_path / "c", PROBE, "engine.precision=bf16"))
    assert computed == ["train", "valid"] * 3
    run(words_for(own_shards, tmp_path / "d", PROBE, "model.attention=math"))
    assert computed == ["train", "valid"] * 4


def test_damaged_features_are_computed_again_and_said(own_shards, tmp_path, computed, caplog):
    first = run(words_for(own_shards, tmp_path / "a", PROBE))
    path = next((own_shards / "features").glob("*-train.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    caplog.set_level("WARNING", logger="hpc_ecg")
    again = run(words_for(own_shards, tmp_path / "b", PROBE))
    assert computed == ["train", "valid", "train"]
    assert "is not as this user wrote it" in caplog.text
    assert losses(again) == losses(first)


def test_what_another_user_or_nobody_signed_is_computed_again(tmp_path, monkeypatch):
    """The keys of two users; then one whose key cannot be kept, who believes no earlier file."""

    def become(name):
        monkeypatch.setenv("HPC_ECG_CACHE", str(tmp_path / name))
        user_key._key.cache_clear()

    path, values = tmp_path / "features.npy", np.ones((3, 4), np.float32)
    become("we")
    features.write_signed(path, values, {}, "inputs")
    assert features.is_signed(path, "inputs") and not features.is_signed(path, "other inputs")
    assert (tmp_path / "we" / "user.key").stat().st_mode & 0o077 == 0
    become("they")
    assert not features.is_signed(path, "inputs")
    path.with_suffix(".json").write_text(json.dumps({"sha256": sha256_of(path)}))  # as 0.1 wrote
    become("we")
    assert not features.is_signed(path, "inputs")
    for broken in ("[]", "{", "[" * 10**5, "null"):
        path.with_suffix(".json").write_text(broken)
        assert not features.is_signed(path, "inputs")
    (tmp_path / "file").touch()
    become("file/no-folder")
    features.write_signed(path, values, {}, "inputs")
    assert features.is_signed(path, "inputs")
    become("file/no-folder")
    assert not features.is_signed(path, "inputs")
    user_key._key.cache_clear()


def test_a_folder_of_ones_own_can_be_named_and_one_that_cannot_be_made_is_refused(
    own_shards, tmp_path
):
    run(words_for(own_shards, tmp_path / "a", PROBE, f"train.feature_cache={tmp_path / 'here'}"))
    assert len(list((tmp_path / "here").glob("*.npy"))) == 2
    assert not (own_shards / "features").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"train.feature_cache=.*file/x cannot be made"):
        run(words_for(own_shards, tmp_path / "b", PROBE, f"train.feature_cache={tmp_path}/file/x"))


def test_shards_that_cannot_be_written_to_leave_the_features_in_the_run(
    own_shards, tmp_path, monkeypatch
):
    real = features.make_writable

    def make_writable(folder, what):
        if folder.parent == own_shards:  # root may write everywhere, so say it for them
            raise ValueError(f"{what}={folder} cannot be made: Read-only file system")
        return real(folder, what)

    monkeypatch.setattr(features, "make_writable", make_writable)
    folder = run(words_for(own_shards, tmp_path / "a", PROBE))
    assert cached(folder.path) == ["train.npy", "valid.npy"]
    assert not (own_shards / "features").exists()


def test_dropout_before_pooling_is_never_cached(own_shards, tmp_path, computed):
    run(words_for(own_shards, tmp_path / "a", PROBE, "model.final_dropout=0.1"))
    assert computed == []


def test_a_backbone_that_trained_is_never_looked_up(own_shards, tmp_path, computed):
    folder = run(words_for(own_shards, tmp_path / "a", "train.max_epochs=1"))
    evaluate(load_config(FinetuneConfig, [str(folder.config)], []))
    assert computed == []
    assert not (own_shards / "features").exists()


@pytest.mark.slow
def test_two_runs_at_once_and_two_ranks_compute_them_once(own_shards, tmp_path):
    commands = [["finetune", *words_for(own_shards, tmp_path / n, PROBE)] for n in ("a", "b")]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda words: run_on_ranks(1, words)[0], commands))
    assert sum("features of split train: computed once" in text for text in outputs) == 1
    assert cached(own_shards) == ["train.npy", "valid.npy"]
    run_on_ranks(2, ["finetune", *words_for(own_shards, tmp_path / "c", PROBE)])
    a, c = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "c")
    np.testing.assert_allclose(losses(a), losses(c), rtol=1e-5)
    assert cached(own_shards) == ["train.npy"] * 2 + ["valid.npy"] * 2
    found = run_on_ranks(2, ["finetune", *words_for(own_shards, tmp_path / "d", PROBE)])
    assert "computed once" not in found[0]
    assert losses(RunFolder(tmp_path / "d")) == losses(c)


def test_what_another_run_left_changes_no_bit(own_shards, tmp_path, computed):
    """Features of other batches differ in their last bits: they are nobody else's."""
    first = run(words_for(own_shards, tmp_path / "a", PROBE))
    run(words_for(own_shards, tmp_path / "b", PROBE, "data.batch_size=1"))
    assert computed == ["train", "valid"] * 2
    shutil.rmtree(own_shards / "features")
    run(words_for(own_shards, tmp_path / "c", PROBE, "data.batch_size=1"))
    again = run(words_for(own_shards, tmp_path / "d", PROBE))
    assert losses(again) == losses(first) and logits(again).equals(logits(first))
