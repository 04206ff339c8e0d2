"""Who am I: ranks from torchrun's or Slurm's variables, and one process without either."""

import pytest

from hpc_ecg.distributed.ranks import Ranks, read_ranks, slurm_job_facts, without_ranks

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


def test_without_a_launcher_there_is_one_process():
    one = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert read_ranks({"HOME": "/root"}) == one


def test_torchruns_variables_are_read():
    assert read_ranks(TORCHRUN) == Ranks(rank=5, local_rank=1, world_size=8, local_world_size=4)


def test_torchruns_variables_win_over_slurms():
    assert read_ranks(STEP | TORCHRUN) == read_ranks(TORCHRUN)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_part_of_torchruns_variables_is_named(missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing} not set, but RANK or WORLD_SIZE is"):
        read_ranks(env)


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
    assert read_ranks(BATCH_SHELL) == Ranks()


def test_a_step_of_one_task_is_one_process():
    env = STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert read_ranks(env) == Ranks()


@pytest.mark.parametrize("parent", [TORCHRUN, STEP, BATCH_SHELL, STEP | TORCHRUN])
def test_a_child_without_ranks_is_a_run_of_its_own(parent):
    child = without_ranks(parent | {"HOME": "/root", "CUDA_VISIBLE_DEVICES": "3"})
    assert read_ranks(child) == Ranks()
    assert child["HOME"] == "/root" and child["CUDA_VISIBLE_DEVICES"] == "3"
    assert not {"MASTER_ADDR", "MASTER_PORT", "RANK"} & child.keys()
    assert child.get("SLURM_JOB_ID") == parent.get("SLURM_JOB_ID"), "the job is still known"


def test_what_slurm_says_of_a_job_is_recorded(monkeypatch):
    for name, value in BATCH_SHELL.items():
        monkeypatch.setenv(name, value)
    assert slurm_job_facts() == {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "gpu[04-05,09]"}
