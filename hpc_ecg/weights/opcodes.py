"""Split a pickle into its opcodes like `pickletools.genops`, but within bounds.

Only opcodes that torch.save writes get an argument, the number of opcodes and the bytes of text are
limited, and a text so long that only a packed array can be meant is not copied.
"""

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
# Opcodes followed by a number; for TEXTS it is the length of the bytes that follow.
ARGUMENTS = {
    **dict.fromkeys(("BININT1", "PROTO", "BINPUT", "BINGET", "SHORT_BINSTRING", "LONG1"), "<B"),
    **dict.fromkeys(("LONG_BINPUT", "LONG_BINGET", "BINUNICODE"), "<I"),
    **{"BININT": "<i", "BININT2": "<H", "BINFLOAT": ">d"},
}
TEXTS = ("BINUNICODE", "SHORT_BINSTRING", "LONG1")
MAX_OPCODES = 1 << 18  # a full-size file with its optimizer has about 30,000
MAX_TOTAL_TEXT, MAX_TEXT, MAX_NAME = 1 << 23, 1 << 16, 200


class RefusedError(ValueError):
    """The pickle uses something that no checkpoint needs."""


@dataclass(slots=True)
class Placeholder:
    """Stands in for a numpy object or a very long text: keeps its name, and an array's shape."""

    name: str
    shape: tuple[int, ...] | None = None


def read_opcodes(data: memoryview) -> Iterator[tuple[str, Any, int]]:
    """Yield (opcode, its argument, its position) up to STOP."""
    at = text = 0
    for _ in range(MAX_OPCODES):
        position, name = at, NAMES.get(data[at], f"byte {data[at]}")
        at += 1
        argument: Any = None
        if layout := ARGUMENTS.get(name):
            (argument,) = struct.unpack_from(layout, data, at)
            at += struct.calcsize(layout)
        if name in TEXTS:
            length, at = argument, at + argument
            if at > len(data):
                raise ValueError("its pickle ends within a text")
            text += length if length <= MAX_TEXT else 0
            if text > MAX_TOTAL_TEXT:
                raise RefusedError(f"it has more than {MAX_TOTAL_TEXT} bytes of text")
            argument = _decode(name, data[at - length : at])
        elif name == "GLOBAL":
            *parts, _ = bytes(data[at : at + MAX_NAME]).split(b"\n", 2)
            if len(parts) < 2:
                raise RefusedError(f"it asks for a name without end, byte {position} of its pickle")
            at += sum(map(len, parts)) + 2
            argument = b" ".join(parts).decode()
        yield name, argument, position
        if name == "STOP":
            return
    raise RefusedError(f"it has more than {MAX_OPCODES} steps")


def _decode(opcode: str, data: memoryview) -> Any:
    if opcode == "LONG1":
        return int.from_bytes(data, "little", signed=True)
    if len(data) > MAX_TEXT:
        return Placeholder("text")
    return str(data, "utf-8" if opcode == "BINUNICODE" else "latin-1")
