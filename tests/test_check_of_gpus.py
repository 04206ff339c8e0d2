"""`make gpu-check`: what was measured is kept, what was not is said, and a CPU proves nothing."""

import copy
import importlib
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu import costs, parts, speed
from gpu.parts import PARTS, Clock, run_apart, seconds_for
from gpu.speed import KERNELS
from gpu.verdicts import TARGETS, UNKNOWN, verdicts

from hpc_ecg.preflight.step_time import read_measured

ROOT = Path(__file__).parents[1]
GOOD = {
    "environment": {"card": {"name": "NVIDIA H100 80GB HBM3"}},
    "tests": {"tests/test_gpu_bits.py::a": {"outcome": "passed"}},
    "curve": {"fp32": {"share": 1e-5}, "bf16": {"share": 0.01}},
    "speed": {"best 128": {"ecg_per_s": 5700.0, "mfu": 0.51}, "forward": {"ecg_per_s": 2e4}},
    "costs": {name: {"share": 0.01} for name in ("overhead", "data wait", "dropout")},
}


def report(rows, rehearsal=False, **statuses):
    found = {name: {"status": "complete", "rows": {}} for name in PARTS}
    for name, part in found.items():
        part["rows"] = copy.deepcopy(rows.get(name, {}))
        part["status"] = statuses.get(name, "complete")
    return {"date": "2030-01-02 03:04:05", "is_rehearsal": rehearsal, "parts": found}


def about(text, lines):
    (line,) = [line for line in lines if text in line]
    return line


def test_figures_that_reach_their_targets_are_met_by_the_card_on_the_day():
    lines = verdicts(report(GOOD))
    assert [line.split(":")[0] for line in lines[: len(TARGETS)]] == ["met"] * len(TARGETS)
    assert lines[0] == "met: training reaches 50 % MFU: 51 % (NVIDIA H100 80GB HBM3, 2030-01-02)"
    assert about("a GPU draws", lines).startswith("met: Random numbers are integer arithmetic")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[0])
def test_a_figure_on_the_wrong_side_of_its_bound_is_missed(target):
    claim, part, row, figure, at_least, bound = target
    for factor, verdict in ((0.99, "missed"), (1, "met"), (1.01, "met")):
        rows = copy.deepcopy(GOOD)
        rows[part][row][figure] = bound * (factor if at_least else 2 - factor)
        assert about(claim, verdicts(report(rows))).startswith(f"{verdict}: ")
    del rows[part][row]
    lines = verdicts(report(rows, **{part: "cut off: out of time"}))
    assert about(claim, lines).startswith(f"{UNKNOWN}: {claim}: {part} cut off: out of time (")
    rows[part][row] = {UNKNOWN: "out of memory"}
    assert f"{claim}: out of memory" in about(claim, verdicts(report(rows)))


def test_on_another_card_a_verdict_says_so():
    rows = GOOD | {"environment": {"card": {"name": "NVIDIA A100-SXM4-40GB"}}}
    line = verdicts(report(rows))[0]
    assert "51 %; the target is for an H100 (NVIDIA A100-SXM4-40GB, " in line


@pytest.mark.parametrize(
    ("rows", "is_rehearsal"), [(GOOD, True), (GOOD | {"environment": {}}, False)]
)
def test_without_a_gpu_nothing_is_met(rows, is_rehearsal):
    lines = verdicts(report(rows, is_rehearsal))
    assert {line.split(":")[0] for line in lines} == {UNKNOWN}
    assert all("no GPU here" in line and line.endswith("(no GPU, 2030-01-02)") for line in lines)


def test_a_failed_test_misses_its_claim_and_unfinished_tests_meet_none():
    cut = verdicts(report(GOOD, tests="cut off: out of time"))
    assert about("a GPU draws", cut).startswith(UNKNOWN)
    rows = copy.deepcopy(GOOD)
    rows["tests"]["tests/test_gpu_bits.py::b"] = {"outcome": "failed", "reason": "no"}
    assert about("a GPU draws", verdicts(report(rows))).startswith("missed")
    assert gpu_check.has_failed(report(rows)) and not gpu_check.has_failed(report(GOOD))
    assert gpu_check.has_failed(report(GOOD, speed="crashed (1): no"))


def test_a_part_takes_its_share_and_what_others_left():
    assert sum(PARTS.values()) == 8 * 60
    assert seconds_for("environment", 480) == 15 and seconds_for("tests", 465) == 220
    assert seconds_for("speed", 210) == 130 and seconds_for("speed", 420) == 260
    assert seconds_for("costs", 77) == 77


def test_the_check_runs_all_tests_that_are_marked():
    marked = [p.name for p in Path(__file__).parent.glob("*.py") if "mark.gpu" in p.read_text()]
    assert len(marked) >= 7
    assert [name for name in marked if not name.startswith("test_gpu_")] == [Path(__file__).name]


# Parts in processes of their own

ODD = """
import os, sys, time
def measure(emit, clock, options):
    print("not for the caller")
    emit("first", {"value": 1.5})
    if options["how"] == "hangs":
        time.sleep(60)
    if options["how"] == "dies":
        os.kill(os.getpid(), 9)
    assert options["how"] == "ends", "it broke"
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("ends", "complete"),
        ("hangs", "cut off: out of time"),
        ("dies", "crashed (-9): not for the caller"),
        ("breaks", "crashed (1): AssertionError: it broke"),
    ],
)
def test_what_a_part_measured_is_kept_however_it_ends(tmp_path, monkeypatch, how, status):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "odd.py").write_text(ODD)
    (tmp_path / "gpu" / "parts.py").write_text(Path(parts.__file__).read_text())
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    rows, clock = {}, Clock(1.0 if how == "hangs" else 30)
    assert run_apart("odd", clock, {"how": how}, rows.__setitem__) == status
    assert rows == {"first": {"value": 1.5}}


def test_what_fails_for_want_of_memory_costs_only_its_row(monkeypatch):
    class Bench:
        batches, row_s = (128, 32), 1.0

        def __init__(self, *_):
            pass

        @contextmanager
        def prepared(self, *words):
            yield words, None

    def figures(_bench, _clock, words, _run, size, _kind):
        if size == 32 and "model.attention=flash" in words:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to")
        return {"ecg_per_s": 1.0}

    rows, clock = {}, Clock(1000)
    monkeypatch.setattr(speed, "Bench", Bench)
    monkeypatch.setattr(speed, "start_training", lambda *_: None)
    monkeypatch.setattr(speed, "_figures", figures)
    speed.measure(rows.__setitem__, clock, {})
    failed = {row: about for row, about in rows.items() if UNKNOWN in about}
    assert set(failed) == {"flash, eager, 32", "flash, compiled, 32"}
    assert set(map(str, failed.values())) == {
        str({UNKNOWN: "OutOfMemoryError: CUDA out of memory."})
    }

    rows = {}
    monkeypatch.setattr(costs, "Bench", Bench)
    monkeypatch.setattr(costs, "ROWS", {"a": out_of_memory, "b": lambda _: {"share": 0.5}})
    costs.measure(rows.__setitem__, clock, {})
    assert rows == {"a": {UNKNOWN: "OutOfMemoryError: no room"}, "b": {"share": 0.5}}


def out_of_memory(_bench):
    raise torch.OutOfMemoryError("no room")


class ShortClock:
    """Time is up after it has been asked for a number of times, however slow the machine is."""

    def __init__(self, times):
        self.left = [10.0] * times

    @property
    def left_s(self):
        return self.left.pop() if self.left else 0.0


def here(part, clock, options, emit):
    """Run a part in this process, which has imported torch; not pytest, which runs already."""
    if part == "tests":
        emit("tests/test_gpu_bits.py::a", {"outcome": "passed", "seconds": 0.0})
    else:
        importlib.import_module(f"gpu.{part}").measure(
            emit, ShortClock({"speed": 3, "costs": 1}.get(part, 0)), options
        )
    return "complete"


@pytest.mark.slow
def test_a_rehearsal_writes_a_whole_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HPC_ECG_REHEARSE_GPU", "0")
    monkeypatch.setattr(gpu_check, "PLANNED", 4)
    out = tmp_path / "new" / "check.json"
    assert gpu_check.main(["--rehearse", "--minutes", "0.1", "--out", str(out)], here) == 0
    written = json.loads(out.read_text())
    assert list(written["parts"]) == list(PARTS) and written["is_rehearsal"]
    rows = {name: part["rows"] for name, part in written["parts"].items()}
    modes = [f"{kernels}, {mode}" for kernels in KERNELS for mode in ("eager", "compiled")]
    assert {f"{mode}, {size}" for mode in modes for size in (4, 2)} <= rows["speed"].keys()
    assert rows["speed"]["best 4"]["ecg_per_s"] > 0 and rows["costs"]["overhead"]["seconds"] > 0
    assert list(rows["costs"]) == ["overhead", "data wait", "dropout", "checkpoint"]
    assert read_measured(str(out))["records"] == 4
    assert rows["curve"]["fp32"]["share"] == 0 < rows["curve"]["bf16"]["share"] < 0.05
    printed = capsys.readouterr().out
    assert "NO GPU: a REHEARSAL on the CPU" in printed and "\nmet" not in printed


def test_a_check_that_is_ended_leaves_what_it_has_and_no_process(tmp_path):
    out = tmp_path / "check.json"
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--out", str(out)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    written = json.loads(out.read_text())
    assert written["parts"]["environment"]["rows"]["versions"]["Python"]
    assert written["parts"]["environment"]["status"] == "cut off with the check"
    assert {line.split(":")[0] for line in written["verdicts"]} == {UNKNOWN}


@pytest.mark.parametrize("minutes", ["0", "-1", "inf", "nan"])
def test_an_impossible_budget_is_one_line(capsys, minutes):
    with pytest.raises(SystemExit):
        gpu_check.main([f"--minutes={minutes}"])
    assert "--minutes must be above 0" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_of_others_is_not_replaced(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"mine": 1}')
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path / "x.json")])
    assert "x.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "x.json").read_text()) == {"mine": 1}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path / "file" / "x.json")])
    assert "exists" in (line := capsys.readouterr().err.splitlines()[-1]) or "directory" in line
