"""How a sweep's cells are, and ending them.

The truth is each run's own folder; what squeue says is a hint, and is not needed. A line per cell
(and per trial of the tuning, and soup): queued, running with its step and speed, done with its
score, failed with the reason and the file to read.
"""

import re
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hpc_ecg.atomic_io import read_json
from hpc_ecg.distributed.stop_signals import STOP
from hpc_ecg.evaluation.metrics import METRIC_NAMES
from hpc_ecg.jobs import slurm
from hpc_ecg.sweep.folder import expected_cells, read_events
from hpc_ecg.sweep.submissions import in_queue, last_submissions
from hpc_ecg.sweep.task import log_of
from hpc_ecg.training.run_folder import RunFolder

WATCH_S = 5.0


@dataclass(frozen=True, kw_only=True)
class State:
    name: str
    kind: str
    """done, failed, running, queued, stopped or waiting (nobody has begun it)."""
    text: str


def show(sweep_dir: Path, watch: bool) -> None:
    """Print the table; `watch`: again and again until nothing runs or waits in a queue."""
    console = Console(soft_wrap=True)
    states = states_of(sweep_dir)
    if not watch or not console.is_terminal:
        while watch and _is_going_on(states):
            time.sleep(WATCH_S)
            states = states_of(sweep_dir)
        for state in states:
            console.print(f"{state.name}  {state.kind}  {state.text}".rstrip(), highlight=False)
        console.print(_sum(states), highlight=False)
        return
    with Live(_table(states), console=console) as live:
        while _is_going_on(states):
            time.sleep(WATCH_S)
            states = states_of(sweep_dir)
            live.update(_table(states))


def states_of(sweep_dir: Path) -> list[State]:
    """Of all cells, in the order of sweep.yaml, after the trials and before the soups that have
    begun."""
    names, submitted = _tasks_of(sweep_dir), last_submissions(sweep_dir)
    queue = in_queue(sweep_dir, names)
    known = set() if queue is None else set(submitted)
    return [_state(sweep_dir, name, (queue or {}).get(name), name in known) for name in names]


def cancel_cells(sweep_dir: Path, cells: list[str]) -> list[str]:
    """End these cells' jobs, or all that the sweep has; returns what was done, a line each. Runs
    save first; a new start of the sweep goes on with them."""
    check_cells(sweep_dir, cells)
    states = states_of(sweep_dir)
    names = cells or [state.name for state in states]
    queue = in_queue(sweep_dir, names)
    if queue is None:
        raise ValueError("squeue does not answer; cancel where Slurm's commands are")
    if queue:
        slurm.cancel([job.id for job in queue.values()])
    running = [state.name for state in states if state.kind == "running"]
    here = [name for name in running if name in names and name not in queue]
    for name in here:
        (sweep_dir / name / STOP).touch()
    if not cells and not queue and _is_held(sweep_dir / "lock.holder"):
        (sweep_dir / STOP).touch()  # whoever runs it here starts no other
        here = here or ["the sweep on this machine"]
    lines = [f"cancelled: {name} (job {job.id})" for name, job in queue.items()]
    lines += [f"told to save and stop: {name}" for name in here]
    return lines or ["nothing runs or waits in a queue"]


def check_cells(sweep_dir: Path, cells: list[str]) -> None:
    """ValueError if one is not of this sweep: no cell, and no trial or soup that has begun."""
    known = _tasks_of(sweep_dir)
    for cell in cells:
        if cell not in known:
            raise ValueError(f"{sweep_dir} has no cell {cell}; it has {', '.join(known[:4])} …")


def _tasks_of(sweep_dir: Path) -> list[str]:
    """All cells, after the trials and before the soups that have begun."""
    if not (sweep_dir / "sweep.yaml").exists():
        raise ValueError(f"{sweep_dir} is not a sweep's folder (no sweep.yaml)")
    begun = {str(p.relative_to(sweep_dir)) for p in sweep_dir.glob("tuning/*/*")}
    begun |= {str(p.relative_to(sweep_dir)) for p in sweep_dir.glob("*/soup")}
    begun |= set(last_submissions(sweep_dir))
    cells = [f"{arm}/seed-{seed}" for arm, seed in expected_cells(sweep_dir)]
    trials = sorted(name for name in begun if name.startswith("tuning/"))
    return trials + cells + sorted(name for name in begun if name.endswith("/soup"))


def _state(sweep_dir: Path, name: str, job: slurm.InQueue | None, is_slurms: bool) -> State:
    """`is_slurms`: without a job nobody is at work on it, whatever was left in its folder."""
    run = RunFolder(sweep_dir / name)
    if job is not None and job.waits:
        why = "" if job.reason == "None" else f": {job.reason}"
        return State(name=name, kind="queued", text=f"job {job.id}{why}")
    error = run.path / "error.txt"
    if job is None and error.exists():
        said = error.read_text()
        lines = [line for line in said.splitlines() if line.strip()]
        reason = lines[-1] if lines else "?"
        return State(name=name, kind="failed", text=f"{reason} (see {log_of(said)})")
    is_soup, is_trial = name.endswith("/soup"), name.startswith("tuning/")
    if (run.finished.exists() or is_soup) and (run.evaluation.exists() or is_trial):
        return State(name=name, kind="done", text=_score(run))
    progress = _progress(run)
    if job is not None or (not is_slurms and _is_held(run.path / "lock.holder")):
        where = f"job {job.id}" if job else "here"
        return State(name=name, kind="running", text=f"{where} {progress}".rstrip())
    if progress:
        return State(name=name, kind="stopped", text=f"{progress}; start the sweep again")
    return State(name=name, kind="waiting", text="not started")


def _is_held(holder: Path) -> bool:
    """Whether the process that noted itself there may still live; one of another node may."""
    if not holder.exists():
        return False
    found = re.fullmatch(r"process (\d+) on (.*)\n?", holder.read_text())
    if found is None or found.group(2) != socket.gethostname():
        return True
    return Path(f"/proc/{found.group(1)}").exists() or not Path("/proc").exists()


def _progress(run: RunFolder) -> str:
    steps = [event for event in read_events(run.metrics) if event.get("event") == "step"]
    if not steps:
        return ""
    settings = run.read_settings() if run.config.exists() else {}
    most = settings.get("train.max_epochs")
    text = f"at step {steps[-1]['step']}"
    if "epoch" in steps[-1] and most:
        text += f", epoch {steps[-1]['epoch']:.1f} of {most}"
    speed = steps[-1].get("ecg_per_s")
    return text + (f", {speed:.0f} ECG/s" if speed else "")


def _score(run: RunFolder) -> str:
    """On the test split; of a trial, which never sees it, on validation."""
    if not run.evaluation.exists():
        about = read_json(run.finished)
        score = about["best_score"]  # None where nothing was trained
        name = METRIC_NAMES.get(about["metric"], about["metric"])
        return "" if score is None else f"validation {name} {score:.3f}"
    evaluation = read_json(run.evaluation)
    labels: dict[str, Any] = evaluation.get("labels", {})
    found: dict[str, Any] = evaluation.get("macro") or next(iter(labels.values()), {})
    mean = "macro " if "macro" in evaluation else ""
    for metric in ("auroc", "r2"):
        if metric in found:
            return f"test {mean}{METRIC_NAMES[metric]} {found[metric]['value']:.3f}"
    return ""


def _is_going_on(states: list[State]) -> bool:
    return any(state.kind in ("queued", "running") for state in states)


def _sum(states: list[State]) -> str:
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _table(states: list[State]) -> Table:
    table = Table(title=_sum(states))
    for column in ("run", "state", ""):
        table.add_column(column, overflow="fold")
    for state in states:
        table.add_row(state.name, state.kind, state.text)
    return table
