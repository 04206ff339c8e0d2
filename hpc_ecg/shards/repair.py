"""`hpc-ecg data repair`: make damaged or missing shards again from the sources.

A shard is a pure function of its rows, so the new file must be what dataset.json describes, byte
for byte. If it is not, the sources have changed, and nothing is replaced.
"""

import tempfile
from contextlib import closing
from pathlib import Path

from hpc_ecg.cohort.splits import assign_splits
from hpc_ecg.cohort.table import read_cohort
from hpc_ecg.log import tracked
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.array_rows import match_rows
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.integrity import find_damage
from hpc_ecg.shards.shard_task import write_shard
from hpc_ecg.shards.sharding_plan import plan_from_shards, shard_tasks


def repair(folder: Path, table: Path | None = None, signals: Path | None = None) -> list[str]:
    """Replace every shard that is missing or damaged; returns their names.

    `table` and `signals` say where the sources are now, if they have moved. ValueError if the
    sources have changed.
    """
    shards = read_shard_set(folder, check_sizes=False)
    damaged = list(find_damage(shards))
    if not damaged:
        return []
    for number in damaged:
        path = shards.shard_path(number)
        if path.is_dir():
            raise ValueError(f"{path} is a folder in a shard's place; move it away, then repair")
    try:
        plan = plan_from_shards(shards, table, signals)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}/dataset.json: made_from is damaged ({error})") from None
    cohort = read_cohort(plan.table, plan.columns, needs_people=False)
    cohort = match_rows(cohort, plan, is_new=False)
    assignment = assign_splits(cohort, plan.split, plan.columns.split)
    # on the same disk as the old shard, so that the new one replaces it in one step
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".repair-") as work:
        for name in ("shards", "notes"):
            (Path(work) / name).mkdir()
        tasks = shard_tasks(cohort, assignment, plan, Path(work), damaged)
        with closing(tracked("shards made again", tasks, len(damaged))) as counted:
            for task in counted:
                write_shard(task)
                path = shards.shard_path(task.shard)
                if sha256_of(task.tar) != shards.description["shards"][task.shard]["sha256"]:
                    raise ValueError(
                        f"{path} cannot be made again: {plan.table} or the recordings in "
                        f"{plan.recordings.signals} have changed; write the shards again"
                    )
                task.tar.replace(path)
    return [shards.shard_path(number).name for number in damaged]
