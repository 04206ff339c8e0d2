"""What stands around a library that reads a foreign file."""

import logging
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what libraries warn of, and what pydicom logs; complete when the block has ended."""
    messages: list[str] = []
    handler, logger = BufferingHandler(sys.maxsize), logging.getLogger("pydicom")
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
            messages += [record.getMessage() for record in handler.buffer]
            messages += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(handler)


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process grow by `more_bytes`, then raise MemoryError: better than a killed job."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
