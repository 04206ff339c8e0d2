"""How far a run has come, from its metrics.jsonl: step of total, ETA, speed, best score."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.hashing import check_kinds
from hpc_ecg.log import describe_seconds
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.sweep.folder import read_events
from hpc_ecg.training.run_folder import RunFolder

OVERDUE_AFTER_S, OVERDUE_FACTOR = 60.0, 5
"""A step is overdue after so long, and so many times the last interval."""
RECENT = 20
"""Lines of metrics.jsonl over which the speed is taken."""


class RunProgress(NamedTuple):
    """`whole_s`: the time of all steps; `evaluated`: the last score, `best` the best so far."""

    steps: str = ""
    eta_s: float | None = None
    whole_s: float | None = None
    pace: str = ""
    best: str = ""
    evaluated: str = ""

    def __str__(self) -> str:
        eta = "" if self.eta_s is None else f"ETA {describe_seconds(self.eta_s)}"
        best = f"best {self.best}" if self.best else ""
        at = "" if best and not self.steps else f"at step {self.steps or 0}"
        return ", ".join(filter(None, (at, eta, best, self.pace)))


def read_progress(run: RunFolder) -> RunProgress | None:
    """None before the first step that was logged; no ETA without a speed, or if steps are
    overdue."""
    events = [event for event in read_events(run.metrics) if "step" in event]
    steps, evals = ([e for e in events if e["event"] == kind] for kind in ("step", "eval"))
    evaluated, best = (_score(some) for some in (evals, [e for e in evals if e.get("best")]))
    if not steps:
        return RunProgress(best=best, evaluated=evaluated) if evals else None
    step, speed = steps[-1]["step"], steps[-1].get("ecg_per_s")
    settings = run.read_settings() if run.config.exists() else {}
    ends = [key for key in settings if key.endswith(("max_epochs", "max_steps"))]
    check_kinds(run.config, settings, dict.fromkeys(ends, int | None))
    total = _total_steps(settings, steps[-1])
    shown = f"{step:,} of {total:,} ({100 * step / total:.0f} %)" if total else f"{step:,}"
    pace = [f"{speed:.0f} ECG/s"] if isinstance(speed, int | float) and speed else []
    rate, times = _steps_per_s(events[-RECENT:]), [_time_of(event) for event in steps[-2:]]
    if (last_s := times[-1]) is not None:
        age_s, interval_s = max(time.time() - last_s, 0.0), last_s - (times[0] or last_s)
        pace.append(f"{describe_seconds(age_s)} ago")
        if age_s > max(OVERDUE_AFTER_S, OVERDUE_FACTOR * interval_s):
            rate, pace = None, [f"no step for {describe_seconds(age_s)}"]
    whole_s = total / rate if total and rate else None
    eta_s = max(total - step, 0) / rate if total and rate else None
    return RunProgress(shown, eta_s, whole_s, ", ".join(pace), best, evaluated)


def _score(evals: Sequence[Mapping[str, Any]]) -> str:
    """That of the last evaluation, such as `AUROC 0.83 at step 20`; "" without one."""
    if not evals or not isinstance(score := evals[-1].get("score"), int | float):
        return ""
    metric = next(name for name, value in evals[-1].items() if value == score)
    return f"{METRIC_NAMES.get(metric, metric)} {format_number(score)} at step {evals[-1]['step']}"


def _total_steps(settings: Mapping[str, Any], step: Mapping[str, Any]) -> int | None:
    """Of all stages; None where neither max_steps nor the length of an epoch is known."""
    epochs, epoch = settings.get("train.max_epochs"), step.get("epoch")
    if settings.get("train.max_steps") or not epoch or epochs is None:
        return settings.get("train.max_steps")
    stages = [
        v for k, v in settings.items() if k[:12] == "train.stages" and k[-10:] == "max_epochs"
    ]
    return round(step["step"] / epoch) * sum(epochs if n is None else n for n in stages or [epochs])


def _steps_per_s(events: Sequence[Mapping[str, Any]]) -> float | None:
    """From the first to the last of these lines, evaluations included."""
    points = [(t, event["step"]) for event in events if (t := _time_of(event)) is not None]
    (began, first), (end, last) = points[0] if points else (0, 0), points[-1] if points else (0, 0)
    return (last - first) / (end - began) if end > began and last > first else None


def _time_of(event: Mapping[str, Any]) -> float | None:
    """When a line of metrics.jsonl was written, in seconds; None where it states no time."""
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(event["time"]).timestamp()
    return None
