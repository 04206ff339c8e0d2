"""Training steps and forward passes, fed from memory: ECG/s, MFU and peak memory.

A step is that of a run (`train_step`): counts to the device, seeds, forward, backward, clipping,
update. A forward pass is the model alone, its input on the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from gpu.bench import Bench, reason_of, start_training
from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.data.loader import StepBatch, collate_step
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.model.flops import forward_flops, peak_flops, training_flops
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.loop import train_step
from hpc_ecg.training.model_inputs import model_inputs
from hpc_ecg.training.prepare import PreparedRun

KERNELS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "measured": ("engine.kernels=measure",),
    "fft": ("model.positional_conv=fft",),
    "triton": ("model.record_dropout=triton",),
    "flash": ("model.attention=flash",),
    "cudnn": ("model.attention=cudnn",),
    "unfold": ("model.positional_conv=unfold",),
}
"""Settings by the name of their rows; `auto` has the reference kernels, since nothing is measured,
and `measured` is what a long run gets."""
COMPILE_S = 45.0
"""What a compilation is expected to take, at most."""


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    bench, best, seen = Bench(options, "speed"), dict[str, float](), set[str]()

    def keep_best(row: str, figures: dict[str, Any], name: str) -> None:
        emit(row, figures)
        seen.add(row)
        if figures.get("ecg_per_s", 0) > best.get(name, 0):
            best[name] = figures["ecg_per_s"]
            emit(name, figures | {"of": row})

    for kernels, compiled in product(KERNELS, (False, True)):
        mode = f"{kernels}, {'compiled' if compiled else 'eager'}"
        words = [*KERNELS[kernels], f"engine.compile={str(compiled).lower()}"]
        obstacle = "out of time" * (clock.left_s < bench.row_s + COMPILE_S * compiled)
        try:
            if not obstacle:
                with bench.prepared(*words) as (engine, run):
                    start_training(engine, run)
                    for size in bench.batches:
                        row = f"{mode}, {size}"
                        figures = _figures(bench, clock, engine, run, size, _step)
                        keep_best(row, figures, f"best {size}")
                        if kernels == "auto" and (not compiled or size == bench.batches[0]):
                            figures = _figures(bench, clock, engine, run, size, _forward)
                            keep_best(f"forward, {row}", figures, "forward")
        except (ValueError, RuntimeError) as error:  # a kernel that this machine lacks, or memory
            obstacle = reason_of(error)
        for row in (f"{mode}, {size}" for size in bench.batches):
            if row not in seen:
                emit(row, {UNKNOWN: obstacle})


def _figures(
    bench: Bench, clock: Clock, engine: Engine, run: PreparedRun, size: int, kind: Callable
) -> dict[str, Any]:
    """Figures, or why there are none: no time, a kernel that cannot run, too little memory."""
    if clock.left_s < bench.row_s:
        return {UNKNOWN: "out of time"}
    config, train = run.config, run.data.train
    sampler = EpochSampler.for_split(train, replace(config.data, batch_size=size), config.seed)
    batch = collate_step(train, 0, sampler, RankSlice())
    try:
        step, flops_of = kind(engine, run, batch)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = bench.seconds_of(step)
    except (ValueError, RuntimeError) as error:
        return {UNKNOWN: reason_of(error)}
    finally:  # what an interrupted step left, and what the next size has no use for
        run.start.model.zero_grad()
        torch.cuda.empty_cache()
    rate, peak = size / seconds, peak_flops(engine.device_name, engine.precision)
    per_ecg = flops_of(bench.architecture, run.data.shards.signal.num_samples)
    flops = rate * per_ecg
    figures = {"ecg_per_s": rate, "seconds": seconds, "tflops_per_s": flops / 1e12}
    about = {"records": size, "processes": 1, "device": engine.device_name}
    figures |= {**about, "precision": engine.precision, "flops_per_ecg": per_ecg}
    if bench.on_gpu:
        figures["memory_gb"] = torch.cuda.max_memory_allocated(bench.device) / 2**30
    return figures | ({"mfu": flops / peak} if peak else {})


def _step(engine: Engine, run: PreparedRun, batch: StepBatch) -> tuple[Callable, Callable]:
    return lambda: train_step(engine, run, run.data.train, batch), training_flops


def _forward(engine: Engine, run: PreparedRun, batch: StepBatch) -> tuple[Callable, Callable]:
    per_count, model = run.data.train.millivolts_per_count, run.start.model
    inputs = model_inputs(batch.micro_batches[0], engine.device, per_count)

    @torch.inference_mode()
    def forward() -> None:
        is_half = engine.precision == "bf16"
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=is_half):
            model.eval()(*inputs)

    return forward, forward_flops
