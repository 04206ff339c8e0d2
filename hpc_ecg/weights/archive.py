"""Open a `.pt` file without running anything in it, and without reading more than is asked for.

A `.pt` is a zip: `<name>/data.pkl`, and below `<name>/data/` the bytes of each storage. First
fence: the zip's directory, held against the file before anything else is read (`zipped.py`).
Second: the pickle is read as data (`pickles.py`). Third: every tensor lies within its own bytes,
whose checksum is the archive's.
Whatever goes wrong becomes one line with the path.
"""

from pathlib import Path
from typing import Any

from hpc_ecg.weights.pickles import RefusedError, read_pickle
from hpc_ecg.weights.stored import CHANGED, Block, refusing
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

    with memoryview(data) as whole, whole[pickle.start : pickle.end] as view:
        return read_pickle(view, blocks)
