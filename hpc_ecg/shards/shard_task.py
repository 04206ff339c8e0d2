"""Write one shard from its rows, in any process: a tar, and a note about it.

The note (`notes/shard-000000.json` beside `shards/`) is written last and says what the shard was
made from. After a run was killed, the next one verifies the shards that have notes and writes only
the others.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import naming, write_json
from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG, prepare
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.jobs.processes import map_in_processes
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.format import FORMAT, ShardWriter, key_of_row, shard_name

RATE_TOLERANCE = 0.0005


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Where the recordings are and how they are prepared: the same for all shards."""

    signals: Path
    layout: ArrayLayout = field(default_factory=ArrayLayout)
    signal: SignalSpec = field(default_factory=SignalSpec)
    missing_leads: str = "leave_out"
    """leave_out or zero."""
    clip: bool = False
    """Clip and flag samples beyond the range that can be stored; else leave the record out."""
    names_shown: bool = True
    """False: drop the messages of what is left out, as they can hold file names of patients."""

    def __post_init__(self) -> None:
        if self.missing_leads not in ("leave_out", "zero"):
            raise ValueError(
                f"--missing-leads must be leave_out or zero, got {self.missing_leads!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """The part of a table row that its shard depends on."""

    row: int
    file: str
    rate_hz: float | None = None
    """Sampling rate that the file must have."""
    left_out: tuple[str, str] | None = None
    """Reason and message, if the recording is not to be read."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    shard: int
    rows: list[ShardRow]
    recordings: Recordings
    work: Path
    """Folder with `shards/` and `notes/`."""

    @property
    def tar(self) -> Path:
        return self.work / "shards" / shard_name(self.shard)

    @property
    def note(self) -> Path:
        return self.work / "notes" / f"{self.tar.stem}.json"

    def digest(self) -> str:
        """SHA-256 of all that the shard is made from, except the recordings themselves."""
        inputs = [FORMAT, asdict(self.recordings), [asdict(row) for row in self.rows]]
        return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()


def is_done(task: ShardTask) -> bool:
    """Whether the shard was made from the same rows and is intact, byte for byte."""
    try:
        note = json.loads(task.note.read_text())
        return note["inputs"] == task.digest() and sha256_of(task.tar) == note["sha256"]
    except (OSError, ValueError, KeyError):
        return False


def write_shard(task: ShardTask) -> int:
    """Read, prepare and write the recordings of one shard; returns the shard's number."""
    records: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    spec = task.recordings.signal
    task.note.unlink(missing_ok=True)
    with (
        naming(task.tar),
        task.tar.open("wb") as stream,
        ShardWriter(stream, spec, MICROVOLTS_PER_COUNT) as writer,
    ):
        for row in task.rows:
            try:
                windows = prepare_row(row, task.recordings)
            except RecordError as error:
                message = str(error) if task.recordings.names_shown else ""
                left_out.append({"row": row.row, "reason": error.reason, "message": message})
                continue
            for ecg in windows:
                record = _describe_record(row, ecg, spec)
                offset = writer.write(record["key"], ecg.counts_LS)
                records.append(record | {"shard": task.shard, "offset": offset})
    note = {
        "name": task.tar.name,
        "records": len(records),
        "bytes": task.tar.stat().st_size,
        "sha256": sha256_of(task.tar),
        "inputs": task.digest(),
        "rows": records,
        "left_out": left_out,
    }
    write_json(task.note, note, indent=None, about_people=True)
    return task.shard


def write_shards(tasks: Iterable[ShardTask], workers: int) -> Iterator[int]:
    """Write shards with `workers` local processes; yields the number of each one that is done."""
    try:
        yield from map_in_processes(write_shard, tasks, workers)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (out of memory?); run the same command again to go on, "
            "perhaps with fewer --workers"
        ) from None


def prepare_row(row: ShardRow, recordings: Recordings) -> list[PreparedECG]:
    """The prepared windows of one row; RecordError if the row is left out."""
    if row.left_out:
        raise RecordError(*row.left_out)
    recording = read_row(row, recordings)
    return prepare(recording, recordings.signal, recordings.missing_leads, recordings.clip)


def read_row(row: ShardRow, recordings: Recordings) -> Recording:
    """The recording of one row; RecordError if its sampling rate is not the declared one."""
    declared, layout = row.rate_hz, recordings.layout
    if declared:
        layout = replace(layout, sample_rate_hz=declared)
    recording = read_recording(find_recording(recordings.signals, row.file), layout)
    stated = recording.sample_rate_hz
    if declared is not None and not abs(stated - declared) <= RATE_TOLERANCE * declared:
        raise RecordError("rate", f"the file says {stated:g} Hz, but {declared:g} Hz was declared")
    return recording


def _describe_record(row: ShardRow, ecg: PreparedECG, spec: SignalSpec) -> dict[str, Any]:
    window = ecg.window if spec.window.startswith("all") else None
    return {
        "key": key_of_row(row.row, window),
        "samples": ecg.samples,
        "amplitude_mv": round(ecg.amplitude_mv, 4),
        "flags": ";".join(ecg.flags),
        "sha256": hashlib.sha256(ecg.counts_LS.tobytes()).hexdigest(),
    }
