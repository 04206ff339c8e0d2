"""From dates as text to instants. Unreadable dates stay unknown, ambiguous ones are refused.

A cell is a day, or a day with its time; exactly midnight counts as a day (many exports write days
that way). Cells with a time zone become UTC. Either every cell of all columns has a zone or none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from hpc_ecg.ecg.age_sex import describe_cells

DAY = r"(\d{4}-\d{2}-\d{2}|\d{8})"
CLOCK = r"[T ]\d{2}(:?\d{2}(:?\d{2}(\.\d+)?)?)?"
ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)"
AMBIGUOUS = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}.*"
ONE_DAY = np.timedelta64(86_400_000_000, "us")


@dataclass(frozen=True, kw_only=True)
class Dates:
    where: str
    """Table and column, for messages."""
    times: pd.Series
    """datetime64[us]; NaT where the cell is empty or not a date."""
    has_zone: pd.Series
    remark: str
    """How many cells are dates, and how many are not."""


def read_dates(column: pd.Series, table: str, date_format: str | None = None) -> Dates:
    """Parse a column of text. `date_format` is strptime's, such as %d/%m/%Y; None: ISO 8601.

    ValueError: an ambiguous date, an incomplete format, a column without a single date.
    """
    where, text = f"{table}: column {column.name}", column.str.strip()
    is_empty = text == ""
    if date_format is None:
        is_iso = text.str.fullmatch(f"{DAY}({CLOCK}{ZONE}?)?")
        rows = np.flatnonzero(~is_iso & text.str.fullmatch(AMBIGUOUS))
        if len(rows):
            raise ValueError(
                f"{where}, row {rows[0] + 1}: a date that is not YYYY-MM-DD could be read in two "
                f"ways ({len(rows)} such rows); give the format, like %d/%m/%Y"
            )
        has_zone = text.str.fullmatch(f"{DAY}{CLOCK}{ZONE}")
        # with more digits, pandas would count in nanoseconds, which end in the year 2262
        text = text.where(is_iso, "").str.replace(r"(\.\d{6})\d+", r"\1", regex=True)
    else:
        _check_date_format(date_format)
        has_zone = pd.Series("%z" in date_format, index=text.index)
    times = pd.to_datetime(text, format=date_format or "ISO8601", errors="coerce", utc=True)
    times = times.dt.tz_localize(None).astype("datetime64[us]")
    if times.isna().all() and not is_empty.all():
        raise ValueError(
            f"{where}: no cell is a date like {date_format or 'YYYY-MM-DD'}; give its format"
        )
    remark = describe_cells(column.str.strip(), times.isna() & ~is_empty, shown=False)
    return Dates(
        where=where,
        times=times,
        has_zone=has_zone & times.notna(),
        remark=f"{Path(table).name}: {remark}",
    )


def last_instant(times: pd.Series) -> pd.Series:
    """The end of the day where only a day is known, else the time itself."""
    is_day = times == times.dt.floor("D")
    return times.where(~is_day, times + (ONE_DAY - np.timedelta64(1, "us")))


def check_zones(columns: Iterable[Dates]) -> None:
    """Raise ValueError if some dates have a time zone and others none."""
    first: dict[bool, str] = {}
    for dates in columns:
        for has_zone, times in dates.times.dropna().groupby(dates.has_zone):
            first.setdefault(bool(has_zone), f"{dates.where}, row {times.index[0] + 1}")
    if len(first) == 2:
        raise ValueError(
            f"{first[True]}: a date with a time zone, but {first[False]}: one without; "
            "write all in local time without a zone, or all with one"
        )


def _check_date_format(date_format: str) -> None:
    """Raise ValueError unless a day survives the way through this format and back."""
    day = datetime(2001, 2, 3, tzinfo=UTC)
    try:
        is_complete = datetime.strptime(day.strftime(date_format), date_format).date() == day.date()
    except ValueError:
        is_complete = False
    if not is_complete:
        raise ValueError(
            f"a date format must hold day, month and year, like %d/%m/%Y; got {date_format!r}"
        )
