"""The plan of `hpc-ecg data shard`: checked, cut into a task per shard, stored in dataset.json and
read back from there, so that a damaged shard can be made again.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.atomic_io import foreign_files
from hpc_ecg.cohort.privacy import Privacy
from hpc_ecg.cohort.splits import Assignment, SplitPlan
from hpc_ecg.cohort.table import NO_PATIENT, Cohort, Columns
from hpc_ecg.ecg.files import ArrayLayout, needs_layout
from hpc_ecg.ecg.leads import order_rows
from hpc_ecg.ecg.preprocess import MAX_RATE_HZ, MIN_RATE_HZ, RATES, check_spec
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.jobs.settings import SlurmJobs
from hpc_ecg.shards.description import COLUMNS, FOLD_PREFIX, LABEL_PREFIX, OPTIONAL
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.shard_task import Recordings, ShardRow, ShardTask


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What the user asked `hpc-ecg data shard` to do."""

    table: Path
    out: Path
    columns: Columns
    recordings: Recordings
    split: SplitPlan = field(default_factory=SplitPlan)
    privacy: Privacy = field(default_factory=Privacy)
    rate_hz: float | None = None
    """Rate that every file must have; None: the column of rates, or what each file says."""
    regression: bool = False
    """Labels are numbers to predict, even where they have few values."""
    layout_given: tuple[str, ...] = ()
    """The parts of the array layout (axes, leads, unit) that the user gave."""
    records_per_shard: int = 1000
    workers: int = 1
    slurm: SlurmJobs | None = None


NO_PATIENT_LEFT_OUT = ("no patient", "the patient's cell is empty, so no split is safe for it")
METADATA = ("left_out.csv", "index.parquet", "dataset.json", "quality.csv", "quality.html")
NEW_COLUMNS = ("array_id", "ids_as_written")
"""Stored only if they are set: 0.1 has none."""
MAX_CODES = 5
"""A label of more values is a number to predict."""


def check_plan(plan: ShardingPlan) -> None:
    """Raise ValueError for what cannot be done, before any file is read."""
    recordings = plan.recordings
    if not recordings.signals.is_dir():
        raise ValueError(f"--signals {recordings.signals}: no such folder")
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
        raise ValueError(f"--rate must be {RATES}, or name a column, got {plan.rate_hz:g}")
    try:
        order_rows(recordings.layout.leads, recordings.signal.leads)
    except RecordError as error:
        raise ValueError(f"--leads: {error}") from None
    check_spec(recordings.signal)
    for name in plan.columns.keep:
        if name in COLUMNS | OPTIONAL or name.startswith((LABEL_PREFIX, FOLD_PREFIX)):
            raise ValueError(
                f"--keep {name}: the index has a column {name} of its own; rename it in the table"
            )


def check_cohort(cohort: Cohort, plan: ShardingPlan) -> None:
    """Raise ValueError if no row names a patient, a yes/no label has a third value, such as 2 or 9
    for unknown, or a layout is given and no recording is a bare array."""
    if (cohort.patients == NO_PATIENT).all():
        raise ValueError(
            f"column {plan.columns.patient} names no patient in any row; if each record is a "
            "patient of its own, give --one-patient-per-record"
        )
    for name, label_N in zip(cohort.label_names, cohort.labels_NK.T, strict=True):
        seen = set(np.unique(label_N[~np.isnan(label_N)]).tolist())
        if not plan.regression and seen & {0, 1} and not seen <= {0, 1} and len(seen) <= MAX_CODES:
            raise ValueError(
                f"label {name} has the values {', '.join(f'{v:g}' for v in sorted(seen))}: a "
                "yes/no label is 1, 0 or empty (missing); numbers to predict need --regression"
            )
    signals = plan.recordings.signals
    if plan.layout_given and not any(needs_layout(signals, file) for file in cohort.files):
        raise ValueError(
            f"--{plan.layout_given[0]} is for arrays (.npy, .mat, .h5 …); this table has none, and "
            "its files state their layout themselves; leave the option out"
        )


def check_work_folder(work: Path) -> None:
    """ValueError if the folder of unfinished work, which is deleted at the end, holds more."""
    known = {
        work: ("shards", "notes", "slurm", "lock"),
        work / "shards": ("shard-*.tar", *METADATA, ".*.partial"),
        work / "notes": ("shard-*.json", ".*.partial"),
    }
    for folder, names in known.items():
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ValueError(f"{folder} is in the way; move it away, or give another --out")
        if folder.is_dir() and (foreign := foreign_files(folder, *names)):
            raise ValueError(f"{folder} holds {foreign[0]}, which is not ours; move it away")


def shard_tasks(
    cohort: Cohort, assignment: Assignment, plan: ShardingPlan, work: Path, shards: Iterable[int]
) -> Iterator[ShardTask]:
    """A task for each of these shards; shard k holds rows kS to (k+1)S - 1 of the table."""
    size = plan.records_per_shard
    for shard in shards:
        rows = range(shard * size, min((shard + 1) * size, len(cohort)))
        yield ShardTask(
            shard=shard,
            rows=shard_rows(cohort, assignment, plan, rows),
            recordings=plan.recordings,
            work=work,
        )


def shard_rows(
    cohort: Cohort, assignment: Assignment, plan: ShardingPlan, rows: range
) -> list[ShardRow]:
    part = slice(rows.start, rows.stop)
    files, patients = cohort.files.iloc[part], cohort.patients.iloc[part]
    rates_hz = [plan.rate_hz] * len(rows)
    if cohort.rates_hz is not None:
        rates_hz = [None if math.isnan(rate) else rate for rate in cohort.rates_hz[part].tolist()]
    return [
        ShardRow(
            row=row,
            file=file,
            rate_hz=rate_hz,
            left_out=assignment.left_out.get(row) if patient != NO_PATIENT else NO_PATIENT_LEFT_OUT,
        )
        for row, file, patient, rate_hz in zip(rows, files, patients, rates_hz, strict=True)
    ]


def describe_plan(plan: ShardingPlan) -> dict[str, Any]:
    """What `hpc-ecg data repair` needs to make a shard again: `made_from` in dataset.json."""
    recordings = asdict(plan.recordings)
    del recordings["signal"]  # it stands at the top of dataset.json
    columns = {n: v for n, v in asdict(plan.columns).items() if v or n not in NEW_COLUMNS}
    return {
        "table": str(plan.table.resolve()),
        "columns": columns,
        "recordings": recordings | {"signals": str(plan.recordings.signals.resolve())},
        "split": asdict(plan.split),
        "rate_hz": plan.rate_hz,
        "records_per_shard": plan.records_per_shard,
    }


def plan_from_shards(shards: ShardSet, table: Path | None, signals: Path | None) -> ShardingPlan:
    """The plan that made these shards; `table` and `signals`, if given, replace what it says."""
    made_from = shards.description["made_from"]
    recordings = made_from["recordings"]
    return ShardingPlan(
        table=table or Path(made_from["table"]),
        out=shards.folder,
        columns=Columns(**made_from["columns"] | {"ids_as_written": True}),  # compared before
        recordings=Recordings(
            signals=signals or Path(recordings["signals"]),
            layout=ArrayLayout(**_with_tuples(recordings["layout"])),
            signal=shards.signal,
            missing_leads=recordings["missing_leads"],
            clip=recordings.get("clip", False),  # older versions did not store it
        ),
        split=SplitPlan(**_with_tuples(made_from["split"])),
        rate_hz=made_from["rate_hz"],
        records_per_shard=made_from["records_per_shard"],
    )


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON stores tuples as lists."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
