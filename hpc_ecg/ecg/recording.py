"""One recording as its file states it, and the error for a recording that must be left out.

Every reader returns a Recording in mV, so code above the readers knows no file format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# L leads, S samples

MAX_SAMPLES = 5_000_000
"""Per lead. Longer ones (over an hour at 1000 Hz) are no resting ECGs, or the header is broken."""


class RecordError(ValueError):
    """This recording cannot be used; others can. `reason` is a short category for counting:
    not found, unreadable, leads, rate, too short, NaN, flat lead, amplitude.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Callable[..., "RecordError"], tuple[str, str]]:
        return RecordError, (self.reason, str(self))  # to be pickled by a worker process


@dataclass(frozen=True, kw_only=True)
class RecordLocation:
    """A file and, if it holds several recordings, the array and row of one of them."""

    path: Path
    array: str = ""
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recording:
    signal_LS: np.ndarray
    """float64 [leads, samples], mV. NaN where the file marks a sample as invalid."""
    leads: tuple[str, ...]
    """Names of the rows as the file spells them."""
    sample_rate_hz: float


def check_num_samples(num_samples: int) -> None:
    """Raise RecordError("unreadable") for more than MAX_SAMPLES samples per lead."""
    if num_samples > MAX_SAMPLES:
        text = f"{num_samples} samples per lead; at most {MAX_SAMPLES} are read"
        raise RecordError("unreadable", text)
