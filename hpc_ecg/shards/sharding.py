"""From a table and a folder of recordings to a set of shards (`hpc-ecg data shard`).

Nothing is lost: each row is in a shard, or in left_out.csv with its reason. Nothing is substituted.
The output folder gets its name only when the set is complete. Until then the work lies beside it in
`.NAME.unfinished`, where the same command finds the finished shards and writes only the others.
"""

import contextlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import sync_all
from hpc_ecg.cohort.censoring import read_censoring
from hpc_ecg.cohort.privacy import deidentify
from hpc_ecg.cohort.splits import SPLITS, Assignment, assign_splits
from hpc_ecg.cohort.table import Cohort, read_cohort
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.slurm_jobs import run_on_slurm
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.shards import shard_task
from hpc_ecg.shards.array_rows import match_rows
from hpc_ecg.shards.format import shard_name
from hpc_ecg.shards.index import (
    LeftOut,
    WrittenShards,
    amplitude_of_cohort,
    build_description,
    build_index,
    read_notes,
    write_metadata,
)
from hpc_ecg.shards.quality_report import QualityFacts, write_quality_report
from hpc_ecg.shards.shard_task import ShardTask
from hpc_ecg.shards.sharding_plan import (
    ShardingPlan,
    check_cohort,
    check_plan,
    check_work_folder,
    describe_plan,
    shard_rows,
    shard_tasks,
)

MakeTasks = Callable[[Iterable[int]], Iterator[ShardTask]]
"""Shard numbers to tasks, made one by one: the rows of all shards need not fit in memory."""


def shard_ecgs(plan: ShardingPlan) -> dict[str, Any]:
    """Write the shards of `plan`; returns the description that dataset.json holds.

    Raises ValueError for a wrong table, a patient or an identical signal in two splits, an empty
    split, or an output folder that is not empty. Shards that are written by then are kept for the
    next try.
    """
    # 1. Check what was asked for.
    check_plan(plan)
    if plan.privacy.key_file is not None:
        plan = replace(plan, recordings=replace(plan.recordings, names_shown=False))
    shown = plan.recordings.names_shown and plan.privacy.dates == "keep"
    cohort = match_rows(read_cohort(plan.table, plan.columns, shown), plan)
    check_cohort(cohort, plan)
    assignment = assign_splits(cohort, plan.split, plan.columns.split)
    _check_no_empty_split(Counter(assignment.splits), assignment.policy)
    censoring = read_censoring(plan.table, cohort.label_names, assignment.policy)
    public_cohort = deidentify(cohort, plan.privacy)

    # 2. Write the shards that an earlier try has not finished.
    out = plan.out.resolve()  # so that a link stays a link
    with _work_folder(out) as work:
        make_tasks = partial(shard_tasks, cohort, assignment, plan, work)
        shards = range(math.ceil(len(cohort) / plan.records_per_shard))
        _write_missing(make_tasks, shards, plan, work)

        # 3. Look at all records together: leaks, duplicates, counts.
        written = read_notes(task.note for task in make_tasks(shards))
        if written.records.empty:
            shutil.rmtree(work / "notes")  # nothing to keep
            raise ValueError(_all_left_out(written.left_out))
        duplicates_csv = out.with_name(f"{out.name}.duplicates.csv")
        index = build_index(written.records, public_cohort, assignment, duplicates_csv)
        provenance = {
            "patient": plan.columns.patient or "none: each record taken for a patient of its own",
            "split": assignment.policy,
            "dates": plan.privacy.dates,
            "made_from": describe_plan(plan),
        } | ({"censoring": censoring} if censoring else {})
        description = build_description(
            index, written, plan.recordings.signal, cohort.label_names, provenance
        )
        _check_no_empty_split(description["records"], assignment.policy)

        # 4. Write index, description and report; then the folder gets its name.
        folder = work / "shards"
        description = write_metadata(folder, index, description, written.left_out, public_cohort)
        write_quality_report(folder, _quality_facts(index, written, cohort, assignment, plan))
        _publish(folder, out)
    for remark in cohort.remarks:
        logger.info(remark)
    return description


@contextlib.contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder of unfinished work, locked by this process and removed when the work is done."""
    work = out.with_name(f".{out.name}.unfinished")
    check_work_folder(work)
    try:
        for folder in ("shards", "notes"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        work.chmod(work.stat().st_mode & 0o750)  # notes and Slurm's files name people
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
            logger.info("finished shards are kept in %s; run the same command to go on", work)
        elif not any((work / "slurm").glob("*.err")):  # the logs of failed jobs stay
            shutil.rmtree(work, ignore_errors=True)
        raise


def _quality_facts(
    index: pd.DataFrame,
    written: WrittenShards,
    cohort: Cohort,
    assignment: Assignment,
    plan: ShardingPlan,
) -> QualityFacts:
    def read_source(row: int) -> Recording | None:
        (shard_row,) = shard_rows(cohort, assignment, plan, range(row, row + 1))
        try:
            recording = shard_task.read_row(shard_row, plan.recordings)
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
        read_source=read_source,
        remarks=cohort.remarks,
        cohort=f"{plan.table.name}, {date.fromtimestamp(plan.table.stat().st_mtime)}",
        signal=plan.recordings.signal,
    )


def _write_missing(make_tasks: MakeTasks, shards: range, plan: ShardingPlan, work: Path) -> None:
    names = {shard_name(shard) for shard in shards}
    for path in (work / "shards").iterdir():
        if path.name not in names:  # from a try with more shards, or one killed in its last phase
            path.unlink()
    missing = _unfinished(make_tasks(shards))
    num_done = len(shards) - len(missing)
    if num_done:
        logger.info("%d of %d shards are done already", num_done, len(shards))
    size = plan.records_per_shard
    with progress_bar("shards", len(shards), num_done, ecgs_per_step=size) as advance:
        if plan.slurm is None or not missing:
            for _ in shard_task.write_shards(make_tasks(missing), min(plan.workers, len(missing))):
                advance()
            return
        jobs = _slurm_jobs(missing, make_tasks, plan.slurm.jobs)
        show = partial(advance, 0)
        for outcome in run_on_slurm(jobs, work / "slurm", plan.slurm, each_poll=show):
            if outcome.error:
                raise ValueError(f"{outcome.name} failed: {outcome.error}; see {outcome.log}")
            advance(len(outcome.value))
    unseen = _unfinished(make_tasks(missing))
    if unseen:
        raise ValueError(
            f"shards {unseen[:5]} were written but are not visible on this machine; "
            f"is {work} on a shared disk?"
        )


def _unfinished(tasks: Iterable[ShardTask]) -> list[int]:
    return [task.shard for task in tasks if not shard_task.is_done(task)]


def _slurm_jobs(shards: Sequence[int], make_tasks: MakeTasks, num_jobs: int) -> list[Job]:
    """Give each job neighbouring shards, so that it reads one part of the table's files."""
    num_jobs = min(num_jobs, len(shards))
    edges = [k * len(shards) // num_jobs for k in range(num_jobs + 1)]
    parts = [shards[start:end] for start, end in pairwise(edges)]
    return [
        Job(name=f"shards-{part[0]}", function=_write_part, arguments=(list(make_tasks(part)),))
        for part in parts
    ]


def _write_part(tasks: Sequence[ShardTask]) -> list[int]:
    """Write shards in a Slurm job, with a worker for each CPU of the job."""
    workers = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    return list(shard_task.write_shards(tasks, min(workers, len(tasks))))


def _publish(folder: Path, out: Path) -> None:
    sync_all(folder)
    if out.is_dir():
        out.rmdir()  # it is empty
    folder.rename(out)


def _all_left_out(left_out: Sequence[LeftOut]) -> str:
    reasons = Counter(item.reason for item in left_out).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    first = f"; first: {left_out[0].message}" if left_out[0].message else ""
    return f"no record could be used: {counts}{first}"


def _check_no_empty_split(counts: Mapping[str, int], how: dict[str, Any]) -> None:
    if "column" in how:
        return
    fractions = dict(zip(SPLITS, how.get("fractions", (1, 1, 1)), strict=True))
    empty = [name for name, fraction in fractions.items() if fraction and not counts.get(name)]
    if not empty:
        return
    if "time" in how:
        remedy = "are the dates in --time, --valid-from and --test-from right?"
    elif "site" in how:
        remedy = "give --valid-sites and --test-sites"
    else:
        remedy = "give other --fractions or another --split-seed"
    raise ValueError(
        f"split {' and '.join(empty)} would be empty ({sum(counts.values())} records, "
        f"split by {how}); {remedy}"
    )
