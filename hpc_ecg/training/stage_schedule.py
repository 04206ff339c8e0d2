"""When a stage evaluates, saves and stops: pure functions of its settings and its progress."""

from dataclasses import dataclass

from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """A stage in steps of the run: from `began` up to, but not including, `end`."""

    config: TrainConfig
    epoch_steps: int
    began: int = 0

    @property
    def steps(self) -> int:
        return self.config.max_steps or self.config.max_epochs * self.epoch_steps

    @property
    def end(self) -> int:
        return self.began + self.steps

    @property
    def eval_every(self) -> int:
        return self.config.eval_every or self.epoch_steps

    def fraction_done(self, step: int) -> float:
        return (step - self.began) / max(self.steps, 1)

    def evaluates_at(self, step: int) -> bool:
        """Every `eval_every` steps and at the end; a stage without steps evaluates its start."""
        done = step - self.began
        return step == self.end or (done > 0 and done % self.eval_every == 0)

    def saves_at(self, step: int) -> bool:
        """Before every evaluation, and every `save_every` steps."""
        every = self.config.save_every
        return self.evaluates_at(step) or bool(every and step % every == 0)

    def logs_at(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.end

    def reason_to_stop(self, progress: Progress) -> str | None:
        """The setting that ends the stage at this point; None to continue."""
        patience = self.config.patience
        if patience and progress.evaluations_without_gain >= patience:
            return "patience"
        if progress.step < self.end:
            return None
        return "max_steps" if self.config.max_steps else "max_epochs"
