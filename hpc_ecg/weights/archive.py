"""Open a `.pt` file without running anything in it, and without reading more than is asked for.

A `.pt` is a zip: `<name>/data.pkl`, and below `<name>/data/` the bytes of each storage. First
fence: the zip's directory, held against the file before anything else is read (`zipped.py`).
Second: the pickle is read as data (`pickles.py`). Third: every tensor lies within its own bytes,
whose checksum is the archive's.
Whatever goes wrong becomes one line with the path.
"""

from math import prod
from pathlib import Path
from typing import Any

from hpc_ecg.weights.pickles import RefusedError, Storage, read_pickle
from hpc_ecg.weights.stored import (
    CHANGED,
    DTYPES,
    LONGEST_AXES,
    Block,
    StoredTensor,
    refusing,
)
from hpc_ecg.weights.zipped import PICKLE, DamagedError, check_zip

BYTE_ORDER = "byteorder"


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a `.pt` file; its tensors are StoredTensor, its numpy objects Inert.

    ValueError: not such a file, damaged, or its pickle asks for anything but tensors, plain
    containers and numpy arrays.
    """
    with refusing(path):
        blocks = check_zip(path)
        try:
            content = _content(blocks)
        except RefusedError as error:
            raise ValueError(
                "refused, nothing of it was run: it holds more than tensors and plain containers "
                f"({error}); take the file from its publisher"
            ) from None
        except DamagedError:
            raise
        except Exception as error:  # any damage inside surfaces as another type of error
            what = str(error)[:100] or type(error).__name__
            raise ValueError(f"damaged torch file ({what}); copy it again") from None
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict at the top, got {type(content).__name__}")
        return content


def _content(blocks: dict[str, Block]) -> Any:
    for name in (PICKLE, BYTE_ORDER):
        if name in blocks and not blocks[name].is_intact():
            raise DamagedError(f"damaged torch file: {name} is {CHANGED}")
    pickle, order = blocks[PICKLE], blocks.get(BYTE_ORDER)
    data = pickle.file.bytes
    if order and data[order.start : min(order.end, order.start + 7)] != b"little":
        raise DamagedError("written on a big-endian machine; save it again on another")

    def open_storage(dtype: str, key: str, numel: int) -> Storage:
        return _open_storage(blocks, dtype, key, numel)

    with memoryview(data) as whole, whole[pickle.start : pickle.end] as view:
        return read_pickle(view, open_storage)


def _open_storage(blocks: dict[str, Block], dtype: str, key: str, numel: int) -> Storage:
    name, block = f"data/{key[:40]}", blocks.get(f"data/{key}")
    if block is None:
        raise DamagedError(f"no {name} in the archive; copy it again")
    itemsize, size = DTYPES[dtype].itemsize, block.end - block.start
    if numel * itemsize != size:
        raise DamagedError(
            f"{name} should hold {str(numel)[:30]} values of {dtype}, the file holds only "
            f"{size} bytes of it; refused"
        )

    def tensor(first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> StoredTensor:
        whole = [type(n) is int and 0 <= n < 2**62 for n in (first, *shape, *strides)]
        if (
            not all(whole)
            or len(shape) != len(strides)
            or len(shape) > LONGEST_AXES
            or (0 in shape and prod(size or 1 for size in shape) >= 2**31)
        ):
            raise RefusedError(f"a tensor in {name} has no possible shape and strides")
        offset = block.start + first * itemsize
        view = StoredTensor(block=block, dtype=dtype, shape=shape, strides=strides, offset=offset)
        if max(view.offset, view.end) > block.end:
            raise DamagedError(
                f"a tensor in {name} claims shape {shape}, the file holds only "
                f"{size} bytes of it; refused"
            )
        return view

    return Storage(dtype, numel, tensor)
