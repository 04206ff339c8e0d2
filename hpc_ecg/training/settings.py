"""The settings of one run: sections `optim` and `train`, and the whole with all other sections."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.data.settings import AugmentConfig, DataConfig
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.settings import LossConfig, ModelConfig
from hpc_ecg.weights.settings import RANDOM, InitConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = setting(5e-5, above=0)
    """Peak learning rate."""
    schedule: str = setting("cosine", choices=("cosine", "constant"))
    """After the warm-up: cosine (towards 0 at the end) or constant."""
    warmup_fraction: float = setting(0.05, at_least=0, below=1)
    """Share of all steps over which the rate rises linearly."""
    betas: tuple[float, float] = setting((0.9, 0.98), at_least=0, below=1)
    """AdamW's decay rates of the averages of gradient and squared gradient."""
    eps: float = setting(1e-8, above=0)
    """AdamW's epsilon."""
    eps_before_correction: bool = False
    """Add eps before the bias correction of the squared gradient, as fairseq's Adam does."""
    head_lr: float | None = setting(None, above=0)
    """Peak learning rate of the head; null = lr."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Factor on the rate from each layer to the one below it, starting at the head (as in BEiT):
    with 0.75 the top encoder layer trains with 0.75 of lr, and everything before the first layer
    with 0.75 to the power of the number of layers + 1."""
    weight_decay: float = setting(0.01, at_least=0)
    """Decoupled weight decay of matrices; biases and norms do not decay."""
    clip_norm: float | None = setting(1.0, above=0)
    """Largest gradient norm; null = no clipping."""

    def __post_init__(self) -> None:
        check_settings(self, "optim")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Overrides of `train` and `optim` for one stage; null = the value there."""

    freeze: str | None = None
    """Part that does not train in this stage."""
    freeze_layers: int | None = setting(None, at_least=0)
    """Encoder layers that do not train in this stage."""
    max_epochs: int | None = setting(None, at_least=0)
    """Passes over the training split in this stage."""
    patience: int | None = setting(None, at_least=1)
    """Validations without a better score after which the next stage begins."""
    lr: float | None = None
    """Peak learning rate of this stage."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    freeze: str = "auto"
    """Part that does not train: none, stem, backbone (a linear probe), or auto (the stem when
    weights are loaded, as in the reference; none for random weights)."""
    freeze_layers: int = setting(0, at_least=0)
    """Also freeze the first n encoder layers and everything before them."""
    max_epochs: int = setting(30, at_least=0)
    """Passes over the training split; 0 = no training: the initial weights are evaluated."""
    max_steps: int | None = setting(None, at_least=1)
    """Optimizer steps; null = as many as max_epochs needs."""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """Stages by name, one after another in one run, each with its own freeze, freeze_layers,
    max_epochs, patience and lr (train.stages.probe.lr=…); {} = a single stage. Each stage has its
    own learning-rate schedule and optimizer state; the best weights are chosen over all stages."""
    eval_every: int | None = setting(None, at_least=1)
    """Steps between validations; null = once per epoch."""
    patience: int | None = setting(10, at_least=1)
    """Validations without a better score after which the run (or stage) stops; null = never."""
    best_metric: str = setting("auto", choices=("auto", "auroc", "auprc", "loss"))
    """Validation metric that chooses the best weights: auroc, auprc, loss, or auto (auroc; loss for
    regression)."""
    best_decimals: int | None = setting(None, at_least=0)
    """Decimals to which scores are rounded before they are compared, a loss in bits; the latest of
    equal scores is kept (the reference: 3). null = exact comparison; the first is kept."""
    average: str = setting("none", choices=("none", "ema", "swa"))
    """Weights to validate and keep: none (the current ones), ema (exponential moving average over
    the steps) or swa (mean over the validations at the end of each stage)."""
    ema_decay: float = setting(0.999, at_least=0, below=1)
    """ema: decay per step; step n uses at most (1 + n) / (10 + n), so that the starting weights
    soon lose their influence."""
    swa_start: float = setting(0.75, at_least=0, below=1)
    """swa: share of a stage's steps after which averaging begins."""
    calibration: str = setting("none", choices=("none", "temperature", "platt"))
    """Calibration of each label, fitted on validation at the end and merged into the head: none,
    temperature (one factor) or platt (factor and offset). A label that cannot be fitted stays as it
    is, and best/calibration.json says why."""
    feature_cache: str | None = setting("auto", may_change=True, is_path=True)
    """Where to keep the features of a frozen backbone, computed once for all seeds, rates and
    labels: auto (features/ in the folder of shards, or in the run folder where that is read-only),
    a folder, or null = nowhere."""
    save_every: int | None = setting(None, at_least=1, may_change=True)
    """Steps between checkpoints, besides the one before each validation and those by time."""
    save_every_min: float | None = setting(None, at_least=0, may_change=True)
    """Minutes between checkpoints; null = the interval that loses least time if a job dies once a
    day (Young 1974: the square root of 2 x measured time of saving x time between failures); 0 =
    none by time."""
    keep_checkpoints: int = setting(2, at_least=1, may_change=True)
    """Newest checkpoints to keep on disk."""
    log_every: int = setting(10, at_least=1, may_change=True)
    """Steps between lines in metrics.jsonl."""
    skip_nonfinite: int = setting(0, at_least=0, may_change=True)
    """Steps that a run may skip because loss or gradient is not finite; one more stops it. Above 0,
    every step waits for the device. Not with zero1-3."""
    doctor: bool = setting(False, may_change=True)
    """Check cluster, data and weights before the first step, as `hpc-ecg doctor` does; an error
    stops the run."""

    @property
    def trains(self) -> bool:
        """Whether any stage has a step; without one the initial weights are evaluated."""
        epochs = [stage.max_epochs for stage in self.stages.values()] or [self.max_epochs]
        return any(self.max_epochs if n is None else n for n in epochs) or bool(self.max_steps)

    def __post_init__(self) -> None:
        check_settings(self, "train")
        for name, stage in self.stages.items():
            check_settings(stage, f"train.stages.{name}")
        if self.feature_cache == "":
            raise ValueError("train.feature_cache is empty; give a folder, auto or null")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All settings of one run."""

    run_dir: str = setting(MISSING, may_change=True)
    """Folder of this run; the same command resumes it."""
    seed: int = setting(0, at_least=0)
    """Sets new weights, order of records, augmentation and dropout; never the split."""
    files: dict[str, str] = setting({}, may_change=True, is_path=True)
    """Names for paths, to be used in other settings as ${files.name}."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def is_fixed(self) -> bool:
        """Whether no seed changes the result: nothing trains, and the weights are those of a file
        that is known to have a head."""
        init = self.init
        keeps = init.head == "keep" or (init.head == "auto" and init.expects == "classifier")
        return keeps and init.checkpoint not in (None, RANDOM) and not self.train.trains

    def __post_init__(self) -> None:
        check_settings(self, "")
        if self.data.task == "regression" and self.train.calibration != "none":
            raise ValueError(
                f"train.calibration={self.train.calibration} is for probabilities, and "
                "data.task=regression has none; use train.calibration=none"
            )
