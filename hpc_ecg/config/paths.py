"""Resolve relative paths in the settings of a run or sweep that is opened from another folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_ecg.config.schema import rules_by_key

NOT_A_FILE = ("", "auto", "random")


def resolve_paths(values: dict[str, Any], schema: type, bases: Sequence[Path]) -> dict[str, Any]:
    """Settings by dotted key, with relative paths joined to the folder where they start.

    `bases` are the folders where they may start: the first in which the path exists, or else the
    last, is used. In one of these folders, and without bases, paths stay as they are.
    """
    if not bases or Path.cwd() in bases:
        return values
    keys = {key for key, rule in rules_by_key(schema) if rule.is_path}
    return {  # also an entry of a dict of paths, such as files.base_ssl
        key: _resolve(value, bases) if {key, key.rpartition(".")[0]} & keys else value
        for key, value in values.items()
    }


def _resolve(value: Any, bases: Sequence[Path]) -> Any:
    is_relative = (
        isinstance(value, str)
        and value not in NOT_A_FILE
        and not value.startswith(("/", "~", "$", "pipe:"))
        and "://" not in value
        and "${" not in value
    )
    if not is_relative:
        return value
    candidates = [base / value for base in bases]
    return str(next((path for path in candidates if path.exists()), candidates[-1]))
