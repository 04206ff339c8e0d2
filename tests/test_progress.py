"""Words while it works: what long work says, when, and that every long verb says it."""

import fcntl
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import FIRST_LINE_S, words_for
from rich.console import Console

import hpc_ecg
from hpc_ecg import log
from hpc_ecg.atomic_io import write_json
from hpc_ecg.cli import main
from hpc_ecg.cli.sweep import _run
from hpc_ecg.log import EVERY_S, Steps, progress_bar, repeat, tracked, waiting_for
from hpc_ecg.sweep import launch, live_runs
from hpc_ecg.sweep.grid import Sweep
from hpc_ecg.sweep.run_progress import CellStatus, RunProgress, table_of
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.sweep.status import read_status
from hpc_ecg.training.run_folder import RunFolder


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds, until=600.0):
        """As Event.wait: whether the work ended meanwhile."""
        self.now += seconds
        return self.now > until


@pytest.mark.parametrize(
    ("done", "advances", "ecgs", "seconds", "line"),
    [
        (0, 0, 0, 5, "x: 0 of 1,200 (0 %)"),
        (0, 300, 0, 60, "x: 300 of 1,200 (25 %), ETA 3 min"),
        (0, 300, 8, 60, "x: 300 of 1,200 (25 %), ETA 3 min, 40 ECG/s"),
        (600, 300, 1, 30, "x: 900 of 1,200 (75 %), ETA 30 s, 10 ECG/s"),
        (0, 1200, 1, 60, "x: 1,200 of 1,200 (100 %), ETA 0 s, 20 ECG/s"),
        (0, 1, 0, 36, "x: 1 of 1,200 (0 %), ETA 12.0 h"),
    ],
)
def test_a_line_has_step_of_total_percent_eta_and_speed(done, advances, ecgs, seconds, line):
    clock = Clock()
    steps = Steps("x", 1200, done, ecgs, clock)
    clock.now = seconds
    steps.done += advances
    assert str(steps) == line
    steps.note = "loss 0.5000"
    assert str(steps) == f"{line}, loss 0.5000"


def test_a_report_comes_every_30_s_even_if_a_step_takes_minutes():
    clock, times = Clock(), []
    repeat(lambda: times.append(clock.now), clock.wait, 1.0)
    assert times[0] == 1 and times[-1] > 600 - EVERY_S
    assert {b - a for a, b in pairwise(times)} == {EVERY_S} == {30.0}


def test_a_report_that_is_not_due_is_asked_again_when_it_is():
    clock, times = Clock(), []
    repeat(lambda: times.append(clock.now) or (7.0 if len(times) == 1 else None), clock.wait, 1.0)
    assert times[:3] == [1, 8, 38]


@pytest.fixture
def reports(monkeypatch):
    """Reports as they would be called, innermost last; called at the end of each block."""
    asked = []

    @contextmanager
    def repeating(report, first_s=None):
        asked.append(first_s)
        yield
        report()

    monkeypatch.setattr(log, "repeating", repeating)
    return asked


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(log.logger, "propagate", True)
    caplog.set_level("INFO", "hpc_ecg")
    return lambda: [record.getMessage() for record in caplog.records]


def test_bars_log_lines_off_a_terminal_and_draw_on_one(reports, said, monkeypatch):
    with progress_bar("a", 4) as advance:
        advance(3, "so far")
    assert list(tracked("b", iter("xy"), 2)) == ["x", "y"]
    with progress_bar("hidden", 4, visible=False) as advance:
        advance()
    assert [line.partition(", ETA")[0] for line in said()] == [
        "a: 3 of 4 (75 %)",
        "b: 2 of 2 (100 %)",
    ]
    screen = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=screen, force_terminal=True, width=100))
    with progress_bar("c [red]", 4) as advance:
        advance(3, "best auroc 0.9")
    assert "c [red]: 3 of 4 (75 %)" in screen.getvalue() and "best auroc 0.9" in screen.getvalue()
    assert len(said()) == 2


def test_a_wait_is_mentioned_after_a_second_and_a_verb_after_half(reports, said):
    with waiting_for("waiting for a lock"):
        pass
    assert said() == ["waiting for a lock (0 s)"] and reports == [1.0]
    assert FIRST_LINE_S < 1


def test_only_the_innermost_block_reports(said, monkeypatch):
    monkeypatch.setattr(log, "EVERY_S", 0.01)
    monkeypatch.setattr(log, "FIRST_S", 0.01)
    seen = []
    with log.repeating(lambda: seen.append("outer"), 0.01):
        with log.repeating(lambda: seen.append("inner"), 0.01):
            while "inner" not in seen:
                pass
            assert "outer" not in seen[seen.index("inner") :]
        while "outer" not in seen:
            pass
    assert log._reporting == []


def test_a_bar_ends_with_a_loop_that_fails_though_its_traceback_is_kept():
    with pytest.raises(ZeroDivisionError) as kept, closing(tracked("x", [1, 0], 2)) as items:
        for item in items:
            1 / item
    assert kept.tb and log._reporting == []
    with pytest.raises(ZeroDivisionError) as kept:
        list(tracked("x", (1 / item for item in (1, 0)), 2))
    assert kept.tb and log._reporting == []


def test_every_loop_over_a_bar_whose_body_may_fail_closes_it():
    package = Path(hpc_ecg.__file__).parent
    loops = re.compile(r"\bfor\b[^:\n]*\bin\b[^:\n]*\btracked\(")
    found = [path.name for path in package.rglob("*.py") if loops.search(path.read_text())]
    assert found == []
    assert loops.search('    for k, x in enumerate(tracked("x", y, 1)):')


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["finetune", *words_for(shards, folder, "train.max_epochs=1")]) == 0
    return folder


LONG_VERBS = {
    "finetune {words} run_dir={out} train.eval_every=2": "steps: 4 of 4 (100 %), ETA …, … ECG/s, "
    "loss …, best auroc …",
    "evaluate {run} --out {out}": "ECGs of test: … (100 %), ETA 0 s, … ECG/s",
    "evaluate {run} --out {out} --split valid": "labels scored: 1 of 1 (100 %)",
    "predict {run} {shards} --out {out}.csv": "ECGs: … (100 %), ETA 0 s, … ECG/s",
    "embed {run} {shards} --out {out}.parquet": "ECGs: … (100 %), ETA 0 s, … ECG/s",
    "data inspect {shards}": "digests: … (100 %)",
    "data shard {cohort} --signals {folder} --out {out} --label af --patient patient_id": "shards: "
    "… (100 %), … ECG/s",
    "combine {run} --covariates age,sex": "labels combined: 1 of 1 (100 %)",
}
"""What each says in its last line of progress; the rest is in WHERE."""
WHERE = {
    "update: closed testing": ("inference/update.py", 'tracked("labels tested"'),
    "update: what it gained": ("inference/update.py", 'tracked("labels compared"'),
    "explain: integrated gradients": ("inference/explain.py", "waiting_for("),
    "explain: checks of a map": ("inference/map_checks.py", 'tracked("shuffled models"'),
    "explain: a sample of shards": ("inference/cohort_context.py", "progress_bar("),
    "audit: attacks": ("inference/audit.py", 'tracked("labels attacked"'),
    "report: baselines": ("comparison/heartbeat.py", 'progress_bar("baselines, ECGs measured"'),
    "report: bootstrap": ("comparison/scoring.py", 'tracked("models scored"'),
    "cohort": ("cli/cohort.py", 'progress_bar("steps", 4)'),
    "data repair": ("shards/repair.py", 'tracked("shards made again"'),
    "sweep and tuning, here": ("sweep/local_runs.py", "with live_runs("),
    "sweep and tuning, on Slurm": ("sweep/slurm_runs.py", 'progress_bar("runs"'),
    "predict --slurm": ("inference/on_slurm.py", 'progress_bar("parts"'),
    "features of a frozen backbone": ("training/features.py", "predict(engine"),
    "a lock": ("training/features.py", "waiting_for(f"),
    "a folder after a restart": ("training/run_folder.py", "waiting_for(f"),
    "submissions": ("sweep/submissions.py", "waiting_for(f"),
    "kernels, compiled": ("training/try_kernels.py", "waiting_for("),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", LONG_VERBS)
def test_a_long_verb_shows_its_progress(
    words, run, shards, cohort, tmp_path, reports, capsys, few_events_suffice
):
    out, setting = tmp_path / "out", " ".join(words_for(shards, "x", "train.max_epochs=1"))
    names = {
        "run": run,
        "shards": shards,
        "cohort": cohort,
        "folder": cohort.parent,
        "out": out,
        "words": setting,
    }
    assert main(words.format(**names).split()) in (0, 3)
    lines = [line[20:] for line in capsys.readouterr().err.splitlines()]
    parts = LONG_VERBS[words].split("…")
    found = [line for line in lines if line.startswith(parts[0])]
    assert found and all(part in found[-1] for part in parts), lines


@pytest.mark.parametrize("what", WHERE)
def test_other_long_work_uses_the_same_mechanism(what):
    file, call = WHERE[what]
    assert call in (Path(hpc_ecg.__file__).parent / file).read_text()


def test_finetune_ends_with_score_weights_and_the_next_command(run, capsys):
    assert (
        main(
            [
                "finetune",
                *words_for(
                    RunFolder(run).read_settings()["data.shards"], run, "train.max_epochs=1"
                ),
            ]
        )
        == 0
    )
    last = capsys.readouterr().err.splitlines()[-1][20:]
    assert last.startswith("best validation AUROC 0.") and " at step " in last
    assert last.endswith(f"; weights: {run}/best; next: hpc-ecg evaluate {run}")


def write_events(run, *events, ages_s=()):
    run.path.mkdir(parents=True, exist_ok=True)
    for event, age_s in zip(events, ages_s or [0] * len(events), strict=True):
        when = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
        with run.metrics.open("a") as file:
            file.write(json.dumps(event | {"time": when}) + "\n")


def a_step(number, epoch):
    return {"event": "step", "step": number, "epoch": epoch, "ecg_per_s": 48.0}


def an_eval(number, score, best):
    return {"event": "eval", "step": number, "loss": 0.4, "auroc": score, "score": score} | {
        "best": best
    }


@pytest.fixture
def sweep(tmp_path):
    """Two cells: one runs, at step 20 of 80, with a step a second; one waits."""
    write_json(tmp_path / "sweep.yaml", {"strategies": ["a"], "seeds": [0, 1]})
    cell = RunFolder(tmp_path / "a" / "seed-0")
    events = a_step(10, 0.5), an_eval(10, 0.8, True), a_step(20, 1.0)
    write_events(cell, *events, ages_s=[12, 11, 2])
    cell.config.write_text("train: {max_epochs: 4}\n")
    (cell.path / "lock.holder").write_text(f"process 1 on {socket.gethostname()}\n")
    return tmp_path


def test_status_has_the_eta_of_each_run_and_of_all(sweep, capsys):
    assert main(["sweep", "status", str(sweep)]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    text = "at step 20 of 80 (25 %), ETA 60 s, best AUROC 0.800 at step 10, 48 ECG/s, 2 s ago"
    assert first == f"a/seed-0  running  on this machine {text}"
    assert second == "a/seed-1  waiting  not started"
    assert last == "1 running, 1 waiting; ETA 2 min"


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ("train: {max_epochs: 4}", "20 of 80 (25 %)"),
        ("train: {max_epochs: 4, max_steps: 40}", "20 of 40 (50 %)"),
        (
            "train: {max_epochs: 4, stages: {a: {max_epochs: 1}, b: {max_epochs: null}}}",
            "20 of 100",
        ),
        ("train: {}", "20"),
    ],
)
def test_the_total_is_that_of_all_stages(sweep, settings, total):
    (sweep / "a" / "seed-0" / "config.yaml").write_text(settings + "\n")
    assert read_status(sweep)[0].progress.steps.startswith(total)


def test_a_local_sweep_logs_a_line_per_change_and_draws_one_table(sweep, said, monkeypatch):
    cell, names = RunFolder(sweep / "a/seed-0"), ["a/seed-0", "a/seed-1"]
    runs = live_runs.LiveRuns(sweep, names, at_once=1)
    runs.start("a/seed-0", Path("x.err"))
    assert runs.look() == live_runs.POLL_S
    write_events(cell, an_eval(20, 0.9, True))
    runs.look()
    write_events(cell, an_eval(30, 0.7, False))
    write_json(cell.finished, {"metric": "auroc", "best_score": 0.9, "best_step": 20})
    runs.end("a/seed-0")
    cell.finished.unlink()
    assert said() == [
        "a/seed-0: started; log: x.err",
        "a/seed-0: evaluated, validation AUROC 0.900 at step 20, the best so far",
        "a/seed-0: evaluated, validation AUROC 0.700 at step 30; best AUROC 0.900 at step 20",
    ]
    runs._log_evaluation("a/seed-0")  # as a look that began before the end
    assert len(said()) == 3 and not runs._evaluated
    monkeypatch.setattr(live_runs, "EVERY_S", 0.0)
    runs.look()
    assert said()[-1].startswith("1 running, 1 waiting; ETA ")
    assert "; a/seed-0 at step 20 of 80 (25 %), ETA " in said()[-1]
    screen = Console(file=io.StringIO(), width=160, height=30)
    screen.print(runs.table())
    row = next(x for x in screen.file.getvalue().splitlines() if "a/seed-0" in x)
    cells = [part.strip() for part in row.split("│")[1:-1]]
    assert cells[:2] == ["a/seed-0", "running"] and cells[2] == "20 of 80 (25 %)"
    assert cells[3] == f"{int(cells[3][:-2])} s" and cells[4] == "AUROC 0.900 at step 20"


PROGRESS = RunProgress(
    "1,200 of 12,000 (10 %)", 754.0, 8000.0, "1203 ECG/s, 12 s ago", "AUROC 0.913 at step 1200", "x"
)


def drawn(cells, width):
    """The lines of a table in a pseudo-terminal of this width, and the cells of its header."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    parts = []

    def read():  # while it is drawn: the terminal holds no more than 4 kB
        with suppress(OSError):
            while part := os.read(ours, 1 << 16):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as screen:
        size = os.get_terminal_size(theirs)
        console = Console(file=screen, width=size.columns, height=size.lines)
        console.print(table_of(cells, "title", *console.size))
    reader.join()
    os.close(ours)
    text = b"".join(parts).decode()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()
    return lines, [c.strip() for c in next(x for x in lines if "┃ run" in x).split("┃")[1:-1]]


@pytest.mark.parametrize(
    ("width", "header"),
    [
        (40, ["run", "state"]),
        (60, ["run", "state", "ETA", ""]),
        (80, ["run", "state", "step", "ETA", ""]),
        (120, ["run", "state", "step", "ETA", "best", ""]),
    ],
)
def test_a_table_drops_the_columns_of_least_use_and_shows_whole_names(width, header):
    names = ["fine-tune-wcr/seed-0", "fine-tune-wcr/seed-1", "linear-probe/seed-0"]
    cells = [
        CellStatus(names[0], "running", "x", PROGRESS),
        CellStatus(names[1], "failed", "ValueError: no shards (see /home/u/a/error.txt)"),
        CellStatus(names[2], "waiting", "not started"),
    ]
    lines, found = drawn(cells, width)
    assert found == header
    assert max(map(len, lines)) <= width
    assert all(any(f"│ {name} " in line for line in lines) for name in names)
    assert ("13 min" in "".join(lines)) == ("ETA" in header)


def test_a_name_wider_than_the_terminal_is_broken_not_cut():
    name = "fine-tune-with-a-grid-of-optim.lr-0.0001-and-0.001/seed-12"
    lines, _ = drawn([CellStatus(name, "running", "", PROGRESS)], 40)
    column = "".join(line.split("│")[1].strip() for line in lines if "│" in line)
    assert column == name and max(map(len, lines)) <= 40


@pytest.mark.parametrize("bad", ["x", [1], {"a": 1}])
def test_an_edited_log_or_configuration_is_one_line(sweep, capsys, bad):
    cell = RunFolder(sweep / "a/seed-0")
    cell.config.write_text(json.dumps({"train": {"max_epochs": bad}}))
    key = "train.max_epochs" if isinstance(bad, str | list) else "train.max_epochs.a"
    write_events(cell, a_step(21, 1.1))
    assert main(["sweep", "status", str(sweep)]) == (2 if key == "train.max_epochs" else 0)
    write_events(cell, a_step(22, bad))
    assert main(["sweep", "status", str(sweep)]) == 2
    assert "metrics.jsonl is damaged: epoch cannot be" in capsys.readouterr().err.splitlines()[-1]


def test_a_damaged_file_does_not_end_a_local_sweep(sweep, said):
    runs, cell = live_runs.LiveRuns(sweep, ["a/seed-0"], 1), RunFolder(sweep / "a/seed-0")
    runs.start("a/seed-0", Path("x.err"))
    cell.metrics.write_text('{"event": 7}\n')
    assert runs.look() == live_runs.POLL_S and runs.table().row_count == 1
    runs.end("a/seed-0")
    assert len(said()) == 1


@pytest.mark.parametrize("tested", [0, 1])
def test_a_failed_sweep_ends_with_the_failure_and_its_log(sweep, monkeypatch, capsys, tested):
    failure = "a/seed-1: ValueError: no such file; /logs/7.err"
    monkeypatch.setattr(launch, "launch", lambda *_: [failure])
    for _ in range(tested):
        RunFolder(sweep / "a" / "seed-0").evaluation.touch()
    config = SweepConfig(sweep_dir=str(sweep), strategies=["a"])
    assert _run(Sweep(config=config, shared=[], overrides={}, cells=[]), wait=True) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"failed: {failure}"
    assert "give the same command again" in lines[-2] and f"retry {sweep} CELL" in lines[-2]
    assert lines[:-2] == [f"compare the 1 finished: hpc-ecg report {sweep}"] * tested


def test_the_script_that_writes_shards_says_what_it_is_outside_of_the_environment(tmp_path):
    script = Path(__file__).parent.parent / "tools" / "shard_ecgs.py"
    ran = subprocess.run(
        [sys.executable, "-S", "-E", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert "the same as `hpc-ecg data shard`" in ran.stderr and "make install" in ran.stderr
