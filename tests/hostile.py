"""What a file could be made of to do harm, and a watch on what reading it does."""

import io
import os
import pickle
import struct
import sys
import zipfile
from contextlib import contextmanager

WATCHED = ("exec", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "marshal.")
WATCHED += ("pickle.find_class", "code.__new__", "builtins.input", "tempfile.", "sys.unraisable")
_seen: list[str] | None = None  # events while watching, else None


def _hook(event, arguments):
    if _seen is None:
        return
    written = event == "open" and (
        any(c in str(arguments[1]) for c in "wax+")
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if written or event.startswith(WATCHED):
        _seen.append(f"{event} {arguments!r:.100}")


@contextmanager
def nothing_runs():
    """Python's own audit of what is executed, imported, started, sent, written or removed."""
    global _seen
    if not _hook_is_set:
        sys.addaudithook(_hook)  # for good: it cannot be taken off
        _hook_is_set.append(True)
    _seen = []
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert not seen


_hook_is_set: list[bool] = []


def zip_of(members, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip of (name, bytes) pairs, one folder `x/` as torch has it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def members_of(path) -> dict[str, bytes]:
    """Of a `.pt`: its members below its folder."""
    with zipfile.ZipFile(path) as archive:
        return {m.filename.partition("/")[2]: archive.read(m) for m in archive.infolist()}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """A whole number of any size, as pickle writes it."""
    return pickle.dumps(value, 2)[2:-1]


def storage(
    key: bytes = text("0"), numel: bytes = b"K\x03", kind: bytes = b"FloatStorage"
) -> bytes:
    """A reference to a storage; key and numel as opcodes."""
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + key + text("cpu") + numel + b"tQ"


def tensor(stored: bytes | None = None, first=0, shape=(3,), strides=(1,)) -> bytes:
    """A tensor on it."""

    def numbers(values) -> bytes:
        return b"(" + b"".join(v if isinstance(v, bytes) else number(v) for v in values) + b"t"

    start = first if isinstance(first, bytes) else number(first)
    where = storage() if stored is None else stored
    rest = start + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + where + rest + b"tR"


def pickled(*pairs: tuple[str, bytes]) -> bytes:
    """A dict at the top, its values as opcodes."""
    return b"\x80\x02}" + b"".join(text(key) + value + b"s" for key, value in pairs) + b"."


def pt_of(data: bytes, more=(("data/0", bytes(12)),)) -> bytes:
    """A `.pt` around a pickle."""
    return zip_of([("x/data.pkl", data), *((f"x/{name}", content) for name, content in more)])
