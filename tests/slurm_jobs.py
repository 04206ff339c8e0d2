"""Submit jobs to the test cluster as a user does, watch them, and disturb them.

Everything runs on this machine as root, so a test can inspect and kill a job's processes.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from test_finetune import events, same_tensors

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


def command(*words: str, **options) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, **options).stdout


def sbatch(
    project: Path, log: Path, options: str, script: str, *words: str, **variables: str
) -> subprocess.CompletedProcess:
    """Submit a script of `slurm/`; `variables` are set in the submitting shell."""
    given = ["sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", *options.split()]
    environment = os.environ | {"HPC_ECG_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*given, f"slurm/{script}", *words],
        env=environment | variables,
        cwd=project,
        capture_output=True,
        text=True,
    )


class Job:
    """A run that was submitted with slurm/finetune.sh (or another script), and its log."""

    def __init__(self, project: Path, log: Path, options: str, *words: str, **more: str) -> None:
        self._log = log
        script = more.pop("script", "finetune.sh")
        answer = sbatch(project, log, options, script, *words, **more)
        assert answer.returncode == 0, answer.stderr
        self.id = answer.stdout.strip()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def facts(self) -> dict[str, str]:
        shown = command("scontrol", "--oneliner", "show", "job", self.id)
        return dict(re.findall(r"(\w+)=(\S+)", shown))

    def end(self, patience_s: float = 120) -> str:
        """Wait until the job has ended; returns its state."""
        wait_until(lambda: self.facts()["JobState"] in ENDED, self, patience_s)
        return self.facts()["JobState"]

    def processes(self) -> dict[int, int]:
        """Pids of the processes that srun started, by rank."""
        started = [
            (pid, env) for pid, words, env in _processes() if words[1:3] == ["-m", "hpc_ecg"]
        ]
        mine = [(pid, env) for pid, env in started if env.get("SLURM_JOB_ID") == self.id]
        return {int(env["SLURM_PROCID"]): pid for pid, env in mine if "SLURM_STEP_ID" in env}

    def shell(self) -> int:
        """The pid of the batch script."""
        return int(command("pgrep", "-f", rf"job0*{self.id}/slurm_script( |$)").split()[0])


def _processes() -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Yield (pid, command line, environment) of all processes on this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(folder / name).read_text(errors="replace") for name in ("cmdline", "environ")]
        except OSError:  # the process ended
            continue
        words, pairs = (text.split("\0") for text in texts)
        yield int(folder.name), words, dict(p.split("=", 1) for p in pairs if "=" in p)


def wait_until(condition: Callable[[], object], job: Job, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s} s in vain; its log:\n{job.log}"
        time.sleep(0.1)


def wait_for_step(job: Job, run_dir: Path, step: int) -> None:
    mark = f'"event": "step", "step": {step},'
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and mark in metrics.read_text(), job)


def hold_until_told(job: Job, number: int, ask: Callable[[], object]) -> None:
    """Suspend the job's processes, call `ask`, and resume them once Slurm has sent them signal
    `number`, which may take half a minute. (With some signals, Slurm also resumes them.)"""
    held = job.processes().values()
    assert held
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    ask()
    wait_until(lambda: all(_is_told(pid, number) for pid in held), job)
    for pid in held:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _is_told(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    pending = [int(mask, 16) for mask in re.findall(r"(?:Sig|Shd)Pnd:\s*(\w+)", status)]
    return "\nState:\tT" not in status or any(mask >> (number - 1) & 1 for mask in pending)


def assert_as_if_undisturbed(run_dir: Path, undisturbed: Path, at_most_lost: int) -> None:
    """Assert that the run resumed once, lost at most this many steps, and ended bitwise equal."""
    (resumed,) = events(run_dir, "resumed")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    before = lines[: lines.index(resumed)]
    lost = max(line.get("step", 0) for line in before) - resumed["step"]
    assert 0 < resumed["step"] < 60 and lost <= at_most_lost
    assert_same_weights(run_dir, undisturbed)


def assert_same_weights(run_dir: Path, undisturbed: Path) -> None:
    """Assert that the run is finished, and that its best weights and checkpoints are the same."""
    assert (run_dir / "finished.json").exists()
    files = [path.relative_to(undisturbed) for path in undisturbed.rglob("*.safetensors")]
    assert len(files) == 5, "best weights and two checkpoints"
    for file in files:
        assert same_tensors(run_dir / file, undisturbed / file), file
