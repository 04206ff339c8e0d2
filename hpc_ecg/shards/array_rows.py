"""Which row of an array belongs to which row of the table (`--array`).

By position only if nothing speaks against it: the counts are equal, and no array of identifiers
beside the recordings says otherwise. `--array-id` joins by such an array.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hpc_ecg.cohort.identifiers import check_spellings, comparable
from hpc_ecg.cohort.table import Cohort
from hpc_ecg.cohort.table_files import read_table
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.ecg.array_files import read_beside
from hpc_ecg.ecg.files import WITHIN, find_recording, name_of_row
from hpc_ecg.shards.sharding_plan import ShardingPlan


def match_rows(cohort: Cohort, plan: ShardingPlan, is_new: bool = True) -> Cohort:
    """The cohort with the right row of `--array` for each record. `is_new`: check positions.

    ValueError: unequal counts, rows outside the array, identifiers that are missing, stand twice or
    contradict the order.
    """
    array, name = plan.columns.array, plan.columns.array_id
    if array is None or not (is_new or name):
        return cohort
    try:
        location = find_recording(plan.recordings.signals, array)
        count, beside = read_beside(location, plan.recordings.layout)
    except (ValueError, OSError):
        if name is None:
            return cohort  # its rows are left out, with the reason
        raise
    table = read_table(plan.table)
    if name is None:
        _check_positions(cohort, count, beside, table, plan)
        return cohort
    if name not in beside:
        listed = ", ".join(beside) or "none"
        near = did_you_mean(name, beside)
        raise ValueError(f"--array-id {name}: arrays of {count} values in {array}: {listed}{near}")
    rows = _find_rows(beside[name], table, plan)
    files = pd.Series([name_of_row(array, row) for row in rows], name=array, dtype=str)
    records = files if cohort.records is cohort.files else cohort.records
    return replace(cohort, files=files, records=records)


def _check_positions(
    cohort: Cohort,
    count: int,
    beside: dict[str, list[str]],
    table: pd.DataFrame,
    plan: ShardingPlan,
) -> None:
    what, hint = f"--array {plan.columns.array}", ""
    held = {n: found[0] for n, ids in beside.items() if (found := _held_by(ids, table, n))}
    for name, column in list(held.items())[:1]:
        hint = f"; its array {name} holds what column {column} does: join by --array-id {name}"
    if plan.columns.array_row is None and count != len(table):
        raise ValueError(
            f"{what} has {count} recordings and the table {len(table)} rows, so they cannot be "
            f"joined by position; give --array-row COLUMN{hint}"
        )
    rows_N = cohort.files.str.rpartition(WITHIN)[2].astype(int).to_numpy()
    if outside := np.flatnonzero(rows_N >= count).tolist():
        raise ValueError(
            f"{what} has the rows 0 to {count - 1}, but column {plan.columns.array_row}, row "
            f"{outside[0] + 1}, says {rows_N[outside[0]]} ({len(outside)} such rows){hint}"
        )
    wrong = [
        (
            pd.Series(beside[name])[rows_N].map(comparable).array != table[column].map(comparable)
        ).sum()
        for name, column in held.items()
    ]
    if wrong and all(wrong):
        raise ValueError(
            f"{what}: {wrong[0]} of {len(table)} rows would get another's signal{hint}"
        )


def _held_by(ids: Sequence[str], table: pd.DataFrame, name: str) -> list[str]:
    """The columns with a value for each row alone, of which `ids` holds at least half. A counter is
    held by its namesake alone."""
    keys = [comparable(value) for value in ids]
    known = set(keys)
    is_counter = any(keys == [str(n + first) for n in range(len(keys))] for first in (0, 1))
    if len(known) < 0.9 * len(keys):
        return []
    namesake = name.rpartition("/")[2].removesuffix(".npy")
    enough = max(2, min(len(known), len(table)) / 2)
    columns = [str(c) for c in table if table[c].is_unique and not (is_counter and c != namesake)]
    return [name for name in columns if table[name].map(comparable).isin(known).sum() >= enough]


def _find_rows(ids: Sequence[str], table: pd.DataFrame, plan: ShardingPlan) -> list[int]:
    """The row of each table row's identifier in the array of `--array-id`."""
    name = str(plan.columns.array_id)
    namesake = name.rpartition("/")[2].removesuffix(".npy")
    columns = [namesake] if namesake in table else _held_by(ids, table, name)
    if not columns:
        raise ValueError(f"--array-id {name}: no column of {plan.table} holds these identifiers")
    values, stored = table[columns[0]].str.strip(), pd.Series(ids)
    both = {f"column {columns[0]}": values, f"array {name}": stored}
    check_spellings(both, plan.columns.ids_as_written, shown=plan.recordings.names_shown)
    times = values.map(stored.value_counts()).fillna(0)
    wrong = np.flatnonzero((times != 1) | values.duplicated(keep=False)).tolist()
    if wrong:
        raise ValueError(
            f"--array-id {name}: {len(wrong)} of {len(table)} rows have no recording of their own, "
            f"like row {wrong[0] + 1}: {name} holds its {columns[0]} {times.iloc[wrong[0]]:.0f} "
            "times; correct these rows, or leave them out of the table"
        )
    return values.map({value: row for row, value in enumerate(ids)}).astype(int).tolist()
