"""Recordings prepared for the model, in worker processes, by the code that makes shards.

Needs no torch, so that a worker starts quickly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hpc_ecg.ecg.preprocess import PreparedECG
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.inference.sources import Source
from hpc_ecg.jobs.processes import map_in_processes
from hpc_ecg.shards.shard_task import Recordings, ShardRow, prepare_row

CHUNK = 16
"""Recordings that a worker takes at a time."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A recording's windows, or why there are none."""

    number: int
    """Its place among the sources."""
    windows: list[PreparedECG]
    reason: str = ""
    message: str = ""


def decode(
    sources: Sequence[Source],
    numbers: Sequence[int],
    recordings: Recordings,
    rate_hz: float | None,
    workers: int,
) -> Iterator[Decoded]:
    """The sources of these numbers, in the order in which workers finish them; only a few chunks
    are in memory at a time."""
    wanted = [(number, sources[number]) for number in numbers]
    chunks = (wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK))
    decode_some = partial(_decode_chunk, recordings=recordings, rate_hz=rate_hz)
    for decoded in map_in_processes(decode_some, chunks, workers):
        yield from decoded


def _decode_chunk(
    chunk: Sequence[tuple[int, Source]], recordings: Recordings, rate_hz: float | None
) -> list[Decoded]:
    found = []
    for number, source in chunk:
        row = ShardRow(row=number, file=source.file, rate_hz=rate_hz)
        try:
            windows = prepare_row(row, replace(recordings, signals=Path(source.folder)))
            found.append(Decoded(number=number, windows=windows))
        except RecordError as error:
            about = {"reason": error.reason, "message": str(error)}
            found.append(Decoded(number=number, windows=[], **about))
    return found
