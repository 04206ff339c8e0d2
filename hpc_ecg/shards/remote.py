"""Sets of shards that are not in a folder of this machine: at an fsspec URL (s3://…), or written by
a shell command.

A URL comes in, a ShardSet goes out: the two small files beside the shards are fetched and checked
as those of a folder are; the shards stay there, to be read as streams or in parts.
"""

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpc_ecg.shards.format import ShardSet, read_shard_set

PIPE = "pipe:"


@dataclass(frozen=True, kw_only=True)
class RemoteStore:
    """Files by name, somewhere else. ValueError, in one line, for what cannot be read."""

    url: str
    filesystem: Any
    """None for a command."""
    root: str

    def open(self, name: str) -> Any:
        try:
            if self.filesystem is not None:
                return self.filesystem.open(f"{self.root}/{name}", "rb")
            from webdataset import gopen

            return gopen(self.url.replace("{name}", shlex.quote(name)))
        except Exception as error:  # each file system has its own kinds
            raise _unreadable(self.url, name, error) from None

    def ranges(self, names: Sequence[str], starts: Sequence[int], size: int) -> list[bytes]:
        """`size` bytes of each file from each start, fetched together."""
        if self.filesystem is None:
            raise ValueError(
                f"data.shards={self.url}: a command writes whole files; use data.read=stream, or "
                "data.stage_dir and wait until all of it is there"
            )
        paths = [f"{self.root}/{name}" for name in names]
        ends = [start + size for start in starts]
        found = self.filesystem.cat_ranges(paths, list(starts), ends, on_error="return")
        for name, data in zip(names, found, strict=True):
            if isinstance(data, Exception):
                raise _unreadable(self.url, name, data) from None
        return found


def open_shard_set(
    place: str | Path, allow_pipe: bool = False, check_sizes: bool = True
) -> ShardSet:
    """`read_shard_set` for a folder, a URL or, if allowed, a command."""
    place = str(place)
    if not re.match(rf"[\w+.-]+(://|::)|{PIPE}", place):
        return read_shard_set(place, check_sizes)
    if place.startswith(PIPE) and not allow_pipe:
        raise ValueError(
            f"data.shards={place} would run a shell command; if it is yours, data.allow_pipe=true"
        )
    far = open_remote_store(place)
    with TemporaryDirectory() as folder:
        try:
            for name in ("dataset.json", "index.parquet"):
                with far.open(name) as file, (Path(folder) / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
            shards = read_shard_set(folder, check_sizes=False)
        except (ValueError, OSError) as error:
            raise ValueError(f"data.shards={place}: {error}".replace(folder, far.url)) from None
    for about in shards.description["shards"]:
        if Path(about["name"]).name != about["name"]:
            raise ValueError(f"data.shards={place}: dataset.json names a file {about['name']!r}")
    return replace(shards, url=place)


def open_remote_store(url: str) -> RemoteStore:
    """ValueError if no installed file system knows this URL, or a command leaves out {name}."""
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
    """SHA-256 and size of a shard, wherever it lies. ValueError if it cannot be read to its end."""
    path, far = shards.shard_path(shard), open_remote_store(shards.url) if shards.url else None
    try:
        with far.filesystem.open(f"{far.root}/{path.name}") if far else path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.seek(0, os.SEEK_END)
    except Exception as error:  # each file system has its own kinds
        raise _unreadable(shards.name, path.name, error) from None


def read_part(shards: ShardSet, shard: int, start: int, size: int) -> bytes:
    path = shards.shard_path(shard)
    if shards.url is not None:
        return open_remote_store(shards.url).ranges([path.name], [start], size)[0]
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise _unreadable(shards.name, path.name, error) from None


def _unreadable(place: str, name: str, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{place}: {name} is missing")
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ValueError(f"{place}: {name} cannot be read: {why.splitlines()[0]}")
