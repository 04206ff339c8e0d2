"""Training steps and forward passes: ECG/s, MFU and peak memory, fed from memory.

A step is that of a run (`train_step`): counts to the device, augmentation and seeds, forward,
backward, clipping, update.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gpu.bench import Bench, make_bench
from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.data.loader import StepBatch, collate_step
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.model.flops import forward_flops, peak_flops, training_flops
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.loop import train_step
from hpc_ecg.training.model_inputs import model_inputs
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import PreparedRun

KERNELS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "flash": ("model.attention=flash",),
    "cudnn": ("model.attention=cudnn",),
}
"""Settings by the name of their rows; the first are the default."""
STEP_S, COMPILE_S = 4.0, 45.0
"""What a row and a compilation are expected to take, at most."""


@dataclass
class Rows:
    """Sends on rows, and the best of a name among them."""

    emit: Emit
    best: dict[str, float] = field(default_factory=dict)

    def add(self, row: str, best: str, figures: dict[str, Any]) -> None:
        self.emit(row, figures)
        if figures.get("ecg_per_s", 0) > self.best.get(best, 0):
            self.best[best] = figures["ecg_per_s"]
            self.emit(best, figures | {"of": row})


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    rows = Rows(emit)
    with make_bench(options) as bench:
        plan = [(kernels, compiled) for compiled in (False, True) for kernels in KERNELS]
        plan.sort(key=lambda kind: kind[0] != "auto")  # the default first, eager and compiled
        for kernels, compiled in plan:
            needed = STEP_S + COMPILE_S * compiled if bench.on_gpu else 1 + 60 * compiled
            if clock.has(needed):
                _measure_kind(rows, bench, clock, kernels, compiled)
            else:
                for row in _rows_of(bench, kernels, compiled):
                    emit(row, {UNKNOWN: "out of time"})


def _rows_of(bench: Bench, kernels: str, compiled: bool) -> list[str]:
    mode = "compiled" if compiled else "eager"
    return [f"{kernels}, {mode}, {size}" for size in bench.batches]


def _measure_kind(rows: Rows, bench: Bench, clock: Clock, kernels: str, compiled: bool) -> None:
    words = [*KERNELS[kernels], f"engine.compile={str(compiled).lower()}"]
    names = _rows_of(bench, kernels, compiled)
    with bench.prepared(*words) as (engine, run):
        optim = run.config.optim
        engine.prepare_training(
            run.start.model, lambda m: build_optimizer(m, optim, engine.device), optim.clip_norm
        )
        for row, batch in zip(names, _batches(bench, run), strict=True):
            if not clock.has(STEP_S if bench.on_gpu else 0.5):
                rows.emit(row, {UNKNOWN: "out of time"})
                continue
            size = len(batch.positions)
            rows.add(row, f"best {size}", _try(_time_step, bench, engine, run, batch))
            if kernels == "auto" and size != min(bench.batches):
                name, best = f"forward, {row}", f"forward {size}"
                rows.add(name, best, _try(_time_forward, bench, engine, run, batch))


def _try(time: Any, *arguments: Any) -> dict[str, Any]:
    """Figures, or why there are none: a kernel that cannot run, too little memory."""
    try:
        figures: dict[str, Any] = time(*arguments)
    except (ValueError, RuntimeError) as error:
        return {UNKNOWN: f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return figures


def _batches(bench: Bench, run: PreparedRun) -> Iterator[StepBatch]:
    train, config = run.data.train, run.config
    for size in bench.batches:
        sampler = EpochSampler.for_split(train, replace(config.data, batch_size=size), config.seed)
        yield collate_step(train, 0, sampler, RankSlice())


def _time_step(bench: Bench, engine: Engine, run: PreparedRun, batch: StepBatch) -> dict[str, Any]:
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = bench.seconds_of(lambda: train_step(engine, run, run.data.train, batch))
    flops = training_flops(bench.architecture, run.data.shards.signal.num_samples)
    return _figures(bench, engine, len(batch.positions), seconds, flops)


def _time_forward(
    bench: Bench, engine: Engine, run: PreparedRun, batch: StepBatch
) -> dict[str, Any]:
    """The model alone, its inputs on the device."""
    inputs = model_inputs(
        batch.micro_batches[0], engine.device, run.data.train.millivolts_per_count
    )
    model = run.start.model.eval()

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.precision == "bf16"):
            model(*inputs)

    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    flops = forward_flops(bench.architecture, run.data.shards.signal.num_samples)
    return _figures(bench, engine, len(batch.positions), bench.seconds_of(forward), flops)


def _figures(
    bench: Bench, engine: Engine, num_ecgs: int, seconds: float, flops_per_ecg: int
) -> dict[str, Any]:
    rate, peak = num_ecgs / seconds, peak_flops(engine.device_name, engine.precision)
    figures = {"ecg_per_s": rate, "seconds": seconds, "tflops_per_s": rate * flops_per_ecg / 1e12}
    if peak:
        figures["mfu"] = rate * flops_per_ecg / peak
    if bench.on_gpu:
        figures["memory_gb"] = torch.cuda.max_memory_allocated(bench.device) / 2**30
    return figures
