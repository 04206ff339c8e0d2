"""A job, run locally or on Slurm: a function with its arguments, and its outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    function: Callable[..., Any]
    """A function of a module: another process imports it."""
    arguments: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended; `error` is None after a success, else the text of what went wrong."""

    name: str
    error: str | None
    log: Path
    """What the job wrote to standard error."""
    value: Any = None
    """What the function returned, on Slurm."""
