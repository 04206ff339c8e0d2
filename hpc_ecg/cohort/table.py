"""The user's table, one row per ECG: which column means what, checked before anything else is read.

From a CSV, TSV or parquet file (or a manifest) and the names of its columns, makes a Cohort: one
entry per row, in the table's order. An empty label is missing, never 0.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.cohort.manifest import is_manifest, read_manifest
from hpc_ecg.ecg.files import name_of_row
from hpc_ecg.reporting.escape import from_csv

NO_PATIENT = ""
EMPTY_CELLS = ("nan", "na", "n/a", "null", "none", "<na>")
"""What programs write into an empty cell; no patient either."""
ROWS_PER_CHUNK = 10_000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the table holds what; None: not in the table."""

    labels: list[str]
    patient: str | None
    file: str | None = None
    """Default: `file`, else `record`."""
    record: str | None = None
    """Default: `record`, if the table has it, else the file."""
    split: str | None = None
    rate: str | None = None
    time: str | None = None
    """Default: `time`, if the table has it."""
    site: str | None = None
    """Default: `site`, if the table has it."""
    array: str | None = None
    """One file that holds all recordings."""
    array_row: str | None = None
    """The row in `array`; default: the row of the table."""
    keep: list[str] = field(default_factory=list)
    """More columns for the index, as text."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Text stays in pandas' own columns: as Python strings it would take four times the memory."""

    files: pd.Series
    records: pd.Series
    patients: pd.Series
    labels_NK: np.ndarray
    label_names: list[str]
    splits: pd.Series | None
    rates_hz: np.ndarray | None
    """NaN in an empty cell."""
    extra: pd.DataFrame
    """Columns for the index: age, sex, time and site if the table has them, and `Columns.keep`."""

    def __len__(self) -> int:
        return len(self.files)


def read_cohort(path: Path, columns: Columns) -> Cohort:
    """Read the table as text and take its columns apart.

    ValueError: a missing file or column, a label that is not a number or is named twice, a record
    that is listed twice, an empty table.
    """
    if len(set(columns.labels)) < len(columns.labels):
        raise ValueError(f"--label: {', '.join(columns.labels)} names a column twice")
    table = read_table(path)
    columns = _with_defaults(columns, table)
    # only None is optional: '' is a column that is missing (`--patient "$UNSET"`)
    wanted = [columns.file if columns.array is None else columns.array_row, columns.record]
    wanted += [*columns.labels, columns.patient, columns.split, columns.rate, columns.time]
    wanted += [columns.site, *columns.keep]
    check_columns(table, [name for name in wanted if name is not None], path)
    if len(table) == 0:
        raise ValueError(f"{path}: the table has no rows")
    files = table[columns.file] if columns.array is None else _array_rows(table, columns, path)
    records = files if columns.record is None else table[columns.record]
    check_unique(records, path)
    extra = {"age": "age", "sex": "sex", "time": columns.time, "site": columns.site}
    extra |= {name: name for name in columns.keep}
    return Cohort(
        files=files,
        records=records,
        patients=patient_ids(records if columns.patient is None else table[columns.patient]),
        labels_NK=np.stack([_numbers(table[name], path) for name in columns.labels], axis=1),
        label_names=columns.labels,
        splits=None if columns.split is None else table[columns.split],
        rates_hz=None if columns.rate is None else _numbers(table[columns.rate], path),
        extra=pd.DataFrame(
            {name: table[source].str.strip() for name, source in extra.items() if source in table},
            index=table.index,
        ),
    )


def patient_ids(column: pd.Series) -> pd.Series:
    """The identifiers without whitespace at their ends; NO_PATIENT for an empty cell."""
    patients = column.str.strip()
    return patients.mask(patients.str.lower().isin(EMPTY_CELLS), NO_PATIENT)


def _with_defaults(columns: Columns, table: pd.DataFrame) -> Columns:
    """The columns, with the defaults that this table has."""
    defaults = {name: name for name in ("record", "time", "site") if name in table}
    defaults["file"] = "file" if "file" in table else "record"
    unset: dict[str, Any] = {n: d for n, d in defaults.items() if getattr(columns, n) is None}
    return replace(columns, **unset)


def _array_rows(table: pd.DataFrame, columns: Columns, path: Path) -> pd.Series:
    """The name of each row's recording in `columns.array`."""
    rows = np.arange(len(table))
    if columns.array_row is not None:
        rows = _numbers(table[columns.array_row], path)
        if not (rows >= 0).all() or (rows % 1).any():
            raise ValueError(f"{path}: column {columns.array_row} must hold rows: 0, 1, 2, …")
    names = [name_of_row(str(columns.array), int(row)) for row in rows]
    return pd.Series(names, name=columns.array, dtype=str)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV or parquet file or a manifest: every cell is text, an empty one ''."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; expected a .csv, .tsv or .parquet file")
    if is_manifest(path):
        return read_manifest(path, read_table).table.astype(str)
    try:
        if path.suffix == ".parquet":
            # nullable: whole numbers with gaps stay whole (patient 17 must not become 17.0)
            table = pd.read_parquet(path, dtype_backend="numpy_nullable")
            return table.astype(object).where(table.notna(), "").astype(str)
        separator = "\t" if path.suffix == ".tsv" else ","
        _check_header(path, separator)
        options: dict[str, Any] = {"sep": separator, "dtype": str, "keep_default_na": False}
        # in chunks, since each cell is a Python string for a while
        table = pd.concat(pd.read_csv(path, chunksize=ROWS_PER_CHUNK, **options))
        if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for an index
            raise ValueError("its rows have more cells than its header")
        return from_csv(table)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text in UTF-8; save the table in UTF-8") from None
    except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot be read as a table: {reason}") from None


def _check_header(path: Path, separator: str) -> None:
    """Refuse a repeated name, which pandas would change, and semicolons."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file, delimiter=separator), [])
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"its header names column {twice[0]!r} twice")
    if len(names) == 1 and ";" in names[0]:
        raise ValueError("its columns are separated by semicolons; save it with commas")


def check_columns(table: pd.DataFrame, wanted: Sequence[str], path: Path) -> None:
    wanted = list(dict.fromkeys(wanted))
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )


def check_unique(column: pd.Series, path: Path) -> None:
    twice = column.index[column.duplicated()]
    if len(twice):
        raise ValueError(
            f"{path}: column {column.name}, row {twice[0] + 1} repeats an earlier row "
            f"({len(twice)} such rows); each value may appear once"
        )


def _numbers(column: pd.Series, path: Path) -> np.ndarray:
    """Float64 [N]; an empty cell is NaN."""
    text = column.str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~np.isfinite(numbers) & (text != "").to_numpy())
    if len(wrong):
        raise ValueError(
            f"{path}: column {column.name}, row {wrong[0] + 1}: {text.iloc[wrong[0]]!r} is not a "
            f"number ({len(wrong)} such rows); write 1 or 0, a number for regression, nothing if "
            "unknown"
        )
    return numbers
