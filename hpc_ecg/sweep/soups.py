"""A weight soup per arm (Wortsman et al. 2022): the mean of its seeds' best weights, evaluated.

In: an arm whose seeds are done. Out: SWEEP/<arm>/soup/ with the weights, predictions.parquet,
evaluation.json, and soup.json, which names the seeds: with other seeds it is made anew.
"""

import os
from collections.abc import Callable
from pathlib import Path

from hpc_ecg.atomic_io import read_json, wait_until_seen, write_json
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.sweep.grid import Cell, Sweep
from hpc_ecg.sweep.task import Task, task_of_run
from hpc_ecg.training.evaluate import evaluate_weights
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.convert import soup

PATIENCE_S = 300.0


def soup_tasks(sweep: Sweep, adapt: Callable[[FinetuneConfig], FinetuneConfig]) -> list[Task]:
    """Of the arms that have at least two seeds, all of them done."""
    arms: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        arms.setdefault(cell.arm.name, []).append(cell)
    return [
        _task(name, cells, adapt(cells[0].run))
        for name, cells in arms.items()
        if len(cells) > 1 and all(task_of_run(cell.name, cell.run).is_done() for cell in cells)
    ]


def _task(arm: str, cells: list[Cell], config: FinetuneConfig) -> Task:
    folder = Path(cells[0].run.run_dir).parent / "soup"
    seeds, note = [cell.seed for cell in cells], folder / "soup.json"
    evaluation = folder / "evaluation.json"
    if note.exists() and read_json(note)["seeds"] != seeds:
        evaluation.unlink(missing_ok=True)  # first: the new note must not stand beside the old one
        note.unlink()
    sources = [cell.run.run_dir for cell in cells]
    return Task(
        name=f"{arm}/soup",
        folder=folder,
        function=make_soup,
        arguments=(config, sources, seeds, folder),
        results=(note, evaluation),
    )


def make_soup(config: FinetuneConfig, sources: list[str], seeds: list[int], folder: Path) -> None:
    """All processes of the job call this; the first one mixes, unless that was done before it was
    killed. The note is written last: who sees it sees whole weights."""
    weights, note = folder / "model.safetensors", folder / "soup.json"
    if read_ranks(os.environ).rank > 0:
        wait_until_seen(note, PATIENCE_S)
    elif not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        soup(sources, weights, force=True)
        write_json(note, {"seeds": seeds})
    evaluate_weights(config, weights, folder)
