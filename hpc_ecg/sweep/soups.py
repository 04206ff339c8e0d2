"""A weight soup per arm (Wortsman et al. 2022): the average of its seeds' best weights, evaluated.

Once all seeds of an arm are done, SWEEP/<arm>/soup/ gets the weights, predictions.parquet,
evaluation.json, and soup.json, which names the seeds: with other seeds the soup is made anew.
"""

import os
from pathlib import Path

from hpc_ecg.atomic_io import wait_until_seen
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.sweep.grid import Cell, Sweep
from hpc_ecg.sweep.task import Task, TaskRunner, task_of_run
from hpc_ecg.training.evaluate import evaluate_weights
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.convert import soup

PATIENCE_S = 300.0


def soup_tasks(sweep: Sweep, runner: TaskRunner) -> list[Task]:
    """A task for each arm that has at least two seeds, all of them done."""
    arms: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        arms.setdefault(cell.arm.name, []).append(cell)
    return [
        _soup_task(name, cells, runner.fit_to_machine(cells[0].run))
        for name, cells in arms.items()
        if len(cells) > 1 and all(task_of_run(cell.name, cell.run).is_done() for cell in cells)
    ]


def _soup_task(arm: str, cells: list[Cell], config: FinetuneConfig) -> Task:
    folder = Path(cells[0].run.run_dir).parent / "soup"
    seeds, note = [cell.seed for cell in cells], folder / "soup.json"
    evaluation = folder / "evaluation.json"
    if note.exists() and read_record(note, {"seeds": list})["seeds"] != seeds:
        evaluation.unlink(missing_ok=True)  # first, so that a new note never has an old evaluation
        note.unlink()
    run_dirs = [cell.run.run_dir for cell in cells]
    return Task(
        name=f"{arm}/soup",
        folder=folder,
        function=make_soup,
        arguments=(config, run_dirs, seeds, folder),
        results=(note, evaluation),
    )


def make_soup(config: FinetuneConfig, run_dirs: list[str], seeds: list[int], folder: Path) -> None:
    """Average the weights on rank 0, unless an earlier try did, and evaluate them on all ranks.

    The note is written after the weights: a rank that sees it sees whole weights.
    """
    weights, note = folder / "model.safetensors", folder / "soup.json"
    if read_ranks(os.environ).rank > 0:
        wait_until_seen(note, PATIENCE_S)
    elif not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        soup(run_dirs, weights, force=True)
        write_record(note, {"seeds": seeds}, [weights])
    evaluate_weights(config, weights, folder)
