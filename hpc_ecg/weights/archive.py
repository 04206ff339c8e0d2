"""Open a `.pt` file without running anything in it.

A `.pt` is a zip: `<name>/data.pkl`, and below `<name>/data/` the bytes of each storage. Three
checks: the zip's directory must agree with the file, the pickle is read as data (`unpickle.py`),
and every tensor lies within its storage, whose checksum is the archive's. Python's `zipfile` builds
an object for everything that a directory claims, and trusts much of it; this reader accepts only
what torch writes: one folder of uncompressed members that do not overlap.
"""

import struct
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

from hpc_ecg.weights.stored_tensor import ByteRange, DamagedError, map_file, one_line_errors
from hpc_ecg.weights.unpickle import RefusedError, read_pickle

# The records of a zip: a member's header, its entry in the directory, the end of the directory,
# and the zip64 end, which torch writes too and a locator points at.
HEADER = struct.Struct("<4s4xH16x2H")  # magic, method, lengths of name and extra
ENTRY = struct.Struct("<4s4x2H4x3I4H6xI")  # magic, flags, method, crc, 2 sizes, 3 lengths, disk, at
END, LOCATOR, END64 = (struct.Struct(layout) for layout in ("<4s4H2IH", "<4s4xQ4x", "<4s12x2I4Q"))
MAX_MEMBERS = 1 << 14
PICKLE, BYTE_ORDER = "data.pkl", "byteorder"


class Member(NamedTuple):
    """An entry of the zip's directory."""

    name: str
    size: int
    crc32: int
    header: int
    """Where its own header starts; its bytes follow."""


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a `.pt` file, with StoredTensor for tensors and Placeholder for numpy
    objects.

    ValueError: not a torch file, damaged, or its pickle needs more than tensors, plain containers
    and numpy arrays.
    """
    with one_line_errors(path):
        members = _read_zip(path)
        try:
            content = _read_content(members)
        except RefusedError as error:
            raise ValueError(
                "refused, nothing in it was run: it holds more than tensors and plain containers "
                f"({error}); take the file from its publisher"
            ) from None
        except DamagedError:
            raise
        except Exception as error:  # damage inside surfaces as any type of error
            reason = str(error)[:100] or type(error).__name__
            raise ValueError(f"damaged torch file ({reason}); copy it again") from None
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict at the top, got {type(content).__name__}")
        return content


def _read_content(members: dict[str, ByteRange]) -> Any:
    for name in (PICKLE, BYTE_ORDER):
        if name in members:
            members[name].check(f"damaged torch file: {name}")
    pickle, order = members[PICKLE], members.get(BYTE_ORDER)
    data = pickle.file
    if order and data[order.start : min(order.end, order.start + 7)] != b"little":
        raise DamagedError("written on a big-endian machine; save it again on a little-endian one")
    with memoryview(data) as whole, whole[pickle.start : pickle.end] as view:
        return read_pickle(view, members)


def _read_zip(path: Path) -> dict[str, ByteRange]:
    """The bytes of each member by its name below the archive's folder."""
    with path.open("rb") as opened:
        head = opened.read(64)
    if not head:
        raise ValueError("the file is empty; copy it again")
    if head[:4] != b"PK\x03\x04":
        raise ValueError(_describe_foreign(head))
    file = map_file(path)
    try:
        members, end = _read_directory(file)
    except DamagedError:
        raise
    except (ValueError, OverflowError, struct.error):
        raise ValueError(
            f"the archive is cut short or damaged ({len(file)} bytes); copy it again"
        ) from None
    total = sum(member.size for member in members)
    if total > len(file):
        raise ValueError(f"its members claim {total} bytes, the file has {len(file)}; refused")
    return _locate(file, _by_name(members), end)


def _read_directory(file: mmap) -> tuple[list[Member], int]:
    """The members that the zip's directory lists, and where the directory starts."""
    at = len(file) - END.size
    magic, disk, first, on_disk, count, size, start, comment = END.unpack_from(file, at)
    if magic != b"PK\x05\x06" or comment:
        raise ValueError("no directory at its end")
    if file[at - LOCATOR.size : at - LOCATOR.size + 4] == b"PK\x06\x07":
        _, at = LOCATOR.unpack_from(file, at - LOCATOR.size)
        magic, disk, first, on_disk, count, size, start = END64.unpack_from(file, at)
    if disk or first or on_disk != count or start + size != at:
        raise ValueError("in several parts")
    if count > MAX_MEMBERS:
        raise DamagedError(f"holds {count} members, far more than torch writes; refused")
    members, at, end = [], start, at
    for _ in range(count):
        magic, flags, method, crc32, packed, size, *lengths, disk, header = ENTRY.unpack_from(
            file, at
        )
        if magic != b"PK\x01\x02" or disk:
            raise ValueError("no entry")
        at += ENTRY.size
        name = file[at : at + lengths[0]].decode("utf-8", "replace")
        if method or packed != size or flags & 1:
            raise DamagedError(
                f"{name[:80]} is {'encrypted' if flags & 1 else 'compressed'} "
                f"({packed} -> {size} bytes), which torch never does; refused"
            )
        members.append(Member(name, size, crc32, header))
        at += sum(lengths)
    if at != end:
        raise ValueError("its directory ends elsewhere")
    return members, start


def _by_name(members: list[Member]) -> dict[str, Member]:
    named: dict[str, Member] = {}
    folders = {member.name.partition("/")[0] for member in members}
    if len(folders) != 1:
        raise ValueError(
            f"a damaged torch file or another archive: a `.pt` holds one folder with {PICKLE}, "
            f"this archive {len(folders)}"
        )
    for member in members:
        name = member.name.partition("/")[2]
        if name in named:
            raise ValueError(f"holds {member.name[:80]} twice; refused")
        if {"", ".."} & set(member.name.removesuffix("/").split("/")):
            raise ValueError(f"{member.name[:80]} would lie outside of its folder; refused")
        named[name] = member
    if PICKLE not in named:
        raise ValueError(f"a damaged torch file or another archive: it holds no {PICKLE}")
    return named


def _locate(file: mmap, members: dict[str, Member], end: int) -> dict[str, ByteRange]:
    """The bytes of each member: after its header, which must agree with the directory, and before
    the next member."""
    located: dict[str, ByteRange] = {}
    # torch can leave out the checksums: then all are 0
    has_checksums = any(member.crc32 for member in members.values())
    for name, member in sorted(members.items(), key=lambda item: -item[1].header):
        at = member.header
        error = ValueError(f"{member.name[:80]} does not lie where the archive says; refused")
        if at + HEADER.size > end:
            raise error
        magic, method, name_length, extra_length = HEADER.unpack_from(file, at)
        name_end = at + HEADER.size + name_length
        header_name = file[at + HEADER.size : name_end].decode("utf-8", "replace")
        start = name_end + extra_length
        agrees = (magic, method, header_name) == (b"PK\x03\x04", 0, member.name)
        if not agrees or start + member.size > end:
            raise error
        crc32 = member.crc32 if has_checksums else None
        located[name] = ByteRange(file=file, start=start, end=start + member.size, crc32=crc32)
        end = at
    return located


def _describe_foreign(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if head[:1] == b"\x80":
        return (
            "an old torch file (before 1.6) or a bare pickle, which cannot be read safely; "
            "save it again with a current torch"
        )
    return f"not a torch file (no zip archive; it starts with {head[:16]!r}); copy it again"
