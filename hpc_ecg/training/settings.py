"""All settings of one run: a section for each part, which is handed that and nothing more."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from hpc_ecg.data.augment import AugmentConfig
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.architecture import ModelConfig
from hpc_ecg.model.losses import LossConfig
from hpc_ecg.training.optimizer import OptimConfig
from hpc_ecg.training.stage_schedule import TrainConfig
from hpc_ecg.weights.initialize import InitConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All settings of one run."""

    run_dir: str = MISSING
    """Folder of this run; starting again on it goes on."""
    seed: int = 0
    """Sets new weights, order of records and dropout; never the split."""
    files: dict[str, str] = field(default_factory=dict)
    """Names for paths, to be used elsewhere as ${files.name}."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.data.task == "regression" and self.train.calibration != "none":
            raise ValueError(
                f"train.calibration={self.train.calibration} is for probabilities, and "
                "data.task=regression has none; use train.calibration=none"
            )
