"""Tensors in a memory-mapped file; their values are read only when asked for.

Nothing here imports torch at the top, so that a file can be inspected in a moment. To hold no
tensor in memory twice, copy it and then drop its pages.
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

from hpc_ecg.safe_reading import watch_map

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "bool")
# numpy has no bfloat16: its bits are read as uint16 and widened to float32.
DTYPES = {name: np.dtype("uint16" if name == "bfloat16" else name) for name in (*FLOATS, *INTEGERS)}
CHUNK = 1 << 20
MAX_AXES = 8
MAX_MESSAGE = 300


class DamagedError(ValueError):
    """A damaged file; the message needs no further explanation."""


def map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    watch_map(str(path), data)
    return data


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """A range of bytes in a file, with the checksum that the file states for it, if any."""

    file: mmap.mmap
    start: int
    end: int
    crc32: int | None = None

    @property
    def size(self) -> int:
        return self.end - self.start

    def check(self, name: str) -> None:
        """DamagedError unless the checksum matches."""
        cache = self.__dict__  # many tensors may share the range; cached_property would lock
        if self.crc32 is not None and "intact" not in cache:
            with memoryview(self.file) as whole, whole[self.start : self.end] as view:
                cache["intact"] = zlib.crc32(view) == self.crc32
        if not cache.get("intact", True):
            raise DamagedError(
                f"{name} is not what was written (its checksum, CRC-32, differs); "
                "copy the file again"
            )


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    storage: ByteRange = field(repr=False)
    """The bytes that it must lie within."""
    dtype: str
    """torch's name for it: float32, bfloat16 …"""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    offset: int
    """Position of the first element, in bytes from the start of the file."""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @cached_property
    def end(self) -> int:
        """Where its last element ends, in bytes from the start of the file."""
        axes = zip(self.shape, self.strides, strict=True)
        last = sum((size - 1) * stride for size, stride in axes)
        return self.offset + (last + 1) * DTYPES[self.dtype].itemsize if self.numel else self.offset

    def overlaps_itself(self) -> bool:
        """Whether two elements share the same bytes (a stride is too small)."""
        reach = 1  # elements spanned by the axes seen so far
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size > 1 and stride < reach:
                return True
            reach += (size - 1) * stride
        return False

    def array(self) -> NDArray[Any]:
        """Its values without a copy, read-only (bfloat16: a copy, widened to float32)."""
        return self._widened(self._raw())

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Its values in C order as flat arrays of `CHUNK` elements (bfloat16 as float32)."""
        flat = self._raw().reshape(-1)
        for start in range(0, flat.size, CHUNK):
            yield self._widened(flat[start : start + CHUNK])

    def to_torch(self) -> "Tensor":
        """A copy as a torch tensor in the file's dtype."""
        import torch

        tensor = torch.from_numpy(np.array(self._raw(), order="C"))
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def is_finite(self) -> bool:
        """Whether every value is finite, and small enough for float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            for values in self.chunks():
                chunk = values.astype(np.float32) if self.dtype == "float64" else values
                # a finite sum has only finite terms, and is much faster than checking each
                if not np.isfinite(chunk.sum()) and not np.isfinite(chunk).all():
                    return False
        return True

    def drop_pages(self) -> None:
        """Free the memory of the file's pages read so far; they are read again when needed."""
        self.storage.file.madvise(mmap.MADV_DONTNEED)

    def _raw(self) -> NDArray[Any]:
        dtype = DTYPES[self.dtype]
        # the stride of an axis of size 1 means nothing, and may be too large for numpy
        strides = [
            dtype.itemsize * (stride if size > 1 else 1)
            for stride, size in zip(self.strides, self.shape, strict=True)
        ]
        return np.ndarray(self.shape, dtype, self.storage.file, self.offset, strides)

    def _widened(self, raw: NDArray[Any]) -> NDArray[Any]:
        if self.dtype != "bfloat16":
            return raw
        return (raw.astype(np.uint32) << 16).view(np.float32)


def check_storage(tensors: dict[str, StoredTensor]) -> list[str]:
    """Check that no two elements of the tensors (of one file) share bytes, and all checksums.

    Returns the names of tensors with a value that float32 cannot hold. ValueError names a tensor
    that fails.
    """
    for name, tensor in tensors.items():
        if tensor.overlaps_itself():
            raise ValueError(
                f"{name} claims shape {tensor.shape} by counting elements twice "
                f"(strides {tensor.strides}); refused"
            )
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].end))
    for (name, tensor), (other, after) in pairwise(ordered):
        if after.offset < tensor.end and after.numel:
            raise ValueError(f"{name} and {other} lie on the same bytes; refused")
    workers, items = min(os.cpu_count() or 1, 8), list(tensors.items())
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(_not_finite, (items[first::workers] for first in range(workers))))
    items[0][1].drop_pages()
    return list(chain.from_iterable(parts))


def _not_finite(tensors: list[tuple[str, StoredTensor]]) -> list[str]:
    names = []
    for name, tensor in tensors:
        tensor.storage.check(name)
        if not tensor.is_finite():
            names.append(name)
    return names


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error about a file into a ValueError of one short, printable line that starts with
    its path, whatever the file contains."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = error.strerror or "" if isinstance(error, OSError) else str(error)
        line = _printable(message.removeprefix(f"{path}: ")[: MAX_MESSAGE + 1])
        if len(line) > MAX_MESSAGE:
            line = line[: MAX_MESSAGE - 2] + " …"
        raise ValueError(f"{_printable(str(path))}: {line}") from None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
