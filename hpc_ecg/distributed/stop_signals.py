"""What asks a running job to save or to stop: Slurm's signals, and files in the run's folder.

A handler only takes a note. The ranks tell each other with every step, so that all of them save
and stop at the same one; Slurm may have told some of them later, or not at all.
"""

import signal
import time
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
STOP, SAVE = "STOP", "SAVE"
LOOK_EVERY_S = 1.0
EXIT_REQUEUE = 75
"""Exit code of a run that saved and wants to go on; slurm/finetune.sh has it requeued."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to stop, and saved. `code`: what the process should end with."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class StopSignals:
    """Of this process; the first one looks for the files."""

    def __init__(self, folder: Path, is_rank_zero: bool) -> None:
        self._files = {name: folder / name for name in (STOP, SAVE)} if is_rank_zero else {}
        self._signal = ""
        self._looked = -LOOK_EVERY_S
        self._is_stopped = self.save_now = False
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def told(self) -> tuple[float, float, float]:
        """(a signal came, a person wants it to stop, it should save), to be summed over ranks."""
        now = time.monotonic()
        if self._files and now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self.save_now |= self._files[SAVE].exists()
            self._is_stopped = self._files[STOP].exists()
        return float(bool(self._signal)), float(self._is_stopped), float(self.save_now)

    def saved(self) -> None:
        """What was asked for is done: the file goes."""
        self.save_now = False
        if self._files:
            self._files[SAVE].unlink(missing_ok=True)

    def stopped(self, by_signal: bool) -> Preempted:
        """Why it stops, to be raised when everything is saved."""
        if self._files:
            self._files[STOP].unlink(missing_ok=True)
        if by_signal:
            name = self._signal or "a signal to another process"
            return Preempted(f"saved and stopped by {name}; start it again to go on", EXIT_REQUEUE)
        return Preempted(f"saved and stopped by the file {STOP}; start it again to go on", 0)

    def close(self) -> None:
        """Signals mean again what they meant before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
