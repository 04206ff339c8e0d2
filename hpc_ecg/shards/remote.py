"""Shards outside the local file system: at an fsspec URL (s3://…), or written by a shell command.

Only the two small files, dataset.json and index.parquet, are fetched and checked when a set is
opened. The shards stay where they are, to be read as streams or in parts.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from hpc_ecg.shards.format import HOW_TO_RESTORE, ShardSet, check_inside, read_shard_set

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PIPE = "pipe:"
MAX_JSON = 1 << 16
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


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
    location = str(location).removeprefix("file://")
    if not re.match(rf"[\w+.-]+(://|::)|{PIPE}", location):
        shards = read_shard_set(location, check_sizes)
        _check_first_record(shards)
        return shards
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
    shards = replace(shards, url=remote.url)
    if remote.filesystem is not None:
        _check_first_record(shards)
    return shards


def open_remote_store(url: str) -> RemoteStore:
    """ValueError for a URL that we do not open, or a command that lacks {name}."""
    if url.startswith(PIPE):
        if "{name}" not in url:
            raise ValueError(f"data.shards={url}: the command must hold {{name}}, the file's name")
        return RemoteStore(url=url, filesystem=None, root="")
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url:
        raise ValueError(
            f"data.shards={url}: shards are read from a folder or from {', '.join(SCHEMES)}://…; "
            "copy them to one of these"
        )
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


def _check_first_record(shards: ShardSet) -> None:
    """ValueError if the first record says otherwise than dataset.json what the signals mean.

    Damage of the shard is left to those who read all of it.
    """
    first = int(shards.index["shard"].iloc[0]) if len(shards.index) else 0
    try:
        with _open_shard(shards, first) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = (tar.extractfile(m) for m in tar if m.name.endswith(".json"))
            text = next(filter(None, members)).read(MAX_JSON)
        stored = json.loads(text).items()
    except (ValueError, OSError, tarfile.TarError, StopIteration, AttributeError, RecursionError):
        return
    about = shards.description
    stated = about["signal"] | {"microvolts_per_count": about["microvolts_per_count"]}
    for name, value in stored:
        if name in stated and stated[name] != value:
            raise ValueError(
                f"{shards.name}/dataset.json: {name} is {stated[name]}, but {value} in "
                f"{shards.shard_path(first).name}; {HOW_TO_RESTORE}"
            )


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
        if store is None and not path.is_dir():
            check_inside(path)
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
