"""Submitting to a real Slurm: from inside another job, in pieces; signals that come too early."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from conftest import FIXTURES, words_for
from slurm_jobs import Job, _processes, command, wait_until

from hpc_ecg.jobs.job import Job as Task
from hpc_ecg.jobs.job import JobOutcome
from hpc_ecg.jobs.settings import SlurmJobs
from hpc_ecg.jobs.slurm_jobs import run_on_slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SITE = {"SBATCH_PARTITION": "low", "SBATCH_GPUS_PER_TASK": "1", "SBATCH_MEM_PER_GPU": "900M"}
STEP = "srun --mem=4G --cpus-per-task=2 --gpus=1 --export=NONE --cpu-bind=none -n1"
BATCH = "sbatch --mem-per-cpu=700 -n2 --gpus-per-task=1 --output=/dev/null"


class Queue:
    """What `wait_until` needs of a job."""

    log = ""

    @staticmethod
    def is_empty() -> bool:
        return not command("squeue", "--noheader")


def facts_of(name: str) -> dict[str, str]:
    """What Slurm knows of the last job of this name."""
    shown = command("scontrol", "--oneliner", "show", "job").splitlines()
    (line,) = [line for line in shown if f"JobName={name}" in line][-1:]
    return dict(re.findall(r"(\w+)=(\S+)", line))


def submit_from_inside(project: Path, folder: Path, outer: str, *commands: list[str]) -> None:
    """Run commands inside a job, in a shell that has a site's variables for GPUs."""
    variables = SITE | {"PATH": os.environ["PATH"], "HPC_ECG_PYTHON": sys.executable}
    lines = ["#!/bin/bash", f"exec > {folder / 'outer.log'} 2>&1", "set -e", f"cd {project}"]
    lines += [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
    lines += [shlex.join(words) for words in commands]
    script = folder / "outer.sh"
    script.write_text("\n".join([*lines, "echo all submitted\n"]))
    script.chmod(0o755)
    subprocess.run([*outer.split(), str(script)], check=True)
    wait_until(Queue.is_empty, Queue)
    log = (folder / "outer.log").read_text()
    assert log.endswith("all submitted\n"), log


def test_a_run_and_a_sweep_submitted_from_a_step_with_other_memory(
    slurm, project, shards, tmp_path
):
    run = words_for(shards, tmp_path / "run", "train.max_steps=1")
    shared = [f"run.{word}" for word in run if not word.startswith(("run_dir", "init."))]
    sweep = ["-m", "hpc_ecg", "sweep", "--no-wait", f"sweep_dir={tmp_path / 'sweep'}", *shared]
    sweep += [f"strategy_dir={FIXTURES.parents[1] / 'configs/strategies'}", "slurm.time=0:10:00"]
    sweep += [f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}", "seeds=[0]"]
    script = ["sbatch", f"--output={tmp_path / 'log'}", "--mem=600M", "slurm/finetune.sh", *run]
    commands = script, [sys.executable, *sweep, "strategies=[ssl_new_head]"]
    submit_from_inside(project, tmp_path, STEP, *commands)
    assert (tmp_path / "run/finished.json").exists(), (tmp_path / "log").read_text()
    assert (tmp_path / "sweep/ssl_new_head/seed-0/finished.json").exists(), "the test is closed"
    job = facts_of(next((tmp_path / "sweep/jobs").glob("*.json")).stem)
    assert job["Partition"] == "low" and job["TresPerTask"] == "gres:gpu:1"
    assert job["MemPerTres"] == "gres:gpu:900" and job["TimeLimit"] == "00:10:00"


def test_an_array_of_shards_submitted_from_a_batch_job_asks_for_no_gpu(
    slurm, project, cohort, tmp_path
):
    words = ["data", "shard", str(cohort), "--signals", str(cohort.parent), "--out"]
    words += [str(tmp_path / "out"), "--label=af", "--patient=patient_id", "--shard-size=40"]
    words += ["--slurm=jobs=2,partition=main,time=10,mem=500M"]
    submit_from_inside(project, tmp_path, BATCH, [sys.executable, "-m", "hpc_ecg", *words])
    assert (tmp_path / "out/dataset.json").exists()
    job = facts_of("hpc_ecg-shards-")
    assert job["Partition"] == "main" and job["MinMemoryNode"] == "500M"
    assert "TresPerTask" not in job and "MemPerTres" not in job


# Signals before Python handles them


def process_of(job_id: str, *words: str) -> int:
    """The pid of a task of a job, as soon as it has started."""
    found: list[int] = []

    def look() -> bool:
        for pid, line, env in _processes():
            is_task = env.get("SLURM_JOB_ID") == job_id and "SLURM_STEP_ID" in env
            if is_task and set(words) <= set(line) and line[0] not in ("srun", "scancel"):
                found.append(pid)
        return bool(found)

    wait_until(look, Queue)
    return found[0]


def test_a_signal_while_the_processes_start_is_no_loss(slurm, project, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\n[ "$2" = hpc_ecg ] || exec {sys.executable} "$@"\n'
        f'[ -n "$SLURM_RESTART_COUNT" ] || exec sleep 60\n'
    )
    python.chmod(0o755)
    variables = {"HPC_ECG_PYTHON": str(python), "HPC_ECG_MAX_RESTARTS": "0"}
    job = Job(project, tmp_path / "log", "--ntasks-per-node=2 --time=30", **variables)
    os.kill(process_of(job.id, "sleep"), signal.SIGUSR2)
    assert job.end() == "COMPLETED", job.log
    assert f"stopped on request while it started: job {job.id} is back in the queue" in job.log


def test_a_signal_while_a_task_of_submitit_starts_is_no_loss(slurm, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n'SLURM_RESTART_COUNT' in os.environ or time.sleep(4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    task = Task(name="a", function=os.mkdir, arguments=(str(tmp_path / "made"),))
    config = SlurmJobs(parameters={"time": 5, "mem": "100M"})
    outcomes: list[JobOutcome] = []
    thread = Thread(
        target=lambda: outcomes.extend(run_on_slurm([task], tmp_path / "w" / "slurm", config))
    )
    thread.start()
    wait_until(lambda: "R" in command("squeue", "--noheader", "--format=%t"), Queue)
    job_id = command("squeue", "--noheader", "--format=%i").strip()
    os.kill(process_of(job_id, "submitit.core._submit"), signal.SIGTERM)
    thread.join(60)
    (outcome,) = outcomes
    assert outcome.error is None and (tmp_path / "made").is_dir()
    assert facts_of("hpc_ecg-shards-")["Restarts"] == "1"


# More jobs than Slurm takes at once


def limit_arrays(slurm: Path, limit: int) -> None:
    conf = (slurm / "slurm.conf").read_text()
    own, new = r"(,max_array_tasks=\d+)?\n", f",max_array_tasks={limit}\n"
    text = re.sub(f"(SchedulerParameters=.*?){own}", rf"\1{new}", conf)
    (slurm / "slurm.conf").write_text(text)
    command("scontrol", "reconfigure")


def test_more_jobs_than_an_array_may_have_run_once_each(slurm, tmp_path):
    limit_arrays(slurm, 2)
    try:
        folders = [str(tmp_path / str(n)) for n in range(5)]
        jobs = [Task(name=name, function=os.mkdir, arguments=(name,)) for name in folders]
        config = SlurmJobs(jobs=5, parameters={"time": 5, "mem": "100M", "jobs_at_once": 3})
        outcomes = list(run_on_slurm(jobs, tmp_path / "w" / "slurm", config))
    finally:
        limit_arrays(slurm, 1000)
    assert sorted(outcome.name for outcome in outcomes) == folders
    assert [outcome.error for outcome in outcomes] == [None] * 5, "a second run would find a folder"
    assert len(list((tmp_path / "w/slurm").glob("*_submission.sh"))) >= 2
