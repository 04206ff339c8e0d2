"""A watchdog: a process that makes no progress writes the stacks of its threads and exits.

A rank that hangs makes the others hang in their next collective. Each rank watches itself, so the
log holds the stacks of all ranks, and the job ends instead of idling until its time limit.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time

from hpc_ecg.log import logger

EXIT_PEER_LOST = 76
"""Exit code of a process that hangs or lost its peers; slurm/finetune.sh starts it again."""
EXIT_CORRUPTED = 77
"""Exit code of processes that computed a step twice, with two results."""
SUSPECT = "Suspect: "
"""Before the names of the nodes, in the message of such a run; slurm/job.sh looks for it."""
GRACE_S = 5
"""Seconds between stacks and exit, since the first rank to exit takes the others down."""


class Watchdog:
    """Ends the process with EXIT_PEER_LOST if `beat` is not called for `timeout_s` seconds."""

    def __init__(self, timeout_s: float, rank: int) -> None:
        self._timeout_s, self._rank = timeout_s, rank
        self._last_beat, self._stopped = time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.beat()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        self._last_beat = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1, self._timeout_s / 4)):
            idle_s = time.monotonic() - self._last_beat
            if idle_s > self._timeout_s:
                self._exit(idle_s)

    def _exit(self, idle_s: float) -> None:
        logger.error(
            "process %d: no step for %.0f s (engine.timeout_min); it writes its stacks and exits",
            self._rank,
            idle_s,
        )
        with contextlib.suppress(ValueError, OSError):  # standard error may be closed
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        time.sleep(GRACE_S)
        os._exit(EXIT_PEER_LOST)
