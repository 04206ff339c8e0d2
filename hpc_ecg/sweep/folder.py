"""A sweep's folder as it lies on disk: which cells it should hold, and what its small files say."""

import json
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import read_json, read_settings_file
from hpc_ecg.sweep.arms import arms_of


def expected_cells(sweep_dir: Path) -> list[tuple[str, int]]:
    """Arm and seed: of sweep.yaml first, then what lies in the folder and is not named there."""
    config = _read_sweep(sweep_dir)
    arms = arms_of(config.get("strategies") or [], config.get("grid") or {})
    planned = [(arm.name, int(seed)) for arm in arms for seed in config.get("seeds") or []]
    found = [
        (folder.parent.name, int(folder.name.removeprefix("seed-")))
        for folder in sweep_dir.glob("*/seed-*")
        if folder.name.removeprefix("seed-").isdigit()
    ]
    return planned + sorted(set(found) - set(planned))


def read_note(sweep_dir: Path) -> str | None:
    """The sweep's own `note`, for the top of the report."""
    return _read_sweep(sweep_dir).get("note")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that count: `started` or `resumed` at a step drops later steps,
    which the run did again. A line that a crash tore is left out."""
    events: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("event") in ("started", "resumed"):
            events = [e for e in events if e.get("step", 0) <= event["step"]]
        events.append(event)
    return events


def read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_sweep(sweep_dir: Path) -> dict[str, Any]:
    path = sweep_dir / "sweep.yaml"
    return read_settings_file(path) if path.exists() and path.stat().st_size else {}
