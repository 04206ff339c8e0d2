"""Convert between nested settings, `{"optim": {"lr": 1}}`, and dotted keys, `{"optim.lr": 1}`."""

from collections.abc import Mapping
from typing import Any


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict by dotted key; an empty section is kept as a value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as nested sections."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested
