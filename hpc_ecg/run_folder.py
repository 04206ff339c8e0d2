"""One run's folder: the same on a laptop, under sbatch and in a sweep; it is how a run goes on.

Every file is written aside, synced and renamed, so what has its final name is whole. A lock keeps
two jobs out of one folder; `finished.json`, written last, says that nothing is left to do.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from hpc_ecg import cluster

PACKAGES = ("hpc-ecg", "torch", "accelerate", "webdataset", "submitit", "torchmetrics", "numpy")


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.init_report = self.path / "init_report.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.predictions = self.path / "predictions"
        self.evaluation = self.path / "evaluation.json"
        self.finished = self.path / "finished.json"
        self._lock: FileLock | None = None

    def claim(self) -> None:
        """Make the folder and lock it until this process ends; ValueError if it cannot be had."""
        holder = self.path / "lock.holder"
        self._lock = FileLock(self.path / "lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "another process"
            raise ValueError(
                f"{self.path} is in use by {who}; wait, or give another run_dir"
            ) from None
        except OSError as error:
            raise ValueError(f"run_dir={self.path} cannot be written: {error.strerror}") from None
        if self.config.exists():  # a run's folder, not somebody's home
            _tidy(self.path)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def release(self) -> None:
        if self._lock is not None and self._lock.is_locked:
            (self.path / "lock.holder").unlink(missing_ok=True)
            (self.path / "lock").unlink(missing_ok=True)  # while held: later it may be another's
            self._lock.release()

    def check_same_config(self, config_yaml: str, neutral: Sequence[str]) -> None:
        """Refuse a folder of another configuration; keys below `neutral` may differ."""
        if not self.config.exists():
            inside = self.path.iterdir() if self.path.is_dir() else ()
            foreign = [path.name for path in inside if not self._is_early(path)]
            if foreign:
                raise ValueError(
                    f"run_dir={self.path} is not a run folder (no config.yaml) and not empty "
                    f"({', '.join(sorted(foreign)[:3])}); give a new folder"
                )
            return
        old, new = (_flat(yaml.safe_load(text)) for text in (self.config.read_text(), config_yaml))
        differing = [
            f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, "absent") != new.get(key, "absent") and not _is_below(key, neutral)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another configuration ({'; '.join(differing)}); "
                "give another run_dir, or the settings of that run"
            )

    def _is_early(self, path: Path) -> bool:
        """What a run that was killed at once may leave without a config.yaml, written last."""
        names = ("init_report.json", "environment.json", "lock", "lock.holder", "error.txt")
        return path.name in names or path.match(".*.[0-9]*.partial")

    def finish(self, summary: dict[str, Any]) -> None:
        """Say that nothing is left to do, and what the run came to."""
        write_json(self.finished, summary)

    def append_event(self, event: str, **values: Any) -> None:
        """One line in metrics.jsonl; after a crash a `resumed` line says which step counts."""
        line = json.dumps({"event": event, **values, "time": now()})
        with self.metrics.open("a") as file:
            file.write(line + "\n")


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder aside, sync it, and give it its final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(aside)  # of a process that was killed: containers give the same number again
    try:
        write(aside)
    except BaseException:
        _remove(aside)
        raise
    for file in [aside, *aside.rglob("*")] if aside.is_dir() else [aside]:
        _sync(file)
    if path.is_dir():  # deleted bit by bit, so not under its own name
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        _remove(old)
        path.rename(old)
        aside.rename(path)
        _remove(old)
    else:
        aside.rename(path)
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda aside: _dump(aside, value))


def write_text(path: Path, text: str) -> None:
    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    write_whole(path, write)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and Slurm job, for environment.json."""
    return {
        "time": now(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": {"host": socket.gethostname(), "cpu_count": os.cpu_count()},
        "slurm": cluster.this_job(),
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this code runs from; None if it is installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _tidy(folder: Path) -> None:
    """Undo what a process that was killed while writing left: partial files, folders moved off."""
    for stale in list(folder.rglob(".*.[0-9]*.partial")):
        _remove(stale)
    for old in list(folder.rglob(".*.[0-9]*.old")):
        path = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if path.exists():
            _remove(old)
        else:
            old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _is_below(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
