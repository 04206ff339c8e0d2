"""Sharding on a real Slurm: the same bytes as one process writes, and failures of jobs."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import plan_for
from test_sharding import bytes_in

from hpc_ecg.jobs import slurm_jobs
from hpc_ecg.jobs.settings import SlurmJobs
from hpc_ecg.shards.sharding import shard_ecgs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
NODES = {"mem": "500M", "time": 5, "cpus_per_task": 2}


def spread(cohort, out, jobs=3, **parameters):
    slurm = SlurmJobs(jobs=jobs, parameters=NODES | parameters)
    return plan_for(cohort, out, records_per_shard=10, slurm=slurm)


def test_an_array_of_jobs_writes_the_bytes_of_one_process(slurm, cohort, tmp_path):
    description = shard_ecgs(spread(cohort, tmp_path / "slurm"))
    assert len(description["shards"]) > 3
    shard_ecgs(plan_for(cohort, tmp_path / "alone", records_per_shard=10))
    assert bytes_in(tmp_path / "slurm") == bytes_in(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "slurm"]


def test_a_killed_job_is_named_and_the_same_command_then_succeeds(
    slurm, cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm_jobs, "RESULT_PATIENCE_S", 2.0)  # this disk shows all at once
    given = spread(cohort, tmp_path / "out", jobs=2)

    def kill_second_job():
        while True:
            command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"]
            running = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if any(task.endswith("_1") for task in running.split()):
                task = next(task for task in running.split() if task.endswith("_1"))
                subprocess.run(["scancel", "--signal=KILL", "--full", task], check=True)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_second_job)
    killer.start()
    with pytest.raises(ValueError, match=r"ended without a result: .*(CANCELLED|[Kk]illed)"):
        shard_ecgs(given)
    killer.join()
    assert not (tmp_path / "out").exists()
    shard_ecgs(given)
    shard_ecgs(plan_for(cohort, tmp_path / "alone", records_per_shard=10))
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "alone")


def test_the_log_of_a_failed_job_is_kept(slurm, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "broken" / "wfdb").mkdir(parents=True)
    (tmp_path / "broken" / "wfdb" / "__init__.py").write_text("raise ImportError('no wfdb here')")
    with pytest.raises(ValueError, match="see ") as caught:
        shard_ecgs(spread(cohort, tmp_path / "out", jobs=1))
    log = Path(str(caught.value).rpartition("see ")[2])
    assert "no wfdb here" in log.read_text()


def test_an_unknown_partition_is_one_line(slurm, cohort, tmp_path):
    with pytest.raises(ValueError, match=r"sbatch: .*[Ii]nvalid partition"):
        shard_ecgs(spread(cohort, tmp_path / "out", partition="nowhere"))
    assert list(tmp_path.iterdir()) == []
