"""Read a safetensors file: its metadata, and its tensors without copying them.

The format holds no code. This guards against a header that is false, or made to take memory and
time.
"""

import hashlib
import json
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hpc_ecg.hashing import CHANGED
from hpc_ecg.safe_reading import parse_json
from hpc_ecg.weights.stored_tensor import MAX_AXES, ByteRange, StoredTensor, map_file

DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool"},
}
MAX_HEADER = 1 << 20
DIGEST = "sha256"


def digest_of(header: dict[str, Any], tensors: bytes | memoryview) -> str:
    """The SHA-256 that our file states in its metadata: of all but itself."""
    texts = {key: text for key, text in header["__metadata__"].items() if key != DIGEST}
    rest = json.dumps(header | {"__metadata__": texts}, sort_keys=True)
    digest = hashlib.sha256(rest.encode())
    digest.update(tensors)
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of the file. The library checks that the tensors lie within the file,
    side by side; the offsets are then taken from the header. ValueError: damaged, refused, or
    changed since we wrote it."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > min(MAX_HEADER, path.stat().st_size):
        raise ValueError(f"damaged safetensors file (a header of {length} bytes); refused")
    try:
        with safe_open(str(path), framework="numpy") as library:
            metadata = library.metadata() or {}
        file = map_file(path)
        header = parse_json(file[8 : 8 + length])
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"damaged safetensors file ({error}); copy it again") from None
    if "architecture" in metadata and DIGEST in metadata:
        with memoryview(file) as whole, whole[8 + length :] as tensors:
            if digest_of(header, tensors) != metadata[DIGEST]:
                raise ValueError(CHANGED)
    header.pop("__metadata__", None)
    return metadata, {key: _tensor(file, 8 + length, key, header[key]) for key in header}


def _tensor(file: mmap, start: int, key: str, entry: dict[str, Any]) -> StoredTensor:
    begin, end = (start + offset for offset in entry["data_offsets"])
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    if dtype is None:
        raise ValueError(f"tensors of type {entry['dtype']} are not weights of this model")
    if len(shape) > MAX_AXES:
        raise ValueError(f"{key} has {len(shape)} axes; refused")
    return StoredTensor(
        storage=ByteRange(file=file, start=begin, end=end),
        dtype=dtype,
        shape=shape,
        strides=tuple(prod(shape[axis + 1 :]) for axis in range(len(shape))),
        offset=begin,
    )
