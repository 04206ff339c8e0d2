"""From a table and a folder of recordings to a set of shards (`hpc-ecg data shard`).

Nothing is lost: a row is in a shard, or in left_out.csv with its reason. Nothing is substituted.
The folder gets its name only when all of it is written. Until then the work lies beside it in
`.NAME.unfinished`, where the same command finds the shards that are done and makes the others.
"""

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import sync_all
from hpc_ecg.cohort import splits
from hpc_ecg.cohort.privacy import protect
from hpc_ecg.cohort.splits import Assignment, assign_splits
from hpc_ecg.cohort.table import NO_PATIENT, Cohort, read_cohort
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.slurm_jobs import run_on_slurm
from hpc_ecg.log import progress_bar
from hpc_ecg.shards import sharding_job as shard_job
from hpc_ecg.shards.format import shard_name
from hpc_ecg.shards.index import (
    LeftOut,
    Written,
    amplitude_of_cohort,
    build_index,
    describe,
    read_notes,
    write_beside_shards,
)
from hpc_ecg.shards.quality_report import QualityFacts, write_quality_report
from hpc_ecg.shards.sharding_job import ShardJob
from hpc_ecg.shards.sharding_plan import (
    ShardingPlan,
    check_layout,
    check_plan,
    jobs_of,
    made_from,
    rows_of,
    shard_numbers,
)

logger = logging.getLogger("hpc_ecg")

JobsOf = Callable[[Iterable[int]], Iterator[ShardJob]]
"""Of shards by their numbers. Made when asked for, so that not all rows are there at once."""


def shard_ecgs(plan: ShardingPlan) -> dict[str, Any]:
    """Write the shards of `plan`; returns the description that dataset.json holds.

    Raises ValueError for a wrong table, a patient or an identical signal in two splits, an empty
    split, or an output folder that is not empty; shards that are written by then are kept for the
    next try.
    """
    # 1. What was asked for, and whether it can be done.
    check_plan(plan)
    if plan.privacy.key_file is not None:
        plan = replace(plan, recordings=replace(plan.recordings, names_shown=False))
    cohort = read_cohort(plan.table, plan.columns)
    check_layout(cohort, plan)
    assignment = assign_splits(cohort, plan.split, plan.columns.split)
    _check_patients(cohort, plan)
    _check_no_empty_split(Counter(assignment.splits), assignment.how)
    public = protect(cohort, plan.privacy)

    # 2. The shards, as many at a time as there are workers; those of an earlier try are kept.
    out = plan.out.resolve()  # where a link points to, so that the link may stay
    with _claimed(out) as work:
        shards = shard_numbers(cohort, plan)
        jobs = partial(jobs_of, cohort, assignment, plan, work)
        _write_missing(jobs, shards, plan, work)

        # 3. All together: leaks, duplicates, counts; then the folder gets its name.
        written = read_notes(job.note for job in jobs(shards))
        if written.records.empty:
            shutil.rmtree(work / "notes")  # nothing to keep
            raise ValueError(_all_left_out(written.left_out))
        twins = out.with_name(f"{out.name}.duplicates.csv")
        index = build_index(written.records, public, assignment, twins)
        provenance = {"patient": _patient_note(plan), "split": assignment.how}
        provenance |= {"dates": plan.privacy.dates, "made_from": made_from(plan)}
        signal = plan.recordings.signal
        description = describe(index, written, signal, cohort.label_names, provenance)
        _check_no_empty_split(description["records"], assignment.how)
        folder = work / "shards"
        description = write_beside_shards(folder, index, description, written.left_out, public)
        write_quality_report(folder, _quality(index, written, cohort, assignment, plan))
        _publish(folder, out)
    return description


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """The folder of unfinished work, held by this process alone; it goes when the work is done."""
    work = out.with_name(f".{out.name}.unfinished")
    try:
        for folder in ("shards", "notes"):
            (work / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from None
    try:
        with FileLock(work / "lock", timeout=0):
            yield work
            shutil.rmtree(work)
    except Timeout:
        raise ValueError(f"--out {out}: another process is writing it ({work})") from None
    except BaseException:
        if any((work / "notes").glob("*.json")):
            logger.info("shards that are done are kept in %s; the same command goes on", work)
        elif not any((work / "slurm").glob("*.err")):  # what a job said is needed
            shutil.rmtree(work, ignore_errors=True)
        raise


def _quality(
    index: pd.DataFrame,
    written: Written,
    cohort: Cohort,
    assignment: Assignment,
    plan: ShardingPlan,
) -> QualityFacts:
    def picture_of(row: int) -> Recording | None:
        (of_table,) = rows_of(cohort, assignment, plan, range(row, row + 1))
        try:
            recording = shard_job.read_row(of_table, plan.recordings)
        except RecordError:
            return None
        if plan.recordings.names_shown:
            return recording
        return replace(recording, leads=tuple(normalize_lead(n) or "?" for n in recording.leads))

    return QualityFacts(
        records=len(cohort),
        index=index,
        left_out=written.left_out,
        amplitude=amplitude_of_cohort(index, plan.recordings.signal),
        picture_of=picture_of,
    )


def _write_missing(jobs: JobsOf, shards: range, plan: ShardingPlan, work: Path) -> None:
    names = {shard_name(shard) for shard in shards}
    for stray in (work / "shards").iterdir():  # of a try with more shards, or a killed merge
        if stray.name not in names:
            stray.unlink()
    todo = _not_done(jobs(shards))
    done = len(shards) - len(todo)
    if done:
        logger.info("%d of %d shards are done already", done, len(shards))
    with progress_bar("shards", len(shards), done) as advance:
        if plan.slurm is None or not todo:
            for _ in shard_job.write_shards(jobs(todo), min(plan.workers, len(todo))):
                advance()
            return
        for outcome in run_on_slurm(_deal(todo, jobs, plan), work / "slurm", plan.slurm):
            if outcome.error:
                raise ValueError(f"{outcome.name} failed: {outcome.error}; see {outcome.log}")
            advance(len(outcome.value))
    lost = _not_done(jobs(todo))
    if lost:
        raise ValueError(f"shards {lost[:5]} are not seen from here; is {work} on a shared disk?")


def _not_done(jobs: Iterable[ShardJob]) -> list[int]:
    return [job.shard for job in jobs if not shard_job.is_done(job)]


def _deal(todo: Sequence[int], jobs: JobsOf, plan: ShardingPlan) -> list[Job]:
    """Neighbouring shards to one job, so that each reads one part of the table's files."""
    assert plan.slurm is not None
    count = min(plan.slurm.jobs, len(todo))
    parts = [todo[k * len(todo) // count : (k + 1) * len(todo) // count] for k in range(count)]
    return [
        Job(name=f"shards-{part[0]}", function=_write_part, arguments=(list(jobs(part)),))
        for part in parts
    ]


def _write_part(jobs: Sequence[ShardJob]) -> list[int]:
    """In a job of Slurm: as many workers as it has CPUs, not as the machine that submitted it."""
    workers = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    return list(shard_job.write_shards(jobs, min(workers, len(jobs))))


def _publish(shards: Path, out: Path) -> None:
    sync_all(shards)
    if out.is_dir():
        out.rmdir()  # it is empty
    shards.rename(out)


def _patient_note(plan: ShardingPlan) -> str:
    return plan.columns.patient or "none: each record taken for a patient of its own"


def _check_patients(cohort: Cohort, plan: ShardingPlan) -> None:
    if (cohort.patients == NO_PATIENT).all():
        raise ValueError(
            f"column {plan.columns.patient} names no patient in any row; if each record is a "
            "patient of its own, say so: --one-patient-per-record"
        )


def _all_left_out(left_out: Sequence[LeftOut]) -> str:
    reasons = Counter(item.reason for item in left_out).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    first = f"; first: {left_out[0].message}" if left_out[0].message else ""
    return f"no record could be used: {counts}{first}"


def _check_no_empty_split(counts: Mapping[str, int], how: dict[str, Any]) -> None:
    if "column" in how:
        return
    wanted = dict(zip(splits.SPLITS, how.get("fractions", (1, 1, 1)), strict=True))
    empty = [name for name, part in wanted.items() if part and not counts.get(name)]
    if empty:
        raise ValueError(
            f"split {' and '.join(empty)} would be empty ({sum(counts.values())} records, "
            f"split by {how}); {_other_split(how)}"
        )


def _other_split(how: dict[str, Any]) -> str:
    """What to change, by what was asked for."""
    if "time" in how:
        return "are the dates in --time, --valid-from and --test-from right?"
    if "site" in how:
        return "give --valid-sites and --test-sites"
    return "give other --fractions or another --split-seed"
