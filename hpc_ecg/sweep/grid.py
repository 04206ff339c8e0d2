"""A sweep's settings and its cells: arms x seeds, each a run of its own.

A strategy is a YAML file with a name: the overrides that make it, nothing more; `a+b` is strategy
a with what with/b.yaml adds. An arm is a strategy with one choice of the grid's values. A cell is
what all runs share (`run` in the sweep's file, `run.key=value` on the command line), with the
strategy's overrides, what tuning chose, the grid's values, the seed and the folder laid over it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from hpc_ecg.config.dotted_keys import nest
from hpc_ecg.config.load import SettingsSource, merge_sources, parse_override, read_yaml
from hpc_ecg.jobs.slurm import SlurmConfig
from hpc_ecg.sweep.arms import TAKEN, Arm, arms_of, axes_of
from hpc_ecg.training.settings import FinetuneConfig

RUN = "run"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of a sweep itself; those of its runs stand below `run`."""

    sweep_dir: str = MISSING
    """Folder of the sweep; each run's folder is sweep_dir/<arm>/seed-<n>."""
    strategies: list[str] = field(default_factory=list)
    """Names of strategies: files <name>.yaml in strategy_dir; name+option lays with/<option>.yaml
    over it."""
    strategy_dir: str | None = None
    """Where the strategies' files lie; null = strategies/ beside the sweep's own file."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each arm runs once with each of these; equal seeds are compared in pairs."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Settings of a run and their values: {data.label_fraction: [0.01, 0.1, 1]}; each strategy runs
    with each choice of values, as an arm of its own."""
    tune: dict[str, Any] = field(default_factory=dict)
    """Settings that each strategy chooses for itself, by the validation score of one run with each
    value: {optim.lr: [1e-5, 3e-5, 1e-4]}; all strategies get as many."""
    tune_seed: int = 1000
    """Seed of the tuning runs; none of seeds."""
    tune_trials: int | None = None
    """Instead of each value of tune, so many runs of each strategy, which optuna proposes; two
    numbers are then a range, on a log scale if they are positive and tenfold apart."""
    soup: bool = False
    """Also average the weights of each arm's seeds, and evaluate the mean."""
    note: str | None = None
    """Text at the top of the report: what a reader must know about this sweep."""
    slurm: SlurmConfig | None = None
    """Runs as an array of Slurm's jobs; null = on this machine."""
    runs_at_once: int = 1
    """Runs side by side on this machine, one GPU each where there are GPUs."""
    run_timeout_min: int = 60 * 24
    """Minutes after which a run on this machine is stopped; starting the sweep again goes on."""

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ValueError("strategies is empty; name at least one: strategies=[ssl_new_head]")
        for name, values in (("strategies", self.strategies), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has an entry twice: {values}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be whole numbers from 0 on, got {self.seeds}")
        for name in ("runs_at_once", "run_timeout_min", "tune_trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.tune and (self.tune_seed in self.seeds or self.tune_seed < 0):
            raise ValueError(f"tune_seed={self.tune_seed} must be a seed outside of {self.seeds}")
        if self.tune_trials and not self.tune:
            raise ValueError("tune_trials needs tune={key: [low, high]}; here it would do nothing")
        for name in TAKEN:
            if name in self.strategies:
                raise ValueError(f"strategies: {name} is a folder of the sweep; rename its file")
        both = axes_of("tune", self.tune).keys() & axes_of("grid", self.grid).keys()
        if both:
            raise ValueError(f"grid and tune both set {', '.join(sorted(both))}; keep one")
        arms_of(self.strategies, self.grid)


@dataclass(frozen=True, kw_only=True)
class Cell:
    arm: Arm
    seed: int
    run: FinetuneConfig

    @property
    def strategy(self) -> str:
        """The arm's name."""
        return self.arm.name

    @property
    def name(self) -> str:
        return f"{self.arm.name}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    config: SweepConfig
    shared: list[SettingsSource]
    """What all runs are told …"""
    overrides: dict[str, list[SettingsSource]]
    """… and what each strategy says."""
    cells: list[Cell]

    def shared_settings(self) -> dict[str, Any]:
        """What all runs share, as nested keys."""
        merged = OmegaConf.merge({}, *[source.values for source in self.shared])
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))

    def run_of(
        self, strategy: str, values: Mapping[str, Any], seed: int, run_dir: str
    ) -> FinetuneConfig:
        """One run's settings. `values`: by dotted key, over what the strategy says."""
        own = {"seed": seed, "run_dir": run_dir}
        laid = [(nest(values), "the sweep's grid and tune"), (own, "sweep")]
        over = [SettingsSource(OmegaConf.create(value), name) for value, name in laid]
        sources = [*self.shared, *self.overrides[strategy], *over]
        return merge_sources(FinetuneConfig, sources)

    def with_cells(self, chosen: Mapping[str, Mapping[str, Any]]) -> "Sweep":
        """`chosen`: what tuning set for each strategy, by dotted key."""
        config = self.config
        cells = [
            Cell(
                arm=arm,
                seed=seed,
                run=self.run_of(
                    arm.base,
                    {**chosen.get(arm.base, {}), **arm.varied},
                    seed,
                    f"{config.sweep_dir}/{arm.name}/seed-{seed}",
                ),
            )
            for arm in arms_of(config.strategies, config.grid)
            for seed in config.seeds
        ]
        return replace(self, cells=cells)


def load_sweep(files: Sequence[str], words: Sequence[str]) -> Sweep:
    """Read a sweep's files and words and build every cell's settings. ValueError in one line, as
    for a run's settings."""
    own, shared = [], []
    for file in files:
        source = read_yaml(file)
        shared.append(SettingsSource(_take_run(source), f"{file}, below {RUN}"))
        _check_whose(source.values, file)
        own.append(source)
    for word in words:
        if word.startswith(f"{RUN}."):
            shared.append(parse_override(word.removeprefix(f"{RUN}."), FinetuneConfig))
        else:
            _check_whose(word.partition("=")[0].split(".")[:1], "command line")
            own.append(parse_override(word, SweepConfig))
    for source in shared:
        for key in ("seed", "run_dir"):
            if key in source.values:
                raise ValueError(f"{RUN}.{key} is set by the sweep for each run ({source.name})")
    config = merge_sources(SweepConfig, own)
    folder = Path(config.strategy_dir or Path(files[0] if files else ".").parent / "strategies")
    config = replace(config, strategy_dir=str(folder))
    overrides = {strategy: _read_strategy(folder, strategy) for strategy in config.strategies}
    return Sweep(config=config, shared=shared, overrides=overrides, cells=[]).with_cells({})


def _check_whose(keys: Iterable[Any], where: str) -> None:
    """ValueError for a run's setting where the sweep's own stand."""
    own = {field.name for field in fields(SweepConfig)}
    runs = {field.name for field in fields(FinetuneConfig)} - own
    for key in keys:
        if key in runs:
            raise ValueError(
                f"{key} is a setting of the runs ({where}); in a sweep it stands below {RUN}: "
                f"{RUN}.{key}"
            )


def _take_run(source: SettingsSource) -> DictConfig:
    """Remove the `run` section of a sweep's file and give it back."""
    section = source.values.pop(RUN, None)
    if section is not None and not isinstance(section, DictConfig):
        raise ValueError(f"{RUN} is a section, got {section!r} ({source.name})")
    return OmegaConf.create({}) if section is None else section


def _read_strategy(folder: Path, name: str) -> list[SettingsSource]:
    if not folder.is_dir():
        raise ValueError(f"strategy_dir={folder}: no such folder")
    first, *options = name.split("+")
    if not all((first, *options)):
        raise ValueError(f"strategies: {name!r} has an empty part; write strategy+option")
    return [_read_part(folder, first)] + [_read_part(folder / "with", part) for part in options]


def _read_part(folder: Path, name: str) -> SettingsSource:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"strategies: no {name}.yaml in {folder}; there are: {known}")
    return read_yaml(str(path))
