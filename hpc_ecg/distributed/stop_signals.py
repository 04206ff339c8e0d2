"""Requests to save or to stop a running job: Slurm's signals, and files in the run's folder.

Signal handlers only set a flag. The ranks share their flags in every step, so that all of them save
and stop at the same step; Slurm may signal some of them later, or not at all.
"""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
STOP, SAVE = "STOP", "SAVE"
POLL_FILES_EVERY_S = 1.0
EXIT_REQUEUE = 75
"""Exit code of a run that saved and should resume; slurm/finetune.sh requeues the job."""


class Preempted(Exception):  # noqa: N818
    """The run saved and stopped on request. `code` is the exit code for the process."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Requests(NamedTuple):
    """Requests to a run, as 0 or 1 on one rank, or summed over all ranks."""

    preempt: float = 0.0
    """A signal arrived: save, exit and be requeued."""
    stop: float = 0.0
    """The file STOP exists: save and exit."""
    save: float = 0.0
    """The file SAVE exists, or a checkpoint is due: save and continue."""


NO_REQUESTS = Requests()


class StopSignals:
    """Handles the signals from construction until `close`. Only rank 0 looks for the files."""

    def __init__(self, folder: Path, is_rank_zero: bool) -> None:
        self._files = {name: folder / name for name in (STOP, SAVE)} if is_rank_zero else {}
        self._signal = ""
        self._polled_at = -POLL_FILES_EVERY_S
        self._has_stop_file = self._must_save = False
        self._previous_handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._set_flag)

    def _set_flag(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def poll(self) -> Requests:
        now = time.monotonic()
        if self._files and now - self._polled_at >= POLL_FILES_EVERY_S:
            self._polled_at = now
            self._must_save |= self._files[SAVE].exists()
            self._has_stop_file = self._files[STOP].exists()
        return Requests(
            preempt=float(bool(self._signal)),
            stop=float(self._has_stop_file),
            save=float(self._must_save),
        )

    def request_save(self) -> None:
        self._must_save = True

    def clear_save(self) -> None:
        """Forget the request once a checkpoint is written, and delete the file SAVE."""
        self._must_save = False
        if self._files:
            self._files[SAVE].unlink(missing_ok=True)

    def preempted(self, by_signal: bool) -> Preempted:
        """The exception to raise once everything is saved; deletes the file STOP."""
        if self._files:
            self._files[STOP].unlink(missing_ok=True)
        if by_signal:
            name = self._signal or "a signal to another process"
            return Preempted(f"saved and stopped by {name}; start again to go on", EXIT_REQUEUE)
        return Preempted(f"saved and stopped by the file {STOP}; start again to go on", 0)

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
