"""Train, valid or test for each patient: by a seeded hash, or as the user's table says.

The hash makes a patient's split depend on that patient alone, so it stays when the cohort grows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "valid", "test")


def parse_fractions(text: str) -> tuple[float, float, float]:
    """`0.7,0.1,0.2` -> fractions of patients for train, valid, test; they sum to 1."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        fractions = ()
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise ValueError(
            f"--fractions: three numbers that sum to 1, for train, valid and test, got {text!r}"
        )
    return fractions[0], fractions[1], fractions[2]


def split_by_hash(
    patients: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[str]:
    """The split of each row's patient. The realized fractions differ a little in small cohorts."""
    edges = np.cumsum(fractions)
    edges[-1] = 1.0
    return [SPLITS[int(np.searchsorted(edges, _uniform(p, seed), "right"))] for p in patients]


def split_as_given(column: Sequence[str], name: str) -> list[str]:
    """The user's own column, checked: train, valid or test in every row."""
    wrong = [(row, value) for row, value in enumerate(column) if value not in SPLITS]
    if wrong:
        row, value = wrong[0]
        raise ValueError(
            f"column {name}, row {row + 1}: split {value!r}; allowed are {', '.join(SPLITS)}"
        )
    return list(column)


def check_apart(
    groups: Sequence[str], splits: Sequence[str], rows: Sequence[int], what: str
) -> None:
    """Raise ValueError if one group (a patient, a signal) is in two splits; names table rows."""
    first: dict[str, tuple[str, int]] = {}
    clashes = []
    for group, split, row in zip(groups, splits, rows, strict=True):
        seen = first.setdefault(group, (split, row))
        if seen[0] != split:
            clashes.append((seen, (split, row)))
    if clashes:
        (split_a, row_a), (split_b, row_b) = clashes[0]
        raise ValueError(
            f"{what} in two splits: row {row_a + 1} is {split_a}, row {row_b + 1} is {split_b} "
            f"({len(clashes)} such rows); put all of one {what.rsplit(maxsplit=1)[-1]} in one split"
        )


def _uniform(patient: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
