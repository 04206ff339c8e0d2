"""Tensors where they lie: in a file that is mapped, read when they are asked for.

No torch here, so that a file can be looked at in a moment. Nothing of the file is held twice: who
copies a tensor out may `drop` its pages again.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# numpy has no bfloat16: its bits are read as whole numbers and widened.
DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    **{name: np.dtype(name) for name in ("int8", "uint8", "int16", "int32", "int64", "bool")},
    "bfloat16": np.dtype("uint16"),
}
FLOATS = ("float16", "bfloat16", "float32", "float64")
CHUNK = 1 << 20
LONGEST_AXES = 8
LONGEST_MESSAGE = 300
CHANGED = "not what was written (its checksum, CRC-32, differs); copy the file again"


class MappedFile:
    """A file's bytes, mapped read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.bytes)

    def drop(self) -> None:
        """Give the pages that were read back to the system; they are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.bytes.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A run of bytes of a file, with the checksum that the file states for it, if it does."""

    file: MappedFile
    start: int
    end: int
    crc32: int | None = None

    def is_intact(self) -> bool:
        known = self.__dict__  # many tensors may lie in one block; cached_property would lock
        if self.crc32 is not None and "intact" not in known:
            with memoryview(self.file.bytes) as whole, whole[self.start : self.end] as view:
                known["intact"] = zlib.crc32(view) == self.crc32
        return known.get("intact", True)


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    block: Block = field(repr=False)
    """The bytes that it may lie in."""
    dtype: str
    """torch's name of it: float32, bfloat16 …"""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    offset: int
    """Of the first element, in bytes from the start of the file."""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @cached_property
    def end(self) -> int:
        """Where its last element ends in the file."""
        last = sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        return self.offset + (last + 1) * DTYPES[self.dtype].itemsize if self.numel else self.offset

    def overlaps_itself(self) -> bool:
        """Whether two of its elements are one and the same place (a stride that is too small)."""
        reach = 1  # places from the first element to the last, over the axes seen so far
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size > 1 and stride < reach:
                return True
            reach += (size - 1) * stride
        return False

    def array(self) -> NDArray[Any]:
        """Its values without a copy, read-only (bfloat16: widened to float32, a copy)."""
        raw = self._raw()
        return _widened(raw) if self.dtype == "bfloat16" else raw

    def to_torch(self) -> "Tensor":
        """A tensor in memory of its own, in the file's dtype."""
        import torch

        tensor = torch.from_numpy(np.array(self._raw(), order="C"))
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def is_finite(self) -> bool:
        """Whether float32 can hold all its values: none is NaN or infinite, or too large for it."""
        flat = self._raw().reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, flat.size, CHUNK):
                chunk = flat[start : start + CHUNK]
                if self.dtype in ("bfloat16", "float64"):
                    wide = self.dtype == "float64"
                    chunk = chunk.astype(np.float32) if wide else _widened(chunk)
                # a finite sum has only finite terms, and is much faster than looking at each
                if not np.isfinite(chunk.sum()) and not np.isfinite(chunk).all():
                    return False
        return True

    def _raw(self) -> NDArray[Any]:
        dtype = DTYPES[self.dtype]
        # the stride of an axis of size 1 says nothing, and may be larger than numpy can hold
        strides = [
            dtype.itemsize * (stride if size > 1 else 1)
            for stride, size in zip(self.strides, self.shape, strict=True)
        ]
        return np.ndarray(self.shape, dtype, self.block.file.bytes, self.offset, strides)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a dense array in C order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _widened(bits: NDArray[Any]) -> NDArray[Any]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def check_bytes(tensors: dict[str, StoredTensor]) -> list[str]:
    """ValueError unless each element of the tensors (of one file) has a place of its own and holds
    what was written. Returns the names of those with a value that float32 cannot hold."""
    for name, tensor in tensors.items():
        if tensor.overlaps_itself():
            raise ValueError(
                f"{name} claims shape {tensor.shape} by counting places twice "
                f"(strides {tensor.strides}); refused"
            )
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].end))
    for (name, tensor), (other, after) in pairwise(ordered):
        if after.offset < tensor.end and after.numel:
            raise ValueError(f"{name} and {other} lie on the same bytes; refused")
    workers, items = min(os.cpu_count() or 1, 8), list(tensors.items())
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(_not_finite, (items[first::workers] for first in range(workers))))
    next(iter(tensors.values())).block.file.drop()
    return list(chain.from_iterable(found))


def _not_finite(tensors: list[tuple[str, StoredTensor]]) -> list[str]:
    found = []
    for name, tensor in tensors:
        if not tensor.block.is_intact():
            raise ValueError(f"{name} is {CHANGED}")
        if not tensor.is_finite():
            found.append(name)
    return found


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What is wrong with a file becomes a ValueError of one short line that starts with its path,
    however long or odd what the file says is."""
    try:
        yield
    except (ValueError, OSError) as error:
        what = error.strerror or "" if isinstance(error, OSError) else str(error)
        line = _printable(what.removeprefix(f"{path}: ")[: LONGEST_MESSAGE + 1])
        if len(line) > LONGEST_MESSAGE:
            line = line[: LONGEST_MESSAGE - 2] + " …"
        raise ValueError(f"{_printable(str(path))}: {line}") from None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
