"""Before anything is written: do the kernels of a model run on every process, and rightly?"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.log import logger, waiting_for
from hpc_ecg.model.architecture import num_tokens
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.kernels import check_kernels, explain_attention
from hpc_ecg.model.measure_kernels import COMPILED, KINDS, KernelLoad, fault_of
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.choose_kernels import choose_kernels, kept_kernels, kernels_of
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.prepare import PreparedRun
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import StageSchedule

CPU_RECORDS = 8
"""Largest micro-batch that is measured on a CPU, where more would only take longer."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def try_kernels_of_run(
    engine: Engine, prepared: PreparedRun, sweep_dir: Path | None = None
) -> list[str]:
    """Choose the kernels of this run, if that is not done yet, and `try_kernels` for what it
    computes: backward, unless only the head trains."""
    config, model, data = prepared.config, prepared.start.model, prepared.data
    padded = data.valid if data.valid.is_padded else data.train
    training = [stage.train for stage in prepared.stages if not stage.is_probe]
    epoch_steps = data.sampler.steps_per_epoch
    steps = sum(StageSchedule(config=t, epoch_steps=epoch_steps).steps for t in training)
    records = -(-config.data.batch_size // engine.world_size)
    most = CPU_RECORDS if engine.device.type == "cpu" else records
    num_records = min(records, config.engine.micro_batch_size or records, most)
    load = _load(engine, model, padded, num_records=num_records, backward=bool(training))
    if engine.kernels is None:
        choose = partial(choose_kernels, config, model, load, steps, sweep_dir)
        engine.kernels = engine.run_on_rank_zero(choose)
        keep_what_runs(engine, config, model, load)
    engine.kernels.apply(model)
    compiled = engine.kernels.kernels["compile"] == "compiled"
    return [*engine.kernels.lines, "; ".join(try_kernels(engine, model, padded, load, compiled))]


def try_kept_kernels(
    engine: Engine, config: FinetuneConfig, model: ECGClassifier, dataset: Dataset
) -> None:
    """Let `model` predict by the kernels that its run has kept, and `try_kernels`. Collective."""
    kept = kept_kernels(config, engine.device, dataset.is_padded)
    of_training = dict.fromkeys(("record_dropout", "compile"), "auto")
    engine.kernels = replace(kept, kernels=kept.kernels | of_training)
    load = _load(engine, model, dataset, backward=False)
    keep_what_runs(engine, config, model, load)
    for line in engine.kernels.lines:
        logger.info(line)
    engine.kernels.apply(model)
    try_kernels(engine, model, dataset, load)


def _load(engine: Engine, model: ECGClassifier, dataset: Dataset, **more: Any) -> KernelLoad:
    tokens = num_tokens(model.architecture, dataset.shards.signal.num_samples)
    more |= {"dtype": DTYPES[engine.precision], "has_mask": dataset.is_padded}
    return KernelLoad(num_tokens=tokens, device=engine.device, **more)


def keep_what_runs(
    engine: Engine, config: FinetuneConfig, model: ECGClassifier, load: KernelLoad
) -> None:
    """Replace in the engine's choice what a file holds, and some process cannot run (another torch,
    no Triton, no compiler) or computes wrongly. Collective; changes the kernels of `model`."""
    choice = engine.kernels
    assert choice is not None
    for name, asked in kernels_of(config, {}).items() if choice.file else ():
        if asked != "auto" or (kind := choice.kernels[name]) in ("auto", KINDS[name][0]):
            continue
        choice.apply(model)  # the layer that is compiled, at last, has the others
        if faults := list(filter(None, engine.gather_objects([fault_of(name, kind, model, load)]))):
            line = f"{choice.file} has {name}={kind}: {faults[0]}; the usual kernel is taken, so "
            line += "numbers differ by rounding, and a resumed run does not repeat bit for bit"
            kernels, lines = choice.kernels | {name: "auto"}, (*choice.lines, line)
            choice = replace(choice, kernels=kernels, lines=lines)
        if name == "compile":
            torch._dynamo.reset()  # the run compiles for its own batches
    engine.kernels = choice


def try_kernels(
    engine: Engine, model: ECGClassifier, dataset: Dataset, load: KernelLoad, compiled: bool = False
) -> list[str]:
    """Which attention kernel runs, and how far the layers are from the fp32 reference, backward,
    too, if the `load` says so. Collective.

    Each process compares, since nodes may differ. `model` is not wrapped yet, and does not change;
    `compiled`: the run compiles it. ValueError on all processes, with the host's name: a kernel
    that the settings ask for cannot run on one of them, or one is wrong there.
    """
    attention = next(m for m in model.modules() if isinstance(m, SelfAttention))
    samples, how = dataset.shards.signal.num_samples, (load.device, load.dtype, load.has_mask)
    name, kind = "record_dropout", model.final_dropout.kind
    lines, failure = [], ""
    try:
        lines.append(explain_attention(attention, load.num_tokens, *how))
        with waiting_for(f"computing: the kernels, {'compiled and ' * compiled}compared in fp32"):
            lines.append(check_kernels(model, samples, *how, compiled, load.backward))
        if load.backward and kind in COMPILED:
            fault = fault_of(name, kind, model, replace(load, num_records=2))
            failure = fault and f"model.{name}={kind} {fault}; use model.{name}=plain"
    except (ValueError, RuntimeError) as error:  # passed on, so that nobody waits for this process
        failure = str(error)
    for text in filter(None, engine.gather_objects([failure])):
        raise ValueError(text)
    return lines
