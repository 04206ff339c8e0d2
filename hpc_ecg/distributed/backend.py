"""What the engine asks of a parallel backend: DDP, FSDP2 or DeepSpeed's ZeRO.

A backend wraps a module and its optimizer for training on several ranks. `module` is the module
whose parameters train, `wrapped` is what the forward pass calls.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

OptimizerBuilder = Callable[[nn.Module], torch.optim.Optimizer]
ScalerState = dict[str, Any]
"""The loss scale of fp16 as plain numbers."""


class ParallelBackend(Protocol):
    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def collective_forward(self) -> bool:
        """Every rank must take part in each forward pass, because the weights are sharded."""
        ...

    @property
    def scaler(self) -> ScalerState | None:
        """State of the loss scale of fp16; None in other precisions."""

    @scaler.setter
    def scaler(self, state: ScalerState | None) -> None: ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """By name; sharded ones under FSDP2."""
        ...

    def no_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """Postpone the all-reduce of gradients to the last micro-batch of a step."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None: ...

    def clip_gradients(self) -> Tensor:
        """Clip to the norm that the backend was made with; the norm before clipping."""
        ...

    def step(self) -> None:
        """Update the weights."""

    def zero_grad(self) -> None: ...

    def gather_weights(self) -> None:
        """Copy the weights back into the module that was wrapped. Collective."""

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as `<moment>/<parameter name>` -> full tensor on the CPU, so that
        checkpoints do not depend on the order of parameters. Collective; what rank 0 gets counts.
        """
        ...

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Restore what `moments` returned, whatever backend wrote it."""

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, unsharded. Collective."""
        ...

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the device, each sharded like the parameter whose name its key ends in."""
        ...

    def release(self) -> None:
        """Undo what was done to the wrapped module."""
