"""The settings of a sweep. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.sweep.arms import LEFT_OUT_SITE, RESERVED_FOLDERS, arms_of, axes_of


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of the sweep itself; those of its runs are below `run`."""

    sweep_dir: str = MISSING
    """Folder of the sweep; each run's folder is sweep_dir/<arm>/seed-<n>."""
    strategies: list[str] = field(default_factory=list)
    """Names of strategies: files <name>.yaml in strategy_dir; name+option also applies
    with/<option>.yaml."""
    strategy_dir: str | None = setting(None, is_path=True)
    """Folder of the strategies' files; null = strategies/ beside the sweep's file. Built-in
    strategies are found without it (`hpc-ecg strategies`)."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each arm runs once with each seed; runs of equal seeds are compared in pairs."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Settings of a run and their values: {data.label_fraction: [0.01, 0.1, 1]}; each strategy runs
    with each combination of values, as a separate arm."""
    sites: str = setting("together", choices=("together", "leave_one_out"))
    """leave_one_out = each strategy runs once for each site of the cohort, which is left out of
    training and validation and tested on; `report` then says what to expect at a new site. Sites
    are those of run.data.site_column, or those given as grid.data.left_out_site=[…]."""
    tune: dict[str, Any] = field(default_factory=dict)
    """Settings that each strategy tunes for itself, by the validation score of one run with each
    value: {optim.lr: [1e-5, 3e-5, 1e-4]}; every strategy gets the same number of runs."""
    tune_seed: int = 1000
    """Seed of the tuning runs; it must not be one of seeds."""
    tune_trials: int | None = setting(None, at_least=1)
    """Number of runs of each strategy with values that optuna proposes, instead of each value of
    tune; two numbers are then a range, on a log scale if they are positive and tenfold apart."""
    soup: bool = False
    """Also average the weights of each arm's seeds, and evaluate the average."""
    margin: float = setting(0.02, above=0, below=1)
    """Worse by less than this, in the deciding metric, is non-inferior; part of the protocol."""
    note: str | None = None
    """Text at the top of the report: what a reader must know about this sweep."""
    slurm: SlurmConfig | None = None
    """Run as an array of Slurm jobs; null = on this machine."""
    runs_at_once: int = setting(1, at_least=1)
    """Runs side by side on this machine, one GPU each where there are GPUs."""
    run_timeout_min: int = setting(60 * 24, at_least=1)
    """Minutes after which a run on this machine is stopped; the next start continues it."""

    def __post_init__(self) -> None:
        check_settings(self, "")
        if not self.strategies:
            raise ValueError("strategies is empty; name at least one: strategies=[ssl_new_head]")
        for name, values in (("strategies", self.strategies), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has an entry twice: {values}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be whole numbers from 0 on, got {self.seeds}")
        if self.tune and (self.tune_seed in self.seeds or self.tune_seed < 0):
            raise ValueError(f"tune_seed={self.tune_seed} must be a seed outside of {self.seeds}")
        if self.tune_trials and not self.tune:
            raise ValueError("tune_trials has no effect without tune={key: [low, high]}")
        for name in RESERVED_FOLDERS:
            if name in self.strategies:
                raise ValueError(f"strategies: {name} is a folder of the sweep; rename its file")
        both = axes_of("tune", self.tune).keys() & axes_of("grid", self.grid).keys()
        if both:
            raise ValueError(f"grid and tune both set {', '.join(sorted(both))}; keep one")
        arms_of(self.strategies, self.grid)
        self._check_sites()

    def _check_sites(self) -> None:
        axes = axes_of("grid", self.grid)
        is_by_site = self.sites != "together" or LEFT_OUT_SITE in axes
        if is_by_site and (self.tune or self.soup or axes.keys() - {LEFT_OUT_SITE}):
            text = "sites are left out without tune, soup or other grid"
            raise ValueError(f"{text}; write each setting to compare as a strategy's file")
