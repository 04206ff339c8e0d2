"""A strategy chooses once each of its trials is settled, whatever became of them; without a run."""

from pathlib import Path

import pytest
from test_sweep import words_of_sweep

from hpc_ecg.atomic_io import write_json, write_text
from hpc_ecg.config.load import to_yaml
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.soups import soup_tasks
from hpc_ecg.sweep.task import TaskRunner
from hpc_ecg.sweep.tuning import check_trials, clear_trial_failure, read_tuned, tune

pytestmark = pytest.mark.slow


class Trials:
    """A runner of trials that runs nothing: `end` ends each, by its learning rate."""

    def __init__(self, shards, folder, *more) -> None:
        self.words = words_of_sweep(shards, folder, "strategies=[ssl_linear_probe]", "seeds=[0,1]")
        self.words += ["tune.optim.lr=[0.001,0.01]", *more]
        self.ran: list[float] = []

    def start(self, ends, *words):
        sweep = load_sweep([], [*self.words, *words])
        check_trials(sweep)
        self.ran.clear()

        def run_all(tasks):
            for task in tasks:
                lr = task.arguments[0].optim.lr
                if not task.is_done():
                    self.ran.append(lr)
                    task.error.unlink(missing_ok=True)
                    ends(task, lr)
            return [task.failure() for task in tasks if task.error.exists()]

        return tune(sweep, TaskRunner(run_all=run_all))


def scored(task, lr):
    write_text(task.folder / "config.yaml", to_yaml(task.arguments[0]))
    write_json(task.folder / "finished.json", {"best_score": lr, "metric": "auroc"})


def one_ends(text, from_outside):
    """The larger learning rate fails, the smaller one is scored."""

    def ends(task, lr):
        task.fail(text, "a.err", from_outside=from_outside) if lr > 0.005 else scored(task, lr)

    return ends


@pytest.mark.parametrize("more", [(), ("tune_trials=2", "tune.optim.lr=[0.01]")])
def test_a_cancelled_trial_is_not_settled_and_nothing_is_chosen_without_it(shards, tmp_path, more):
    trials = Trials(shards, tmp_path, *more)
    is_done, failures = trials.start(one_ends("its job ended: CANCELLED", from_outside=True))
    assert not is_done and not (tmp_path / "tuning.json").exists()
    assert failures == ["tuning/ssl_linear_probe/lr=0.01: its job ended: CANCELLED; a.err"]
    assert trials.start(scored) == (True, [])
    assert trials.ran == [0.01], "only that trial is run again"
    assert read_tuned(load_sweep([], trials.words)) == {"ssl_linear_probe": {"optim.lr": 0.01}}


def test_a_trial_that_failed_by_itself_is_settled_also_without_waiting(shards, tmp_path):
    trials, queue = Trials(shards, tmp_path), {}
    assert trials.start(lambda task, lr: queue.update({lr: task})) == (False, [])
    one_ends("ValueError: NaN", from_outside=False)(queue[0.01], 0.01)
    assert trials.start(lambda task, lr: None) == (False, [])
    assert trials.ran == [0.001], "the failed trial is not run again, the unfinished one is"
    scored(queue[0.001], 0.001)
    assert trials.start(scored) == (True, []) and trials.ran == []
    assert read_json(tmp_path / "tuning.json")["ssl_linear_probe"]["chosen"] == {"optim.lr": 0.001}


def test_a_failed_trial_can_be_retried_until_its_strategy_has_chosen(shards, tmp_path):
    trials, name = Trials(shards, tmp_path), "tuning/ssl_linear_probe/lr=0.01"
    trials.start(lambda task, lr: task.fail("x", "y") if lr > 0.005 else None)
    clear_trial_failure(load_sweep([], trials.words), name)
    assert trials.start(scored) == (True, []) and trials.ran == [0.001, 0.01]
    with pytest.raises(ValueError, match=r"lr=0.01: ssl_linear_probe has chosen already, and"):
        clear_trial_failure(load_sweep([], trials.words), name)


def test_if_all_trials_failed_the_next_start_runs_them_again(shards, tmp_path):
    trials = Trials(shards, tmp_path)
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"all 2 trials of ssl_linear_probe failed; mend .* the last one: tuning/",
        ):
            trials.start(lambda task, lr: task.fail("ValueError: no such file", "a.err"))
        assert trials.ran == [0.001, 0.01] and read_tuned(load_sweep([], trials.words)) == {}
    assert trials.start(scored) == (True, [])


@pytest.mark.parametrize("is_chosen", [True, False])
def test_trials_of_other_settings_are_refused(shards, tmp_path, is_chosen):
    trials = Trials(shards, tmp_path)

    def ends(task, lr):
        if is_chosen or lr < 0.005:
            scored(task, lr)

    assert trials.start(ends)[0] == is_chosen
    with pytest.raises(ValueError, match=r"train.max_epochs: 1 there, 7 now"):
        trials.start(scored, "run.train.max_epochs=7")
    trials.start(scored, "run.train.log_every=7")  # a setting that does not change the result


def test_a_soup_of_other_seeds_is_made_and_evaluated_anew(shards, tmp_path):
    sweep = load_sweep([], words_of_sweep(shards, tmp_path, "strategies=[random]", "seeds=[0,1]"))
    for cell in sweep.cells:
        for name in ("finished.json", "evaluation.json"):
            write_json(Path(cell.run.run_dir) / name, {})
    for seeds, is_done in (([0, 1], True), ([0, 1, 2], False)):
        write_json(tmp_path / "random/soup/soup.json", {"seeds": seeds})
        write_json(tmp_path / "random/soup/evaluation.json", {})
        (task,) = soup_tasks(sweep, TaskRunner(run_all=list))
        assert task.is_done() == is_done
    write_json(tmp_path / "random/soup/soup.json", {"seeds": [0, 1]})  # mixed, and killed then
    assert not task.is_done()
