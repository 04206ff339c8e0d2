"""A sweep's settings and its cells: strategies x seeds, each a run of its own.

A strategy is a YAML file with a name: the overrides that make it, nothing more; `a+b` is strategy
a with what with/b.yaml adds. A cell is what all
runs share (`run` in the sweep's file, `run.key=value` on the command line), with the strategy's
overrides, the seed and the folder laid over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from hpc_ecg.config import Source, merge_sources, parse_word, read_yaml
from hpc_ecg.training.settings import FinetuneConfig

RUN = "run"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of a sweep itself; those of its runs stand below `run`."""

    sweep_dir: str = MISSING
    """Folder of the sweep; each run's folder is sweep_dir/<strategy>/seed-<n>."""
    strategies: list[str] = field(default_factory=list)
    """Names of strategies: files <name>.yaml in strategy_dir; name+option lays with/<option>.yaml
    over it."""
    strategy_dir: str | None = None
    """Where the strategies' files lie; null = strategies/ beside the sweep's own file."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each strategy runs once with each of these; equal seeds are compared in pairs."""
    note: str | None = None
    """Text at the top of the report: what a reader must know about this sweep."""
    runs_at_once: int = 1
    """Runs side by side on this machine, one GPU each where there are GPUs."""
    run_timeout_min: int = 60 * 24
    """Minutes after which a run is stopped; starting the sweep again goes on with it."""

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ValueError("strategies is empty; name at least one: strategies=[ssl_new_head]")
        for name, values in (("strategies", self.strategies), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has an entry twice: {values}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be whole numbers from 0 on, got {self.seeds}")
        for name in ("runs_at_once", "run_timeout_min"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    strategy: str
    seed: int
    run: FinetuneConfig

    @property
    def name(self) -> str:
        return f"{self.strategy}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    config: SweepConfig
    shared: dict[str, Any]
    """What all runs share, as nested keys."""
    cells: list[Cell]


def load_sweep(files: Sequence[str], words: Sequence[str]) -> Sweep:
    """Read a sweep's files and words and build every cell's settings. ValueError in one line, as
    for a run's settings."""
    own, shared = [], []
    for file in files:
        source = read_yaml(file)
        shared.append(Source(_take_run(source), f"{file}, below {RUN}"))
        own.append(source)
    for word in words:
        if word.startswith(f"{RUN}."):
            shared.append(parse_word(word.removeprefix(f"{RUN}."), FinetuneConfig))
        else:
            own.append(parse_word(word, SweepConfig))
    for source in shared:
        for key in ("seed", "run_dir"):
            if key in source.values:
                raise ValueError(f"{RUN}.{key} is set by the sweep for each run ({source.name})")
    config = merge_sources(SweepConfig, own)
    folder = Path(config.strategy_dir or Path(files[0] if files else ".").parent / "strategies")
    config = replace(config, strategy_dir=str(folder))
    cells = [
        _build_cell(config, shared, _read_strategy(folder, strategy), strategy, seed)
        for strategy in config.strategies
        for seed in config.seeds
    ]
    merged = OmegaConf.merge({}, *[source.values for source in shared])
    plain = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))
    return Sweep(config=config, shared=plain, cells=cells)


def _take_run(source: Source) -> DictConfig:
    """Remove the `run` section of a sweep's file and give it back."""
    section = source.values.pop(RUN, None)
    if section is not None and not isinstance(section, DictConfig):
        raise ValueError(f"{RUN} is a section, got {section!r} ({source.name})")
    return OmegaConf.create({}) if section is None else section


def _read_strategy(folder: Path, name: str) -> list[Source]:
    if not folder.is_dir():
        raise ValueError(f"strategy_dir={folder}: no such folder")
    first, *options = name.split("+")
    if not all((first, *options)):
        raise ValueError(f"strategies: {name!r} has an empty part; write strategy+option")
    return [_read_part(folder, first)] + [_read_part(folder / "with", part) for part in options]


def _read_part(folder: Path, name: str) -> Source:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"strategies: no {name}.yaml in {folder}; there are: {known}")
    return read_yaml(str(path))


def _build_cell(
    config: SweepConfig, shared: list[Source], strategy: list[Source], name: str, seed: int
) -> Cell:
    run_dir = f"{config.sweep_dir}/{name}/seed-{seed}"
    cell = Source(OmegaConf.create({"seed": seed, "run_dir": run_dir}), "sweep")
    run = merge_sources(FinetuneConfig, [*shared, *strategy, cell])
    return Cell(strategy=name, seed=seed, run=run)
