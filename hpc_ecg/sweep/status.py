"""`hpc-ecg sweep status | cancel | retry`: show the state of a sweep's cells, and end them.

The state comes from each run's folder, and from squeue where it answers. There is a line per cell
(and per trial of the tuning, and soup): queued, running with its step and speed, done with its
score, failed with the reason and the file to read.
"""

import re
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpc_ecg.distributed.stop_signals import STOP
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.hashing import read_record
from hpc_ecg.jobs.local_jobs import job_log
from hpc_ecg.jobs.queue import QueuedJob, cancel_jobs
from hpc_ecg.log import printable
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.sweep.folder import ONE_RUN, expected_cells, is_fixed_arm, parse_error, read_events
from hpc_ecg.sweep.protocol import TO_OPEN, read_protocol
from hpc_ecg.sweep.submissions import Submission, last_submissions, queued_jobs
from hpc_ecg.training.run_folder import RunFolder

WATCH_S = 5.0
OVERDUE_AFTER_S, OVERDUE_FACTOR = 60.0, 5
"""A step is overdue after so long, and so many times the last interval."""
HOLDER = re.compile(r"process (\d+) on (.*)\n?")


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    name: str
    kind: str
    """done, failed, running, queued, stopped or waiting (not started yet)."""
    text: str


def print_status(sweep_dir: Path, watch: bool) -> None:
    """Print the table; with `watch`, again and again until nothing is queued or running."""
    console = Console(soft_wrap=True, markup=False, emoji=False)
    with Live(console=console) if watch and console.is_terminal else nullcontext() as live:
        while True:
            cells = read_status(sweep_dir)
            if live is not None:
                live.update(_table(cells))
            if not (watch and any(cell.kind in ("queued", "running") for cell in cells)):
                break
            time.sleep(WATCH_S)
    if live is None:
        for cell in cells:
            line = printable(f"{cell.name}  {cell.kind}  {cell.text}").rstrip()
            console.print(line, highlight=False, markup=False)
        console.print(_counts(cells), highlight=False)
    protocol = read_protocol(sweep_dir)
    if protocol and not protocol["opened"]:
        console.print(f"the test is closed: {TO_OPEN}", highlight=False)


def read_status(sweep_dir: Path) -> list[CellStatus]:
    """The status of all cells, in the order of sweep.yaml, between the trials and the soups."""
    names, submitted = _task_names(sweep_dir), last_submissions(sweep_dir)
    queue = queued_jobs(sweep_dir, names)
    if queue is None:  # whether a submitted run has a job is not known
        queue, submitted = {}, {}
    return [_status(sweep_dir, name, queue.get(name), submitted.get(name)) for name in names]


def cancel_cells(sweep_dir: Path, cells: list[str]) -> list[str]:
    """End these cells' jobs, or all of the sweep; returns a line for each that was ended.

    Runs save first, and the next start of the sweep continues them.
    """
    check_cells(sweep_dir, cells)
    statuses = read_status(sweep_dir)
    names = cells or [cell.name for cell in statuses]
    queue = queued_jobs(sweep_dir, names)
    if queue is None:
        raise ValueError("squeue does not answer; cancel where Slurm's commands are")
    if queue:
        cancel_jobs([job.id for job in queue.values()])
    running = [cell.name for cell in statuses if cell.kind == "running"]
    local = [name for name in running if name in names and name not in queue]
    for name in local:
        (sweep_dir / name / STOP).touch()
    if not cells and not queue and _is_held(sweep_dir / "lock.holder"):
        (sweep_dir / STOP).touch()  # so that the sweep's process on this machine starts no other
        local = local or ["the sweep on this machine"]
    lines = [f"cancelled: {name} (job {job.id})" for name, job in queue.items()]
    lines += [f"asked to save and stop: {name}" for name in local]
    return lines or ["nothing is queued or running"]


def check_cells(sweep_dir: Path, cells: list[str]) -> None:
    """Raise ValueError for a name that is no cell, and no trial or soup that has started."""
    known = _task_names(sweep_dir)
    for cell in cells:
        if cell not in known:
            raise ValueError(f"{sweep_dir} has no cell {cell}; it has {', '.join(known[:4])} …")


def _task_names(sweep_dir: Path) -> list[str]:
    """All cells, between the trials and the soups that have started."""
    if not (sweep_dir / "sweep.yaml").exists():
        raise ValueError(f"{sweep_dir} is not a sweep's folder (no sweep.yaml)")
    folders = [*sweep_dir.glob("tuning/*/*"), *sweep_dir.glob("*/soup")]
    started = {str(path.relative_to(sweep_dir)) for path in folders}
    started |= set(last_submissions(sweep_dir))
    cells = [f"{arm}/seed-{seed}" for arm, seed in expected_cells(sweep_dir)]
    trials = sorted(name for name in started if name.startswith("tuning/"))
    return trials + cells + sorted(name for name in started if name.endswith("/soup"))


def _status(
    sweep_dir: Path, name: str, job: QueuedJob | None, submission: Submission | None
) -> CellStatus:
    """A run that was submitted and has no job is not running, whatever its folder holds."""
    run = RunFolder(sweep_dir / name)
    if job is not None and job.is_pending:
        text = f"job {job.id}: {job.describe_reason()}".removesuffix(": ")
        return CellStatus(name=name, kind="queued", text=text)
    error = run.path / "error.txt"
    if job is None and error.exists():
        reason, file = parse_error(error.read_text())
        return CellStatus(name=name, kind="failed", text=f"{reason} (see {file})")
    is_soup, is_trial = name.endswith("/soup"), name.startswith("tuning/")
    is_tested = run.evaluation.exists() or is_trial
    if (run.finished.exists() or (is_soup and is_tested)) and (is_tested or job is None):
        try:
            stands = f"; {ONE_RUN}" if is_fixed_arm(run.path.parent) else ""
            text = _score(run) + stands
        except (ValueError, OSError, TypeError, KeyError, AttributeError):
            text = f"{run.evaluation} is damaged"
        return CellStatus(name=name, kind="done", text=text)
    holder = run.path / "lock.holder"
    if job is not None or (submission is None and _is_held(holder)):
        place = f"job {job.id}" if job else "on this machine"
        log = submission.log if submission else _local_log(sweep_dir, name, holder)
        parts = (f"{place} {_progress(run)}".rstrip(), f"log: {log}" if log.exists() else "")
        return CellStatus(name=name, kind="running", text="; ".join(filter(None, parts)))
    if progress := _progress(run):
        return CellStatus(name=name, kind="stopped", text=f"{progress}; start the sweep again")
    return CellStatus(name=name, kind="waiting", text="not started")


def _is_held(holder: Path) -> bool:
    """Whether the process that lock.holder names may be alive; on another node it may."""
    if not holder.is_file():
        return False
    match = HOLDER.fullmatch(holder.read_text())
    if match is None or match.group(2) != socket.gethostname():
        return True
    return Path(f"/proc/{match.group(1)}").exists() or not Path("/proc").exists()


def _local_log(sweep_dir: Path, name: str, holder: Path) -> Path:
    """The log of the process that lock.holder names."""
    process = HOLDER.fullmatch(holder.read_text())
    return job_log(sweep_dir / "submitit", name, int(process[1])) if process else Path("none")


def _progress(run: RunFolder) -> str:
    """The last step, its speed and how long ago it was; no speed if later steps are overdue."""
    steps = [event for event in read_events(run.metrics) if event.get("event") == "step"]
    times = [time_s for event in steps[-2:] if (time_s := _time_of(event))]
    if not steps:
        return ""
    settings = run.read_settings() if run.config.exists() else {}
    max_epochs = settings.get("train.max_epochs")
    text = f"at step {steps[-1]['step']}"
    if "epoch" in steps[-1] and max_epochs:
        text += f", epoch {steps[-1]['epoch']:.1f} of {max_epochs}"
    speed = steps[-1].get("ecg_per_s")
    text_speed = f", {speed:.0f} ECG/s" if isinstance(speed, int | float) and speed else ""
    if not times:
        return text + text_speed
    age_s = max(time.time() - times[-1], 0.0)
    if age_s > max(OVERDUE_AFTER_S, OVERDUE_FACTOR * (times[-1] - times[0])):
        return f"{text}, no step for {_describe_age(age_s)}"
    return f"{text}{text_speed}, {_describe_age(age_s)} ago"


def _time_of(event: Mapping[str, Any]) -> float | None:
    """When a line of metrics.jsonl was written, in seconds; None where it states no time."""
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(event["time"]).timestamp()
    return None


def _describe_age(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _score(run: RunFolder) -> str:
    """The score on the test split; for a trial, which never sees it, on validation."""
    if not run.evaluation.exists():
        finished = read_record(run.finished)
        score = finished["best_score"]  # None where nothing was trained
        name = METRIC_NAMES.get(finished["metric"], finished["metric"])
        return "" if score is None else f"validation {name} {format_number(score)}"
    evaluation = read_record(run.evaluation)
    labels: dict[str, Any] = evaluation.get("labels", {})
    metrics: dict[str, Any] = evaluation.get("macro") or next(iter(labels.values()), {})
    macro = "macro " if "macro" in evaluation else ""
    for metric in ("auroc", "r2"):
        if metric in metrics:
            value = format_number(metrics[metric]["value"])
            return f"test {macro}{METRIC_NAMES[metric]} {value}"
    return ""


def _counts(cells: list[CellStatus]) -> str:
    counts = Counter(cell.kind for cell in cells)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _table(cells: list[CellStatus]) -> Table:
    table = Table(title=_counts(cells))
    for column in ("run", "state", ""):
        table.add_column(column, overflow="fold")
    for cell in cells:
        table.add_row(*(Text(printable(part)) for part in (cell.name, cell.kind, cell.text)))
    return table
