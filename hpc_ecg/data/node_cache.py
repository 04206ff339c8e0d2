"""Copies of shards on the node's local disk, made ahead of use by a thread, for all its processes.

    stage_dir/hpc_ecg-stage/<digest of the index>/shard-000000.tar   complete and verified
                                                  users/*.lock       one held by each process

The process that holds the lock of the set copies; the others, of this or another run, wait for it.
A copy gets its final name once its digest equals that in dataset.json. The last process that uses a
set deletes it; after a crash, the next process to start does. A set in use is never deleted, nor
anything that is not a copy or a lock.
"""

import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import remove_made
from hpc_ecg.log import describe_error, logger
from hpc_ecg.safe_reading import check_regular

BLOCK = 1 << 22
LIST_EVERY_S = 1.0


class NodeCache:
    def __init__(
        self,
        folder: Path,
        set_sha256: str,
        descriptions: Sequence[dict[str, Any]],
        open_shard: Callable[[int], BinaryIO],
        first_use: Sequence[int],
        quota_gb: float | None = None,
    ) -> None:
        """Start to copy shards into `folder`, in the order `first_use`.

        `descriptions` are the entries of all shards in dataset.json; `quota_gb` defaults to 90 % of
        the free space. OSError if `folder` cannot be written.
        """
        self._base = folder / "hpc_ecg-stage"
        self._folder = self._base / set_sha256[:16]
        self._descriptions, self._open_shard = descriptions, open_shard
        self._first_use = first_use
        self._ready: set[int] = set()
        self._listed_at = 0.0
        self._stop = threading.Event()
        for path in (self._base, self._folder):
            if path.is_symlink():
                raise ValueError(f"{path} is a link; delete it, or give another data.stage_dir")
        self._base.mkdir(exist_ok=True)
        with _lock(self._base / "lock"):
            for left in list(self._base.glob("[0-9a-f]" * 16)):
                _delete_unused(left)
            (self._folder / "users").mkdir(parents=True, exist_ok=True)
            self._user = _lock(self._folder / "users" / f"{uuid.uuid4().hex}.lock")
            self._user.acquire()
        free, used = shutil.disk_usage(self._base).free, _size(self._base)
        self._quota = quota_gb * 1e9 if quota_gb else 0.9 * (free + used)
        self._thread = threading.Thread(target=self._work, name="staging", daemon=True)
        self._thread.start()

    def open(self, shard: int) -> BinaryIO | None:
        """The copy of a shard; None until it is complete and verified."""
        path = self._folder / self._descriptions[shard]["name"]
        try:
            check_regular(path)
            return path.open("rb")
        except (OSError, ValueError):  # not yet, deleted by hand, or none of ours
            return None

    def arrivals(self) -> list[int]:
        """Shards copied since the last call; lists the folder at most once a second."""
        has_all = len(self._ready) == len(self._descriptions)
        if has_all or time.monotonic() - self._listed_at < LIST_EVERY_S:
            return []
        self._listed_at = time.monotonic()
        names = {entry.name for entry in os.scandir(self._folder)}
        seen = {n for n, about in enumerate(self._descriptions) if about["name"] in names}
        new = seen - self._ready
        self._ready |= new
        return sorted(new)

    def wait(self) -> None:
        """Block until this process has nothing left to copy."""
        self._thread.join()
        self._listed_at = 0.0

    def close(self) -> None:
        """Stop copying; delete the copies if no other process uses them."""
        self._stop.set()
        self._thread.join()
        with _lock(self._base / "lock"):
            self._user.release()
            Path(self._user.lock_file).unlink(missing_ok=True)
            _delete_unused(self._folder)

    def _work(self) -> None:
        """Copy what is missing, as soon as no other process is copying."""
        lock = _lock(self._folder / "copying.lock")
        while not self._stop.is_set():
            with suppress(Timeout):
                lock.acquire(timeout=0.2)
                break
        try:
            for shard in self._first_use:
                if self._stop.is_set() or not self._stage(shard):
                    break
        except OSError as error:
            logger.warning(
                f"{self._folder}: {describe_error(error)}; the rest is read from data.shards"
            )
        finally:
            lock.release()

    def _stage(self, shard: int) -> bool:
        """Copy one shard; False if it does not fit the quota."""
        about = self._descriptions[shard]
        path = self._folder / about["name"]
        if path.exists():
            return True
        if _size(self._base) + about["bytes"] > self._quota:
            logger.warning(
                f"{self._folder}: data.stage_quota_gb is full; shards from {about['name']} on are "
                "read from data.shards"
            )
            return False
        try:
            self._copy(shard, about, path)
        except ValueError as error:  # reading a record of this shard raises it again
            logger.warning(str(error))
        return True

    def _copy(self, shard: int, about: dict[str, Any], path: Path) -> None:
        partial, digest = path.with_name(f"{path.name}.partial"), hashlib.sha256()
        try:
            with self._open_shard(shard) as source, partial.open("wb") as copy:
                while block := source.read(BLOCK):
                    digest.update(block)
                    copy.write(block)
                    if self._stop.is_set():
                        return
            if digest.hexdigest() != about["sha256"]:
                raise ValueError(f"{about['name']} is damaged (SHA-256): not staged")
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def resolve_stage_dir(setting: str) -> Path:
    """data.stage_dir with variables expanded; ValueError if it is not a writable folder."""
    text = os.path.expanduser(os.path.expandvars(setting))  # noqa: PTH111
    if "$" in text:
        raise ValueError(
            f"data.stage_dir={setting}: that variable is not set on this node; give a folder"
        )
    if not os.access(text, os.W_OK) or not Path(text).is_dir():
        raise ValueError(f"data.stage_dir={setting}: {text} is not a folder that can be written")
    return Path(text)


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


def _delete_unused(folder: Path) -> None:
    """Delete a set unless a living process uses it; locks of dead processes do not count."""
    if folder.is_symlink():
        return
    for path in (folder / "users").glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return
    remove_made(folder / "users", "*.lock")
    remove_made(folder, "shard-*.tar", "shard-*.tar.partial", "copying.lock")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process has just deleted it
            total += path.stat().st_size if path.is_file() else 0
    return total
