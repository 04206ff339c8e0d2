"""What a user sets about data: section `data` of a run."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from hpc_ecg.data import order, sampling

TASKS = ("binary", "multilabel", "regression")
READS = ("map", "stream")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    shards: str = MISSING
    """Folder of shards, as tools/shard_ecgs.py writes it, or its URL (s3://bucket/set, …)."""
    task: str = "binary"
    """What the labels are: binary (one label), multilabel or regression."""
    labels: list[str] = field(default_factory=list)
    """Labels to train on, in the head's order; [] = all labels of the shards."""
    label_table: str | None = None
    """Table (CSV, TSV, parquet) with a column record and one per label, used in place of the
    shards' labels; a record that is not in it has no label."""
    fold: int | None = None
    """Shards with folds: the fold that tests; the next one validates, the others train. null = the
    splits of the shards."""
    repeat: int = 0
    """Which of the repeated divisions into folds."""
    label_fraction: float = 1.0
    """Share of the training patients with a label that are trained on, to see what labels are
    worth; the same patients for all seeds, and those of a smaller share are among them."""
    batch_size: int = 128
    """Records of one optimizer step, over all processes together."""
    order: str = "shuffled"
    """shuffled = anew each epoch; fixed_batches = as the reference: batches are cut once and only
    their order changes (its own batches with seed=1)."""
    sampling: str = "all"
    """Records of an epoch: all (each once), balanced (half of them positive; binary only) or
    one_per_patient (one of each patient, another one in each epoch)."""
    read: str = "map"
    """map = each record where it lies, in any order; stream = shards from front to back, where
    random reads are dear (its own order, of stream_lanes and stream_buffer)."""
    stream_lanes: int = 8
    """Shards that are read side by side, over all processes; the processes must divide it."""
    stream_buffer: int = 256
    """Records of a shard that are shuffled together; a process holds twice that for each of its
    lanes (60 kB a record)."""
    stage_dir: str | None = None
    """Folder on the node's own disk where shards are copied ahead of use ($SLURM_TMPDIR, …)."""
    stage_quota_gb: float | None = None
    """Space that may be used there; null = 90 % of what is free. What does not fit is read from
    data.shards."""
    allow_pipe: bool = False
    """Let data.shards be `pipe:COMMAND`, a shell command that writes the file {name} to its
    output. It runs as you: allow it only for commands that you wrote."""

    def __post_init__(self) -> None:
        for name, allowed in {
            "task": TASKS,
            "order": order.KINDS,
            "sampling": sampling.KINDS,
            "read": READS,
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"data.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("batch_size", "stream_lanes", "stream_buffer", "repeat"):
            least = int(name != "repeat")
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.label_fraction <= 1:
            raise ValueError(
                f"data.label_fraction is a share above 0 and up to 1, got {self.label_fraction:g}"
            )
        if self.fold is not None and self.fold < 0:
            raise ValueError(f"data.fold counts from 0, got {self.fold}")
        if self.stage_quota_gb is not None and self.stage_quota_gb <= 0:
            raise ValueError(f"data.stage_quota_gb must be positive, got {self.stage_quota_gb}")
        if self.sampling == "balanced" and self.task != "binary":
            raise ValueError(f"data.sampling=balanced is for data.task=binary, not {self.task}")
        if self.order == "fixed_batches" and (self.sampling != "all" or self.read != "map"):
            raise ValueError(
                "data.order=fixed_batches is an order of all records, read by position; it needs "
                "data.sampling=all and data.read=map"
            )
        for name, other, is_there in (
            ("stream_lanes", "data.read=stream", self.read == "stream"),
            ("stream_buffer", "data.read=stream", self.read == "stream"),
            ("stage_quota_gb", "data.stage_dir", self.stage_dir is not None),
            ("repeat", "data.fold", self.fold is not None),
        ):
            value = getattr(self, name)
            if value != getattr(DataConfig, name) and not is_there:
                raise ValueError(f"data.{name}={value} is for {other}; here it would do nothing")
