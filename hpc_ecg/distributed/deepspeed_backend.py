"""DeepSpeed's ZeRO through Accelerate.

DeepSpeed shards the optimizer's moments, from stage 2 on also gradients, and in stage 3 weights.
The backend works on a copy of the module; `gather_weights` copies the weights back. Clipping and
the update are part of the last backward.
"""

import contextlib
import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn

from hpc_ecg.distributed.ddp_backend import DDPBackend, OptimizerBuilder
from hpc_ecg.distributed.deepspeed_compat import MOMENTS, create_adam_states, import_deepspeed

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def make_plugin(stage: int, precision: str, on_cpu: bool) -> DeepSpeedPlugin:
    """Accelerate's plugin for a ZeRO stage. ValueError if DeepSpeed is not installed."""
    import_deepspeed(stage, on_cpu)
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

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build_optimizer: OptimizerBuilder,
        clip_norm: float | None,
    ) -> None:
        self._accelerator, self._original = accelerator, module
        self.module = copy.deepcopy(module)
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["gradient_clipping"] = clip_norm or 0.0  # left unset, Accelerate would clip at 1
        self._adam = build_optimizer(self.module)
        self.wrapped, self.optimizer = accelerator.prepare(self.module, self._adam)
        assert accelerator.distributed_type == DistributedType.DEEPSPEED
        self._stage = self.wrapped.zero_optimization_stage()
        assert self._stage == settings["zero_optimization"]["stage"]
        self.collective_forward = self._stage == 3
        self._create_states(torch.tensor(0.0))

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

        self._create_states(next(v for key, v in moments.items() if key.startswith("step/")))
        for name, parameter in self.trainable_parameters().items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(self.wrapped.device)
                if self._stage == 3:
                    shard = _shard_of_rank(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                    safe_set_local_optimizer_state(parameter, shard, moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def _create_states(self, step: Tensor) -> None:
        create_adam_states(self.optimizer.optimizer, self._stage, step)


def _shard_of_rank(value: Tensor, size: int) -> Tensor:
    """This rank's shard of a tensor as stage 3 cuts it: flattened, zero-padded, equal parts."""
    flat = value.new_zeros(size * torch.distributed.get_world_size())
    flat[: value.numel()] = value.flatten()
    return flat[torch.distributed.get_rank() * size :][:size]
