"""What optuna proposes values from: a range for two numbers, else a choice."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG_RATIO = 10


def search_space(axes: Mapping[str, list[Any]]) -> dict[str, "BaseDistribution"]:
    """A distribution for each setting. ValueError for a range that is none, or without optuna."""
    try:
        import optuna  # noqa: F401  # distribution_of would fail with more than a line
    except ImportError:
        raise ValueError("tune_trials needs optuna: pip install -e '.[search]'") from None
    return {key: distribution_of(key, values) for key, values in axes.items()}


def distribution_of(key: str, values: list[Any]) -> "BaseDistribution":
    """On a log scale for a range of positive numbers that are tenfold apart."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        return CategoricalDistribution(values)
    low, high = values
    if low >= high:
        raise ValueError(f"tune.{key}={values}: a range needs a lower and a higher number")
    is_log = low > 0 and high >= LOG_RATIO * low
    if type(low) is int and type(high) is int:
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)
