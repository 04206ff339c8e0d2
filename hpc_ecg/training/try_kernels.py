"""Before anything is written: do the kernels of a model run on every process, and rightly?"""

import numpy as np
import torch

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.log import waiting_for
from hpc_ecg.model.architecture import num_tokens
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.kernels import check_kernels, explain_attention
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.prepare import PreparedRun

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def try_kernels_of_run(engine: Engine, prepared: PreparedRun) -> list[str]:
    """`try_kernels` for what this run computes: backward, unless only the head trains."""
    backward = not all(stage.is_probe for stage in prepared.stages)
    model, train = prepared.start.model, prepared.data.train
    return try_kernels(engine, model, train, engine.config.compile, backward)


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
    that model.attention asks for cannot run on one of them, or one is wrong there.
    """
    samples, dtype = dataset.shards.signal.num_samples, DTYPES[engine.precision]
    has_mask = dataset.samples(np.arange(len(dataset))) is not None
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
    except (ValueError, RuntimeError) as error:  # passed on, so that nobody waits for this process
        failure = str(error)
    for text in filter(None, engine.gather_objects([failure])):
        raise ValueError(text)
    return lines
