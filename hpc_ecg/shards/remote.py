"""Shards outside the local file system: at an fsspec URL (s3://…), or written by a shell command.

Only the two small files, dataset.json and index.parquet, are fetched and checked when a set is
opened. The shards stay where they are, to be read as streams or in parts.
"""

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from hpc_ecg.shards.format import ShardSet, read_shard_set

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PIPE = "pipe:"


@dataclass(frozen=True, kw_only=True)
class RemoteStore:
    """Remote files by name; ValueError, in one line, for those that cannot be read."""

    url: str
    filesystem: "AbstractFileSystem | None"
    """None for a command."""
    root: str

    def open(self, name: str) -> BinaryIO:
        """The file as a stream of bytes."""
        try:
            if self.filesystem is not None:
                return self.filesystem.open(f"{self.root}/{name}", "rb")
            from webdataset import gopen

            return gopen(self.url.replace("{name}", shlex.quote(name)))
        except Exception as error:  # each file system raises its own kinds
            raise _read_error(self.url, name, error) from None

    def ranges(self, names: Sequence[str], starts: Sequence[int], size: int) -> list[bytes]:
        """Fetch `size` bytes of each file from each start, all at the same time."""
        if self.filesystem is None:
            raise ValueError(
                f"data.shards={self.url}: a command writes whole files; use data.read=stream, or "
                "data.stage_dir and wait until all shards are staged"
            )
        paths = [f"{self.root}/{name}" for name in names]
        ends = [start + size for start in starts]
        parts = self.filesystem.cat_ranges(paths, list(starts), ends, on_error="return")
        for name, part in zip(names, parts, strict=True):
            if isinstance(part, Exception):
                raise _read_error(self.url, name, part) from None
        return parts


def open_shard_set(
    location: str | Path, allow_pipe: bool = False, check_sizes: bool = True
) -> ShardSet:
    """`read_shard_set` for a folder, a URL or, if allowed, a command."""
    location = str(location)
    if not re.match(rf"[\w+.-]+(://|::)|{PIPE}", location):
        return read_shard_set(location, check_sizes)
    if location.startswith(PIPE) and not allow_pipe:
        raise ValueError(
            f"data.shards={location} would run a shell command; if you trust it, give "
            "data.allow_pipe=true on the command line (report: --allow-pipe); no file can allow it"
        )
    remote = open_remote_store(location)
    with TemporaryDirectory() as folder:
        try:
            for name in ("dataset.json", "index.parquet"):
                with remote.open(name) as file, (Path(folder) / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
            shards = read_shard_set(folder, check_sizes=False)
        except (ValueError, OSError) as error:
            message = f"data.shards={location}: {error}".replace(folder, remote.url)
            raise ValueError(message) from None
    for shard in shards.description["shards"]:
        name = shard["name"]
        if Path(name).name != name:
            raise ValueError(f"data.shards={location}: dataset.json names a file {name!r}")
    return replace(shards, url=remote.url)


def open_remote_store(url: str) -> RemoteStore:
    """ValueError if no installed file system knows the URL, or a command lacks {name}."""
    if url.startswith(PIPE):
        if "{name}" not in url:
            raise ValueError(f"data.shards={url}: the command must hold {{name}}, the file's name")
        return RemoteStore(url=url, filesystem=None, root="")
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        hint = "; pip install s3fs" if url.startswith("s3") else ""
        raise ValueError(f"data.shards={url}: {str(error).splitlines()[0]}{hint}") from None
    return RemoteStore(url=url.rstrip("/"), filesystem=filesystem, root=root)


def digest_shard(shards: ShardSet, shard: int) -> tuple[str, int]:
    """SHA-256 and size of a local or remote shard; ValueError if it cannot be read to its end."""
    with _open_shard(shards, shard) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return digest, file.seek(0, os.SEEK_END)


def read_part(shards: ShardSet, shard: int, start: int, size: int) -> bytes:
    """`size` bytes of a local or remote shard; ValueError if they cannot be read."""
    with _open_shard(shards, shard) as file:
        file.seek(start)
        return file.read(size)


@contextmanager
def _open_shard(shards: ShardSet, shard: int) -> Iterator[BinaryIO]:
    path = shards.shard_path(shard)
    try:
        store = open_remote_store(shards.url) if shards.url else None
        with store.open(path.name) if store else path.open("rb") as file:
            yield file
    except ValueError:
        raise
    except Exception as error:  # each file system raises its own kinds
        raise _read_error(shards.name, path.name, error) from None


def _read_error(location: str, name: str, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{location}: {name} is missing")
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ValueError(f"{location}: {name} cannot be read: {why.splitlines()[0]}")
