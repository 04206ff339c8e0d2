"""Splits: by patient, stable while the cohort grows, and never one group in two splits."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_ecg.cohort.splits import (
    SPLITS,
    check_no_leakage,
    parse_fractions,
    split_as_given,
    split_by_hash,
)

FRACTIONS = (0.7, 0.1, 0.2)


@pytest.mark.slow
@given(st.lists(st.text(), max_size=30), st.lists(st.text(), max_size=30), st.integers())
def test_a_patient_stays_in_its_split_when_the_cohort_grows(patients, newcomers, seed):
    before = split_by_hash(patients, FRACTIONS, seed)
    grown = split_by_hash([*newcomers, *patients], FRACTIONS, seed)
    assert grown[len(newcomers) :] == before


@given(st.lists(st.sampled_from("abcdef"), min_size=2), st.integers())
def test_all_ecgs_of_a_patient_are_in_one_split(patients, seed):
    splits = split_by_hash(patients, FRACTIONS, seed)
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients))


def test_the_split_never_changes_between_versions():
    """Fails if a later version would move patients between train and test. Do not update."""
    splits = split_by_hash([f"p{i}" for i in range(12)], (0.5, 0.25, 0.25), 0)
    expected = "test test train test train train test train test test train valid"
    assert " ".join(splits) == expected


def test_the_fractions_are_met_approximately():
    counts = Counter(split_by_hash([f"patient {i}" for i in range(10_000)], FRACTIONS, 1))
    for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
        assert counts[split] / 10_000 == pytest.approx(fraction, abs=0.015)


@pytest.mark.parametrize("fractions", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5)])
def test_a_fraction_of_zero_gets_no_patient(fractions):
    counts = Counter(split_by_hash([str(i) for i in range(500)], fractions, 0))
    assert {s for s in SPLITS if counts[s]} == {
        s for s, f in zip(SPLITS, fractions, strict=True) if f
    }


def test_another_seed_gives_another_split():
    patients = [str(i) for i in range(50)]
    assert split_by_hash(patients, FRACTIONS, 0) != split_by_hash(patients, FRACTIONS, 1)


def test_fractions_are_parsed():
    assert parse_fractions("0.7,0.1,0.2") == FRACTIONS
    assert parse_fractions("0.8, 0.2, 0") == (0.8, 0.2, 0.0)
    assert parse_fractions("0, 0, 1") == (0.0, 0.0, 1.0)  # a cohort to evaluate on


@pytest.mark.parametrize("text", ["1,0,0", "0,1,0", "0.5,0,0.5", "0,0.5,0.5"])
def test_fractions_that_leave_nothing_to_train_or_validate_on_are_refused(text):
    with pytest.raises(ValueError, match=f"--fractions {text}: a run trains and validates"):
        parse_fractions(text)


@pytest.mark.parametrize(
    "text", ["", "0.7", "0.5,0.5", "0.7,0.2,0.2", "-0.1,0.9,0.2", "a,b,c", "1,0,0,0", "nan,0.5,0.5"]
)
def test_invalid_fractions_are_refused(text):
    with pytest.raises(ValueError, match="--fractions: three numbers that sum to 1"):
        parse_fractions(text)


def test_a_column_of_splits_is_used_as_it_is():
    assert split_as_given(["test", "train", "valid"], "fold") == ["test", "train", "valid"]


@pytest.mark.parametrize("value", ["", "val", "Train", "3"])
def test_a_value_that_is_not_a_split_is_refused_with_its_row(value):
    with pytest.raises(ValueError) as caught:
        split_as_given(["train", value], "fold")
    assert str(caught.value) == (
        f"column fold, row 2: split {value!r}; allowed are train, valid, test"
    )


def test_a_group_in_two_splits_is_refused_with_both_rows():
    groups, splits = pd.Series(["a", "b", "a", "a"]), pd.Series(["train", "test", "test", "valid"])
    rows = np.array([0, 4, 7, 9])
    check_no_leakage(groups[:3], pd.Series(["train", "test", "train"]), rows[:3], "one patient")
    with pytest.raises(ValueError) as caught:
        check_no_leakage(groups, splits, rows, "a x")
    assert str(caught.value) == (
        "a x in two splits: row 1 is train, row 8 is test (2 such rows); "
        "put all of one x in one split"
    )
