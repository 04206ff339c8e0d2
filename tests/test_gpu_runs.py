"""Whole runs on a GPU: resumed to the same bits, moved between devices, sharded, in fp16."""

import copy
import signal
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import compute_wrongly
from gpu_runs import CPU, SLOWLY, config_of, curve, events, nan_at_step, start, start_and_stop
from safetensors.torch import load_file

from hpc_ecg.data.loader import prefetch
from hpc_ecg.distributed.step_check import CorruptedStep
from hpc_ecg.distributed.stop_signals import Preempted
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.safe_reading import read_json
from hpc_ecg.training.checkpoint import complete_checkpoints
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.loop import train_step
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import prepare_run

pytestmark = pytest.mark.gpu
KINDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
SAVING = ("train.save_every=2", "train.keep_checkpoints=9")
PLAIN = (*SAVING, SLOWLY, "engine.precision=fp32")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def on_cpu(gpu, shards, tmp_path_factory):
    """An fp32 run on the CPU, which the others are compared with."""
    return start(shards, tmp_path_factory.mktemp("cpu") / "run", CPU, *PLAIN)


def needs(kind):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")


def assert_same_curve(ours, theirs, rtol=1e-3):
    assert len(curve(ours)) == len(curve(theirs)) == 8
    np.testing.assert_allclose(curve(ours), curve(theirs), rtol=rtol)


# Resuming


@pytest.mark.parametrize(
    "more",
    [
        ("engine.precision=fp32", "model.attention=math"),
        ("engine.precision=bf16", "model.attention=math"),
        ("engine.precision=bf16", "model.attention=auto"),
        ("engine.precision=bf16", "engine.micro_batch_size=5", "augment.noise_mv=0.1"),
        ("engine.precision=bf16", "train.average=ema", "engine.activation_checkpointing=true"),
        ("engine.precision=bf16", "engine.parallel=fsdp2"),
    ],
    ids=["fp32", "bf16", "fused", "pieces", "ema", "fsdp2"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(gpu, deterministic, shards, tmp_path, more):
    whole = start(shards, tmp_path / "whole", gpu, *SAVING, *more)
    start_and_stop(shards, tmp_path / "run", gpu, *SAVING, *more)
    again = start(shards, tmp_path / "run", gpu, *SAVING, *more)
    assert [line["step"] for line in events(again, "resumed")] == [6]
    assert np.array_equal(curve(again, "loss", "grad_norm"), curve(whole, "loss", "grad_norm"))
    for part in ("model.safetensors", "optimizer.safetensors"):
        last = complete_checkpoints(whole.checkpoints)[-1].name
        ours, theirs = (load_file(f.checkpoints / last / part) for f in (again, whole))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in theirs)


def at_step(patch, step, action):
    """Call `action` as the n-th step begins."""
    real, seen = Engine.take_step, []

    def take_step(self, *arguments, **named):
        seen.append(1)
        if len(seen) == step:
            action()
        return real(self, *arguments, **named)

    patch.setattr(Engine, "take_step", take_step)


def test_a_signal_is_read_from_the_device_and_the_run_goes_on_to_the_same_bits(
    gpu, deterministic, shards, tmp_path
):
    whole = start(shards, tmp_path / "whole", gpu, "engine.precision=bf16")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, partial(signal.raise_signal, signal.SIGUSR1))
        with pytest.raises(Preempted, match="saved and stopped by SIGUSR1"):
            start(shards, tmp_path / "run", gpu, "engine.precision=bf16")
    again = start(shards, tmp_path / "run", gpu, "engine.precision=bf16")
    assert [line["step"] for line in events(again, "resumed")] == [5], "asked in 4, read a step on"
    assert np.array_equal(curve(again), curve(whole))


def test_steps_that_are_computed_twice_change_nothing_and_a_wrong_one_is_refused(
    gpu, deterministic, shards, tmp_path, monkeypatch
):
    words = ("engine.precision=fp32", "model.attention=math", "train.max_steps=4")
    once = start(shards, tmp_path / "once", gpu, *words)
    twice = start(shards, tmp_path / "twice", gpu, *words, "engine.verify_every=1")
    assert np.array_equal(curve(twice), curve(once))
    at_step(monkeypatch, 2, partial(compute_wrongly, "output"))
    with pytest.raises(CorruptedStep, match="step 2 was computed twice with different") as error:
        start(shards, tmp_path / "wrong", gpu, *words, "engine.verify_every=1")
    assert ("GPU-" in str(error.value)) == (gpu.type == "cuda")


@pytest.mark.parametrize("is_back", [False, True], ids=["gpu-to-cpu", "cpu-to-gpu"])
def test_another_device_takes_over(gpu, on_cpu, shards, tmp_path, is_back):
    first, second = (CPU, gpu) if is_back else (gpu, CPU)
    start_and_stop(shards, tmp_path / "run", first, *PLAIN)
    moments = load_file(tmp_path / "run/checkpoints/step-0000006/optimizer.safetensors")
    assert {float(v) for key, v in moments.items() if key.startswith("step/")} == {6.0}
    again = start(shards, tmp_path / "run", second, *PLAIN)
    assert [line["step"] for line in events(again, "resumed")] == [6]
    assert_same_curve(again, on_cpu)


# Sharding, in a world of one


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_parallelism_has_the_curve_of_the_cpu(
    gpu, on_cpu, shards, tmp_path, kind, precision
):
    needs(kind)
    words = (*PLAIN, f"engine.parallel={kind}", f"engine.precision={precision}")
    folder = start(shards, tmp_path / "run", gpu, *words)
    assert_same_curve(folder, on_cpu, rtol=1e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(
    ("before", "after"), [("ddp", "fsdp2"), ("fsdp2", "zero2"), ("zero3", "ddp")]
)
def test_another_kind_of_parallelism_takes_over(gpu, on_cpu, shards, tmp_path, before, after):
    needs(before)
    needs(after)
    start_and_stop(shards, tmp_path / "run", gpu, *PLAIN, f"engine.parallel={before}")
    again = start(shards, tmp_path / "run", gpu, *PLAIN, f"engine.parallel={after}")
    assert [line["step"] for line in events(again, "resumed")] == [6]
    assert_same_curve(again, on_cpu)


# fp16 and its loss scale


@pytest.fixture
def engine_in_fp16(gpu, shards, tmp_path, fp16_everywhere):
    """An engine, its backend and a function that takes a step."""
    prepared = prepare_run(config_of(shards, tmp_path / "run", gpu, "engine.precision=fp16"))
    engine = Engine(prepared.config.engine)
    build = partial(build_optimizer, config=prepared.config.optim, device=engine.device)
    backend = engine.prepare_training(prepared.start.model, build, 1.0)
    train = prepared.data.train
    batch = next(prefetch(train, range(1), prepared.data.sampler, engine.rank_slice))
    yield engine, backend, partial(train_step, engine, prepared, train, batch)
    engine.close()


@pytest.mark.parametrize("may_skip", [False, True])
def test_a_scale_that_overflows_halves_and_the_step_changes_nothing(engine_in_fp16, may_skip):
    engine, backend, step = engine_in_fp16
    backend.scaler = {**backend.scaler, "scale": 2.0**60, "_growth_tracker": 0}
    before = copy.deepcopy({n: p.detach() for n, p in backend.module.named_parameters()})
    assert not step(may_skip=may_skip).skipped, "the scaler deals with it"
    assert backend.scaler["scale"] == 2.0**59 and engine.first_bad_step() is None
    assert all(p.equal(before[n]) for n, p in backend.module.named_parameters())
    backend.scaler = {**backend.scaler, "scale": 2.0**10}
    step(may_skip=may_skip)
    assert backend.scaler["scale"] == 2.0**10
    assert not all(p.equal(before[n]) for n, p in backend.module.named_parameters())


def test_a_run_in_fp16_keeps_its_scale_when_it_resumes(
    gpu, fp16_everywhere, on_cpu, shards, tmp_path
):
    words = (*SAVING, SLOWLY, "engine.precision=fp16")
    start_and_stop(shards, tmp_path / "run", gpu, *words)
    saved = read_json(tmp_path / "run/checkpoints/step-0000006/progress.json")["progress"]
    assert saved["scaler"]["scale"] >= 1 and saved["scaler"]["_growth_tracker"] <= 6
    again = start(shards, tmp_path / "run", gpu, *words)
    assert [line["step"] for line in events(again, "resumed")] == [6]
    assert_same_curve(again, on_cpu, rtol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(
    gpu, fp16_everywhere, shards, tmp_path, monkeypatch, precision
):
    seen = nan_at_step(monkeypatch, 3)
    words = (f"engine.precision={precision}", "train.max_steps=5")
    with pytest.raises(ValueError, match="loss or gradient is not finite at step 3"):
        start(shards, tmp_path / "stopped", gpu, *words)
    seen.clear()
    folder = start(shards, tmp_path / "skipped", gpu, *words, "train.skip_nonfinite=1")
    assert [line["step"] for line in events(folder, "skipped")] == [3]
    assert np.isfinite(curve(folder)[3:].astype(float)).all()
    assert read_json(folder.finished)["skipped"] == 1


# Randomness that is not ours


def test_the_generator_of_the_device_is_seeded_by_step(gpu):
    """Dropout inside fused attention uses it; two passes from one seed are one."""
    model = build_model(TINY, 1, ModelConfig(attention="sdpa", attention_dropout=0.3), seed=1)
    engine = Engine(config_of("x", "y", gpu).engine)
    try:
        model.to(engine.device).train()
        ecg_BCS = torch.randn(2, 12, 500, device=engine.device)
        outputs = []
        for seed in (7, 7, 8):
            engine.seed_dropout(seed)
            outputs.append(model(ecg_BCS, None, torch.tensor([1, 2], device=engine.device)))
        assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    finally:
        engine.close()
