"""Declare settings: the values that each field allows, and other rules for it.

A settings class declares its fields with `setting(...)` and calls `check_settings` in its
`__post_init__`, so that a range stands beside its field and all messages have one form.
"""

import functools
import math
import operator
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast

from hpc_ecg.config.suggestions import did_you_mean

T = TypeVar("T")
KEY = "setting"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The rules of one setting; None is no limit."""

    choices: Sequence[str] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    may_change: bool = False
    """Whether a run may resume with another value, because it does not change what is computed."""
    hint: str = ""
    """Advice, added to the message for a value that is not allowed."""
    is_permission: bool = False
    """Whether only the command line can set it: a file, which may be another person's, cannot."""
    is_path: bool = False
    """Whether it is the path of a file or folder; relative ones start where the run was started."""

    def allows(self, value: float) -> bool:
        """Whether a value is within the limits; False for NaN, whatever they are."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and not math.isnan(value)
        )

    def describe(self) -> str:
        """The limits in words: `positive`, `at least 1`, or an interval such as `in [0, 1)`."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is None or high is None or high == math.inf:
            return "positive" if self.above == 0 else f"at least {low}"
        opening = "[" if self.above is None else "("
        closing = "]" if self.below is None else ")"
        return f"in {opening}{low}, {high}{closing}"


def setting(default: T, **rule: Any) -> T:
    """A dataclass field with a default and a `Rule`; a list or dict is copied for each instance."""
    metadata = {KEY: Rule(**rule)}
    if isinstance(default, list | dict):
        return cast(T, field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


def check_settings(config: Any, section: str) -> None:
    """Raise ValueError for the first field with a value that its rule does not allow.

    `section` is the prefix of the key in the message, such as `optim`; "" for the top level. None
    is allowed where the type allows it; each item of a list or tuple is checked.
    """
    for item in fields(config):
        rule, value = rule_of(item), getattr(config, item.name)
        key = f"{section}.{item.name}" if section else item.name
        if rule.choices and value not in rule.choices:
            hint = did_you_mean(value, rule.choices)
            raise ValueError(f"{key} must be one of {', '.join(rule.choices)}, got {value!r}{hint}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(rule.allows(n) for n in numbers if isinstance(n, int | float)):
            _, is_optional = without_none(typing.get_type_hints(type(config))[item.name])
            allowed = rule.describe() + (" or null" if is_optional else "")
            shown = list(value) if isinstance(value, tuple) else value
            hint = f"; {rule.hint}" if rule.hint else ""
            raise ValueError(f"{key} must be {allowed}, got {shown}{hint}")


def rule_of(item: Any) -> Rule:
    """The rule of a dataclass field; without limits if none was declared."""
    return cast(Rule, item.metadata.get(KEY, Rule()))


def rules_by_key(schema: type, prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """Yield (dotted key, rule) of every setting of a schema and its sections."""
    hints = typing.get_type_hints(schema)
    for item in fields(schema):
        section = section_of(hints[item.name])
        if section is None:
            yield prefix + item.name, rule_of(item)
        else:
            yield from rules_by_key(section, f"{prefix}{item.name}.")


def section_of(kind: Any) -> type | None:
    """The settings class that a field's type names, also in `Section | None`; otherwise None."""
    kind, _ = without_none(kind)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def without_none(kind: Any) -> tuple[Any, bool]:
    """A type without `| None`, and whether `| None` was there."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return functools.reduce(operator.or_, inner), type(None) in typing.get_args(kind)
    return kind, False


def default_of(item: Any) -> Any:
    """The default of a dataclass field; `dataclasses.MISSING` if it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def is_misshapen(value: Any, kind: Any) -> bool:
    """Whether it is a list for a section or the reverse, or a list or section among numbers."""
    is_list, items = typing.get_origin(kind) in (list, tuple), value if type(value) is list else ()
    if is_list and typing.get_args(kind)[0] in (int, float):
        return isinstance(value, dict) or any(isinstance(item, list | dict) for item in items)
    return isinstance(value, list) if typing.get_origin(kind) is dict else False
