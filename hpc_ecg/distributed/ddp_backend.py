"""DistributedDataParallel through Accelerate; with one process, the plain module.

The other two backends inherit whatever is the same for them.
"""

import contextlib
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_ecg.distributed.backend import OptimizerBuilder, ScalerState


class DDPBackend:
    collective_forward: bool = False

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build_optimizer: OptimizerBuilder,
        clip_norm: float | None,
    ) -> None:
        self._accelerator, self._clip_norm = accelerator, clip_norm or float("inf")
        self.module = module.to(accelerator.device)
        self.wrapped, self.optimizer = accelerator.prepare(self.module, build_optimizer(module))
        is_single = accelerator.num_processes == 1
        assert is_single or isinstance(self.wrapped, DistributedDataParallel)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def no_sync(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if is_last else self._accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self._accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        parameters = list(self.trainable_parameters().values())
        return torch.as_tensor(self._accelerator.clip_grad_norm_(parameters, self._clip_norm))

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def gather_weights(self) -> None:
        """Does nothing: the caller's module is the one that trains."""

    def moments(self) -> dict[str, Tensor]:
        """All ranks hold the same state, so only rank 0 copies it."""
        return self.full_tensors(self._state_by_name()) if self._accelerator.is_main_process else {}

    def _state_by_name(self) -> dict[str, Tensor]:
        return {
            f"{moment}/{name}": value
            for name, parameter in self.trainable_parameters().items()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        parameters = self.trainable_parameters()
        is_fused = self.optimizer.param_groups[0].get("fused")
        for key, value in self.shard_like_params(moments).items():
            moment, _, name = key.partition("/")
            stays_on_cpu = moment == "step" and not is_fused  # as AdamW keeps it
            self.optimizer.state[parameters[name]][moment] = value.cpu() if stays_on_cpu else value

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self._accelerator.device
        return {key: value.to(device, copy=True) for key, value in tensors.items()}

    @property
    def scaler(self) -> ScalerState | None:
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler else None

    @scaler.setter
    def scaler(self, state: ScalerState | None) -> None:
        if state and self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state)

    def release(self) -> None:
        """Undo autocast, which Accelerate adds to the module's forward under fp16."""
        if self._accelerator.scaler:
            self._accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
