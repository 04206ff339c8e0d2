"""Tuning: before its seeds run, each strategy takes the values with the best validation score, from
the same number of trials for every strategy.

The result is SWEEP/tuning.json, with the choice of each strategy. A trial is a run in SWEEP/tuning/
with its own seed; it never sees the test split. With `tune_trials` optuna proposes the values:
trial n of a strategy depends only on its trials before n, so an interrupted sweep goes on with the
same proposals.

A strategy chooses once each of its trials is settled: it has a score, or failed by itself and is
not tried again. A trial that was killed or cancelled is not settled.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_ecg.atomic_io import write_json
from hpc_ecg.config.load import to_yaml
from hpc_ecg.log import logger
from hpc_ecg.reporting.numbers import count
from hpc_ecg.sweep.arms import arm_name, axes_of, choices_of
from hpc_ecg.sweep.folder import read_optional, read_tuning
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.task import Task, TaskRunner, task_of_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TRIALS_FOLDER = "tuning"
LOG_RATIO = 10


@dataclass(frozen=True, kw_only=True)
class Trial:
    strategy: str
    values: dict[str, Any]
    task: Task

    def is_settled(self) -> bool:
        return self.task.is_done() or self.task.has_failed()

    def outcome(self) -> dict[str, Any]:
        """The trial's entry in tuning.json, with its validation score; None if it failed."""
        finished = read_optional(RunFolder(self.task.folder).finished)
        score, metric = finished.get("best_score"), finished.get("metric")
        return {"values": self.values, "score": score, "metric": metric}


def trial_configs(sweep: Sweep, strategies: Collection[str]) -> list[tuple[str, FinetuneConfig]]:
    """Settings of these strategies' trials (with optuna: one for each end of a range), to be
    checked before the first one. ValueError for values that no run takes, or no range."""
    config = sweep.config
    axes, folder = axes_of("tune", config.tune), f"{config.sweep_dir}/{TRIALS_FOLDER}"
    if config.tune_trials is not None:
        search_space(axes)
    return [
        (name, sweep.run_of(name, values, config.tune_seed, f"{folder}/{name}/checked"))
        for name in config.strategies
        if name in strategies
        for values in choices_of(axes)
    ]


def read_tuned(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """What strategies chose at an earlier start, as far as it was tuned with these settings."""
    if not sweep.config.tune:
        return {}
    entries, request = read_tuning(Path(sweep.config.sweep_dir)), _request(sweep)
    return {
        name: entries[name]["chosen"]
        for name in sweep.config.strategies
        if name in entries and entries[name].get("asked") == request and entries[name]["chosen"]
    }


def check_trials(sweep: Sweep) -> None:
    """Raise ValueError if trials have run with other settings than the sweep has now: their scores
    would choose for different runs."""
    if not sweep.config.tune:
        return
    tuned, entries = read_tuned(sweep), read_tuning(Path(sweep.config.sweep_dir))
    grid = [] if sweep.config.tune_trials else choices_of(axes_of("tune", sweep.config.tune))
    for name in sweep.config.strategies:
        tried = [trial["values"] for trial in entries[name]["trials"]] if name in tuned else grid
        for values in tried:
            _checked_config(sweep, name, values)


def clear_trial_failure(sweep: Sweep, trial: str) -> None:
    """Let the next start run a failed trial again. ValueError if its strategy has chosen."""
    for name in read_tuned(sweep):
        if trial.startswith(f"{TRIALS_FOLDER}/{name}/"):
            raise ValueError(
                f"{trial}: {name} has chosen already, and its runs depend on that; to choose "
                f"again, delete {_path(sweep)} and the runs of {name}"
            )
    (Path(sweep.config.sweep_dir) / trial / "error.txt").unlink(missing_ok=True)


def tune(sweep: Sweep, runner: TaskRunner) -> tuple[bool, list[str]]:
    """Run the trials and write tuning.json; returns whether every strategy has chosen.

    If not all trials are settled: False, and a line for each that failed. Raises ValueError if
    every trial of a strategy failed; the next start runs those again.
    """
    tuned = read_tuned(sweep)
    untuned = [name for name in sweep.config.strategies if name not in tuned]
    if not untuned:
        return True, []
    entries = _drop_stale_entries(sweep, untuned)
    if sweep.config.tune_trials is None:
        grid = choices_of(axes_of("tune", sweep.config.tune))
        trials, failures = _run_trials(sweep, runner, [(n, v) for n in untuned for v in grid])
    else:
        trials, failures = _run_proposals(sweep, untuned, runner)
    if not all(trial.is_settled() for trial in trials):
        return False, failures
    for name in untuned:
        outcomes = [trial.outcome() for trial in trials if trial.strategy == name]
        scored = [trial for trial in outcomes if trial["score"] is not None]
        chosen = dict(min(scored, key=_cost)["values"]) if scored else {}  # the first of equal ones
        entries[name] = {"chosen": chosen, "trials": outcomes, "asked": _request(sweep)}
        logger.info("%s: %s, of %s", name, chosen, count(len(outcomes), "trial"))
    write_json(_path(sweep), entries)
    for name in untuned:
        if not entries[name]["chosen"]:
            failed = [trial.task.failure() for trial in trials if trial.strategy == name]
            raise ValueError(
                f"tune: all {count(len(failed), 'trial')} of {name} failed; mend the cause, or "
                f"give other values; the last one: {failed[-1]}"
            )
    return True, []


def _path(sweep: Sweep) -> Path:
    return Path(sweep.config.sweep_dir) / "tuning.json"


def _request(sweep: Sweep) -> dict[str, Any]:
    """The settings that an entry of tuning.json answers."""
    config = sweep.config
    axes = axes_of("tune", config.tune)
    return {"tune": axes, "trials": config.tune_trials, "seed": config.tune_seed}


def _drop_stale_entries(sweep: Sweep, untuned: list[str]) -> dict[str, Any]:
    """Remove from tuning.json the entries of strategies that must choose (again), and the failures
    of their trials, which then run once more. Returns the other entries."""
    entries = read_tuning(Path(sweep.config.sweep_dir))
    stale = {name: entries.pop(name) for name in untuned if name in entries}
    for name, entry in stale.items():
        for trial in entry["trials"]:
            folder = Path(sweep.config.sweep_dir) / _trial_name(name, trial["values"])
            (folder / "error.txt").unlink(missing_ok=True)
    if stale:
        write_json(_path(sweep), entries)
    return entries


def _cost(outcome: dict[str, Any]) -> float:
    """The score, turned so that less is better."""
    score: float = outcome["score"]
    return score if outcome["metric"] == "loss" else -score


def _trial_name(strategy: str, values: dict[str, Any]) -> str:
    return f"{TRIALS_FOLDER}/{strategy}/{arm_name('', values).lstrip(',')}"


def _checked_config(sweep: Sweep, strategy: str, values: dict[str, Any]) -> FinetuneConfig:
    """Settings of a trial. ValueError if it has run with other ones."""
    run_dir = f"{sweep.config.sweep_dir}/{_trial_name(strategy, values)}"
    config = sweep.run_of(strategy, values, sweep.config.tune_seed, run_dir)
    RunFolder(run_dir).check_same_config(to_yaml(config), "sweep_dir")
    return config


def _run_trials(
    sweep: Sweep, runner: TaskRunner, choices: list[tuple[str, dict[str, Any]]]
) -> tuple[list[Trial], list[str]]:
    """Run a trial for each strategy and values, unless it is settled."""
    trials = []
    for strategy, values in choices:
        config = runner.fit_to_machine(_checked_config(sweep, strategy, values))
        task = task_of_run(_trial_name(strategy, values), config, predict_test=False)
        trials.append(Trial(strategy=strategy, values=values, task=task))
    tasks = [trial.task for trial in trials if not trial.task.has_failed()]
    return trials, runner.run_all(tasks)


def _run_proposals(
    sweep: Sweep, strategies: list[str], runner: TaskRunner
) -> tuple[list[Trial], list[str]]:
    """Run trial after trial, all strategies side by side, until one is not settled; returns all
    trials, and a line for each of the last ones that failed."""
    space = search_space(axes_of("tune", sweep.config.tune))
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = {
        name: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sweep.config.tune_seed))
        for name in strategies
    }
    all_trials: list[Trial] = []
    for _ in range(sweep.config.tune_trials or 0):
        proposals = {name: study.ask(space) for name, study in studies.items()}
        choices = [(name, dict(proposal.params)) for name, proposal in proposals.items()]
        trials, failures = _run_trials(sweep, runner, choices)
        all_trials += trials
        if not all(trial.is_settled() for trial in trials):
            return all_trials, failures
        for trial in trials:
            outcome = trial.outcome()
            study, proposal = studies[trial.strategy], proposals[trial.strategy]
            if outcome["score"] is None:
                study.tell(proposal, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(proposal, _cost(outcome))
    return all_trials, []


def search_space(axes: Mapping[str, list[Any]]) -> dict[str, "BaseDistribution"]:
    """What optuna proposes each setting from. ValueError for a wrong range, or without optuna."""
    try:
        import optuna  # noqa: F401  # distribution_of would fail with more than a line
    except ImportError:
        raise ValueError("tune_trials needs optuna: pip install -e '.[search]'") from None
    return {key: distribution_of(key, values) for key, values in axes.items()}


def distribution_of(key: str, values: list[Any]) -> "BaseDistribution":
    """A range for two numbers, else a choice; on a log scale where both are positive and tenfold
    apart."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        return CategoricalDistribution(values)
    low, high = values
    if low >= high:
        raise ValueError(f"tune.{key}={values}: a range needs a lower and a higher number")
    is_log = low > 0 and high >= LOG_RATIO * low
    if type(low) is int and type(high) is int:
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)
