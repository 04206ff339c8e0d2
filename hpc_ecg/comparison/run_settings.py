"""Settings of a sweep's runs: check that they are comparable, and list where they differ.

A strategy is one configuration; its runs differ in the seed alone. Strategies may differ in
anything but the data. Settings are read from each run's config.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_ecg.training.run_folder import differing_keys

Settings = Mapping[str, Any]
"""By dotted key."""
PER_RUN = ("seed", "data.label_seed")
DATA = ("data_index_sha256", "data.task", "data.labels")
SHOWN = ("data.", "loss.", "model.", "optim.", "train.", "init.", "engine.precision")


def check_comparable(runs: Sequence[tuple[str, str, Settings]]) -> None:
    """Raise `ValueError` if runs of one strategy differ in more than the seed, or strategies in
    their data. `runs`: (name, strategy, settings with the digest of the data's index)."""
    first_of: dict[str, tuple[str, Settings]] = {}
    for name, strategy, settings in runs:
        first_name, first = first_of.setdefault(strategy, (name, settings))
        keys = [key for key in differing_keys(dict(first), dict(settings)) if key not in PER_RUN]
        if keys:
            raise ValueError(
                f"{first_name} and {name} belong to one strategy but differ in configuration: "
                f"{_show(keys, first, settings)}; delete one of them and start the sweep again"
            )
    (first_name, first), *others = first_of.values()
    for name, settings in others:
        keys = [key for key in differing_keys(dict(first), dict(settings)) if key in DATA]
        if keys:
            raise ValueError(
                f"{first_name} and {name} were trained on other data: "
                f"{_show(keys, first, settings)}; strategies are compared on the same data"
            )


def compare_settings(
    settings: Mapping[str, Settings],
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Compare the settings of strategies: rows (key, value per strategy) where they differ, and
    `key = value` where they agree and are set."""
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    rows, shared = [], []
    for key in filter(lambda key: key.startswith(SHOWN), keys):
        values = [values.get(key) for values in settings.values()]
        values = [None if value in ({}, []) else value for value in values]
        if any(value != values[0] for value in values):
            rows.append((key, ["–" if value is None else str(value) for value in values]))
        elif values[0] is not None and not key.startswith("init."):
            shared.append(f"{key} = {values[0]}")
    return rows, shared


def _show(keys: list[str], one: Settings, other: Settings) -> str:
    return ", ".join(f"{key}: {one.get(key)} and {other.get(key)}" for key in keys[:3])
