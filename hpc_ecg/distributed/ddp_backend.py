"""What the engine asks of a parallel backend, here by DistributedDataParallel through Accelerate
(with one process, the plain module). FSDP2 and DeepSpeed inherit what is the same for them.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

OptimizerBuilder = Callable[[nn.Module], torch.optim.Optimizer]


class DDPBackend:
    """Wraps a module and its optimizer for training on several ranks. `module` is the module whose
    parameters train; `wrapped` is the one to call for the forward pass."""

    collective_forward: bool = False
    """Whether every rank must take part in each forward pass, because weights are sharded."""
    wrapped: Any

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build_optimizer: OptimizerBuilder,
        clip_norm: float | None,
    ) -> None:
        self._accelerator, self._original = accelerator, module
        self._clip_norm = clip_norm or float("inf")
        self._wrap(module, build_optimizer)

    def _wrap(self, module: nn.Module, build_optimizer: OptimizerBuilder) -> None:
        """Set `module`, `wrapped` and `optimizer`."""
        self.module = module.to(self._accelerator.device)
        optimizer = build_optimizer(module)
        self.wrapped, self.optimizer = self._accelerator.prepare(self.module, optimizer)
        is_single = self._accelerator.num_processes == 1
        assert is_single or isinstance(self.wrapped, DistributedDataParallel)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of `module` that train, by name; sharded under FSDP2."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def no_sync(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """A context without DDP's all-reduce of gradients, except for a step's last micro-batch."""
        return contextlib.nullcontext() if is_last else self._accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients; with `is_last` they are averaged over the ranks."""
        self._accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        """Clip to the norm given at construction; returns the norm before clipping, 0-d."""
        parameters = list(self.trainable_parameters().values())
        return torch.as_tensor(self._accelerator.clip_grad_norm_(parameters, self._clip_norm))

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def gather_weights(self) -> None:
        """Copy the weights back into the module that was wrapped: here it is the one that trains.
        Collective."""

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as `<moment>/<parameter name>` -> full tensor on the CPU, so that
        checkpoints do not depend on the backend. Collective; only rank 0's result is complete."""
        return self.full_tensors(self._state_by_name()) if self._accelerator.is_main_process else {}

    def _state_by_name(self) -> dict[str, Tensor]:
        return {
            f"{moment}/{name}": value
            for name, parameter in self.trainable_parameters().items()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Restore the result of `moments`, whichever backend it came from."""
        parameters = self.trainable_parameters()
        is_fused = self.optimizer.param_groups[0].get("fused")
        for key, value in self.shard_like_params(moments).items():
            moment, _, name = key.partition("/")
            stays_on_cpu = moment == "step" and not is_fused  # as AdamW keeps it
            self.optimizer.state[parameters[name]][moment] = value.cpu() if stays_on_cpu else value

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, unsharded. Collective."""
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the device, each sharded like the parameter that its key ends with."""
        device = self._accelerator.device
        return {key: value.to(device, copy=True) for key, value in tensors.items()}

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of the loss scale of fp16, as plain numbers; None in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler else None

    @scaler.setter
    def scaler(self, state: dict[str, Any] | None) -> None:
        if state and self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state)

    def release(self) -> None:
        """Undo changes to the module: autocast, which Accelerate adds to its forward under fp16."""
        if self._accelerator.scaler:
            self._accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
