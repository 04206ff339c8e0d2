"""DeepSpeed's ZeRO through Accelerate.

DeepSpeed shards the optimizer's moments, from stage 2 on also gradients, and in stage 3 weights.
The backend works on a copy of the module; `gather_weights` copies the weights back. Clipping and
the update are part of the last backward.
"""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn

from hpc_ecg.distributed.ddp_backend import DDPBackend, OptimizerBuilder

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_plugin(stage: int, precision: str, on_cpu: bool) -> DeepSpeedPlugin:
    """Accelerate's plugin for a ZeRO stage. ValueError if DeepSpeed is not installed."""
    _import_deepspeed(stage, on_cpu)
    return DeepSpeedPlugin(
        hf_ds_config={
            # Accelerate needs batch sizes, which it would read from a data loader
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # the arithmetic of DDP: fp32 weights under autocast, gradients summed in fp32
            "torch_autocast": {
                "enabled": precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
    )


class DeepSpeedBackend(DDPBackend):
    wrapped: "DeepSpeedEngine"

    def _wrap(self, module: nn.Module, build_optimizer: OptimizerBuilder) -> None:
        self.module = copy.deepcopy(module)
        settings = self._accelerator.deepspeed_plugin.deepspeed_config
        clip_norm = 0.0 if self._clip_norm == float("inf") else self._clip_norm
        settings["gradient_clipping"] = clip_norm  # left unset, Accelerate would clip at 1
        self._adam = build_optimizer(self.module)
        self.wrapped, self.optimizer = self._accelerator.prepare(self.module, self._adam)
        assert self._accelerator.distributed_type == DistributedType.DEEPSPEED
        self._stage = self.wrapped.zero_optimization_stage()
        assert self._stage == settings["zero_optimization"]["stage"]
        self.collective_forward = self._stage == 3
        _create_adam_states(self.optimizer.optimizer, self._stage, torch.tensor(0.0))

    def no_sync(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Does nothing: `backward` itself controls the synchronization."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self._accelerator.sync_gradients = is_last
        self._accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        """Clipping was part of the last backward."""
        return torch.as_tensor(self.wrapped.get_global_grad_norm(), device=self.wrapped.device)

    def step(self) -> None:
        """The update was part of the last backward."""

    def zero_grad(self) -> None:
        """The last backward did it."""

    def gather_weights(self) -> None:
        import deepspeed

        sharded = list(self.module.parameters()) if self._stage == 3 else []
        with deepspeed.zero.GatheredParameters(sharded):
            self._original.load_state_dict(self.module.state_dict())

    def moments(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        step = next(iter(self._adam.state.values()))["step"].cpu()
        trainable = self.trainable_parameters()
        moments = {f"step/{name}": step.clone() for name in trainable}
        for name, parameter in trainable.items():
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                moments[f"{moment}/{name}"] = value.cpu().clone()
        return moments

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        step = next(v for key, v in moments.items() if key.startswith("step/"))
        _create_adam_states(self.optimizer.optimizer, self._stage, step)
        for name, parameter in self.trainable_parameters().items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(self.wrapped.device)
                if self._stage == 3:
                    shard = _shard_of_rank(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                    safe_set_local_optimizer_state(parameter, shard, moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)


def _shard_of_rank(value: Tensor, size: int) -> Tensor:
    """This rank's shard of a tensor as stage 3 cuts it: flattened, zero-padded, equal parts."""
    flat = value.new_zeros(size * torch.distributed.get_world_size())
    flat[: value.numel()] = value.flatten()
    return flat[torch.distributed.get_rank() * size :][:size]


# Workarounds for DeepSpeed and Accelerate's plugin for it


def _import_deepspeed(stage: int, on_cpu: bool) -> ModuleType:
    """DeepSpeed, patched for our use. ValueError if it is not installed."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except Exception as error:  # before 0.18 also where CUDA's compiler is missing
        raise ValueError(
            f"engine.parallel=zero{stage} needs DeepSpeed ({error}); pip install deepspeed, or use "
            "engine.parallel=fsdp2"
        ) from None
    message = ".*torch.distributed.* is deprecated.*"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if on_cpu:  # this op would compile for minutes; gloo does its work
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It imports transformers, for models that are sharded while they are built, which ours is not.
    DeepSpeedPlugin.set_deepspeed_weakref = lambda self: None
    return deepspeed


def destroy_process_group() -> None:
    """Destroy the process group and make DeepSpeed forget it, so that another can follow."""
    import deepspeed

    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


def _create_adam_states(zero_optimizer: Any, stage: int, step: Tensor) -> None:
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
