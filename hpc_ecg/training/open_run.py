"""Open a run folder: its configuration, with overrides. Needs no torch."""

from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from hpc_ecg.config.dotted_keys import flatten, nest
from hpc_ecg.config.load import SettingsSource, merge_sources, parse_override, read_yaml, to_yaml
from hpc_ecg.config.paths import resolve_paths
from hpc_ecg.hashing import read_record
from hpc_ecg.log import logger
from hpc_ecg.training.environment import base_folders
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.settings import RANDOM

UNVERIFIED = "%s: not verified, since version 0.1 wrote no digests of its files"
OTHER_COHORT: tuple[str, ...] = ("fold=null", "left_out_site=null", "site_column=null", "repeat=0")
OTHER_COHORT += ("held_out=null", "all_validate=false")
OTHER_COHORT += ("label_table=null", "label_fraction=1", "label_seed=null")
"""Settings of `data` that are reset for another cohort, unless they are given again."""


def with_start(config: FinetuneConfig, beside: bool = False) -> FinetuneConfig:
    """The configuration with what it leaves to the run folder (with `beside`, to those beside it):
    init.checkpoint=random if that is a run of version 0.1 from random weights, which stated no
    init.checkpoint; data.label_seed=seed unless it is a run of a version without that setting."""
    folder = RunFolder(config.run_dir)
    folders = [*map(RunFolder, folder.path.parent.glob("*"))] if beside else [folder]
    data = config.data
    if data.label_fraction < 1 and data.label_seed is None:
        known = [f.read_settings() for f in folders if f.config.exists()]
        if all("data.label_seed" in settings for settings in known):
            config = replace(config, data=replace(data, label_seed=config.seed))
        elif not beside:
            logger.info(f"{folder.path} keeps its training patients, the same for all seeds")
    is_random = config.init.checkpoint is None and any(
        f.config.exists() and f.read_settings().get("init.checkpoint") is None for f in folders
    )
    return replace(config, init=replace(config.init, checkpoint=RANDOM)) if is_random else config


def load_run(run_dir: str, overrides: list[str]) -> FinetuneConfig:
    """The configuration of a run folder, with `key=value` overrides.

    The run's relative paths start in the folder where the run was started, those of `overrides` in
    the working directory. ValueError if `run_dir` is not a run folder or an override is wrong.
    """
    folder = RunFolder(run_dir)
    if not folder.config.exists():
        raise ValueError(f"{run_dir} is not a run folder (no config.yaml)")
    stored = OmegaConf.to_container(read_yaml(str(folder.config)).values, resolve=False)
    values = nest(_resolve_paths(folder, flatten(stored)))
    sources = [SettingsSource(OmegaConf.create(values), str(folder.config))]
    for override in [f"run_dir={run_dir}", *overrides]:
        sources.append(parse_override(override, FinetuneConfig))
    return with_start(merge_sources(FinetuneConfig, sources))


def read_resolved_settings(folder: RunFolder) -> dict[str, Any]:
    """The settings of a run's config.yaml by dotted key, with paths that can be opened here."""
    return _resolve_paths(folder, folder.read_settings())


def _resolve_paths(folder: RunFolder, settings: dict[str, Any]) -> dict[str, Any]:
    environment = read_record(folder.environment) if folder.environment.exists() else {}
    return resolve_paths(settings, FinetuneConfig, base_folders(folder.path, environment))


def load_run_for(run_dir: str, shards: str, overrides: list[str]) -> FinetuneConfig:
    """The configuration for another cohort's shards; ValueError if more than the data differs."""
    defaults = [f"data.{setting}" for setting in OTHER_COHORT]
    config = load_run(run_dir, [*defaults, f"data.shards={shards}", *overrides])
    data = replace(load_run(run_dir, []).data, task=config.data.task)
    finished_run(run_dir).check_same_config(to_yaml(replace(config, data=data)))
    return config


def finished_run(run_dir: str) -> RunFolder:
    """The folder of a finished run; ValueError if it is none, or has changed since."""
    folder = RunFolder(run_dir)
    if not folder.is_finished():
        is_run = folder.config.exists()
        state = "is not finished: start it again" if is_run else "is not a run folder"
        raise ValueError(f"{folder.path} {state} (no finished.json)")
    folder.check_unchanged()
    return folder
