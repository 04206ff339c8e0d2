"""`hpc-ecg sweep status | cancel | retry`: show the state of a sweep's cells, and end them.

The state comes from each run's folder, and from squeue where it answers. There is a line per cell
(and per trial of the tuning, and soup): queued, running with its step and speed, done with its
score, failed with the reason and the file to read.
"""

import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from hpc_ecg.distributed.stop_signals import STOP
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.hashing import read_record
from hpc_ecg.jobs.local_jobs import job_log
from hpc_ecg.jobs.queue import QueuedJob, cancel_jobs
from hpc_ecg.log import describe_seconds, printable
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.sweep.folder import (
    ONE_RUN,
    expected_cells,
    is_fixed_arm,
    parse_error,
    read_optional,
)
from hpc_ecg.sweep.protocol import TO_OPEN, read_protocol
from hpc_ecg.sweep.run_progress import CellStatus, read_progress, table_of
from hpc_ecg.sweep.submissions import Submission, last_submissions, queued_jobs
from hpc_ecg.training.run_folder import RunFolder

WATCH_S = 5.0
"""Between two looks."""
HOLDER = re.compile(r"process (\d+) on (.*)\n?")


def print_status(sweep_dir: Path, watch: bool) -> None:
    """Print the table; with `watch`, again and again until nothing is queued or running."""
    console = Console(soft_wrap=True, markup=False, emoji=False)
    with Live(console=console) if watch and console.is_terminal else nullcontext() as live:
        while True:
            cells = read_status(sweep_dir)
            if live is not None:
                live.update(table_of(cells, describe_counts(cells), *console.size))
            if not (watch and any(cell.kind in ("queued", "running") for cell in cells)):
                break
            time.sleep(WATCH_S)
    if live is None:
        for cell in cells:
            line = printable(f"{cell.name}  {cell.kind}  {cell.text}").rstrip()
            console.print(line, highlight=False, markup=False)
        console.print(describe_counts(cells), highlight=False)
    protocol = read_protocol(sweep_dir)
    if protocol and not protocol["opened"]:
        console.print(f"the test is closed: {TO_OPEN}", highlight=False)


def read_status(sweep_dir: Path) -> list[CellStatus]:
    """The status of all cells, in the order of sweep.yaml, between the trials and the soups."""
    names, submitted = _task_names(sweep_dir), last_submissions(sweep_dir)
    queue = queued_jobs(sweep_dir, names)
    if queue is None:  # whether a submitted run has a job is not known
        queue, submitted = {}, {}
    return [cell_status(sweep_dir, name, queue.get(name), submitted.get(name)) for name in names]


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


def cell_status(
    sweep_dir: Path,
    name: str,
    job: QueuedJob | None = None,
    submission: Submission | None = None,
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
            text = describe_result(run) + stands
            seconds = read_optional(run.finished).get("train_seconds")
        except (ValueError, OSError, TypeError, KeyError, AttributeError):
            text, seconds = f"{run.evaluation} is damaged", None
        return CellStatus(name=name, kind="done", text=text, seconds=seconds)
    holder, progress = run.path / "lock.holder", read_progress(run)
    if job is not None or (submission is None and _is_held(holder)):
        place = f"job {job.id}" if job else "on this machine"
        log = submission.log if submission else _local_log(sweep_dir, name, holder)
        parts = (f"{place} {progress or ''}".rstrip(), f"log: {log}" if log.exists() else "")
        text = "; ".join(filter(None, parts))
        return CellStatus(name=name, kind="running", text=text, progress=progress)
    if progress:
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


def describe_result(run: RunFolder) -> str:
    """The score on the test split; for a trial, which never sees it, on validation."""
    if not run.evaluation.exists():
        return describe_validation(run)
    evaluation = read_record(run.evaluation)
    labels: dict[str, Any] = evaluation.get("labels", {})
    metrics: dict[str, Any] = evaluation.get("macro") or next(iter(labels.values()), {})
    macro = "macro " if "macro" in evaluation else ""
    for metric in ("auroc", "r2"):
        if metric in metrics:
            value = format_number(metrics[metric]["value"])
            return f"test {macro}{METRIC_NAMES[metric]} {value}"
    return ""


def describe_validation(run: RunFolder) -> str:
    """The best score on validation, and its step."""
    finished = read_record(run.finished)
    score, name = finished["best_score"], METRIC_NAMES.get(finished["metric"], finished["metric"])
    if score is None:
        return ""
    return f"validation {name} {format_number(score)} at step {finished['best_step']}"


def describe_counts(cells: Sequence[CellStatus], at_once: int = 0) -> str:
    """How many cells are in which state, and the ETA of all; `at_once`: how many run, if known."""
    counts = Counter(cell.kind for cell in cells)
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    eta_s = _eta_of_all(cells, at_once or counts["running"])
    if eta_s is None:
        return text
    queue = ", without the time in the queue" if counts["queued"] else ""
    return f"{text}; ETA {describe_seconds(eta_s)}{queue}"


def _eta_of_all(cells: Sequence[CellStatus], at_once: int) -> float | None:
    """Cells that have not run take as long as finished ones did, or running ones will."""
    shown = [cell.progress for cell in cells if cell.kind == "running" and cell.progress]
    left = [p.eta_s for p in shown if p.eta_s is not None]
    whole = [c.seconds for c in cells if c.seconds] or [p.whole_s for p in shown if p.whole_s]
    todo = sum(cell.kind in ("running", "queued", "waiting", "stopped") for cell in cells)
    if not (whole and at_once and todo):
        return None
    mean_s = sum(whole) / len(whole)
    return max([*left, (sum(left) + (todo - len(left)) * mean_s) / at_once])
