"""A safetensors file: metadata, and tensors where they lie. It holds no code by design; what is
guarded against here is a header that lies, or one made to take memory and time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hpc_ecg.weights.stored import (
    LONGEST_AXES,
    Block,
    MappedFile,
    StoredTensor,
    contiguous,
    refusing,
)

DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool"},
}
LONGEST_HEADER = 1 << 20


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of the file, mapped. The library checks the header (tensors lie within
    the file, side by side); the offsets are then taken from it. ValueError: damaged or refused."""
    with refusing(path):
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > min(LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"damaged safetensors file (a header of {length} bytes); refused")
        try:
            with safe_open(str(path), framework="numpy") as library:
                metadata = library.metadata() or {}
            file = MappedFile(path)
            header = from_json(file.bytes[8 : 8 + length])
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"damaged safetensors file ({error}); copy it again") from None
        header.pop("__metadata__", None)
        return metadata, {key: _stored(file, 8 + length, key, header[key]) for key in header}


def from_json(text: str | bytes) -> Any:
    """ValueError: not JSON, a key twice, nested too deep."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _stored(file: MappedFile, start: int, key: str, about: Mapping[str, Any]) -> StoredTensor:
    begin, end = (start + offset for offset in about["data_offsets"])
    dtype, shape = DTYPES.get(about["dtype"]), tuple(about["shape"])
    if dtype is None:
        raise ValueError(f"tensors of type {about['dtype']} are not weights of this model")
    if len(shape) > LONGEST_AXES:
        raise ValueError(f"{key} has {len(shape)} axes; refused")
    block = Block(file=file, start=begin, end=end)
    return StoredTensor(
        block=block, dtype=dtype, shape=shape, strides=contiguous(shape), offset=begin
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("it names a thing twice")
    return dict(pairs)
