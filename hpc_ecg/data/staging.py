"""Copies of shards on the node's own disk, made ahead of use by a thread, for all processes there.

    stage_dir/hpc_ecg-stage/<digest of the index>/shard-000000.tar   whole and checked, or absent
                                                  users/*.lock       one held by each process

Whoever gets the lock of the set copies; the others, of this run or of another, wait and find all of
it done. A copy gets its name when its digest is that of dataset.json. What a crash left is checked
before it counts; nothing is deleted while a process that is alive uses it.
"""

import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

logger = logging.getLogger("hpc_ecg")

BLOCK = 1 << 22
LOOK_EVERY_S = 1.0
UNCHECKED = ".unchecked"


class Stage:
    def __init__(
        self,
        folder: Path,
        set_sha256: str,
        about: Sequence[dict[str, Any]],
        open_shard: Callable[[int], BinaryIO],
        first_use: Sequence[int],
        quota_gb: float | None = None,
        keep: bool = False,
    ) -> None:
        """Begin to copy these shards into `folder`, in the order in which they will be used.
        `about` describes all shards, as dataset.json does."""
        self._base = folder / "hpc_ecg-stage"
        self._folder = self._base / set_sha256[:16]
        self._about, self._open_shard, self._keep = about, open_shard, keep
        self._first_use = first_use
        self._ready: set[int] = set()
        self._looked = 0.0
        self._stop = threading.Event()
        (self._folder / "users").mkdir(parents=True, exist_ok=True)
        self._user = _lock(self._folder / "users" / f"{uuid.uuid4().hex}.lock")
        with _lock(self._base / "lock"):
            if not _is_in_use(self._folder):
                self._distrust_leftovers()
            self._user.acquire()
        free, used = shutil.disk_usage(self._base).free, _size(self._base)
        self._quota = quota_gb * 1e9 if quota_gb else 0.9 * (free + used)
        self._thread = threading.Thread(target=self._work, name="staging", daemon=True)
        self._thread.start()

    def open(self, shard: int) -> BinaryIO | None:
        """The copy of a shard, once it is there: only what is whole and checked has its name."""
        try:
            return (self._folder / self._about[shard]["name"]).open("rb")
        except OSError:  # not yet, or somebody tidied the disk
            return None

    def arrivals(self) -> list[int]:
        """Shards that are there since the last call; looks once in a second at most."""
        if time.monotonic() - self._looked < LOOK_EVERY_S or len(self._ready) == len(self._about):
            return []
        self._looked = time.monotonic()
        there = {entry.name for entry in os.scandir(self._folder)}
        new = {n for n, about in enumerate(self._about) if about["name"] in there} - self._ready
        self._ready |= new
        return sorted(new)

    def wait(self) -> None:
        """Until this process has nothing left to copy or to wait for."""
        self._thread.join()
        self._looked = 0.0

    def close(self) -> None:
        """Stop copying; the last process that uses the copies deletes them, unless they stay."""
        self._stop.set()
        self._thread.join()
        with _lock(self._base / "lock"):
            self._user.release()
            Path(self._user.lock_file).unlink(missing_ok=True)
            if not self._keep and not _is_in_use(self._folder):
                shutil.rmtree(self._folder, ignore_errors=True)

    def _distrust_leftovers(self) -> None:
        for path in list(self._folder.iterdir()):
            if path.suffix == ".partial":
                path.unlink()
            elif path.suffix == ".tar":
                path.rename(f"{path}{UNCHECKED}")

    def _work(self) -> None:
        """As soon as nobody else copies: copy what is not there."""
        lock = _lock(self._folder / "copying.lock")
        while not self._stop.is_set():
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                continue
        try:
            for shard in self._first_use:
                if self._stop.is_set() or not self._stage(shard, self._about[shard]):
                    break
        except OSError as error:
            logger.warning("%s: %s; the rest is read from data.shards", self._folder, error)
        finally:
            lock.release()

    def _stage(self, shard: int, about: dict[str, Any]) -> bool:
        """Whether to go on with the next one."""
        path = self._folder / about["name"]
        old = Path(f"{path}{UNCHECKED}")
        if old.exists():
            with old.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == about["sha256"]:
                    old.rename(path)
            old.unlink(missing_ok=True)
        if path.exists():
            return True
        if not self._has_room(about["bytes"]):
            logger.warning(
                "%s: data.stage_quota_gb is full; shards from %s on are read from data.shards",
                *(self._folder, about["name"]),
            )
            return False
        try:
            self._copy(shard, about, path)
        except ValueError as error:  # whoever needs a record of it will be told again
            logger.warning("%s", error)
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
                raise ValueError(f"{about['name']} is damaged (its SHA-256): it is not staged")
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _has_room(self, num_bytes: int) -> bool:
        """Make room, if need be, by deleting other sets that nobody uses, oldest first."""
        others = [path for path in self._base.iterdir() if path.is_dir() and path != self._folder]
        for other in sorted(others, key=lambda path: path.stat().st_mtime):
            if _size(self._base) + num_bytes <= self._quota:
                break
            with _lock(self._base / "lock"):
                if not _is_in_use(other):
                    shutil.rmtree(other, ignore_errors=True)
        return _size(self._base) + num_bytes <= self._quota


def stage_folder(setting: str) -> Path:
    """data.stage_dir with its variables filled in; ValueError if that is no folder."""
    text = os.path.expanduser(os.path.expandvars(setting))  # noqa: PTH111
    if "$" in text:
        raise ValueError(f"data.stage_dir={setting}: that variable is not set here; give a folder")
    if not os.access(text, os.W_OK) or not Path(text).is_dir():
        raise ValueError(f"data.stage_dir={setting}: {text} is not a folder that can be written")
    return Path(text)


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


def _is_in_use(folder: Path) -> bool:
    """Whether a living process holds one of the users' locks; those of the dead are deleted."""
    for path in (folder / "users").glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
    return False


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another process has just finished with it
            continue
    return total
