"""Array files: .npy, .npz, HDF5 or MATLAB's .mat. An opener yields the arrays of a file, each with
its shape, its type and a function that reads it. Nothing is unpacked to learn a shape.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import scipy.io
from scipy.io.matlab import matfile_version

from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.safe_reading import watch_map

MAX_BYTES = 1 << 28
"""Limit on what is unpacked at once: a .mat, or a chunk of HDF5."""
MAX_ARRAYS, HEADER_BYTES = 1000, 1 << 16
RATE = "curr_sample_rate"
"""The array that holds the samples per second in DeepECG's files."""
NEEDS_EXTRA = "to read it, `pip install 'hpc-ecg[formats]'`"

_MATLAB = {"logical": "u1", "double": "f8", "single": "f4"} | {
    f"{u}int{n}": f"{u or 'i'}{n // 8}" for u in ("", "u") for n in (8, 16, 32, 64)
}


class StoredArray(NamedTuple):
    """An array in an open file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | tuple[()]], np.ndarray]
    """Read the item at an index: a row number, or () for the whole array."""
    by_row: bool = True
    """Whether one row can be read without the others."""


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The small numeric arrays of a .mat among `names`, as float64."""
    with _open_mat(path, "") as arrays:
        return {
            name: np.asarray(array.read(()), np.float64)
            for name, array in arrays.items()
            if name in names and array.dtype.kind in "iuf" and math.prod(array.shape) < 1e4
        }


@contextmanager
def _open_npy(path: Path, _name: str) -> Iterator[dict[str, StoredArray]]:
    with path.open("rb") as file:
        if file.read(1) == b"\x93":
            file.seek(0)
            _npy_header(file)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise RecordError("unreadable", f"expected an array, got {type(array).__name__}")
    watch_map(str(path), array.base)
    yield {"": StoredArray(array.shape, array.dtype, array.__getitem__)}


@contextmanager
def _open_npz(path: Path, name: str) -> Iterator[dict[str, StoredArray]]:
    with np.load(path, allow_pickle=False) as archive:

        def stored(key: str) -> StoredArray:
            with archive.zip.open(f"{key}.npy") as member:
                shape, dtype = _npy_header(member)
            return StoredArray(shape, dtype, lambda index: archive[key][index], by_row=False)

        _check_count(len(archive.files))
        wanted = {name, RATE} if name in archive.files else set(archive.files)
        yield {key: stored(key) for key in archive.files if key in wanted}


@contextmanager
def _open_hdf5(path: Path, name: str) -> Iterator[dict[str, StoredArray]]:
    try:
        import h5py
    except ImportError:
        raise RecordError("unreadable", NEEDS_EXTRA) from None
    with h5py.File(path, "r", locking=False) as file:  # shared disks often lack locks
        names = [key for key in (name, RATE) if key in file]

        def add(key: str) -> None:
            _check_count(len(names) + 1)
            names.append(key)

        if name not in file:
            names.clear()
            file.visit(add)
        datasets = {key: file[key] for key in names if isinstance(file[key], h5py.Dataset)}
        for key, data in datasets.items():
            if data.is_virtual or data.external or data.file.filename != file.filename:
                raise RecordError("unreadable", f"{key}: its data lie in another file; copy them")
            if np.prod(data.chunks or (0,), dtype=float) * data.dtype.itemsize > MAX_BYTES:
                raise RecordError("unreadable", f"{key}: chunks of {data.chunks} are too large")
        yield {
            key: StoredArray(data.shape or (), data.dtype, data.__getitem__)
            for key, data in datasets.items()
        }


@contextmanager
def _open_mat(path: Path, _name: str) -> Iterator[dict[str, StoredArray]]:
    if path.stat().st_size > MAX_BYTES:
        raise RecordError("unreadable", f"more than {MAX_BYTES >> 20} MB; save it as .npy or HDF5")
    content = path.read_bytes()
    version, _ = matfile_version(io.BytesIO(content))
    if version == 2:
        text = "a MATLAB 7.3 file, which is HDF5: save it with -v7, or name it .h5 (axes reversed)"
        raise RecordError("unreadable", text)
    if version == 1:
        _check_inflated(content)

    def stored(key: str, shape: tuple[int, ...], kind: str) -> StoredArray:
        def read(index: int | tuple[()]) -> np.ndarray:
            return scipy.io.loadmat(io.BytesIO(content), variable_names=[key])[key][index]

        return StoredArray(shape, np.dtype(_MATLAB.get(kind, "O")), read, by_row=False)

    listed = scipy.io.whosmat(io.BytesIO(content))
    arrays = {name: stored(name, shape, kind) for name, shape, kind in listed}
    if list(arrays) == ["val"]:
        raise RecordError("not found", f"its header {path.stem}.hea is not beside it")
    yield arrays


def _check_count(num_arrays: int) -> None:
    if num_arrays > MAX_ARRAYS:
        raise RecordError("unreadable", f"at most {MAX_ARRAYS} arrays of a file are read")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type, without reading more than HEADER_BYTES."""
    start = io.BytesIO(file.read(HEADER_BYTES))
    major, _ = np.lib.format.read_magic(start)
    length = int.from_bytes(start.getvalue()[8 : 10 if major == 1 else 12], "little")
    if length > HEADER_BYTES - 12:
        most = f"at most {HEADER_BYTES >> 10} kB are read"
        raise RecordError("unreadable", f"an array header of {length} bytes; {most}")
    shape, _, dtype = getattr(np.lib.format, f"read_array_header_{major}_0")(start)
    return shape, dtype


def _check_inflated(content: bytes) -> None:
    """Raise RecordError if the compressed parts of a MATLAB 5 file unpack to over MAX_BYTES."""
    byte_order, offset, budget = ">" if content[126:128] == b"MI" else "<", 128, MAX_BYTES
    num_arrays = 0
    while offset + 8 <= len(content):
        _check_count(num_arrays := num_arrays + 1)
        kind, size = struct.unpack_from(f"{byte_order}2I", content, offset)
        if kind == 15:  # miCOMPRESSED
            inflate = zlib.decompressobj()
            packed = content[offset + 8 : offset + 8 + size]
            budget -= len(inflate.decompress(packed, budget))
            if inflate.unconsumed_tail or budget <= 0:
                raise RecordError("unreadable", f"unpacks to more than {MAX_BYTES >> 20} MB")
        offset += 8 + size


OPENERS = {".npy": _open_npy, ".npz": _open_npz, ".mat": _open_mat}
OPENERS |= dict.fromkeys((".h5", ".hdf5"), _open_hdf5)
