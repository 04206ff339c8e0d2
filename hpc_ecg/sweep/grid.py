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

from hpc_ecg.config.dotted_keys import nest
from hpc_ecg.config.load import SettingsSource, merge_sources, parse_override, read_yaml
from hpc_ecg.sweep.arms import SET_BY_SWEEP, Arm, arms_of
from hpc_ecg.sweep.settings import SweepConfig
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
        return merge_sources(FinetuneConfig, sources)

    def with_cells(self, tuned: Mapping[str, Mapping[str, Any]]) -> "Sweep":
        """Build all cells. `tuned`: what tuning chose for each strategy, by dotted key."""
        config = self.config
        cells = [
            Cell(
                arm=arm,
                seed=seed,
                run=self.run_of(
                    arm.base,
                    {**tuned.get(arm.base, {}), **arm.varied},
                    seed,
                    f"{config.sweep_dir}/{arm.name}/seed-{seed}",
                ),
            )
            for arm in arms_of(config.strategies, config.grid)
            for seed in config.seeds
        ]
        return replace(self, cells=cells)


def load_sweep(files: Sequence[str], overrides: Sequence[str]) -> Sweep:
    """Read a sweep's YAML files and its `key=value` overrides, and build every cell's settings.

    Raises ValueError in one line, as for a run's settings.
    """
    of_sweep, shared = [], []
    for file in files:
        source = read_yaml(file)
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
    folder = Path(config.strategy_dir or Path(files[0] if files else ".").parent / "strategies")
    config = replace(config, strategy_dir=str(folder))
    strategies = {name: _read_strategy(folder, name) for name in config.strategies}
    return Sweep(config=config, shared=shared, overrides=strategies, cells=[]).with_cells({})


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
    """Remove the `run` section of a sweep's file and return it."""
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
