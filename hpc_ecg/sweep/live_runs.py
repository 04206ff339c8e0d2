"""The runs of a sweep on this machine while they run: one table on a terminal, updated in place; in
logs a line per change of a run, and every EVERY_S how many are in which state."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.live import Live
from rich.table import Table

from hpc_ecg.log import EVERY_S, console, logger, repeating
from hpc_ecg.sweep.status import CellStatus, cell_status, describe_counts, table_of

POLL_S, POLL_SHARE = 2.0, 20
"""Between two looks at the runs' folders, or so many times what a look takes."""
AROUND = 8
"""Lines of a terminal that the table leaves for its title and for the log."""


class LiveRuns:
    def __init__(self, sweep_dir: Path, names: Sequence[str], at_once: int) -> None:
        self._folder, self._names, self._at_once = sweep_dir, names, at_once
        self._running: dict[str, str] = {}
        """The last evaluation that was logged, by run."""
        self._summed_up = time.monotonic()

    def start(self, name: str, log: Path) -> None:
        progress = cell_status(self._folder, name).progress
        self._running[name] = progress.evaluated if progress else ""
        logger.info("%s: started; log: %s", name, log)

    def end(self, name: str) -> None:
        """Log what it has evaluated since the last look, before its result is logged."""
        self._log_evaluation(self._status(name))
        self._running.pop(name, None)

    def look(self) -> float:
        """Log what has changed; returns the seconds until the next look."""
        began, cells = time.monotonic(), self._statuses()
        for cell in cells:
            self._log_evaluation(cell)
        if began - self._summed_up >= EVERY_S:
            self._summed_up = began
            running = [f"{c.name} {c.progress}" for c in cells if c.name in self._running]
            logger.info("%s", "; ".join([describe_counts(cells, self._at_once), *running]))
        return max(POLL_S, POLL_SHARE * (time.monotonic() - began))

    def table(self) -> Table:
        cells = self._statuses()
        title = describe_counts(cells, self._at_once)
        return table_of(cells, title, console.height - AROUND)

    def _statuses(self) -> list[CellStatus]:
        return [self._status(name) for name in self._names]

    def _status(self, name: str) -> CellStatus:
        """A run that was started is running, also before it has locked its folder."""
        cell = cell_status(self._folder, name)
        return replace(cell, kind="running") if name in self._running else cell

    def _log_evaluation(self, cell: CellStatus) -> None:
        evaluated = cell.progress.evaluated if cell.progress else ""
        if cell.name in self._running and evaluated != self._running[cell.name]:
            self._running[cell.name] = evaluated
            is_best = cell.progress is not None and evaluated == cell.progress.best
            best = ", the best so far" if is_best else ""
            logger.info("%s: evaluated, validation %s%s", cell.name, evaluated, best)


@contextmanager
def live_runs(sweep_dir: Path, names: Sequence[str], at_once: int) -> Iterator[LiveRuns]:
    """Show these runs until the block ends."""
    runs = LiveRuns(sweep_dir, names, at_once)
    if not console.is_terminal:
        with repeating(runs.look, POLL_S):
            yield runs
        return
    table = Live(
        console=console, get_renderable=runs.table, refresh_per_second=1 / POLL_S, transient=True
    )
    with table, repeating(lambda: None):
        yield runs
