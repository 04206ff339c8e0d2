"""Before anything is written: do the kernels of a model run on every process, and rightly?"""

from pathlib import Path

import torch

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.log import waiting_for
from hpc_ecg.model.architecture import num_tokens
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.kernels import check_kernels, explain_attention
from hpc_ecg.model.measure_kernels import KernelLoad, check_dropout
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.choose_kernels import choose_kernels
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.prepare import PreparedRun
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
    load = KernelLoad(
        num_records=min(records, config.engine.micro_batch_size or records, most),
        num_tokens=num_tokens(model.architecture, padded.shards.signal.num_samples),
        device=engine.device,
        dtype=DTYPES[engine.precision],
        has_mask=padded.is_padded,
        backward=bool(training),
    )
    engine.kernels = engine.kernels or engine.run_on_rank_zero(
        lambda: choose_kernels(config, model, load, steps, sweep_dir)
    )
    engine.kernels.apply(model)
    compiled = engine.kernels.kernels["compile"] == "compiled"
    lines = try_kernels(engine, model, padded, compiled, bool(training))
    return [*engine.kernels.lines, "; ".join(lines)]


def try_kernels(
    engine: Engine,
    model: ECGClassifier,
    dataset: Dataset,
    compiled: bool = False,
    backward: bool = False,
) -> list[str]:
    """Which attention kernel runs, and how far the layers are from the fp32 reference, `backward`,
    too. Collective.

    Each process compares, since nodes may differ. `model` is not wrapped yet, and does not change;
    `compiled`: the run compiles it. ValueError on all processes, with the host's name: a kernel
    that the settings ask for cannot run on one of them, or one is wrong there.
    """
    samples, dtype = dataset.shards.signal.num_samples, DTYPES[engine.precision]
    has_mask = dataset.is_padded
    attention = next(m for m in model.modules() if isinstance(m, SelfAttention))
    tokens, device = num_tokens(model.architecture, samples), engine.device
    lines, failure = [], ""
    try:
        lines.append(explain_attention(attention, tokens, device, dtype, has_mask))
        with waiting_for(
            "computing: the kernels, " + "compiled and " * compiled + "compared in fp32"
        ):
            how = dtype, has_mask, compiled, backward
            lines.append(check_kernels(model, samples, device, *how))
        if backward:
            check_dropout(model, KernelLoad(num_tokens=tokens, device=device, dtype=dtype))
    except (ValueError, RuntimeError) as error:  # passed on, so that nobody waits for this process
        failure = str(error)
    for text in filter(None, engine.gather_objects([failure])):
        raise ValueError(text)
    return lines
