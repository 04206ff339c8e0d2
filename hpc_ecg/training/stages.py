"""A run's stages: which settings each has, where a run stands in them, what has trained so far.

A change of what trains is a stage: the optimizer is made anew and the engine tied anew, since DDP
does not synchronise what is unfrozen later. A run without `train.stages` has one, called `all`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.optimizer import OptimConfig
from hpc_ecg.training.stage_schedule import StageConfig, TrainConfig
from hpc_ecg.weights.initialize import Initialized, decide_freeze

ONLY = "all"


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    train: TrainConfig
    """With this stage's own settings laid over the run's."""
    optim: OptimConfig
    freeze: str
    """What train.freeze comes to: none, stem or backbone."""

    @property
    def probes(self) -> bool:
        """Whether the head alone trains, or nothing."""
        return self.freeze == "backbone"


def stages_of(train: TrainConfig, optim: OptimConfig, weights_loaded: bool) -> list[Stage]:
    """ValueError for a stage that cannot be."""
    if train.stages and train.max_steps:
        raise ValueError(
            "train.max_steps is for a run of one stage; use train.stages.NAME.max_epochs"
        )
    stages = []
    for name, own in (train.stages or {ONLY: StageConfig()}).items():
        said = {key: value for key, value in vars(own).items() if value is not None}
        rate = {"lr": said.pop("lr")} if "lr" in said else {}
        of_stage = replace(train, **said, stages={})
        try:
            of_optim = replace(optim, **rate)
            freeze = decide_freeze(of_stage.freeze, weights_loaded)
        except ValueError as error:
            raise ValueError(_of_stage(name, error)) from None
        stages.append(Stage(name=name, train=of_stage, optim=of_optim, freeze=freeze))
    return stages


def _of_stage(name: str, error: ValueError) -> str:
    """The message with the key that the user wrote."""
    if name == ONLY:
        return str(error)
    return (
        str(error)
        .replace("train.", f"train.stages.{name}.")
        .replace("optim.lr", f"train.stages.{name}.lr")
    )


def check_parallel(train: TrainConfig, parallel: str) -> None:
    """ValueError for what DeepSpeed cannot do."""
    if parallel.startswith("zero") and train.skip_nonfinite:
        raise ValueError(
            f"train.skip_nonfinite={train.skip_nonfinite} is not possible with engine.parallel="
            f"{parallel}: DeepSpeed steps by itself; use ddp or fsdp2"
        )
    if parallel == "zero3" and train.average != "none":
        raise ValueError(
            f"train.average={train.average} is not possible with engine.parallel=zero3: no process "
            "has the weights whole; use zero2 or fsdp2"
        )


def stages_left(stages: Sequence[Stage], progress: Progress) -> Sequence[Stage]:
    """The stage that a run stands in, and those after it."""
    names = [stage.name for stage in stages]
    return stages[names.index(progress.stage) if progress.stage else 0 :]


def enter(progress: Progress, stage: Stage) -> Progress:
    """Progress at the beginning of a stage; a run that went on inside it is left as it is."""
    if progress.stage == stage.name:
        return progress
    return replace(
        progress, stage=stage.name, stage_began=progress.step, evaluations_without_gain=0
    )


def trains_head_only(stages: Sequence[Stage], until: Stage | None = None) -> bool:
    """Whether the backbone stays what it was, up to the end of a stage (None: of the last)."""
    last = stages.index(until) if until else len(stages) - 1
    return all(stage.probes for stage in stages[: last + 1])


def describe_stages(start: Initialized, stages: Sequence[Stage]) -> None:
    """What trains in each stage, into the report; leaves the model frozen as the first stage has
    it."""
    parameters = start.report["parameters"]
    start.report["stages"] = {stage.name: {} for stage in stages}
    for stage in reversed(stages):
        try:
            start.model.freeze(stage.freeze, stage.train.freeze_layers)
        except ValueError as error:
            raise ValueError(_of_stage(stage.name, error)) from None
        trained = {name for name, p in start.model.named_parameters() if p.requires_grad}
        for name in trained:
            parameters[name]["trained"] = True
        start.report["stages"][stage.name] = {
            "freeze": stage.freeze,
            "tensors_trained": len(trained),
        }
