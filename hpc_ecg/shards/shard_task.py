"""One shard: its rows in, a tar and a note of it out; a pure function, whoever runs it.

The note (`notes/shard-000000.json` beside `shards/`) is written last and says what the shard was
made of. A run that was killed finds the notes of the shards that are done, verifies these, and
makes the others.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import sha256_of, write_json
from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG, prepare
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.shards.format import FORMAT, ShardWriter, find_array_offsets, key_of_row, shard_name

RATE_TOLERANCE = 0.0005


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Where recordings are and what is made of them: the same for all shards."""

    signals: Path
    layout: ArrayLayout = field(default_factory=ArrayLayout)
    signal: SignalSpec = field(default_factory=SignalSpec)
    missing_leads: str = "leave_out"
    """leave_out or zero."""
    clip: bool = False
    """Keep what is beyond the range that can be stored, clipped and flagged."""
    names_shown: bool = True
    """False: reasons come without messages, which may hold the names of people's files."""

    def __post_init__(self) -> None:
        if self.missing_leads not in ("leave_out", "zero"):
            raise ValueError(
                f"--missing-leads must be leave_out or zero, got {self.missing_leads!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """A row of the table, as far as its shard depends on it."""

    row: int
    file: str
    rate_hz: float | None = None
    """Rate that the file must have."""
    left_out: tuple[str, str] | None = None
    """Reason and message, if it is not to be read."""


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
        """Of all that the shard is made of, but for the recordings themselves."""
        inputs = [FORMAT, asdict(self.recordings), [asdict(row) for row in self.rows]]
        return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()


def is_done(job: ShardTask) -> bool:
    """The shard lies there, made of the same rows, byte for byte as it was written."""
    try:
        note = json.loads(job.note.read_text())
        return note["inputs"] == job.digest() and sha256_of(job.tar) == note["sha256"]
    except (OSError, ValueError, KeyError):
        return False


def write_shard(job: ShardTask) -> int:
    """Read, prepare and write the recordings of one shard; returns its number."""
    records: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    spec = job.recordings.signal
    job.note.unlink(missing_ok=True)
    with job.tar.open("wb") as stream, ShardWriter(stream, spec, MICROVOLTS_PER_COUNT) as writer:
        for row in job.rows:
            try:
                windows = prepare_row(row, job.recordings)
            except RecordError as error:
                message = str(error) if job.recordings.names_shown else ""
                left_out.append({"row": row.row, "reason": error.reason, "message": message})
                continue
            for ecg in windows:
                records.append(_describe(row, ecg, spec))
                writer.write(records[-1]["key"], ecg.counts_LS)
    offsets = find_array_offsets(job.tar, len(spec.leads), spec.num_samples)
    for record in records:
        record |= {"shard": job.shard, "offset": offsets[record["key"]]}
    about = {"name": job.tar.name, "records": len(records), "bytes": job.tar.stat().st_size}
    about |= {"sha256": sha256_of(job.tar), "inputs": job.digest()}
    write_json(job.note, about | {"rows": records, "left_out": left_out}, indent=None)
    return job.shard


def write_shards(jobs: Iterable[ShardTask], workers: int) -> Iterator[int]:
    """Write them on this machine; yields the number of each shard that is done."""
    if workers <= 1:
        yield from map(write_shard, jobs)
        return
    waiting = iter(jobs)
    running: set[Future[int]] = set()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=exit_with_parent) as pool:
        try:
            while True:
                # few ahead: a cohort's rows need not all lie in the queue
                while len(running) < 2 * workers and (job := next(waiting, None)):
                    running.add(pool.submit(write_shard, job))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException as error:  # also Ctrl-C: do not write what nobody waits for
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ValueError(
                    "a worker process was killed (out of memory?); the same command goes on, "
                    "perhaps with fewer --workers"
                ) from None
            raise


def exit_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_row(row: ShardRow, recordings: Recordings) -> list[PreparedECG]:
    """The windows of one row; RecordError if it is left out."""
    if row.left_out:
        raise RecordError(*row.left_out)
    recording = read_row(row, recordings)
    return prepare(recording, recordings.signal, recordings.missing_leads, recordings.clip)


def read_row(row: ShardRow, recordings: Recordings) -> Recording:
    """The recording of one row, with the rate that it was declared to have."""
    declared = row.rate_hz
    layout = recordings.layout
    layout = replace(layout, sample_rate_hz=declared or layout.sample_rate_hz)
    recording = read_recording(find_recording(recordings.signals, row.file), layout)
    stated = recording.sample_rate_hz
    if declared is not None and not abs(stated - declared) <= RATE_TOLERANCE * declared:
        raise RecordError("rate", f"the file says {stated:g} Hz, declared are {declared:g} Hz")
    return recording


def _describe(row: ShardRow, ecg: PreparedECG, spec: SignalSpec) -> dict[str, Any]:
    window = ecg.window if spec.window.startswith("all") else None
    return {
        "key": key_of_row(row.row, window),
        "samples": ecg.samples,
        "amplitude_mv": round(ecg.amplitude_mv, 4),
        "flags": ";".join(ecg.flags),
        "sha256": hashlib.sha256(ecg.counts_LS.tobytes()).hexdigest(),
    }
