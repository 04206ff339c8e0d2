"""What sbatch gets: settings in Slurm's forms, the site's variables, and arrays that it takes."""

import os
import pickle
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpc_ecg.config.load import load_config
from hpc_ecg.jobs import slurm_jobs
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.queue import QueuedJob, SlurmUnavailable
from hpc_ecg.jobs.sbatch_environment import sbatch_environment
from hpc_ecg.jobs.settings import (
    SlurmConfig,
    SlurmJobs,
    parse_minutes,
    parse_slurm,
    time_limit_min,
)
from hpc_ecg.jobs.slurm_jobs import (
    SubmissionLimit,
    run_on_slurm,
    sbatch_parameters,
    sbatch_script,
    submit_in_pieces,
    submit_to_slurm,
)
from hpc_ecg.sweep import slurm_runs, submissions
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.sweep.slurm_runs import run_tasks_on_slurm, submit_missing
from hpc_ecg.sweep.task import Task

FOLDER = Path("/scratch/sweep")
FORMS = [("90", 90), ("90:30", 91), ("12:00:00", 720), ("2-12", 3600), ("1-0:30", 1470)]
FORMS += [("1-12:00:00", 2160), ("3:10", 4), ("0:03:00", 3)]
NO_TIMES = ["soon", "1:2:3:4", "-5", "1-", "12h", "1.5", "0:00", ""]
SWEEP = ["sweep_dir=s", "strategies=[a]"]


# Slurm's forms


@pytest.mark.parametrize(("text", "minutes"), FORMS)
def test_a_time_limit_is_read_in_every_form_that_slurm_knows(text, minutes, tmp_path, monkeypatch):
    assert parse_minutes(text, "slurm.time") == minutes
    given = load_config(SweepConfig, [], [*SWEEP, f"slurm.time={text}"])
    assert sbatch_parameters(given.slurm, FOLDER, "n")["time"] == minutes
    file = tmp_path / "sweep.yaml"
    file.write_text(f"slurm:\n  time: {text}  # unquoted: YAML would read 12:00:00 as 43200\n")
    assert time_limit_min(load_config(SweepConfig, [str(file)], SWEEP).slurm) == minutes
    assert time_limit_min(parse_slurm(f"jobs=2,time={text}").config()) == minutes
    monkeypatch.setenv("SBATCH_TIMELIMIT", text)
    assert time_limit_min(SlurmConfig()) == minutes


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_no_time_limit_is_refused_by_name(text, monkeypatch):
    with pytest.raises(ValueError, match=f"^slurm.time={text} is no time limit; write it as minu"):
        load_config(SweepConfig, [], [*SWEEP, f"slurm.time={text}"])
    if text:
        monkeypatch.setenv("SBATCH_TIMELIMIT", text)
        with pytest.raises(ValueError, match=f"^SBATCH_TIMELIMIT={text} is no time limit"):
            time_limit_min(SlurmConfig())


@pytest.mark.parametrize(
    ("gpus", "tasks"), [("4", 4), ("a100:1", 1), ("a100:2,v100:1", 3), ("0", 1)]
)
def test_gpus_may_have_a_type_and_each_gets_a_process(gpus, tasks):
    slurm = load_config(SweepConfig, [], [*SWEEP, f"slurm.gpus_per_node={gpus}"]).slurm
    script = sbatch_script(slurm, FOLDER, "n", 1)
    assert (f"#SBATCH --gpus-per-node={gpus}\n" in script) == (gpus != "0")
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in script


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gpus_per_node=gpu:a100:1", "slurm.gpus_per_node must be a number, or as a100:4"),
        ("gpus_per_node=a100", "slurm.gpus_per_node must be a number, or as a100:4"),
        ("mem=16 gigs", "slurm.mem must be a whole number with a unit, as 64G"),
        ("mem=1.5G", "slurm.mem must be a whole number with a unit, as 64G"),
        ("time=2", "slurm.time=2 is not more than slurm.signal_delay_s=120"),
        ("time=1:30", "slurm.time=1:30 is not more than slurm.signal_delay_s=120"),
    ],
)
def test_what_slurm_would_not_take_is_refused_before_it_is_submitted(word, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_config(SweepConfig, [], [*SWEEP, f"slurm.{word}"])


def test_a_limit_of_the_shell_that_ends_before_the_signal_is_refused(monkeypatch):
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    with pytest.raises(ValueError, match=r"^SBATCH_TIMELIMIT=5 is not more than .*delay_s=300"):
        sbatch_parameters(SlurmConfig(signal_delay_s=300), FOLDER, "n")


def test_an_array_of_shards_takes_the_same_forms_and_any_option_of_sbatch():
    text = "jobs=3,partition=a,b,time=1-0,mem=8G,cpus_per_task=4,mem-per-cpu=2G,exclusive=true"
    slurm = parse_slurm(text)
    script = sbatch_script(slurm.config(), FOLDER, "n", slurm.jobs)
    for line in ("partition=a,b", "time=1440", "mem=8G", "cpus-per-task=4", "mem-per-cpu=2G"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --exclusive\n" in script and "gpus" not in script and "wckey" not in script
    with pytest.raises(ValueError, match="cpus_per_task"):
        parse_slurm("cpus_per_task=many")


@pytest.mark.parametrize(
    "text", ["jobs=1,jobs=2", "mem=1G,mem=1G", "jobs=2,cpus-per-task=1,cpus_per_task=2"]
)
def test_an_option_of_the_array_that_is_given_twice_is_refused(text):
    with pytest.raises(ValueError, match=f"^--slurm: give each word once, got '{text}'$"):
        parse_slurm(text)


# The environment


OUTER = {
    **{"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
    **{"SLURM_MEM_PER_NODE": "4096", "SLURM_CPU_BIND": "mask_cpu:0x3", "SLURM_TMPDIR": "/tmp/99"},
    **{"SLURM_EXPORT_ENV": "NONE", "SLURM_GPUS_PER_NODE": "1", "SLURM_ARRAY_TASK_ID": "7"},
    **{"SLURMD_NODENAME": "n1", "PMI_RANK": "1", "PMIX_RANK": "1", "SRUN_CPUS_PER_TASK": "2"},
    **{"SBATCH_CPU_BIND": "quiet", "SBATCH_MEM_BIND_TYPE": "none"},
    **{"SUBMITIT_EXECUTOR": "slurm", "RANK": "1", "MASTER_PORT": "1", "CUDA_VISIBLE_DEVICES": "3"},
}
SITE = {
    **{"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "west", "SBATCH_ACCOUNT": "lab"},
    **{"SLURM_JWT": "a.b.c", "SRUN_CONTAINER": "c", "PMIX_MCA_gds": "hash", "SQUEUE_FORMAT": "%i"},
}


def seen_by_sbatch(monkeypatch, config, **variables):
    for name in list(os.environ):
        if name.startswith(("SLURM", "SBATCH", "SRUN", "PMI", "SUBMITIT", "SQUEUE")):
            monkeypatch.delenv(name)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    before = dict(os.environ)
    with sbatch_environment(config):
        seen = {name: os.environ[name] for name in variables if name in os.environ}
    assert dict(os.environ) == before, "the shell's own environment is restored"
    return seen


def test_sbatch_gets_the_sites_variables_and_none_of_the_callers_job(monkeypatch):
    assert seen_by_sbatch(monkeypatch, SlurmConfig(), **OUTER, **SITE) == SITE


def test_outside_of_a_job_the_users_variables_stay(monkeypatch):
    own = {"SLURM_MPI_TYPE": "pmix", "CUDA_VISIBLE_DEVICES": "0", "SLURM_HINT": "nomultithread"}
    assert seen_by_sbatch(monkeypatch, SlurmConfig(), **own) == own


GPU_SITE = {f"SBATCH_{name}": "1" for name in ("GPUS_PER_TASK", "MEM_PER_GPU", "CPUS_PER_GPU")}


@pytest.mark.parametrize(
    ("stated", "variables", "left"),
    [
        ({"partition": "cpu"}, {"SBATCH_PARTITION": "gpu", "SBATCH_QOS": "q"}, ["SBATCH_QOS"]),
        ({"mem": "8G"}, GPU_SITE, ["SBATCH_GPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"]),
        ({"gpus_per_node": "a100:1"}, GPU_SITE, ["SBATCH_MEM_PER_GPU", "SBATCH_CPUS_PER_GPU"]),
        ({"gpus_per_node": 0}, GPU_SITE, []),
        ({"gpus_per_node": 0}, {"SBATCH_GRES": "gpu:a100:4"}, []),
        ({"gpus_per_node": 0}, {"SBATCH_GRES": "nvme:100"}, ["SBATCH_GRES"]),
        ({"options": {"gres": "gpu:1"}}, {"SBATCH_GRES": "gpu:a100:4", **GPU_SITE}, None),
        ({"options": {"reservation": "r"}}, {"SBATCH_RESERVATION": "other"}, []),
        ({"options": {"mem-per-cpu": "1G"}}, {"SBATCH_MEM_PER_NODE": "4G"}, []),
        ({}, {"SBATCH_TIMELIMIT": "7", "SBATCH_OUTPUT": "x", "SBATCH_SIGNAL": "USR1"}, []),
        ({}, {"SBATCH_ARRAY_INX": "0-9", "SBATCH_NO_REQUEUE": "1", "SBATCH_EXPORT": "NONE"}, None),
    ],
)
def test_what_is_stated_counts_more_than_the_shells_variables(monkeypatch, stated, variables, left):
    if left is None:
        left = {"SBATCH_MEM_PER_GPU", "SBATCH_CPUS_PER_GPU", "SBATCH_EXPORT"} & variables.keys()
    seen = seen_by_sbatch(monkeypatch, SlurmConfig(**stated), **variables)
    assert seen.keys() == set(left)


# Paths


@pytest.mark.parametrize("name", ["10%test", "50%j", "q%5tx", "a%%b", "back\\slash", "new\nline"])
def test_a_path_that_slurm_would_not_take_literally_is_refused_by_name(name):
    folder = Path("/data") / name
    with pytest.raises(ValueError, match=r"Slurm replaces .* in paths of logs") as caught:
        sbatch_script(SlurmConfig(), folder, "n", 1)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["100%", "it's", 'a "quoted" name', "x #1", "$HOME"])
def test_other_paths_are_quoted(name):
    assert "--output=" in sbatch_script(SlurmConfig(), Path("/data") / name, "n", 1)


# Arrays in pieces


class Slurm:
    """Takes arrays up to a size, and so many jobs in all."""

    def __init__(self, tmp_path, monkeypatch, max_array=1001, max_jobs=10**6):
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho 'MaxArraySize  = {max_array}'\n")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        self.max_jobs, self.arrays = max_jobs, []

    def submit(self, piece):
        if sum(map(len, self.arrays)) + len(piece) > self.max_jobs:
            raise SubmissionLimit("job submit limit")
        self.arrays.append(list(piece))


@pytest.mark.parametrize(
    ("config", "limits", "queued", "sizes"),
    [
        ({}, {}, 0, [10]),
        ({}, {"max_array": 4}, 0, [4, 4, 2]),
        ({}, {"max_array": 1}, 0, [1] * 10),
        ({}, {"max_jobs": 7}, 0, [5, 2]),
        ({}, {"max_array": 3, "max_jobs": 5}, 0, [3, 1, 1]),
        ({"jobs_at_once": 3}, {}, 0, [3]),
        ({"jobs_at_once": 3}, {}, 2, [1]),
        ({"jobs_at_once": 3}, {}, 5, []),
        ({"array_parallelism": 2}, {}, 0, [10]),
        ({"array_parallelism": 2}, {"max_array": 4}, 0, [2]),
    ],
)
def test_jobs_are_submitted_in_pieces_that_slurm_takes_in_order_and_once(
    tmp_path, monkeypatch, config, limits, queued, sizes
):
    slurm = Slurm(tmp_path, monkeypatch, **limits)
    count = submit_in_pieces(range(10), slurm.submit, SlurmConfig(**config), queued)
    assert [len(piece) for piece in slurm.arrays] == sizes
    assert [n for piece in slurm.arrays for n in piece] == list(range(count))


def test_when_slurm_takes_none_the_caller_is_told(tmp_path, monkeypatch):
    slurm = Slurm(tmp_path, monkeypatch, max_jobs=0)
    with pytest.raises(SubmissionLimit):
        submit_in_pieces(range(10), slurm.submit, SlurmConfig(), 0)


POLICY = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"AssocMaxSubmitJobLimit {POLICY}", SubmissionLimit),
        (f"QOSMaxSubmitJobPerUserLimit {POLICY}", SubmissionLimit),
        ("Batch job submission failed: Invalid job array specification", SubmissionLimit),
        ("Batch job submission failed: Resource temporarily unavailable", SubmissionLimit),
        (f"QOSMaxWallDurationPerJobLimit {POLICY}", ValueError),
        ("Batch job submission failed: Invalid partition name specified", ValueError),
    ],
)
def test_a_refusal_says_what_sbatch_says_and_which_variables_were_in_force(
    tmp_path, monkeypatch, capfd, said, kind
):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "sbatch: error: {said}" >&2; exit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SBATCH_QOS", "short")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    with pytest.raises(ValueError, match="Slurm takes no job") as caught:
        submit_to_slurm([print], tmp_path / "s", SlurmConfig(partition="cpu"), "n")
    assert caught.type is kind
    assert said in str(caught.value) and "(the shell adds SBATCH_QOS=short)" in str(caught.value)
    assert capfd.readouterr().err == "", "it is said once"


def test_what_is_left_follows_as_others_end(tmp_path, monkeypatch):
    slurm = Slurm(tmp_path, monkeypatch, max_array=4)
    config = SlurmConfig(array_parallelism=5)
    assert submit_in_pieces(range(10), slurm.submit, config, 0) == 5
    assert submit_in_pieces(range(5), slurm.submit, config, 5, room=1) == 0, "none has ended"
    assert submit_in_pieces(range(5), slurm.submit, config, 3, room=2) == 2


class Queue:
    """A Slurm that takes `most` jobs, none of which starts; arrays are numbered from 0."""

    def __init__(self, monkeypatch, most=10**6):
        self.most, self.names, self.jobs = most, [], []
        monkeypatch.setattr(slurm_runs, "submit_to_slurm", self.submit)
        monkeypatch.setattr(submissions, "read_queue", lambda _: list(self.jobs))
        monkeypatch.setattr(slurm_jobs, "_max_array_size", lambda: 2)

    def submit(self, functions, folder, config, job_name, max_num_timeout):
        if len(self.jobs) + len(functions) > self.most:
            raise SubmissionLimit("job submit limit")
        array = len({job.name for job in self.jobs})
        if len(functions) == 1:
            ids = [f"{array}"]
        else:
            ids = [f"{array}_{index}" for index in range(len(functions))]
        self.jobs += [QueuedJob(id=i, name=job_name, state="PD", reason="Priority") for i in ids]
        self.names += [function.task.name for function in functions]
        return [SimpleNamespace(job_id=i) for i in ids]


def tasks_in(folder, count):
    return [
        Task(
            name=f"a/seed-{n}",
            folder=folder / f"a/seed-{n}",
            function=print,
            arguments=(),
            results=(folder / f"a/seed-{n}/finished.json",),
        )
        for n in range(count)
    ]


def finish(task):
    task.folder.mkdir(parents=True)
    task.results[0].touch()


def test_a_launcher_killed_between_pieces_loses_and_doubles_none(tmp_path, monkeypatch):
    queue, tasks = Queue(monkeypatch), tasks_in(tmp_path, 5)
    real = queue.submit

    def killed(*arguments):
        if len(queue.names) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(slurm_runs, "submit_to_slurm", killed)
    with pytest.raises(KeyboardInterrupt):
        submit_missing(tasks, tmp_path, SlurmConfig())
    monkeypatch.setattr(slurm_runs, "submit_to_slurm", real)
    assert submit_missing(tasks, tmp_path, SlurmConfig()) == []
    assert queue.names == [task.name for task in tasks], "each once, in order"


def test_a_sweep_larger_than_the_limit_of_submitted_jobs_goes_on_as_runs_end(tmp_path, monkeypatch):
    queue, tasks = Queue(monkeypatch, most=3), tasks_in(tmp_path, 7)
    in_queue = []

    def a_poll(_):
        in_queue.append(len(queue.jobs))
        if queue.jobs:  # the oldest job ends
            number = len(queue.names) - len(queue.jobs)
            del queue.jobs[0]
            finish(next(task for task in tasks if task.name == queue.names[number]))

    monkeypatch.setattr(slurm_runs.time, "sleep", a_poll)
    done = []
    failures = run_tasks_on_slurm(tasks, tmp_path, SlurmConfig(), True, done.append)
    assert failures == [] and max(in_queue) == 3
    assert queue.names == [task.name for task in tasks]
    assert sorted(task.name for task in done) == queue.names


def test_a_job_that_slurm_is_ending_is_waited_for_and_its_run_gets_another(tmp_path, monkeypatch):
    """`sweep cancel`, and at once the sweep again."""
    queue, tasks = Queue(monkeypatch), tasks_in(tmp_path, 2)
    assert submit_missing(tasks, tmp_path, SlurmConfig()) == []
    queue.jobs[0] = replace(queue.jobs[0], state="CG")
    pauses = []

    def a_second(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            del queue.jobs[0]

    monkeypatch.setattr(submissions.time, "sleep", a_second)
    assert run_tasks_on_slurm(tasks, tmp_path, SlurmConfig(), False, print) == []
    assert pauses == [1, 1, 1] and queue.names == [*(t.name for t in tasks), tasks[0].name]


def test_a_node_that_does_not_end_a_job_holds_nobody_up_for_long(tmp_path, monkeypatch):
    queue, tasks = Queue(monkeypatch), tasks_in(tmp_path, 1)
    assert submit_missing(tasks, tmp_path, SlurmConfig()) == []
    queue.jobs[0] = replace(queue.jobs[0], state="CG")
    clock = count(0, 30)
    monkeypatch.setattr(submissions.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(submissions.time, "sleep", lambda _: None)
    assert run_tasks_on_slurm(tasks, tmp_path, SlurmConfig(), False, print) == []
    assert queue.names == [tasks[0].name]


def test_a_sweep_waits_where_other_jobs_fill_the_limit_and_says_so_again_and_again(
    tmp_path, monkeypatch, caplog
):
    """They do between two of its phases, and once all that it has submitted has ended."""
    caplog.set_level("INFO", logger="hpc_ecg")
    queue, tasks = Queue(monkeypatch, most=1), tasks_in(tmp_path, 3)
    with pytest.raises(SubmissionLimit):
        queue.most = 0
        run_tasks_on_slurm(tasks[:1], tmp_path, SlurmConfig(), True, print)
    queue.most = 1
    assert submit_missing(tasks[:1], tmp_path, SlurmConfig()) == []
    queue.most, queue.jobs, polls = 0, [], []
    finish(tasks[0])

    def a_poll(_):
        polls.append(len(queue.jobs))
        queue.most = int(len(polls) > 4)
        if queue.jobs:
            del queue.jobs[0]
            finish(next(task for task in tasks if task.name == queue.names[-1]))

    monkeypatch.setattr(slurm_runs.time, "sleep", a_poll)
    lines = []

    @contextmanager
    def progress_bar(title, total):
        yield lambda steps=1, note="": lines.append(note)

    monkeypatch.setattr(slurm_runs, "progress_bar", progress_bar)
    assert run_tasks_on_slurm(tasks, tmp_path, SlurmConfig(), True, lambda _: None) == []
    assert queue.names == [task.name for task in tasks]
    lines = [line for line in lines if "not submitted yet" in line]
    assert "0 jobs running; 2 not submitted yet: job submit limit" in lines
    assert lines[-1].endswith("1 not submitted yet: others must end first")


def test_an_array_waits_where_other_jobs_fill_the_limit_once_it_has_begun(
    tmp_path, monkeypatch, caplog
):
    refusals = iter([False, True, True, False])

    def submit(functions, folder, config, name):
        if next(refusals):
            raise SubmissionLimit("job submit limit")
        (result := tmp_path / f"{functions[0].args[0]}.pkl").write_bytes(
            pickle.dumps(("success", functions[0]()))
        )
        paths = SimpleNamespace(result_pickle=result, stderr=tmp_path / "log")
        return [SimpleNamespace(job_id="7", paths=paths, cancel=print)]

    pauses = []
    monkeypatch.setattr(slurm_jobs, "_max_array_size", lambda: 1)
    monkeypatch.setattr(slurm_jobs, "submit_to_slurm", submit)
    monkeypatch.setattr(slurm_jobs, "read_queue", lambda _: [])
    monkeypatch.setattr(slurm_jobs.time, "sleep", pauses.append)
    jobs = [Job(name=text, function=len, arguments=(text,)) for text in ("a", "bc")]
    config = SlurmJobs(parameters={"time": 5, "jobs_at_once": 1})
    outcomes = run_on_slurm(jobs, tmp_path / "w", config)
    assert [outcome.value for outcome in outcomes] == [1, 2]
    assert pauses.count(30.0) == 2
    assert caplog.text.count("job submit limit; trying again in 30 s") == 2


def test_without_a_place_for_the_first_job_the_reason_is_said(tmp_path, monkeypatch):
    Queue(monkeypatch, most=0)
    with pytest.raises(SubmissionLimit, match="job submit limit"):
        submit_missing(tasks_in(tmp_path, 3), tmp_path, SlurmConfig())
    assert not list((tmp_path / "jobs").glob("*.json")), "no note of what was refused"


def test_what_sbatch_may_have_taken_though_it_failed_is_not_submitted_again(tmp_path, monkeypatch):
    queue, tasks = Queue(monkeypatch), tasks_in(tmp_path, 2)
    real = queue.submit

    def time_out(*arguments):
        real(*arguments)
        raise ValueError("Socket timed out on send/recv operation")

    monkeypatch.setattr(slurm_runs, "submit_to_slurm", time_out)
    with pytest.raises(ValueError, match="timed out"):
        submit_missing(tasks, tmp_path, SlurmConfig())
    monkeypatch.setattr(slurm_runs, "submit_to_slurm", real)
    assert submit_missing(tasks, tmp_path, SlurmConfig()) == [] and len(queue.names) == 2


def test_settings_that_waiting_jobs_do_not_have_are_named_with_what_to_do(
    tmp_path, monkeypatch, caplog
):
    Queue(monkeypatch)
    slurm_runs.logger.propagate = True
    tasks = tasks_in(tmp_path, 2)
    submit_missing(tasks, tmp_path, SlurmConfig(partition="low", time=60))
    submit_missing(tasks, tmp_path, SlurmConfig(partition="low", time=60, max_retries=9))
    assert "keep" not in caplog.text
    monkeypatch.setenv("SBATCH_QOS", "long")
    submit_missing(tasks, tmp_path, SlurmConfig(partition="main", time=60))
    (line,) = [r.getMessage() for r in caplog.records if "keep" in r.getMessage()]
    assert "slurm.partition=low (now main)" in line and "time" not in line.split("`")[0]
    assert "SBATCH_QOS=unset (now long)" in line
    assert f"hpc-ecg sweep cancel {tmp_path}" in line
    assert "scontrol update JobId=0_0,0_1" in line


def test_a_job_that_was_submitted_again_on_other_nodes_has_no_other_settings(
    tmp_path, monkeypatch, caplog
):
    Queue(monkeypatch)
    slurm_runs.logger.propagate = True
    tasks, options = tasks_in(tmp_path, 1), {"begin": "now+60", "exclude": "node1"}
    submit_missing(tasks, tmp_path, SlurmConfig(options=options))
    submit_missing(tasks, tmp_path, SlurmConfig())
    assert "keep" not in caplog.text
    submit_missing(tasks, tmp_path, SlurmConfig(options={"reservation": "r"}))
    assert "slurm.options.reservation=unset (now r)" in caplog.text


def test_when_squeue_fails_an_array_goes_on(tmp_path, monkeypatch):
    result, answers, cancelled = tmp_path / "result.pkl", iter(range(9)), []
    handle = SimpleNamespace(
        job_id="7",
        paths=SimpleNamespace(result_pickle=result, stderr=tmp_path / "log"),
        cancel=lambda check: cancelled.append("7"),
    )

    def read_queue(_):
        if next(answers) < 3:
            raise SlurmUnavailable("squeue does not answer: Unable to contact slurm controller")
        result.write_bytes(pickle.dumps(("success", 3)))
        return []

    monkeypatch.setattr(slurm_jobs, "submit_to_slurm", lambda *_: [handle])
    monkeypatch.setattr(slurm_jobs, "read_queue", read_queue)
    monkeypatch.setattr(slurm_jobs.time, "sleep", lambda _: None)
    job = Job(name="a", function=len, arguments=("abc",))
    (outcome,) = run_on_slurm([job], tmp_path / "w" / "slurm", SlurmJobs(parameters={"time": 5}))
    assert (outcome.value, outcome.error, cancelled) == (3, None, [])
