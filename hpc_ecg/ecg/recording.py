"""One recording as its file states it, and the error for a recording that must be left out.

Every reader returns a Recording in mV, so code above the readers knows no file format.
"""

import os
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
    flags: tuple[str, ...] = ()
    """What the reader noticed: `partly_read:N` (N further parts of the file were not read),
    `not_applied:FIELD` (a field that the format does not explain)."""


def existing_file(path: Path, any_name: bool = False) -> Path | None:
    """`path`, else the file whose ending (or, with `any_name`, whose whole name) is in upper or
    lower case; None if there is none."""
    upper, lower = path.suffix.upper(), path.suffix.lower()
    names = [path.name, path.stem + upper, path.stem + lower]
    names += [path.name.upper(), path.name.lower()] if any_name else []
    # Path.is_file raises if a name is too long
    found = (path.parent / name for name in names if os.path.isfile(path.parent / name))  # noqa: PTH113
    return next(found, None)


def check_num_samples(num_samples: int) -> None:
    """Raise RecordError("unreadable") for more than MAX_SAMPLES samples per lead."""
    if num_samples > MAX_SAMPLES:
        text = f"{num_samples} samples per lead; at most {MAX_SAMPLES} are read"
        raise RecordError("unreadable", text)
