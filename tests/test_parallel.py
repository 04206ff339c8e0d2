"""Every kind of parallelism gives the numbers of one process, and takes over from every other."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import words_for
from ranks import Fork, become, run_on_ranks
from safetensors.torch import load_file

from hpc_ecg.config.load import load_config
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.training.checkpoint import complete_checkpoints
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = pytest.mark.slow
# 3 epochs of 4 steps; saved half the way, in the middle of an epoch, and at the end
WORDS = (
    "train.max_epochs=3",
    "train.save_every=6",
    "train.keep_checkpoints=99",
    "optim.lr=0.0005",
)
HALF = 6
KINDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def start(shards: Path, run_dir: Path, kind: str, num_ranks: int, *more: str) -> RunFolder:
    words = words_for(shards, run_dir, *WORDS, f"engine.parallel={kind}", *more)
    run_on_ranks(num_ranks, ["finetune", *words])
    return RunFolder(run_dir)


def curve(folder: RunFolder) -> np.ndarray:
    """Loss and gradient norm of each step; of one that was taken twice, the second."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    of_step = {line["step"]: line for line in lines if line["event"] == "step"}
    return np.array([(of_step[k]["loss"], of_step[k]["grad_norm"]) for k in sorted(of_step)])


def assert_same(ours: RunFolder, theirs: RunFolder) -> None:
    """Within float32's rounding of sums in another order."""
    assert len(curve(ours)) == 12
    np.testing.assert_allclose(curve(ours)[:, 0], curve(theirs)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(curve(ours)[:, 1], curve(theirs)[:, 1], rtol=1e-5)
    # not the weights one by one: a key's bias has no gradient but rounding, which Adam makes large
    mine, others = (read_predictions(f.predictions / "valid.parquet") for f in (ours, theirs))
    assert list(mine.record_N) == list(others.record_N)
    np.testing.assert_allclose(mine.logit_NK, others.logit_NK, atol=2e-4)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory) -> RunFolder:
    return start(shards, tmp_path_factory.mktemp("runs") / "alone", "ddp", 1)


@pytest.fixture(scope="module")
def halves(shards, tmp_path_factory):
    """`of(kind, ranks)`: the folder of a run that has gone half the way."""
    made: dict[str, RunFolder] = {}
    parent = tmp_path_factory.mktemp("halves")

    def of(kind: str, num_ranks: int) -> RunFolder:
        name = f"{kind}-{num_ranks}"
        if name not in made:
            made[name] = start(shards, parent / name, kind, num_ranks)
        return made[name]

    return of


def cut_in_half(folder: RunFolder, into: Path) -> None:
    shutil.copytree(folder.path, into)
    (into / "finished.json").unlink()
    for path in complete_checkpoints(into / "checkpoints"):
        if int(path.name.removeprefix("step-")) > HALF:
            shutil.rmtree(path)


@pytest.mark.parametrize(("kind", "num_ranks"), [("ddp", 4), *((kind, 2) for kind in KINDS[1:])])
def test_a_kind_gives_the_curve_and_weights_of_one_process(alone, halves, kind, num_ranks):
    assert_same(halves(kind, num_ranks), alone)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((("ddp", 4), (kind, 2)) for kind in KINDS),
        *(((kind, 2), ("ddp", 1)) for kind in ("fsdp2", "zero3")),
        (("zero1", 2), ("zero2", 1)),
    ],
)
def test_another_kind_on_other_ranks_takes_over(alone, halves, shards, tmp_path, before, after):
    cut_in_half(halves(*before), tmp_path / "run")
    folder = start(shards, tmp_path / "run", *after)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "resumed"] == [HALF]
    assert_same(folder, alone)


@pytest.mark.parametrize("kind", ["fsdp2", "zero1", "zero3"])
def test_a_kind_goes_on_to_the_same_bits_on_as_many_ranks(halves, shards, tmp_path, kind):
    whole = halves(kind, 2)
    cut_in_half(whole, tmp_path / "run")
    folder = start(shards, tmp_path / "run", kind, 2)
    assert np.array_equal(curve(folder), curve(whole))
    for part in ("model.safetensors", "optimizer.safetensors"):
        last = complete_checkpoints(whole.checkpoints)[-1].name
        ours, theirs = (load_file(f.checkpoints / last / part) for f in (folder, whole))
        assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
def test_pieces_of_a_batch_add_up_to_the_whole_in_every_kind(alone, shards, tmp_path, kind):
    folder = start(shards, tmp_path / "run", kind, 2, "engine.micro_batch_size=2")
    assert_same(folder, alone)


def test_bf16_is_the_same_arithmetic_in_every_kind(shards, tmp_path):
    kinds = ("ddp", "fsdp2", "zero2")
    more = ("engine.precision=bf16", "train.max_epochs=2")
    of = {k: start(shards, tmp_path / k, k, 2, *more) for k in kinds}
    for kind in kinds[1:]:
        np.testing.assert_allclose(curve(of[kind])[:, 0], curve(of["ddp"])[:, 0], rtol=2e-3)
        np.testing.assert_allclose(curve(of[kind])[:, 1], curve(of["ddp"])[:, 1], rtol=1e-2)


def test_stages_are_tied_anew_in_every_kind(shards, tmp_path):
    stages = (
        "probe.freeze=backbone",
        "probe.max_epochs=1",
        "tune.freeze=stem",
        "tune.max_epochs=2",
    )
    words = [f"train.stages.{word}" for word in stages]
    alone = start(shards, tmp_path / "alone", "ddp", 1, *words)
    for kind in ("fsdp2", "zero3"):
        assert_same(start(shards, tmp_path / kind, kind, 2, *words), alone)


def test_a_mean_of_weights_is_the_same_in_parts(shards, tmp_path):
    of = {k: start(shards, tmp_path / k, k, 2, "train.average=ema") for k in ("ddp", "fsdp2")}
    assert_same(of["fsdp2"], of["ddp"])


def test_engines_of_several_kinds_follow_each_other_in_one_process(shards, tmp_path, monkeypatch):
    """In a fork, since zero3 leaves torch's linear layers changed by DeepSpeed."""
    monkeypatch.delenv("RANK", raising=False)
    runs = [
        words_for(shards, tmp_path / kind, "train.max_steps=3", f"engine.parallel={kind}")
        for kind in ("zero2", "zero3", "ddp", "fsdp2", "zero1")
    ]
    log = tmp_path / "log"
    process = Fork(target=_finetune_in_turn, args=(log, dict(os.environ), runs))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()


def _finetune_in_turn(log: Path, environment: dict[str, str], runs: list[list[str]]) -> None:
    become(log, environment)
    for words in runs:
        assert finetune(load_config(FinetuneConfig, [], words)).is_finished()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("engine.parallel=zero3", "train.average=ema"), "not possible with engine.parallel=zero3"),
        (("engine.parallel=zero1", "train.skip_nonfinite=1"), "DeepSpeed steps by itself"),
        (("engine.parallel=tp",), "engine.parallel must be one of ddp, fsdp2"),
        (("engine.parallel=zero2", "engine.precision=fp16"), "fp16 is for engine.parallel=ddp"),
        (("engine.trackers=[nobody]",), "'nobody' is not installed or not known; available are: "),
    ],
)
def test_what_a_kind_cannot_do_is_refused_by_name(shards, tmp_path, words, message):
    with pytest.raises(AssertionError, match=message):
        start(shards, tmp_path / "run", "ddp", 1, *words)
    assert not (tmp_path / "run").exists()
