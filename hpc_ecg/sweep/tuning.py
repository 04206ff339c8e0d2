"""What each strategy chooses for itself before its seeds run: the values with the best score on
validation, from as many trials for every strategy.

Comes in: a sweep with `tune`; goes out: SWEEP/tuning.json, which says what each strategy chose. A
trial is a run in SWEEP/tuning/ with a seed of its own; it never sees the test split. With
`tune_trials` optuna proposes the values: trial n of a strategy follows from its trials before n, so
a sweep that was interrupted goes on with the same proposals.

A strategy chooses when each of its trials has an answer: a score, or a failure of its own, which is
not tried again. What was killed or cancelled is no answer.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import read_json, write_json
from hpc_ecg.config.load import to_yaml
from hpc_ecg.log import logger
from hpc_ecg.sweep.arms import arm_name, axes_of, choices_of
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.task import Task, task_of_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

FOLDER = "tuning"
LOG_RATIO = 10
RunAll = Callable[[Sequence[Task]], list[str]]
Adapt = Callable[[FinetuneConfig], FinetuneConfig]


@dataclass(frozen=True, kw_only=True)
class Trial:
    strategy: str
    values: dict[str, Any]
    task: Task

    def has_answer(self) -> bool:
        return self.task.is_done() or self.task.has_failed()

    def outcome(self) -> dict[str, Any]:
        """Its score on validation; None if it failed."""
        finished = RunFolder(self.task.folder).finished
        found = read_json(finished) if finished.exists() else {}
        names = {"score": found.get("best_score"), "metric": found.get("metric")}
        return {"values": self.values} | names


def trial_runs(sweep: Sweep, strategies: Collection[str]) -> list[tuple[str, FinetuneConfig]]:
    """What trials of these strategies run with, and with optuna between what; for a look at it
    before the first one. ValueError for values that no run has, or no range."""
    config = sweep.config
    axes = axes_of("tune", config.tune)
    if config.tune_trials is not None:
        _space(sweep)
    return [
        (name, sweep.run_of(name, values, config.tune_seed, config.sweep_dir))
        for name in config.strategies
        if name in strategies
        for values in choices_of(axes)
    ]


def chosen_before(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """What an earlier start chose, for strategies whose trials are those of these settings."""
    if not sweep.config.tune:
        return {}
    known = _read(sweep)
    return {
        strategy: known[strategy]["chosen"]
        for strategy in sweep.config.strategies
        if strategy in known
        and known[strategy].get("asked") == _asked(sweep)
        and known[strategy]["chosen"]
    }


def check_trials(sweep: Sweep) -> None:
    """ValueError if trials that are there had other settings than the sweep has now: their scores
    would choose for runs of another kind."""
    if not sweep.config.tune:
        return
    chosen, known = chosen_before(sweep), _read(sweep)
    grid = [] if sweep.config.tune_trials else choices_of(axes_of("tune", sweep.config.tune))
    for name in sweep.config.strategies:
        made = [trial["values"] for trial in known[name]["trials"]] if name in chosen else grid
        for values in made:
            _trial(sweep, lambda run: run, name, values)


def forget_failure(sweep: Sweep, trial: str) -> None:
    """So that the next start runs it again. ValueError if its strategy needs it no more."""
    for name in chosen_before(sweep):
        if trial.startswith(f"{FOLDER}/{name}/"):
            raise ValueError(
                f"{trial}: {name} has chosen already, and its runs rest on that; to choose again, "
                f"delete {_path(sweep)} and the runs of {name}"
            )
    (Path(sweep.config.sweep_dir) / trial / "error.txt").unlink(missing_ok=True)


def tune(sweep: Sweep, run_all: RunAll, adapt: Adapt) -> tuple[bool, list[str]]:
    """Run the trials and write tuning.json. False, and a line for each trial that failed, while
    some have no answer. ValueError if every trial of a strategy failed: the next start runs those
    again."""
    chosen = chosen_before(sweep)
    left = [name for name in sweep.config.strategies if name not in chosen]
    if not left:
        return True, []
    tuning = _forget(sweep, left)
    if sweep.config.tune_trials is None:
        choices = choices_of(axes_of("tune", sweep.config.tune))
        trials = [_trial(sweep, adapt, name, values) for name in left for values in choices]
        failures = _run(trials, run_all)
    else:
        trials, failures = _propose_and_run(sweep, left, run_all, adapt)
    if not all(trial.has_answer() for trial in trials):
        return False, failures
    for name in left:
        outcomes = [trial.outcome() for trial in trials if trial.strategy == name]
        tuning[name] = {"chosen": _best(outcomes), "trials": outcomes, "asked": _asked(sweep)}
        logger.info("%s: %s, of %d trials", name, tuning[name]["chosen"], len(outcomes))
    write_json(_path(sweep), tuning)
    for name in left:
        if not tuning[name]["chosen"]:
            raise ValueError(
                f"tune: all {len(tuning[name]['trials'])} trials of {name} failed; see hpc-ecg "
                "sweep status, or give other values"
            )
    return True, []


def _path(sweep: Sweep) -> Path:
    return Path(sweep.config.sweep_dir) / "tuning.json"


def _read(sweep: Sweep) -> dict[str, Any]:
    return read_json(_path(sweep)) if _path(sweep).exists() else {}


def _forget(sweep: Sweep, strategies: list[str]) -> dict[str, Any]:
    """What is known of the others. Where these found nothing, or were asked something else, what
    failed then is tried again, once."""
    tuning = _read(sweep)
    found = {name: tuning.pop(name) for name in strategies if name in tuning}
    for name, old in found.items():
        for trial in old["trials"]:
            folder = Path(sweep.config.sweep_dir) / _name(name, trial["values"])
            (folder / "error.txt").unlink(missing_ok=True)
    if found:
        write_json(_path(sweep), tuning)
    return tuning


def _run(trials: Sequence[Trial], run_all: RunAll) -> list[str]:
    return run_all([trial.task for trial in trials if not trial.task.has_failed()])


def _best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of the best score, of equal ones the first; {} if all failed."""
    scored = [trial for trial in trials if trial["score"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda t: -t["score"] if t["metric"] == "loss" else t["score"])
    return dict(best["values"])


def _asked(sweep: Sweep) -> dict[str, Any]:
    """What a choice is the answer to."""
    config = sweep.config
    axes = axes_of("tune", config.tune)
    return {"tune": axes, "trials": config.tune_trials, "seed": config.tune_seed}


def _name(strategy: str, values: dict[str, Any]) -> str:
    return f"{FOLDER}/{strategy}/{arm_name('', values).lstrip(',')}"


def _trial(sweep: Sweep, adapt: Adapt, strategy: str, values: dict[str, Any]) -> Trial:
    """ValueError if it was run with other settings."""
    name = _name(strategy, values)
    run_dir = f"{sweep.config.sweep_dir}/{name}"
    config = sweep.run_of(strategy, values, sweep.config.tune_seed, run_dir)
    RunFolder(run_dir).check_same_config(to_yaml(config), "sweep_dir")
    return Trial(
        strategy=strategy, values=values, task=task_of_run(name, adapt(config), tests=False)
    )


def _propose_and_run(
    sweep: Sweep, strategies: list[str], run_all: RunAll, adapt: Adapt
) -> tuple[list[Trial], list[str]]:
    """Trial after trial, all strategies side by side, until one has no answer; with a line for
    each of the last ones that failed."""
    space = _space(sweep)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = {
        name: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sweep.config.tune_seed))
        for name in strategies
    }
    trials: list[Trial] = []
    for _ in range(sweep.config.tune_trials or 0):
        asked = {name: study.ask(space) for name, study in studies.items()}
        now = [_trial(sweep, adapt, name, dict(own.params)) for name, own in asked.items()]
        failures = _run(now, run_all)
        trials += now
        if not all(trial.has_answer() for trial in now):
            return trials, failures
        for trial in now:
            found = trial.outcome()
            score = found["score"]
            if score is None:
                fail = optuna.trial.TrialState.FAIL
                studies[trial.strategy].tell(asked[trial.strategy], state=fail)
            else:  # a study minimizes
                loss = score if found["metric"] == "loss" else -score
                studies[trial.strategy].tell(asked[trial.strategy], loss)
    return trials, []


def _space(sweep: Sweep) -> dict[str, Any]:
    """What optuna proposes from, by dotted key."""
    try:
        import optuna  # noqa: F401  # _distribution would fail with more than a line
    except ImportError:
        raise ValueError("tune_trials needs optuna: pip install -e '.[search]'") from None
    return {key: _distribution(key, v) for key, v in axes_of("tune", sweep.config.tune).items()}


def _distribution(key: str, values: list[Any]) -> Any:
    """Two numbers are a range; everything else is a choice."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        return CategoricalDistribution(values)
    low, high = values
    if low >= high:
        raise ValueError(f"tune.{key}={values}: a range goes from a lower to a higher number")
    is_log = low > 0 and high >= LOG_RATIO * low
    if type(low) is int and type(high) is int:
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)
