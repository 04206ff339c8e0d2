"""A model tied to its ranks by DeepSpeed's ZeRO, through Accelerate.

DeepSpeed keeps moments (and from stage 2 gradients, from stage 3 weights) in parts. They leave it
whole and by parameter name, so that a checkpoint is the same file whatever made it. It works on a
copy of the module; `collect` brings the weights home. Its step is part of the last backward.
"""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_plugin(stage: int, precision: str, on_cpu: bool) -> DeepSpeedPlugin:
    """ValueError if DeepSpeed is not installed."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(
            f"engine.parallel=zero{stage} needs DeepSpeed ({error}); pip install deepspeed, or use "
            "engine.parallel=fsdp2"
        ) from None
    warnings.filterwarnings(
        "ignore", message=".*torch.distributed.* is deprecated.*", category=FutureWarning
    )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It would be compiled for minutes on a CPU; gloo does its work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Imports transformers for models that are made in parts from the start: not ours.
    DeepSpeedPlugin.set_deepspeed_weakref = lambda self: None
    return DeepSpeedPlugin(
        hf_ds_config={
            # Accelerate asks for the size of batches that it does not see.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # The arithmetic of DDP: fp32 weights under autocast, gradients added up in fp32.
            "torch_autocast": {
                "enabled": precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
    )


def destroy_group() -> None:
    """The process group, and what DeepSpeed remembers of it: the next engine has another."""
    import deepspeed

    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


class DeepSpeedBackend:
    """`called`: DeepSpeed's engine; `own`: the copy whose parameters train."""

    scaler: dict[str, Any] | None = None
    """There is none: fp16 is refused."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build: Callable[[nn.Module], torch.optim.Optimizer],
        clip_norm: float | None,
        stage: int,
    ) -> None:
        self._accelerator, self._home, self._stage = accelerator, module, stage
        self.own = copy.deepcopy(module)
        self._names = {name: p for name, p in self.own.named_parameters() if p.requires_grad}
        # left unset, Accelerate would clip at 1
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = clip_norm or 0.0
        self.called, self.optimizer = accelerator.prepare(self.own, build(self.own))
        assert accelerator.distributed_type == DistributedType.DEEPSPEED
        assert self.called.zero_optimization_stage() == stage
        self._make_states(torch.tensor(0.0))

    @property
    def runs_together(self) -> bool:
        """Whether a forward needs all ranks."""
        return self._stage == 3

    def trained(self) -> dict[str, nn.Parameter]:
        return self._names

    def hold(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self._accelerator.sync_gradients = is_last
        self._accelerator.backward(loss)

    def clip(self) -> Tensor:
        """The norm of the whole gradient, before it was clipped."""
        return torch.as_tensor(self.called.get_global_grad_norm(), device=self.called.device)

    def update(self) -> None:
        """Done in the last backward."""

    def forget_gradients(self) -> None:
        """Done in the last backward."""

    def collect(self) -> None:
        """Bring the weights back into the module that was given; all ranks take part."""
        import deepspeed

        parts = list(self.own.parameters()) if self._stage == 3 else []
        with deepspeed.zero.GatheredParameters(parts):
            self._home.load_state_dict(self.own.state_dict())

    def moments(self) -> dict[str, Tensor]:
        """`<moment>/<parameter name>` -> whole tensor; all ranks take part."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = next(iter(self._inner.state.values()))["step"].cpu()
        whole = {f"step/{name}": step.clone() for name in self._names}
        for name, parameter in self._names.items():
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                whole[f"{moment}/{name}"] = value.cpu().clone()
        return whole

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        step = next(value for key, value in moments.items() if key.startswith("step/"))
        self._make_states(step)
        for name, parameter in self._names.items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(self.called.device)
                if self._stage == 3:
                    share = _share_of(value, parameter)
                    safe_set_local_optimizer_state(parameter, share, moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def in_parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the device: what stages 1 and 2 train on is whole."""
        return {name: value.to(self.called.device, copy=True) for name, value in tensors.items()}

    def _make_states(self, step: Tensor) -> None:
        """Of moments that are zero, as AdamW would in its first step. DeepSpeed links them to the
        parameters after the first step of the first group, when the other groups have none yet."""
        zero, is_fused = self.optimizer.optimizer, self._inner.param_groups[0].get("fused")
        flat = "fp32_partitioned_groups_flat" if self._stage == 3 else None
        for part in getattr(zero, flat or "single_partition_of_fp32_groups"):
            self._inner.state[part] = {
                "step": step.clone().to(part.device if is_fused else "cpu"),
                **{moment: torch.zeros_like(part) for moment in MOMENTS},
            }
        if self._stage < 3:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The AdamW that DeepSpeed drives."""
        return self.optimizer.optimizer.optimizer

    def release(self) -> None:
        """Accelerate's free_memory lets DeepSpeed's engine go."""


def _share_of(value: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor, as stage 3 cuts it: flat, in equal parts, zeros at the end."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    flat = value.new_zeros(size * torch.distributed.get_world_size())
    flat[: value.numel()] = value.flatten()
    return flat[rank * size :][:size]
