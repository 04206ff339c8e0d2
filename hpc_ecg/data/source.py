"""Where the bytes of a set of shards are read: staged on this node, in a folder, or far away: at an
fsspec URL (s3://…), or from a shell command.

A shard's number comes in; its file mapped as int16 counts, ranges of bytes, or an open stream goes
out, from the nearest place that has it. Of a set far away the two small files beside the shards are
fetched and checked as those of a folder are; the shards stay there.
"""

# n records read

import mmap
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.staging import Stage, stage_folder
from hpc_ecg.shards.format import ShardSet, read_shard_set

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


class Source:
    def __init__(self, shards: ShardSet, config: DataConfig | None = None) -> None:
        """As `config` says; without one, mapped and not staged."""
        self._config = config or DataConfig()
        self.streams = self._config.read == "stream"
        self._about = shards.description["shards"]
        self._set_sha256 = shards.description["index_sha256"]
        self._place = shards.name
        self._far: Far | None = _locate(shards.url) if shards.url else None
        self._stage: Stage | None = None
        self._mapped: dict[int, np.ndarray] = {}

    def name(self, shard: int) -> str:
        """For messages."""
        return f"{self._place}/{self._about[shard]['name']}"

    def files(self, shards: Iterable[int]) -> dict[int, np.ndarray]:
        """All of the files of these shards as int16, but for those that are far away."""
        self._take_arrivals()
        for shard in shards:
            if shard not in self._mapped:
                file = self._staged(shard)
                if file or not self._far:
                    with file or self._original(shard) as file:
                        self._mapped[shard] = _map(file)
        return self._mapped

    def ranges(self, shards_n: Sequence[int], starts_n: Sequence[int], size: int) -> list[bytes]:
        """`size` bytes of each of these far shards from each of these offsets, fetched together."""
        assert self._far is not None
        names = [self._about[shard]["name"] for shard in shards_n]
        return self._far.ranges(names, list(starts_n), size)

    def open(self, shard: int) -> BinaryIO:
        """To be read from front to back."""
        self._take_arrivals()
        return self._staged(shard) or self._original(shard)

    def _staged(self, shard: int) -> BinaryIO | None:
        return self._stage.open(shard) if self._stage else None

    def _original(self, shard: int) -> BinaryIO:
        name = self._about[shard]["name"]
        if self._far is not None:
            return self._far.open(name)
        path = Path(self._place) / name
        try:
            return path.open("rb")
        except OSError as error:
            why = f"{path} cannot be read: {error.strerror}"
            raise ValueError(f"{why}; copy the shard again") from None

    def _take_arrivals(self) -> None:
        if self._stage:
            for shard in self._stage.arrivals():
                self._mapped.pop(shard, None)

    def stage(self, first_use: Sequence[int]) -> None:
        """Begin to copy the shards to data.stage_dir, if that is set, in the order of first use."""
        config = self._config
        if config.stage_dir is not None:
            self._stage = Stage(
                stage_folder(config.stage_dir),
                self._set_sha256,
                self._about,
                self._original,
                first_use,
                config.stage_quota_gb,
            )

    def close(self) -> None:
        if self._stage:
            self._stage.close()


def open_shard_set(place: str, allow_pipe: bool = False) -> ShardSet:
    """`read_shard_set` for a folder, a URL or, if allowed, a command."""
    if not re.match(rf"[\w+.-]+(://|::)|{PIPE}", place):
        return read_shard_set(place)
    if place.startswith(PIPE) and not allow_pipe:
        raise ValueError(
            f"data.shards={place} would run a shell command; if it is yours, data.allow_pipe=true"
        )
    far = _locate(place)
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


def _locate(url: str) -> Far:
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


def _map(file: BinaryIO) -> np.ndarray:
    size = os.fstat(file.fileno()).st_size
    if size == 0:  # which cannot be mapped
        return np.empty(0, np.int16)
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(data, np.int16, count=size // 2)
