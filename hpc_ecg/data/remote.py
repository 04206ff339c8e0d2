"""A set of shards in no folder of this machine: an fsspec URL (s3://…), or a shell command.

The two small files beside the shards are fetched and checked as those of a folder are; the shards
stay where they are, and are read by ranges of bytes or from front to back.
"""

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from hpc_ecg.data.shards import ShardSet, read_shard_set

PIPE = "pipe:"


@dataclass(frozen=True, kw_only=True)
class Far:
    """Files by name, somewhere else. ValueError, in one line, for what cannot be read."""

    url: str
    filesystem: Any
    """None for a command."""
    root: str

    def open(self, name: str) -> BinaryIO:
        try:
            if self.filesystem is not None:
                return self.filesystem.open(f"{self.root}/{name}", "rb")
            from webdataset import gopen

            return gopen(self.url.replace("{name}", shlex.quote(name)))
        except Exception as error:  # each file system has its own kinds
            raise self._unreadable(name, error) from None

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
                raise self._unreadable(name, data) from None
        return found

    def _unreadable(self, name: str, error: Exception) -> ValueError:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, FileNotFoundError):
            why = "no such file"
        return ValueError(f"{self.url}: {name} cannot be read: {why}")


def open_shard_set(place: str, allow_pipe: bool = False) -> ShardSet:
    """`read_shard_set` for a folder, a URL or, if allowed, a command."""
    if not re.match(rf"[\w+.-]+(://|::)|{PIPE}", place):
        return read_shard_set(place)
    if place.startswith(PIPE) and not allow_pipe:
        raise ValueError(
            f"data.shards={place} would run a shell command; if it is yours, data.allow_pipe=true"
        )
    far = locate(place)
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


def locate(url: str) -> Far:
    """ValueError if no installed file system knows this URL, or a command leaves out {name}."""
    if url.startswith(PIPE):
        if "{name}" not in url:
            raise ValueError(f"data.shards={url}: the command must hold {{name}}, the file's name")
        return Far(url=url, filesystem=None, root="")
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        hint = "; pip install s3fs" if url.startswith("s3") else ""
        raise ValueError(f"data.shards={url}: {str(error).splitlines()[0]}{hint}") from None
    return Far(url=url.rstrip("/"), filesystem=filesystem, root=root)
