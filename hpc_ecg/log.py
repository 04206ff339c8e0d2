"""Log lines, and a progress bar that is shown on a terminal only; both from rank 0 only."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("hpc_ecg")
console = Console(stderr=True)
WHAT_TO_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then start again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), "give another path"),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), "give another name"),
    errno.EMFILE: "raise the limit (ulimit -n) or use fewer workers",
}
"""Added to the system's message."""


class Advance(Protocol):
    """Advance a progress bar by `steps` and set the note at its end."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


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
    def format(self, record: logging.LogRecord) -> str:
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


@contextmanager
def progress_bar(title: str, total: int, done: int = 0, visible: bool = True) -> Iterator[Advance]:
    """Show a bar on a terminal, nothing elsewhere. Yields a call that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance
