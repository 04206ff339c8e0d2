"""`hpc-ecg data repair`: a damaged or missing shard made again from the sources.

A shard is a pure function of its rows, so what comes out must be what dataset.json describes, byte
for byte; if it is not, the sources have changed and nothing is replaced.
"""

import tempfile
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import sha256_of
from hpc_ecg.cohort.splits import assign_splits
from hpc_ecg.cohort.table import read_cohort
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.shard_task import write_shard
from hpc_ecg.shards.sharding_plan import plan_from_shards, shard_tasks


def repair(folder: Path, table: Path | None = None, signals: Path | None = None) -> list[str]:
    """Mend every shard that is missing or not as written; returns their names.

    `table` and `signals`: where they are now, if they have moved. ValueError if they have changed.
    """
    shards = read_shard_set(folder, check_sizes=False)
    damaged = [
        number
        for number, about in enumerate(shards.description["shards"])
        if not _is_as_written(folder / about["name"], about)
    ]
    if not damaged:
        return []
    for number in damaged:
        path = shards.shard_path(number)
        if path.is_dir():
            raise ValueError(f"{path} is a folder in a shard's place; move it away, then repair")
    plan = plan_from_shards(shards, table, signals)
    cohort = read_cohort(plan.table, plan.columns)
    assignment = assign_splits(cohort, plan.split, plan.columns.split)
    # beside the old one, so that the new one takes its place in one step
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".repair-") as work:
        for name in ("shards", "notes"):
            (Path(work) / name).mkdir()
        for job in shard_tasks(cohort, assignment, plan, Path(work), damaged):
            about = shards.description["shards"][job.shard]
            write_shard(job)
            if not _is_as_written(job.tar, about):
                raise ValueError(
                    f"{folder / about['name']} cannot be made again: {plan.table} or the "
                    f"recordings in {plan.recordings.signals} have changed; write the shards again"
                )
            job.tar.replace(folder / about["name"])
    return [shards.description["shards"][number]["name"] for number in damaged]


def _is_as_written(path: Path, about: dict[str, Any]) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == about["bytes"]
        and sha256_of(path) == about["sha256"]
    )
