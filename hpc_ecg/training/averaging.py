"""The mean of a run's weights over its last steps, beside the weights that train.

`ema` averages every step with exponentially falling weight; `swa` takes the plain mean over the
validations of the last part of a stage (Izmailov et al. 2018). The mean is what is validated and
kept as best; training itself never sees it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KINDS = ("none", "ema", "swa")


class WeightAverager:
    """`kind` none does nothing at all."""

    def __init__(self, parameters: dict[str, nn.Parameter], kind: str, ema_decay: float) -> None:
        """`parameters`: those that train; under fsdp2 they, and so the mean, lie in parts."""
        self.kind, self.ema_decay, self._parameters = kind, ema_decay, parameters
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, done: float, swa_start: float, is_validated: bool) -> None:
        """Take the weights in. ema: the decay grows from nothing, so that the start weighs no more
        than it should; swa: if they are about to be validated and the finished share of the stage,
        `done`, is past `swa_start`."""
        if self.kind == "ema":
            self._move(1 - min(self.ema_decay, (1 + self.count) / (10 + self.count)))
        elif self.kind == "swa" and is_validated and done >= swa_start:
            self._move(1 / (1 + self.count))

    def _move(self, share: float) -> None:
        if not self.mean:
            self.mean = {name: p.detach().clone() for name, p in self._parameters.items()}
        torch._foreach_lerp_(list(self.mean.values()), list(self._parameters.values()), share)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the mean inside; its own weights come back afterwards, to the bit."""
        own = {name: self._parameters[name].detach().clone() for name in self.mean}
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Tensor]:
        return self.mean | {"count": torch.tensor(self.count)} if self.mean else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self.count = int(state.pop("count", torch.tensor(0)))
        self.mean = {  # in the order of the parameters, which the file does not keep
            name: state[name].clone()
            for name, parameter in self._parameters.items()
            if name in state
        }

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
