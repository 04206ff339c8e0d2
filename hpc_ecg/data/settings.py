"""The sections `data` and `augment` of a run's settings."""

import math
from dataclasses import dataclass, fields

from omegaconf import MISSING

from hpc_ecg.config.schema import check_settings, default_of, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    shards: str = setting(MISSING, may_change=True, is_path=True)
    """Folder of shards, as `hpc-ecg data shard` writes it, or its URL: s3, gs, az or abfs."""
    task: str = setting("binary", choices=("binary", "multilabel", "regression"))
    """Kind of labels: binary (one label), multilabel or regression."""
    labels: list[str] = setting([])
    """Labels to train on, in the order of the head's outputs; [] = all labels of the shards."""
    label_table: str | None = setting(None, may_change=True, is_path=True)
    """Table (CSV, TSV, parquet) with a column `record` and one column per label, which replaces the
    labels of the shards. A record that is not listed has no label."""
    ids_as_written: bool = setting(False, may_change=True)
    """Two spellings of a record in label_table and shards (012 and 12) are two records."""
    fold: int | None = setting(None, at_least=0)
    """For shards with folds: the fold to test on; the next one is for validation, the others for
    training. null = the splits of the shards."""
    repeat: int = setting(0, at_least=0)
    """Which repetition of the division into folds to use."""
    left_out_site: str | None = None
    """Test on all ECGs of this site, and train and validate on the other sites' train and valid
    splits, without patients who were also there. null = the splits of the shards."""
    site_column: str | None = None
    """Column of the shards' index that holds the site (`data shard --keep`); null = site."""
    held_out: float | None = setting(None, above=0, below=1)
    """Share of patients to test on, drawn by a hash of the patient; of the others, four in five
    train and one validates. null = the splits of the shards."""
    all_validate: bool = False
    """All records but those of test are for validation: for a run that trains nothing, as update
    makes it."""
    label_fraction: float = setting(1.0, above=0, at_most=1)
    """Share of the labelled training patients to train on, to measure the value of more labels. A
    larger share includes the patients of a smaller one."""
    label_seed: int | None = setting(None, at_least=0)
    """Seed of the draw of label_fraction's patients; null = the run's seed (but in the folder of a
    run or sweep of an older version its draw, one for all seeds)."""
    batch_size: int = setting(128, at_least=1)
    """Records per optimizer step, over all processes together."""
    order: str = setting("shuffled", choices=("shuffled", "fixed_batches"))
    """shuffled = a new order in each epoch; fixed_batches = as in the reference: batches are cut
    once and only their order changes (seed=1 gives its batches)."""
    sampling: str = setting("all", choices=("all", "balanced", "one_per_patient"))
    """Records of an epoch: all (each once), balanced (half of them positive; binary only) or
    one_per_patient (one record of each patient, drawn again in each epoch)."""
    read: str = setting("map", choices=("map", "stream"))
    """map = random access to each record; stream = shards from front to back, for storage where
    random reads are expensive (it has its own order, set by stream_lanes and stream_buffer)."""
    stream_lanes: int = setting(8, at_least=1)
    """Shards read side by side, over all processes; a multiple of the number of processes."""
    stream_buffer: int = setting(256, at_least=1)
    """Records of a shard that are shuffled together; a process holds twice as many for each of its
    lanes (60 kB a record)."""
    stage_dir: str | None = setting(None, may_change=True)
    """Folder on the node's own disk to copy shards to ahead of use ($SLURM_TMPDIR, …)."""
    stage_quota_gb: float | None = setting(None, above=0, may_change=True)
    """Space to use in stage_dir; null = 90 % of the free space. Shards that do not fit are read
    from data.shards."""
    allow_pipe: bool = setting(False, may_change=True, is_permission=True)
    """Allow data.shards to be `pipe:COMMAND`, a shell command that writes the file {name} to
    standard output. It runs with your rights: allow only commands that you wrote. It counts on the
    command line only; no file can allow it."""

    def __post_init__(self) -> None:
        check_settings(self, "data")
        if self.sampling == "balanced" and self.task != "binary":
            raise ValueError(f"data.sampling=balanced is for data.task=binary, not {self.task}")
        if self.order == "fixed_batches" and (self.sampling != "all" or self.read != "map"):
            raise ValueError(
                "data.order=fixed_batches is an order of all records, read by position; it needs "
                "data.sampling=all and data.read=map"
            )
        if self.fold is not None and self.left_out_site is not None:
            raise ValueError("data.fold and data.left_out_site both choose the test; give one")
        needs = {
            "stream_lanes": ("data.read=stream", self.read == "stream"),
            "stream_buffer": ("data.read=stream", self.read == "stream"),
            "stage_quota_gb": ("data.stage_dir", self.stage_dir is not None),
            "repeat": ("data.fold", self.fold is not None),
            "site_column": ("data.left_out_site", self.left_out_site is not None),
            "held_out": (
                "data.fold=null and data.left_out_site=null",
                self.fold is None and self.left_out_site is None,
            ),
            "label_seed": ("data.label_fraction below 1", self.label_fraction < 1),
        }
        for item in fields(self):
            needed, is_given = needs.get(item.name, ("", True))
            value = getattr(self, item.name)
            if not is_given and value != default_of(item):
                raise ValueError(f"data.{item.name}={value} has no effect without {needed}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """0 turns an augmentation off. Each record draws its size between 0 and the maximum."""

    lead_mask: float = setting(0.0, at_least=0, below=1)
    """Probability that a lead is set to zero, for each lead; never all leads of a record."""
    noise_mv: float = setting(0.0, at_least=0, below=math.inf)
    """Largest RMS of Gaussian noise."""
    wander_mv: float = setting(0.0, at_least=0, below=math.inf)
    """Largest amplitude of baseline wander: in each lead a sine of 0.05 to 0.5 Hz."""
    powerline_mv: float = setting(0.0, at_least=0, below=math.inf)
    """Largest amplitude of powerline hum."""
    powerline_hz: float = setting(50.0, at_least=0, below=math.inf)
    """Frequency of the powerline."""
    shift_s: float = setting(0.0, at_least=0, below=math.inf)
    """Largest shift in time, in either direction; the gap is filled with zeros."""
    scale: float = setting(0.0, at_least=0, below=1)
    """Amplitude: one factor between 1 - scale and 1 + scale for all leads."""

    def __post_init__(self) -> None:
        check_settings(self, "augment")

    @property
    def is_on(self) -> bool:
        sizes = (self.noise_mv, self.wander_mv, self.powerline_mv, self.shift_s, self.scale)
        return bool(self.lead_mask or any(sizes))
