"""Identifiers that are the same to a person stop every command that joins or groups by them."""

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import plan_for

from hpc_ecg.cohort.identifiers import check_spellings, comparable
from hpc_ecg.cohort.source_tables import SourceTables, read_tables
from hpc_ecg.cohort.table import Columns, read_cohort
from hpc_ecg.data.views import replace_labels
from hpc_ecg.shards.array_rows import match_rows

SPELLINGS = {
    "leading zeros": ("0012345", "12345"),
    "only zeros": ("000", "0"),
    "trailing .0": ("1000", "1000.0"),
    "zeros and .0": ("0012", "12.0"),
    "decimal comma": ("1000", "1000,0"),
    "float": ("1000", "1e3"),
    "float of a spreadsheet": ("12345678", "1.2345678E+07"),
    "case": ("Ab7", "aB7"),
    "case beyond ASCII": ("Ärzte", "ÄRZTE"),
    "blank inside": ("a 7", "a7"),
    "no-break space": ("a\u00a07", "a7"),
    "zero-width space": ("a\u200b7", "a7"),
    "byte-order mark": ("\ufeffx7", "x7"),
    "Unicode form": ("caf\u00e9", "cafe\u0301"),
    "full width": ("１２３", "123"),
    "dash": ("a-7", "a–7"),
    "apostrophe of a spreadsheet": ("'0077", "77"),
    "formula of a spreadsheet": ('="0077"', "77"),
    "thousands": ("12345", "12,345"),
    "thousands of other countries": ("1234567", "1.234.567"),
    "date with midnight": ("2021-03-04", "2021-03-04 00:00:00"),
    "date with slashes": ("2021/03/04", "2021-03-04"),
    "Cyrillic letter": ("АB7", "AB7"),
    "variation selector": ("a\ufe0f7", "a7"),
}


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def patients_of_shards(folder, first, second, as_written):
    table = write(folder / "t.csv", record=["a", "b"], who=[first, second], af=[0, 1])
    read_cohort(table, Columns(labels=["af"], patient="who", ids_as_written=as_written))


def records_of_shards(folder, first, second, as_written):
    table = write(folder / "t.csv", record=[first, second], who=["p", "q"], af=[0, 1])
    read_cohort(table, Columns(labels=["af"], patient="who", ids_as_written=as_written))


def test_blanks_around_a_record_make_no_other_record(tmp_path):
    with pytest.raises(ValueError, match="in more than one spelling: 1"):
        records_of_shards(tmp_path, "a", "a ", as_written=False)
    with pytest.raises(ValueError, match="in more than one spelling: 1"):
        labels_of_a_run(tmp_path, "a", " a", as_written=False)


def sites_of_shards(folder, first, second, as_written):
    table = write(folder / "t.csv", record=["a", "b"], place=[first, second], af=[0, 1])
    columns = Columns(labels=["af"], patient=None, site="place", ids_as_written=as_written)
    read_cohort(table, columns)


def patients_of_a_manifest(folder, first, second, as_written):
    path = folder / "train.tsv"
    path.write_text(f"{folder}\na.mat\t2500\t{first}\nb.mat\t2500\t{second}\n")
    read_cohort(
        path, Columns(labels=["patient_id"], patient="patient_id", ids_as_written=as_written)
    )


def cohort_of(folder, ecgs, events, as_written, follow=None):
    dates = ["2015-01-01"] * 9
    sources = SourceTables(
        ecgs=write(folder / "ecgs.csv", record=range(len(ecgs)), p=ecgs, t=dates[: len(ecgs)]),
        events=write(folder / "events.csv", p=events, t=dates[: len(events)]),
        patient="p",
        time="t",
        age="age",
        event_patient="p",
        event_time="t",
        event_code="code",
        event=[],
        event_prefix=[],
        any_event=True,
        follow_up=follow and write(folder / "follow.csv", p=follow, end=dates[: len(follow)]),
        followed_until="end" if follow else None,
        follow_up_patient="p",
        label="label",
        ids_as_written=as_written,
    )
    return read_tables(sources, age_is_limited=False)


def ecgs_and_events(folder, first, second, as_written):
    cohort_of(folder, [first, "other"], ["other", second], as_written)


def patients_of_ecgs(folder, first, second, as_written):
    cohort_of(folder, [first, second, "other"], ["other"], as_written)


def ecgs_and_follow_up(folder, first, second, as_written):
    cohort_of(folder, [first, "other"], ["other"], as_written, follow=["other", second])


def labels_of_a_run(folder, first, second, as_written):
    index = pd.DataFrame({"key": ["00000000", "00000001"], "record": [first, "other"]})
    table = write(folder / "labels.csv", record=[second, "other"], af=[1, 0])
    changed, _ = replace_labels(index, table, ["af"], as_written)
    np.testing.assert_array_equal(changed["label.af"], [np.nan, 0])


def array_ids(folder, first, second, as_written):
    with h5py.File(folder / "x.h5", "w") as file:
        file["tracings"] = np.zeros((2, 12, 5000), np.float32)
        file["exam"] = [second, "other"]
    table = write(folder / "t.csv", exam=["other", first][: 1 if as_written else 2], af=1)
    columns = Columns(
        labels=["af"], patient=None, array="x.h5", array_id="exam", ids_as_written=as_written
    )
    plan = plan_for(table, folder / "out", columns=columns)
    assert match_rows(read_cohort(table, columns), plan).files.tolist() == ["x.h5::1"]


PLACES = [
    patients_of_shards,
    records_of_shards,
    sites_of_shards,
    patients_of_a_manifest,
    ecgs_and_events,
    patients_of_ecgs,
    ecgs_and_follow_up,
    labels_of_a_run,
    array_ids,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("kind", SPELLINGS)
def test_two_spellings_of_one_identifier_stop_with_count_example_and_cures(tmp_path, kind, place):
    first, second = SPELLINGS[kind]
    with pytest.raises(ValueError, match="in more than one spelling: 1, such as") as caught:
        place(tmp_path, first, second, as_written=False)
    message = str(caught.value)
    assert repr(first) in message and repr(second) in message and "\n" not in message
    assert "write each in one way everywhere, or say with" in message
    cure = "data.ids_as_written=true" if place is labels_of_a_run else "--ids-as-written"
    assert f"{cure} that they are not the same" in message


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_the_user_can_say_that_two_spellings_are_not_the_same(tmp_path, place):
    place(tmp_path, "007", "7", as_written=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1.5", "15"), ("a1", "a01"), ("1,000", "1"), ("a.0", "a"), ("12e4x", "120000x"), ("-1", "1")],
)
def test_other_identifiers_stay_apart(first, second):
    assert comparable(first) != comparable(second)


@pytest.mark.parametrize("place", [ecgs_and_events, patients_of_shards, labels_of_a_run])
@pytest.mark.parametrize("rounded", ["1.23457E+11", "1,2E+05", "1.2345678901234568e+18"])
def test_identifiers_that_a_spreadsheet_rounded_stop(tmp_path, place, rounded):
    with pytest.raises(ValueError, match="lost digits in a spreadsheet: 1, such as") as caught:
        place(tmp_path, "123456789012", rounded, as_written=False)
    assert repr(rounded) in str(caught.value)


def test_long_identifiers_that_all_end_in_zeros_were_cut_after_15_digits():
    whole = ["20210304123456701", "20210304123457702", "20210304123458713"]
    check_spellings({"ecgs": pd.Series(whole)}, as_written=False)
    cut = pd.Series([f"{i[:15]}00" for i in (whole[0], whole[2])])
    with pytest.raises(
        ValueError, match=r"lost digits in a spreadsheet: 2, such as \(events, row 1"
    ):
        check_spellings({"ecgs": pd.Series(whole), "events": cut}, as_written=False)


def test_the_count_is_of_identifiers_and_names_stay_hidden_on_request():
    ids = {"ecgs": pd.Series(["01", "02", "3", ""]), "events": pd.Series(["1", "2", "3", "003"])}
    with pytest.raises(ValueError, match=r"spelling: 3, such as \(ecgs, row 1\) and \(events, row"):
        check_spellings(ids, as_written=False, shown=False)


def test_events_without_an_ecg_are_counted_with_the_row_of_one(tmp_path):
    notes = cohort_of(tmp_path, ["a", "b"], ["x", "b", "x", "y"], as_written=False).notes
    assert "patients of events.csv without an ECG: 2 of 3, such as that of row 1" in notes
    assert "patients with an ECG and any event: 1 of 2" in notes
