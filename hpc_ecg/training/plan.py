"""When a run evaluates, saves and stops: pure functions of its settings and its progress."""

import time
from dataclasses import dataclass, fields, replace

from hpc_ecg.training.checkpoint import Progress

METRICS = ("auroc", "auprc", "loss")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    freeze: str = "auto"
    """What does not train: none, stem, backbone (a linear probe), or auto (the stem when weights
    are loaded, as in the reference; none from random weights)."""
    max_epochs: int = 30
    """Passes over the training split."""
    max_steps: int | None = None
    """Optimizer steps; null = as many as max_epochs takes."""
    eval_every: int | None = None
    """Steps between validations; null = once per epoch."""
    patience: int | None = 10
    """Validations without a better score after which the run stops; null = never."""
    best_metric: str = "auto"
    """Score of the best weights: auroc, auprc, loss, or auto (auroc; loss for regression)."""
    save_every: int | None = None
    """Steps between checkpoints, besides the one before each validation; null = only that."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.best_metric not in ("auto", *METRICS):
            raise ValueError(
                f"train.best_metric must be auto, {', '.join(METRICS)}, got {self.best_metric!r}"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"train.{item.name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The `train` settings in steps."""

    epoch_steps: int
    total_steps: int
    eval_every: int
    save_every: int | None
    log_every: int
    patience: int | None
    keep_checkpoints: int
    last_stop: str

    @classmethod
    def of(cls, config: TrainConfig, epoch_steps: int) -> "Plan":
        return cls(
            epoch_steps=epoch_steps,
            total_steps=config.max_steps or config.max_epochs * epoch_steps,
            eval_every=config.eval_every or epoch_steps,
            save_every=config.save_every,
            log_every=config.log_every,
            patience=config.patience,
            keep_checkpoints=config.keep_checkpoints,
            last_stop="max_steps" if config.max_steps else "max_epochs",
        )

    def evaluates_at(self, step: int) -> bool:
        return step > 0 and (step % self.eval_every == 0 or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Before every evaluation, and on the way as often as asked for."""
        return self.evaluates_at(step) or bool(self.save_every and step % self.save_every == 0)

    def logs_at(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.total_steps

    def reason_to_stop(self, progress: Progress) -> str | None:
        if self.patience and progress.evaluations_without_gain >= self.patience:
            return "patience"
        return self.last_stop if progress.step >= self.total_steps else None


class Meter:
    """Time of the run over all its starts, and ECGs per second between two log lines."""

    def __init__(self, before: Progress, processes: int) -> None:
        self._began, self._before, self._processes = time.monotonic(), before, processes
        self._stepping, self._ecgs = 0.0, 0
        self.restart()

    def at_step(self, step: int, progress: Progress) -> Progress:
        """The progress with this step and the time that it took."""
        seconds = time.monotonic() - self._began
        return replace(
            progress,
            step=step,
            seconds=self._before.seconds + seconds,
            process_seconds=self._before.process_seconds + seconds * self._processes,
        )

    def restart(self) -> None:
        """Begin a new interval: what came before (an evaluation) is not part of the rate."""
        self._since, self._recent = time.monotonic(), 0

    def count(self, num_ecgs: int) -> None:
        self._recent += num_ecgs

    def rate(self) -> float:
        """ECG/s since the last call, all processes together."""
        seconds, ecgs = time.monotonic() - self._since, self._recent
        self._stepping, self._ecgs = self._stepping + seconds, self._ecgs + ecgs
        self.restart()
        return ecgs / max(seconds, 1e-9)

    def mean(self) -> float | None:
        """ECG/s over all intervals of this start; None before the first."""
        return self._ecgs / self._stepping if self._stepping else None
