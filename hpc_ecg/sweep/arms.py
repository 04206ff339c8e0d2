"""What a sweep compares: arms. An arm is a strategy, or a strategy with one combination of a grid's
values.

`arms_of` takes names of strategies and `{key: [values]}`, and returns the arms in order. An arm's
name is also its folder.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hpc_ecg.config.dotted_keys import flatten

SET_BY_SWEEP = ("seed", "run_dir")
"""Settings of a run that the sweep gives each run."""
LEFT_OUT_SITE = "data.left_out_site"
"""The axis of a sweep that leaves out one site at a time."""
RESERVED_FOLDERS = ("jobs", "submitit", "tuning", "baselines", "report")
"""Folders in the sweep's that are not arms."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    base: str
    """The strategy."""
    varied: dict[str, Any] = field(default_factory=dict)
    """The grid's values by dotted key; {} without a grid."""


def arms_of(strategies: Sequence[str], grid: Mapping[str, Any]) -> list[Arm]:
    """Combine each strategy with each combination of the grid's values.

    Raises ValueError for a grid that is malformed, or makes two arms of the same name.
    """
    choices = choices_of(axes_of("grid", grid))
    arms = [Arm(name=arm_name(s, c), base=s, varied=c) for s in strategies for c in choices]
    twice = [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]
    if twice:
        raise ValueError(f"grid: two arms would be called {twice[0]}; leave out one of the values")
    return arms


def axes_of(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what a section of `key: [values]` varies: `a: {b: [1]}` is `a.b: [1]`.

    Raises ValueError for a key that the sweep sets, or values that are not a list of distinct ones.
    """
    axes = flatten(dict(values)) if values else {}
    for key, choices in axes.items():
        if key in SET_BY_SWEEP:
            raise ValueError(f"{section}.{key} is set by the sweep for each run; give seeds=[…]")
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{section}.{key} must be a list of values, got {choices!r}")
        if len(set(map(str, choices))) < len(choices):
            raise ValueError(f"{section}.{key} has an entry twice: {choices}")
    return axes


def choices_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value for each key; without keys, one empty combination."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def arm_name(strategy: str, choice: Mapping[str, Any]) -> str:
    """Name an arm `strategy,lr=5e-05`, using just enough of each key to tell them apart."""
    parts = 1
    while len({_tail(key, parts) for key in choice}) < len(choice):
        parts += 1
    values = [f"{_tail(key, parts)}={_safe_in_path(value)}" for key, value in choice.items()]
    return ",".join([strategy, *values])


def _tail(key: str, parts: int) -> str:
    return ".".join(key.split(".")[-parts:])


def _safe_in_path(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
