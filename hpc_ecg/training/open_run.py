"""Open the folder of a run: its configuration, with other settings over it. Needs no torch."""

from dataclasses import replace

from omegaconf import OmegaConf

from hpc_ecg.atomic_io import read_json
from hpc_ecg.config.dotted_keys import flatten, nest
from hpc_ecg.config.load import SettingsSource, merge_sources, parse_override, read_yaml, to_yaml
from hpc_ecg.config.paths import resolve_paths
from hpc_ecg.training.environment import base_folders
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

OTHER_COHORT = ("fold=null", "repeat=0", "label_table=null", "label_fraction=1")
"""Settings of `data` that do not apply to another cohort, unless they are given again."""


def load_run(run_dir: str, overrides: list[str]) -> FinetuneConfig:
    """The configuration of a run folder, with `key=value` settings over it.

    Relative paths of the run start where the run was started; those of `overrides` start here.
    """
    folder = RunFolder(run_dir)
    if not folder.config.exists():
        raise ValueError(f"{run_dir} is no run folder (no config.yaml)")
    environment = read_json(folder.environment) if folder.environment.exists() else {}
    stored = OmegaConf.to_container(read_yaml(str(folder.config)).values, resolve=False)
    bases = base_folders(folder.path, environment)
    values = nest(resolve_paths(flatten(stored), FinetuneConfig, bases))
    sources = [SettingsSource(OmegaConf.create(values), str(folder.config))]
    words = [f"run_dir={run_dir}", *overrides]
    sources += [parse_override(word, FinetuneConfig) for word in words]
    return merge_sources(FinetuneConfig, sources)


def load_run_for(run_dir: str, shards: str, overrides: list[str]) -> FinetuneConfig:
    """The same for another cohort's shards; ValueError if more than the data differs."""
    defaults = [f"data.{setting}" for setting in OTHER_COHORT]
    config = load_run(run_dir, [*defaults, f"data.shards={shards}", *overrides])
    data = replace(load_run(run_dir, []).data, task=config.data.task)
    finished_run(run_dir).check_same_config(to_yaml(replace(config, data=data)))
    return config


def finished_run(run_dir: str) -> RunFolder:
    """ValueError if the folder is not that of a finished run."""
    folder = RunFolder(run_dir)
    if not folder.is_finished():
        state = "is not finished: start it again" if folder.config.exists() else "is no run folder"
        raise ValueError(f"{folder.path} {state} (no finished.json)")
    return folder
