"""Dates as people write them: parsed, unknown if unreadable, refused if ambiguous."""

import pandas as pd
import pytest

from hpc_ecg.cohort.dates import check_zones, last_instant, read_dates


def column(*cells):
    return pd.Series(cells, name="day", dtype=str)


def read(*cells, date_format=None):
    times = read_dates(column(*cells), "t.csv", date_format).times
    return ["" if pd.isna(time) else time.isoformat() for time in times]


def test_days_and_times_of_iso_8601_are_read():
    assert read("2019-03-04", " 20190304 ", "2019-03-04 10:15", "20190304T101500") == [
        "2019-03-04T00:00:00",
        "2019-03-04T00:00:00",
        "2019-03-04T10:15:00",
        "2019-03-04T10:15:00",
    ]


def test_the_far_future_and_nanoseconds_are_read_together():
    assert read("9999-12-31", "2019-03-04T10:00:00.123456789") == [
        "9999-12-31T00:00:00",
        "2019-03-04T10:00:00.123456",
    ]


@pytest.mark.parametrize(
    "cell",
    ["", "unknown", "2019", "2019-03", "2019-02-30", "2019-13-04", "2019-03-04T25:00", "nan"],
)
def test_an_incomplete_date_is_unknown_not_guessed(cell):
    assert read(cell, "2020-01-01") == ["", "2020-01-01T00:00:00"]


@pytest.mark.parametrize(
    "cell", ["03/04/2019", "3.4.19", "04-03-2019", "2019/03/04", "1/2/19 9:00"]
)
def test_an_ambiguous_date_is_refused_with_its_row(cell):
    with pytest.raises(ValueError, match=r"t.csv: column day, row 2: .* two ways \(1 such") as info:
        read("2019-03-04", cell)
    assert cell not in str(info.value)


def test_a_given_format_settles_what_the_digits_mean():
    assert read("03/04/2019", "", date_format="%d/%m/%Y") == ["2019-04-03T00:00:00", ""]
    assert read("03/04/2019", "x", date_format="%m/%d/%Y") == ["2019-03-04T00:00:00", ""]


@pytest.mark.parametrize("date_format", ["", "date", "%d/%m", "%H:%M", "%Q", "%"])
def test_a_format_without_a_whole_day_is_refused(date_format):
    with pytest.raises(ValueError, match="a date format must hold day, month and year"):
        read("03/04/2019", date_format=date_format)


def test_a_column_without_a_single_date_is_refused():
    with pytest.raises(ValueError, match="column day: no cell is a date like YYYY-MM-DD"):
        read("4 Mar 2019", "")
    with pytest.raises(ValueError, match="no cell is a date like %d/%m/%Y"):
        read("2019-03-04", date_format="%d/%m/%Y")
    assert read("", "") == ["", ""]


def test_time_zones_become_utc():
    assert read("2019-03-04T10:00-05:00", "2019-03-04 10:00:00Z", "2019-03-04T10+01") == [
        "2019-03-04T15:00:00",
        "2019-03-04T10:00:00",
        "2019-03-04T09:00:00",
    ]
    assert read("2019-03-04 10:00 -0500", date_format="%Y-%m-%d %H:%M %z") == [
        "2019-03-04T15:00:00"
    ]


@pytest.mark.parametrize("other", ["2019-03-04T10:00", "2019-03-04"])
def test_dates_with_and_without_a_zone_are_never_compared(other):
    zone, none = (read_dates(column("", cell), "t.csv") for cell in ("2019-03-04T10:00Z", other))
    with pytest.raises(ValueError, match="row 2: a date with a time zone, but t"):
        check_zones([zone, none])
    with pytest.raises(ValueError, match="a date with a time zone"):
        check_zones([read_dates(column("2019-03-04T10:00Z", other), "t.csv")])
    check_zones([zone, zone])
    check_zones([none, none])


def test_the_last_instant_of_a_day_is_its_end_and_that_of_a_time_is_itself():
    times = read_dates(column("2019-03-04", "2019-03-04T10:00", ""), "t.csv").times
    assert [str(time) for time in last_instant(times)] == [
        "2019-03-04 23:59:59.999999",
        "2019-03-04 10:00:00",
        "NaT",
    ]
