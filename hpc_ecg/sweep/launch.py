"""`hpc-ecg sweep`: run every cell that is not done yet, then compare what is there.

The truth is each run's own folder: a cell is done when it is finished and evaluated. The sweep may
be started again at any time; what is done stays, what failed or was lost runs again.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.config import to_yaml
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.log import progress_bar, start_logging
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.signals import Wishes
from hpc_ecg.submit import Job, run_locally
from hpc_ecg.sweep.grid import Cell, Sweep, SweepConfig
from hpc_ecg.training.evaluate import describe_evaluation, evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.writing import read_json, write_text

logger = logging.getLogger("hpc_ecg")


def launch(sweep: Sweep) -> list[str]:
    """Run what is not done; returns one line for each cell that failed.

    Raises ValueError before the first run starts: data, weights or folder do not fit, or another
    sweep is at work in the same folder. Raises Stopped, with all runs saved, if somebody asked for
    it.
    """
    config, folder = sweep.config, Path(sweep.config.sweep_dir)
    gpus = _visible_gpus()
    if gpus and config.runs_at_once > len(gpus):
        raise ValueError(f"runs_at_once={config.runs_at_once}, but there are {len(gpus)} GPUs")
    _check_folder(folder)
    _check_cells(sweep)
    lock = RunFolder(folder)
    lock.claim()
    wishes = Wishes(folder, is_first=True)
    try:
        _write_sweep(folder, sweep)
        failures = _run_cells(sweep, folder, gpus, lambda: any(wishes.told()[:2]))
        is_signal, is_stop, _ = wishes.told()
        if (is_signal or is_stop) and not all(map(_is_done, sweep.cells)):
            raise wishes.stopped(by_signal=bool(is_signal))
        return failures
    finally:
        wishes.close()
        lock.release()


def _run_cells(
    sweep: Sweep, folder: Path, gpus: list[int], must_stop: Callable[[], bool]
) -> list[str]:
    config = sweep.config
    todo = [cell for cell in sweep.cells if not _is_done(cell)]
    logger.info("%d cells, %d done before", len(sweep.cells), len(sweep.cells) - len(todo))
    jobs = [
        Job(name=cell.name, function=run_cell, arguments=(_with_threads(cell.run, config, gpus),))
        for cell in todo
    ]
    failures = []
    at_once, minutes = config.runs_at_once, config.run_timeout_min
    with progress_bar("runs", len(todo)) as advance:
        for outcome in run_locally(jobs, folder / "submitit", at_once, minutes, gpus, must_stop):
            run_dir = folder / outcome.name
            if outcome.error is None:
                result = read_json(RunFolder(run_dir).evaluation)
                logger.info("%s: %s", outcome.name, describe_evaluation(result)[0])
            elif must_stop():  # if it was a failure, the next start will say so
                logger.info("%s: %s", outcome.name, _last_line(outcome.error))
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
    evaluate(config)
    (folder.path / "error.txt").unlink(missing_ok=True)


def _is_done(cell: Cell) -> bool:
    folder = RunFolder(cell.run.run_dir)
    return folder.is_finished() and folder.evaluation.exists()


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "sweep.yaml").exists():
        raise ValueError(f"sweep_dir={folder} is not empty and not a sweep's; give a new folder")


def _check_cells(sweep: Sweep) -> None:
    """What would fail in every cell must fail here, once."""
    checked: set[str] = set()
    for cell in sweep.cells:
        RunFolder(cell.run.run_dir).check_same_config(to_yaml(cell.run))
        if repr(cell.run.data) not in checked:
            checked.add(repr(cell.run.data))
            shards, labels = open_shards(cell.run.data)
            for split in SPLITS:
                open_split(shards, split, labels)
        weights = cell.run.init.checkpoint
        if weights and not Path(weights).exists():
            raise ValueError(f"{cell.strategy}: init.checkpoint={weights}: no such file")


def _write_sweep(folder: Path, sweep: Sweep) -> None:
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
    if named is None:
        return list(range(torch.cuda.device_count()))
    parts = [part.strip() for part in named.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={named}: a sweep deals GPUs by number; give numbers, as in 0,1"
        )
    return [int(part) for part in parts]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "failed")
