"""The content of environment.json: versions, machine, Slurm job, and where relative paths start."""

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_ecg.distributed.ranks import slurm_job_facts
from hpc_ecg.hashing import check_kinds

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


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_environment(folder: Path) -> dict[str, Any]:
    """The environment.json of a run or sweep in `folder`, as plain values."""
    return {
        "time": utc_now(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": {"host": socket.gethostname(), "cpu_count": os.cpu_count()},
        "slurm": slurm_job_facts(),
        "command": sys.argv,
        "working_directory": describe_working_directory(folder),
    }


def describe_working_directory(folder: Path) -> dict[str, str]:
    """The folder where the settings' relative paths start, absolute and relative to `folder`."""
    current = Path.cwd()
    return {"path": str(current), "from_this_folder": os.path.relpath(current, folder.resolve())}


def base_folders(folder: Path, environment: dict[str, Any]) -> list[Path]:
    """The folders where the relative paths of a run or sweep may start, the likeliest first.

    The working directory relative to `folder` comes first: it is right if run, data and weights
    were moved together. [] for a folder of version 0.1, which did not record it.
    """
    recorded = environment.get("working_directory")
    if not isinstance(recorded, dict):
        return []
    check_kinds(folder / "environment.json", recorded, {"path": str, "from_this_folder": str})
    moved = Path(os.path.normpath(folder.resolve() / recorded["from_this_folder"]))
    return list(dict.fromkeys([moved, Path(recorded["path"])]))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this code runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
