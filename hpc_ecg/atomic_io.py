"""Write files that are complete or absent: written under another name, synced, then renamed.

Also here: what may be written and removed. We never remove or replace what we did not make.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names its file: `path`, if it names none, as when a write fails. What
    libraries raise instead when a disk is full is an OSError, too."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _errno_of(error)
        if isinstance(error, SafetensorError) and number is None:
            raise OSError(f"{path} cannot be written: {error}") from None
        if number is None:
            raise
        name = str(getattr(error, "filename", None) or path)
        name = re.sub(r"/\.([^/]+)\.\d[^/]*\.partial\b", r"/\1", name)
        raise OSError(number, os.strerror(number), name) from None


def _errno_of(error: BaseException) -> int | None:
    """The system's number of an error, also where safetensors, numpy or torch hide it."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if code := re.search(r"\(os error (\d+)\)", str(error)):
        return int(code[1])
    within = error.__context__
    is_full = isinstance(within, OSError) and within.errno in (errno.ENOSPC, errno.EDQUOT)
    return errno.ENOSPC if is_full or " requested and " in str(error) else None


def check_may_write(path: Path, replace: bool = True, option: str = "") -> None:
    """ValueError unless a file may be written at `path`.

    A folder, device or pipe is never a place for a file. A file that exists is replaced only with
    `replace`: the user gave --force, or we made it. `option` names the flag, for the message.
    """
    name = f"{option} {path}".strip()
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is a device or a pipe; give the name of a file")
    if os.path.lexists(path) and not replace:
        remedy = "give --force to replace it" if option else "it is not ours; move it away"
        raise ValueError(f"{name} exists; {remedy}, or give another name")


def write_atomically(
    path: Path,
    write: Callable[[Path], object],
    folder_of: tuple[str, ...] = (),
    about_people: bool = False,
) -> None:
    """Let `write` make a file or folder under a temporary name, sync it, and rename it to `path`.

    Replaces a file at `path`; a folder only by a folder, and only if it holds nothing but files
    that match `folder_of`, otherwise ValueError. On an error nothing is left, and the error is
    raised again; a full disk is always an OSError that names `path`. A file `about_people` can be
    read by its owner and group alone, from its first byte on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{_host()}.partial")
    _tidy_beside(path)
    try:
        with naming(path):
            if about_people:
                os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
            write(partial)
        if not (partial.is_dir() and path.is_dir() and not path.is_symlink()):
            check_may_write(path)
        elif foreign := foreign_files(path, *folder_of, ".*.partial"):
            raise ValueError(f"{path} holds {foreign[0]}, which is not ours; move it away")
    except BaseException:
        _remove(partial)
        raise
    sync_all(partial)
    if path.is_dir():  # a folder is deleted file by file, so not under its own name
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        _remove(old)
        path.rename(old)
        partial.rename(path)
        _remove(old)
    else:
        partial.rename(path)
    _sync(path.parent)


def foreign_files(folder: Path, *patterns: str) -> list[str]:
    """Names in `folder` that match none of the patterns, sorted."""
    names = (path for path in folder.iterdir() if not any(path.match(p) for p in patterns))
    return sorted(path.name for path in names)


def remove_made(folder: Path, *patterns: str) -> None:
    """Delete the files of `folder` that match, in the order of the patterns, then the folder unless
    something else is in it. A link to a folder stays, with all that it leads to."""
    if folder.is_symlink():
        return
    with contextlib.suppress(OSError):  # it is gone, or another process deletes it too
        for pattern in patterns:
            for path in list(folder.glob(pattern)):
                if not path.is_dir() or path.is_symlink():
                    path.unlink(missing_ok=True)
        folder.rmdir()


def write_text(path: Path, text: str, about_people: bool = False) -> None:
    def write(file: Path) -> object:
        return file.write_text(text, encoding="utf-8")

    write_atomically(path, write, about_people=about_people)


def write_json(path: Path, value: Any, indent: int | None = 1, about_people: bool = False) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n", about_people)


def sync_all(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        _sync(file)


def wait_until_seen(path: Path, patience_s: float = 60) -> None:
    """Wait for a file of another process: shared file systems cache, so it may appear late.

    ValueError if it does not appear in time.
    """
    deadline = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(f"{path} is not seen from {socket.gethostname()}; is it shared?")
        time.sleep(0.1)


def tidy(folder: Path) -> None:
    """Clean up after killed writers: delete partial files, restore folders that were moved away."""
    for partial in list(folder.rglob(".*.[0-9]*.partial")):
        _remove(partial)
    for old in list(folder.rglob(".*.[0-9]*.old")):
        path = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if path.exists():
            _remove(old)
        else:
            old.rename(path)


def _tidy_beside(path: Path) -> None:
    """Delete what killed writers of `path` on this machine have left.

    In a container a pid soon comes again, so what bears our number is of another process.
    """
    for partial in _left_in(path.parent.absolute()):
        name, _, writer = partial.name.removesuffix(".partial").rpartition(".")
        pid, _, host = writer.partition("-")
        is_ours = name == f".{path.name}" and host in ("", _host()) and pid.isdecimal()
        if is_ours and _has_ended(int(pid)):
            _remove(partial)


@lru_cache(maxsize=256)
def _left_in(folder: Path) -> list[Path]:
    """Partial files that were there when this process first wrote into the folder."""
    return list(folder.glob(".*.[0-9]*.partial"))


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, ProcessLookupError)
    return pid == os.getpid()


def _host() -> str:
    """A name of this machine without dots."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
