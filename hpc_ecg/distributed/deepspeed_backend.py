"""DeepSpeed's ZeRO through Accelerate.

DeepSpeed shards the optimizer's moments, from stage 2 on gradients, in stage 3 weights. They leave
the backend whole and by parameter name, so that checkpoints do not depend on the backend. It works
on a copy of the module; `gather_weights` copies the weights back. The update is part of the last
backward.
"""

import contextlib
import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn

from hpc_ecg.distributed.backend import OptimizerBuilder, ScalerState
from hpc_ecg.distributed.deepspeed_compat import MOMENTS, create_adam_states, import_deepspeed

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def make_plugin(stage: int, precision: str, on_cpu: bool) -> DeepSpeedPlugin:
    """Accelerate's plugin for a ZeRO stage. ValueError if DeepSpeed is not installed."""
    import_deepspeed(stage, on_cpu)
    return DeepSpeedPlugin(
        hf_ds_config={
            # Accelerate asks for batch sizes that it cannot see: it has no data loader of ours
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


class DeepSpeedBackend:
    scaler: ScalerState | None = None
    """Always None: fp16 is refused."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build_optimizer: OptimizerBuilder,
        clip_norm: float | None,
        stage: int,
    ) -> None:
        self._accelerator, self._original, self._stage = accelerator, module, stage
        self.module = copy.deepcopy(module)
        self._trainable = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        # left unset, Accelerate would clip at 1
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = clip_norm or 0.0
        optimizer = build_optimizer(self.module)
        self.wrapped: DeepSpeedEngine
        self.wrapped, self.optimizer = accelerator.prepare(self.module, optimizer)
        assert accelerator.distributed_type == DistributedType.DEEPSPEED
        assert self.wrapped.zero_optimization_stage() == stage
        self._adam = optimizer
        self._create_states(torch.tensor(0.0))

    @property
    def collective_forward(self) -> bool:
        return self._stage == 3

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return self._trainable

    def no_sync(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """`backward` tells Accelerate itself."""
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
        moments = {f"step/{name}": step.clone() for name in self._trainable}
        for name, parameter in self._trainable.items():
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                moments[f"{moment}/{name}"] = value.cpu().clone()
        return moments

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._create_states(next(v for key, v in moments.items() if key.startswith("step/")))
        for name, parameter in self._trainable.items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(self.wrapped.device)
                if self._stage == 3:
                    shard = _shard_of_rank(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                    safe_set_local_optimizer_state(parameter, shard, moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def _create_states(self, step: Tensor) -> None:
        create_adam_states(self.optimizer.optimizer, self._stage, step)

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unsharded copies: the parameters of stages 1 and 2 are whole."""
        return {name: value.to(self.wrapped.device, copy=True) for name, value in tensors.items()}

    def release(self) -> None:
        """Accelerate's free_memory releases DeepSpeed's engine."""


def _shard_of_rank(value: Tensor, size: int) -> Tensor:
    """This rank's shard of a tensor as stage 3 cuts it: flat, in equal parts, padded with zeros."""
    flat = value.new_zeros(size * torch.distributed.get_world_size())
    flat[: value.numel()] = value.flatten()
    return flat[torch.distributed.get_rank() * size :][:size]
