"""The runs of a sweep on this machine while they run: one table on a terminal, updated in place; in
logs a line per change of a run, and every EVERY_S how many are in which state."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.live import Live
from rich.table import Table

from hpc_ecg.log import EVERY_S, console, logger, repeating
from hpc_ecg.sweep.run_progress import CellStatus, RunProgress, read_progress, table_of
from hpc_ecg.sweep.status import cell_status, describe_counts
from hpc_ecg.training.run_folder import RunFolder

POLL_S, POLL_SHARE = 2.0, 20
"""Between two looks at the runs' folders, or so many times what a look takes."""


class LiveRuns:
    def __init__(self, sweep_dir: Path, names: Sequence[str], at_once: int) -> None:
        self._folder, self._names, self._at_once = sweep_dir, names, at_once
        self._evaluated: dict[str, str] = {}
        """Of the runs that are running: the evaluation that was logged last."""
        self._counted, self._lock = time.monotonic(), threading.Lock()

    def start(self, name: str, log: Path) -> None:
        self._evaluated[name] = self._progress(name).evaluated
        logger.info("%s: started; log: %s", name, log)

    def end(self, name: str) -> None:
        """Log what it has evaluated since the last look, which another thread may be taking."""
        with self._lock:
            self._log_evaluation(name)
            self._evaluated.pop(name, None)

    def look(self) -> float:
        """Log what has changed; returns the seconds until the next look."""
        began = time.monotonic()
        for name in list(self._evaluated):
            with self._lock:
                self._log_evaluation(name)
        if began - self._counted >= EVERY_S:
            self._counted, cells = began, [self._cell(name) for name in self._names]
            running = [f"{c.name} {c.progress or 'begins'}" for c in cells if c.kind == "running"]
            logger.info("%s", "; ".join([describe_counts(cells, self._at_once), *running]))
        return max(POLL_S, POLL_SHARE * (time.monotonic() - began))

    def table(self) -> Table:
        cells = [self._cell(name) for name in self._names]
        return table_of(cells, describe_counts(cells, self._at_once), *console.size)

    def _cell(self, name: str) -> CellStatus:
        try:
            cell = cell_status(self._folder, name)
        except (ValueError, OSError) as error:  # a damaged file is no reason to end the sweep
            cell = CellStatus(name, "waiting", str(error))
        return cell._replace(kind="running") if name in self._evaluated else cell

    def _progress(self, name: str) -> RunProgress:
        with suppress(ValueError, OSError):
            return read_progress(RunFolder(self._folder / name)) or RunProgress()
        return RunProgress()

    def _log_evaluation(self, name: str) -> None:
        progress = self._progress(name)
        if progress.evaluated not in ("", self._evaluated.get(name, progress.evaluated)):
            self._evaluated[name], best = progress.evaluated, progress.best
            text = ", the best so far" if progress.evaluated == best else f"; best {best}"
            logger.info("%s: evaluated, validation %s%s", name, progress.evaluated, text)


@contextmanager
def live_runs(sweep_dir: Path, names: Sequence[str], at_once: int) -> Iterator[LiveRuns]:
    """Show these runs until the block ends."""
    runs = LiveRuns(sweep_dir, names, at_once)
    if not console.is_terminal:
        with repeating(runs.look, POLL_S):
            yield runs
        return
    table = Live(console=console, get_renderable=runs.table, refresh_per_second=0.5, transient=True)
    with table, repeating(lambda: None):
        yield runs
