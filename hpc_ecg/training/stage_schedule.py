"""When a run evaluates, saves and stops: pure functions of its settings and its progress."""

from dataclasses import dataclass, field, fields

from hpc_ecg.training import averaging
from hpc_ecg.training.checkpoint import Progress

METRICS = ("auroc", "auprc", "loss")
CALIBRATIONS = ("none", "temperature", "platt")
MAY_BE_ZERO = ("max_epochs", "freeze_layers", "best_decimals", "skip_nonfinite")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What one stage changes of `train` and `optim`; null = as there."""

    freeze: str | None = None
    """What does not train in this stage."""
    freeze_layers: int | None = None
    """Encoder layers that do not train in this stage."""
    max_epochs: int | None = None
    """Passes over the training split in this stage."""
    patience: int | None = None
    """Validations without a better score after which the next stage begins."""
    lr: float | None = None
    """Peak learning rate of this stage."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    freeze: str = "auto"
    """What does not train: none, stem, backbone (a linear probe), or auto (the stem when weights
    are loaded, as in the reference; none from random weights)."""
    freeze_layers: int = 0
    """The first n encoder layers, and all that lies before them, do not train either."""
    max_epochs: int = 30
    """Passes over the training split; 0 = no training: the start is judged as it is."""
    max_steps: int | None = None
    """Optimizer steps; null = as many as max_epochs takes."""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """Stages by name, one after the other in one run, each with its own freeze, freeze_layers,
    max_epochs, patience and lr (train.stages.probe.lr=…); {} = a single one. Every stage has a
    schedule and optimizer moments of its own; the best weights are chosen over all of them."""
    eval_every: int | None = None
    """Steps between validations; null = once per epoch."""
    patience: int | None = 10
    """Validations without a better score after which the run (or stage) stops; null = never."""
    best_metric: str = "auto"
    """Score of the best weights: auroc, auprc, loss, or auto (auroc; loss for regression)."""
    best_decimals: int | None = None
    """Decimals to which scores are rounded when they are compared, a loss in bits; of equal ones
    the latest is kept (the reference: 3). null = exact, and the first is kept."""
    average: str = "none"
    """Which weights are validated and kept: none (the last), ema (exponential moving average over
    the steps) or swa (mean over the validations at the end of each stage)."""
    ema_decay: float = 0.999
    """ema: weight of the average of before, per step; at the beginning less, (1 + n) / (10 + n) in
    step n, so that the start is soon forgotten."""
    swa_start: float = 0.75
    """swa: share of a stage's steps after which the mean begins."""
    calibration: str = "none"
    """Fitted on validation at the end and put into the head: none, temperature (one factor) or
    platt (factor and offset), per label; a label that cannot be fitted stays as it is, and
    best/calibration.json says why."""
    feature_cache: str | None = "auto"
    """Where a frozen backbone's features are kept, to be computed once for all seeds, rates and
    labels: auto (features/ in the folder of shards, or in the run folder where that cannot be
    written), a folder, or null = nowhere."""
    save_every: int | None = None
    """Steps between checkpoints, besides the one before each validation and those by time."""
    save_every_min: float | None = None
    """Minutes between checkpoints; null = what loses least when a job dies once a day, from the
    measured time of saving (Young 1974: the root of 2 x time of saving x time between failures);
    0 = none by time."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    skip_nonfinite: int = 0
    """Steps that may be left out of the run because loss or gradient is not finite; the next one
    stops it. 0 = the first one does. Above 0 every step waits for the device. Not with zero1-3."""
    doctor: bool = False
    """Look at cluster, data and weights before the first step, as `hpc-ecg doctor` does; an error
    stops the run."""

    def __post_init__(self) -> None:
        for name, allowed in {
            "best_metric": ("auto", *METRICS),
            "average": averaging.KINDS,
            "calibration": CALIBRATIONS,
        }.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(allowed)
                raise ValueError(
                    f"train.{name} must be one of {choices}, got {getattr(self, name)!r}"
                )
        if self.feature_cache == "":
            raise ValueError("train.feature_cache is empty; give a folder, auto or null")
        for name in ("ema_decay", "swa_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.save_every_min is not None and not self.save_every_min >= 0:
            raise ValueError(
                f"train.save_every_min must not be negative, got {self.save_every_min}"
            )
        _check_counts(self, "train")
        for name, stage in self.stages.items():
            _check_counts(stage, f"train.stages.{name}")


def _check_counts(config: TrainConfig | StageConfig, section: str) -> None:
    for item in fields(config):
        value, least = getattr(config, item.name), int(item.name not in MAY_BE_ZERO)
        if type(value) is int and value < least:
            raise ValueError(f"{section}.{item.name} must be at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """A stage in steps of the run: it begins at `began` and ends before `end`."""

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
    def of(cls, config: TrainConfig, epoch_steps: int, began: int = 0) -> "StageSchedule":
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
        """At the end, and on the way; without any step the start is evaluated."""
        done = step - self.began
        return step == self.end or (done > 0 and done % self.eval_every == 0)

    def saves_at(self, step: int) -> bool:
        """Before every evaluation, and on the way as often as asked for."""
        return self.evaluates_at(step) or bool(self.save_every and step % self.save_every == 0)

    def logs_at(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.end

    def reason_to_stop(self, progress: Progress) -> str | None:
        if self.patience and progress.evaluations_without_gain >= self.patience:
            return "patience"
        return self.last_stop if progress.step >= self.end else None
