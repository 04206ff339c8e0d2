"""A sweep's cells: arms x seeds, each a run of its own.

A strategy is a YAML file of overrides; `a+b` is strategy a with the overrides of with/b.yaml added.
An arm is a strategy with one combination of the grid's values. A cell's settings are merged in this
order, later over earlier: what all runs share (`run` in the sweep's file, `run.key=value` on the
command line), the strategy, what tuning chose, the grid's values, seed and folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hpc_ecg.config.built_in import STRATEGIES
from hpc_ecg.config.dotted_keys import flatten, nest
from hpc_ecg.config.load import SettingsSource, merge_sources, parse_override, read_yaml
from hpc_ecg.config.paths import resolve_paths
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.sweep.arms import LEFT_OUT_SITE, SET_BY_SWEEP, Arm, arms_of
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.sweep.left_out_sites import sites_of
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.training.environment import base_folders
from hpc_ecg.training.open_run import with_start
from hpc_ecg.training.settings import FinetuneConfig

RUN = "run"


@dataclass(frozen=True, kw_only=True)
class Cell:
    arm: Arm
    seed: int
    run: FinetuneConfig

    @property
    def name(self) -> str:
        return f"{self.arm.name}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    config: SweepConfig
    shared: list[SettingsSource]
    """Settings that all runs share."""
    overrides: dict[str, list[SettingsSource]]
    """Settings that each strategy adds."""
    cells: list[Cell]

    def shared_settings(self) -> dict[str, Any]:
        """Settings that all runs share, as nested keys."""
        merged = OmegaConf.merge({}, *[source.values for source in self.shared])
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))

    def run_of(
        self, strategy: str, values: Mapping[str, Any], seed: int, run_dir: str
    ) -> FinetuneConfig:
        """Settings of one run. `values`, by dotted key, count more than the strategy's."""
        varied = SettingsSource(OmegaConf.create(nest(values)), "the sweep's grid and tune")
        fixed = SettingsSource(OmegaConf.create({"seed": seed, "run_dir": run_dir}), "sweep")
        sources = [*self.shared, *self.overrides[strategy], varied, fixed]
        return with_start(merge_sources(FinetuneConfig, sources, f"{RUN}."), beside=True)

    def with_cells(self, tuned: Mapping[str, Mapping[str, Any]]) -> "Sweep":
        """Build all cells. `tuned`: what tuning chose for each strategy, by dotted key."""
        cells = []
        for arm in arms_of(self.config.strategies, self.config.grid):
            values = {**tuned.get(arm.base, {}), **arm.varied}
            for seed in self.config.seeds:
                folder = f"{self.config.sweep_dir}/{arm.name}/seed-{seed}"
                run = self.run_of(arm.base, values, seed, folder)
                cells.append(Cell(arm=arm, seed=seed, run=run))
        return replace(self, cells=[cell for cell in cells if self._is_needed(cell)])

    def _is_needed(self, cell: Cell) -> bool:
        """Not if the first seed's run stands for all, unless an older version has started it."""
        stands = cell.run.is_fixed and cell.seed != self.config.seeds[0]
        return not stands or Path(cell.run.run_dir).exists()


def load_sweep(files: Sequence[str], overrides: Sequence[str], of_folder: bool = False) -> Sweep:
    """Read a sweep's YAML files and its `key=value` overrides, and build every cell's settings.

    `of_folder`: the user named a sweep's folder and not these files, which then grant no right.
    Raises ValueError in one line, as for a run's settings.
    """
    of_sweep, shared = [], []
    for file in files:
        source = _read_sweep_file(file)
        if of_folder:
            _drop_commands(source, overrides)
        shared.append(SettingsSource(_take_run_section(source), f"{file}, below {RUN}"))
        _refuse_settings_of_runs(source.values, file)
        of_sweep.append(source)
    for override in overrides:
        if override.startswith(f"{RUN}."):
            shared.append(parse_override(override.removeprefix(f"{RUN}."), FinetuneConfig))
        else:
            _refuse_settings_of_runs(override.partition("=")[0].split(".")[:1], "command line")
            of_sweep.append(parse_override(override, SweepConfig))
    for source in shared:
        for key in SET_BY_SWEEP:
            if key in source.values:
                raise ValueError(f"{RUN}.{key} is set by the sweep for each run ({source.name})")
    config = merge_sources(SweepConfig, of_sweep)
    folders = _strategy_folders(config, Path(files[0]).parent if files else Path())
    if folders[0] != STRATEGIES:
        config = replace(config, strategy_dir=str(folders[0]))
    strategies = {name: _read_strategy(folders, name) for name in config.strategies}
    sweep = Sweep(config=config, shared=shared, overrides=strategies, cells=[])
    return with_each_site(sweep).with_cells({})


def with_each_site(sweep: Sweep) -> Sweep:
    """With `sites`, the sweep whose grid leaves out each site of the cohort, unless it names them.

    ValueError without such a column, or with fewer than two sites.
    """
    config = sweep.config
    if config.sites == "together" or LEFT_OUT_SITE in flatten(dict(config.grid)):
        return sweep
    any_site = {LEFT_OUT_SITE: "any"}
    run = sweep.run_of(config.strategies[0], any_site, config.seeds[0], config.sweep_dir)
    return replace(sweep, config=replace(config, grid=nest({LEFT_OUT_SITE: sites_of(run.data)})))


def _read_sweep_file(file: str) -> SettingsSource:
    """A sweep's YAML file; for the sweep.yaml of a sweep's folder, with paths made absolute if it
    is opened from another working directory than the sweep was started from."""
    source, folder = read_yaml(file), Path(file).parent
    bases = base_folders(folder, read_optional(folder / "environment.json"))
    values = flatten(OmegaConf.to_container(source.values, resolve=False))
    runs = {key: value for key, value in values.items() if key.startswith(f"{RUN}.")}
    of_runs = {key.removeprefix(f"{RUN}."): value for key, value in runs.items()}
    resolved = resolve_paths(of_runs, FinetuneConfig, bases)
    values |= resolve_paths({k: v for k, v in values.items() if k not in runs}, SweepConfig, bases)
    values |= {f"{RUN}.{key}": value for key, value in resolved.items()}
    return SettingsSource(OmegaConf.create(nest(values)), source.name)


def _drop_commands(source: SettingsSource, overrides: Sequence[str]) -> None:
    """Remove what the shell and sbatch would be given. ValueError if it is not given again."""
    section = source.values.get("slurm") or {}
    for key in ("setup", "options"):
        given = any(override.startswith(f"slurm.{key}") for override in overrides)
        if section.pop(key, None) and not given:
            raise ValueError(
                f"{source.name} has slurm.{key}, run with your rights; a folder cannot allow "
                f"that; give slurm.{key}=… again, or start the sweep as at first"
            )


def _strategy_folders(config: SweepConfig, beside: Path) -> list[Path]:
    """Where to look for strategies: the user's folder, if there is one, then the built-in one."""
    if config.strategy_dir is not None:
        folder = Path(config.strategy_dir)
        if not folder.is_dir():
            raise ValueError(f"strategy_dir={folder}: no such folder")
    elif not (folder := beside / "strategies").is_dir():
        return [STRATEGIES]
    return [folder] if folder.samefile(STRATEGIES) else [folder, STRATEGIES]


def _refuse_settings_of_runs(keys: Iterable[Any], place: str) -> None:
    """Raise ValueError for a run's setting where only the sweep's may be."""
    of_sweep = {field.name for field in fields(SweepConfig)}
    of_runs = {field.name for field in fields(FinetuneConfig)} - of_sweep
    for key in keys:
        if key in of_runs:
            raise ValueError(
                f"{key} is a setting of the runs ({place}); in a sweep it belongs below {RUN}: "
                f"{RUN}.{key}"
            )


def _take_run_section(source: SettingsSource) -> DictConfig:
    section = source.values.pop(RUN, None)
    if section is not None and not isinstance(section, DictConfig):
        raise ValueError(f"{RUN} must be a section, got {section!r} ({source.name})")
    return OmegaConf.create({}) if section is None else section


def _read_strategy(folders: Sequence[Path], name: str) -> list[SettingsSource]:
    first, *options = name.split("+")
    if not all((first, *options)):
        raise ValueError(f"strategies: {name!r} has an empty part; write strategy+option")
    option_folders = [folder / "with" for folder in folders]
    return [_read_part(folders, first), *(_read_part(option_folders, part) for part in options)]


def _read_part(folders: Sequence[Path], name: str) -> SettingsSource:
    """The file of a strategy or option in the first folder that has it."""
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return read_yaml(str(folder / f"{name}.yaml"))
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    searched = " or ".join(str(folder) for folder in folders)
    found = f"there are: {', '.join(known)}{did_you_mean(name, known)}"
    raise ValueError(f"strategies: no {name}.yaml in {searched}; {found}")
