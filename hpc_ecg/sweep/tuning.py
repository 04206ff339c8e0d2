"""What each strategy chooses for itself before its seeds run: the values with the best score on
validation, from as many trials for every strategy.

Comes in: a sweep with `tune`; goes out: SWEEP/tuning.json, which says what each strategy chose. A
trial is a run in SWEEP/tuning/ with a seed of its own; it never sees the test split. With
`tune_trials` optuna proposes the values: trial n of a strategy follows from its trials before n, so
a sweep that was interrupted goes on with the same proposals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.log import logger
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.sweep.arms import arm_name, axes_of, choices_of
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.task import Task, task_of_run
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.writing import read_json, write_json

LOG_RATIO = 10
RunAll = Callable[[Sequence[Task]], list[str]]
Adapt = Callable[[FinetuneConfig], FinetuneConfig]


@dataclass(frozen=True, kw_only=True)
class Trial:
    strategy: str
    values: dict[str, Any]
    task: Task

    def outcome(self) -> dict[str, Any]:
        """Its score on validation; None if it failed."""
        finished = RunFolder(self.task.folder).finished
        found = read_json(finished) if finished.exists() else {}
        names = {"score": found.get("best_score"), "metric": found.get("metric")}
        return {"values": self.values} | names


def chosen_before(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """What an earlier start chose, for strategies whose trials are those of these settings."""
    path = Path(sweep.config.sweep_dir) / "tuning.json"
    if not sweep.config.tune or not path.exists():
        return {}
    known = read_json(path)
    return {
        strategy: known[strategy]["chosen"]
        for strategy in sweep.config.strategies
        if strategy in known and known[strategy].get("asked") == _asked(sweep)
    }


def tune(sweep: Sweep, run_all: RunAll, adapt: Adapt) -> bool:
    """Run the trials and write tuning.json; False while jobs are still at work. ValueError if every
    trial of a strategy failed."""
    chosen = chosen_before(sweep)
    left = [name for name in sweep.config.strategies if name not in chosen]
    if not left:
        return True
    if sweep.config.tune_trials is None:
        choices = choices_of(axes_of("tune", sweep.config.tune))
        trials = [_trial(sweep, adapt, name, values) for name in left for values in choices]
        run_all([trial.task for trial in trials])
    else:
        trials = _propose_and_run(sweep, left, run_all, adapt)
    if not all(trial.task.is_done() or trial.task.error.exists() for trial in trials):
        return False
    path = Path(sweep.config.sweep_dir) / "tuning.json"
    tuning = read_json(path) if path.exists() else {}
    for name in left:
        found = _choose(name, [t.outcome() for t in trials if t.strategy == name])
        tuning[name] = found | {"asked": _asked(sweep)}
        taken, count = tuning[name]["chosen"], len(tuning[name]["trials"])
        logger.info("%s: %s, of %d trials", name, taken, count)
    write_json(path, tuning)
    return True


def _choose(strategy: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The best score; of equal ones the first."""
    scored = [trial for trial in trials if trial["score"] is not None]
    if not scored:
        raise ValueError(
            f"tune: all {len(trials)} trials of {strategy} failed; see hpc-ecg sweep status, or "
            "give other values"
        )
    best = max(scored, key=lambda t: -t["score"] if t["metric"] == "loss" else t["score"])
    return {"chosen": best["values"], "trials": trials}


def _asked(sweep: Sweep) -> dict[str, Any]:
    """What a choice is the answer to."""
    config = sweep.config
    axes = axes_of("tune", config.tune)
    return {"tune": axes, "trials": config.tune_trials, "seed": config.tune_seed}


def _trial(sweep: Sweep, adapt: Adapt, strategy: str, values: dict[str, Any]) -> Trial:
    name = f"tuning/{strategy}/{arm_name('', values).lstrip(',')}"
    run_dir = f"{sweep.config.sweep_dir}/{name}"
    config = sweep.run_of(strategy, values, sweep.config.tune_seed, run_dir)
    return Trial(
        strategy=strategy, values=values, task=task_of_run(name, adapt(config), tests=False)
    )


def _propose_and_run(
    sweep: Sweep, strategies: list[str], run_all: RunAll, adapt: Adapt
) -> list[Trial]:
    """Trial after trial, all strategies side by side."""
    try:
        import optuna
    except ImportError:
        raise ValueError("tune_trials needs optuna: pip install -e '.[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution(key, v) for key, v in axes_of("tune", sweep.config.tune).items()}
    studies = {
        name: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sweep.config.tune_seed))
        for name in strategies
    }
    trials: list[Trial] = []
    for _ in range(sweep.config.tune_trials or 0):
        asked = {name: study.ask(space) for name, study in studies.items()}
        now = [_trial(sweep, adapt, name, dict(own.params)) for name, own in asked.items()]
        run_all([trial.task for trial in now])
        trials += now
        if not all(trial.task.is_done() or trial.task.error.exists() for trial in now):
            return trials
        for trial in now:
            found = trial.outcome()
            score = found["score"]
            if score is None:
                fail = optuna.trial.TrialState.FAIL
                studies[trial.strategy].tell(asked[trial.strategy], state=fail)
            else:  # a study minimizes
                loss = score if found["metric"] == "loss" else -score
                studies[trial.strategy].tell(asked[trial.strategy], loss)
    return trials


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
