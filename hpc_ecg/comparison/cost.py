"""What the runs cost and where they ran: the part of a report that differs between equal sweeps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_ecg.comparison.results import RunResult, by_strategy
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one strategy, summed over its seeds."""

    hours: dict[str, float]
    """Processes x hours of training, by unit: GPU-hours, CPU process-hours."""
    energy_kwh: float | None
    """Energy of the GPUs during training; None unless NVML reported it for every run."""
    ecg_per_s: float | None
    """Mean over the runs that trained."""


def total_costs(runs: Sequence[RunResult]) -> dict[str, Cost]:
    """Sum the cost of each strategy's runs."""
    return {name: _cost(group) for name, group in by_strategy(runs).items()}


def summarize_environments(runs: Sequence[RunResult]) -> list[tuple[str, str]]:
    """List the facts of environment.json over all runs; up to three values where they differ."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in read_optional(run.folder.environment).items():
            if value and key not in ("time", "command"):  # these always differ
                seen.setdefault(key, {})[plain_text(value)] = None
    return [
        (key, " | ".join([*list(values)[:3], *(["…"] if len(values) > 3 else [])]))
        for key, values in seen.items()
    ]


def plain_text(value: Any) -> str:
    """Write a value without Python's brackets and quotes."""
    if isinstance(value, list):
        return " ".join(map(plain_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain_text(v)}" for k, v in value.items() if v is not None)
    return value if isinstance(value, str) else json.dumps(value)


def _cost(runs: Sequence[RunResult]) -> Cost:
    hours: dict[str, float] = {}
    for run in runs:
        is_cpu = run.finished["device"].lower().startswith("cpu")
        unit = "CPU process-hours" if is_cpu else "GPU-hours"
        hours[unit] = hours.get(unit, 0.0) + run.finished["process_seconds"] / 3600
    energies = [e for run in runs if (e := run.finished.get("energy_kwh")) is not None]
    speeds = [s for run in runs if (s := run.finished.get("ecg_per_s"))]
    return Cost(
        hours=hours,
        energy_kwh=sum(energies) if len(energies) == len(runs) else None,
        ecg_per_s=sum(speeds) / len(speeds) if speeds else None,
    )
