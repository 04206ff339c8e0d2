"""Recordings as bare arrays: .npy, .npz, HDF5 or MATLAB's .mat in, a Recording in mV out.

An array names neither leads nor unit, and rarely its rate: the user's ArrayLayout does. Shapes are
looked at before anything is unpacked, so a small file that claims gigabytes is refused; nothing is
ever unpickled. Of an array of many recordings (.npy, HDF5) one row is read and the rest stays on
disk. DeepECG's own .mat (`feats`, `curr_sample_rate`) says its rate.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from scipy.io.matlab import matfile_version

from hpc_ecg.ecg.recording import MAX_SAMPLES, Place, RecordError, Recording, millivolts_per
from hpc_ecg.ecg.signal import LEADS

# L leads, S samples

AXES = ("leads,samples", "samples,leads")
MAX_BYTES = 1 << 28
"""What is unpacked at once: of a .mat, or a chunk of HDF5."""
NEEDS_EXTRA = "to read it, `pip install 'hpc-ecg[formats]'`"

_UNIT = re.compile(r"(\d*\.?\d+(?:e-?\d+)?)?\s*([a-zµμ]+)", re.IGNORECASE)
_USUAL_NAMES = {"ecg", "signal", "signals", "feats", "tracings", "val"}
_RATE = "curr_sample_rate"
_MATLAB = {"double": "f8", "single": "f4"} | {
    f"{u}int{n}": f"{u or 'i'}{n // 8}" for u in ("", "u") for n in (8, 16, 32, 64)
}


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


class Stored(NamedTuple):
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Any], Any]
    """What lies at an index: a row, or () for all."""
    by_row: bool = True
    """A row can be read without the others."""


def read_array(place: Place, layout: ArrayLayout) -> Recording:
    """RecordError: "unreadable", "leads" (another shape than the layout's), "rate" (not stated),
    "not found" (no such array or row).
    """
    with _OPENERS[place.path.suffix.lower()](place.path, place.array) as arrays:
        stored = arrays[_choose(arrays, place, layout)]
        shape = _shape_of_one(stored, place.row)
        _check_shape(shape, layout)
        array = np.asarray(stored.read(() if place.row is None else place.row), np.float64)
        rate = float(arrays[_RATE].read(()).item()) if _RATE in arrays else layout.sample_rate_hz
    if rate is None:
        raise RecordError(
            "rate", "the array states no sampling rate; give the one it was stored at"
        )
    array = array.reshape(shape)
    signal_LS = array if layout.axes == AXES[0] else array.T
    return Recording(
        signal_LS=signal_LS * layout.millivolts, leads=layout.leads, sample_rate_hz=float(rate)
    )


def _choose(arrays: dict[str, Stored], place: Place, layout: ArrayLayout) -> str:
    """The array that was named; else the only one, with a usual name, or with an axis of leads."""
    listed = ", ".join(f"{name or 'one'} {stored.shape}" for name, stored in [*arrays.items()][:8])
    if place.array in arrays:
        return place.array
    if place.array:
        raise RecordError("not found", f"no array {place.array!r} in it; it holds {listed}")
    usual = [name for name in arrays if name.lower() in _USUAL_NAMES]
    fitting = [name for name, stored in arrays.items() if len(layout.leads) in stored.shape]
    for found in (list(arrays), usual, fitting):
        if len(found) == 1:
            return found[0]
    raise RecordError(
        "unreadable", f"which array? It holds {listed or 'none'}; write {place.path.name}::NAME"
    )


def _shape_of_one(stored: Stored, row: int | None) -> tuple[int, ...]:
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


@contextmanager
def _open_npy(path: Path, _name: str) -> Iterator[dict[str, Stored]]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise RecordError("unreadable", f"expected an array, got {type(array).__name__}")
    yield {"": Stored(array.shape, array.dtype, array.__getitem__)}


@contextmanager
def _open_npz(path: Path, name: str) -> Iterator[dict[str, Stored]]:
    with np.load(path, allow_pickle=False) as archive:

        def stored(key: str) -> Stored:
            with archive.zip.open(f"{key}.npy") as member:
                is_first = np.lib.format.read_magic(member) == (1, 0)
                header = (
                    np.lib.format.read_array_header_1_0
                    if is_first
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(member)
            return Stored(shape, dtype, lambda index: archive[key][index], by_row=False)

        yield {key: stored(key) for key in ([name] if name in archive.files else archive.files)}


@contextmanager
def _open_hdf5(path: Path, name: str) -> Iterator[dict[str, Stored]]:
    try:
        import h5py
    except ImportError:
        raise RecordError("unreadable", NEEDS_EXTRA) from None
    with h5py.File(path, "r", locking=False) as file:  # shared disks often know no locks
        names = [name]
        if name not in file:
            names = []
            file.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
        found = {key: file[key] for key in names if isinstance(file[key], h5py.Dataset)}
        for key, data in found.items():
            if data.is_virtual or data.external or data.file.filename != file.filename:
                raise RecordError("unreadable", f"{key}: its data lie in another file; copy them")
            if np.prod(data.chunks or (0,), dtype=float) * data.dtype.itemsize > MAX_BYTES:
                raise RecordError("unreadable", f"{key}: chunks of {data.chunks} are too large")
        yield {
            key: Stored(data.shape or (), data.dtype, data.__getitem__)
            for key, data in found.items()
        }


@contextmanager
def _open_mat(path: Path, _name: str) -> Iterator[dict[str, Stored]]:
    if path.stat().st_size > MAX_BYTES:
        raise RecordError("unreadable", f"more than {MAX_BYTES >> 20} MB; save it as .npy or HDF5")
    content = path.read_bytes()
    version, _ = matfile_version(io.BytesIO(content))
    if version == 2:
        raise RecordError(
            "unreadable",
            "a MATLAB 7.3 file, which is HDF5: save it with -v7, or name it .h5 (axes reversed)",
        )
    if version == 1:
        _check_inflated(content)

    def stored(key: str, shape: tuple[int, ...], kind: str) -> Stored:
        def read(index: Any) -> Any:
            return scipy.io.loadmat(io.BytesIO(content), variable_names=[key])[key][index]

        return Stored(shape, np.dtype(_MATLAB.get(kind, "O")), read, by_row=False)

    arrays = {name: stored(name, *rest) for name, *rest in scipy.io.whosmat(io.BytesIO(content))}
    if list(arrays) == ["val"]:
        raise RecordError("not found", f"its header {path.stem}.hea is not beside it")
    yield arrays


def _check_inflated(content: bytes) -> None:
    """RecordError if the compressed parts of a MATLAB 5 file unpack to more than MAX_BYTES."""
    order, at, left = ">" if content[126:128] == b"MI" else "<", 128, MAX_BYTES
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}2I", content, at)
        if kind == 15:  # miCOMPRESSED
            inflate = zlib.decompressobj()
            left -= len(inflate.decompress(content[at + 8 : at + 8 + size], left))
            if inflate.unconsumed_tail or left <= 0:
                raise RecordError("unreadable", f"unpacks to more than {MAX_BYTES >> 20} MB")
        at += 8 + size


_OPENERS = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".h5": _open_hdf5,
    ".hdf5": _open_hdf5,
    ".mat": _open_mat,
}
