"""Fork this process and collect exit codes, for tools and tests that start many runs."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

PATIENCE_S = 20.0
"""After one process has ended, the others get this long before they are killed, as srun does."""


def fork(action: Callable[[], int], log: Path) -> int:
    """Run `action` in a child process, with its output appended to `log`; returns the pid."""
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
    """Whether the process has ended. It can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(pids: list[int]) -> list[int]:
    """Wait for the processes; returns their exit codes, -9 for SIGKILL.

    Once one has ended, the others are killed after PATIENCE_S.
    """
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
    """A TCP port of this machine on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
