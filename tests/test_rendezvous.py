"""How processes meet: a port that process 0 holds, published in a file; torchrun's own address."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from test_cluster import BATCH_SHELL, STEP, TORCHRUN

from hpc_ecg.distributed import rendezvous
from hpc_ecg.distributed.ranks import Ranks
from hpc_ecg.distributed.rendezvous import join_rendezvous

SOON = timedelta(seconds=20)
AT_ONCE = timedelta(seconds=0.3)


def task(rank, of=3, **changes):
    """What srun sets for one task of a job on this machine."""
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    tasks = {"SLURM_STEP_NUM_TASKS": str(of), "SLURM_STEP_TASKS_PER_NODE": str(of)}
    return STEP | tasks | own | {"SLURMD_NODENAME": "localhost"} | changes


def meet(folder, environments, timeout=SOON):
    """Each environment's process joins, in a thread of its own; outcomes or errors, in order."""
    with ThreadPoolExecutor(len(environments)) as pool:
        joins = [pool.submit(join_rendezvous, env, folder, timeout) for env in environments]
        return [join.exception() or join.result() for join in joins]


def test_tasks_of_a_step_meet_and_leave_no_file(tmp_path):
    environments = [task(rank) for rank in range(3)]
    outcomes = meet(tmp_path / "run", environments)
    assert [ranks.rank for ranks, _ in outcomes] == [0, 1, 2]
    outcomes[0][1].set("said", "by process 0")
    assert [store.get("said") for _, store in outcomes] == [b"by process 0"] * 3
    assert list((tmp_path / "run").iterdir()) == []
    for rank, env in enumerate(environments):
        assert env["RANK"] == env["LOCAL_RANK"] == str(rank) and env["WORLD_SIZE"] == "3"
        assert env["LOCAL_WORLD_SIZE"] == "3" and env["MASTER_ADDR"] == "localhost"
        assert env["MASTER_PORT"] == str(outcomes[0][1].port)


def test_two_jobs_meet_in_one_folder_on_one_node_at_ports_of_their_own(tmp_path):
    environments = [task(rank, 2, SLURM_JOB_ID=job) for job in ("7", "8") for rank in range(2)]
    (_, one), (_, guest), (_, other), _ = meet(tmp_path, environments)
    assert one.port != other.port
    one.set("said", "by job 7")
    assert guest.get("said") == b"by job 7" and not other.check(["said"])


@pytest.mark.parametrize("start", ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"])
def test_what_an_earlier_start_left_is_not_read(tmp_path, start):
    left = tmp_path / ".rendezvous.123456.0.0.partial"
    left.write_text(json.dumps({"hosts": ["localhost"], "port": 1}))
    outcome = meet(tmp_path, [task(1, of=2, **{start: "3"})], AT_ONCE)[0]
    assert isinstance(outcome, ValueError) and "does not see" in str(outcome)
    assert meet(tmp_path, [task(rank, 2, **{start: "3"}) for rank in range(2)])[1][1] is not None


def test_process_0_names_those_that_did_not_come_and_takes_its_file_back(tmp_path):
    outcomes = meet(tmp_path, [task(0, of=4), task(2, of=4)], timedelta(seconds=1))
    assert isinstance(outcomes[0], ValueError)
    assert "2 of 4 processes did not join within 0:00:01 (ranks 1, 3)" in str(outcomes[0])
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_process_0_says_so_and_at_the_end_what_to_do(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "NOTE_EVERY_S", 0.1)
    outcomes = meet(tmp_path, [task(1), task(2)], timedelta(seconds=0.5))
    for outcome in outcomes:
        assert isinstance(outcome, ValueError) and "process 0 must have started" in str(outcome)
        assert "start with srun --kill-on-bad-exit=1" in str(outcome) and "\n" not in str(outcome)
    for rank in (1, 2):
        assert caplog.text.count(f"(rank {rank}) waits for process 0, which may have ended") >= 2


def test_a_folder_that_not_all_nodes_see_is_named(tmp_path):
    outcome = meet(tmp_path, [task(1)], AT_ONCE)[0]
    assert isinstance(outcome, ValueError) and "\n" not in str(outcome)
    assert str(tmp_path / ".rendezvous.123456.0.0.partial") in str(outcome)
    assert "a disk that all nodes share" in str(outcome)


def test_the_first_name_that_answers_is_taken_and_none_is_one_line(tmp_path):
    here = {"SLURMD_NODENAME": "no-such-host.invalid"}
    outcomes = meet(tmp_path, [task(rank, 2, **here) for rank in range(2)])
    assert outcomes[1][1] is not None, "the host's own name answered"
    (tmp_path / ".rendezvous.123456.0.0.partial").write_text('{"hosts": ["127.0.0.1"], "port": 1}')
    outcome = meet(tmp_path, [task(1)], AT_ONCE)[0]
    assert "does not reach process 0 at port 1 of 127.0.0.1 (Connection refused)" in str(outcome)
    assert "set MASTER_ADDR to" in str(outcome)


def test_a_site_may_say_the_address(tmp_path):
    environments = [task(rank, 2, MASTER_ADDR="127.0.0.1") for rank in range(2)]
    meet(tmp_path, environments)
    assert [env["MASTER_ADDR"] for env in environments] == ["127.0.0.1"] * 2


@pytest.mark.parametrize("env", [TORCHRUN, STEP | TORCHRUN])
def test_where_the_launcher_brings_the_address_no_store_is_made(tmp_path, env):
    env = dict(env)
    ranks, store = join_rendezvous(env, tmp_path, SOON)
    assert (ranks.rank, ranks.world_size, store) == (5, 8, None)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("node7", "29500")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("env", [{}, BATCH_SHELL, task(0, of=1)])
def test_one_process_meets_nobody_and_writes_nothing(tmp_path, env):
    before = dict(env)
    assert join_rendezvous(env, tmp_path, SOON) == (Ranks(), None)
    assert env == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_several_processes_without_an_address_to_meet_at_are_refused(tmp_path, missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ValueError, match=f"WORLD_SIZE=8 but {missing} not set"):
        join_rendezvous(env, tmp_path, SOON)
