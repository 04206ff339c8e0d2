"""What the runs cost and where they ran: the part of a report that no two sweeps have in common."""

import json
from dataclasses import dataclass
from typing import Any

from hpc_ecg.comparison.results import RunResult
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one strategy, all seeds together."""

    hours: dict[str, float]
    """Processes x hours of training, by unit: GPU-hours, CPU process-hours."""
    energy_kwh: float | None
    """Of the GPUs while training, where NVML tells it for every run."""
    ecg_per_s: float | None
    """Mean over the runs that trained."""


def total_costs(runs: list[RunResult]) -> dict[str, Cost]:
    by_strategy: dict[str, list[RunResult]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    return {name: _cost(own) for name, own in by_strategy.items()}


def summarize_environments(runs: list[RunResult]) -> list[tuple[str, str]]:
    """Facts of all runs; where they differ, each value that occurred (at most three)."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in read_optional(run.folder.environment).items():
            if value and key not in ("time", "command"):  # these differ by nature
                seen.setdefault(key, {})[plain(value)] = None
    return [
        (key, " | ".join(list(values)[:3]) + (" | …" if len(values) > 3 else ""))
        for key, values in seen.items()
    ]


def _cost(runs: list[RunResult]) -> Cost:
    hours: dict[str, float] = {}
    for run in runs:
        device = run.finished["device"].lower()
        unit = "CPU process-hours" if device.startswith("cpu") else "GPU-hours"
        hours[unit] = hours.get(unit, 0.0) + run.finished["process_seconds"] / 3600
    energies = [e for c in runs if (e := c.finished.get("energy_kwh")) is not None]
    speeds = [s for run in runs if (s := run.finished.get("ecg_per_s"))]
    return Cost(
        hours=hours,
        energy_kwh=sum(energies) if len(energies) == len(runs) else None,
        ecg_per_s=sum(speeds) / len(speeds) if speeds else None,
    )


def plain(value: Any) -> str:
    """As a reader would write it, not as Python does."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v is not None)
    return value if isinstance(value, str) else json.dumps(value)
