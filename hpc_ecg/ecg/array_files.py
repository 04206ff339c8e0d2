"""Recordings as bare arrays: .npy, .npz, HDF5 or MATLAB's .mat in, a Recording in mV out.

An array names neither leads nor unit, and rarely its rate: the user's ArrayLayout does. Shapes are
looked at before anything is unpacked, so a small file that claims gigabytes is refused; nothing is
ever unpickled. Of an array of many recordings (.npy, HDF5) one row is read and the rest stays on
disk. DeepECG's own .mat (`feats`, `curr_sample_rate`) says its rate.
"""

import re
from dataclasses import dataclass

import numpy as np

from hpc_ecg.ecg.array_stores import OPENERS, RATE, StoredArray
from hpc_ecg.ecg.recording import (
    MAX_SAMPLES,
    RecordError,
    Recording,
    RecordLocation,
    millivolts_per,
)
from hpc_ecg.ecg.signal import LEADS

# L leads, S samples

AXES = ("leads,samples", "samples,leads")

_UNIT = re.compile(r"(\d*\.?\d+(?:e-?\d+)?)?\s*([a-zµμ]+)", re.IGNORECASE)
_USUAL_NAMES = {"ecg", "signal", "signals", "feats", "tracings", "val"}


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """What a bare array cannot say about itself."""

    axes: str = "leads,samples"
    """`leads,samples` or `samples,leads`; with `N,` before it in an array of many."""
    leads: tuple[str, ...] = LEADS
    """Lead names in the order in which the arrays store them."""
    unit: str = "mV"
    """mV, uV or V; of counts what one of them is, like `4.88uV`."""
    sample_rate_hz: float | None = None
    """Samples per second; required unless the file states them."""

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise ValueError(f"axes must be one of {' or '.join(AXES)}, got {self.axes!r}")
        if not self.millivolts:
            raise ValueError(
                f"unit must be one of mV, uV or V, got {self.unit!r}; of counts what one is: 4.88uV"
            )

    @property
    def millivolts(self) -> float:
        """What 1 in the array is in mV; 0 if the unit is unknown."""
        match = _UNIT.fullmatch(self.unit.strip())
        return float(match[1] or 1) * (millivolts_per(match[2]) or 0) if match else 0.0


def read_array(location: RecordLocation, layout: ArrayLayout) -> Recording:
    """RecordError: "unreadable", "leads" (another shape than the layout's), "rate" (not stated),
    "not found" (no such array or row).
    """
    with OPENERS[location.path.suffix.lower()](location.path, location.array) as arrays:
        stored = arrays[_choose(arrays, location, layout)]
        shape = _shape_of_one(stored, location.row)
        _check_shape(shape, layout)
        array = np.asarray(stored.read(() if location.row is None else location.row), np.float64)
        rate = layout.sample_rate_hz
        if RATE in arrays and np.prod(arrays[RATE].shape, dtype=float) == 1:
            rate = float(np.asarray(arrays[RATE].read(())).item())
    if rate is None:
        raise RecordError("rate", "an array states no sampling rate; give that of its recording")
    array = array.reshape(shape)
    signal_LS = array if layout.axes == AXES[0] else array.T
    return Recording(
        signal_LS=signal_LS * layout.millivolts, leads=layout.leads, sample_rate_hz=float(rate)
    )


def _choose(arrays: dict[str, StoredArray], location: RecordLocation, layout: ArrayLayout) -> str:
    """The array that was named; else the only one, with a usual name, or with an axis of leads."""
    listed = ", ".join(f"{name or 'one'} {stored.shape}" for name, stored in [*arrays.items()][:8])
    if location.array in arrays:
        return location.array
    if location.array:
        raise RecordError("not found", f"no array {location.array!r} in it; it holds {listed}")
    usual = [name for name in arrays if name.lower() in _USUAL_NAMES]
    fitting = [name for name, stored in arrays.items() if len(layout.leads) in stored.shape]
    for found in (list(arrays), usual, fitting):
        if len(found) == 1:
            return found[0]
    raise RecordError(
        "unreadable", f"which array? It holds {listed or 'none'}; write {location.path.name}::NAME"
    )


def _shape_of_one(stored: StoredArray, row: int | None) -> tuple[int, ...]:
    shape = stored.shape
    if stored.dtype.kind not in "iuf":
        raise RecordError(
            "unreadable", f"expected an array of integers or floats, got {stored.dtype}"
        )
    if row is None:
        return shape
    if len(shape) not in (3, 4) or not stored.by_row:
        what = f"rows of an array of shape {shape}" if stored.by_row else "rows of a packed array"
        raise RecordError("unreadable", f"{what} are not read; save all as one .npy or HDF5 array")
    if row >= shape[0]:
        raise RecordError("not found", f"row {row} of an array with rows 0 to {shape[0] - 1}")
    return shape[1:3] if shape[3:] == (1,) else shape[1:]


def _check_shape(shape: tuple[int, ...], layout: ArrayLayout) -> None:
    """RecordError unless it is 2-D, the layout's leads on the one axis, samples on the other."""
    if len(shape) != 2:
        many = "; of an array of many write FILE::ROW" if len(shape) == 3 else ""
        raise RecordError("leads", f"expected 2 axes ({layout.axes}), got shape {shape}{many}")
    axis = AXES.index(layout.axes)
    if shape[axis] != len(layout.leads):
        position, other = ("first", "second")[axis], AXES[1 - axis]
        message = f"expected {len(layout.leads)} leads in the {position} axis, got {shape}"
        if shape[1 - axis] == len(layout.leads):
            message += f"; arrays stored as ({other.replace(',', ', ')}) need --axes {other}"
        raise RecordError("leads", message)
    if shape[1 - axis] > MAX_SAMPLES:
        raise RecordError(
            "unreadable", f"{shape[1 - axis]} samples a lead, at most {MAX_SAMPLES} are read"
        )
