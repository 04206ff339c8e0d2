"""What the shapes of weights cannot say, and its form in a file: JSON texts by name.

They lie in the metadata of our safetensors, and in `extra_state["hpc_ecg"]` of a `.pt` of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.model.architecture import Architecture, show_value
from hpc_ecg.weights.safetensors_file import from_json

# The type of each, and of what lies in it.
FACTS: dict[str, tuple[Any, type]] = {
    "architecture": (dict, str),
    "labels": (list, str),
    "signal": (dict, str),
    "provenance": (list, dict),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the shapes of weights cannot say."""

    architecture: Architecture
    labels: list[str] | None = None
    """One name per row of the head; None = not known (only our files name them), or no head."""
    signal: SignalSpec | None = None
    """What the ECGs meant; None = not known (only our files say it)."""
    provenance: list[dict[str, Any]] = field(default_factory=list)
    """What this package did to make the file, oldest first."""

    def texts(self) -> dict[str, str]:
        """What is known beside the sizes, as JSON."""
        known = {
            "labels": self.labels,
            "signal": self.signal and asdict(self.signal),
            "provenance": self.provenance,
        }
        return {name: json.dumps(value) for name, value in known.items() if value}


def facts_of_texts(architecture: Architecture, texts: Mapping[str, Any]) -> Facts:
    """From what this package wrote as JSON."""
    return Facts(
        architecture=architecture,
        labels=from_text(texts, "labels"),
        signal=_signal_of(from_text(texts, "signal")),
        provenance=from_text(texts, "provenance") or [],
    )


def _signal_of(values: dict[str, Any] | None) -> SignalSpec | None:
    if values is None:
        return None
    signal, usual = spec_from_dict(values, "signal"), SignalSpec()
    for name, value in values.items():
        if type(value) is not type(getattr(usual, name)):
            raise ValueError(f"signal.{name} cannot be {show_value(value)}")
    if not all(isinstance(lead, str) for lead in signal.leads):
        raise ValueError("signal.leads must be names")
    return signal


def from_text(texts: Mapping[str, Any], name: str) -> Any:
    expected, inner = FACTS[name]
    text = texts.get(name, "null")
    try:
        value = from_json(text) if isinstance(text, str) else None
    except ValueError:
        value = "damaged"
    fits = isinstance(value, expected) and all(isinstance(item, inner) for item in value)
    if not fits and not (value is None and name != "architecture"):
        raise ValueError(
            f"metadata `{name}` must be a JSON {expected.__name__} of {inner.__name__}"
        )
    return value
