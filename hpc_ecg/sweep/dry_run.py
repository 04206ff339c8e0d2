"""`hpc-ecg sweep … --dry-run`: what would run, what sbatch would get, and what it may cost. It
writes nothing."""

import heapq
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import sbatch_script
from hpc_ecg.preflight.devices import card_name
from hpc_ecg.preflight.plan import PlanConfig, Planned, describe_basis, duration, open_planned
from hpc_ecg.reporting.numbers import count
from hpc_ecg.sweep.arms import axes_of, choices_of
from hpc_ecg.sweep.folder import ONE_RUN, read_optional
from hpc_ecg.sweep.grid import Cell, Sweep
from hpc_ecg.sweep.launch import prepare_sweep
from hpc_ecg.sweep.tuning import read_tuned
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.stages import num_steps

DONE, TO_DO = "done", "to do"


def describe_launch(sweep: Sweep) -> list[str]:
    """Lines for a terminal. Raises ValueError where `launch` would."""
    sweep = prepare_sweep(sweep)
    config, folder = sweep.config, Path(sweep.config.sweep_dir)
    todo = [c for c in sweep.cells if not RunFolder(c.run.run_dir).finished.exists()]
    lines = [*_table(sweep, {cell.name for cell in todo}), ""]
    lines += [f"{len(todo)} of {count(len(sweep.cells), 'run')} to do", *_tuning_and_soups(sweep)]
    if todo:
        lines.append(_cost(sweep.cells, todo, _gpu_of(config.slurm)))
    if config.slurm is not None and todo:
        script = sbatch_script(config.slurm, folder / "submitit", "hpc_ecg-0000-…", len(todo))
        lines += ["", "sbatch gets:", "", script.rstrip()]
    elif config.slurm is None:
        lines.append(f"on this machine, {config.runs_at_once} at a time")
    return lines


def _table(sweep: Sweep, todo: set[str]) -> list[str]:
    """A row for each arm, a column for each seed."""
    width = max(len(cell.arm.name) for cell in sweep.cells)
    seeds = "  ".join(f"seed {seed:<4}" for seed in sweep.config.seeds)
    lines = [f"{'':<{width}}  {seeds}".rstrip()]
    for arm in dict.fromkeys(cell.arm.name for cell in sweep.cells):
        names = [f"{arm}/seed-{seed}" for seed in sweep.config.seeds]
        states = {cell.name: TO_DO if cell.name in todo else DONE for cell in sweep.cells}
        row = "  ".join(f"{states.get(name, '–'):<9}" for name in names).rstrip()
        stands = "" if names[-1] in states else f"  ({ONE_RUN})"
        lines.append(f"{arm:<{width}}  {row}{stands}")
    return lines


def _tuning_and_soups(sweep: Sweep) -> list[str]:
    config, lines = sweep.config, []
    untuned = len(config.strategies) - len(read_tuned(sweep))
    if config.tune and untuned:
        trials = config.tune_trials or len(choices_of(axes_of("tune", config.tune)))
        of_each = f"of each of {untuned} strategies" if untuned > 1 else "of one strategy"
        lines.append(f"before them, tuning: {count(trials, 'trial')} {of_each}")
    if config.soup:
        lines.append("after them, a weight soup of each arm's seeds")
    return lines


def _cost(cells: list[Cell], todo: list[Cell], gpu: str) -> str:
    """Estimate from the finished runs: those of the same arm, or all; before the first one is
    finished, as `hpc-ecg plan` does."""
    hours: dict[str, list[float]] = {}
    units = set()
    for cell in cells:
        finished = read_optional(Path(cell.run.run_dir) / "finished.json")
        if finished:
            hours.setdefault(cell.arm.name, []).append(finished["process_seconds"] / 3600)
            is_cpu = str(finished["device"]).lower().startswith("cpu")
            units.add("CPU process-hours" if is_cpu else "GPU-hours")
    if not hours:
        try:
            plans = _planned(todo, PlanConfig(gpu=gpu))
        except ValueError:  # the guessed device lacks the precision of the runs
            plans = _planned(todo, PlanConfig(gpu="h100"))
        ecgs = sum(
            run.config.data.batch_size * num_steps(run.stages, run.epoch_steps) for run in plans
        )
        planned_h = sum(run.seconds(1) for run in plans) / 3600
        return (
            f"cost: at most {count(ecgs, 'ECG')} to train on, each counted in every epoch: about "
            f"{planned_h:.2g} hours of one {plans[0].work.device.name} (see hpc-ecg plan)"
        )
    all_hours = [value for values in hours.values() for value in values]
    total = sum(mean(hours.get(cell.arm.name, all_hours)) for cell in todo)
    runs = f"as {count(len(all_hours), 'finished run')} took"
    return f"cost: about {total:.2g} {' and '.join(units)}, {runs}"


def _gpu_of(slurm: SlurmConfig | None) -> str:
    """The device of the runs: the one here, or what Slurm's request names; else an H100."""
    named = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if slurm is not None:
        named = str(slurm.gpus_per_node).partition(":")[0] if slurm.num_gpus else "cpu"
    return named if card_name(named) else "h100"


def describe_cost(sweep: Sweep, asked: PlanConfig) -> list[str]:
    """`hpc-ecg plan` of a sweep: lines for a terminal."""
    runs, config = _planned(sweep.cells, asked), sweep.config
    trials = config.tune_trials or len(choices_of(axes_of("tune", config.tune)))
    runs += runs[:: len(config.seeds)] * (trials if config.tune else 0)
    hours = sum(run.seconds(1) for run in runs) / 3600
    kwh, price = runs[0].cost(hours)
    energy = f", {kwh:.1f} kWh" * runs[0].work.device.is_gpu
    lines = [f"{count(len(runs), 'run')}: {hours:.2f} hours of one device{energy}{price}"]
    lines.append(describe_basis(runs[0]))
    for gpus in asked.gpus:
        seconds, each = best_shape(runs, gpus)
        side = f"{each} a run, {count(gpus // each, 'run')} at a time"
        lines.append(f"{gpus:>5} of them: {duration(seconds)} h with {side}")
    return lines


def best_shape(runs: Sequence[Planned], gpus: int) -> tuple[float, int]:
    """The least seconds in which so many GPUs finish the runs, and the GPUs that each run has."""
    shapes = []
    for each in (number for number in range(1, gpus + 1) if gpus % number == 0):
        busy_s = [0.0] * (gpus // each)
        for seconds in sorted((run.seconds(each) for run in runs), reverse=True):
            heapq.heapreplace(busy_s, busy_s[0] + seconds)  # the longest first, where one is free
        shapes.append((max(busy_s), each))
    return min(shapes)


def _planned(cells: Sequence[Cell], asked: PlanConfig) -> list[Planned]:
    """The runs of some cells; those of an arm are opened once."""
    arms = {cell.arm.name: open_planned(cell.run, asked) for cell in reversed(cells)}
    return [arms[cell.arm.name] for cell in cells]
