"""A sweep on a real Slurm: whatever is killed, all cells end as if undisturbed."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import FIXTURES, long_words
from faults import sweep_in_a_fork
from ranks import Fork, become
from slurm_jobs import _is_told, _processes, command, wait_until
from test_faults_slurm import tell_cluster
from test_finetune import events

from hpc_ecg.cli import main
from hpc_ecg.comparison.report import write_report
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.status import read_status
from hpc_ecg.sweep.submissions import queued_jobs
from hpc_ecg.sweep.task import run_and_evaluate

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STRATEGIES = FIXTURES.parents[1] / "configs" / "strategies"


class Launcher:
    """`hpc-ecg sweep WORDS` as a process, and the jobs of its sweep."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self._log = folder, folder.with_suffix(".log")
        self._log.touch()
        self.process = sweep_in_a_fork(self._log, words)

    @property
    def log(self) -> str:
        jobs = sorted((self.folder / "submitit").glob("*.err"))
        return self._log.read_text() + "".join(f"{j.name}:\n{j.read_text()}" for j in jobs)

    def end(self, patience_s: float = 200) -> int:
        wait_until(lambda: self.process.exitcode is not None, self, patience_s)
        return self.process.exitcode

    def job_of(self, cell: str):
        return (queued_jobs(self.folder, [cell]) or {}).get(cell)

    def processes_of(self, cell: str) -> list[int]:
        """By rank; [] when the cell does not run."""
        job = self.job_of(cell)
        if job is None:
            return []
        array, _, index = job.id.partition("_")
        found = {}
        for pid, words, env in _processes():
            array_id = env.get("SLURM_ARRAY_JOB_ID", env.get("SLURM_JOB_ID"))
            is_task = "submitit.core._submit" in words and "SLURM_STEP_ID" in env
            is_this = array_id == array and env.get("SLURM_ARRAY_TASK_ID", "") == index
            if is_task and is_this and words[0] != "srun":
                found[int(env["SLURM_PROCID"])] = pid
        return [found[rank] for rank in sorted(found)]

    def node_of(self, cell: str) -> str:
        job = self.job_of(cell).id
        return command("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()

    def hold(self, cell: str, step: int) -> None:
        """Stop its processes in their tracks, at this step or later."""
        metrics = self.folder / cell / "metrics.jsonl"
        mark = f'"event": "step", "step": {step},'
        # look for them while they start, so that the run does not go on meanwhile
        wait_until(metrics.exists, self)
        pids = self.processes_of(cell)
        assert pids, f"{cell} does not run"
        wait_until(lambda: mark in metrics.read_text(), self)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert '"event": "step", "step": 40,' not in metrics.read_text(), "too late: it has ended"


def let_go(pids: list[int], once_signalled: int | None = None) -> None:
    deadline = time.monotonic() + 60
    for pid in pids:
        while once_signalled and not _is_told(pid, once_signalled):
            assert time.monotonic() < deadline, "Slurm sent no signal"
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def words_of(shards: Path, folder: Path, *more: str) -> list[str]:
    shared = long_words(shards, folder, "train.max_epochs=10")
    shared = [word for word in shared if not word.startswith(("run_dir", "init."))]
    return [
        f"sweep_dir={folder}",
        f"strategy_dir={STRATEGIES}",
        *[f"run.{word}" for word in shared],
        f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}",
        f"run.files.wcr_afib_5y={FIXTURES / 'tiny_wcr_afib_5y.pt'}",
        "slurm.time=10",
        "slurm.cpus_per_task=64",  # one process to a node
        *more,
    ]


class Undisturbed:
    """`do(words, folder)` in a process of its own, beside the jobs, which mostly wait."""

    def __init__(self, do: Callable[[list[str], Path], None], words: list[str], folder: Path):
        self.folder = folder / "undisturbed" / "sweep"
        self.log = folder / "undisturbed.log"
        arguments = do, self.log, dict(os.environ), words, self.folder
        self._process = Fork(target=_do, args=arguments, daemon=True)
        self._process.start()

    def result(self) -> Path:
        self._process.join(200)
        assert self._process.exitcode == 0, self.log.read_text()
        return self.folder


def _do(do, log: Path, environment: dict[str, str], words: list[str], folder: Path) -> None:
    become(log, environment)
    do(words, folder)


def run_cells(words: list[str], folder: Path) -> None:
    for cell in load_sweep([], [*words, f"sweep_dir={folder}"]).cells:
        run_and_evaluate(cell.run)


def assert_same_results(folder: Path, calm_dir: Path) -> None:
    """Compare with undisturbed runs."""
    cells = [path.relative_to(calm_dir) for path in calm_dir.glob("*/seed-*")]
    assert len(cells) == 4
    for cell in cells:
        for split in ("valid", "test"):
            name = f"{cell}/predictions/{split}.parquet"
            found = pd.read_parquet(folder / name)
            pd.testing.assert_frame_equal(found, pd.read_parquet(calm_dir / name), check_exact=True)
    for name in ("sweep.yaml", "protocol.json"):
        (calm_dir / name).write_text((folder / name).read_text())
    reports = [report_without_cost(sweep_dir) for sweep_dir in (folder, calm_dir)]
    assert reports[0].keys() == reports[1].keys()
    different = [name for name in reports[0] if reports[0][name] != reports[1][name]]
    assert not different


def report_without_cost(sweep_dir: Path) -> dict[str, str]:
    """Every file of the report, but for what it says of time, cost and machines."""
    write_report(sweep_dir, replicates=200)
    folder = sweep_dir / "report"
    files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    page = re.sub(r'<section id="varies">.*?</section>', "", files["index.html"], flags=re.DOTALL)
    numbers = json.loads(files["comparison.json"])
    del numbers["varies"]
    files |= {"index.html": page, "comparison.json": json.dumps(numbers)}
    return {n: t for n, t in files.items() if n != "cost.csv" and not n.endswith("RUN_CARD.md")}


def test_two_processes_on_two_nodes_save_on_a_signal_and_are_requeued(slurm, shards, tmp_path):
    folder, cell = tmp_path / "sweep", "ssl_new_head/seed-0"
    settings = ("strategies=[ssl_new_head]", "seeds=[0]", "slurm.nodes=2")
    words = words_of(shards, folder, *settings)
    launcher = Launcher(folder, *words)
    launcher.hold(cell, 8)
    pids = launcher.processes_of(cell)
    assert len(pids) == 2
    command("scancel", "--signal=USR2", launcher.job_of(cell).id)
    let_go(pids)
    wait_until(lambda: launcher.job_of(cell).is_pending, launcher)
    assert launcher.end() == 0, launcher.log
    (resumed,) = events(folder / cell, "resumed")
    assert resumed["processes"] == 2 and resumed["step"] >= 8
    notes = len(list((folder / "jobs").glob("*.json")))
    assert notes == 2, "the job went on, no other was needed but that of the test"
    assert not (folder / cell / "error.txt").exists()


def test_status_cancel_and_retry_of_a_running_sweep(slurm, shards, tmp_path, capfd):
    folder, (first, second) = tmp_path / "sweep", [f"ssl_new_head/seed-{n}" for n in (0, 1)]
    settings = ("strategies=[ssl_new_head]", "seeds=[0,1]", "slurm.array_parallelism=1")
    words = words_of(shards, folder, *settings)
    for _ in range(2):
        launcher = Launcher(folder, *words, "--no-wait")
        assert launcher.end() == 0, launcher.log
    assert len(list((folder / "jobs").glob("*.json"))) == 1, "submitted once"
    launcher.hold(first, 8)
    assert [state.kind for state in read_status(folder)] == ["running", "queued"]

    assert main(["sweep", "cancel", str(folder), first]) == 0
    assert f"cancelled: {first} (job" in capfd.readouterr().out
    wait_until(lambda: launcher.job_of(first) is None, launcher)
    states = {state.name: state for state in read_status(folder)}
    assert states[first].kind == "stopped" and "at step" in states[first].text
    assert states[second].kind in ("queued", "running")

    assert main(["sweep", "retry", str(folder), first]) == 0
    notes = sorted((folder / "jobs").glob("*.json"))
    assert [json.loads(note.read_text())["tasks"] for note in notes] == [[first, second], [first]]
    wait_until(lambda: {s.kind for s in read_status(folder)} == {"done"}, launcher, 120)
    (resumed,) = events(folder / first, "resumed")
    assert resumed["step"] >= 8, "it saved when it was cancelled"


def test_a_mistake_is_not_retried_and_a_killed_run_at_most_max_retries_times(
    slurm, shards, tmp_path
):
    folder, strategies = tmp_path / "sweep", tmp_path / "strategies"
    strategies.mkdir()
    shutil.copy(STRATEGIES / "ssl_new_head.yaml", strategies)
    wrong = "init: {checkpoint: '${files.base_ssl}'}\ntrain: {freeze_layers: 99}\n"
    (strategies / "wrong.yaml").write_text(wrong)
    settings = (f"strategy_dir={strategies}", "seeds=[0]", "slurm.max_retries=0")
    words = words_of(shards, folder, *settings)
    launcher = Launcher(folder, *words, "strategies=[ssl_new_head,wrong]")
    launcher.hold("ssl_new_head/seed-0", 8)
    os.kill(launcher.processes_of("ssl_new_head/seed-0")[0], signal.SIGKILL)
    assert launcher.end() == 1
    assert re.search(r"failed: wrong/seed-0: ValueError: .*freeze_layers.*log.err", launcher.log)
    lost = r"failed: ssl_new_head/seed-0: its job ended without a result on node\d: a process on "
    lost += r"node\d ended: Killed, often out of memory \(FAILED\); "
    lost += r"\S+/jobs/ssl_new_head-seed-0-\S+.err"
    assert re.search(lost, launcher.log)
    assert len(list((folder / "jobs").glob("*.json"))) == 1, "nothing was submitted again"
    assert [state.kind for state in read_status(folder)] == ["failed", "failed"]
    again = Launcher(folder, *words, "strategies=[ssl_new_head]")
    assert again.end() == 0, again.log
    assert not (folder / "ssl_new_head/seed-0/error.txt").exists()


def test_a_node_that_ends_every_job_is_avoided_by_the_next_try(slurm, shards, tmp_path):
    folder = tmp_path / "sweep"
    bad = '[ "$SLURMD_NODENAME" != node1 ] || { echo "/scratch: Stale file handle" >&2; exit 9; }'
    setup = f"slurm.setup=['{bad}']"
    settings = ("strategies=[ssl_new_head]", "seeds=[0,1]", "run.train.max_epochs=1", setup)
    launcher = Launcher(folder, *words_of(shards, folder), *settings)
    assert launcher.end() == 0, launcher.log
    lost = r"lost, submitted again, not to node1: (ssl_new_head/seed-[01])\n"
    assert re.search(lost, launcher.log), launcher.log
    assert "1 job running" in launcher.log
    _, second, *_ = sorted((folder / "jobs").glob("*.json"))  # later ones predict the test
    assert len(json.loads(second.read_text())["tasks"]) == 1
    assert {state.kind for state in read_status(folder)} == {"done"}


def test_a_killed_run_a_lost_node_a_preemption_and_a_killed_launcher_change_nothing(
    slurm, shards, tmp_path
):
    folder = tmp_path / "sweep"
    names = ("ssl_new_head", "afib_keep_head")
    settings = (f"strategies=[{','.join(names)}]", "seeds=[0,1]", "slurm.partition=low")
    words = words_of(shards, folder, *settings)
    launcher = Launcher(folder, *words)
    cells = [f"{name}/seed-{seed}" for name in names for seed in (0, 1)]
    killed, preempted, on_lost_node, _ = cells
    for cell in (killed, preempted, on_lost_node):
        launcher.hold(cell, 8)
    launcher.process.kill()
    pieces = [json.loads(note.read_text())["tasks"] for note in sorted(folder.glob("jobs/*.json"))]
    assert pieces == [cells[:3], cells[3:]], "MaxArraySize is 3"
    calm = Undisturbed(run_cells, words, tmp_path)
    os.kill(launcher.processes_of(killed)[0], signal.SIGKILL)
    preempting = ["--partition=main", "--exclusive", f"--nodelist={launcher.node_of(preempted)}"]
    command("sbatch", *preempting, "--output=/dev/null", "--wrap=true")
    let_go(launcher.processes_of(preempted), once_signalled=signal.SIGUSR2)
    node = launcher.node_of(on_lost_node)
    tell_cluster(slurm, "crash", node)
    again = Launcher(folder, *words)
    wait_until(lambda: again.job_of(on_lost_node).state != "R", again)
    tell_cluster(slurm, "node", node)
    assert again.end() == 0, again.log
    assert "since an earlier start" in again.log
    for cell in (killed, preempted, on_lost_node):
        assert events(folder / cell, "resumed"), cell
    assert not list(folder.glob("*/*/error.txt"))
    assert_same_results(folder, calm.result())
