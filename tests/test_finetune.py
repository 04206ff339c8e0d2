"""One run: same result however it was stopped or spread; each strategy changes what it should."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES, TINY_MODEL, plan_for, words_for
from omegaconf import OmegaConf
from ranks import run_on_ranks
from safetensors.torch import load_file

from hpc_ecg.cohort.table import Columns
from hpc_ecg.config.load import (
    SettingsSource,
    load_config,
    merge_sources,
    parse_override,
    read_yaml,
    to_yaml,
)
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.safe_reading import read_json
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.sweep.folder import read_events
from hpc_ecg.training import checkpoint, loop
from hpc_ecg.training.best_tracker import BestTracker
from hpc_ecg.training.best_weights import BestWeights
from hpc_ecg.training.checkpoint import complete_checkpoints
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model
from hpc_ecg.weights.initialize import initialize

GOLDEN = FIXTURES / "golden_curve.json"
NO_DROPOUT = "model.activation_dropout=0"


def run(words) -> RunFolder:
    return finetune(load_config(FinetuneConfig, [], words))


def events(folder: RunFolder | Path, kind: str) -> list[dict]:
    path = folder.metrics if isinstance(folder, RunFolder) else folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def lines_without_time(lines, kind: str) -> list[dict]:
    return [{**line, "time": None} for line in lines if line["event"] == kind]


def losses(folder) -> list[float]:
    return [line["loss"] for line in events(folder, "step")]


def same_tensors(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> RunFolder:
    """An uninterrupted run, with dropout on."""
    return run(words_for(shards, tmp_path_factory.mktemp("whole") / "run"))


def test_ten_steps_follow_the_stored_curve(shards, tmp_path):
    folder = run(words_for(shards, tmp_path / "run", "train.max_steps=10"))
    curve = losses(folder)
    if os.environ.get("HPC_ECG_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(curve) + "\n")
    np.testing.assert_allclose(curve, json.loads(GOLDEN.read_text()), rtol=2e-4)


def test_a_run_leaves_exactly_these_files(whole):
    files = {str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file()}
    steps = [path.name for path in complete_checkpoints(whole.checkpoints)]
    assert len(steps) == 2
    parts = ("COMPLETE", "model.safetensors", "optimizer.safetensors", "progress.json")
    assert files == {  # and neither a lock nor anything half-written
        *("config.yaml", "environment.json", "init_report.json", "metrics.jsonl", "finished.json"),
        *("best/model.safetensors", "best/operating_point.json", "predictions/valid.parquet"),
        *(f"checkpoints/{step}/{part}" for step in steps for part in parts),
    }


def test_the_loss_goes_down(whole):
    curve = losses(whole)
    assert np.mean(curve[-3:]) < np.mean(curve[:3])


def test_a_finished_run_is_left_as_it_is(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.path.rglob("*")}
    run(words_for(Path(_setting(whole, "data", "shards")), whole.path))
    assert {p: p.stat().st_mtime_ns for p in whole.path.rglob("*")} == before


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(whole, tmp_path):
    words = [f"run_dir={tmp_path / 'again'}"]
    again = finetune(load_config(FinetuneConfig, [str(whole.config)], words))
    assert same_tensors(whole.best / "model.safetensors", again.best / "model.safetensors")
    assert losses(again) == losses(whole)


def test_another_configuration_is_refused_but_not_what_does_not_change_the_result(whole, shards):
    with pytest.raises(ValueError, match=r"optim.lr: 0.002 there, 0.003 now"):
        run(words_for(shards, whole.path, "optim.lr=0.003"))
    run(words_for(shards, whole.path, "train.save_every=3", "engine.cpu_threads=2"))


class StoppedError(Exception):
    """Stands for the death of the process at a chosen place."""


def stop_at_step(monkeypatch, step):
    real, taken = Engine.take_step, []

    def take_step(self, *arguments, **named):
        if len(taken) == step:
            raise StoppedError
        taken.append(1)
        return real(self, *arguments, **named)

    monkeypatch.setattr(Engine, "take_step", take_step)


def stop_in_evaluation(monkeypatch, number):
    real, seen = BestTracker.score, []

    def score(self, logits_NK):
        seen.append(1)
        if len(seen) == number:
            raise StoppedError
        return real(self, logits_NK)

    monkeypatch.setattr(BestTracker, "score", score)


def stop_while_saving(monkeypatch, number):
    real, seen = checkpoint.save_file, []

    def save_file(tensors, path):
        seen.append(1)
        if len(seen) == 2 * number:  # weights and moments of each checkpoint
            raise StoppedError
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def stop_beside(owner, name, is_done, monkeypatch, number):
    """Stop at a call of this function, before or after it has done its work."""
    real, seen = getattr(owner, name), []

    def call(*arguments, **named):
        seen.append(1)
        stops = len(seen) == number
        if is_done or not stops:
            real(*arguments, **named)
        if stops:
            raise StoppedError

    monkeypatch.setattr(owner, name, call)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "where", "resumes_at"),
    [
        (stop_at_step, 2, None),
        (stop_at_step, 5, 4),
        (stop_in_evaluation, 1, 4),
        (stop_in_evaluation, 2, 8),
        (stop_while_saving, 1, None),
        (stop_while_saving, 2, 4),
        (partial(stop_beside, BestWeights, "save", False), 1, 4),
        (partial(stop_beside, BestWeights, "save", True), 1, 4),
        (partial(stop_beside, loop, "update_progress", False), 1, 4),
        (partial(stop_beside, loop, "update_progress", True), 1, 4),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    whole, shards, tmp_path, monkeypatch, stop, where, resumes_at
):
    words = words_for(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop(patch, where)
        with pytest.raises(StoppedError):
            run(words)
    folder = run(words)
    resumed = events(folder, "resumed")
    assert [line["step"] for line in resumed] == ([resumes_at] if resumes_at else [])
    # Each evaluation counts once: in the curve, and against patience.
    ours, theirs = (lines_without_time(read_events(f.metrics), "eval") for f in (folder, whole))
    assert ours == theirs
    newest = complete_checkpoints(whole.checkpoints)[-1].name
    for part in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (f.checkpoints / newest / part for f in (folder, whole))
        assert same_tensors(ours, theirs)
    assert same_tensors(folder.best / "model.safetensors", whole.best / "model.safetensors")
    ours, theirs = read_json(folder.finished), read_json(whole.finished)
    for key in ("best_score", "best_step", "steps", "stopped"):
        assert ours[key] == theirs[key]


@pytest.mark.slow
def test_a_run_killed_without_warning_goes_on_to_the_same_bits(whole, shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "train.save_every=1")
    command = [sys.executable, "-m", "hpc_ecg", "finetune", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 60
    while not complete_checkpoints(checkpoints) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    folder = run(words)
    assert events(folder, "resumed")
    assert same_tensors(folder.best / "model.safetensors", whole.best / "model.safetensors")


@pytest.mark.slow
def test_micro_batches_give_the_curve_of_the_whole_batch(shards, tmp_path):
    whole = run(words_for(shards, tmp_path / "a", NO_DROPOUT))
    pieces = run(words_for(shards, tmp_path / "b", NO_DROPOUT, "engine.micro_batch_size=5"))
    np.testing.assert_allclose(losses(pieces), losses(whole), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_give_the_curve_and_predictions_of_one_process(shards, tmp_path, num_ranks):
    # a batch of 13 is uneven over the ranks; a micro-batch of 2 makes dummies
    more = (NO_DROPOUT, "data.batch_size=13", "engine.micro_batch_size=2")
    one = run(words_for(shards, tmp_path / "one", *more))
    run_on_ranks(num_ranks, ["finetune", *words_for(shards, tmp_path / "many", *more)])
    many = RunFolder(tmp_path / "many")
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-5)
    run_on_ranks(num_ranks, ["evaluate", str(many.path)])
    run_on_ranks(1, ["evaluate", str(one.path)])
    for split in ("valid", "test"):
        a, b = (pd.read_parquet(f.predictions / f"{split}.parquet") for f in (one, many))
        assert a["record"].tolist() == b["record"].tolist()
        np.testing.assert_allclose(a["af.logit"], b["af.logit"], rtol=1e-3, atol=1e-4)
    assert read_json(many.finished)["processes"] == num_ranks


@pytest.mark.slow
def test_the_last_short_batch_is_a_mean_over_what_it_holds(shards, tmp_path):
    names = open_shards(DataConfig(shards=str(shards)))
    train = open_split(names[0], "train", names[1])
    size = len(train) - 1  # the second batch of an epoch holds one record
    more = (NO_DROPOUT, f"data.batch_size={size}", "train.max_epochs=1", "train.freeze=backbone")
    folder = run(words_for(shards, tmp_path / "run", *more, "optim.lr=1e-12"))
    assert len(losses(folder)) == 2
    assert all(0.2 < loss < 3 for loss in losses(folder))


CLASSIFIER = f"init.checkpoint={FIXTURES / 'tiny_wcr_afib_5y.pt'}"
FILES = ("files.base_ssl", "files.wcr_afib_5y")
STEM = "backbone.feature_extractor."


ALL_BUT_STEM = "all but the stem"
STRATEGIES = {
    "ssl_new_head": ALL_BUT_STEM,
    "afib_keep_head": ALL_BUT_STEM,
    "afib_reset_head": ALL_BUT_STEM,
    "ssl_linear_probe": "head",
    "afib_linear_probe": "head",
    "ssl_probe_then_finetune": ALL_BUT_STEM,
    "afib_recalibrate_only": "head",  # slope and offset
    "random": "all",
    "random_frozen_stem": ALL_BUT_STEM,
}
OPTIONS = ("ema", "frozen_half", "gradual_unfreezing", "layer_decay", "swa")
FOLDER = Path(__file__).parent.parent / "configs" / "strategies"


def test_every_strategy_and_option_is_judged_below():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STRATEGIES)
    assert {path.stem for path in (FOLDER / "with").glob("*.yaml")} == set(OPTIONS)


def run_strategy(shards, run_dir, strategy, *more):
    """One run by the strategy's own file, which says what is loaded; its settings."""
    files = (f"{name}={FIXTURES / f'tiny_{name[6:]}.pt'}" for name in FILES)
    words = words_for(shards, run_dir, *files, NO_DROPOUT, "train.max_epochs=1", *more)
    words = [word for word in words if not word.startswith("init.")]
    if strategy.startswith("random"):
        words += TINY_MODEL
    parts = strategy.split("+")
    yamls = [FOLDER / f"{parts[0]}.yaml", *(FOLDER / "with" / f"{part}.yaml" for part in parts[1:])]
    config = load_config(FinetuneConfig, [], words)
    own = [read_yaml(str(path)) for path in yamls]
    words_again = [parse_override(word, FinetuneConfig) for word in more]
    config = merge_sources(FinetuneConfig, [config_source(config), *own, *words_again])
    return finetune(config), config


def config_source(config) -> SettingsSource:
    return SettingsSource(OmegaConf.create(to_yaml(config)), "test")


def moved_tensors(folder, config) -> tuple[set[str], set[str]]:
    """Names that differ between the best weights and the start, and all names."""
    after = load_file(folder.best / "model.safetensors")
    start = initialize(config.init, config.model, 1, ["af"], "none", config.seed)
    before = start.model.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}, set(before)


def expected_of(kind, names):
    return {
        "all": names,
        ALL_BUT_STEM: {name for name in names if not name.startswith(STEM)},
        "head": {"head.weight", "head.bias"},
    }[kind]


def check_moved(folder, config, kind):
    moved, names = moved_tensors(folder, config)
    biases_of_keys = {name for name in names if name.endswith("k_proj.bias")}  # true gradient 0
    expected = expected_of(kind, names)
    assert moved | biases_of_keys == expected | biases_of_keys
    assert moved <= expected


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_changes_the_tensors_it_should(shards, tmp_path, strategy, few_events_suffice):
    """Judged on the weights: what trained moved, what is frozen did not."""
    more = ["optim.lr=0.002"]
    if strategy == "afib_recalibrate_only":
        more.append(
            "train.calibration=temperature"
        )  # platt would see that these weights are random
    folder, config = run_strategy(shards, tmp_path / "run", strategy, *more)
    check_moved(folder, config, STRATEGIES[strategy])
    report = read_json(folder.init_report)
    first = next(iter(config.train.stages.values()), config.train)
    assert report["freeze"]["asked"] == first.freeze  # not what it came to
    said = {name for name, about in report["parameters"].items() if about["trained"]}
    if strategy != "afib_recalibrate_only":  # nothing trains there
        assert said == expected_of(STRATEGIES[strategy], set(report["parameters"]))


@pytest.mark.slow
def test_without_any_freezing_all_of_it_trains(shards, tmp_path):
    more = ("train.freeze=none", "optim.lr=0.002")
    folder, config = run_strategy(shards, tmp_path / "run", "ssl_new_head", *more)
    check_moved(folder, config, "all")


@pytest.mark.slow
def test_a_kept_head_starts_from_the_file_and_a_reset_head_does_not(shards, tmp_path):
    kept, reset = (
        _first_logits(shards, tmp_path / head, CLASSIFIER, f"init.head={head}")
        for head in ("keep", "new")
    )
    model = load_model(FIXTURES / "tiny_wcr_afib_5y.pt")
    names = open_shards(DataConfig(shards=str(shards)))
    valid = open_split(names[0], "valid", names[1])
    with torch.inference_mode():
        ecg = torch.from_numpy(valid.read(np.arange(len(valid)))).float() / 1000
        expected = model(ecg).numpy()
    np.testing.assert_allclose(kept, expected, atol=1e-4)
    assert np.abs(reset - expected).max() > 0.01


def _first_logits(shards, run_dir, *words):
    """Validation logits before any training to speak of."""
    folder = run(words_for(shards, run_dir, *words, "train.max_steps=1", "optim.lr=1e-12"))
    return pd.read_parquet(folder.predictions / "valid.parquet")[["af.logit"]].to_numpy()


@pytest.mark.slow
def test_equal_seeds_pair_strategies_and_other_seeds_differ(shards, tmp_path):
    heads = []
    for name, words in {
        "a": ["init.head=new"],
        "b": [CLASSIFIER, "init.head=new"],
        "c": ["init.head=new", "seed=1"],
    }.items():
        more = (*words, "train.max_steps=1", "optim.lr=1e-12")
        folder = run(words_for(shards, tmp_path / name, *more))
        heads.append(load_file(folder.best / "model.safetensors")["head.weight"])
    assert torch.allclose(heads[0], heads[1], atol=1e-9)
    assert not torch.allclose(heads[0], heads[2], atol=1e-3)


@pytest.mark.slow
def test_patience_stops_a_run_that_no_longer_gains(shards, tmp_path):
    # with a learning rate of nothing no validation is strictly better than the first
    more = ("train.patience=2", "train.eval_every=1", "train.max_epochs=9", "optim.lr=1e-30")
    folder = run(words_for(shards, tmp_path / "run", *more))
    finished = read_json(folder.finished)
    assert (finished["stopped"], finished["steps"], finished["best_step"]) == ("patience", 3, 1)


def test_a_prediction_that_is_not_a_number_fails_the_validation(shards):
    config = FinetuneConfig(run_dir="run", data=DataConfig(shards=str(shards)))
    opened, names = open_shards(config.data)
    best_tracker = BestTracker(open_split(opened, "valid", names), config)
    logits_NK = np.zeros((len(best_tracker.valid), 1), np.float32)
    logits_NK[3] = np.nan
    with pytest.raises(ValueError, match="predicts NaN or infinity on validation"):
        best_tracker.score(logits_NK)


@pytest.mark.parametrize(
    ("mean", "spread", "is_warned"),
    [(60, 12, True), (0, 1, False), (2, 1, False), (0, 400, True), (0, 0.01, True), (5, 0, False)],
)
def test_labels_that_a_new_head_is_far_from_are_warned_of(caplog, rng, mean, spread, is_warned):
    label_N = mean + spread * rng.normal(size=200)
    label_N[:9] = np.nan
    valid = SimpleNamespace(label_names=["lvef"], labels_NK=label_N[:, None])
    data = DataConfig(shards="set", task="regression")
    BestTracker(valid, FinetuneConfig(run_dir="run", data=data, loss=LossConfig(name="mse")))
    assert ("lvef is" in caplog.text and "standardized" in caplog.text) == is_warned


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_and_names_records(shards, tmp_path):
    with pytest.raises(ValueError, match=r"not finite at step \d+; lower optim.lr"):
        run(words_for(shards, tmp_path / "run", "optim.lr=1e30", "optim.clip_norm=null"))


@pytest.fixture(scope="module")
def three_labels(cohort, tmp_path_factory) -> Path:
    """The cohort with two binary labels, one partly missing, and a number to regress on."""
    table = pd.read_csv(cohort)
    table["male"] = (table["sex"] == "male").astype(int)
    table["years"] = table["age"] / 10
    path = cohort.parent / "three.csv"
    table.to_csv(path, index=False)
    out = tmp_path_factory.mktemp("three") / "set"
    columns = Columns(labels=["af", "male", "years"], patient="patient_id")
    shard_ecgs(plan_for(path, out, columns=columns))
    return out


@pytest.mark.slow
def test_several_labels_and_missing_ones_train_together(three_labels, tmp_path):
    labels = ("data.task=multilabel", "data.labels=[af,male]")
    folder = run(words_for(three_labels, tmp_path / "run", *labels, "train.max_epochs=1"))
    predictions = pd.read_parquet(folder.predictions / "valid.parquet")
    assert {"af.logit", "male.probability"} <= set(predictions.columns)
    assert set(read_json(folder.best / "operating_point.json")) == {"af", "male"}
    assert load_model(folder.best).head.weight.shape[0] == 2


@pytest.mark.slow
def test_a_number_can_be_regressed_on(three_labels, tmp_path):
    labels = ("data.task=regression", "data.labels=[years]", "loss.name=mse")
    folder = run(words_for(three_labels, tmp_path / "run", *labels, "train.max_epochs=4"))
    curve = losses(folder)
    assert np.mean(curve[-3:]) < 0.5 * np.mean(curve[:3])
    assert "years.probability" not in pd.read_parquet(folder.predictions / "valid.parquet")


@pytest.mark.slow
def test_a_model_can_start_from_random_weights_and_trains_its_stem(shards, tmp_path):
    words = [*TINY_MODEL, "init.checkpoint=random", "train.max_steps=1"]
    folder = run(words_for(shards, tmp_path / "run", *words))
    report = read_json(folder.init_report)
    assert report["counts"]["tensors_loaded"] == report["counts"]["tensors_frozen"] == 0


@pytest.mark.slow
def test_other_data_or_other_weights_under_the_same_run_are_refused(
    cohort, shards, tmp_path, monkeypatch
):
    words = words_for(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at_step(patch, 2)
        with pytest.raises(StoppedError):
            run(words)
    other = tmp_path / "other"
    shard_ecgs(plan_for(cohort, other, seed=5))
    with pytest.raises(ValueError, match=r"not the data that .* was started on"):
        run(words_for(other, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"not the file that .* was started from"):
        run(words_for(shards, tmp_path / "run", CLASSIFIER))


def test_a_damaged_record_is_never_trained_on(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    opened, _ = open_shards(DataConfig(shards=str(broken)))
    first = opened.index[opened.index["split"] == "train"].iloc[0]
    file = opened.shard_path(int(first["shard"]))
    content = bytearray(file.read_bytes())
    content[int(first["offset"]) + 1000] ^= 1  # one bit
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        run(words_for(broken, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_does_not_go_on_in_another_precision(shards, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at_step(patch, 2)
        with pytest.raises(StoppedError):
            run(words_for(shards, tmp_path / "run"))
    environment = RunFolder(tmp_path / "run").environment
    environment.write_text(environment.read_text().replace('"fp32"', '"bf16"'))
    with pytest.raises(ValueError, match="was started in bf16 and would go on in fp32"):
        run(words_for(shards, tmp_path / "run"))


@pytest.mark.slow
def test_best_weights_are_written_again_if_the_run_died_before_they_were(
    whole, shards, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(BestWeights, "save", _die)
        with pytest.raises(StoppedError):
            run(words_for(shards, tmp_path / "run"))
    folder = run(words_for(shards, tmp_path / "run"))
    assert same_tensors(folder.best / "model.safetensors", whole.best / "model.safetensors")


def _die(*_):
    raise StoppedError


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder_are_refused(shards, tmp_path):
    other = RunFolder(tmp_path / "run")
    other.claim()
    with pytest.raises(ValueError, match="is in use by process"):
        run(words_for(shards, tmp_path / "run"))
    other.release()
    run(words_for(shards, tmp_path / "run", "train.max_steps=1"))


def _setting(folder: RunFolder, section: str, key: str) -> str:
    config = load_config(FinetuneConfig, [str(folder.config)], [])
    return getattr(getattr(config, section), key)
