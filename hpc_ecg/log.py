"""Log lines and the progress of long work, from rank 0 only.

Work that takes long shows a bar on a terminal; elsewhere (Slurm's logs, pipes) it logs a line every
EVERY_S. What cannot count its steps says what it waits for.
"""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

Item = TypeVar("Item")
logger = logging.getLogger("hpc_ecg")
console = Console(stderr=True)
WHAT_TO_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then start again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), "give another path"),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), "give another name"),
    errno.EMFILE: "raise the limit (ulimit -n) or use fewer workers",
}
"""Added to the system's message."""
EVERY_S, FIRST_S = 30.0, 1.0
"""Between the lines of long work; how long a wait lasts before it is mentioned."""


class Advance(Protocol):
    """Count `steps` more; a note replaces that at the end of the line."""

    def __call__(self, steps: int = 1, note: str | None = None) -> None: ...


def printable(text: str) -> str:
    """The text without what steers a terminal, as a name from a file may; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else " ?"[not c.isspace()] for c in text)


def describe_error(error: BaseException) -> str:
    """The message of an error in one line; for one of the system the path, and what to do."""
    text = str(error)
    if isinstance(error, OSError):
        text, advice = error.strerror or text, WHAT_TO_DO.get(error.errno or 0)
        text = text if error.filename is None else f"{os.fsdecode(error.filename)}: {text}"
        text = f"{text}; {advice}" if advice else text
    return printable(text).replace("\n", " ").strip() or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error, without what libraries add below it; else its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


class _Formatter(logging.Formatter):
    last_line_s = 0.0

    def format(self, record: logging.LogRecord) -> str:
        _Formatter.last_line_s = time.monotonic()
        return printable(super().format(record))


def start_logging(rank: int = 0) -> None:
    """Log to standard error; ranks other than 0 log only warnings."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(_Formatter("%(message)s", "%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def say(*lines: str) -> None:
    """Print the answer of a command, which may quote a file, to standard output."""
    for line in lines:
        print(printable(line), flush=True)  # noqa: T201


def describe_seconds(seconds: float) -> str:
    """Such as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Steps:
    """How far long work has come. `str`: step of total, percent, ETA, ECG/s and a note."""

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        ecgs_per_step: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done`: steps of an earlier start, which do not count for the speed."""
        self.title, self.total, self.done, self.note = title, total, done, ""
        self._ecgs, self._clock, self._first, self._began = ecgs_per_step, clock, done, clock()

    def __str__(self) -> str:
        percent = 100 * self.done / max(self.total, 1)
        parts = [f"{self.title}: {self.done:,} of {self.total:,} ({percent:.0f} %)"]
        if rate := (self.done - self._first) / max(self._clock() - self._began, 1e-9):
            parts.append(f"ETA {describe_seconds(max(self.total - self.done, 0) / rate)}")
            parts += [f"{rate * self._ecgs:.3g} ECG/s"] * bool(self._ecgs)
        return ", ".join([*parts, *[self.note] * bool(self.note)])


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, visible: bool = True, ecgs_per_step: float = 0
) -> Iterator[Advance]:
    """Show a bar on a terminal, log a line every EVERY_S elsewhere. Yields a call that advances it.

    `ecgs_per_step`: ECGs in a step, where their rate is of interest.
    """
    count, is_bar = Steps(title, total, done, ecgs_per_step), visible and console.is_terminal
    columns = BarColumn(), TextColumn("{task.description}", markup=False)
    bar = Progress(*columns, console=console, transient=True, disable=not is_bar)
    task = bar.add_task(printable(str(count)), total=total, completed=done)

    def advance(steps: int = 1, note: str | None = None) -> None:
        count.done, count.note = count.done + steps, count.note if note is None else note
        bar.update(task, completed=count.done, description=printable(str(count)))

    with bar, repeating(lambda: logger.info("%s", count) if visible and not is_bar else None):
        yield advance


def tracked(title: str, items: Iterable[Item], total: int) -> Generator[Item]:
    """Yield the `total` items under a progress bar, which ends with them or with `close`."""
    with progress_bar(title, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def waiting_for(what: str, first_s: float = FIRST_S) -> Iterator[None]:
    """Say what the work waits for: after `first_s`, unless a line was logged in the block by then,
    and whenever none was logged for EVERY_S."""
    began = time.monotonic()

    def report() -> float | None:
        now, last = time.monotonic(), _Formatter.last_line_s
        if began < last and (left_s := last + EVERY_S - now) > 0:
            return left_s
        logger.info("%s (%s)", what, describe_seconds(now - began))
        return None

    with repeating(report, first_s):
        yield


_reporting: list[object] = []
"""Of the blocks in `repeating`, only the last one reports: the others contain it."""
Report: TypeAlias = Callable[[], float | None]
"""Logs a line, or returns after how many seconds it wants to be asked again."""


@contextmanager
def repeating(report: Report, first_s: float | None = None) -> Iterator[None]:
    """Call `report` in a thread until the block ends: after `first_s` (default: once the log has
    been silent for EVERY_S), then every EVERY_S; not while a block inside this one reports."""
    ended, block = threading.Event(), object()
    since_last_s = time.monotonic() - _Formatter.last_line_s
    pause_s = max(EVERY_S - since_last_s, FIRST_S) if first_s is None else first_s
    ask = lambda: report() if _reporting[-1] is block else FIRST_S  # noqa: E731
    thread = threading.Thread(target=repeat, args=(ask, ended.wait, pause_s), daemon=True)
    _reporting.append(block)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _reporting.remove(block)


def repeat(report: Report, wait: Callable[[float], bool], pause_s: float) -> None:
    """Call `report` after each pause, until `wait(seconds)` says that the work has ended."""
    while not wait(pause_s):
        pause_s = report() or EVERY_S
