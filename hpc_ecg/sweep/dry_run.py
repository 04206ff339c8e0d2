"""`hpc-ecg sweep … --dry-run`: what would run, what sbatch would get, what it may cost; nothing is
written."""

from pathlib import Path

from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.jobs.slurm import script_of
from hpc_ecg.sweep.arms import axes_of, choices_of
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.launch import checked
from hpc_ecg.sweep.task import task_of_run
from hpc_ecg.sweep.tuning import chosen_before
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import stages_of

DONE, TO_DO = "done", "to do"


def describe(sweep: Sweep) -> list[str]:
    """Lines for a terminal. Raises as a start would."""
    sweep = checked(sweep)
    config, folder = sweep.config, Path(sweep.config.sweep_dir)
    is_done = {cell.name: task_of_run(cell.name, cell.run).is_done() for cell in sweep.cells}
    todo = [name for name, done in is_done.items() if not done]
    width = max(len(cell.arm.name) for cell in sweep.cells)
    seeds = "  ".join(f"seed {seed:<4}" for seed in config.seeds)
    lines = [f"{'':<{width}}  {seeds}".rstrip()]
    for arm in dict.fromkeys(cell.arm.name for cell in sweep.cells):
        states = [DONE if is_done[f"{arm}/seed-{seed}"] else TO_DO for seed in config.seeds]
        lines.append(f"{arm:<{width}}  " + "  ".join(f"{state:<9}" for state in states).rstrip())
    lines += ["", f"{len(todo)} of {len(is_done)} runs to do", *_before_and_after(sweep)]
    if todo:
        lines.append(_cost(sweep, is_done))
    if config.slurm is not None and todo:
        script = script_of(config.slurm, folder / "submitit", "hpc_ecg-0000-…", len(todo))
        lines += ["", "sbatch gets:", "", script.rstrip()]
    elif config.slurm is None:
        lines.append(f"on this machine, {config.runs_at_once} at a time")
    return lines


def _before_and_after(sweep: Sweep) -> list[str]:
    config, lines = sweep.config, []
    left = len(config.strategies) - len(chosen_before(sweep))
    if config.tune and left:
        count = config.tune_trials or len(choices_of(axes_of("tune", config.tune)))
        lines.append(f"before them, tuning: {count} trials of each of {left} strategies")
    if config.soup:
        lines.append("after them, a weight soup of each arm's seeds")
    return lines


def _cost(sweep: Sweep, is_done: dict[str, bool]) -> str:
    """From runs of this sweep that are finished: the arm's own, or all. Before the first one, what
    there is to do."""
    hours: dict[str, list[float]] = {}
    units = set()
    for cell in sweep.cells:
        finished = read_optional(Path(cell.run.run_dir) / "finished.json")
        if finished:
            hours.setdefault(cell.arm.name, []).append(finished["process_seconds"] / 3600)
            is_cpu = str(finished["device"]).lower().startswith("cpu")
            units.add("CPU process-hours" if is_cpu else "GPU-hours")
    if not hours:
        arms = {cell.arm.name: cell.run for cell in sweep.cells}
        most = {arm: _most_ecgs(run) for arm, run in arms.items()}
        ecgs = sum(most[cell.arm.name] for cell in sweep.cells if not is_done[cell.name])
        return (
            f"cost: at most {ecgs:,} ECGs to train on, each counted in every epoch; hours are "
            "known when one run is finished"
        )
    every = [value for values in hours.values() for value in values]
    means = {
        cell.name: sum(own) / len(own)
        for cell in sweep.cells
        if (own := hours.get(cell.arm.name, every))
    }
    total = sum(means[name] for name, done in is_done.items() if not done)
    return f"cost: about {total:.2g} {' and '.join(units)}, as the {len(every)} finished runs took"


def _most_ecgs(run: FinetuneConfig) -> int:
    """To the last step that its stages allow; patience may end it sooner."""
    shards, labels = open_shards(run.data)
    sampler = EpochSampler.for_split(open_split(shards, "train", labels), run.data, run.seed)
    stages = stages_of(run.train, run.optim, run.init.checkpoint is not None)
    epoch = sampler.steps_per_epoch
    steps = sum(s.train.max_steps or s.train.max_epochs * epoch for s in stages)
    return steps * run.data.batch_size
