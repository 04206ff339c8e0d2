"""The user's table, one row an ECG: which columns mean what, checked before anything is read.

Comes in: a CSV, TSV or parquet file and the names of its columns. Goes out: a Cohort of plain
lists, one entry a row, in the table's order. An empty label is missing, never 0.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hpc_ecg.cohort.manifest import is_manifest, read_manifest
from hpc_ecg.ecg.files import name_of_row

NO_PATIENT = ""
EMPTY_CELLS = ("nan", "na", "n/a", "null", "none", "<na>")
"""What programs write for an empty cell: no patient either."""
ROWS_PER_CHUNK = 10_000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the table holds what; None: not in the table."""

    labels: list[str]
    patient: str | None
    file: str | None = None
    record: str | None = None
    split: str | None = None
    rate: str | None = None
    time: str | None = None
    """Default: `time`, if the table has it."""
    site: str | None = None
    """Default: `site`, if the table has it."""
    array: str | None = None
    """One file that holds all recordings."""
    array_row: str | None = None
    """The row there; default: the row of the table."""
    keep: list[str] = field(default_factory=list)
    """More columns for the index, as text."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Columns of text stay pandas' own: a string of Python takes four times the memory."""

    files: pd.Series
    records: pd.Series
    patients: pd.Series
    labels_NK: np.ndarray
    label_names: list[str]
    splits: pd.Series | None
    rates_hz: np.ndarray | None
    """NaN in an empty cell."""
    extra: pd.DataFrame
    """Columns for the index: age, sex, time, site as far as there are, and those asked for."""

    @property
    def times(self) -> list[str]:
        return self.extra["time"].tolist()

    @property
    def sites(self) -> list[str]:
        return self.extra["site"].tolist()

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
    record = columns.record if "record" not in table else _or_else(columns.record, "record")
    # '' is a column that is missing (`--patient "$UNSET"`), not a column that was not asked for
    wanted = [*_file_columns(table, columns), record, *columns.labels, columns.patient]
    wanted += [columns.split, columns.rate, columns.time, columns.site, *columns.keep]
    check_columns(table, [name for name in wanted if name is not None], path)
    if len(table) == 0:
        raise ValueError(f"{path}: the table has no rows")
    files = _files(table, columns, path)
    records = files if record is None else table[record]
    check_unique(records, path)
    patients = records if columns.patient is None else table[columns.patient]
    return Cohort(
        files=files,
        records=records,
        patients=clean_patient_ids(patients),
        labels_NK=np.stack([_numbers(table[n], path, n) for n in columns.labels], axis=1),
        label_names=columns.labels,
        splits=None if columns.split is None else table[columns.split],
        rates_hz=None
        if columns.rate is None
        else _numbers(table[columns.rate], path, columns.rate),
        extra=_extra(table, columns),
    )


def clean_patient_ids(patients: pd.Series) -> pd.Series:
    """Without blanks around them; NO_PATIENT where nobody is named."""
    patients = patients.str.strip()
    return patients.mask(patients.str.lower().isin(EMPTY_CELLS), NO_PATIENT)


def _file_columns(table: pd.DataFrame, columns: Columns) -> list[str | None]:
    if columns.array is not None:
        return [columns.array_row]
    return [_or_else(columns.file, "file" if "file" in table else "record")]


def _files(table: pd.DataFrame, columns: Columns, path: Path) -> pd.Series:
    """What each row's recording is called below the folder of signals."""
    column = _file_columns(table, columns)[0]
    if columns.array is None:
        return table[column]
    rows = np.arange(len(table))
    if column is not None:
        rows = _numbers(table[column], path, column)
        if not (rows >= 0).all() or (rows % 1).any():
            raise ValueError(f"{path}: column {column} must hold rows: 0, 1, 2, …")
    names = [name_of_row(columns.array, int(row)) for row in rows]
    return pd.Series(names, name=columns.array, dtype=str)


def _extra(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    sources = {"age": "age", "sex": "sex", "time": _or_else(columns.time, "time")}
    sources |= {"site": _or_else(columns.site, "site")} | {name: name for name in columns.keep}
    found = {name: table[source].str.strip() for name, source in sources.items() if source in table}
    return pd.DataFrame(found, index=table.index)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV or parquet file, every cell as text, empty cells as ''; or a manifest."""
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
        # in pieces, since each cell is a string of Python for a while
        pieces = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, chunksize=ROWS_PER_CHUNK
        )
        table = pd.concat(pieces)
        if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for an index
            raise ValueError("its rows have more cells than its header")
        return table
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text in UTF-8; save the table in UTF-8") from None
    except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
        raise ValueError(
            f"{path}: cannot be read as a table: {str(error).splitlines()[0]}"
        ) from None


def _check_header(path: Path, separator: str) -> None:
    """pandas would give a second column of a name another one."""
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
            f"({len(twice)} such rows); each row must be one of its own"
        )


def _or_else(name: str | None, default: str) -> str:
    return default if name is None else name


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
