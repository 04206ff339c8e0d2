"""Open a `.pt` file without running anything in it, and without reading more than is asked for.

A `.pt` is a zip: `<name>/data.pkl`, and below `<name>/data/` the bytes of each storage. First
fence: the zip's directory, before a byte is unpacked (torch stores, never deflates; members lie
apart). Second: the pickle is read as data (`pickles.py`). Third: every tensor lies within its own
bytes, whose checksum is the archive's.
Whatever goes wrong becomes one line with the path.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

from hpc_ecg.weights.pickles import RefusedError, Storage, read_pickle
from hpc_ecg.weights.stored import CHANGED, DTYPES, Block, MappedFile, StoredTensor

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
PICKLE, BYTE_ORDER = "data.pkl", "byteorder"
LONGEST_AXES = 8


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a `.pt` file; its tensors are StoredTensor, its numpy objects Inert.

    ValueError: not such a file, damaged, or its pickle asks for anything but tensors, plain
    containers and numpy arrays.
    """
    members = check_zip(path)
    archive = _Archive(path, members)
    try:
        content = read_pickle(archive.read(PICKLE), archive.open_storage)
    except RefusedError as error:
        raise ValueError(
            f"{path}: refused, nothing of it was run: it holds more than tensors and plain "
            f"containers ({error}); take the file from its publisher"
        ) from None
    except _DamagedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # any damage inside surfaces as another type of error
        what = str(error)[:100] or type(error).__name__
        raise ValueError(f"{path}: damaged torch file ({what}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict at the top, got {type(content).__name__}")
    return content


def check_zip(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members below the archive's one folder, by name. ValueError unless the file is a zip of
    stored (not compressed) members that lie apart."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path}: the file is empty; copy it again")
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"{path}: {_kind_of(head)}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception:  # zipfile raises many kinds on hostile directories
        raise ValueError(
            f"{path}: the archive is cut short or damaged ({path.stat().st_size} bytes); "
            "copy it again"
        ) from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            how = "encrypted" if member.flag_bits & 1 else "compressed"
            raise ValueError(
                f"{path}: {member.filename} is {how} ({member.compress_size} -> "
                f"{member.file_size} bytes), which torch never does; refused"
            )
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size:
        raise ValueError(
            f"{path}: its members claim {total} bytes, the file has {path.stat().st_size}; refused"
        )
    return _by_name(path, members)


def _by_name(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    named: dict[str, zipfile.ZipInfo] = {}
    folders = {member.filename.partition("/")[0] for member in members}
    if len(folders) != 1:
        raise ValueError(
            f"{path}: a damaged torch file, or none: a `.pt` holds one folder with {PICKLE}, "
            f"this archive {len(folders)}"
        )
    for member in members:
        name = member.filename.partition("/")[2]
        if name in named:
            raise ValueError(f"{path}: holds {member.filename} twice; refused")
        named[name] = member
    if PICKLE not in named:
        raise ValueError(f"{path}: a damaged torch file, or none: no {PICKLE} in its archive")
    return named


class _DamagedError(ValueError):
    """Says by itself what is wrong with the file."""


class _Archive:
    """The members of a checked zip: their bytes, and the storages among them."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        self.file, self.members = MappedFile(path), members
        starts = sorted(member.header_offset for member in members.values())
        if len(set(starts)) < len(starts):
            raise ValueError(f"{path}: two of its members lie on the same bytes; refused")
        self.limit = dict(zip(starts, [*starts[1:], len(self.file)], strict=True))
        order = self.read(BYTE_ORDER) if BYTE_ORDER in members else b"little"
        if order != b"little":
            raise ValueError(f"{path}: written on a big-endian machine; save it again on another")

    def read(self, name: str) -> bytes:
        member = self.members[name]
        block = self.block(member)
        if not block.is_intact():
            raise _DamagedError(f"damaged torch file: {member.filename} is {CHANGED}")
        return self.file.bytes[block.start : block.end]

    def block(self, member: zipfile.ZipInfo) -> Block:
        start = self.start_of(member)
        return Block(file=self.file, start=start, end=start + member.file_size, crc32=member.CRC)

    def start_of(self, member: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin, from its local header; they must end before the next."""
        at = member.header_offset
        magic, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(self.file.bytes, at)
        start = at + LOCAL_HEADER.size + name_length + extra_length
        if magic != b"PK\x03\x04" or start + member.file_size > self.limit[at]:
            raise _DamagedError(f"{member.filename} does not lie where the archive says; refused")
        return start

    def open_storage(self, dtype: str, key: str, numel: int) -> Storage:
        member = self.members.get(f"data/{key}")
        if member is None:
            raise _DamagedError(f"no data/{key[:40]} in the archive; copy it again")
        itemsize, block = DTYPES[dtype].itemsize, self.block(member)
        if numel * itemsize != member.file_size:
            raise _DamagedError(
                f"data/{key[:40]} should hold {numel} values of {dtype}, the file holds only "
                f"{member.file_size} bytes of it; refused"
            )

        def tensor(first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> StoredTensor:
            whole = [type(n) is int and 0 <= n < 2**62 for n in (first, *shape, *strides)]
            if not all(whole) or len(shape) != len(strides) or len(shape) > LONGEST_AXES:
                raise RefusedError(f"a tensor in data/{key[:40]} has no possible shape and strides")
            view = StoredTensor(
                block=block,
                dtype=dtype,
                shape=shape,
                strides=strides,
                offset=block.start + first * itemsize,
            )
            if max(view.offset, view.end) > block.end:
                raise _DamagedError(
                    f"a tensor in data/{key[:40]} claims shape {shape}, the file holds only "
                    f"{member.file_size} bytes of it; refused"
                )
            return view

        return Storage(dtype, numel, tensor)


def _kind_of(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if head[:1] == b"\x80":
        return (
            "an old torch file (before 1.6) or a bare pickle, which cannot be read safely; "
            "save it again with a current torch"
        )
    return f"not a torch file (no zip archive; it starts with {head[:16]!r}); copy it again"
