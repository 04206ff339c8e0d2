"""`hpc-ecg sweep … --dry-run`: what would run, what sbatch would get, and what it may cost. It
writes nothing."""

from pathlib import Path
from statistics import mean

from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.jobs.slurm_jobs import sbatch_script
from hpc_ecg.reporting.numbers import count
from hpc_ecg.sweep.arms import axes_of, choices_of
from hpc_ecg.sweep.folder import ONE_RUN, read_optional
from hpc_ecg.sweep.grid import Cell, Sweep
from hpc_ecg.sweep.launch import prepare_sweep
from hpc_ecg.sweep.tuning import read_tuned
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import stages_of

DONE, TO_DO = "done", "to do"


def describe_launch(sweep: Sweep) -> list[str]:
    """Lines for a terminal. Raises ValueError where `launch` would."""
    sweep = prepare_sweep(sweep)
    config, folder = sweep.config, Path(sweep.config.sweep_dir)
    todo = [c for c in sweep.cells if not RunFolder(c.run.run_dir).finished.exists()]
    lines = [*_table(sweep, {cell.name for cell in todo}), ""]
    lines += [f"{len(todo)} of {count(len(sweep.cells), 'run')} to do", *_tuning_and_soups(sweep)]
    if todo:
        lines.append(_cost(sweep.cells, todo))
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


def _cost(cells: list[Cell], todo: list[Cell]) -> str:
    """Estimate from the finished runs: those of the same arm, or all. Before the first run is
    finished, count the ECGs."""
    hours: dict[str, list[float]] = {}
    units = set()
    for cell in cells:
        finished = read_optional(Path(cell.run.run_dir) / "finished.json")
        if finished:
            hours.setdefault(cell.arm.name, []).append(finished["process_seconds"] / 3600)
            is_cpu = str(finished["device"]).lower().startswith("cpu")
            units.add("CPU process-hours" if is_cpu else "GPU-hours")
    if not hours:
        most = {cell.arm.name: _max_ecgs(cell.run) for cell in cells if cell.seed == cells[0].seed}
        ecgs = count(sum(most[cell.arm.name] for cell in todo), "ECG")
        return (
            f"cost: at most {ecgs} to train on, each "
            "counted in every epoch; hours are known when one run is finished"
        )
    all_hours = [value for values in hours.values() for value in values]
    total = sum(mean(hours.get(cell.arm.name, all_hours)) for cell in todo)
    runs = f"as {count(len(all_hours), 'finished run')} took"
    return f"cost: about {total:.2g} {' and '.join(units)}, {runs}"


def _max_ecgs(run: FinetuneConfig) -> int:
    """ECGs up to the last step that the run's stages allow; patience may end it sooner."""
    shards, labels = open_shards(run.data)
    sampler = EpochSampler.for_split(open_split(shards, "train", labels), run.data, run.seed)
    stages = stages_of(run.train, run.optim, run.init.path is not None)
    epoch = sampler.steps_per_epoch
    steps = sum(s.train.max_steps or s.train.max_epochs * epoch for s in stages)
    return steps * run.data.batch_size
