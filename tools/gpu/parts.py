"""The parts of a check, each in a process of its own: one that hangs or dies costs no other.

A part gets `emit(row, figures)`, which sends a line of JSON to the checking process at once, and a
Clock. What it has measured is kept, however it ends.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"environment": 15, "tests": 190, "curve": 35, "speed": 150, "costs": 90}
"""In their order, with the seconds of eight minutes that each may take. What one leaves is divided
among the others in this proportion."""
LEAST_S = 1.0
Emit = Callable[[str, dict[str, Any]], None]
Runner = Callable[[str, "Clock", Mapping[str, Any], Emit], str]


class Clock:
    """The time that a part has."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    def has(self, seconds: float) -> bool:
        return self.left_s > seconds


def seconds_for(part: str, left_s: float) -> float:
    """What a part may take of the time that is left."""
    names = list(PARTS)
    weights = [PARTS[name] for name in names[names.index(part) :]]
    return left_s * weights[0] / sum(weights)


def run_apart(part: str, clock: Clock, options: Mapping[str, Any], emit: Emit) -> str:
    """Run a part in its own process; returns how it ended. Killed when its time is over."""
    if not clock.has(LEAST_S):
        return "not begun: out of time"
    folders = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for deterministic kernels
    words = json.dumps({**options, "seconds": clock.left_s})
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu.parts", part, words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        cut_off: list[bool] = []
        timer = threading.Timer(clock.left_s, _kill, [process, cut_off])
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith("\n"):  # not one that was cut off
                    emit(*json.loads(line))
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process, [])
        log.seek(0)
        last = (log.read().strip().splitlines() or ["no word"])[-1]
    if cut_off:
        return "cut off: out of time"
    return "complete" if code == 0 else f"crashed ({code}): {last[:300]}"


def _kill(process: subprocess.Popen[str], killed: list[bool]) -> None:
    """End the process and its children, which are a session."""
    if process.poll() is None:
        killed.append(True)
        os.killpg(process.pid, 9)


def run_here(part: str, clock: Clock, options: Mapping[str, Any], emit: Emit) -> str:
    """Run a part in this process; ValueError and the like become its status."""
    try:
        importlib.import_module(f"gpu.{part}").measure(emit, clock, options)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return "complete"


def main(part: str, words: str) -> None:
    """In the process of a part: what it prints goes to the log, its rows to the caller."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = json.loads(words)

    def emit(row: str, figures: dict[str, Any]) -> None:
        out.write(json.dumps([row, figures]) + "\n")

    importlib.import_module(f"gpu.{part}").measure(emit, Clock(options["seconds"]), options)


if __name__ == "__main__":
    main(*sys.argv[1:])
