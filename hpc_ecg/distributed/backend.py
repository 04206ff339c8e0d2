"""What the engine asks of a parallel backend: DDP, FSDP2 or DeepSpeed's ZeRO.

A backend wraps a module and its optimizer for training on several ranks. `module` is the module
whose parameters train; `wrapped` is the one to call for the forward pass.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

OptimizerBuilder = Callable[[nn.Module], torch.optim.Optimizer]
ScalerState = dict[str, Any]
"""The state of torch's GradScaler, as plain numbers."""


class ParallelBackend(Protocol):
    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def collective_forward(self) -> bool:
        """Whether every rank must take part in each forward pass, because weights are sharded."""
        ...

    @property
    def scaler(self) -> ScalerState | None:
        """State of the loss scale of fp16; None in other precisions."""

    @scaler.setter
    def scaler(self, state: ScalerState | None) -> None: ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of `module` that train, by name; sharded under FSDP2."""
        ...

    def no_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """A context without all-reduce of gradients, except for the last micro-batch of a step."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients; with `is_last` they are averaged over the ranks."""

    def clip_gradients(self) -> Tensor:
        """Clip to the norm given at construction; returns the norm before clipping, 0-d."""
        ...

    def step(self) -> None:
        """Update the weights."""

    def zero_grad(self) -> None: ...

    def gather_weights(self) -> None:
        """Copy the weights back into the module that was wrapped. Collective."""

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as `<moment>/<parameter name>` -> full tensor on the CPU, so that
        checkpoints do not depend on the backend. Collective; only rank 0's result is complete.
        """
        ...

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Restore the result of `moments`, whichever backend it came from."""

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, unsharded. Collective."""
        ...

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the device, each sharded like the parameter that its key ends with."""
        ...

    def release(self) -> None:
        """Undo changes to the module that was wrapped."""
