"""What a sweep sends to Slurm and reads from it, without a Slurm; and a rank that is lost."""

import os
import shutil
import socket
import sys

import pytest
from conftest import words_for
from forks import free_port
from ranks import Fork, variables_of
from test_finetune import run

from hpc_ecg.atomic_io import write_json
from hpc_ecg.distributed.process_group import PeerLost
from hpc_ecg.jobs.queue import SlurmUnavailable, read_queue
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import (
    parse_minutes,
    sbatch_parameters,
    sbatch_script,
    without_sbatch_variables,
)
from hpc_ecg.sweep.slurm_runs import submit_missing
from hpc_ecg.sweep.status import cancel_cells, read_status
from hpc_ecg.sweep.submissions import last_submissions, queued_jobs, submission_lock
from hpc_ecg.sweep.task import Task
from hpc_ecg.training import evaluate as evaluation


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("12:00:00", 720), ("2-12", 3600), ("1-0:30", 1470), ("0:10", 1)],
)
def test_a_time_limit_is_read_in_every_form_that_slurm_knows(text, minutes):
    assert parse_minutes(text) == minutes


def test_a_malformed_time_limit_is_refused():
    with pytest.raises(ValueError, match="SBATCH_TIMELIMIT=soon: no time"):
        parse_minutes("soon")


def test_the_shells_variables_are_defaults_and_settings_override_them(monkeypatch):
    for name in ("PARTITION", "TIMELIMIT", "ACCOUNT", "MEM_PER_GPU"):
        monkeypatch.setenv(f"SBATCH_{name}", "7")
    assert sbatch_parameters(SlurmConfig(), "name")["time"] == 7
    with without_sbatch_variables(SlurmConfig(partition="low", mem="8G")):
        left = {name for name in os.environ if name.startswith("SBATCH_")}
        assert left == {"SBATCH_ACCOUNT"}
    assert os.environ["SBATCH_PARTITION"] == "7", "the shell's own environment is restored"


def test_the_script_has_one_process_per_gpu_the_sites_lines_and_no_wckey(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.sh").touch()
    options = {"setup": ["module load cuda"], "options": {"exclude": "node3", "exclusive": "true"}}
    script = sbatch_script(SlurmConfig(gpus_per_node=4, nodes=2, **options), tmp_path / "s", "n", 3)
    lines = script.splitlines()
    for option in ("ntasks-per-node=4", "nodes=2", "exclude=node3", "exclusive", "requeue"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --array=0-2%3" in lines and "#SBATCH --signal=USR2@120" in lines
    assert lines.index(f"source {tmp_path}/slurm/site.sh") < lines.index("module load cuda")
    assert "wckey" not in script and "--kill-on-bad-exit=1" in script


def test_without_an_answer_from_slurm_nothing_is_known_and_nothing_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write_json(tmp_path / "jobs" / "hpc_ecg-0000-a.json", {"tasks": ["a/seed-0"], "ids": ["1_0"]})
    with pytest.raises(SlurmUnavailable, match="squeue does not answer"):
        read_queue("--name=name")
    assert queued_jobs(tmp_path, ["a/seed-0"]) is None
    task = Task(
        name="a/seed-0",
        folder=tmp_path,
        function=print,
        arguments=(),
        results=(tmp_path / "finished.json",),
    )
    with pytest.raises(ValueError, match="squeue does not answer"):
        submit_missing([task], tmp_path, SlurmConfig())


def test_the_queue_is_read_task_by_task_and_a_job_that_is_gone_is_not_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/bash\necho '17_3|my job|PD|ReqNodeNotAvail, May be reserved'\n")
    squeue.chmod(0o755)
    (job,) = read_queue("--jobs=17")
    assert (job.id, job.index, job.name, job.is_pending) == ("17_3", 3, "my job", True)
    assert job.reason == "ReqNodeNotAvail, May be reserved"
    squeue.write_text("#!/bin/bash\necho 'error: Invalid job id specified' >&2; exit 1\n")
    assert read_queue("--jobs=17") == []


def test_the_last_submission_counts_even_if_its_launcher_was_killed_at_once(tmp_path):
    notes = {"hpc_ecg-0000-b": (["x", "y"], ["1_0", "1_1"]), "hpc_ecg-0001-a": (["y"], [])}
    for name, (tasks, ids) in notes.items():
        write_json(tmp_path / "jobs" / f"{name}.json", {"tasks": tasks, "ids": ids})
    found = last_submissions(tmp_path)
    assert (found["x"].job_id, found["x"].index) == ("1_0", 0)
    y = found["y"]
    assert (y.job_name, y.index, y.job_id) == ("hpc_ecg-0001-a", 0, "")


def test_two_launchers_do_not_submit_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr("hpc_ecg.sweep.submissions.LOCK_PATIENCE_S", 0.1)
    message = "is held by another process"
    with (
        submission_lock(tmp_path),
        pytest.raises(ValueError, match=message),
        submission_lock(tmp_path),
    ):
        pass


@pytest.mark.slow
def test_a_rank_lost_while_predicting_the_test_split_ends_the_other_with_peer_lost(
    shards, tmp_path
):
    folder = run(words_for(shards, tmp_path / "run", "train.max_epochs=1"))
    port = free_port()
    both = [Fork(target=_evaluate, args=(rank, port, str(folder.path))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [76, 9]


def _evaluate(rank: int, port: int, run_dir: str) -> None:
    os.environ.update(variables_of(rank, 2, port))
    if rank == 1:
        evaluation.predict = lambda *_: os._exit(9)
    try:
        evaluation.evaluate(evaluation.load_run(run_dir, []))
    except PeerLost:
        sys.exit(76)


@pytest.mark.parametrize(
    ("pid", "is_stopped"),
    [(os.getpid(), True), (2**22 + 1, False)],
    ids=["held by a live process", "held by a process that is gone"],
)
def test_a_local_sweep_is_asked_to_stop_only_while_a_process_runs_it(tmp_path, pid, is_stopped):
    write_json(tmp_path / "sweep.yaml", {"strategies": ["a"], "seeds": [0]})  # JSON is YAML
    (tmp_path / "lock.holder").write_text(f"process {pid} on {socket.gethostname()}\n")
    lines = cancel_cells(tmp_path, [])
    assert (tmp_path / "STOP").exists() == is_stopped
    assert lines == (
        ["asked to save and stop: the sweep on this machine"]
        if is_stopped
        else ["nothing is queued or running"]
    )


def test_a_submitted_run_without_a_job_is_not_running_whatever_its_node_left(tmp_path, monkeypatch):
    write_json(tmp_path / "sweep.yaml", {"strategies": ["a"], "seeds": [0]})
    write_json(tmp_path / "jobs" / "hpc_ecg-0000-a.json", {"tasks": ["a/seed-0"], "ids": ["1"]})
    (tmp_path / "a" / "seed-0").mkdir(parents=True)
    (tmp_path / "a" / "seed-0" / "lock.holder").write_text("process 1 on node7\n")
    for command, kind in (("true", "waiting"), ("false", "running")):  # false: it does not answer
        (tmp_path / "squeue").symlink_to(shutil.which(command))
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert [cell.kind for cell in read_status(tmp_path)] == [kind]
        (tmp_path / "squeue").unlink()
