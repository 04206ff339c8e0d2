"""`hpc-ecg sweep`: run every cell that is not done yet, then compare what is there.

The truth is each run's own folder: a cell is done when it is finished and evaluated. The sweep may
be started again at any time; what is done stays, what failed or was lost runs again.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from hpc_ecg.config import to_yaml
from hpc_ecg.log import progress_bar, start_logging
from hpc_ecg.run_folder import RunFolder, read_json, write_text
from hpc_ecg.submit import Job, run_locally
from hpc_ecg.sweep.grid import Cell, Sweep, SweepConfig
from hpc_ecg.training.evaluate import describe_evaluation, evaluate
from hpc_ecg.training.finetune import RESULT_NEUTRAL, FinetuneConfig, finetune

logger = logging.getLogger("hpc_ecg")


def launch(sweep: Sweep) -> list[str]:
    """Run what is not done; returns one line for each cell that failed."""
    config, folder = sweep.config, Path(sweep.config.sweep_dir)
    gpus = _visible_gpus()
    if gpus and config.runs_at_once > len(gpus):
        raise ValueError(f"runs_at_once={config.runs_at_once}, but there are {len(gpus)} GPUs")
    for cell in sweep.cells:
        RunFolder(cell.run.run_dir).check_same_config(to_yaml(cell.run), RESULT_NEUTRAL)
    todo = [cell for cell in sweep.cells if not _is_done(cell)]
    _write_sweep(folder, sweep)
    logger.info("%d cells, %d done before", len(sweep.cells), len(sweep.cells) - len(todo))
    jobs = [
        Job(name=cell.name, function=run_cell, arguments=(_with_threads(cell.run, config, gpus),))
        for cell in todo
    ]
    failures = []
    at_once, minutes = config.runs_at_once, config.run_timeout_min
    with progress_bar("runs", len(todo)) as advance:
        for outcome in run_locally(jobs, folder / "submitit", at_once, minutes, gpus):
            run_dir = folder / outcome.name
            if outcome.error is None:
                result = read_json(RunFolder(run_dir).evaluation)
                logger.info("%s: %s", outcome.name, "; ".join(describe_evaluation(result)))
            else:
                run_dir.mkdir(parents=True, exist_ok=True)
                write_text(run_dir / "error.txt", f"log: {outcome.log}\n{outcome.error}\n")
                failures.append(f"{outcome.name}: {_last_line(outcome.error)}; {outcome.log}")
                logger.warning("%s", failures[-1])
            advance()
    return failures


def run_cell(config: FinetuneConfig) -> None:
    """One cell, in a process of its own."""
    start_logging()
    folder = finetune(config)
    evaluate(str(folder.path), [])
    (folder.path / "error.txt").unlink(missing_ok=True)


def _is_done(cell: Cell) -> bool:
    folder = RunFolder(cell.run.run_dir)
    return folder.finished.exists() and folder.evaluation.exists()


def _write_sweep(folder: Path, sweep: Sweep) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shared = yaml.safe_dump({"run": sweep.shared}, sort_keys=False)
    write_text(folder / "sweep.yaml", to_yaml(sweep.config) + shared)


def _with_threads(run: FinetuneConfig, config: SweepConfig, gpus: list[int]) -> FinetuneConfig:
    """Runs side by side on CPUs share the cores instead of each taking all of them."""
    if gpus or run.engine.cpu_threads:
        return run
    cores = len(os.sched_getaffinity(0))
    threads = max(cores // config.runs_at_once, 1)
    return replace(run, engine=replace(run.engine, cpu_threads=threads))


def _visible_gpus() -> list[int]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [int(part) for part in named.split(",") if part.strip().isdigit()]
    return list(range(torch.cuda.device_count()))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "failed")
