"""What a sweep sends to Slurm and reads from it, without a Slurm; and a rank that is lost."""

import json
import os
import shutil
import socket
import sys
from datetime import UTC, datetime, timedelta

import pytest
from conftest import words_for
from forks import free_port
from ranks import Fork, variables_of
from test_finetune import run

from hpc_ecg.atomic_io import write_json
from hpc_ecg.cli.sweep import _run
from hpc_ecg.distributed.failures import PeerLost
from hpc_ecg.jobs.local_jobs import job_log
from hpc_ecg.jobs.queue import QueuedJob, SlurmUnavailable, describe_queue, read_queue
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import sbatch_script
from hpc_ecg.sweep import launch, local_runs, slurm_runs
from hpc_ecg.sweep.folder import parse_error
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.local_runs import run_tasks_locally
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.sweep.slurm_runs import submit_missing
from hpc_ecg.sweep.status import cancel_cells, read_status
from hpc_ecg.sweep.submissions import last_submissions, link_log, queued_jobs, submission_lock
from hpc_ecg.sweep.task import Task
from hpc_ecg.training import evaluate as evaluation
from hpc_ecg.training.run_folder import RunFolder


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


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("Resources", "Resources (nodes must become free)"),
        ("Priority", "Priority (jobs of higher priority come first)"),
        *[
            (limit, f"{limit} (a limit of the {of})")
            for limit, of in {
                "QOSMaxJobsPerUserLimit": "quality of service, jobs at once per user",
                "QOSMaxGRESPerUser": "quality of service, GPUs (or other GRES) per user",
                "QOSMaxWallDurationPerJobLimit": "quality of service, time per job",
                "QOSMinGRES": "quality of service",
                "AssocGrpGRES": "account, GPUs (or other GRES), all jobs together",
                "AssocGrpCPUMinutesLimit": "account, CPUs × time, all jobs together",
                "AssocGrpCPURunMinutesLimit": "account, CPUs × time, all jobs together",
                "MaxJobsPerAccount": "account, jobs at once per account",
            }.items()
        ],
        ("JobHeldAdmin", "JobHeldAdmin (held by an administrator, who can release it)"),
        ("PartitionDown", "PartitionDown (the partition is closed)"),
        (
            "PartitionTimeLimit",
            "PartitionTimeLimit (it asks for more time than the partition allows)",
        ),
        (
            "PartitionNodeLimit",
            "PartitionNodeLimit (it asks for more nodes than the partition allows)",
        ),
        ("JobHeldUser", "JobHeldUser (held; scontrol release starts it)"),
        (
            "launch failed requeued held",
            "launch failed requeued held (held, as its node could not start it; scontrol release "
            "tries again)",
        ),
        (
            "DependencyNeverSatisfied",
            "DependencyNeverSatisfied (the job that it waits for failed; cancel it)",
        ),
        ("SomethingNew", "SomethingNew"),
        ("None", ""),
    ],
)
def test_what_a_job_waits_for_is_said_as_slurm_says_it_and_in_words(reason, text):
    assert queued(reason=reason).describe_reason() == text


def test_the_launcher_says_how_many_jobs_wait_for_what():
    jobs = [queued(state="R"), *[queued(reason="Priority")] * 2, queued(reason="None")]
    why = "2 jobs waiting: Priority (jobs of higher priority come first)"
    assert describe_queue(jobs) == f"1 job running; {why}; 1 job waiting: submitted"
    left = "3 not submitted yet: others must end first"
    assert describe_queue(jobs[:1], 3) == f"1 job running; {left}"
    assert describe_queue([], 3, "a limit") == "0 jobs running; 3 not submitted yet: a limit"


def queued(name="17_0", state="PD", reason="None"):
    return QueuedJob(id=name, name="n", state=state, reason=reason)


def some_task(folder, name="a/seed-0"):
    path = folder / name
    return Task(name=name, folder=path, function=print, arguments=(), results=(path / "done",))


@pytest.fixture
def lost(tmp_path, monkeypatch):
    """A task whose job is gone, with its log and what scontrol shows of the job."""
    write_json(tmp_path / "jobs" / "hpc_ecg-0000-a.json", {"tasks": ["a/seed-0"], "ids": ["1_0"]})
    log = tmp_path / "submitit" / "1_0_0_log.err"
    log.parent.mkdir()

    def judge(shown, text="", **known):
        log.write_text(text)
        monkeypatch.setattr(slurm_runs, "show_job", lambda _: shown)
        task, tries = some_task(tmp_path), slurm_runs.Tries(**known)
        return slurm_runs._should_retry(task, tmp_path, tries, 3), tries, task

    return judge


FAILED = "JobState=FAILED Reason=NonZeroExitCode NodeList=node3 BatchHost=node3"


@pytest.mark.parametrize(
    ("shown", "log", "is_retried", "nodes"),
    [
        (FAILED, "", True, ["node3"]),
        ("JobState=NODE_FAIL Reason=None NodeList=node3 ", "", True, ["node3"]),
        ("JobState=FAILED NodeList=node[1-2] ", "", True, []),
        (
            "JobState=FAILED NodeList=node[1-2] ",
            "srun: error: node2: task 1: Killed",
            True,
            ["node2"],
        ),
        ("JobState=TIMEOUT Reason=TimeLimit NodeList=node3 ", "", True, []),
        ("JobState=PREEMPTED Reason=None NodeList=node3 ", "", True, []),
        ("JobState=OUT_OF_MEMORY Reason=OutOfMemory NodeList=node3 ", "", False, []),
        ("JobState=CANCELLED Reason=None NodeList=(null) ", "", False, []),
        ("", "", True, []),
    ],
)
def test_a_lost_run_is_tried_again_and_only_a_node_at_fault_is_blamed(
    lost, shown, log, is_retried, nodes
):
    again, tries, _ = lost(shown, log)
    assert (again, tries.nodes) == (is_retried, nodes)


def test_the_reason_names_the_tries_the_nodes_and_the_line_of_the_log(lost):
    line = "slurmstepd: error: execve(): /no/python: No such file or directory"
    again, _, task = lost(FAILED, line, retries=3, nodes=["node1", "node2"])
    nodes = "node1, node2 and node3"
    assert not again
    whole = f": its job ended 4 times without a result on {nodes}: {line} (FAILED);"
    assert whole in task.failure()
    task.error.unlink()
    _, _, task = lost("JobState=CANCELLED Reason=Resources", "")
    assert ": its job ended without a result: CANCELLED;" in task.failure()


def test_each_try_is_missed_for_the_same_time_before_it_is_lost(tmp_path, monkeypatch):
    task, clock, tries = some_task(tmp_path), [100.0], {"a/seed-0": slurm_runs.Tries()}
    monkeypatch.setattr(slurm_runs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm_runs, "submit_missing", lambda *_: None)
    for _ in range(2):
        for seconds, is_lost in ((0, False), (9, False), (2, True)):
            clock[0] += seconds
            found = slurm_runs._ended({task.name: task}, {}, tries)
            assert found == ([task] if is_lost else [])
        slurm_runs._submit_again([task], tries, tmp_path, SlurmConfig())


def test_tries_come_later_each_time_and_avoid_nodes_unless_no_other_is_left(tmp_path, monkeypatch):
    task, sent, refuse = some_task(tmp_path), [], []

    def submit(tasks, folder, config):
        sent.append(config.options)
        if "exclude" in config.options and refuse:
            raise ValueError("Requested node configuration is not available")

    monkeypatch.setattr(slurm_runs, "submit_missing", submit)
    known = slurm_runs.Tries(nodes=["node1"])
    config = SlurmConfig(options={"exclude": "node9", "comment": "x"})
    for _ in range(3):
        slurm_runs._submit_again([task], {task.name: known}, tmp_path, config)
    assert [options["begin"] for options in sent] == ["now+15", "now+60", "now+240"]
    assert {options["exclude"] for options in sent} == {"node9,node1"}
    refuse.append(True)
    slurm_runs._submit_again([task], {task.name: known}, tmp_path, SlurmConfig())
    assert sent[-1] == {"begin": "now+960"} and known.retries == 4


def test_a_job_that_no_other_node_can_take_may_return_to_the_one_it_left(monkeypatch):
    calls = []
    monkeypatch.setattr(slurm_runs, "allow_nodes", lambda *call: calls.append(call))
    tries = {"a": slurm_runs.Tries(nodes=["node1"], excludes=True)}
    config = SlurmConfig(options={"exclude": "node9"})
    for reason in ("Resources", "ReqNodeNotAvail, UnavailableNodes:node3", "ReqNodeNotAvail"):
        slurm_runs._allow_excluded_nodes({"a": queued(reason=reason)}, tries, config)
    assert calls == [("17_0", "node9")]


def test_the_log_of_a_submitted_run_has_the_name_of_its_cell(tmp_path):
    write_json(tmp_path / "jobs" / "hpc_ecg-0000-a.json", {"tasks": ["a/seed-0"], "ids": ["1_0"]})
    file = tmp_path / "submitit" / "1_0_0_log.err"
    assert last_submissions(tmp_path)["a/seed-0"].log == file, "as version 0.1 left it"
    for _ in range(2):
        link_log(tmp_path, "a/seed-0", "1_0")
    link = last_submissions(tmp_path)["a/seed-0"].log
    file.parent.mkdir()
    file.write_text("x")
    assert link.name == "a-seed-0-1_0.err" and link.read_text() == "x"


@pytest.mark.parametrize(
    ("ages_s", "text"),
    [
        ([15, 5], "at step 20, 49 ECG/s, 5 s ago"),
        ([5], "at step 10, 49 ECG/s, 5 s ago"),
        ([1000, 600], "at step 20, 49 ECG/s, 10 min ago"),
        ([860, 850], "at step 20, no step for 14 min"),
        ([7210, 7200], "at step 20, no step for 2.0 h"),
    ],
)
def test_a_running_cell_says_when_its_last_step_was_and_where_its_log_is(tmp_path, ages_s, text):
    write_json(tmp_path / "sweep.yaml", {"strategies": ["a"], "seeds": [0]})
    run, log = RunFolder(tmp_path / "a" / "seed-0"), job_log(tmp_path / "submitit", "a/seed-0", 1)
    for path in (run.metrics, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (run.path / "lock.holder").write_text(f"process 1 on {socket.gethostname()}\n")
    for number, age_s in enumerate(ages_s, 1):
        when = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
        event = {"event": "step", "step": 10 * number, "ecg_per_s": 49.2, "time": when}
        with run.metrics.open("a") as file:
            file.write(json.dumps(event) + "\n")
    [cell] = read_status(tmp_path)
    assert (cell.kind, cell.text) == ("running", f"on this machine {text}; log: {log}")
    assert log.name.startswith("a-seed-0-1_")


CUDA = "RuntimeError: CUDA error: device-side assert\nCompile with `TORCH_USE_CUDA_DSA`."
TRACEBACK = f'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\n{CUDA}'


@pytest.mark.parametrize(
    ("text", "reason", "log"),
    [
        (f"log: /a b/x.err\n{TRACEBACK}\n", CUDA.partition("\n")[0], "/a b/x.err"),
        (f"log: x\nTraceback (most recent call last):\nKeyError: 1\n\n{TRACEBACK}", CUDA[:44], "x"),
        ("ended from outside, log: x\nkilled by signal 9\n", "killed by signal 9", "x"),
        ("boom", "boom", ""),
        ("", "failed", ""),
    ],
)
def test_the_reason_of_a_failure_is_its_exception_and_not_advice_below_it(text, reason, log):
    assert parse_error(text) == (reason, log)


@pytest.mark.parametrize(("is_killed", "code"), [(True, 137), (False, 1)])
def test_a_local_sweep_tells_its_job_whether_a_run_was_killed(
    tmp_path, monkeypatch, is_killed, code
):
    task = some_task(tmp_path)
    task.fail("some reason", "x.err", from_outside=is_killed)
    monkeypatch.setattr(launch, "launch", lambda *_: [task.failure()])
    config = SweepConfig(sweep_dir=str(tmp_path), strategies=["a"])
    assert _run(Sweep(config=config, shared=[], overrides={}, cells=[]), wait=True) == code


@pytest.mark.parametrize(("restarts", "ran"), [("0", ["a", "b"]), ("1", ["b"])])
def test_a_mistake_is_not_repeated_when_slurm_starts_a_job_again(
    tmp_path, monkeypatch, restarts, ran
):
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    tasks = [some_task(tmp_path, name) for name in ("a", "b")]
    tasks[0].fail("ValueError: wrong", "x.err")
    tasks[1].fail("killed", "x.err", from_outside=True)
    started = []
    monkeypatch.setattr(
        local_runs, "run_locally", lambda jobs, *_: started.extend(j.name for j in jobs) or []
    )
    failures = run_tasks_locally(tasks, tmp_path, 1, 1, [], lambda: False, print)
    assert started == ran
    assert failures == ([] if restarts == "0" else ["a: ValueError: wrong; x.err"])


def test_a_sweep_is_not_continued_without_the_sites_settings_that_it_began_with(
    tmp_path, monkeypatch
):
    for name in ("project", "elsewhere"):
        (tmp_path / name / "slurm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    folder, site = tmp_path / "sweep", tmp_path / "project" / "slurm" / "site.sh"
    directory = launch.describe_working_directory(folder)
    write_json(folder / "environment.json", {"working_directory": directory})
    monkeypatch.chdir(tmp_path / "elsewhere")
    launch._check_site_file(folder)
    site.touch()
    with pytest.raises(ValueError, match=f"there: cd {tmp_path}/project, and give the same"):
        launch._check_site_file(folder)
    (tmp_path / "elsewhere" / "slurm" / "site.sh").touch()
    launch._check_site_file(folder)


@pytest.mark.parametrize("number", [1, 3])
def test_of_a_refused_submission_nothing_is_left(tmp_path, monkeypatch, number):
    for name, text in (("srun", "true"), ("sbatch", "echo 'Invalid partition' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "jobs").mkdir()
    tasks = [some_task(tmp_path, f"a/seed-{n}") for n in range(number)]
    with pytest.raises(ValueError, match=r"Slurm takes no job: .*Invalid partition"):
        submit_missing(tasks, tmp_path, SlurmConfig())
    assert list((tmp_path / "submitit").iterdir()) == []
    assert list((tmp_path / "jobs").glob("*.json")) == []


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
