"""The doctor's checks of disks and clocks: all nodes see the same files, and there is space.

Test files are written into the run's folder, or the nearest folder above it, and removed again (by
a later start of the run, if the doctor is killed).
"""

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

from hpc_ecg.atomic_io import wait_until_seen
from hpc_ecg.data.node_cache import resolve_stage_dir
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.preflight.cluster_checks import Finding, exchange, merged
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.settings import TrainConfig

VISIBLE_WITHIN_S = 30.0
"""Time that a file from another node may take to appear, since shared file systems cache."""
SKEW_WARNING_S, SKEW_ERROR_S = 1.0, 300.0
"""munge and Kerberos reject a node whose clock is off by the latter."""
FEW_INODES = 100


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest existing one above it."""
    candidates = (path, *path.absolute().parents)
    # os.path.isdir returns False for a folder without permission; Path.is_dir raises
    return next(p for p in candidates if os.path.isdir(p))  # noqa: PTH112


def check_folder(run_dir: Path, rank: int) -> list[Finding]:
    """Collective: every node can read what the first one writes, and vice versa."""
    folder, token = exchange((nearest_folder(run_dir), uuid.uuid4().hex))[0]
    hosts = exchange(socket.gethostname())
    names = {host: f".doctor.{n}-{token}.partial" for n, host in enumerate(dict.fromkeys(hosts))}
    files = {host: folder / name for host, name in names.items()}
    mine, first = files[hosts[rank]], files[hosts[0]]
    acts = hosts.index(hosts[rank]) == rank  # one process per node
    to_read = [file for file in files.values() if first in (mine, file)] if acts else []
    try:
        errors = merged(_write(mine, token) if acts else []) or merged(_read(to_read, token))
    finally:
        if acts:
            mine.unlink(missing_ok=True)
    text = f"{folder} can be written, and all nodes ({len(files)}) see the same there"
    return errors or [Finding("ok", "folder", text)]


def _write(file: Path, token: str) -> list[Finding]:
    try:
        file.write_text(token)
    except OSError as error:
        text = f"this node cannot write {file.parent}: {error.strerror}; give another run_dir"
        return [Finding("error", "folder", text)]
    return []


def _read(files: Iterable[Path], token: str) -> list[Finding]:
    try:
        for file in files:
            wait_until_seen(file, VISIBLE_WITHIN_S)
            if file.read_text() != token:
                raise ValueError
    except (ValueError, OSError):
        text = f"this node cannot read what another one writes in {file.parent}"
        remedy = f"(waited {VISIBLE_WITHIN_S:.0f} s); give a run_dir on a disk that all nodes share"
        return [Finding("error", "folder", f"{text} {remedy}")]
    return []


def check_clocks(run_dir: Path, rank: int) -> list[Finding]:
    """Collective: the clocks of the nodes and of the disk, compared with that of the first node."""
    disk_s = exchange(_disk_ahead(nearest_folder(run_dir)) if rank == 0 else 0.0)[0]
    clocks = exchange((socket.gethostname(), time.time()))
    ahead = {host: clock - clocks[0][1] for host, clock in clocks}
    ahead["the disk of run_dir"] = disk_s
    name, skew_s = max(ahead.items(), key=lambda item: abs(item[1]))
    if abs(skew_s) < SKEW_WARNING_S:
        return [Finding("ok", "clock", f"nodes and disk are at most {abs(skew_s):.2f} s apart")]
    text = f"{name} is {skew_s:+.1f} s from {clocks[0][0]}, so times in logs do not compare"
    level = "warning" if abs(skew_s) < SKEW_ERROR_S else "error"
    return [Finding(level, "clock", f"{text}; tell the site that a clock is not synchronized")]


def _disk_ahead(folder: Path) -> float:
    """Seconds by which the disk's clock is ahead; 0 if the folder cannot be written, which another
    check reports."""
    try:
        with NamedTemporaryFile(
            dir=folder, prefix=".doctor.0", suffix=".partial", buffering=0
        ) as file:
            before = time.time()
            file.write(b"x")
            os.fsync(file.fileno())
            changed = os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0
    return changed - min(max(changed, before), time.time())


def check_space(run_dir: Path, config: TrainConfig, weight_bytes: int) -> list[Finding]:
    """Rank 0: space for the kept checkpoints, the one being written, and the best weights."""
    checkpoint = weight_bytes * (3 if config.average == "none" else 4)
    keep = config.keep_checkpoints
    old = sum(file.stat().st_size for file in run_dir.rglob("*.safetensors"))
    folder = nearest_folder(run_dir)
    free, disk = shutil.disk_usage(folder).free + old, os.statvfs(folder)
    text = f"{size(free)} at {folder} for {keep} + 1 checkpoints of {size(checkpoint)}"
    if free < checkpoint * (keep + 1) + weight_bytes:
        remedy = "make room, give another run_dir, or lower train.keep_checkpoints"
        return [Finding("error", "space", f"{text}; {remedy}")]
    if disk.f_files and disk.f_favail < FEW_INODES:
        text = f"only {disk.f_favail} more files can be made at {folder} (inodes); make room"
        return [Finding("error", "space", text)]
    return [Finding("ok", "space", f"{text}; a quota cannot be seen by this check")]


def check_stage_dir(config: DataConfig, shards: ShardSet) -> list[Finding]:
    """Each node: the shards fit on its local disk, if data.stage_dir is set."""
    if config.stage_dir is None:
        return []
    folder, quota_gb = resolve_stage_dir(config.stage_dir), config.stage_quota_gb
    need = sum(shard["bytes"] for shard in shards.description["shards"])
    space = quota_gb * 1e9 if quota_gb else 0.9 * shutil.disk_usage(folder).free
    if space < need:
        text = f"{folder} has {size(space)} for {size(need)} of shards; the rest is not staged"
        return [Finding("warning", "stage", text)]
    return [Finding("ok", "stage", f"{folder} has space for {size(need)} of shards")]


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes > 1e8 else f"{num_bytes / 1e6:.3g} MB"
