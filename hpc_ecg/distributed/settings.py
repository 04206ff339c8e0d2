"""The engine's settings, and which device and arithmetic they come to on this machine."""

from dataclasses import dataclass, field

import torch

PRECISIONS = ("fp32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    parallel: str = "ddp"
    """How processes share the work: ddp (each has the whole model), fsdp2 (torch's fully_shard) or
    DeepSpeed's zero1, zero2, zero3 (optimizer; and gradients; and weights in parts). The numbers
    are the same, and checkpoints too: a run may go on in another kind."""
    precision: str = "auto"
    """Arithmetic: auto (bf16 on GPUs that have it, fp32 elsewhere), fp32, bf16 or fp16 (ddp)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    micro_batch_size: int | None = None
    """Records of one forward on one process; null = its whole part of the batch at once."""
    activation_checkpointing: bool = False
    """Keep one activation per encoder layer and compute the others again: less memory, more time.
    """
    compile: bool = False
    """torch.compile the model: slower to start; numbers differ in the last digits."""
    cpu_threads: int | None = None
    """Threads of torch on a CPU; null = torch's own choice."""
    timeout_min: float = 30
    """Minutes without a step after which the stacks of all processes are written and they end
    (exit code 76: slurm/finetune.sh starts the job again)."""

    trackers: list[str] = field(default_factory=list)
    """Where numbers go besides metrics.jsonl, by accelerate's names: tensorboard, wandb, mlflow,
    trackio …; what they write lies in the run's folder."""

    def __post_init__(self) -> None:
        for name, allowed in {
            "parallel": PARALLEL,
            "precision": ("auto", *PRECISIONS),
            "device": ("auto", "cpu", "cuda"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"engine.{name} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("micro_batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1, got {value}")
        if not self.timeout_min > 0:
            raise ValueError(f"engine.timeout_min must be positive, got {self.timeout_min}")
        if self.precision == "fp16" and self.parallel != "ddp":
            raise ValueError(
                f"engine.precision=fp16 is for engine.parallel=ddp, got {self.parallel}; use bf16"
            )

    @property
    def zero_stage(self) -> int | None:
        """1 to 3 under DeepSpeed."""
        return int(self.parallel[-1]) if self.parallel.startswith("zero") else None


def choose_hardware(config: EngineConfig) -> tuple[bool, str]:
    """(run on the CPU?, precision); an explicit wish that cannot be met is a ValueError."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu")
    on_cpu = config.device == "cpu" or not has_gpu
    if config.precision == "auto":
        return on_cpu, "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "fp32"
    if on_cpu and config.precision == "fp16":
        raise ValueError("engine.precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    return on_cpu, config.precision
