"""When a run evaluates, saves and stops: pure functions of its settings and its progress."""

from dataclasses import dataclass

from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """A stage in steps of the run: from `began` to before `end`."""

    epoch_steps: int
    began: int
    end: int
    eval_every: int
    save_every: int | None
    log_every: int
    patience: int | None
    keep_checkpoints: int
    last_stop: str

    @classmethod
    def from_config(cls, config: TrainConfig, epoch_steps: int, began: int = 0) -> "StageSchedule":
        steps = config.max_epochs * epoch_steps
        if config.max_steps:
            steps = config.max_steps
        return cls(
            epoch_steps=epoch_steps,
            began=began,
            end=began + steps,
            eval_every=config.eval_every or epoch_steps,
            save_every=config.save_every,
            log_every=config.log_every,
            patience=config.patience,
            keep_checkpoints=config.keep_checkpoints,
            last_stop="max_steps" if config.max_steps else "max_epochs",
        )

    @property
    def steps(self) -> int:
        return self.end - self.began

    def share_done(self, step: int) -> float:
        return (step - self.began) / max(self.steps, 1)

    def evaluates_at(self, step: int) -> bool:
        """Every `eval_every` steps and at the end; a stage without steps evaluates its start."""
        done = step - self.began
        return step == self.end or (done > 0 and done % self.eval_every == 0)

    def saves_at(self, step: int) -> bool:
        """Before every evaluation, and every `save_every` steps."""
        return self.evaluates_at(step) or bool(self.save_every and step % self.save_every == 0)

    def logs_at(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.end

    def reason_to_stop(self, progress: Progress) -> str | None:
        if self.patience and progress.evaluations_without_gain >= self.patience:
            return "patience"
        return self.last_stop if progress.step >= self.end else None
