"""The parts of a check, each in a process of its own: one that hangs or dies costs no other.

A part is a module with `measure(emit, clock, options)`. `emit(row, figures)` sends a line of JSON
to the checking process at once, so what was measured is kept however the part ends.
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
PARTS = {"environment": 15, "tests": 220, "curve": 35, "speed": 130, "costs": 80}
"""In their order, with the seconds of eight minutes that each may take. What one leaves is divided
among the others in this proportion."""
Emit = Callable[[str, dict[str, Any]], None]


class Clock:
    """The time that a part has."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()


Runner = Callable[[str, Clock, Mapping[str, Any], Emit], str]


def seconds_for(part: str, left_s: float) -> float:
    """What a part may take of the time that is left."""
    names = list(PARTS)
    return left_s * PARTS[part] / sum(PARTS[name] for name in names[names.index(part) :])


def run_apart(part: str, clock: Clock, options: Mapping[str, Any], emit: Emit) -> str:
    """Run a part in its own process, killed when its time is over; returns how it ended."""
    folders = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for deterministic kernels
    command = [sys.executable, "-m", "gpu.parts", part]
    command.append(json.dumps({**options, "seconds": clock.left_s}))
    with tempfile.TemporaryFile("w+") as log:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, start_new_session=True, **pipes
        )
        assert process.stdout is not None
        was_killed = threading.Event()
        timer = threading.Timer(max(clock.left_s, 0), _kill, [process, was_killed])
        timer.start()
        try:
            for line in process.stdout:
                if line.endswith("\n"):  # not one that was cut off
                    emit(*json.loads(line))
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process, threading.Event())
        log.seek(0)
        last = (log.read().strip().splitlines() or ["it printed nothing"])[-1]
    if was_killed.is_set():
        return "cut off: out of time"
    return "complete" if code == 0 else f"crashed ({code}): {last[:300]}"


def _kill(process: subprocess.Popen[str], was_killed: threading.Event) -> None:
    """End the process and its children, which are a session."""
    if process.poll() is None:
        was_killed.set()
        os.killpg(process.pid, 9)


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
