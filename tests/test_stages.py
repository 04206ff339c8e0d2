"""Stages in one run: each trains what it says; a stopped run goes on between and inside them."""

import json

import pytest
import torch
from conftest import words_for
from ranks import run_on_ranks
from safetensors.torch import load_file

from hpc_ecg.config.load import load_config
from hpc_ecg.safe_reading import read_json
from hpc_ecg.training import loop
from hpc_ecg.training.best_weights import BestWeights
from hpc_ecg.training.checkpoint import complete_checkpoints
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig, OptimConfig, StageConfig, TrainConfig
from hpc_ecg.training.stages import stages_of, trains_head_only
from hpc_ecg.weights import load_model

pytestmark = pytest.mark.slow  # each runs several trainings
PROBE = "train.stages={probe: {freeze: backbone, max_epochs: 2, lr: 0.01}, rest: {max_epochs: 1}}"


def words_of(shards, run_dir, *more):
    return words_for(shards, run_dir, PROBE, f"train.feature_cache={run_dir}-features", *more)


def run(words) -> RunFolder:
    return finetune(load_config(FinetuneConfig, [], words))


def events(folder, kind):
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def weights_of(folder):
    return load_file(folder.best / "model.safetensors")


def last_of(folder, part="model"):
    return load_file(complete_checkpoints(folder.checkpoints)[-1] / f"{part}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A probe, then the rest, uninterrupted: 2 x 4 and 4 steps, dropout on."""
    return run(words_of(shards, tmp_path_factory.mktemp("whole") / "run"))


def test_stages_follow_each_other_with_schedules_of_their_own(whole):
    assert [(line["stage"], line["step"]) for line in events(whole, "stage")] == [
        ("probe", 0),
        ("rest", 8),
    ]
    rates = [line["lr"] for line in events(whole, "step")]
    assert len(rates) == 12
    assert max(rates[:8]) == 0.01 and max(rates[8:]) == 0.002
    report = read_json(whole.init_report)
    assert report["stages"] == {
        "probe": {"freeze": "backbone", "tensors_trained": 2},
        "rest": {"freeze": "stem", "tensors_trained": 43},
    }
    assert sum(not about["trained"] for about in report["parameters"].values()) == 6


def test_the_probe_leaves_the_backbone_and_the_rest_trains_it(shards, tmp_path, whole):
    probe = "train.stages={probe: {freeze: backbone, max_epochs: 2, lr: 0.01}}"
    only = run(words_for(shards, tmp_path / "run", probe))
    start = load_model(_checkpoint_of(whole), num_labels=1).state_dict()
    probed, after = load_model(only.best).state_dict(), last_of(whole)
    moved = {name for name in start if not torch.equal(start[name], probed[name])}
    assert moved == {"head.weight", "head.bias"}
    assert [line["loss"] for line in events(only, "step")] == [
        line["loss"] for line in events(whole, "step")[:8]
    ]
    stem = "backbone.feature_extractor."
    assert not torch.equal(start["backbone.layer_norm.weight"], after["backbone.layer_norm.weight"])
    assert all(torch.equal(start[n], after[n]) for n in start if n.startswith(stem))


def _checkpoint_of(folder):
    return read_json(folder.init_report)["checkpoint"]["path"]


class StoppedError(Exception):
    pass


def stop_before(patch, step):
    real, taken = Engine.take_step, []

    def take_step(self, *arguments, **named):
        if len(taken) == step:
            raise StoppedError
        taken.append(1)
        return real(self, *arguments, **named)

    patch.setattr(Engine, "take_step", take_step)


def stop_at(patch, name, number):
    """Die when the loop calls this for the nth time."""
    where = loop if name == "update_progress" else BestWeights
    real, seen = getattr(where, name), []

    def call(*arguments):
        seen.append(1)
        if len(seen) == number:
            raise StoppedError
        return real(*arguments)

    patch.setattr(where, name, call)


STOPS = [("step", step) for step in (1, 4, 5, 8, 9, 11)]
STOPS += [("save", 1), ("update_progress", 2), ("update_progress", 3)]
STOPS += [("finish", 1), ("finish", 2)]
CASES = [("none", *stop) for stop in STOPS]
CASES += [(kind, "step", step) for kind in ("ema", "swa") for step in (5, 9)]
QUICK = [("none", "step", 5), ("none", "step", 8), ("ema", "step", 9)]
CASES = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("average", "where", "number"), CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(
    shards, tmp_path, monkeypatch, averaged, average, where, number
):
    words = words_of(shards, tmp_path / "run", *averaged.words(average))
    with monkeypatch.context() as patch:
        stop_before(patch, number) if where == "step" else stop_at(patch, where, number)
        with pytest.raises(StoppedError):
            run(words)
    folder, expected = run(words), averaged.run(average)
    assert same(weights_of(folder), weights_of(expected))
    for part in ("model", "optimizer"):
        assert same(last_of(folder, part), last_of(expected, part))
    ours, theirs = read_json(folder.finished), read_json(expected.finished)
    for key in ("best_score", "best_step", "steps", "stopped"):
        assert ours[key] == theirs[key]
    assert not list(folder.path.rglob("best-head*"))


@pytest.fixture(scope="module")
def averaged(shards, whole, tmp_path_factory):
    """Uninterrupted runs by kind of average, each made once."""
    folder, runs = tmp_path_factory.mktemp("averaged"), {"none": whole}

    class Averaged:
        def words(self, kind):
            return [f"train.average={kind}", "train.ema_decay=0.8", "train.swa_start=0.3"]

        def run(self, kind):
            if kind not in runs:
                runs[kind] = run(words_of(shards, folder / kind, *self.words(kind)))
            return runs[kind]

    return Averaged()


def test_an_average_is_what_is_validated_and_kept(averaged):
    scores = {
        kind: [line["loss"] for line in events(averaged.run(kind), "eval")]
        for kind in ("none", "ema", "swa")
    }
    assert len({tuple(losses) for losses in scores.values()}) == 3
    curves = {
        kind: [line["loss"] for line in events(averaged.run(kind), "step")]
        for kind in ("none", "ema", "swa")
    }
    assert curves["none"] == curves["ema"] == curves["swa"]  # training never sees the mean


def test_gradual_unfreezing_moves_the_layers_from_the_head_down(shards, tmp_path):
    stages = "train.stages={head: {freeze: backbone}, top: {freeze_layers: 1}}"
    folder = run(words_for(shards, tmp_path / "run", stages, "train.max_epochs=1"))
    start, after = load_model(_checkpoint_of(folder), num_labels=1).state_dict(), last_of(folder)
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    allowed = {n for n in start if n.startswith(("head.", "backbone.encoder.layers.1."))}
    assert moved <= allowed
    assert allowed - moved <= {"backbone.encoder.layers.1.self_attn.k_proj.bias"}


def test_patience_ends_a_stage_and_the_next_one_begins(shards, tmp_path):
    # nothing is gained at a rate of nothing: the first validation stays the best
    stages = "train.stages={a: {lr: 1e-30, max_epochs: 9, patience: 1}, b: {max_epochs: 1}}"
    folder = run(words_for(shards, tmp_path / "run", stages))
    assert [line["step"] for line in events(folder, "stage")] == [0, 8]
    assert read_json(folder.finished)["steps"] == 12


@pytest.mark.slow
def test_ranks_go_through_the_stages_together(shards, tmp_path):
    more = ("model.activation_dropout=0", "data.batch_size=13")
    one = run(words_of(shards, tmp_path / "one", *more))
    run_on_ranks(2, ["finetune", *words_of(shards, tmp_path / "two", *more)])
    two = RunFolder(tmp_path / "two")
    ours, theirs = ([line["loss"] for line in events(f, "step")] for f in (two, one))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert read_json(two.finished)["best_step"] == read_json(one.finished)["best_step"]


def test_what_trains_the_head_alone_is_known_stage_by_stage():
    config = TrainConfig(
        stages={
            "a": StageConfig(freeze="backbone"),
            "b": StageConfig(),
            "c": StageConfig(freeze="backbone"),
        }
    )
    stages = stages_of(config, OptimConfig(), weights_loaded=True)
    assert [stage.freeze for stage in stages] == ["backbone", "stem", "backbone"]
    assert [trains_head_only(stages, stage) for stage in stages] == [True, False, False]
    assert not trains_head_only(stages, stages[-1])


def test_a_probe_after_the_backbone_has_trained_keeps_what_was_trained(
    shards, tmp_path, monkeypatch
):
    stages = "train.stages={rest: {max_epochs: 1}, probe: {freeze: backbone, max_epochs: 1}}"
    words = words_for(shards, tmp_path / "run", stages)
    with monkeypatch.context() as patch:
        stop_before(patch, 6)
        with pytest.raises(StoppedError):
            run(words)
    folder = run(words)
    assert len(last_of(folder)) == 49
    assert same(last_of(folder), last_of(run(words_for(shards, tmp_path / "again", stages))))


def test_steps_cannot_be_given_for_a_run_of_stages(shards, tmp_path):
    with pytest.raises(ValueError, match=r"train.max_steps is for a run of one stage"):
        run(words_of(shards, tmp_path / "run", "train.max_steps=3"))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("freeze_layers: 3", r"train.stages.rest.freeze_layers must be from 0 to 2, got 3"),
        ("lr: -1", r"train.stages.rest.lr must be positive, got -1.0"),
        ("freeze: half", r"train.stages.rest.freeze must be one of .*, got 'half'"),
    ],
)
def test_a_wrong_setting_of_a_stage_is_named_with_its_stage(shards, tmp_path, own, words):
    stages = f"train.stages={{probe: {{freeze: backbone}}, rest: {{{own}}}}}"
    with pytest.raises(ValueError, match=words):
        run(words_for(shards, tmp_path / "run", stages))
    assert not (tmp_path / "run").exists()


def test_more_frozen_layers_than_there_are_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"train.freeze_layers must be from 0 to 2, got 3"):
        run(words_for(shards, tmp_path / "run", "train.freeze_layers=3"))
    assert not (tmp_path / "run").exists()
