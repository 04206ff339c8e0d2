"""Hashes of integers for random numbers, and digests of files for what results rest on.

Integers have the same bits in numpy and in torch, on every device.

The random numbers of dropout, augmentation and sampling are hashes of counters: pure functions,
with no generator state to save. Arguments are int64 arrays or tensors, whose arithmetic wraps
around modulo 2^64 in both libraries; view numpy's uint64 as int64 first.

A *record* is a JSON file with its own SHA-256 and, in `digests`, those of files beside or below it.
Files that version 0.1 wrote have neither: they are read, and count as unverified.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpc_ecg.atomic_io import write_json
from hpc_ecg.safe_reading import read_json, sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Int64 = TypeVar("Int64", "NDArray[np.int64]", "Tensor")

# The constants of SplitMix64 (Steele, Lea and Flood 2014) as signed numbers.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

DIGESTS, SHA256 = "digests", "sha256"
CHANGED = "has changed since it was written (SHA-256); restore it, or make it again"


def splitmix64(x: Int64) -> Int64:
    """Hash neighbouring numbers to unrelated ones: the finalizer of SplitMix64, a bijection."""
    x = (x ^ shift_right(x, 30)) * MULTIPLIERS[0]
    x = (x ^ shift_right(x, 27)) * MULTIPLIERS[1]
    return x ^ shift_right(x, 31)


def multiply_shift(x: Int64) -> Int64:
    """One cheap round of hashing; after two rounds neighbouring numbers are unrelated."""
    x = (x ^ GOLDEN_GAMMA) * MULTIPLIERS[0]
    return (x ^ (x >> 32)) * MULTIPLIERS[1]


def shift_right(x: Int64, num_bits: int) -> Int64:
    """Shift in zeros, as for an unsigned number; `>>` alone would repeat the sign bit."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def write_record(path: Path, content: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """Write a record of `content` and the digests of `files`."""
    digests = {file.relative_to(path.parent).as_posix(): sha256_of(file) for file in files}
    record = {**content, DIGESTS: digests}
    write_json(path, record | {SHA256: sha256_of_value(record)} if digests else content)


def read_record(path: Path, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file of a run or sweep, without its own digest. ValueError: damaged,
    changed since it was written, or a field is missing or not of its type in `kinds` (a type, or
    the kinds of an object's fields)."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it holds no object; restore it")
    stated = record.pop(SHA256, None)
    if (stated is not None or DIGESTS in record) and stated != sha256_of_value(record):
        raise ValueError(f"{path} {CHANGED}")
    check_kinds(path, record, {f"{DIGESTS}?": dict, **(kinds or {})})
    return record


def check_kinds(path: Path, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """ValueError unless each of these fields of a file is there and of its type. A kind is a type,
    `[kind]` for a list, or the kinds of an object's fields: `*` is any of them, and one whose name
    ends with ? may be absent."""
    for key, kind in kinds.items():
        for name in values if key == "*" else [key.removesuffix("?")]:
            if name in values or not key.endswith("?"):
                _check_kind(path, name, [values[name]] if name in values else [], kind)


def _check_kind(path: Path, name: str, values: list[Any], kind: Any) -> None:
    """`values`: all that stand under this name; [] if the name is absent."""
    type_of: Any = dict if isinstance(kind, Mapping) else list if isinstance(kind, list) else kind
    for value in values or [None]:
        if not values or not isinstance(value, type_of) or isinstance(value, bool):
            raise ValueError(f"{path} is damaged: {name} cannot be {str(value)[:40]!r}; restore it")
        if isinstance(kind, Mapping):
            check_kinds(path, value, kind)
        elif isinstance(kind, list) and value:
            _check_kind(path, name, value, kind[0])


def check_file(file: Path, record: Path) -> bool:
    """Whether a record vouches for a file. ValueError: the file or the record has changed."""
    digests = read_record(record).get(DIGESTS, {}) if record.exists() else {}
    expected = digests.get(file.relative_to(record.parent).as_posix())
    if expected is not None and (not file.is_file() or sha256_of(file) != expected):
        raise ValueError(f"{file} {CHANGED}")
    return expected is not None


def check_record(record: Path, leave_out: str = "") -> bool:
    """Whether a record vouches for any files. ValueError: one of them, or itself, has changed."""
    names = read_record(record).get(DIGESTS, {})
    for name in names:
        if name != leave_out:
            check_file(record.parent / name, record)
    return bool(names)


def sha256_of_value(value: Any) -> str:
    """SHA-256 of a value of JSON, whatever the order of its keys."""
    plain = json.loads(json.dumps(value, default=str))  # keys become text before they are sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
