"""One recording as its file states it, and the error that means "leave this one out".

Every reader returns a Recording in mV, so that nothing above this floor knows a file format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# L leads, S samples

MAX_SAMPLES = 5_000_000
"""Per lead: longer ones (over an hour at 1000 Hz) are no resting ECGs, or the header is broken."""

_MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3}  # micro sign, Greek mu


class RecordError(ValueError):
    """One recording cannot be used; the others can. `reason` is a short category for counts:
    not found, unreadable, leads, rate, too short, NaN, flat lead, amplitude.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Callable[..., "RecordError"], tuple[str, str]]:
        return RecordError, (self.reason, str(self))  # so that it comes back from a worker process


@dataclass(frozen=True, kw_only=True)
class RecordLocation:
    """Where a recording lies: in a file, and if that holds several, in which array and row."""

    path: Path
    array: str = ""
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recording:
    signal_LS: np.ndarray
    """float64 [leads, samples], mV. NaN where the file says that a sample is invalid."""
    leads: tuple[str, ...]
    """Names of the rows as the file spells them."""
    sample_rate_hz: float


def millivolts_per(unit: str) -> float | None:
    """How many mV one `unit` is, in any case and with any µ; None for a unit that is no voltage."""
    return _MILLIVOLTS.get(unit.strip().lower())
