"""What a sweep compares: arms. An arm is a strategy, or a strategy with one choice of a grid's
values.

In: names of strategies and `{key: [values]}`; out: arms, in order, with names that are folders.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hpc_ecg.config.dotted_keys import flatten

PER_RUN = ("seed", "run_dir")
TAKEN = ("jobs", "submitit", "tuning", "baselines", "report")
"""Folders of the sweep beside those of its arms."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    base: str
    """The strategy."""
    varied: dict[str, Any] = field(default_factory=dict)
    """The grid's values by dotted key; {} without a grid."""


def arms_of(strategies: Sequence[str], grid: Mapping[str, Any]) -> list[Arm]:
    """Each strategy with each choice of the grid's values. ValueError: a grid that is not one, or
    two arms of one name."""
    choices = choices_of(axes_of("grid", grid))
    arms = [Arm(name=arm_name(s, c), base=s, varied=c) for s in strategies for c in choices]
    twice = [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]
    if twice:
        raise ValueError(f"grid: two arms would be called {twice[0]}; leave out one of the values")
    return arms


def axes_of(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a section of `key: [values]` varies, by dotted key; `a: {b: [1]}` is `a.b: [1]`."""
    axes = flatten(dict(values)) if values else {}
    for key, choices in axes.items():
        if key in PER_RUN:
            raise ValueError(f"{section}.{key} is set by the sweep for each run; give seeds=[…]")
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{section}.{key} must be a list of values, got {choices!r}")
        if len(set(map(str, choices))) < len(choices):
            raise ValueError(f"{section}.{key} has an entry twice: {choices}")
    return axes


def choices_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One value for each key, in every combination; a single empty choice without keys."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def arm_name(strategy: str, choice: Mapping[str, Any]) -> str:
    """`strategy,lr=5e-05`: with the last parts of the keys that tell them apart."""
    parts = 1
    while len({_tail(key, parts) for key in choice}) < len(choice):
        parts += 1
    values = [f"{_tail(key, parts)}={_as_folder(value)}" for key, value in choice.items()]
    return ",".join([strategy, *values])


def _tail(key: str, parts: int) -> str:
    return ".".join(key.split(".")[-parts:])


def _as_folder(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
