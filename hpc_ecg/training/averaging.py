"""An average of a run's weights, kept beside the weights that train.

`ema` is an exponential moving average over the steps; `swa` is the plain mean over the validations
in the last part of a stage (Izmailov et al. 2018). The average is validated and kept as best;
training itself never uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverager:
    """Averages the trainable parameters; with `kind` none it does nothing."""

    def __init__(self, parameters: dict[str, nn.Parameter], kind: str, ema_decay: float) -> None:
        """`parameters`: the trainable ones, by name. The average is sharded as they are."""
        self.kind, self.ema_decay, self._parameters = kind, ema_decay, parameters
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, fraction_done: float, swa_start: float, is_validated: bool) -> None:
        """Include the current weights.

        ema: at every step, with a decay that grows from 0, so that the starting weights soon lose
        their influence. swa: only before a validation, once `fraction_done` of the stage has
        reached `swa_start`.
        """
        if self.kind == "ema":
            self._include(1 - min(self.ema_decay, (1 + self.count) / (10 + self.count)))
        elif self.kind == "swa" and is_validated and fraction_done >= swa_start:
            self._include(1 / (1 + self.count))

    def _include(self, weight: float) -> None:
        if not self.mean:
            self.mean = {name: p.detach().clone() for name, p in self._parameters.items()}
        torch._foreach_lerp_(list(self.mean.values()), list(self._parameters.values()), weight)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model; on exit restore the weights, bit for bit."""
        current = {name: self._parameters[name].detach().clone() for name in self.mean}
        self._copy_to_model(self.mean)
        try:
            yield
        finally:
            self._copy_to_model(current)

    def state(self) -> dict[str, Tensor]:
        return self.mean | {"count": torch.tensor(self.count)} if self.mean else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self.count = int(state.pop("count", torch.tensor(0)))
        # in the order of the parameters, which the file does not keep
        self.mean = {name: state[name].clone() for name in self._parameters if name in state}

    @torch.no_grad()
    def _copy_to_model(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
