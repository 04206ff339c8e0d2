"""Assign patients to train, valid and test: by hash, strata, time, site, or the user's own column.

The seeded hash makes a patient's split depend on that patient alone, so it stays when the cohort
grows. Folds are for small cohorts: each repeat divides all patients into K folds, and a run chooses
the fold to test on.
"""

# N rows of the table, R repeats

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.cohort.table import NO_PATIENT, Cohort

SPLITS = ("train", "valid", "test")
NO_SPLIT = ""
MIN_FOLDS = 3  # one each to test, validate and train
MAX_REPEATS = 100
Fractions = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How to split rows if the table has no column of splits: by `time`, `site` or `folds` (the
    first one that is set), else by hash into `fractions` of patients."""

    fractions: Fractions = (0.7, 0.1, 0.2)
    seed: int = 0
    stratify: bool = False
    """Split patients of each combination of labels separately: every split gets its share."""
    time: str | None = None
    """Column of dates; with `valid_from` and `test_from`."""
    valid_from: str = ""
    test_from: str = ""
    site: str | None = None
    """Column of sites; with `valid_sites` and `test_sites`. All other sites train."""
    valid_sites: tuple[str, ...] = ()
    test_sites: tuple[str, ...] = ()
    folds: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.folds != 0 and self.folds < MIN_FOLDS:
            raise ValueError(f"--folds must be at least {MIN_FOLDS}, got {self.folds}")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(f"--repeats must be 1 to {MAX_REPEATS}, got {self.repeats}")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    splits: list[str]
    """The split of each row; NO_SPLIT for a row that is left out."""
    folds_NR: np.ndarray | None = None
    left_out: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row -> reason, message."""
    policy: dict[str, Any]
    """How the splits were made, for dataset.json."""


def assign_splits(cohort: Cohort, plan: SplitPlan, column: str | None = None) -> Assignment:
    """The split of every row. `column` is the name of the table's own splits, if it has them.

    ValueError: a patient in two splits, a plan that does not fit the cohort.
    """
    if cohort.splits is not None:
        given = split_as_given(cohort.splits, column or "")
        _check_patients(cohort.patients, given)
        return Assignment(splits=given, policy={"column": column})
    if plan.time is not None:
        return _split_by_time(cohort, plan)
    if plan.site is not None:
        return _split_by_site(cohort, plan)
    if plan.folds:
        return _split_in_folds(cohort, plan)
    policy: dict[str, Any] = {"fractions": list(plan.fractions), "seed": plan.seed}
    if plan.stratify:
        splits = split_by_strata(cohort.patients, _strata(cohort), plan.fractions, plan.seed)
        return Assignment(splits=splits, policy={"strata_of": cohort.label_names} | policy)
    splits = split_by_hash(cohort.patients, plan.fractions, plan.seed)
    return Assignment(splits=splits, policy={"hash_of": "patient"} | policy)


def parse_fractions(text: str) -> Fractions:
    """`0.7,0.1,0.2` -> the fractions of patients that train, validate and test; they sum to 1."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        fractions = ()
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise ValueError(
            f"--fractions: three numbers that sum to 1, for train, valid and test, got {text!r}"
        )
    if not (min(fractions[:2]) > 0 or fractions[2] == 1):
        raise ValueError(
            f"--fractions {text}: a run trains and validates; both need patients, as in 0.8,0.2,0 "
            "(or 0,0,1: all to evaluate on)"
        )
    return fractions[0], fractions[1], fractions[2]


def split_by_hash(patients: Iterable[str], fractions: Fractions, seed: int) -> list[str]:
    """The split of each row's patient. Small cohorts deviate a little from the fractions."""
    return _splits_at([_uniform(patient, seed) for patient in patients], fractions)


def split_by_strata(
    patients: Iterable[str], strata: dict[str, str], fractions: Fractions, seed: int
) -> list[str]:
    """Split the patients of each stratum, as close to the fractions as whole patients allow. New
    patients may move others to another split: use the hash for a cohort that grows."""
    splits: dict[str, str] = {}
    for members in _by_stratum(strata, seed):
        positions = (np.arange(len(members)) + 0.5) / len(members)
        splits |= zip(members, _splits_at(positions, fractions), strict=True)
    return [splits.get(patient, NO_SPLIT) for patient in patients]


def split_as_given(column: Iterable[str], name: str) -> list[str]:
    """The splits that the user's column gives; ValueError unless each is train, valid or test."""
    splits = list(map(sys.intern, column))  # one string for all rows of a split
    row = next((row for row, split in enumerate(splits) if split not in SPLITS), None)
    if row is not None:
        allowed = ", ".join(SPLITS)
        raise ValueError(
            f"column {name}, row {row + 1}: split {splits[row]!r}; allowed are {allowed}"
        )
    return splits


def check_no_leakage(groups: pd.Series, splits: pd.Series, rows: np.ndarray, what: str) -> None:
    """Raise ValueError if one group (a patient, a signal) is in two splits. `rows`: the table's row
    of each entry, for the message."""
    assert len(groups) == len(splits) == len(rows)
    group_N, split_N = pd.factorize(groups)[0], pd.factorize(splits)[0]
    first_N = np.unique(group_N, return_index=True)[1][group_N]
    clashes = np.flatnonzero(split_N != split_N[first_N])
    if len(clashes):
        a, b = first_N[clashes[0]], clashes[0]
        raise ValueError(
            f"{what} in two splits: row {rows[a] + 1} is {splits.iloc[a]}, "
            f"row {rows[b] + 1} is {splits.iloc[b]} "
            f"({len(clashes)} such rows); put all of one {what.rsplit(maxsplit=1)[-1]} in one split"
        )


def _split_by_time(cohort: Cohort, plan: SplitPlan) -> Assignment:
    """Each patient belongs to the period of their first ECG; ECGs of later periods are left out."""
    times = cohort.extra["time"].tolist()
    time_N = pd.to_datetime(times, errors="coerce", format="ISO8601", utc=True)
    edges = pd.to_datetime([plan.valid_from, plan.test_from], errors="coerce", utc=True)
    if edges.isna().any() or edges[0] > edges[1]:
        raise ValueError(
            "--valid-from and --test-from must be dates like 2019-01-01, the first not after the "
            f"second, got {plan.valid_from!r} and {plan.test_from!r}"
        )
    period_N, is_dated_N = np.searchsorted(edges, time_N, "right"), time_N.notna()
    dated = pd.Series(period_N[is_dated_N])
    first = dated.groupby(cohort.patients.to_numpy()[is_dated_N]).min()
    splits, left_out = [], {}
    for row, patient in enumerate(cohort.patients):
        if not is_dated_N[row]:
            left_out[row] = ("no time", f"column {plan.time} holds no date (like 2019-01-31)")
        elif period_N[row] != first[patient]:
            message = f"in the period of {SPLITS[period_N[row]]}, its patient's first ECG is not"
            left_out[row] = ("other period", message)
        splits.append(NO_SPLIT if row in left_out else SPLITS[period_N[row]])
    policy = {"time": plan.time, "valid_from": plan.valid_from, "test_from": plan.test_from}
    return Assignment(splits=splits, left_out=left_out, policy=policy)


def _split_by_site(cohort: Cohort, plan: SplitPlan) -> Assignment:
    sites = cohort.extra["site"].tolist()
    known = set(sites)
    requested = [*plan.valid_sites, *plan.test_sites]
    if not set(requested) <= known or len(set(requested)) < len(requested):
        raise ValueError(
            f"--valid-sites and --test-sites name sites of column {plan.site}, each once: it has "
            f"{', '.join(sorted(known)[:10])}, got {', '.join(requested)}"
        )
    split_of = dict.fromkeys(known, "train") | dict.fromkeys(plan.valid_sites, "valid")
    split_of |= dict.fromkeys(plan.test_sites, "test") | {"": NO_SPLIT}
    splits = [split_of[site] for site in sites]
    _check_patients(cohort.patients, splits)
    no_site = ("no site", f"column {plan.site} is empty")
    return Assignment(
        splits=splits,
        left_out={row: no_site for row, split in enumerate(splits) if split == NO_SPLIT},
        policy={"site": plan.site, "valid": list(plan.valid_sites), "test": list(plan.test_sites)},
    )


def _split_in_folds(cohort: Cohort, plan: SplitPlan) -> Assignment:
    """The folds of every repeat. `splits` follows the first: fold 0 tests, fold 1 validates."""
    strata = _strata(cohort) if plan.stratify else dict.fromkeys(cohort.patients, "")
    num_patients = len(strata) - (NO_PATIENT in strata)
    if num_patients < plan.folds:
        raise ValueError(f"--folds: {num_patients} patients cannot be dealt to {plan.folds} folds")
    columns = []
    for repeat in range(plan.repeats):
        fold_of: dict[str, int] = {}
        for members in _by_stratum(strata, plan.seed + repeat):
            offset = len(fold_of)
            fold_of |= {patient: (offset + k) % plan.folds for k, patient in enumerate(members)}
        columns.append([fold_of.get(patient, 0) for patient in cohort.patients])
    folds_NR = np.array(columns, np.int8).T
    names = ["test", "valid", *["train"] * (plan.folds - 2)]
    policy: dict[str, Any] = {"folds": plan.folds, "repeats": plan.repeats, "seed": plan.seed}
    return Assignment(
        splits=[names[fold] for fold in folds_NR[:, 0]],
        folds_NR=folds_NR,
        policy=policy | ({"strata_of": cohort.label_names} if plan.stratify else {}),
    )


def _strata(cohort: Cohort) -> dict[str, str]:
    """Patient -> a 0 or 1 for each label: is it positive in at least one of the patient's rows?"""
    positive = pd.DataFrame(cohort.labels_NK > 0).groupby(cohort.patients).any()
    return {str(p): "".join("01"[int(v)] for v in row) for p, *row in positive.itertuples()}


def _by_stratum(strata: dict[str, str], seed: int) -> list[list[str]]:
    """The patients of each stratum, in the order of their hashes."""
    patients = [patient for patient in strata if patient != NO_PATIENT]
    patients.sort(key=lambda patient: (strata[patient], _uniform(patient, seed)))
    return [list(members) for _, members in groupby(patients, key=strata.__getitem__)]


def _check_patients(patients: pd.Series, splits: Sequence[str]) -> None:
    split_N = pd.Series(splits, dtype=str)
    known = np.flatnonzero((patients != NO_PATIENT) & (split_N != NO_SPLIT))
    check_no_leakage(patients.iloc[known], split_N.iloc[known], known, "one patient")


def _splits_at(positions: Sequence[float] | np.ndarray, fractions: Fractions) -> list[str]:
    """The split at each position between 0 and 1, where train comes first and test last."""
    edges = np.cumsum(fractions[:2])
    return [SPLITS[split] for split in np.searchsorted(edges, positions, "right")]


def _uniform(patient: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
