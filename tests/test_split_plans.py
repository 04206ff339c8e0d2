"""Splits other than by hash: by strata, time, site and in folds."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpc_ecg.cohort.splits import NO_SPLIT, SplitPlan, assign_splits
from hpc_ecg.cohort.table import Cohort

PATIENTS = st.lists(st.sampled_from([f"p{n}" for n in range(25)] + [""]), min_size=1, max_size=80)


def cohort_of(patients, labels=None, times=None, sites=None):
    extra = {"time": times, "site": sites}
    labels = [0] * len(patients) if labels is None else labels
    return Cohort(
        files=pd.Series(["f"] * len(patients)),
        records=pd.Series([str(n) for n in range(len(patients))]),
        patients=pd.Series(list(patients)),
        labels_NK=np.array(labels, float).reshape(len(patients), -1),
        label_names=["af"],
        splits=None,
        rates_hz=None,
        extra=pd.DataFrame({name: column for name, column in extra.items() if column is not None}),
    )


def splits_by_patient(patients, splits):
    result = defaultdict(set)
    for patient, split in zip(patients, splits, strict=True):
        if split != NO_SPLIT:
            result[patient].add(split)
    return result


# Strata


@given(PATIENTS, st.data())
def test_every_stratum_is_split_as_closely_as_whole_patients_allow(patients, data):
    labels = data.draw(
        st.lists(st.sampled_from([0, 1, np.nan]), min_size=len(patients), max_size=len(patients))
    )
    plan = SplitPlan(stratify=True, fractions=(0.6, 0.2, 0.2), seed=data.draw(st.integers(0, 9)))
    splits = assign_splits(cohort_of(patients, labels), plan).splits
    splits_of = splits_by_patient(patients, splits)
    assert all(len(of_patient) == 1 for of_patient in splits_of.values())
    positive = {p for p, label in zip(patients, labels, strict=True) if label == 1}
    for stratum in (positive - {""}, set(patients) - positive - {""}):
        counts = Counter(next(iter(splits_of[patient])) for patient in stratum)
        for split, fraction in zip(("train", "valid", "test"), plan.fractions, strict=True):
            assert abs(counts[split] - fraction * len(stratum)) <= 1


# Folds


@pytest.mark.slow
@given(PATIENTS, st.integers(3, 6), st.integers(1, 3), st.booleans())
def test_folds_hold_whole_patients_in_equal_numbers(patients, folds, repeats, stratify):
    assume(len(set(patients) - {""}) >= folds)
    labels = [sum(map(ord, patient)) % 2 for patient in patients]
    plan = SplitPlan(folds=folds, repeats=repeats, stratify=stratify)
    assignment = assign_splits(cohort_of(patients, labels), plan)
    known = [row for row, patient in enumerate(patients) if patient]
    assert assignment.folds_NR.shape == (len(patients), repeats)
    for fold_N in assignment.folds_NR.T:
        fold_of = {patients[row]: fold_N[row] for row in known}
        assert all(fold_of[patients[row]] == fold_N[row] for row in known)
        sizes = Counter(fold_of.values())
        assert set(sizes) <= set(range(folds))
        assert max(sizes.values()) - min(sizes[k] for k in range(folds)) <= 1
    for row in known:
        name = {0: "test", 1: "valid"}.get(int(assignment.folds_NR[row, 0]), "train")
        assert assignment.splits[row] == name


def test_each_repeat_has_other_folds():
    patients = [f"p{n}" for n in range(40)]
    folds_NR = assign_splits(cohort_of(patients), SplitPlan(folds=5, repeats=2)).folds_NR
    assert (folds_NR[:, 0] != folds_NR[:, 1]).sum() > 10


# Time

DATES = ["2018-03-01", "2019-06-01", "2020-02-29 11:00"]


def by_time(patients, times, **changes):
    plan = {"time": "time", "valid_from": "2019-01-01", "test_from": "2020-01-01"} | changes
    return assign_splits(cohort_of(patients, times=times), SplitPlan(**plan))


def test_patients_are_split_by_the_period_of_their_first_ecg():
    assignment = by_time(["a", "b", "c"], DATES)
    assert assignment.splits == ["train", "valid", "test"]
    assert assignment.left_out == {}


def test_later_ecgs_of_a_patient_are_left_out_not_moved():
    assignment = by_time(["a", "a", "b", "b"], [DATES[2], DATES[0], DATES[1], DATES[1]])
    assert assignment.splits == [NO_SPLIT, "train", "valid", "valid"]
    assert assignment.left_out[0][0] == "other period"


@pytest.mark.parametrize("time", ["", "soon", "31.01.2019", "01/02/2019"])
def test_an_ecg_without_a_date_is_left_out(time):
    assignment = by_time(["a", "a"], [time, DATES[0]])
    assert assignment.splits == [NO_SPLIT, "train"]
    assert assignment.left_out[0][0] == "no time"


@pytest.mark.parametrize(
    "bounds", [("", "2020-01-01"), ("2021-01-01", "2020-01-01"), ("2019-01-01", "later")]
)
def test_bounds_that_are_not_dates_in_order_are_refused(bounds):
    with pytest.raises(ValueError, match="--valid-from and --test-from must be dates"):
        by_time(["a"], DATES[:1], valid_from=bounds[0], test_from=bounds[1])


@pytest.mark.slow
@given(PATIENTS, st.data())
def test_no_patient_is_in_two_periods(patients, data):
    days = st.dates(pd.Timestamp("2017-01-01").date(), pd.Timestamp("2021-12-31").date())
    times = [str(data.draw(days)) for _ in patients]
    assignment = by_time(patients, times)
    splits_of = splits_by_patient(patients, assignment.splits)
    assert all(len(of_patient) == 1 for of_patient in splits_of.values())
    kept = [row for row, split in enumerate(assignment.splits) if split != NO_SPLIT]
    assert sorted([*kept, *assignment.left_out]) == list(range(len(patients)))
    for row in kept:
        period = {"train": "2018", "valid": "2019", "test": "2021"}[assignment.splits[row]]
        assert times[row][:4] <= period and (period != "2021" or times[row] >= "2020")


# Sites


def by_site(patients, sites, valid=("B",), test=("C",)):
    plan = SplitPlan(site="site", valid_sites=valid, test_sites=test)
    return assign_splits(cohort_of(patients, sites=sites), plan)


def test_sites_are_split_as_named_and_all_others_train():
    assignment = by_site("abcd", ["A", "B", "C", ""])
    assert assignment.splits == ["train", "valid", "test", NO_SPLIT]
    assert assignment.left_out == {3: ("no site", "column site is empty")}


def test_a_patient_at_sites_of_two_splits_is_refused():
    with pytest.raises(
        ValueError, match="one patient in two splits: row 1 is train, row 2 is test"
    ):
        by_site(["a", "a", "b"], ["A", "C", "B"])


@pytest.mark.parametrize(("valid", "test"), [(("X",), ("C",)), (("B",), ("B",))])
def test_sites_that_are_unknown_or_named_twice_are_refused(valid, test):
    with pytest.raises(ValueError, match="name sites of column site, each once: it has A, B, C"):
        by_site("abc", ["A", "B", "C"], valid, test)
