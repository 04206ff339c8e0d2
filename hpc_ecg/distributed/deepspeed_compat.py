"""Workarounds for DeepSpeed and Accelerate's plugin for it; all patches of the two are here."""

import logging
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed(stage: int, on_cpu: bool) -> ModuleType:
    """DeepSpeed, patched for our use. ValueError if it is not installed."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(
            f"engine.parallel=zero{stage} needs DeepSpeed ({error}); pip install deepspeed, or use "
            "engine.parallel=fsdp2"
        ) from None
    message = ".*torch.distributed.* is deprecated.*"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # This op would compile for minutes on a CPU; gloo does its work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It imports transformers, for models that are sharded while they are built, which ours is not.
    DeepSpeedPlugin.set_deepspeed_weakref = lambda self: None
    return deepspeed


def destroy_process_group() -> None:
    """Destroy the process group and make DeepSpeed forget it, so that another can follow."""
    import deepspeed

    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


def create_adam_states(zero_optimizer: Any, stage: int, step: Tensor) -> None:
    """Give AdamW zero moments at `step`, as its first step would.

    DeepSpeed (stages 1 and 2) links optimizer states to parameters after the first step of the
    first parameter group, when the other groups have no state yet; theirs would stay unlinked.
    """
    adam = zero_optimizer.optimizer
    is_fused = adam.param_groups[0].get("fused")
    groups = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    for partition in getattr(zero_optimizer, groups):
        adam.state[partition] = {
            "step": step.clone().to(partition.device if is_fused else "cpu"),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }
    if stage < 3:
        zero_optimizer._hp_optimizer_states_linked = False
        zero_optimizer._lazy_init_hp_params_optimizer_state()
