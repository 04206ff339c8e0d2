"""Who am I: ranks from torchrun's or Slurm's variables, and one process without either."""

import pytest

from hpc_ecg import cluster
from hpc_ecg.cluster import Ranks, join_world, read_ranks, this_job, without_ranks

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
STEP = {  # what `srun -N3 -n11` sets for a task on the third node
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[04-05,09]",
    "SLURM_NTASKS": "11",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[04-05,09]",
    "SLURM_PROCID": "10",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "2",
}
BATCH_SHELL = {  # what sbatch sets for the script itself
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[04-05,09]",
    "SLURM_NTASKS": "11",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "4(x2),3",
}


@pytest.fixture
def no_scontrol(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(cluster.subprocess, "run", missing)


def test_without_a_launcher_there_is_one_process():
    env = {"HOME": "/root"}
    assert read_ranks(env) == Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert join_world(env) == Ranks() and env == {"HOME": "/root"}


def test_torchruns_variables_are_read():
    assert read_ranks(TORCHRUN) == Ranks(rank=5, local_rank=1, world_size=8, local_world_size=4)


def test_torchruns_variables_win_over_slurms():
    env = STEP | TORCHRUN
    assert join_world(env).world_size == 8
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("node7", "29500")


def test_torchrun_with_one_process_needs_no_address():
    env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    assert join_world(env) == Ranks()


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_part_of_torchruns_variables_is_named(missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing} not set, but RANK or WORLD_SIZE is"):
        read_ranks(env)


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_several_processes_without_an_address_to_meet_at_are_refused(missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ValueError, match=f"WORLD_SIZE=8 but {missing} not set"):
        join_world(env)


def test_a_slurm_steps_variables_are_read():
    assert read_ranks(STEP) == Ranks(rank=10, local_rank=2, world_size=11, local_world_size=3)


@pytest.mark.parametrize(
    ("tasks_per_node", "expected"),
    [("4(x2),3", [4, 4, 3]), ("2", [2]), ("1,5(x3)", [1, 5, 5, 5]), ("3(x2),1(x2)", [3, 3, 1, 1])],
)
def test_the_tasks_of_each_node_are_read(tasks_per_node, expected):
    found = [
        read_ranks(
            STEP | {"SLURM_STEP_TASKS_PER_NODE": tasks_per_node, "SLURM_NODEID": str(node)}
        ).local_world_size
        for node in range(len(expected))
    ]
    assert found == expected


def test_the_batch_shell_alone_is_one_process():
    env = dict(BATCH_SHELL)
    assert join_world(env) == Ranks()
    assert env == BATCH_SHELL, "nothing is exported for a single process"


def test_a_step_of_one_task_is_one_process():
    env = STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert read_ranks(env) == Ranks()


def test_a_slurm_step_is_said_in_torchruns_words(no_scontrol):
    env = dict(STEP)
    join_world(env)
    assert {name: env[name] for name in TORCHRUN} == {
        "RANK": "10",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "11",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu04",
        "MASTER_PORT": str(20000 + 123456 % 12000),
    }
    assert read_ranks(env) == read_ranks(STEP), "and is understood again by a child"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu04", "gpu04"),
        ("gpu04,gpu07", "gpu04"),
        ("gpu[04-05,09]", "gpu04"),
        ("gpu[7,9]", "gpu7"),
        ("login,gpu[1-2]", "login"),
        ("gpu[1-2],login", "gpu1"),
        ("rack[2-3]-node[10-12]", "rack2-node10"),
        ("node[1-2]-ib,other", "node1-ib"),
    ],
)
def test_the_first_host_is_found_without_scontrol(no_scontrol, nodes, first):
    env = STEP | {"SLURM_STEP_NODELIST": nodes}
    join_world(env)
    assert env["MASTER_ADDR"] == first


def test_scontrol_knows_the_first_host_best(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1.site\\nn2.site\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    env = STEP | {"SLURM_STEP_NODELIST": "n[1-2]"}
    join_world(env)
    assert env["MASTER_ADDR"] == "n1.site"


def test_ports_differ_for_jobs_and_steps_and_stay_below_the_ephemeral_range(no_scontrol):
    def port(job, step):
        env = STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        join_world(env)
        return int(env["MASTER_PORT"])

    ports = [port(job, step) for job in range(41_998, 42_008) for step in range(8)]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 20_000 and max(ports) < 32_768


def test_an_address_that_is_set_is_kept(no_scontrol):
    env = STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    join_world(env)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.1", "1234")


@pytest.mark.parametrize("parent", [TORCHRUN, STEP, BATCH_SHELL, STEP | TORCHRUN])
def test_a_child_without_ranks_is_a_run_of_its_own(parent, no_scontrol):
    env = dict(parent)
    join_world(env)
    child = without_ranks(env | {"HOME": "/root", "CUDA_VISIBLE_DEVICES": "3"})
    assert join_world(child) == Ranks()
    assert child["HOME"] == "/root" and child["CUDA_VISIBLE_DEVICES"] == "3"
    assert not {"MASTER_ADDR", "MASTER_PORT", "RANK"} & child.keys()
    assert child.get("SLURM_JOB_ID") == parent.get("SLURM_JOB_ID"), "the job is still known"


def test_what_slurm_says_of_a_job_is_recorded(monkeypatch):
    for name, value in BATCH_SHELL.items():
        monkeypatch.setenv(name, value)
    assert this_job() == {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "gpu[04-05,09]"}
