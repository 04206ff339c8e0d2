"""Read shards from the node's local disk, a folder, an fsspec URL (s3://…), or a shell command.

A shard is read from the nearest of these that has it: as a memory map of int16 counts, as byte
ranges, or as a stream. A shard that another process changes or cuts off stops the run with a line.
"""

# n records read

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpc_ecg.data.node_cache import NodeCache, resolve_stage_dir
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.safe_reading import check_map, sha256_of, watch_map
from hpc_ecg.shards.format import ShardSet, check_inside
from hpc_ecg.shards.remote import RemoteStore, open_remote_store


class ShardSource:
    def __init__(self, shards: ShardSet, config: DataConfig | None = None) -> None:
        """Without `config`, shards are memory-mapped from their folder."""
        self._config = config or DataConfig()
        self.streams = self._config.read == "stream"
        self._descriptions = shards.description["shards"]
        self._set_sha256 = shards.description["index_sha256"]
        self._location = shards.name
        self._remote: RemoteStore | None = open_remote_store(shards.url) if shards.url else None
        self._node_cache: NodeCache | None = None
        self._mapped: dict[int, np.ndarray] = {}
        self._stats: dict[int, tuple[int, int]] = {}

    def name(self, shard: int) -> str:
        """The path of a shard, for messages."""
        return f"{self._location}/{self._descriptions[shard]['name']}"

    def files(self, shards: Iterable[int]) -> dict[int, np.ndarray]:
        """The files of these shards as int16 arrays, by shard, leaving out remote ones; ValueError
        if one is shorter than when it was mapped."""
        self._take_arrivals()
        for shard in shards:
            if shard not in self._mapped:
                file = self._staged(shard)
                if file or not self._remote:
                    with file or self._original(shard) as file:
                        self._map(shard, file)
            check_map(self.name(shard))
        return self._mapped

    def _map(self, shard: int, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # an empty file cannot be mapped
            self._mapped[shard] = np.empty(0, np.int16)
            return
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped[shard] = np.frombuffer(data, np.int16, count=size // 2)
        watch_map(self.name(shard), data)

    def check_unchanged(self) -> None:
        """ValueError if a shard that was opened is not as written any more; asked at each epoch.

        One with another size or time is read in full: a copy of the same bytes may replace it.
        """
        self._take_arrivals()
        for shard, before in list(self._stats.items()):
            path = Path(self.name(shard))
            now = _stat(path) if path.exists() else None
            if now == before:
                continue
            if now is None or sha256_of(path) != self._descriptions[shard]["sha256"]:
                raise ValueError(
                    f"{path} was changed or removed while it was in use; copy the shard again, or "
                    "make it again with: hpc-ecg data repair; then start again to go on"
                )
            self._stats[shard] = now
            self._mapped.pop(shard, None)

    def ranges(self, shards_n: Sequence[int], starts_n: Sequence[int], size: int) -> list[bytes]:
        """`size` bytes from each of these remote shards, at these offsets, in one request."""
        assert self._remote is not None
        names = [self._descriptions[shard]["name"] for shard in shards_n]
        return self._remote.ranges(names, list(starts_n), size)

    def open(self, shard: int) -> BinaryIO:
        """A shard as a stream; ValueError if it cannot be opened."""
        self._take_arrivals()
        return self._staged(shard) or self._original(shard)

    def _staged(self, shard: int) -> BinaryIO | None:
        return self._node_cache.open(shard) if self._node_cache else None

    def _original(self, shard: int) -> BinaryIO:
        name = self._descriptions[shard]["name"]
        if self._remote is not None:
            return self._remote.open(name)
        path = Path(self._location) / name
        try:
            check_inside(path)
            self._stats.setdefault(shard, _stat(path))
            return path.open("rb")
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}; copy the shard again"
            raise ValueError(message) from None

    def _take_arrivals(self) -> None:
        if self._node_cache:
            for shard in self._node_cache.arrivals():
                self._mapped.pop(shard, None)
                self._stats.pop(shard, None)

    def stage(self, first_use: Sequence[int]) -> None:
        """Start to copy the shards to data.stage_dir, if it is set, in the order of first use."""
        config = self._config
        if config.stage_dir is not None:
            self._node_cache = NodeCache(
                resolve_stage_dir(config.stage_dir),
                self._set_sha256,
                self._descriptions,
                self._original,
                first_use,
                config.stage_quota_gb,
            )

    def close(self) -> None:
        if self._node_cache:
            self._node_cache.close()


def _stat(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
