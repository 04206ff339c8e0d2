"""The folder of one run, the same on a laptop, under sbatch and in a sweep.

Every file is written under another name, synced and renamed, so a file with its final name is
complete. A lock keeps two jobs out of one folder; `finished.json` is written last.
"""

import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import naming, tidy, write_json, write_text
from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.config.schema import rules_by_key
from hpc_ecg.hashing import (
    CHANGED,
    check_file,
    check_record,
    read_record,
    sha256_of_value,
    write_record,
)
from hpc_ecg.log import waiting_for
from hpc_ecg.safe_reading import read_settings_file
from hpc_ecg.training.environment import describe_environment, utc_now
from hpc_ecg.training.settings import FinetuneConfig

SETTINGS, WEIGHTS = "settings_sha256", "best/model.safetensors"
LOCK_TIMEOUT_AFTER_RESTART_S = 120
"""The lock of a lost node may outlive it for a while."""


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.init_report = self.path / "init_report.json"
        self.kernels = self.path / "kernels.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.predictions = self.path / "predictions"
        self.evaluation = self.path / "evaluation.json"
        self.finished = self.path / "finished.json"
        self._lock: FileLock | None = None

    def open(self, config_yaml: str, facts: dict[str, Any], init_report: dict[str, Any]) -> None:
        """Claim the folder; a later start must have the data and weights of the first.

        `facts` go into environment.json; data_index_sha256 and precision must be among them.
        ValueError if the folder is in use or holds another run.
        """
        self.claim()
        self.check_same_config(config_yaml)
        if self.config.exists():
            self._check_same_sources(facts, init_report)
            return
        write_json(self.init_report, init_report)
        write_json(self.environment, describe_environment(self.path) | facts)
        write_text(self.config, config_yaml)  # last, since it marks a run folder

    def claim(self) -> None:
        """Make the folder and lock it; ValueError if it is in use or cannot be written."""
        holder = self.path / "lock.holder"
        self._lock = FileLock(self.path / "lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            is_restart = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
            with waiting_for(f"waiting for the process of {self.path} before the restart"):
                self._lock.acquire(timeout=LOCK_TIMEOUT_AFTER_RESTART_S if is_restart else 0)
        except Timeout:
            user = holder.read_text().strip() if holder.exists() else "another process"
            raise ValueError(
                f"{self.path} is in use by {user}; wait, or give another folder"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}") from None
        if self.config.exists():  # tidy only run folders
            tidy(self.path)
        with naming(holder):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def release(self) -> None:
        if self._lock is not None and self._lock.is_locked:
            (self.path / "lock.holder").unlink(missing_ok=True)
            (self.path / "lock").unlink(missing_ok=True)  # before another process can take it
            self._lock.release()

    def check_same_config(self, config_yaml: str, setting: str = "run_dir") -> None:
        """ValueError if the folder belongs to another configuration.

        Settings that may change are not compared. `setting` is the key that names the folder.
        """
        if not self.config.exists():
            self._check_not_foreign()
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

    def _check_not_foreign(self) -> None:
        """ValueError if the folder holds files that a run killed at its start cannot have left."""
        files = self.path.iterdir() if self.path.is_dir() else ()
        early = {"init_report.json", "environment.json", "lock", "lock.holder", "error.txt"}
        early |= {"STOP", "SAVE", "plan.json"}
        foreign = sorted(
            path.name
            for path in files
            if not path.match(".*.[0-9]*.partial")
            and (path.name not in early or (path.name == "lock" and path.stat().st_size))
        )
        if foreign:
            raise ValueError(
                f"run_dir={self.path} is not a run folder (no config.yaml) and not empty "
                f"({', '.join(foreign[:3])}); give a new folder"
            )

    def _check_same_sources(self, facts: dict[str, Any], init_report: dict[str, Any]) -> None:
        key = "data_index_sha256"
        before = read_record(self.environment, {key: str, "precision": str})
        if before[key] != facts[key]:
            raise ValueError(
                f"data.shards is not the data that {self.path} was started on (index "
                f"{facts[key][:12]}, was {before[key][:12]}); give another run_dir"
            )
        if before["precision"] != facts["precision"]:
            raise ValueError(
                f"{self.path} was started in {before['precision']} and would go on in "
                f"{facts['precision']}; set engine.precision={before['precision']} on such a "
                "machine"
            )
        started_from = read_record(self.init_report, {"checkpoint": dict | None})
        if _checkpoint_sha256(started_from) != _checkpoint_sha256(init_report):
            raise ValueError(
                f"init.checkpoint is not the file that {self.path} was started from (its SHA-256 "
                "differs); give another run_dir"
            )

    def read_settings(self) -> dict[str, Any]:
        """The settings of config.yaml by dotted key."""
        return flatten(read_settings_file(self.config))

    def is_finished(self) -> bool:
        """ValueError if finished.json exists but is damaged."""
        return self.finished.exists() and bool(read_record(self.finished))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write finished.json, which marks the run as finished and holds what must not change."""
        files = [self.environment, self.init_report, self.kernels, self.metrics]
        files += [*sorted(self.best.glob("*")), self.predictions / "valid.parquet"]
        files = [path for path in files if path.exists()]
        if self.config.exists():
            summary = summary | {SETTINGS: sha256_of_value(fixed_settings(self.read_settings()))}
        write_record(self.finished, summary, files)

    def check_unchanged(self) -> bool:
        """Whether finished.json has digests (version 0.1 wrote none). ValueError names a file that
        has changed since; the weights are left to those who read them."""
        stated = read_record(self.finished).get(SETTINGS)
        if stated not in (None, sha256_of_value(fixed_settings(self.read_settings()))):
            raise ValueError(f"{self.config} {CHANGED}")
        is_evaluated = self.evaluation.exists() and check_record(self.evaluation)
        return check_record(self.finished, leave_out=WEIGHTS) and (
            is_evaluated or not self.evaluation.exists()
        )

    def read_about(self, name: str, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a verb noted about the weights, or {}. ValueError: of others, or `read_record`."""
        path = self.path / name
        if path.exists() and not check_file(self.path / WEIGHTS, path):
            raise ValueError(f"{path} does not say which weights it is about; make it again")
        return read_record(path, kinds) if path.exists() else {}

    def append_event(self, event: str, **values: Any) -> None:
        """Append a line to metrics.jsonl; numbers that are not finite become null.

        After a crash, lines from the step of the last `started` or `resumed` line on replace
        earlier ones.
        """
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with naming(self.metrics), self.metrics.open("a+b") as file:
            if is_torn := file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                is_torn = file.read(1) != b"\n"
            line = json.dumps({"event": event, **plain, "time": utc_now()}, allow_nan=False)
            file.write(b"\n" * is_torn + line.encode() + b"\n")


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys in which two configurations differ, except those that may change."""
    one, other = fixed_settings(one), fixed_settings(other)
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def fixed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run cannot resume with another value of; those that are off are left out,
    as an older version may not have known them."""
    may_change = tuple(f"{key}." for key, rule in rules_by_key(FinetuneConfig) if rule.may_change)
    known = {key: value for key, value in settings.items() if value is not False}
    return {key: value for key, value in known.items() if not f"{key}.".startswith(may_change)}


def _checkpoint_sha256(init_report: dict[str, Any]) -> str | None:
    checkpoint = init_report["checkpoint"]
    return checkpoint.get("sha256") if checkpoint else None
