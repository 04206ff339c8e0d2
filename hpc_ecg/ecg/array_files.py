"""Recordings stored as bare arrays: .npy, .npz, HDF5 or MATLAB's .mat.

An array names neither leads nor unit, and rarely its rate: the user's ArrayLayout does. Shapes are
checked before anything is unpacked, so a small file that claims gigabytes is refused; nothing is
ever unpickled. From an array of many recordings (.npy, HDF5) only the wanted row is read. DeepECG's
own .mat (`feats`, `curr_sample_rate`) states its rate.
"""

import contextlib
import math
import re
from dataclasses import dataclass

import numpy as np

from hpc_ecg.ecg.array_stores import MAX_BYTES, OPENERS, RATE, StoredArray
from hpc_ecg.ecg.guards import memory_limit
from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation, check_num_samples
from hpc_ecg.ecg.signal import LEADS, millivolts_per
from hpc_ecg.log import logger

# L leads, S samples

AXES = ("leads,samples", "samples,leads")

_UNIT = re.compile(r"(\d*\.?\d+(?:e-?\d+)?)?\s*([a-zµμ]+)", re.IGNORECASE)
_USUAL_NAMES = {"ecg", "signal", "signals", "feats", "tracings", "val"}


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """What a bare array cannot say about itself."""

    axes: str = "leads,samples"
    """`leads,samples` or `samples,leads`; an array of many has its rows in front of these."""
    leads: tuple[str, ...] = LEADS
    """Lead names in the order in which the arrays store them."""
    unit: str = "mV"
    """mV, uV or V; for counts, the size of one, such as `4.88uV`."""
    sample_rate_hz: float | None = None
    """Samples per second; required unless the file states them."""

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise ValueError(f"axes must be one of {' or '.join(AXES)}, got {self.axes!r}")
        if not 0 < self.millivolts < math.inf:
            hint = "for counts, give the size of one, like 4.88uV"
            raise ValueError(f"unit must be one of mV, uV or V, got {self.unit!r}; {hint}")

    @property
    def millivolts(self) -> float:
        """Millivolts per 1 in the array; 0 if the unit is unknown."""
        match = _UNIT.fullmatch(self.unit.strip())
        return float(match[1] or 1) * (millivolts_per(match[2]) or 0) if match else 0.0


def read_array(location: RecordLocation, layout: ArrayLayout) -> Recording:
    """Read one array, or one row of an array of many, as `layout` describes it.

    RecordError: "unreadable", "leads" (the shape contradicts the layout), "rate" (not stated), "not
    found" (no such array or row).
    """
    with OPENERS[location.path.suffix.lower()](location.path, location.array) as arrays:
        stored = arrays[_choose(arrays, location, layout)]
        shape = _shape_of_one(stored, location.row)
        _check_shape(shape, layout)
        array = np.asarray(stored.read(() if location.row is None else location.row), np.float64)
        rate = layout.sample_rate_hz
        if RATE in arrays:
            rate = _stated_rate(arrays[RATE], stored.shape[0], location.row)
    if rate is None:
        raise RecordError("rate", "the file states no sampling rate; give it with --rate")
    array = array.reshape(shape) * layout.millivolts
    signal_LS = array if layout.axes == AXES[0] else array.T
    return Recording(signal_LS=signal_LS, leads=layout.leads, sample_rate_hz=float(rate))


def _stated_rate(stored: StoredArray, num_rows: int, row: int | None) -> float:
    """The one rate of a file, or that of a row; RecordError for anything else."""
    size = math.prod(stored.shape)
    of_row = row is not None and stored.by_row and stored.shape[:1] == (size,) == (num_rows,)
    if stored.dtype.kind not in "iuf" or not (size == 1 or of_row):
        got = f"got {stored.dtype} of shape {stored.shape}"
        raise RecordError("rate", f"{RATE} must be a number, or one for each row; {got}")
    return float(np.asarray(stored.read(row if of_row and row is not None else ())).item())


def read_beside(location: RecordLocation, layout: ArrayLayout) -> tuple[int, dict[str, list[str]]]:
    """The number of recordings in an array of many, and the arrays beside it (of .npy: the files)
    that hold one value for each: name -> values as text. RecordError: no such array."""
    ending = location.path.suffix.lower()
    beside: dict[str, list[str]] = {}
    with contextlib.ExitStack() as stack:
        arrays = stack.enter_context(OPENERS[ending](location.path, ""))
        chosen = _choose(arrays, location, layout)
        count = len(arrays[chosen].shape) in (3, 4) and arrays[chosen].shape[0]
        if not count:
            raise RecordError("leads", f"no array of many, but of shape {arrays[chosen].shape}")
        if ending == ".npy":
            for path in sorted(location.path.parent.glob("*.npy"))[:100]:
                with contextlib.suppress(ValueError, OSError):
                    arrays[path.name] = stack.enter_context(OPENERS[ending](path, ""))[""]
        stack.enter_context(memory_limit(2 * MAX_BYTES))  # nothing states the size of HDF5's text
        for name, stored in arrays.items():
            fitting = stored.shape in ((count,), (count, 1), (1, count))
            if not fitting or stored.dtype.kind not in "iufSUOV":
                continue
            try:
                if stored.dtype.itemsize * count > MAX_BYTES:
                    raise MemoryError
                values = stored.read(()).ravel()
                fields = {f"{name}/{f}": values[f] for f in values.dtype.names or ()}  # of a table
                for key, column in (fields or {name: values}).items():
                    if column.size == count:
                        beside[key] = [_as_text(value) for value in column.ravel().tolist()]
            except (MemoryError, OSError):
                text = f"takes over {MAX_BYTES >> 20} MB: it is not compared with the table"
                logger.warning(f"{location.path.name}: {name or 'one'} {text}")
    return count, beside


def _as_text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return (text.removesuffix(".0") if isinstance(value, float) else text).strip()


def _choose(arrays: dict[str, StoredArray], location: RecordLocation, layout: ArrayLayout) -> str:
    """The named array; else the only one, the only usual name or the only fitting shape."""
    listed = ", ".join(f"{name or 'one'} {stored.shape}" for name, stored in [*arrays.items()][:8])
    if location.array in arrays:
        return location.array
    if location.array:
        raise RecordError("not found", f"no array {location.array!r} in it; it holds {listed}")
    usual = [name for name in arrays if name.lower() in _USUAL_NAMES]
    fitting = [name for name, stored in arrays.items() if len(layout.leads) in stored.shape]
    for names in (list(arrays), usual, fitting):
        if len(names) == 1:
            return names[0]
    question = f"which array? It holds {listed or 'none'}; write {location.path.name}::NAME"
    raise RecordError("unreadable", question)


def _shape_of_one(stored: StoredArray, row: int | None) -> tuple[int, ...]:
    """The shape of the whole array, or of one row of an array of many."""
    shape = stored.shape
    if stored.dtype.kind not in "iuf":
        raise RecordError("unreadable", f"expected integers or floats, got {stored.dtype}")
    if row is None:
        return shape
    if len(shape) not in (3, 4) or not stored.by_row:
        what = f"an array of shape {shape}" if stored.by_row else "a packed array"
        message = f"cannot read a row of {what}; save all as one .npy or HDF5 array"
        raise RecordError("unreadable", message)
    if row >= shape[0]:
        raise RecordError("not found", f"row {row} of an array with rows 0 to {shape[0] - 1}")
    return shape[1:3] if shape[3:] == (1,) else shape[1:]


def _check_shape(shape: tuple[int, ...], layout: ArrayLayout) -> None:
    """RecordError unless it is 2-D, the layout's leads on one axis, samples on the other."""
    if len(shape) != 2:
        hint = "; of an array of many write FILE::ROW" if len(shape) == 3 else ""
        raise RecordError("leads", f"expected 2 axes ({layout.axes}), got shape {shape}{hint}")
    axis, num_leads = AXES.index(layout.axes), len(layout.leads)
    if shape[axis] != num_leads:
        message = f"expected {num_leads} leads in the {('first', 'second')[axis]} axis, got {shape}"
        if shape[1 - axis] == num_leads:
            other = AXES[1 - axis]
            message += f"; arrays stored as ({other.replace(',', ', ')}) need --axes {other}"
        raise RecordError("leads", message)
    check_num_samples(shape[1 - axis])
    if 8 * math.prod(shape) > MAX_BYTES:
        size = f"{shape[1 - axis]} samples of {num_leads} leads are {8 * math.prod(shape) >> 20} MB"
        raise RecordError("unreadable", f"{size}; at most {MAX_BYTES >> 20} MB are read")
