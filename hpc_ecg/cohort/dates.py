"""Dates in a table: text in, instants out; what cannot be read is known, what is ambiguous refused.

A cell is a day or a day with its time; midnight exactly is a day (many exports write days so).
Cells with a time zone become UTC, and all cells of all columns have one, or none has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

DAY = r"(\d{4}-\d{2}-\d{2}|\d{8})"
CLOCK = r"[T ]\d{2}(:?\d{2}(:?\d{2}(\.\d+)?)?)?"
ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)"
NUMBERS = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}.*"
ONE_DAY = np.timedelta64(86_400_000_000, "us")


@dataclass(frozen=True, kw_only=True)
class Dates:
    where: str
    """For messages: table and column."""
    times: pd.Series
    """datetime64[us], NaT where the cell is empty or no date."""
    has_zone: pd.Series


def read_dates(column: pd.Series, table: str, date_format: str | None = None) -> Dates:
    """A column of text. `date_format`: of strptime, such as %d/%m/%Y; None: ISO 8601.

    ValueError: dates in another format than the one given, a column without a single date.
    """
    where, text = f"{table}: column {column.name}", column.str.strip()
    if date_format is None:
        is_shaped = text.str.fullmatch(f"{DAY}({CLOCK}{ZONE}?)?")
        _check_format(text, is_shaped, where)
        has_zone = text.str.fullmatch(f"{DAY}{CLOCK}{ZONE}")
        # beyond microseconds pandas would count in nanoseconds, and reach no further than 2262
        text = text.where(is_shaped, "").str.replace(r"(\.\d{6})\d+", r"\1", regex=True)
    else:
        check_date_format(date_format)
        has_zone = pd.Series("%z" in date_format, index=text.index)
    times = pd.to_datetime(text, format=date_format or "ISO8601", errors="coerce", utc=True)
    times = times.dt.tz_localize(None).astype("datetime64[us]")
    if times.isna().all() and (column.str.strip() != "").any():
        raise ValueError(
            f"{where}: no cell is a date like {date_format or 'YYYY-MM-DD'}; give its format"
        )
    return Dates(where=where, times=times, has_zone=has_zone & times.notna())


def last_instant(times: pd.Series) -> pd.Series:
    """Of the day, where no time is known."""
    is_day = times == times.dt.floor("D")
    return times.where(~is_day, times + (ONE_DAY - np.timedelta64(1, "us")))


def check_zones(columns: Iterable[Dates]) -> None:
    """ValueError: some dates have a time zone, others none."""
    first: dict[bool, str] = {}
    for dates in columns:
        for has_zone, times in dates.times.dropna().groupby(dates.has_zone):
            first.setdefault(bool(has_zone), f"{dates.where}, row {times.index[0] + 1}")
    if len(first) == 2:
        raise ValueError(
            f"{first[True]}: a date with a time zone, but {first[False]}: one without; "
            "write all in local time without a zone, or all with one"
        )


def check_date_format(date_format: str) -> None:
    day = datetime(2001, 2, 3, tzinfo=UTC)
    try:
        is_whole = datetime.strptime(day.strftime(date_format), date_format).date() == day.date()
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"a date format must hold day, month and year, like %d/%m/%Y; got {date_format!r}"
        )


def _check_format(text: pd.Series, is_shaped: pd.Series, where: str) -> None:
    rows = np.flatnonzero(~is_shaped & text.str.fullmatch(NUMBERS))
    if len(rows):
        raise ValueError(
            f"{where}, row {rows[0] + 1}: a date that is not YYYY-MM-DD could be read in two ways "
            f"({len(rows)} such rows); give the format, like %d/%m/%Y"
        )
