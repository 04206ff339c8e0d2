"""The section `engine` of a run's settings."""

from dataclasses import dataclass, replace

from hpc_ecg.config.schema import check_settings, setting

PARALLEL = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    parallel: str = setting("ddp", choices=PARALLEL, may_change=True)
    """How processes share the work: ddp (each holds the whole model), fsdp2 (torch's fully_shard)
    or DeepSpeed's zero1, zero2, zero3 (shard the optimizer; also gradients; also weights). All give
    the same numbers and write the same checkpoints, so a run may resume with another one."""
    precision: str = setting("auto", choices=("auto", "fp32", "bf16", "fp16"))
    """Arithmetic: auto (bf16 on GPUs that support it, fp32 elsewhere), fp32, bf16 or fp16 (ddp)."""
    device: str = setting("auto", choices=("auto", "cpu", "cuda"), may_change=True)
    """auto (a GPU if there is one), cpu or cuda."""
    micro_batch_size: int | None = setting(None, at_least=1, may_change=True)
    """Records per forward pass of one process; null = its whole share of the batch."""
    activation_checkpointing: bool = setting(False, may_change=True)
    """Keep one activation per encoder layer and recompute the others: less memory, more time."""
    kernels: str = setting("auto", choices=("auto", "measure", "reference"), may_change=True)
    """measure = time what the kernel settings on auto can be, at this run's sizes and for at most
    30 s besides compilation, and keep the fastest in kernels.json; reference = take the plain ones;
    auto = measure on a GPU, if the run is long enough, otherwise reference."""
    compile: bool | None = setting(None, may_change=True)
    """Use torch.compile: slower to start, and numbers differ in the last digits. null = where
    kernels are measured and the run is long enough to win by it."""
    verify_every: int | None = setting(None, at_least=1, may_change=True)
    """Compute every this many steps twice, and refuse one whose results differ: hardware that fails
    without an error. The run ends with exit code 77 and names the node; slurm/finetune.sh starts it
    on others. null = never. A checked step takes twice the time."""
    cpu_threads: int | None = setting(None, at_least=1, may_change=True)
    """Threads of torch on a CPU; null = torch's own choice."""
    timeout_min: float = setting(30, above=0, may_change=True)
    """Minutes without a step after which all processes write their stacks and exit (exit code 76,
    after which slurm/finetune.sh starts the job again)."""
    trackers: list[str] = setting([], may_change=True)
    """Experiment trackers besides metrics.jsonl, by Accelerate's names: tensorboard, wandb, mlflow,
    trackio …; they write into the run's folder."""

    def __post_init__(self) -> None:
        check_settings(self, "engine")
        if self.precision == "fp16" and self.parallel != "ddp":
            raise ValueError(
                f"engine.precision=fp16 is for engine.parallel=ddp, got {self.parallel}; use bf16"
            )

        if self.verify_every and self.zero_stage:
            raise ValueError(
                f"engine.verify_every={self.verify_every} is not possible with engine.parallel="
                f"{self.parallel}: DeepSpeed keeps gradients of its own; use ddp or fsdp2"
            )

    @property
    def zero_stage(self) -> int | None:
        """1 to 3 with DeepSpeed; None without it."""
        return int(self.parallel[-1]) if self.parallel.startswith("zero") else None

    def for_inference(self) -> "EngineConfig":
        """Of a run that only predicts: its model fits every process, and nothing is tracked."""
        return replace(self, parallel="ddp", trackers=[])
