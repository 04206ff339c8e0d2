"""What clusters do to jobs: a run that was killed in any way goes on from its last checkpoint, and
ends bitwise as if undisturbed. It loses at most the steps since that checkpoint."""

import os
import subprocess
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM

import pytest
from conftest import long_words
from slurm_jobs import Job, assert_as_if_undisturbed, command, wait_for_step, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SAVED_EVERY = 4


@pytest.fixture
def job(slurm, project, shards, tmp_path) -> Job:
    """A run of two nodes that stands at step 12 or later."""
    job = Job(project, tmp_path / "log", "-N2", *long_words(shards, tmp_path / "run"))
    wait_for_step(job, tmp_path / "run", 12)
    return job


def test_a_killed_process(job, tmp_path, undisturbed):
    os.kill(job.processes()[1], SIGKILL)
    assert job.end() == "COMPLETED", job.log
    assert f"job {job.id} is back in the queue" in job.log and job.facts()["Restarts"] == "1"
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, SAVED_EVERY)


def test_a_termination_without_grace(job, tmp_path, undisturbed):
    for number in (SIGTERM, SIGKILL):
        for pid in job.processes().values():
            os.kill(pid, number)
    assert job.end() == "COMPLETED", job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, SAVED_EVERY)


def test_a_hanging_process(slurm, project, shards, tmp_path, undisturbed):
    """Stopped, it cannot watch itself: the other one does, and Slurm ends both."""
    words = long_words(shards, tmp_path / "run", "engine.timeout_min=0.25")
    job = Job(project, tmp_path / "log", "-N2", *words)
    wait_for_step(job, tmp_path / "run", 12)
    os.kill(job.processes()[1], SIGSTOP)
    assert job.end() == "COMPLETED", job.log
    assert "process 0: no step for" in job.log and "in train_stage" in job.log, "its stacks"
    assert "a process lost the others, or hung: job" in job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, SAVED_EVERY)


def test_a_terminated_batch_shell_has_the_run_saved_first(job, tmp_path, undisturbed):
    os.kill(job.shell(), SIGTERM)
    assert job.end() == "COMPLETED", job.log
    assert f"saved after a signal: job {job.id} is back in the queue" in job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, at_most_lost=0)


def test_a_killed_batch_shell_ends_the_job_and_submitting_again_goes_on(
    job, tmp_path, undisturbed, project, shards
):
    os.kill(job.shell(), SIGKILL)
    assert job.end() == "FAILED"
    wait_until(lambda: not job.processes(), job)
    again = Job(project, tmp_path / "log", "-N2", *long_words(shards, tmp_path / "run"))
    assert again.end() == "COMPLETED", again.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, SAVED_EVERY)


def test_a_node_failure(job, tmp_path, undisturbed, slurm):
    node = command("scontrol", "show", "hostnames", job.facts()["NodeList"]).split()[1]
    tell_cluster(slurm, "crash", node)
    wait_until(lambda: "RUNNING" not in job.facts()["JobState"], job)
    tell_cluster(slurm, "node", node)
    assert job.end() == "COMPLETED", job.log
    assert_as_if_undisturbed(tmp_path / "run", undisturbed, SAVED_EVERY)


def test_a_cancelled_run_is_saved_and_not_requeued(job, tmp_path, undisturbed, project, shards):
    command("scancel", job.id)
    assert job.end() == "CANCELLED"
    wait_until(lambda: "Slurm ended the job" in job.log, job)
    assert "saved and stopped by SIGTERM" in job.log and job.facts()["Restarts"] == "0"


def tell_cluster(slurm: Path, verb: str, node: str) -> None:
    script = Path(__file__).parent / "slurm" / "slurm-local.sh"
    environment = os.environ | {"SLURM_LOCAL_ROOT": str(slurm)}
    subprocess.run(
        ["bash", str(script), verb, node.removeprefix("node")], check=True, env=environment
    )
