"""The stages of a run: the settings of each, which are left, when one evaluates, saves, stops.

Each stage has its own trainable parameters, and so a new optimizer and a new wrapper, since DDP
does not synchronize parameters that are unfrozen later. A run without `train.stages` has a single
stage, named `all`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpc_ecg.training.settings import OptimConfig, StageConfig, TrainConfig
from hpc_ecg.weights.settings import decide_freeze

if TYPE_CHECKING:  # the planner needs no torch
    from hpc_ecg.training.checkpoint import Progress
    from hpc_ecg.weights.initialize import Initialized

ONLY = "all"


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    train: TrainConfig
    """The run's settings, overridden by those of the stage."""
    optim: OptimConfig
    freeze: str
    """none, stem or backbone: train.freeze with `auto` resolved."""

    @property
    def is_probe(self) -> bool:
        """Whether at most the head trains."""
        return self.freeze == "backbone"


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

    def reason_to_stop(self, progress: "Progress") -> str | None:
        """The setting that ends the stage at this point; None to continue."""
        patience = self.config.patience
        if patience and progress.evaluations_without_gain >= patience:
            return "patience"
        if progress.step < self.end:
            return None
        return "max_steps" if self.config.max_steps else "max_epochs"


def stages_of(train: TrainConfig, optim: OptimConfig, weights_loaded: bool) -> list[Stage]:
    """The stages in order; ValueError for settings that contradict each other."""
    if train.stages and train.max_steps:
        raise ValueError(
            "train.max_steps is for a run of one stage; use train.stages.NAME.max_epochs"
        )
    stages = []
    for name, changes in (train.stages or {ONLY: StageConfig()}).items():
        overrides = {key: value for key, value in vars(changes).items() if value is not None}
        lr = overrides.pop("lr", optim.lr)
        stage_train = replace(train, **overrides, stages={})
        try:
            stage_optim = replace(optim, lr=lr)
            freeze = decide_freeze(stage_train.freeze, weights_loaded)
        except ValueError as error:
            raise ValueError(_name_stage(name, error)) from None
        stages.append(Stage(name=name, train=stage_train, optim=stage_optim, freeze=freeze))
    return stages


def _name_stage(name: str, error: ValueError) -> str:
    """The message, with keys as the user wrote them."""
    if name == ONLY:
        return str(error)
    return (
        str(error)
        .replace("train.", f"train.stages.{name}.")
        .replace("optim.lr", f"train.stages.{name}.lr")
    )


def check_parallel(train: TrainConfig, parallel: str) -> None:
    """ValueError for settings that DeepSpeed does not support."""
    if parallel.startswith("zero") and train.skip_nonfinite:
        raise ValueError(
            f"train.skip_nonfinite={train.skip_nonfinite} is not possible with engine.parallel="
            f"{parallel}: DeepSpeed steps by itself; use ddp or fsdp2"
        )
    if parallel == "zero3" and train.average != "none":
        raise ValueError(
            f"train.average={train.average} is not possible with engine.parallel=zero3: no process "
            "holds the whole weights; use zero2 or fsdp2"
        )


def stages_left(stages: Sequence[Stage], progress: "Progress") -> Sequence[Stage]:
    """The stage that the run is in, and those after it."""
    names = [stage.name for stage in stages]
    return stages[names.index(progress.stage) if progress.stage else 0 :]


def enter_stage(progress: "Progress", stage: Stage) -> "Progress":
    """The progress at the start of a stage; unchanged if the run resumes inside it."""
    if progress.stage == stage.name:
        return progress
    return replace(
        progress, stage=stage.name, stage_began=progress.step, evaluations_without_gain=0
    )


def trains_head_only(stages: Sequence[Stage], until: Stage) -> bool:
    """Whether the backbone is frozen in every stage up to and including this one."""
    return all(stage.is_probe for stage in stages[: stages.index(until) + 1])


def num_steps(stages: Sequence[Stage], epoch_steps: int) -> int:
    """Steps of a run that uses all its epochs."""
    return sum(StageSchedule(config=s.train, epoch_steps=epoch_steps).steps for s in stages)


def run_seconds(
    stages: Sequence[Stage],
    epoch_steps: int,
    records: Sequence[int],
    step_s: Sequence[float],
    forward_s: float,
) -> float:
    """Seconds of a run that uses all its epochs, validations included: `step_s` of each stage,
    `records` to train and to validate on, `forward_s` per record by all processes together."""
    train_s, valid_s = (number * forward_s for number in records)
    seconds = valid_s
    for stage, step in zip(stages, step_s, strict=True):
        schedule = StageSchedule(config=stage.train, epoch_steps=epoch_steps)
        each_s = step + valid_s / schedule.eval_every
        is_probe = trains_head_only(stages, stage)  # features are computed once
        seconds += train_s if is_probe else schedule.steps * each_s
    return seconds


def describe_stages(start: "Initialized", stages: Sequence[Stage]) -> None:
    """Add what trains in each stage to the report; leave the model frozen for the first stage.

    ValueError for a setting of train.freeze_layers that does not fit the model.
    """
    parameters = start.report["parameters"]
    start.report["stages"] = {stage.name: {} for stage in stages}
    for stage in reversed(stages):
        try:
            start.model.freeze(stage.freeze, stage.train.freeze_layers)
        except ValueError as error:
            raise ValueError(_name_stage(stage.name, error)) from None
        trained = {name for name, p in start.model.named_parameters() if p.requires_grad}
        for name in trained:
            parameters[name]["trained"] = True
        start.report["stages"][stage.name] = {
            "freeze": stage.freeze,
            "tensors_trained": len(trained),
        }
