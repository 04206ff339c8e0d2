"""ECG files: a name from the user's table in, a Recording in mV out.

A format is one function `(path, layout) -> Recording` and one row in READERS. Whatever a library
raises on a broken file leaves here as a RecordError of one line: one bad file never ends a run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_ecg.ecg.recording import RecordError, Recording, millivolts_per
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.ecg.wfdb_files import read_wfdb

# L leads, S samples

AXES = ("leads,samples", "samples,leads")


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """What a bare .npy cannot say about itself."""

    axes: str = "leads,samples"
    """`leads,samples` or `samples,leads`."""
    leads: tuple[str, ...] = LEADS
    """Lead names in the order in which the arrays store them."""
    unit: str = "mV"
    """mV, uV or V."""
    sample_rate_hz: float | None = None
    """Samples per second; required to read .npy."""

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise ValueError(f"axes must be one of {' or '.join(AXES)}, got {self.axes!r}")
        if millivolts_per(self.unit) is None:
            raise ValueError(f"unit must be one of mV, uV or V, got {self.unit!r}")


def find_recording(folder: Path, name: str) -> Path:
    """The file that a table's `name` means: as it stands, else with .hea, else with .npy.

    RecordError("not found") says what was tried.
    """
    for ending in ("", ".hea", ".npy"):
        path = folder / f"{name}{ending}"
        if name and _is_file(path):
            return path
    raise RecordError("not found", f"{name!r}: not in {folder}, nor with the ending .hea or .npy")


def read_recording(path: Path, layout: ArrayLayout) -> Recording:
    """Read one file in any known format; `layout` matters to bare arrays only.

    RecordError if it cannot be used: "not found", "unreadable", "leads", "rate" or "amplitude".
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise RecordError("unreadable", f"{path.name}: ending must be one of {known}")
    try:
        return reader(path, layout)
    except RecordError as error:
        raise RecordError(error.reason, f"{path.name}: {error}") from None
    except FileNotFoundError:
        raise RecordError("not found", f"{path.name}: no such file in {path.parent}") from None
    except Exception as error:  # a library on a broken file may raise anything
        raise RecordError("unreadable", f"{path.name}: {_one_line(error)}") from error


def _read_npy(path: Path, layout: ArrayLayout) -> Recording:
    if layout.sample_rate_hz is None:
        raise RecordError("rate", "an .npy states no sampling rate; give the one it was stored at")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array(array, layout)
    signal_LS = array if layout.axes == AXES[0] else array.T
    millivolts = millivolts_per(layout.unit)
    assert millivolts is not None  # ArrayLayout has checked it
    return Recording(
        signal_LS=np.asarray(signal_LS, dtype=np.float64) * millivolts,
        leads=layout.leads,
        sample_rate_hz=float(layout.sample_rate_hz),
    )


def _check_array(array: object, layout: ArrayLayout) -> None:
    """RecordError unless `array` is a 2-D array of numbers with the layout's leads on its axis."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        kind = getattr(array, "dtype", type(array).__name__)
        raise RecordError("unreadable", f"expected an array of integers or floats, got {kind}")
    if array.ndim != 2:
        raise RecordError("leads", f"expected 2 axes ({layout.axes}), got shape {array.shape}")
    axis = AXES.index(layout.axes)
    if array.shape[axis] == len(layout.leads):
        return
    position, other = ("first", "second")[axis], AXES[1 - axis]
    message = f"expected {len(layout.leads)} leads in the {position} axis, got {array.shape}"
    if array.shape[1 - axis] == len(layout.leads):
        message += f"; arrays stored as ({other.replace(',', ', ')}) need --axes {other}"
    raise RecordError("leads", message)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not take, a folder that is closed to us
        return False


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


READERS: dict[str, Callable[[Path, ArrayLayout], Recording]] = {
    ".hea": read_wfdb,
    ".dat": read_wfdb,
    ".mat": read_wfdb,
    ".npy": _read_npy,
}


def name_of_row(array: str, row: int) -> str:
    """What the recording in one row of an array of many is called."""
    return f"{array}::{row}"
