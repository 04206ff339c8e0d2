"""The arithmetic of a stage and the peak of the device; the choice of the attention kernel."""

import logging
from typing import Any

import numpy as np
import torch

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.model.architecture import num_tokens
from hpc_ecg.model.flops import peak_flops, training_flops
from hpc_ecg.model.kernels import explain_attention
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.stages import Stage

logger = logging.getLogger("hpc_ecg")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def workload(
    model: ECGClassifier, train: Dataset, stage: Stage, engine: Engine
) -> tuple[float, float | None]:
    """Operations of a training step per ECG, and the peak operations per second of one device.

    The peak is None if it is not known; `hpc_ecg/model/flops.py` says how both are counted.
    """
    num_samples = train.shards.signal.num_samples
    flops = training_flops(model.architecture, num_samples, stage.freeze, stage.train.freeze_layers)
    return flops, peak_flops(engine.device_name, engine.precision)


def choose_kernels(model: ECGClassifier, train: Dataset, engine: Engine) -> None:
    """Try the attention kernel and log which one runs; turn on activation checkpointing.

    ValueError if model.attention asks for a kernel that cannot run here.
    """
    encoder = model.backbone.encoder
    encoder.checkpoint_layers = engine.config.activation_checkpointing
    num_samples = train.shards.signal.num_samples
    tokens = num_tokens(model.architecture, num_samples)
    has_mask = train.samples(np.arange(len(train))) is not None
    attention: Any = encoder.layers[0].self_attn
    dtype = DTYPES[engine.precision]
    logger.info(explain_attention(attention, tokens, engine.device, dtype, has_mask))
