"""`hpc-ecg sweep`: run every cell that is not done yet.

A cell is done when its run's folder says that it is finished; its test split is predicted once no
run of the sweep is left to go on (sweep/protocol.py). The sweep may be started again at any time:
what is done stays, what failed or was lost runs again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from hpc_ecg.atomic_io import write_json, write_text
from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.config.load import to_yaml
from hpc_ecg.data.dataset import check_classes, open_shards, open_split
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.hashing import read_record
from hpc_ecg.jobs.slurm_jobs import SITE_FILE
from hpc_ecg.log import logger
from hpc_ecg.reporting.numbers import count
from hpc_ecg.safe_reading import read_settings_file
from hpc_ecg.sweep.arms import axes_of
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.sweep.grid import Cell, Sweep
from hpc_ecg.sweep.left_out_sites import check_left_out_site
from hpc_ecg.sweep.local_runs import run_tasks_locally, share_cores, visible_gpus
from hpc_ecg.sweep.protocol import lock_protocol, note_predictions, open_test
from hpc_ecg.sweep.slurm_runs import run_tasks_on_slurm
from hpc_ecg.sweep.soups import soup_tasks
from hpc_ecg.sweep.status import describe_result
from hpc_ecg.sweep.submissions import submission_lock
from hpc_ecg.sweep.task import Task, TaskRunner, task_of_run
from hpc_ecg.sweep.tuning import (
    TRIALS_FOLDER,
    check_trials,
    clear_trial_failure,
    read_tuned,
    trial_configs,
    tune,
)
from hpc_ecg.training.best_tracker import BestTracker
from hpc_ecg.training.environment import base_folders, describe_working_directory
from hpc_ecg.training.evaluate import describe_evaluation
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.initialize import open_start


def launch(
    sweep: Sweep, wait: bool = True, only: str | None = None, open_now: bool = False
) -> list[str]:
    """Run the cells that are not done, or only this one; returns a line for each that failed.

    The test split is predicted once no run is left to go on, or with `open_now`.
    Without `wait`, on Slurm, it returns as soon as everything is submitted that does not depend on
    other runs of the sweep. Raises ValueError before the first run starts: data, weights or folder
    do not fit, or another sweep is at work in the same folder. Raises Preempted, with all runs
    saved, when it was asked to stop.
    """
    sweep = prepare_sweep(sweep)
    with _task_runner(sweep, wait) as runner:
        # 1. each strategy tunes its own values, if the sweep has any to tune
        if sweep.config.tune:
            if only is not None and only.startswith(f"{TRIALS_FOLDER}/"):
                clear_trial_failure(sweep, only)
            is_tuned, failures = tune(sweep, runner)
            if not is_tuned:
                when = "" if wait else " when its trials have ended"
                logger.info("tuning is not done yet: start the sweep again%s", when)
                return failures
            sweep = prepare_sweep(sweep)

        # 2. the protocol, then every cell that is not done, without the test split
        lock_protocol(sweep)
        runs = {cell.name: runner.fit_to_machine(cell.run) for cell in sweep.cells}
        tasks = [task_of_run(name, run, predict_test=False) for name, run in runs.items()]
        done = sum(task.is_done() for task in tasks)
        logger.info("%s, %d done before", count(len(tasks), "cell"), done)
        failures = runner.run_all([task for task in tasks if only in (None, task.name)])

        # 3. the test split, once no run is left to go on
        names = open_test(sweep, tasks, open_now)
        failures += runner.run_all([task_of_run(name, runs[name]) for name in names])

        # 4. the average of each arm's weights, where all of its seeds are done
        if sweep.config.soup:
            soups = soup_tasks(sweep, runner)
            failures += runner.run_all(soups)
            arms = {cell.arm.name for cell in sweep.cells if len(sweep.config.seeds) > 1}
            if not wait and len(soups) < len(arms):
                logger.info("soups are made once their seeds are done: start the sweep again then")
        note_predictions(sweep)
        return failures


def prepare_sweep(sweep: Sweep) -> Sweep:
    """Set what is tuned so far in the sweep's cells, and check once what would fail in each cell.

    Raises ValueError.
    """
    tuned = read_tuned(sweep)
    sweep = sweep.with_cells(tuned)
    folder = Path(sweep.config.sweep_dir)
    if folder.is_dir() and any(folder.iterdir()) and not _is_sweep(folder):
        raise ValueError(f"sweep_dir={folder} is not empty and not a sweep's; give a new folder")
    check_trials(sweep)
    untuned = set(sweep.config.strategies) - tuned.keys() if sweep.config.tune else set()
    for cell in sweep.cells:
        if cell.arm.base in untuned:
            _check_untuned(sweep, cell)
        else:
            RunFolder(cell.run.run_dir).check_same_config(to_yaml(cell.run), "sweep_dir")
    _check_runs([(c.arm.name, c.run) for c in sweep.cells if c.arm.base not in untuned])
    _check_runs(trial_configs(sweep, untuned))
    return sweep


def _is_sweep(folder: Path) -> bool:
    """Whether its sweep.yaml is one that a sweep wrote, with all settings, or empty."""
    path = folder / "sweep.yaml"
    try:
        if path.stat().st_size == 0:
            return True
        return read_settings_file(path).keys() >= {"sweep_dir", "strategy_dir", "seeds", "tune"}
    except (OSError, ValueError):
        return False


def _check_untuned(sweep: Sweep, cell: Cell) -> None:
    """Raise ValueError if the cell has run with values that its strategy cannot choose."""
    folder, axes = RunFolder(cell.run.run_dir), axes_of("tune", sweep.config.tune)
    if not folder.config.exists():
        return
    settings = folder.read_settings()
    past = {key: settings.get(key) for key in axes}
    for key, value in past.items():
        if sweep.config.tune_trials is None and value not in axes[key]:
            raise ValueError(
                f"{cell.name} has run before this tuning, with {key}={value}; give another "
                f"sweep_dir, or add {value} to tune.{key}"
            )
    same = sweep.run_of(cell.arm.base, {**past, **cell.arm.varied}, cell.seed, cell.run.run_dir)
    folder.check_same_config(to_yaml(same), "sweep_dir")


def _check_runs(runs: Sequence[tuple[str, FinetuneConfig]]) -> None:
    """Raise ValueError for data, loss or weights that do not fit, each combination checked once.

    Files of weights are read: one of another kind than a strategy starts from stops the sweep."""
    labels: dict[str, list[str]] = {}
    seen: set[str] = set()
    for strategy, run in runs:
        data = repr((run.data, run.loss, run.train.best_metric, run.train.trains))
        try:
            if data not in labels:
                shards, labels[data] = open_shards(run.data)
                check_left_out_site(shards, labels[data], run.data)
                check_classes(shards, labels[data], run.data, run.train.trains)
                opened = {split: open_split(shards, split, labels[data]) for split in SPLITS}
                BestTracker(opened["valid"], run)
            if (start := repr((run.init, labels[data]))) not in seen:
                seen.add(start)
                open_start(run.init, labels[data])
        except ValueError as error:
            raise ValueError(f"{strategy}: {error}") from None


@contextmanager
def _task_runner(sweep: Sweep, wait: bool) -> Iterator[TaskRunner]:
    folder, slurm = Path(sweep.config.sweep_dir), sweep.config.slurm
    if slurm is None:
        with _local_runner(sweep, folder) as runner:
            yield runner
        return
    _check_site_file(folder)
    with submission_lock(folder):
        _write_sweep(folder, sweep)
    yield TaskRunner(
        run_all=lambda tasks: run_tasks_on_slurm(tasks, folder, slurm, wait, _log_result)
    )


def _check_site_file(folder: Path) -> None:
    """Raise ValueError if the site's settings lie where this sweep was started, and not here."""
    for base in base_folders(folder, read_optional(folder / "environment.json")):
        if (base / SITE_FILE).is_file() and not SITE_FILE.exists():
            text = f"{folder} was started in {base}, and its jobs need the {SITE_FILE} there"
            raise ValueError(f"{text}: cd {base}, and give the same command again")


@contextmanager
def _local_runner(sweep: Sweep, folder: Path) -> Iterator[TaskRunner]:
    """Lock the folder, and listen for signals and the file STOP."""
    at_once, minutes = sweep.config.runs_at_once, sweep.config.run_timeout_min
    gpus = visible_gpus()
    if gpus and at_once > len(gpus):
        raise ValueError(f"runs_at_once={at_once}, more than {count(len(gpus), 'GPU')}")
    lock = RunFolder(folder)
    lock.claim()
    stop_signals = StopSignals(folder, is_rank_zero=True)

    def run_all(tasks: Sequence[Task]) -> list[str]:
        def must_stop() -> bool:
            requests = stop_signals.poll()
            return bool(requests.preempt or requests.stop)

        failures = run_tasks_locally(tasks, folder, at_once, minutes, gpus, must_stop, _log_result)
        if must_stop() and not all(task.is_done() for task in tasks):
            raise stop_signals.preempted(by_signal=bool(stop_signals.poll().preempt))
        return failures

    try:
        _write_sweep(folder, sweep)
        yield TaskRunner(
            run_all=run_all, fit_to_machine=lambda run: share_cores(run, at_once, gpus)
        )
    finally:
        stop_signals.close()
        lock.release()


def _write_sweep(folder: Path, sweep: Sweep) -> None:
    shared = yaml.safe_dump({"run": sweep.shared_settings()}, sort_keys=False)
    write_text(folder / "sweep.yaml", to_yaml(sweep.config) + shared)
    environment = folder / "environment.json"
    if not environment.exists():  # where its relative paths start stays what it was
        write_json(environment, {"working_directory": describe_working_directory(folder)})
    for arm, run in {cell.arm.name: (cell.arm, cell.run) for cell in sweep.cells}.values():
        fixed = {"is_fixed": True} if run.is_fixed else {}
        write_json(folder / arm.name / "arm.json", {"base": arm.base, "varied": arm.varied} | fixed)


def _log_result(task: Task) -> None:
    run = RunFolder(task.folder)
    is_tested = run.evaluation in task.results
    text = describe_evaluation(read_record(run.evaluation)) if is_tested else describe_result(run)
    logger.info("%s: finished%s", task.name, f", {text}" if text else "")
