"""How far a run has come, from its metrics.jsonl: step of total, ETA, speed, best score."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.hashing import check_kinds
from hpc_ecg.log import describe_seconds, printable
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.sweep.folder import read_events
from hpc_ecg.training.run_folder import RunFolder

OVERDUE_AFTER_S, OVERDUE_FACTOR = 60.0, 5
"""A step is overdue after so long, and so many times the last interval."""
RECENT = 20
"""Lines of metrics.jsonl over which the speed is taken."""
AROUND = 8
"""Lines of a terminal that a table leaves for its title and the log."""
COLUMNS, LEAST_USEFUL = ("run", "state", "step", "ETA", "best", ""), ("best", "step", "ETA", "")
"""Of a table, and those that it lacks on a narrow terminal, the first one first."""
FOLDED = {"step": 12, "best": 12, "": 12}
"""Columns whose text takes several lines where it must, and how narrow they may be."""


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


class CellStatus(NamedTuple):
    """`kind`: done, failed, running, queued, stopped or waiting (not started yet); `seconds`: how
    long it trained, once it is done."""

    name: str
    kind: str
    text: str
    progress: RunProgress | None = None
    seconds: float | None = None


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


def table_of(cells: Sequence[CellStatus], title: str, width: int, height: int) -> Table:
    """What of it fits on a terminal: cells that run or failed come first, and columns of least use
    are left out."""
    if len(cells) > (most := max(height - AROUND, 1)):
        order = ("running", "failed", "done", "queued", "stopped", "waiting")
        cells = sorted(cells, key=lambda cell: order.index(cell.kind))[:most]
    rows = list[tuple[str, ...]]()
    for cell in cells:
        p = cell.progress or RunProgress()
        eta = "" if p.eta_s is None else describe_seconds(p.eta_s)
        text = p.pace if cell.kind == "running" else cell.text
        rows.append((cell.name, cell.kind, p.steps, eta, p.best, text))
    texts = {n: [*map(printable, column)] for n, *column in zip(COLUMNS, *rows, strict=True)}
    needs = {n: 3 + min(max(map(len, (n, *c))), FOLDED.get(n, 1000)) for n, c in texts.items()}
    for name in LEAST_USEFUL:
        if sum(needs.values()) >= width:
            del needs[name]
    table = Table(title=title)
    for name in needs:
        is_whole = name not in FOLDED and sum(needs.values()) < width
        table.add_column(name, overflow="fold", no_wrap=is_whole)
    for row in zip(*(texts[name] for name in needs), strict=True):
        table.add_row(*map(Text, row))
    return table
