"""One run's folder: the same on a laptop, under sbatch and in a sweep; it is how a run goes on.

Every file is written aside, synced and renamed, so what has its final name is whole. A lock keeps
two jobs out of one folder; `finished.json`, written last, says that nothing is left to do.
"""

import json
import math
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import read_json, read_settings_file, tidy, write_json
from hpc_ecg.distributed import ranks as cluster

# What may differ when a run goes on: where things lie and how often, not what is computed.
NEUTRAL = (
    *("run_dir", "files", "data.shards", "init.checkpoint", "train.save_every"),
    *("data.stage_dir", "data.stage_quota_gb", "data.stage_keep", "data.allow_pipe"),
    *(
        "train.keep_checkpoints",
        "train.log_every",
        "train.feature_cache",
        "train.save_every_min",
        "train.skip_nonfinite",
        "train.doctor",
    ),
    *("engine.parallel", "engine.activation_checkpointing", "engine.compile", "engine.trackers"),
    *("engine.device", "engine.micro_batch_size", "engine.cpu_threads", "engine.timeout_min"),
    "model.attention",
)
NEUTRAL_PREFIXES = tuple(f"{key}." for key in NEUTRAL)
RESTART_PATIENCE_S = 120
PACKAGES = (
    "hpc-ecg",
    "torch",
    "accelerate",
    "deepspeed",
    "webdataset",
    "submitit",
    "torchmetrics",
    "numpy",
)


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
            # a lock of the node that was lost may outlive it for a while
            is_restart = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
            self._lock.acquire(timeout=RESTART_PATIENCE_S if is_restart else 0)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "another process"
            raise ValueError(
                f"{self.path} is in use by {who}; wait, or give another folder"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}") from None
        if self.config.exists():  # a run's folder, not somebody's home
            tidy(self.path)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def release(self) -> None:
        if self._lock is not None and self._lock.is_locked:
            (self.path / "lock.holder").unlink(missing_ok=True)
            (self.path / "lock").unlink(missing_ok=True)  # while held: later it may be another's
            self._lock.release()

    def check_same_config(self, config_yaml: str, setting: str = "run_dir") -> None:
        """Refuse a folder of another configuration; what is NEUTRAL may differ. `setting` is where
        the user says which folder."""
        if not self.config.exists():
            inside = self.path.iterdir() if self.path.is_dir() else ()
            foreign = [path.name for path in inside if not self._is_early(path)]
            if foreign:
                raise ValueError(
                    f"run_dir={self.path} is not a run folder (no config.yaml) and not empty "
                    f"({', '.join(sorted(foreign)[:3])}); give a new folder"
                )
            return
        old, new = self.read_settings(), flatten(yaml.safe_load(config_yaml))
        differing = [
            f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in differing_keys(old, new)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another configuration ({'; '.join(differing)}); "
                f"give another {setting}, or the settings of that run"
            )

    def read_settings(self) -> dict[str, Any]:
        """The settings of config.yaml by dotted key."""
        return flatten(read_settings_file(self.config))

    def is_finished(self) -> bool:
        """ValueError if finished.json is there but damaged."""
        return self.finished.exists() and bool(read_json(self.finished))

    def _is_early(self, path: Path) -> bool:
        """What a run that was killed at once may leave without a config.yaml, written last."""
        names = ("init_report.json", "environment.json", "lock", "lock.holder", "error.txt")
        return path.name in (*names, "STOP", "SAVE") or path.match(".*.[0-9]*.partial")

    def finish(self, summary: dict[str, Any]) -> None:
        """Say that nothing is left to do, and what the run came to."""
        write_json(self.finished, summary)

    def append_event(self, event: str, **values: Any) -> None:
        """One line in metrics.jsonl; what is not finite becomes null. After a crash, a `started` or
        `resumed` line says which step counts from there."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self.metrics.open("a+b") as file:
            torn = file.seek(0, os.SEEK_END) and _last_byte(file) != b"\n"
            line = json.dumps({"event": event, **plain, "time": now()}, allow_nan=False)
            file.write(b"\n" * torn + line.encode() + b"\n")


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


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Dotted keys in which two configurations differ, but for what is NEUTRAL."""
    return [
        key
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key) and not (key + ".").startswith(NEUTRAL_PREFIXES)
    ]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
