"""From a table and a folder of recordings to a set of shards (`hpc-ecg data shard`).

Nothing is lost: a row is in a shard, or in left_out.csv with its reason. Nothing is substituted.
The folder gets its name only when all of it is written.
"""

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.data import splits
from hpc_ecg.data.cohort import NO_PATIENT, Cohort, Columns, read_cohort
from hpc_ecg.data.index import LeftOut, WrittenShard, build_index, describe, write_beside_shards
from hpc_ecg.data.shards import ShardWriter, find_arrays, key_of_row, shard_name
from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.leads import order_rows
from hpc_ecg.ecg.preprocess import MAX_RATE_HZ, MICROVOLTS_PER_COUNT, MIN_RATE_HZ, prepare
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.log import progress_bar
from hpc_ecg.writing import sha256_of, write_whole

RATE_TOLERANCE = 0.0005


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What `hpc-ecg data shard` was asked to do."""

    table: Path
    signals: Path
    out: Path
    columns: Columns
    layout: ArrayLayout = field(default_factory=ArrayLayout)
    signal: SignalSpec = field(default_factory=SignalSpec)
    rate_hz: float | None = None
    """Rate that every file must have; None: the column of rates, or whatever the files say."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    records_per_shard: int = 1000
    workers: int = 1


def shard_ecgs(plan: ShardingPlan) -> dict[str, Any]:
    """Write the shards of `plan`; returns the description that dataset.json holds.

    Raises ValueError, and leaves no output, for a wrong table, a patient or an identical signal in
    two splits, an empty split, or an output folder that is not empty.
    """
    _check_plan(plan)
    cohort = read_cohort(plan.table, plan.columns)
    row_splits = _split(cohort, plan)
    descriptions: list[dict[str, Any]] = []

    def write(partial: Path) -> None:
        partial.mkdir()
        shards = list(_write_shards(cohort, plan, partial))
        descriptions.append(_describe(cohort, row_splits, shards, plan, partial))

    out = plan.out.resolve()  # where a link points to, so that the link may stay
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {plan.out} cannot be written: {error.strerror}") from None
    write_whole(out, write)
    return descriptions[0]


def _check_plan(plan: ShardingPlan) -> None:
    if not plan.signals.is_dir():
        raise ValueError(f"--signals {plan.signals}: no such folder")
    try:
        is_free = not plan.out.exists() or (plan.out.is_dir() and not any(plan.out.iterdir()))
    except OSError as error:
        raise ValueError(f"--out {plan.out} cannot be written: {error.strerror}") from None
    if not is_free:
        raise ValueError(f"--out {plan.out} exists and is not an empty folder; give a new one")
    for name, value in (("shard-size", plan.records_per_shard), ("workers", plan.workers)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if plan.rate_hz is not None and not MIN_RATE_HZ <= plan.rate_hz <= MAX_RATE_HZ:
        allowed = f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
        raise ValueError(f"--rate must be {allowed}, or name a column, got {plan.rate_hz:g}")
    try:
        order_rows(plan.layout.leads, plan.signal.leads)
    except RecordError as error:
        raise ValueError(f"--leads: {error}") from None


def _split(cohort: Cohort, plan: ShardingPlan) -> list[str]:
    """The split of every row; a patient in two splits of the user's own column is refused."""
    if cohort.splits is None:
        return splits.split_by_hash(cohort.patients, plan.fractions, plan.split_seed)
    given = splits.split_as_given(cohort.splits, plan.columns.split or "")
    known = [row for row, patient in enumerate(cohort.patients) if patient != NO_PATIENT]
    patients, of_patients = [cohort.patients[r] for r in known], [given[r] for r in known]
    splits.check_apart(patients, of_patients, known, "one patient")
    return given


def _write_shards(cohort: Cohort, plan: ShardingPlan, folder: Path) -> Iterator[WrittenShard]:
    size = plan.records_per_shard
    jobs = [
        (shard, _rows_of(cohort, plan, range(start, min(start + size, len(cohort)))), plan, folder)
        for shard, start in enumerate(range(0, len(cohort), size))
    ]
    with progress_bar("shards", len(jobs)) as advance:
        if plan.workers == 1 or len(jobs) == 1:
            for job in jobs:
                yield write_shard(*job)
                advance()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(plan.workers, len(jobs)), mp_context=context) as pool:
            futures = [pool.submit(write_shard, *job) for job in jobs]
            try:
                for future in futures:
                    yield future.result()
                    advance()
            finally:  # after an error or Ctrl-C, do not write what nobody will keep
                pool.shutdown(wait=False, cancel_futures=True)


def _rows_of(
    cohort: Cohort, plan: ShardingPlan, rows: range
) -> list[tuple[int, str, bool, float | None]]:
    """(row, file, has a patient, declared rate) of the rows: all that a worker has to know."""
    rates: Sequence[float | None] = cohort.rates_hz or [plan.rate_hz] * len(cohort)
    return [
        (row, cohort.files[row], cohort.patients[row] != NO_PATIENT, rates[row]) for row in rows
    ]


def write_shard(
    shard: int,
    rows: list[tuple[int, str, bool, float | None]],
    plan: ShardingPlan,
    folder: Path,
) -> WrittenShard:
    """Read, prepare and write the recordings of one shard; a pure function of its arguments."""
    path = folder / shard_name(shard)
    records: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    with path.open("wb") as stream:
        writer = ShardWriter(stream, plan.signal, MICROVOLTS_PER_COUNT)
        for row, file, has_patient, rate in rows:
            try:
                ecg = _prepare_row(file, has_patient, rate, plan)
            except RecordError as error:
                left_out.append(LeftOut(row=row, reason=error.reason, message=str(error)))
                continue
            writer.write(row, ecg.counts_LS)
            digest = hashlib.sha256(ecg.counts_LS.tobytes()).hexdigest()
            records.append({"row": row, "flags": ";".join(ecg.flags), "sha256": digest})
        writer.close()
    offsets = find_arrays(path, len(plan.signal.leads), plan.signal.num_samples)
    for record in records:
        record |= {"shard": shard, "offset": offsets[key_of_row(record["row"])]}
    return WrittenShard(
        name=path.name,
        records=records,
        left_out=left_out,
        sha256=sha256_of(path),
        num_bytes=path.stat().st_size,
    )


def _prepare_row(file: str, has_patient: bool, rate_hz: float | None, plan: ShardingPlan) -> Any:
    if not has_patient:
        raise RecordError("no patient", "the patient's cell is empty, so no split is safe for it")
    layout = replace(plan.layout, sample_rate_hz=rate_hz or plan.layout.sample_rate_hz)
    recording = read_recording(find_recording(plan.signals, file), layout)
    stated = recording.sample_rate_hz
    if rate_hz is not None and not abs(stated - rate_hz) <= RATE_TOLERANCE * rate_hz:
        raise RecordError("rate", f"the file says {stated:g} Hz, declared are {rate_hz:g} Hz")
    return prepare(recording, plan.signal)


def _describe(
    cohort: Cohort, row_splits: list[str], shards: list[WrittenShard], plan: ShardingPlan, out: Path
) -> dict[str, Any]:
    left_out = [item for shard in shards for item in shard.left_out]
    records = pd.DataFrame([record for shard in shards for record in shard.records])
    if records.empty:
        raise ValueError(_all_left_out(left_out))
    index = build_index(records, cohort, row_splits)
    how = (
        {"column": plan.columns.split}
        if cohort.splits is not None
        else {"hash_of": "patient", "fractions": list(plan.fractions), "seed": plan.split_seed}
    )
    patient = plan.columns.patient or "none: each record taken for a patient of its own"
    provenance = {"patient": patient, "split": how}
    description = describe(index, shards, plan.signal, cohort.label_names, provenance)
    if cohort.splits is None:
        _check_no_empty_split(description["records"], plan)
    return write_beside_shards(out, index, description, left_out, cohort)


def _all_left_out(left_out: list[LeftOut]) -> str:
    reasons = Counter(item.reason for item in left_out).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    hint = ""
    if reasons[0][0] == "no patient":
        hint = "; if each record is a patient of its own, say so: --one-patient-per-record"
    return f"no record could be used: {counts}; first: {left_out[0].message}{hint}"


def _check_no_empty_split(counts: dict[str, int], plan: ShardingPlan) -> None:
    empty = [n for n, f in zip(splits.SPLITS, plan.fractions, strict=True) if f and not counts[n]]
    if empty:
        raise ValueError(
            f"split {' and '.join(empty)} would be empty ({sum(counts.values())} records, "
            f"fractions {plan.fractions}); give other --fractions or another --split-seed"
        )


def describe_outcome(description: dict[str, Any], out: Path) -> list[str]:
    """What was taken, what was left out and why, for a terminal."""
    left_out = description["left_out"]
    lines = [
        f"{split}: {description['records'][split]} records of {patients} patients"
        + "".join(
            f"; {name}: {counts[split]['positive']} positive, {counts[split]['missing']} missing"
            for name, counts in description["label_counts"].items()
        )
        for split, patients in description["patients"].items()
    ]
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.append(f"left out: {sum(left_out.values())} ({reasons}); see {out}/left_out.csv")
    return [*lines, f"written: {out}, number of shards: {len(description['shards'])}"]
