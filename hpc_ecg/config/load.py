"""Load settings: YAML files and `section.key=value` overrides in, one frozen dataclass out.

Sources are merged one by one, later ones overriding earlier ones, so that an error can name its
source. The schema is the dataclass itself; its field types decide how an override is read: text is
taken verbatim (a YAML parser would turn `010` into 8 and `12:00:00` into 43200).
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from hpc_ecg.config.built_in import find_config
from hpc_ecg.config.describe import describe_settings
from hpc_ecg.config.dotted_keys import nest
from hpc_ecg.config.schema import section_of, without_none

Schema = TypeVar("Schema")
COMMAND_LINE = "command line"

# Settings of fairseq-signals that users type out of habit -> ours.
RENAMED = {
    "common.fp16": "engine.precision=fp16",
    "common.seed": "seed=…",
    "criterion._name": "loss.name=bce, as (asymmetric), bf (binary focal), mlsml, mse or mse2",
    "checkpoint.save_dir": "run_dir=…",
    "checkpoint.patience": "train.patience=…",
    "checkpoint.finetune_from_model": "init.checkpoint=… init.head=keep",
    "checkpoint.best_checkpoint_metric": "train.best_metric=…",
    "dataset.batch_size": "data.batch_size=… (records per step over all processes)",
    "distributed_training.distributed_world_size": "the number of Slurm tasks (sbatch -N, -n)",
    "model.feature_grad_mult": "train.freeze=stem (0.0) or train.freeze=none (1.0)",
    "lr_scheduler.warmup_updates": "optim.warmup_fraction=… (a share of all steps)",
    "model.freeze_finetune_updates": "train.stages (a first stage with freeze: backbone)",
    "model.linear_evaluation": "train.freeze=backbone",
    "model.model_path": "init.checkpoint=…",
    "model.no_pretrained_weights": "init.checkpoint=random",
    "model.num_labels": "data.labels=[…] (the head has one output per label)",
    "optimization.clip_norm": "optim.clip_norm=…",
    "optimizer.adam_betas": "optim.betas=[…]",
    "optimizer.adam_eps": "optim.eps=…",
    "optimizer.weight_decay": "optim.weight_decay=…",
    "optimization.lr": "optim.lr=…",
    "optimization.max_epoch": "train.max_epochs=…",
    "optimization.max_update": "train.max_steps=…",
    "task.data": "data.shards=…",
}


@dataclasses.dataclass(frozen=True)
class SettingsSource:
    """Nested values, and the name of their source for messages."""

    values: DictConfig
    name: str


def load_config(schema: type[Schema], files: Sequence[str], overrides: Sequence[str]) -> Schema:
    """Merge YAML files, then `key=value` overrides, into the schema's defaults.

    ValueError in one line (dotted key, what was seen, source) for an unknown key, a wrong type, a
    missing value or a file that cannot be read.
    """
    sources = [read_yaml(file) for file in files]
    sources += [parse_override(override, schema) for override in overrides]
    return merge_sources(schema, sources)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The YAML files and the `key=value` overrides of a command line; ValueError for the rest."""
    for argument in arguments:
        if "=" not in argument and not argument.endswith((".yaml", ".yml")):
            raise ValueError(f"{argument!r} is neither a .yaml file nor a setting key=value")
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]


def merge_sources(schema: type[Schema], sources: Sequence[SettingsSource]) -> Schema:
    """The schema's defaults, overridden by the sources in order; ValueError as in `load_config`."""
    merged = OmegaConf.structured(schema)
    for source in sources:
        merged = _merge(merged, source, schema)
    return typing.cast(Schema, _to_dataclass(merged))


def read_yaml(file: str) -> SettingsSource:
    """Read a YAML file of nested keys; ValueError if it is missing or holds something else.

    If there is no such file, a built-in one is found by its name in `configs/`.
    """
    path = Path(file)
    if not path.is_file():
        path = find_config(file) or path
    if not path.is_file():
        raise ValueError(f"{file}: no such configuration file; settings are given as key=value")
    try:
        loaded = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{file}, line {line}: not YAML: {error.problem}") from None
    except Exception as error:  # OmegaConf and the file system raise many kinds
        raise ValueError(f"{file}: cannot be read: {_first_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{file}: expected `key: value` lines, got something else")
    return SettingsSource(loaded, file)


def parse_override(override: str, schema: type) -> SettingsSource:
    """Read `section.key=value` by the key's type in the schema; ValueError if that fails."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is neither a .yaml file nor a setting key=value")
    kind, is_optional = without_none(_type_of(schema, key, COMMAND_LINE))
    parsed: Any
    if is_optional and value in ("null", "None"):
        parsed = None
    elif kind is str:
        parsed = value
    elif typing.get_origin(kind) is list and typing.get_args(kind) == (str,):
        parsed = _split_list(key, value)
    else:
        try:
            return SettingsSource(OmegaConf.from_dotlist([override]), COMMAND_LINE)
        except Exception as error:
            raise ValueError(f"{key}: cannot read {value!r}: {_first_line(error)}") from None
    return SettingsSource(OmegaConf.create(nest({key: parsed})), COMMAND_LINE)


def _to_dataclass(merged: DictConfig) -> Any:
    """Resolve `${…}` and make the dataclass; ValueError names a value that is still missing."""
    try:
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} must be given: {error.full_key}=…") from None
    except InterpolationKeyError as error:
        name = re.findall(r"'([^']*)'", str(error))[0]
        raise ValueError(f"{error.full_key} uses ${{{name}}}: give {name}=…") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'settings'}: {_first_line(error)}") from None


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML; loading it gives an equal configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _split_list(key: str, value: str) -> list[str]:
    if not (value.startswith("[") and value.endswith("]")):
        raise ValueError(f"{key}: expected a list like [a,b], got {value!r} ({COMMAND_LINE})")
    items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
    return [item for item in items if item]


def _merge(base: DictConfig, source: SettingsSource, schema: type) -> DictConfig:
    try:
        values = OmegaConf.to_container(source.values, resolve=False)
        _check_keys_and_text(values, schema, "", source.name)
        return typing.cast(DictConfig, OmegaConf.merge(base, source.values))
    except OmegaConfBaseException as error:
        where = error.full_key or ", ".join(str(key) for key in source.values)
        raise ValueError(f"{where}: {_first_line(error)} ({source.name})") from None


def _check_keys_and_text(values: Any, schema: type, prefix: str, source: str) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        declared = _type_of(schema, key, source, root_prefix=prefix)
        kind, is_optional = without_none(declared)
        section = section_of(kind)
        entry = section_of((typing.get_args(kind) or (None,))[-1])
        if section and not (value is None and is_optional):
            _check_section(value, section, key, source)
        elif entry:
            for part, inner in value.items() if isinstance(value, dict) else ():
                _check_section(inner, entry, f"{key}.{part}", source)
        elif kind is int and isinstance(value, bool):
            raise ValueError(f"{key} is a whole number, got {value!r} ({source})")
        else:
            _check_text(value, kind, is_optional, key, source)


def _check_section(value: Any, section: type, key: str, source: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is a section, got {value!r} ({source})")
    _check_keys_and_text(value, section, f"{key}.", source)


def _check_text(value: Any, kind: Any, is_optional: bool, key: str, source: str) -> None:
    """ValueError for a number where text is expected; its leading zeros are already lost."""
    if kind is str and not isinstance(value, str) and not (value is None and is_optional):
        raise ValueError(f"{key} is text: write it in quotes, got {value!r} ({source})")
    if typing.get_args(kind)[-1:] == (str,) and isinstance(value, list | dict):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_text(item, str, False, f"{key}.{name}", source)


def _type_of(schema: type, key: str, source: str, root_prefix: str = "") -> Any:
    """The annotated type of a dotted key; ValueError, with the nearest known key, if unknown."""
    kind: Any = schema
    for part in key.removeprefix(root_prefix).split("."):
        inner, _ = without_none(kind)
        if section_of(inner):
            hints = typing.get_type_hints(inner)
            if part not in hints:
                raise ValueError(_unknown_key(key, schema, root_prefix, source))
            kind = hints[part]
        elif typing.get_origin(inner) is dict:
            kind = typing.get_args(inner)[1]
        elif inner is not Any:
            raise ValueError(f"{key}: {part!r} is below a plain value ({source})")
    return kind


def _unknown_key(key: str, schema: type, root_prefix: str, source: str) -> str:
    if key in RENAMED:
        return f"{key} is not a setting of hpc-ecg; use {RENAMED[key]} ({source})"
    known = [root_prefix + name for name, *_ in describe_settings(schema)]
    sections = {name.rpartition(".")[0] for name in known}
    near = difflib.get_close_matches(key, [*known, *sections], n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "`hpc-ecg config` lists all settings"
    return f"unknown setting {key} ({source}); {hint}"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].strip()
