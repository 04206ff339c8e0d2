"""The scripts in slurm/ parse and do their work, with the plain command in place of `srun`."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, words_for

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["finetune.sh", "sweep.sh", "predict.sh"])
def test_the_sbatch_lines_come_before_the_first_command(name):
    lines = (ROOT / "slurm" / name).read_text().splitlines()
    directives = [k for k, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    assert directives and max(directives) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[k]) for k in directives)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A PATH on which srun drops its own options and runs the command once."""
    stand_in(tmp_path, "srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HPC_ECG_PYTHON": sys.executable}


def stand_in(folder: Path, name: str, text: str) -> None:
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)


def run_script(name: str, words: list[str], environment: dict[str, str]):
    command = ["bash", str(ROOT / "slurm" / name), *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_finetune_runs_and_returns_its_exit_code(environment, shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "train.max_steps=2")
    result = run_script("finetune.sh", ["configs/finetune.yaml", *words], environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "finished.json").exists()
    wrong = run_script("finetune.sh", ["optim.lrr=1"], environment)
    assert wrong.returncode == 2 and "did you mean optim.lr?" in wrong.stderr


@pytest.mark.slow
def test_a_sweep_runs_inside_one_job(environment, shards, tmp_path):
    shared = words_for(shards, tmp_path, "train.max_steps=2")
    words = [f"run.{word}" for word in shared if not word.startswith(("run_dir", "init."))]
    words += [f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}", "seeds=[0]"]
    words += [f"sweep_dir={tmp_path / 'sweep'}", "strategies=[ssl_new_head]"]
    result = run_script("sweep.sh", ["configs/sweep.yaml", *words], environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sweep" / "ssl_new_head" / "seed-0" / "evaluation.json").exists()


def first(what: str, code: int) -> str:
    """An srun whose task 1 ends first, with `what`; task 0 ends with the highest code."""
    lines = [f"srun: error: node2: task 1: {what}", "srun: Terminating StepId=7.0"]
    lines += ["srun: error: node1: task 0: Killed"]
    return "\n".join(
        ["printf 'no line\\n' >&2", *(f"echo '{x}' >&2" for x in lines), f"exit {code}"]
    )


RUNNING, TIMED_OUT = "JobState=RUNNING Reason=None", "JobState=COMPLETING Reason=TimeLimit"
CANCELLED = "JobState=COMPLETING Reason=None"


@pytest.mark.parametrize(
    ("srun", "state", "restarts", "code", "message"),
    [
        ("exit 0", RUNNING, 0, 0, ""),
        (first("Exited with exit code 75", 137), RUNNING, 99, 75, "is back in the queue"),
        (first("Exited with exit code 76", 137), RUNNING, 4, 76, "is back in the queue"),
        (
            first("Exited with exit code 76", 137),
            RUNNING,
            5,
            76,
            "after 5 restarts",
        ),
        (first("User defined signal 1", 137), RUNNING, 9, 138, "is back in the queue"),
        (first("User defined signal 2", 137), RUNNING, 9, 140, "is back in the queue"),
        (first("Terminated", 137), RUNNING, 9, 143, "is back in the queue"),
        (first("Terminated", 143), CANCELLED, 0, 143, "Slurm ended the job"),
        (first("Exited with exit code 75", 75), f"{RUNNING} TimeLimit=00:02:00", 1, 75, "--time"),
        (first("Killed", 137), RUNNING, 0, 137, "is back in the queue"),
        (first("Killed", 137), RUNNING, 5, 137, "after 5 restarts"),
        (first("Segmentation fault (core dumped)", 139), RUNNING, 0, 139, "is back in the queue"),
        (first("Exited with exit code 1", 137), RUNNING, 0, 1, "exit code 1, for the reason above"),
        (first("Exited with exit code 2", 143), RUNNING, 0, 2, "exit code 2, for the reason above"),
        ("exit 1", RUNNING, 0, 1, "not started again"),
        (first("Exited with exit code 75", 75), TIMED_OUT, 0, 75, "is back in the queue"),
        (first("Exited with exit code 75", 75), CANCELLED, 0, 75, "Slurm ended the job"),
        (
            first("Exited with exit code 75", 75),
            "",
            0,
            75,
            "does not answer: submit again",
        ),
        (
            first("Exited with exit code 75", 75),
            f"{RUNNING} no",
            0,
            75,
            "refuses to requeue the job",
        ),
    ],
)
def test_the_exit_of_the_first_process_decides_whether_to_requeue(
    environment, tmp_path, srun, state, restarts, code, message
):
    asked = tmp_path / "asked"
    stand_in(tmp_path, "srun", srun)
    show = f"[ -n '{state}' ] && echo 'JobId=7 {state} Dependency=(null)'; exit"
    refuses = "exit 1" if state.endswith(" no") else "exit 0"
    stand_in(
        tmp_path, "scontrol", f'[ "$1" = requeue ] && {{ echo $* > {asked}; {refuses}; }}\n{show}'
    )
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    result = run_script("finetune.sh", [], environment | job)
    assert result.returncode == code and message in result.stderr
    is_requeued = message in ("is back in the queue", "refuses to requeue the job")
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if is_requeued else "")


@pytest.mark.parametrize(
    ("before", "nodes"), [("(null)", "gpu17"), ("gpu3,gpu4", "gpu3,gpu4,gpu17"), ("no", "gpu17")]
)
def test_a_job_whose_arithmetic_did_not_repeat_goes_to_other_nodes(
    environment, tmp_path, before, nodes
):
    message = "x; nothing was updated. Suspect: gpu17; keep it out with --exclude=gpu17"
    lines = f"left out: Suspect: gpu1;.csv\n{message}"  # the name of a recording is no node
    stand_in(tmp_path, "srun", f"echo '{lines}' >&2\n{first('Exited with exit code 77', 77)}")
    refuse = '[ "$1" = update ] && exit 1;' * (before == "no")
    state = f"JobId=7 {RUNNING} ExcNodeList={'(null)' if before == 'no' else before} x=1"
    stand_in(tmp_path, "scontrol", f"echo $* >> {tmp_path / 'asked'}; {refuse} echo '{state}'")
    result = run_script("finetune.sh", [], environment | {"SLURM_JOB_ID": "7"})
    assert result.returncode == 77
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-2:] == ["requeue 7", f"update JobId=7 ExcNodeList={nodes}"]
    expected = f"submit again with --exclude={nodes}" if refuse else f"will not run on {nodes}"
    assert expected in result.stderr


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_a_signal_before_the_processes_start_requeues_the_job(site, tmp_path, name):
    stand_in(tmp_path, "srun", f"touch {tmp_path / 'started'}")
    stand_in(tmp_path, "scontrol", f"echo 'JobState=RUNNING R=1'; echo $1 >> {tmp_path / 'asked'}")
    result = site(
        f"kill -{name} $$\nsleep 0.1\nHPC_ECG_PYTHON={sys.executable}\n", SLURM_JOB_ID="7"
    )
    assert result.returncode == 75 and "is back in the queue" in result.stderr
    assert (tmp_path / "asked").read_text().split()[-1] == "requeue"
    assert not (tmp_path / "started").exists()


def test_restarts_of_the_job_that_submitted_this_one_do_not_count(environment, tmp_path):
    stand_in(tmp_path, "srun", first("Exited with exit code 76", 137))
    stand_in(tmp_path, "scontrol", f"echo 'JobId=7 {RUNNING} Requeue=1 Restarts=0 BatchFlag=1'")
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "5"}
    assert "is back in the queue" in run_script("finetune.sh", [], environment | job).stderr


def test_srun_gets_nothing_of_the_job_that_submitted_this_one(site):
    outer = {
        **{"SLURM_MEM_PER_NODE": "4096", "SLURM_MEM_PER_CPU": "700", "SLURM_EXPORT_ENV": "NONE"},
        **{"SLURM_CPU_BIND": "mask_cpu:0x3", "SLURM_CPU_BIND_LIST": "0x3", "SLURM_GPUS": "1"},
        **{"SLURM_STEP_ID": "0", "SLURM_DISTRIBUTION": "cyclic", "PMI_RANK": "1"},
    }
    names = "MEM_PER|EXPORT_ENV|CPU_BIND|SLURM_GPUS|DISTRIBUTION|PMI_RANK"
    shown = site("", **outer, SLURM_NTASKS="2").stdout
    assert "SLURM_NTASKS=2" in shown and not re.search(names, shown)


def test_without_python_nothing_is_requeued_and_the_log_has_the_reason(environment, tmp_path):
    stand_in(tmp_path, "srun", first("Exited with exit code 75", 75))
    stand_in(tmp_path, "scontrol", f"echo {RUNNING}; echo $* >> {tmp_path / 'asked'}")
    result = run_script("finetune.sh", [], environment | {"HPC_ECG_PYTHON": "no-such-python"})
    assert result.returncode == 75
    assert "exit code 75; not started again, because no-such-python -m" in result.stderr
    assert "requeue" not in (tmp_path / "asked").read_text()


def test_a_site_may_allow_other_numbers_of_restarts(environment, tmp_path):
    asked = tmp_path / "asked"
    stand_in(tmp_path, "srun", first("Exited with exit code 76", 137))
    show = f"echo 'JobId=7 {RUNNING} Dependency=(null)'"
    stand_in(tmp_path, "scontrol", f'[ "$1" = requeue ] && {{ echo $* >> {asked}; exit; }}\n{show}')
    job = {"SLURM_JOB_ID": "7", "HPC_ECG_MAX_RESTARTS": "2"}
    for restarts in ("1", "2"):
        job["SLURM_RESTART_COUNT"] = restarts
        result = run_script("finetune.sh", [], environment | job)
    assert "after 2 restarts" in result.stderr
    assert asked.read_text() == "requeue 7\n"


@pytest.fixture
def site(environment, tmp_path):
    """Run finetune.sh in a project with this site file, on an srun that shows its words."""
    stand_in(tmp_path, "srun", "env | grep -E '^(SLURM|PMI)'; printf '<%s>' \"$@\"")
    (tmp_path / "slurm").mkdir()
    shutil.copy(ROOT / "slurm" / "job.sh", tmp_path / "slurm")

    def run(text, **job):
        (tmp_path / "slurm" / "site.sh").write_text(text)
        inside = environment | {"SLURM_SUBMIT_DIR": str(tmp_path)} | job
        return run_script("finetune.sh", ["a=b c"], inside)

    return run


def test_the_command_of_a_container_may_have_spaces(site):
    result = site('HPC_ECG_PYTHON=(apptainer exec --nv "/my images/a.sif" python)\n')
    words = "<apptainer><exec><--nv></my images/a.sif><python><-m><hpc_ecg><finetune><a=b c>"
    assert result.returncode == 0 and result.stdout.endswith(words), result


def test_a_site_file_may_need_a_less_strict_shell(site):
    result = site("echo $NO_SUCH_VARIABLE; false; HPC_ECG_PYTHON=mine\n")
    assert result.returncode == 0 and "<mine><-m>" in result.stdout


def test_a_process_is_not_restricted_to_one_gpu(site):
    assert "GPUS_PER_TASK" not in site("", SLURM_GPUS_PER_TASK="1").stdout


def test_a_job_submitted_without_the_site_file_logs_warnings(site):
    settings = "SBATCH_PARTITION=gpu,big\nSBATCH_ACCOUNT=lab\nSBATCH_GPUS_PER_TASK=1\n"
    forgot = site(settings, SLURM_JOB_PARTITION="cpu", SLURM_JOB_ACCOUNT="guests").stderr
    assert "warning: SBATCH_PARTITION is gpu,big, but the job has cpu; source" in forgot
    assert "warning: SBATCH_ACCOUNT is lab, but the job has guests; source" in forgot
    assert "ask for GPUs, but the job has none; source slurm/site.sh" in forgot
    heeded = {"SLURM_JOB_PARTITION": "big", "SLURM_JOB_ACCOUNT": "lab", "SLURM_JOB_GPUS": "0,1"}
    assert site(settings, **heeded).stderr == ""


@pytest.mark.parametrize("name", ["10%test", "plain"])
def test_the_example_site_file_keeps_logs_in_a_folder_with_a_percent_sign(tmp_path, name):
    (tmp_path / name).mkdir()
    command = ["bash", "-euc", f"source {ROOT}/slurm/site.example.sh; echo ${{SBATCH_OUTPUT:-}}"]
    result = subprocess.run(command, cwd=tmp_path / name, capture_output=True, text=True)
    escaped = f"{tmp_path}/10%%test/slurm-%x-%j.log"
    assert result.stdout.strip() == (escaped if "%" in name else "")


def test_the_example_site_file_can_be_sourced_in_the_submitting_shell():
    command = ["bash", "-euc", "source slurm/site.example.sh; env"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "SBATCH_PARTITION=gpu" in result.stdout and "SBATCH_GPUS_PER_TASK=1" in result.stdout


@pytest.mark.parametrize("given", ["absolute", "../the project/slurm"])
@pytest.mark.parametrize("name", ["finetune.sh", "sweep.sh", "predict.sh"])
def test_a_script_that_is_submitted_from_elsewhere_finds_its_project(
    environment, tmp_path, name, given
):
    project, elsewhere = tmp_path / "the project", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "slurm", project / "slurm")
    (project / "slurm" / "site.sh").write_text("HPC_ECG_PYTHON=echo\n")
    elsewhere.mkdir()
    copy = shutil.copy(ROOT / "slurm" / name, tmp_path / "slurm_script")
    where = f"{project}/slurm" if given == "absolute" else given
    command = f"   Command={where}/{name} configs/a.yaml x=/y/z.sh"
    stand_in(tmp_path, "scontrol", f"printf 'JobId=7\\n{command}\\n   WorkDir=/x\\n'")
    inside = environment | {"SLURM_SUBMIT_DIR": str(elsewhere), "SLURM_JOB_ID": "7"}
    run = [["bash", copy, "a=b"], inside, elsewhere]
    result = subprocess.run(run[0], env=run[1], cwd=run[2], capture_output=True, text=True)
    verb = name.removesuffix(".sh")
    assert (result.returncode, result.stdout) == (0, f"-m hpc_ecg {verb} a=b\n"), result.stderr

    stand_in(tmp_path, "scontrol", "exit 1")
    result = subprocess.run(run[0], env=run[1], cwd=run[2], capture_output=True, text=True)
    assert result.returncode == 2
    assert f"submit from the project's root, where slurm/{name} lies" in result.stderr


def test_the_example_site_file_finds_the_environment_beside_it(tmp_path):
    shutil.copytree(ROOT / "slurm", tmp_path / "project" / "slurm")
    words = ["bash", "-euc", "source project/slurm/site.example.sh; echo $HPC_ECG_PYTHON"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == f"{tmp_path}/project/.venv/bin/python\n"


def test_a_python_that_is_not_there_is_named(site):
    assert (
        "warning: no program /no/python: set HPC_ECG_PYTHON"
        in site("HPC_ECG_PYTHON=/no/python").stderr
    )
