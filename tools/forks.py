"""Forks of this process and how they end, for tools and tests that start many runs."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

PATIENCE_S = 20.0
"""For the processes that were not killed, which then are: srun does that, too."""


def fork(action: Callable[[], int], log: Path) -> int:
    """Its pid; what it says goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def has_ended(pid: int) -> bool:
    """Without taking note of how: that is for `wait_for`."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(pids: list[int]) -> list[int]:
    """Their exit codes, -9 for SIGKILL. When one has ended, the others soon must."""
    deadline = float("inf")
    while not all(has_ended(pid) for pid in pids):
        if any(has_ended(pid) for pid in pids):
            deadline = min(deadline, time.monotonic() + PATIENCE_S)
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, SIGKILL)
        time.sleep(0.005)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def free_port() -> int:
    """Of this machine; nobody listens on it now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
