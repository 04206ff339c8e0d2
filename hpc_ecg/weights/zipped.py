"""The zip around a `.pt`: where its members' bytes lie, held against the file, nothing unpacked.

Python's `zipfile` makes an object of everything that a directory claims and takes much on trust;
here only what torch writes is let in: one folder of stored members, each of which its own header
confirms, apart from all others.
"""

import struct
from pathlib import Path
from typing import NamedTuple

from hpc_ecg.weights.stored import Block, MappedFile

# A zip's records: the header before a member's bytes, its entry in the directory, the directory's
# end, and that end with wide numbers, which torch writes too and a locator points at.
LOCAL = struct.Struct("<4s4xH16x2H")  # magic, method, lengths of name and of extra
ENTRY = struct.Struct("<4s4x2H4x3I4H6xI")  # magic, flags, method, crc, 2 sizes, 3 lengths, disk, at
END, LOCATOR, END64 = (struct.Struct(layout) for layout in ("<4s4H2IH", "<4s4xQ4x", "<4s12x2I4Q"))
MOST_MEMBERS = 1 << 14
PICKLE = "data.pkl"


class Member(NamedTuple):
    """An entry of the zip's directory."""

    name: str
    size: int
    crc32: int
    header: int
    """Where its own header starts; its bytes follow."""


class DamagedError(ValueError):
    """Says by itself what is wrong with the file."""


def check_zip(path: Path) -> dict[str, Block]:
    """The bytes of each member below the archive's one folder, by name. ValueError unless the file
    is a zip of stored (not compressed) members that lie apart."""
    with path.open("rb") as opened:
        head = opened.read(64)
    if not head:
        raise ValueError("the file is empty; copy it again")
    if head[:4] != b"PK\x03\x04":
        raise ValueError(_kind_of(head))
    file = MappedFile(path)
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
    return _blocks(file, _by_name(members), end)


def _read_directory(file: MappedFile) -> tuple[list[Member], int]:
    """The members as the zip's directory names them, and where it starts."""
    data, at = file.bytes, len(file) - END.size
    magic, disk, first, here, count, size, start, comment = END.unpack_from(data, at)
    if magic != b"PK\x05\x06" or comment:
        raise ValueError("no directory at its end")
    if data[at - LOCATOR.size : at - LOCATOR.size + 4] == b"PK\x06\x07":
        _, at = LOCATOR.unpack_from(data, at - LOCATOR.size)
        magic, disk, first, here, count, size, start = END64.unpack_from(data, at)
    if disk or first or here != count or start + size != at:
        raise ValueError("in several parts")
    if count > MOST_MEMBERS:
        raise DamagedError(f"holds {count} members, of which torch never writes so many; refused")
    members, at, end = [], start, at
    for _ in range(count):
        magic, flags, method, crc32, packed, size, *lengths, disk, header = ENTRY.unpack_from(
            data, at
        )
        if magic != b"PK\x01\x02" or disk:
            raise ValueError("no entry")
        at += ENTRY.size
        name = data[at : at + lengths[0]].decode("utf-8", "replace")
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
            f"a damaged torch file, or none: a `.pt` holds one folder with {PICKLE}, "
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
        raise ValueError(f"a damaged torch file, or none: no {PICKLE} in its archive")
    return named


def _blocks(file: MappedFile, members: dict[str, Member], end: int) -> dict[str, Block]:
    """Where the members' bytes lie: after its header, which must say the same as the directory,
    and before the next member's."""
    blocks: dict[str, Block] = {}
    # torch can be told to leave out the checksums: then they are all 0
    summed = any(member.crc32 for member in members.values())
    for name, member in sorted(members.items(), key=lambda item: -item[1].header):
        at = member.header
        wrong = ValueError(f"{member.name[:80]} does not lie where the archive says; refused")
        if at + LOCAL.size > end:
            raise wrong
        magic, method, named, extra = LOCAL.unpack_from(file.bytes, at)
        start = at + LOCAL.size + named
        own_name = file.bytes[at + LOCAL.size : start].decode("utf-8", "replace")
        start += extra
        says_the_same = (magic, method, own_name) == (b"PK\x03\x04", 0, member.name)
        if not says_the_same or start + member.size > end:
            raise wrong
        crc32 = member.crc32 if summed else None
        blocks[name] = Block(file=file, start=start, end=start + member.size, crc32=crc32)
        end = at
    return blocks


def _kind_of(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if head[:1] == b"\x80":
        return (
            "an old torch file (before 1.6) or a bare pickle, which cannot be read safely; "
            "save it again with a current torch"
        )
    return f"not a torch file (no zip archive; it starts with {head[:16]!r}); copy it again"
