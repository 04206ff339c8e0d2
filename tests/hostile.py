"""Build hostile `.pt` files opcode by opcode, and audit what happens when they are read."""

import io
import os
import pickle
import struct
import sys
import zipfile
from contextlib import contextmanager

WATCHED = ("exec", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "marshal.")
WATCHED += ("pickle.find_class", "code.__new__", "builtins.input", "tempfile.", "sys.unraisable")
_events: list[str] | None = None  # None unless an audit is running


def _hook(event, arguments):
    if _events is None:
        return
    written = event == "open" and (
        any(c in str(arguments[1]) for c in "wax+")
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if written or event.startswith(WATCHED):
        _events.append(f"{event} {arguments!r:.100}")


@contextmanager
def nothing_runs():
    """Fail if anything is executed, imported, started, sent, written or removed, according to
    Python's audit events."""
    global _events
    if not _hook_is_set:
        sys.addaudithook(_hook)  # a hook cannot be removed
        _hook_is_set.append(True)
    _events = []
    try:
        yield
    finally:
        events, _events = _events, None
    assert not events, events


_hook_is_set: list[bool] = []


def zip_of(members, compression=zipfile.ZIP_STORED) -> bytes:
    """The bytes of a zip file with these (name, content) members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def members_of(path) -> dict[str, bytes]:
    """The members of a `.pt` by name, without its top folder."""
    with zipfile.ZipFile(path) as archive:
        return {m.filename.partition("/")[2]: archive.read(m) for m in archive.infolist()}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """An integer of any size as an opcode."""
    return pickle.dumps(value, 2)[2:-1]


def storage(
    key: bytes = text("0"), numel: bytes = b"K\x03", kind: bytes = b"FloatStorage"
) -> bytes:
    """Opcodes of a persistent reference to a storage; `key` and `numel` are opcodes."""
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + key + text("cpu") + numel + b"tQ"


def tensor(stored: bytes | None = None, first=0, shape=(3,), strides=(1,)) -> bytes:
    """Opcodes of a tensor that is a view of a storage."""

    def numbers(values) -> bytes:
        return b"(" + b"".join(v if isinstance(v, bytes) else number(v) for v in values) + b"t"

    start = first if isinstance(first, bytes) else number(first)
    stored = storage() if stored is None else stored
    rest = start + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + rest + b"tR"


def pickled(*pairs: tuple[str, bytes]) -> bytes:
    """A pickle of a dict; values are given as opcodes."""
    return b"\x80\x02}" + b"".join(text(key) + value + b"s" for key, value in pairs) + b"."


def pt_of(data: bytes, members=(("data/0", bytes(12)),)) -> bytes:
    """A `.pt` with this pickle and other members."""
    return zip_of([("x/data.pkl", data), *((f"x/{name}", content) for name, content in members)])
