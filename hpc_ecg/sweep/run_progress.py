"""How far a run has come, from its metrics.jsonl: step of total, ETA, speed, best score."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.log import describe_seconds
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.sweep.folder import read_events
from hpc_ecg.training.run_folder import RunFolder

OVERDUE_AFTER_S, OVERDUE_FACTOR = 60.0, 5
"""A step is overdue after so long, and so many times the last interval."""
RECENT = 20
"""Lines of metrics.jsonl over which the speed is taken."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    steps: str = "0"
    """Such as `20 of 80 (25 %)`, or `20` where the total is not known."""
    eta_s: float | None = None
    """None without a speed, or if later steps are overdue."""
    whole_s: float | None = None
    """The time of all steps at this speed."""
    pace: str = ""
    """ECG/s, and how long ago the last step was."""
    best: str = ""
    """The best validation score so far."""
    evaluated: str = ""
    """The last one."""

    def __str__(self) -> str:
        eta = "" if self.eta_s is None else f"ETA {describe_seconds(self.eta_s)}"
        best = f"best {self.best}" if self.best else ""
        return ", ".join(filter(None, (f"at step {self.steps}", eta, best, self.pace)))


def read_progress(run: RunFolder) -> RunProgress | None:
    """None before the first step or evaluation that was logged."""
    events = read_events(run.metrics)
    steps, evals = ([e for e in events if e["event"] == kind] for kind in ("step", "eval"))
    scores: dict[str, Any] = {
        "best": "".join(describe_score(e) for e in [e for e in evals if e.get("best")][-1:]),
        "evaluated": "".join(map(describe_score, evals[-1:])),
    }
    if not steps:
        return RunProgress(**scores) if evals else None
    last, times = steps[-1], [_time_of(event) for event in steps[-2:]]
    total = _total_steps(run.read_settings() if run.config.exists() else {}, last)
    shown = f"{last['step']:,}"
    if total:
        shown += f" of {total:,} ({100 * last['step'] / total:.0f} %)"
    speed = last.get("ecg_per_s")
    pace = f"{speed:.0f} ECG/s" if isinstance(speed, int | float) and speed else ""
    rate = _steps_per_s([e for e in events if "step" in e][-RECENT:])
    if times[-1] is not None:
        age_s = max(time.time() - times[-1], 0.0)
        ago, interval_s = describe_seconds(age_s), times[-1] - (times[0] or times[-1])
        pace = f"{pace}, {ago} ago" if pace else f"{ago} ago"
        if age_s > max(OVERDUE_AFTER_S, OVERDUE_FACTOR * interval_s):
            rate, pace = None, f"no step for {ago}"
    if total and rate:
        scores |= {"whole_s": total / rate, "eta_s": max(total - last["step"], 0) / rate}
    return RunProgress(steps=shown, pace=pace, **scores)


def describe_score(event: Mapping[str, Any]) -> str:
    """The score of an `eval` line, its metric and step: `AUROC 0.83 at step 20`."""
    score = event.get("score")
    score = score if isinstance(score, int | float) else None
    metric = next((m for m in event if m != "score" and event[m] == score), "score")
    return f"{METRIC_NAMES.get(metric, metric)} {format_number(score)} at step {event.get('step')}"


def _total_steps(settings: Mapping[str, Any], step: Mapping[str, Any]) -> int | None:
    """Of all stages; None where neither max_steps nor the length of an epoch is known."""
    if settings.get("train.max_steps"):
        return int(settings["train.max_steps"])
    epochs, epoch = settings.get("train.max_epochs"), step.get("epoch")
    if not epoch or epochs is None:
        return None
    of_stages = [
        value
        for key, value in settings.items()
        if key.startswith("train.stages.") and key.endswith(".max_epochs")
    ]
    whole = sum(epochs if value is None else value for value in of_stages or [epochs])
    return round(step["step"] / epoch) * whole


def _steps_per_s(events: Sequence[Mapping[str, Any]]) -> float | None:
    """From the first to the last of these lines, evaluations included."""
    points = [(t, event["step"]) for event in events if (t := _time_of(event)) is not None]
    (began, first), (end, last) = (points or [(0.0, 0)])[0], (points or [(0.0, 0)])[-1]
    return (last - first) / (end - began) if end > began and last > first else None


def _time_of(event: Mapping[str, Any]) -> float | None:
    """When a line of metrics.jsonl was written, in seconds; None where it states no time."""
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(event["time"]).timestamp()
    return None
