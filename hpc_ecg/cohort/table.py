"""The user's table, one row per ECG: which column means what, checked before anything else is read.

From a table as spreadsheets and pandas write it (or a manifest) and the names of its columns, makes
a Cohort: one entry per row, in the table's order. An empty label is missing, never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.cohort.identifiers import check_spellings
from hpc_ecg.cohort.table_files import read_table
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.ecg.age_sex import describe_cells, read_ages, read_sexes
from hpc_ecg.ecg.files import name_of_row

NO_PATIENT = ""
WEIGHT_PREFIX = "ipcw."
"""Before the name of a label: the column of its weights against censoring (censoring.py)."""
LABEL_CURE = "write 1 or 0, a number for regression, nothing if unknown"
EMPTY_CELL = r"#?n/a|nan|na|<na>|nat|none|\(?null\)?|\\n|#(null|value|ref)!|#name\?|unknown|[?.]|-+"
"""What programs and people write for an empty cell; no patient either."""
DATE = r"\d{4}-?\d{2}-?\d{2}(?:[T ].*)?"


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
    array_id: str | None = None
    """The array beside `array` that says whose recording each row is."""
    ids_as_written: bool = False
    """Two spellings of one identifier, such as 012 and 12, are two identifiers."""
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
    remarks: list[str] = field(default_factory=list)
    """How much of each of these columns was understood."""
    capped_ages: list[int] = field(default_factory=list)
    """The rows whose age is no more than `90 or older`."""

    def __len__(self) -> int:
        return len(self.files)


def read_cohort(
    path: Path, columns: Columns, shown: bool = True, needs_people: bool = True
) -> Cohort:
    """Read the table as text and take its columns apart. `shown`: messages may name identifiers.
    `needs_people`: give age and sex one form, and refuse what could mean either sex.

    ValueError: a missing file or column, a label that is not a number or is named twice, a record
    that is listed twice, one identifier in two spellings, an empty table.
    """
    if len(set(columns.labels)) < len(columns.labels):
        raise ValueError(f"--label: {', '.join(columns.labels)} names a column twice")
    table, named_site = read_table(path), columns.site
    is_unnamed = columns.file is None and not {"file", "record"} & set(table)
    columns = _with_defaults(columns, table)
    # only None is optional: '' is a column that is missing (`--patient "$UNSET"`)
    wanted = [columns.file if columns.array is None else columns.array_row, columns.record]
    wanted += [*columns.labels, columns.patient, columns.split, columns.rate, columns.time]
    wanted += [columns.site, *columns.keep]
    cure = "; name the column of paths with --file" * (is_unnamed and columns.array is None)
    check_columns(table, [name for name in wanted if name is not None], path, cure)
    for name in dict.fromkeys([columns.patient, columns.record, named_site]):
        if name is not None:
            ids = table[name] if name == columns.record else patient_ids(table[name])
            what = f"{path.name}, column {name}"
            check_spellings({what: ids}, columns.ids_as_written, shown=shown)
    files = table[columns.file] if columns.array is None else _array_rows(table, columns, path)
    records = files if columns.record is None else table[columns.record]
    check_unique(records, path)
    extra = {"age": "age", "sex": "sex", "time": columns.time, "site": columns.site}
    weights = [WEIGHT_PREFIX + name for name in columns.labels if WEIGHT_PREFIX + name in table]
    extra |= {name: name for name in [*columns.keep, *weights]}
    facts = {name: table[source].str.strip() for name, source in extra.items() if source in table}
    for name in weights:
        is_known_N = ~np.isnan(_numbers(table[name.removeprefix(WEIGHT_PREFIX)], path))
        if not (_numbers(table[name], path)[is_known_N] > 0).all():
            raise ValueError(f"{path}: column {name}: each ECG with a label needs a weight above 0")
    remarks, capped_ages = _understand(facts, shown) if needs_people else ([], [])
    return Cohort(
        files=files,
        records=records,
        patients=patient_ids(records if columns.patient is None else table[columns.patient]),
        labels_NK=np.stack([_numbers(table[n], path, LABEL_CURE) for n in columns.labels], axis=1),
        label_names=columns.labels,
        splits=None if columns.split is None else table[columns.split],
        rates_hz=None if columns.rate is None else _numbers(table[columns.rate], path),
        extra=pd.DataFrame(facts, index=table.index),
        remarks=remarks,
        capped_ages=capped_ages,
    )


def _understand(facts: dict[str, pd.Series], shown: bool) -> tuple[list[str], list[int]]:
    """Give age and sex one form, in place; remarks on each column, and the rows of capped ages."""
    read = {
        name: reader(facts[name], shown)
        for name, reader in (("age", read_ages), ("sex", read_sexes))
        if name in facts
    }
    facts |= {name: column.values for name, column in read.items()}
    remarks = [column.remark for column in read.values()]
    if "time" in facts:
        is_wrong = (facts["time"] != "") & ~facts["time"].str.fullmatch(DATE)
        remarks.append(describe_cells(facts["time"], is_wrong, shown=shown))
    return remarks, read["age"].capped_rows if "age" in read else []


def patient_ids(column: pd.Series) -> pd.Series:
    """The identifiers without whitespace at their ends; NO_PATIENT for an empty cell."""
    patients = column.str.strip()
    return patients.mask(patients.str.fullmatch(EMPTY_CELL, case=False), NO_PATIENT)


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


def check_columns(table: pd.DataFrame, wanted: Sequence[str], path: Path, cure: str = "") -> None:
    """ValueError: a column is missing; `cure` ends the message."""
    wanted = list(dict.fromkeys(wanted))
    missing = [name for name in wanted if name not in table]
    if missing:
        columns = [str(name) for name in table]
        near = did_you_mean(missing[0], columns)
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; the table has "
            f"{', '.join(columns[:50])}{', …' * (len(columns) > 50)}{near}{cure}"
        )


def check_unique(column: pd.Series, path: Path) -> None:
    twice = column.index[column.duplicated()]
    if len(twice):
        raise ValueError(
            f"{path}: column {column.name}, row {twice[0] + 1} repeats an earlier row "
            f"({len(twice)} such rows); each value may appear once"
        )


def _numbers(column: pd.Series, path: Path, cure: str = "write a plain number") -> np.ndarray:
    """Float64 [N]; an empty cell is NaN. 0,5 is 0.5 in a column where no comma can mean 1,000."""
    text = column.str.strip()
    has_comma = text.str.fullmatch(r"[+-]?\d+,\d+")
    if has_comma.any() and not text.str.fullmatch(r"[+-]?(\d{1,3},\d{3}|\d*\.\d+)").any():
        text = text.where(~has_comma, text.str.replace(",", "."))
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~np.isfinite(numbers) & (text != "").to_numpy())
    if len(wrong):
        raise ValueError(
            f"{path}: column {column.name}, row {wrong[0] + 1}: {text.iloc[wrong[0]]!r} is not a "
            f"number ({len(wrong)} such rows); {cure}"
        )
    return numbers
