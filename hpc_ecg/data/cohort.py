"""The user's table, one row an ECG: which columns mean what, checked before anything is read.

Comes in: a CSV, TSV or parquet file and the names of its columns. Goes out: a Cohort of plain
lists, one entry a row, in the table's order. An empty label is missing, never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

NO_PATIENT = ""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the table holds what; None: not in the table."""

    labels: list[str]
    patient: str | None
    file: str | None = None
    record: str | None = None
    split: str | None = None
    rate: str | None = None
    extra: list[str] = field(default_factory=lambda: ["age", "sex", "time"])


@dataclass(frozen=True, kw_only=True)
class Cohort:
    files: list[str]
    records: list[str]
    patients: list[str]
    labels_NK: np.ndarray
    label_names: list[str]
    splits: list[str] | None
    rates_hz: list[float | None] | None
    """None in an empty cell."""
    extra: pd.DataFrame

    def __len__(self) -> int:
        return len(self.files)


def read_cohort(path: Path, columns: Columns) -> Cohort:
    """Read the table as text and take its columns apart.

    Raises ValueError for a missing file or column, a label that is not a number or is asked for
    twice, records listed twice, or an empty table.
    """
    if len(set(columns.labels)) < len(columns.labels):
        raise ValueError(f"--label: {', '.join(columns.labels)} names a column twice")
    table = read_table(path)
    file = _or_else(columns.file, "file" if "file" in table else "record")
    record = _or_else(columns.record, "record" if "record" in table else file)
    wanted = [file, record, *columns.labels]
    # '' is a column that is missing (`--patient "$UNSET"`), not a column that was not asked for
    wanted += [n for n in (columns.patient, columns.split, columns.rate) if n is not None]
    check_columns(table, wanted, path)
    if len(table) == 0:
        raise ValueError(f"{path}: the table has no rows")
    _check_unique(table[record], path, record)
    patients = table[_or_else(columns.patient, record)]
    return Cohort(
        files=table[file].tolist(),
        records=table[record].tolist(),
        patients=patients.str.strip().tolist(),
        labels_NK=np.stack([_numbers(table[n], path, n) for n in columns.labels], axis=1),
        label_names=columns.labels,
        splits=None if columns.split is None else table[columns.split].tolist(),
        rates_hz=None if columns.rate is None else _rates(table[columns.rate], path, columns.rate),
        extra=table[[name for name in columns.extra if name in table]],
    )


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV or parquet file, every cell as text, empty cells as ''."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; expected a .csv, .tsv or .parquet file")
    try:
        if path.suffix == ".parquet":
            # nullable: whole numbers with gaps stay whole (patient 17 must not become 17.0)
            table = pd.read_parquet(path, dtype_backend="numpy_nullable")
            return table.astype(object).where(table.notna(), "").astype(str)
        separator = "\t" if path.suffix == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for an index
            raise ValueError("its rows have more cells than its header")
        return table
    except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
        raise ValueError(
            f"{path}: cannot be read as a table: {str(error).splitlines()[0]}"
        ) from None


def check_columns(table: pd.DataFrame, wanted: Sequence[str], path: Path) -> None:
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )


def _check_unique(records: pd.Series, path: Path, name: str) -> None:
    twice = np.flatnonzero(records.duplicated().to_numpy())
    if len(twice):
        raise ValueError(
            f"{path}: column {name}, row {twice[0] + 1}: this record is listed before "
            f"({len(twice)} such rows); each row must be a record of its own"
        )


def _or_else(name: str | None, default: str) -> str:
    return default if name is None else name


def _rates(column: pd.Series, path: Path, name: str) -> list[float | None]:
    return [None if np.isnan(rate) else rate for rate in _numbers(column, path, name).tolist()]


def _numbers(column: pd.Series, path: Path, name: str) -> np.ndarray:
    """Float64 [N]; an empty cell is NaN (missing)."""
    text = column.str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~np.isfinite(numbers) & (text != "").to_numpy())
    if len(wrong):
        raise ValueError(
            f"{path}: column {name}, row {wrong[0] + 1}: {text.iloc[wrong[0]]!r} is not a number "
            f"({len(wrong)} such rows); write 1 or 0, a number for regression, nothing if unknown"
        )
    return numbers
