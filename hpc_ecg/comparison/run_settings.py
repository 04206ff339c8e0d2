"""What the runs of a sweep were told: alike where they must be, and where they differ.

A strategy is one configuration; its runs differ in the seed alone. Strategies may differ in
anything but the data. The settings are those of each run's own config.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_ecg.training.run_folder import differing_keys

PER_RUN = ("seed",)
DATA = ("data_index_sha256", "data.task", "data.labels")
SHOWN = ("data.", "loss.", "model.", "optim.", "train.", "init.", "engine.precision")


def check_comparable(runs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    """ValueError if runs differ in what they may not. `runs`: (name, strategy, settings), where
    the settings hold the digest of the data's index too."""
    first_of: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, strategy, settings in runs:
        first_name, first = first_of.setdefault(strategy, (name, settings))
        keys = [key for key in _differing(first, settings) if key not in PER_RUN]
        if keys:
            raise ValueError(
                f"{first_name} and {name} are one strategy, but not one configuration: "
                f"{_show(keys, first, settings)}; delete one of them and start the sweep again"
            )
    (any_name, reference), *others = first_of.values()
    for name, settings in others:
        keys = [key for key in _differing(reference, settings) if key in DATA]
        if keys:
            raise ValueError(
                f"{any_name} and {name} were trained on other data: "
                f"{_show(keys, reference, settings)}; strategies are compared on the same data"
            )


def compare_settings(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Of each strategy's settings: rows (key, value per strategy) where they differ, and
    `key = value` where they agree (what is unset is left out)."""
    every = dict.fromkeys(key for values in settings.values() for key in values)
    keys = [key for key in every if key.startswith(SHOWN)]
    rows, shared = [], []
    for key in keys:
        values = [values.get(key) for values in settings.values()]
        if any(value != values[0] for value in values):
            rows.append((key, ["–" if value is None else str(value) for value in values]))
        elif values[0] not in (None, {}, []) and not key.startswith("init."):
            shared.append(f"{key} = {values[0]}")
    return rows, shared


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return differing_keys(dict(one), dict(other))


def _show(keys: list[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {one.get(key)} and {other.get(key)}" for key in keys[:3])
