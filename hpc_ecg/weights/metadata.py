"""What the shapes of weights cannot say, stored as JSON texts by name.

The texts are in the metadata of our safetensors, and in `extra_state["hpc_ecg"]` of a `.pt` that
this package wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.safe_reading import parse_json

OUR_FORMAT = "hpc_ecg/1"
# The type of each text's value, and of the items in it.
TYPES: dict[str, tuple[Any, type]] = {
    "architecture": (dict, str),
    "labels": (list, str),
    "signal": (dict, str),
    "provenance": (list, dict),
}


@dataclass(frozen=True, kw_only=True)
class Metadata:
    architecture: Architecture
    labels: list[str] | None = None
    """One name per row of the head; None = unknown (only our files state it), or no head."""
    signal: SignalSpec | None = None
    """The meaning of the input; None = unknown (only our files state it)."""
    provenance: list[dict[str, Any]] = field(default_factory=list)
    """The steps of this package that made the file, oldest first."""

    def texts(self) -> dict[str, str]:
        """Everything known but the sizes, as JSON texts."""
        known = {
            "labels": self.labels,
            "signal": self.signal and asdict(self.signal),
            "provenance": self.provenance,
        }
        return {name: json.dumps(value) for name, value in known.items() if value}

    def check_labels(self, num_labels: int | None) -> None:
        """ValueError unless the names, if known, are as many as the rows of the head."""
        if self.labels is not None and len(self.labels) != num_labels:
            head = f"a head of {num_labels}" if num_labels else "weights without a head"
            raise ValueError(f"{len(self.labels)} label names for {head}")

    def sizes_text(self) -> str:
        return json.dumps(architecture_to_settings(self.architecture))


def parse_metadata(architecture: Architecture, texts: Mapping[str, Any]) -> Metadata:
    """Metadata from the texts of a file. ValueError names the text that is damaged."""
    signal = parse_text(texts, "signal")
    return Metadata(
        architecture=architecture,
        labels=parse_text(texts, "labels"),
        signal=None if signal is None else spec_from_dict(signal, "signal"),
        provenance=parse_text(texts, "provenance") or [],
    )


def parse_text(texts: Mapping[str, Any], name: str) -> Any:
    """The value of one text, of its type in `TYPES`; None if it is absent."""
    expected, item_type = TYPES[name]
    text = texts.get(name, "null")
    try:
        value = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        value = "damaged"
    is_valid = isinstance(value, expected) and all(isinstance(item, item_type) for item in value)
    if not is_valid and (value is not None or name == "architecture"):
        raise ValueError(
            f"metadata `{name}` must be a JSON {expected.__name__} of {item_type.__name__}"
        )
    return value
