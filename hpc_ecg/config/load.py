"""Load settings: YAML files and `section.key=value` overrides in, one frozen dataclass out.

Sources are merged one by one, later ones overriding earlier ones, so that an error can name its
source. The schema is the dataclass itself; its field types decide how an override is read: text is
taken verbatim (a YAML parser would turn `010` into 8 and `12:00:00` into 43200).
"""

import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from hpc_ecg.config.built_in import find_config
from hpc_ecg.config.describe import describe_kind, describe_settings, show_value
from hpc_ecg.config.dotted_keys import flatten, nest
from hpc_ecg.config.schema import is_misshapen, rules_by_key, section_of, without_none
from hpc_ecg.config.suggestions import RENAMED, did_you_mean
from hpc_ecg.log import first_line
from hpc_ecg.safe_reading import quote_times, read_yaml_text

Schema = TypeVar("Schema")
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class SettingsSource:
    """Nested values, and the name of their source for messages."""

    values: DictConfig
    name: str

    def __post_init__(self) -> None:
        """ValueError for `${name:…}`, which would call a resolver, as `${oc.env:HOME}` does."""
        values = str(OmegaConf.to_container(self.values, resolve=False))
        for reference in re.findall(r"\$\{[^}]*\}?", values):
            if not re.fullmatch(r"\$\{\s*[\w.\[\]-]+\s*\}", reference):
                raise ValueError(
                    f"{reference} ({self.name}): ${{…}} may only name another setting, as in "
                    "${files.base_ssl}; on a command line, the shell fills in variables: $NAME"
                )


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


def merge_sources(
    schema: type[Schema], sources: Sequence[SettingsSource], under: str = ""
) -> Schema:
    """The schema's defaults, overridden by the sources in order; a permission counts only from the
    command line. `under`: what a user writes before these keys. ValueError as in `load_config`."""
    merged = OmegaConf.structured(schema)
    for source in sources:
        merged = _merge(merged, source, schema)
    return typing.cast(Schema, _to_dataclass(merged, schema, under))


def read_yaml(file: str) -> SettingsSource:
    """Read a YAML file of nested keys, or a built-in one by its name in `configs/`; ValueError if
    there is none, or if it holds something else."""
    path = Path(file)
    if not path.is_file():
        path = find_config(file) or path
    if not path.is_file():
        raise ValueError(f"{file}: no such configuration file; settings are given as key=value")
    try:
        loaded = OmegaConf.load(io.StringIO(quote_times(read_yaml_text(path))))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{file}, line {line}: not YAML: {error.problem}") from None
    except Exception as error:  # OmegaConf and the file system raise many kinds
        raise ValueError(f"{file}: cannot be read: {first_line(error)}") from None
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
    elif kind in (str, int | str):
        parsed = value
    elif typing.get_origin(kind) is list and typing.get_args(kind) == (str,):
        parsed = _split_list(key, value)
    else:
        try:
            return SettingsSource(OmegaConf.from_dotlist([override]), COMMAND_LINE)
        except Exception:  # of YAML's parser or OmegaConf
            allowed = _must_be(key, schema)
            raise ValueError(f"{allowed}, got {value!r} ({COMMAND_LINE})") from None
    return SettingsSource(OmegaConf.create(nest({key: parsed})), COMMAND_LINE)


def _to_dataclass(merged: DictConfig, schema: type, under: str) -> Any:
    """Resolve `${…}` and make the dataclass; ValueError names a value that is still missing."""
    try:
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(f"{(key := f'{under}{error.full_key}')} must be given: {key}=…") from None
    except InterpolationKeyError as error:
        name = re.findall(r"'([^']*)'", str(error))[0]
        raise ValueError(f"{error.full_key} uses ${{{name}}}: give {name}=…") from None
    except ValidationError as error:
        key = str(error.full_key)
        stated = flatten(OmegaConf.to_container(merged, resolve=False)).get(key)
        allowed = _must_be(key, schema)
        raise ValueError(f"{allowed}, but {stated} is something else") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'settings'}: {first_line(error)}") from None


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML; loading it gives an equal configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _split_list(key: str, value: str) -> list[str]:
    if not (value.startswith("[") and value.endswith("]")):
        allowed = describe_kind(list[str])
        raise ValueError(f"{key} must be {allowed}, got {value!r} ({COMMAND_LINE})")
    items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
    return [item for item in items if item]


def _merge(base: DictConfig, source: SettingsSource, schema: type) -> DictConfig:
    try:
        values: Any = OmegaConf.to_container(source.values, resolve=False)
        _check_keys_and_text(values, schema, "", source.name)
        for key, rule in rules_by_key(schema):
            if rule.is_permission and source.name != COMMAND_LINE:
                section, _, name = key.rpartition(".")
                values.get(section, {}).pop(name, None)
        return typing.cast(DictConfig, OmegaConf.merge(base, OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{_wrong_value(base, values, schema, error)} ({source.name})") from None


def _wrong_value(base: DictConfig, values: Any, schema: type, error: Exception) -> str:
    """Which of the values does not fit, what it must be, and what it is."""
    for key, value in flatten(values).items():
        try:
            OmegaConf.merge(base, OmegaConf.create(nest({key: value})))
        except OmegaConfBaseException:
            return f"{_must_be(key, schema)}, got {show_value(value)}"
    return f"{', '.join(map(str, values))}: {first_line(error)}"


def _must_be(key: str, schema: type) -> str:
    """What a setting must be; for a name below a plain value, what that value must be."""
    try:
        kind, is_optional = without_none(_type_of(schema, key, COMMAND_LINE))
    except ValueError:
        return _must_be(key.rpartition(".")[0], schema)
    return f"{key} must be {describe_kind(kind)}{' or null' if is_optional else ''}"


def _check_keys_and_text(values: Any, schema: type, prefix: str, source: str) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        declared = _type_of(schema, key, source, root_prefix=prefix)
        kind, is_optional = without_none(declared)
        section = section_of(kind)
        entry = section_of((typing.get_args(kind) or (None,))[-1])
        if is_misshapen(value, kind) or (kind is int and isinstance(value, bool)):
            must = f"{key} must be {describe_kind(kind)}"
            raise ValueError(f"{must}, got {show_value(value)} ({source})")
        if section and not (value is None and is_optional):
            _check_section(value, section, key, source)
        elif entry:
            for part, inner in value.items() if isinstance(value, dict) else ():
                _check_section(inner, entry, f"{key}.{part}", source)
        else:
            _check_text(value, kind, is_optional, key, source)


def _check_section(value: Any, section: type, key: str, source: str) -> None:
    if not isinstance(value, dict):
        text = f"must be a section ({key}.NAME=…), got {show_value(value)}"
        raise ValueError(f"{key} {text} ({source})")
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
    hint = did_you_mean(key, [*known, *sections]) or "; `hpc-ecg config` lists all settings"
    return f"unknown setting {key} ({source}){hint}"
