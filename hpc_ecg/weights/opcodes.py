"""A pickle split into its opcodes, as `pickletools.genops` does it, but bounded: only those that
torch.save writes have an argument, there are so many steps and no more, and a text as long as only
packed arrays are stays where it lies.
"""

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
# Opcodes with a number after them; for the three TEXTS it is the length of what follows.
ARGUMENTS = {
    name: struct.Struct(layout)
    for name, layout in {
        **{"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d", "PROTO": "<B"},
        **{"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I"},
        **{"BINUNICODE": "<I", "SHORT_BINSTRING": "<B", "LONG1": "<B"},
    }.items()
}
TEXTS = ("BINUNICODE", "SHORT_BINSTRING", "LONG1")
NUMBERS = ("BININT", "BININT1", "BININT2", "BINFLOAT")
MOST_OPCODES = 1 << 18  # a full-size file with its optimizer has about 30,000
MOST_TEXT, LONGEST_TEXT, LONGEST_NAME = 1 << 23, 1 << 16, 200


class RefusedError(ValueError):
    """The pickle asks for what no checkpoint needs."""


@dataclass(slots=True)
class Inert:
    """Stands in for every numpy object: keeps what it is called, and an array's shape."""

    name: str
    shape: tuple[int, ...] | None = None


def opcodes(data: memoryview) -> Iterator[tuple[str, Any, int]]:
    """(opcode, its argument, its position) up to STOP."""
    at = text = 0
    for _ in range(MOST_OPCODES):
        position, name = at, NAMES.get(data[at], f"byte {data[at]}")
        at += 1
        argument: Any = None
        if name in ARGUMENTS:
            (argument,) = ARGUMENTS[name].unpack_from(data, at)
            at += ARGUMENTS[name].size
        if name in TEXTS:
            length, at = argument, at + argument
            if at > len(data):
                raise ValueError("its pickle ends within a text")
            text += length if length <= LONGEST_TEXT else 0
            if text > MOST_TEXT:
                raise RefusedError(f"it has more than {MOST_TEXT} bytes of text")
            argument = _text(name, data[at - length : at])
        elif name == "GLOBAL":
            *parts, _ = bytes(data[at : at + LONGEST_NAME]).split(b"\n", 2)
            if len(parts) < 2:
                raise RefusedError(f"it asks for a name without end, byte {position} of its pickle")
            at += sum(map(len, parts)) + 2
            argument = b" ".join(parts).decode()
        yield name, argument, position
        if name == "STOP":
            return
    raise RefusedError(f"it has more than {MOST_OPCODES} steps")


def _text(opcode: str, data: memoryview) -> Any:
    if opcode == "LONG1":
        return int.from_bytes(data, "little", signed=True)
    if len(data) > LONGEST_TEXT:
        return Inert("text")
    return str(data, "utf-8" if opcode == "BINUNICODE" else "latin-1")
