"""Pseudonyms and dates: what the index may say of people."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpc_ecg.cohort.privacy import Privacy, deidentify, read_key
from hpc_ecg.cohort.table import Cohort

KEY = b"0123456789abcdef"


def cohort_of(patients, times, records=None):
    return Cohort(
        files=pd.Series([f"{n}.hea" for n in range(len(patients))]),
        records=pd.Series(records or [f"mrn-{n}" for n in range(len(patients))]),
        patients=pd.Series(patients),
        labels_NK=np.zeros((len(patients), 1)),
        label_names=["af"],
        splits=None,
        rates_hz=None,
        extra=pd.DataFrame({"age": ["60"] * len(patients), "time": times}),
    )


@pytest.fixture
def key_file(tmp_path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    return path


def test_without_a_key_a_patient_is_the_number_of_the_first_row():
    public = deidentify(cohort_of(["anna", "ben", "anna"], [""] * 3), Privacy())
    assert public.patients.tolist() == ["p00000000", "p00000001", "p00000000"]
    assert public.records.tolist() == ["mrn-0", "mrn-1", "mrn-2"]


def test_with_a_key_no_name_remains_and_another_table_gives_the_same_pseudonym(key_file):
    privacy = Privacy(key_file=key_file)
    public = deidentify(cohort_of(["anna", "ben", "anna"], [""] * 3), privacy)
    other = deidentify(cohort_of(["zoe", "anna"], [""] * 2), privacy)
    assert public.patients[0] == public.patients[2] == other.patients[1] != public.patients[1]
    assert not any(name in str(public) for name in ("anna", "ben", "mrn-"))
    assert len(set(public.records)) == 3


def test_another_key_gives_other_pseudonyms(tmp_path, key_file):
    (tmp_path / "other").write_bytes(b"x" * 16)
    both = [
        deidentify(cohort_of(["anna"], [""]), Privacy(key_file=path)).patients[0]
        for path in (key_file, tmp_path / "other")
    ]
    assert both[0] != both[1]


def test_shifted_dates_keep_the_intervals_of_a_patient_and_move_each_patient(key_file):
    times = ["2020-01-01", "2020-01-31 12:30", "2020-01-01", "", ""]
    public = deidentify(
        cohort_of(["anna", "anna", "ben", "ben", "cem"], times),
        Privacy(key_file=key_file, dates="shift"),
    )
    moved = pd.to_datetime(public.extra["time"], format="ISO8601")
    assert moved[1] - moved[0] == pd.Timedelta(days=30, hours=12, minutes=30)
    for row in (0, 2):
        assert 1 <= (pd.Timestamp(times[row]) - moved[row]).days <= 365
    assert moved[0] != moved[2]
    assert public.extra["time"].tolist()[3:] == ["", ""]


def test_a_date_that_cannot_be_shifted_is_refused(key_file):
    cohort = cohort_of(["anna", "ben"], ["2020-01-01", "03/04/2019"])
    with pytest.raises(ValueError, match="row 2 of the column of times holds no date like"):
        deidentify(cohort, Privacy(key_file=key_file, dates="shift"))


@pytest.mark.parametrize("dates", ["shift", "drop"])
@pytest.mark.parametrize("value", ["2020-01-05", "5.1.2020 08:00", "on 05/01/20"])
def test_a_true_date_is_not_kept_beside_a_shifted_one(key_file, dates, value):
    cohort = cohort_of(["anna", "ben"], ["2020-01-01", ""])
    cohort.extra["admitted"] = ["", value]
    with pytest.raises(ValueError, match="--keep admitted holds dates"):
        deidentify(cohort, Privacy(key_file=key_file, dates=dates))


def test_dates_cannot_be_shifted_without_a_column_of_times(key_file):
    cohort = cohort_of(["anna"], [""])
    del cohort.extra["time"]
    with pytest.raises(ValueError, match="there is no column of times; name it with --time"):
        deidentify(cohort, Privacy(key_file=key_file, dates="shift"))


def test_dropped_dates_are_not_in_the_index():
    public = deidentify(cohort_of(["anna"], ["2020-01-01"]), Privacy(dates="drop"))
    assert list(public.extra) == ["age"]


def test_dates_cannot_be_shifted_without_a_key():
    with pytest.raises(ValueError, match="--dates shift needs --key FILE"):
        deidentify(cohort_of(["anna"], [""]), Privacy(dates="shift"))


def test_an_unknown_policy_for_dates_is_refused():
    with pytest.raises(ValueError, match="--dates must be one of keep, shift, drop, got 'move'"):
        deidentify(cohort_of(["anna"], [""]), Privacy(dates="move"))


def test_a_key_that_is_missing_or_short_is_refused(tmp_path):
    (tmp_path / "short").write_text("secret\n")
    with pytest.raises(ValueError, match="holds 6 bytes, at least 16"):
        read_key(tmp_path / "short")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_key(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="expected a regular file"):
            read_key(path)
