"""Read files that somebody else may have written or changed: regular ones, bounded, and strict.

What a file says is data: JSON and YAML are refused where parsers would differ or grow.
"""

import ctypes
import hashlib
import json
import math
import os
import re
import signal
import stat
from mmap import mmap
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import yaml

MAX_BYTES, MAX_YAML_BYTES, MAX_YAML_NODES = 1 << 28, 1 << 20, 100_000
MAX_DIGITS = 20

_maps: WeakValueDictionary[str, mmap] = WeakValueDictionary()
"""The files that this process has mapped, by name."""
_set_handler = ctypes.CDLL(None).signal


def check_regular(path: str | Path) -> None:
    """ValueError for a folder, device or pipe: to read one could hang, or never end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError(f"{path} is a folder, a device or a pipe; expected a regular file")


def read_json(path: Path) -> Any:
    """The value in a file of a run; ValueError names a file that is damaged."""
    check_regular(path)
    try:
        return parse_json(read_regular(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and start the run again"
        ) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. ValueError: not JSON, a key twice, nested too deep, or a number
    that is not finite or has more than 20 digits before the point."""
    hooks: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite, "parse_int": _whole}
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("it holds a key twice")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def read_regular(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file. ValueError: a device or pipe, which may never end, or a huge file."""
    status = path.stat()
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR) or status.st_size > max_bytes:
        raise ValueError(f"it is not a regular file of at most {max_bytes:,} bytes")
    return path.read_bytes()


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file. ValueError, without its name: not YAML in UTF-8, nested too deep, or
    with aliases that stand for more than `MAX_YAML_NODES` values (a "billion laughs")."""
    text = read_regular(path, MAX_YAML_BYTES).decode()
    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_YAML_NODES  # counts for an alias inside its own node
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [item for part in parts for item in (part if type(part) is tuple else [part])]
            sizes[id(node)] = 1 + sum(map(size_of, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and size_of(root) > MAX_YAML_NODES:
            raise ValueError("its aliases repeat too many values")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return text


def quote_times(text: str) -> str:
    """Quote what YAML would read as a number to the base of 60: a time such as 12:00:00."""
    for token in reversed([t for t in yaml.scan(text) if isinstance(t, yaml.ScalarToken)]):
        if token.plain and re.fullmatch(r"\d+(:\d+)+", token.value):
            start, end = token.start_mark.index, token.end_mark.index
            text = f"{text[:start]}'{text[start:end]}'{text[end:]}"
    return text


def read_settings_file(path: Path) -> dict[str, Any]:
    """The sections of a YAML file that we wrote; ValueError names a missing or damaged file."""
    try:
        values = yaml.safe_load(read_yaml_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds no settings; delete it and start again")
    return values


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes; ValueError if it is not a regular file."""
    check_regular(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def watch_map(name: str, data: object) -> None:
    """Name this file on standard error, and exit, if a part of its memory map turns out to be cut
    off; without this, the process would die without a line."""
    if isinstance(data, mmap):  # an empty array has none
        _maps[name] = data
        _set_handler(signal.SIGBUS, _on_bus_error)


def check_map(name: str) -> None:
    """ValueError if a watched file is shorter than when it was mapped."""
    data = _maps.get(name)
    if data is not None and data.size() < len(data):
        raise ValueError(_cut_off())


def _cut_off() -> str:
    names = [name for name, data in _maps.items() if data.size() < len(data)]
    return f"{' or '.join(names) or 'a file'} was cut off while it was in use; restore it"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_bus_error(_: int) -> None:
    """The thread that reads the map cannot go on."""
    os.write(2, f"hpc-ecg: {_cut_off()}\n".encode())
    os._exit(2)
