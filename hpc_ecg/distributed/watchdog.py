"""A process that makes no progress writes the stacks of all its threads and ends.

A rank that hangs makes the others hang, too, in their next exchange. Each watches itself, so the
log holds the stacks of all of them, and the job ends instead of burning its time.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time

logger = logging.getLogger("hpc_ecg")

EXIT_PEER_LOST = 76
"""Exit code of a process that hangs or has lost the others; slurm/finetune.sh tries again."""
LAST_WORDS_S = 5
"""Between the stacks and the end: the first to go would take the others with it."""


class Watchdog:
    def __init__(self, patience_s: float, rank: int) -> None:
        self._patience_s, self._rank = patience_s, rank
        self._beat, self._stopped = time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.beat()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """There was progress."""
        self._beat = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1, self._patience_s / 4)):
            idle = time.monotonic() - self._beat
            if idle > self._patience_s:
                self._end(idle)

    def _end(self, idle: float) -> None:
        logger.error(
            "process %d: no step for %.0f s (engine.timeout_min): its stacks follow, then it ends",
            *(self._rank, idle),
        )
        with contextlib.suppress(ValueError, OSError):  # nobody may be listening any more
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        time.sleep(LAST_WORDS_S)
        os._exit(EXIT_PEER_LOST)
