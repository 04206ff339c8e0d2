"""What clusters do to jobs: a run that was killed in any way goes on from its last checkpoint, and
ends bitwise as if undisturbed. It loses at most the steps since that checkpoint."""

import os
import subprocess
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
from conftest import long_words
from ranks import run_on_ranks
from slurm_jobs import Job, assert_same_weights, command, wait_until
from test_finetune import events

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SAVED_EVERY = 4


LONG = "train.max_epochs=45"
"""180 steps, so that one run can be disturbed several times."""


@pytest.fixture(scope="module")
def undisturbed_long(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "long"
    run_on_ranks(2, ["finetune", *long_words(shards, folder, LONG)])
    return folder


class Disturbed:
    """A run of two nodes, submitted again and again to the same folder, and how it resumed."""

    def __init__(self, project: Path, shards: Path, folder: Path) -> None:
        self.run_dir, self._project, self._log = folder / "run", project, folder / "log"
        self._words, self.resumed = long_words(shards, self.run_dir, LONG), 0

    def submit(self) -> Job:
        return Job(self._project, self._log, "-N2", *self._words)

    def train(self, job: Job) -> int:
        """Wait for four steps beyond where this start began; returns the last step."""
        wait_until(lambda: len(self._events("resumed")) == self.resumed, job)
        began = self._last_step()
        wait_until(lambda: self._last_step() >= max(began + 4, 12), job)
        assert len(job.processes()) == 2
        return self._last_step()

    def assert_resumed(self, job: Job, at_least: int) -> None:
        """Wait until the run goes on from step `at_least` or later."""
        self.resumed += 1
        wait_until(lambda: len(self._events("resumed")) == self.resumed, job)
        assert self._events("resumed")[-1]["step"] >= at_least

    def _events(self, kind: str) -> list[dict]:
        return events(self.run_dir, kind) if (self.run_dir / "metrics.jsonl").exists() else []

    def _last_step(self) -> int:
        return max((event["step"] for event in self._events("step")), default=0)


def test_a_run_that_is_killed_in_many_ways_ends_as_if_undisturbed(
    slurm, project, shards, tmp_path, undisturbed_long
):
    """A killed process, a termination without grace, a terminated batch shell, a cancelled job, a
    killed batch shell, a lost node: each costs at most what was not saved."""
    run = Disturbed(project, shards, tmp_path)
    job = run.submit()
    step = run.train(job)
    os.kill(job.processes()[1], SIGKILL)
    run.assert_resumed(job, step - SAVED_EVERY)
    assert f"job {job.id} is back in the queue" in job.log and job.facts()["Restarts"] == "1"

    step = run.train(job)
    for number in (SIGTERM, SIGKILL):
        for pid in job.processes().values():
            os.kill(pid, number)
    run.assert_resumed(job, step - SAVED_EVERY)
    assert job.facts()["Restarts"] == "2"

    step = run.train(job)
    os.kill(job.shell(), SIGTERM)  # the run saves first
    run.assert_resumed(job, step)
    assert f"saved after a signal: job {job.id} is back in the queue" in job.log
    assert job.facts()["Restarts"] == "3"

    step = run.train(job)
    command("scancel", job.id)
    assert job.end() == "CANCELLED"
    wait_until(lambda: "Slurm ended the job" in job.log, job)
    assert "saved and stopped by SIGTERM" in job.log and job.facts()["Restarts"] == "3"

    job = run.submit()
    run.assert_resumed(job, step)
    step = run.train(job)
    os.kill(job.shell(), SIGKILL)
    assert job.end() == "FAILED"
    wait_until(lambda: not job.processes(), job)

    job = run.submit()
    run.assert_resumed(job, step - SAVED_EVERY)
    step = run.train(job)
    node = command("scontrol", "show", "hostnames", job.facts()["NodeList"]).split()[1]
    tell_cluster(slurm, "crash", node)
    wait_until(lambda: "RUNNING" not in job.facts()["JobState"], job)
    tell_cluster(slurm, "node", node)
    run.assert_resumed(job, step - SAVED_EVERY)
    assert job.end() == "COMPLETED", job.log
    assert len(events(run.run_dir, "resumed")) == 6
    assert_same_weights(run.run_dir, undisturbed_long)


def tell_cluster(slurm: Path, verb: str, node: str) -> None:
    script = Path(__file__).parent / "slurm" / "slurm-local.sh"
    environment = os.environ | {"SLURM_LOCAL_ROOT": str(slurm)}
    subprocess.run(
        ["bash", str(script), verb, node.removeprefix("node")], check=True, env=environment
    )
