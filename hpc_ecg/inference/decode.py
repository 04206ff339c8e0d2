"""Recordings prepared for the model, in worker processes, by the code that makes shards.

Needs no torch, so that a worker starts quickly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    numbers: Sequence[int]
    sources: Sequence[Source]
    recordings: Recordings
    rate_hz: float | None


def decode(
    sources: Sequence[Source],
    numbers: Sequence[int],
    recordings: Recordings,
    rate_hz: float | None,
    workers: int,
) -> Iterator[Decoded]:
    """The sources of these numbers, in the order in which workers finish them; only a few chunks
    are in memory at a time."""
    chunks = (
        _Chunk(
            numbers=some,
            sources=[sources[number] for number in some],
            recordings=recordings,
            rate_hz=rate_hz,
        )
        for some in (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))
    )
    for decoded in map_in_processes(_decode_chunk, chunks, workers):
        yield from decoded


def _decode_chunk(chunk: _Chunk) -> list[Decoded]:
    return [
        _decode_one(number, source, chunk)
        for number, source in zip(chunk.numbers, chunk.sources, strict=True)
    ]


def _decode_one(number: int, source: Source, chunk: _Chunk) -> Decoded:
    row = ShardRow(row=number, file=source.file, rate_hz=chunk.rate_hz)
    recordings = replace(chunk.recordings, signals=Path(source.folder))
    try:
        return Decoded(number=number, windows=prepare_row(row, recordings))
    except RecordError as error:
        return Decoded(number=number, windows=[], reason=error.reason, message=str(error))
