"""slurm/finetune.sh under a real Slurm: any number of processes gives the result of one, and
what Slurm does to a job costs at most what was not saved."""

import os
import re
from signal import SIGKILL, SIGSTOP, SIGUSR2
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import FIXTURES, long_words, words_for
from slurm_jobs import (
    Job,
    assert_as_if_undisturbed,
    command,
    hold_until_told,
    sbatch,
    wait_for_step,
    wait_until,
)
from test_finetune import events, losses, run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="session")
def alone(shards, tmp_path_factory):
    """Eight steps of one process."""
    return run(words_for(shards, tmp_path_factory.mktemp("alone") / "run"))


@pytest.mark.parametrize("parallel", ["ddp", "zero2"])
def test_two_nodes_of_two_tasks_give_the_losses_of_one_process(
    slurm, project, shards, tmp_path, alone, parallel
):
    words = words_for(shards, tmp_path / "run", f"engine.parallel={parallel}")
    job = Job(project, tmp_path / "log", "-N2 --ntasks-per-node=2", *words)
    assert job.end() == "COMPLETED", job.log
    started = events(tmp_path / "run", "started")[0]
    assert started["processes"] == 4 and started["slurm"]["SLURM_JOB_NODELIST"] == "node[1-2]"
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-6)
    assert not list((tmp_path / "run").glob(".rendezvous*"))


def test_a_hanging_process_and_a_time_limit_have_runs_requeued(
    slurm, project, shards, tmp_path, undisturbed
):
    """A stopped process cannot watch itself: the other one does, and Slurm ends both. Meanwhile
    another run reaches its time limit, and is saved."""
    words = long_words(shards, tmp_path / "hanging", "engine.timeout_min=0.25")
    hanging = Job(project, tmp_path / "log-hanging", "-N2", *words)
    wait_for_step(hanging, tmp_path / "hanging", 12)
    os.kill(hanging.processes()[1], SIGSTOP)
    words = long_words(shards, tmp_path / "run")
    job = Job(project, tmp_path / "log", "-N2 --time=5", *words)
    wait_for_step(job, tmp_path / "run", 12)
    update = ["scontrol", "update", f"JobId={job.id}"]
    hold_until_told(job, SIGUSR2, lambda: command(*update, "TimeLimit=1"))
    wait_until(lambda: job.facts()["JobState"] == "PENDING", job)
    command(*update, "TimeLimit=5")
    assert job.end() == "COMPLETED", job.log
    assert f"saved after a signal: job {job.id} is back in the queue" in job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, at_most_lost=0)
    assert job.facts()["Restarts"] == "1"
    assert hanging.end() == "COMPLETED", hanging.log
    assert "process 0: no step for" in hanging.log and "in train_stage" in hanging.log, "its stacks"
    assert "a process lost the others, or hung: job" in hanging.log
    assert_as_if_undisturbed(tmp_path / "hanging", undisturbed, at_most_lost=4)


def test_a_preempted_run_is_saved_and_requeued(slurm, project, shards, tmp_path, undisturbed):
    words = long_words(shards, tmp_path / "run")
    job = Job(project, tmp_path / "log", "-N2 --partition=low --exclusive", *words)
    wait_for_step(job, tmp_path / "run", 12)
    first = ["--partition=main", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"]
    hold_until_told(job, SIGUSR2, lambda: command("sbatch", *first))
    assert job.end() == "COMPLETED", job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, at_most_lost=0)


def test_two_jobs_on_one_node_do_not_connect_to_each_other(slurm, project, shards, tmp_path, alone):
    jobs = [
        Job(
            *(project, tmp_path / f"log-{name}", "--ntasks-per-node=2 --nodelist=node1"),
            *words_for(shards, tmp_path / name),
        )
        for name in ("a", "b")
    ]
    wait_until(lambda: all(len(job.processes()) == 2 for job in jobs), jobs[0])
    for job in jobs:
        assert job.end() == "COMPLETED", job.log
    for name in ("a", "b"):
        np.testing.assert_allclose(losses(tmp_path / name), losses(alone), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--partition=nowhere", "Invalid partition name specified"),
        ("--gpus-per-node=8", "Requested node configuration is not available"),
        ("--mem=999G", "Requested node configuration is not available"),
    ],
)
def test_resources_that_the_cluster_lacks_are_refused_at_once(
    slurm, project, tmp_path, options, reason
):
    answer = sbatch(
        project, tmp_path / "log", options, "finetune.sh", f"run_dir={tmp_path / 'run'}"
    )
    assert answer.returncode == 1 and reason in answer.stderr
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_line_and_not_requeued(slurm, project, tmp_path):
    job = Job(
        project, tmp_path / "log", "--ntasks-per-node=2", f"run_dir={tmp_path}", "optim.lrr=1"
    )
    assert job.end() == "FAILED"
    assert "did you mean optim.lr?" in job.log and "not started again" in job.log
    assert job.facts()["Restarts"] == "0" and job.facts()["ExitCode"] == "2:0"


def test_runs_packed_into_one_job_go_on_after_a_signal_and_when_one_is_killed(
    slurm, project, shards, tmp_path
):
    shared = long_words(shards, tmp_path, "train.max_epochs=15")
    words = [f"run.{word}" for word in shared if not word.startswith(("run_dir", "init."))]
    words += [f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}", "seeds=[0,1]"]
    words += [f"sweep_dir={tmp_path / 'sweep'}", "strategies=[ssl_new_head]", "runs_at_once=2"]
    file = str(FIXTURES.parents[1] / "configs" / "sweep.yaml")
    options = "--gpus-per-task=2"
    job = Job(project, tmp_path / "log", options, file, *words, script="sweep.sh")
    cells = [tmp_path / "sweep" / "ssl_new_head" / f"seed-{seed}" for seed in (0, 1)]
    for cell in cells:
        wait_for_step(job, cell, 8)
    logs = [log.read_text() for log in (tmp_path / "sweep" / "submitit").glob("*/*.err")]
    gpus = {re.search(r"CUDA_VISIBLE_DEVICES=(.*)", log).group(1) for log in logs}
    assert gpus == {"0", "1"}, "one each"
    # Where Slurm holds processes in cgroups it signals those that srun started, not their children.
    os.kill(job.processes()[0], SIGUSR2)
    wait_until(lambda: all(events(cell, "resumed") for cell in cells), job)
    assert job.facts()["Restarts"] == "1" and "2 cells, 0 done before" in job.log
    holder = (cells[0] / "lock.holder").read_text()
    os.kill(int(re.match(r"process (\d+) ", holder).group(1)), SIGKILL)
    assert job.end() == "COMPLETED", job.log
    assert job.facts()["Restarts"] == "2" and "2 cells, 1 done before" in job.log
    assert "ssl_new_head/seed-0: killed by signal 9 (SIGKILL), often out of memory" in job.log
    assert f"job {job.id} is back in the queue" in job.log
    assert len(events(cells[0], "resumed")) == 2 and len(events(cells[1], "resumed")) == 1
    for cell in cells:
        assert events(cell, "resumed") and (cell / "evaluation.json").exists()
        assert not (cell / "error.txt").exists()


def test_an_array_of_two_jobs_of_two_tasks_shares_a_prediction(
    slurm, project, shards, cohort, undisturbed, tmp_path
):
    words = [str(undisturbed), str(cohort), "--workers=1", f"--out={tmp_path / 'risks.csv'}"]
    answer = sbatch(
        project, tmp_path / "log", "--array=0-1 --ntasks-per-node=2", "predict.sh", *words
    )
    assert answer.returncode == 0, answer.stderr
    queue = ["squeue", "--noheader", f"--jobs={answer.stdout.strip()}"]
    wait_until(lambda: not command(*queue), SimpleNamespace(log=answer.stderr))
    log = (tmp_path / "log").read_text()
    shown = command("scontrol", "--oneliner", "show", "job", answer.stdout.strip())
    assert set(re.findall(r"ExitCode=(\S+)", shown)) == {"0:0"}, log
    table = pd.read_csv(tmp_path / "risks.csv", index_col="record")
    assert f"recordings predicted: {tmp_path}/risks.csv" in log
    expected = pd.read_parquet(undisturbed / "predictions" / "valid.parquet").set_index("record")
    assert (table.loc[expected.index, "af_logit"] - expected["af.logit"]).abs().max() < 1e-6
    assert not (tmp_path / "risks.csv.parts").exists()
