"""A sweep's folder on disk: which cells it should hold, and readers of its small files."""

import json
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import read_json, read_settings_file
from hpc_ecg.sweep.arms import arms_of

LOG, ENDED_LOG = "log: ", "ended from outside, log: "
"""First words of error.txt, before the log's path."""


def expected_cells(sweep_dir: Path) -> list[tuple[str, int]]:
    """Arm and seed of each cell: those of sweep.yaml first, then others that have a folder."""
    config = _read_sweep(sweep_dir)
    arms = arms_of(config.get("strategies") or [], config.get("grid") or {})
    planned = [(arm.name, int(seed)) for arm in arms for seed in config.get("seeds") or []]
    on_disk = [
        (folder.parent.name, int(folder.name.removeprefix("seed-")))
        for folder in sweep_dir.glob("*/seed-*")
        if folder.name.removeprefix("seed-").isdigit()
    ]
    return planned + sorted(set(on_disk) - set(planned))


def read_note(sweep_dir: Path) -> str | None:
    """The sweep's setting `note`, for the top of the report."""
    return _read_sweep(sweep_dir).get("note")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that count: `started` or `resumed` at a step drops later
    steps, which the run repeated. A line that a crash left incomplete is skipped."""
    events: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("event") in ("started", "resumed"):
            events = [e for e in events if e.get("step", 0) <= event["step"]]
        events.append(event)
    return events


def read_optional(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is none."""
    return read_json(path) if path.exists() else {}


def parse_error(text: str) -> tuple[str, str]:
    """The reason and the log's path, from the text of error.txt."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "failed", text.partition("\n")[0].partition(LOG)[2]


def _read_sweep(sweep_dir: Path) -> dict[str, Any]:
    path = sweep_dir / "sweep.yaml"
    return read_settings_file(path) if path.exists() and path.stat().st_size else {}
