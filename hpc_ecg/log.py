"""Log lines, and a progress bar that is shown on a terminal only; both from rank 0 only."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("hpc_ecg")
console = Console(stderr=True)


class Advance(Protocol):
    """Advance a progress bar by `steps` and set the note at its end."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


def start_logging(rank: int = 0) -> None:
    """Log to standard error; ranks other than 0 log only warnings."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s", "%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def say(*lines: str) -> None:
    """Print the answer of a command, which may quote a file, to standard output."""
    for line in lines:
        print(printable(line))  # noqa: T201


def printable(text: str) -> str:
    """The text without control characters, with which a file could write to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


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
