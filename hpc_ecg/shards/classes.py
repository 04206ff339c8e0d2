"""Which classes a split lacks: nothing can be learned from such a split, or scored on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from hpc_ecg.shards.format import FOLD_PREFIX, LABEL_PREFIX

ADVICE = (
    "make the shards with --stratify, which gives each split its share of each class, or with "
    "other --fractions, dates or sites"
)


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A split, or fold, in which a label has no record of one class, or no record at all."""

    split: str
    label: str
    positive: int
    known: int

    def __str__(self) -> str:
        where = f"{self.split} has no"
        if not self.known:
            return f"{where} record with label {self.label}"
        kind = "negative" if self.positive else "positive"
        return f"{where} {kind} record of label {self.label} (of {self.known})"


def find_lacks(
    index: pd.DataFrame, labels: Sequence[str], column: str = "split", noun: str = "split"
) -> Iterator[Lack]:
    """What is missing in each split, or group of another column. A label with other values than 0
    and 1 has no classes. `noun` stands before the group in messages."""
    for group, part in index.groupby(column, sort=False):
        for label in labels:
            known = part[LABEL_PREFIX + label].dropna()
            is_binary = index[LABEL_PREFIX + label].dropna().isin([0, 1]).all()
            positive = int((known == 1).sum())
            if not len(known) or (is_binary and positive in (0, len(known))):
                name = f"{noun} {group}"
                yield Lack(split=name, label=label, positive=positive, known=len(known))


def describe_lacks(index: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """A line for each class that a split lacks (where there are folds: a fold), and one with the
    remedy; [] if nothing is missing."""
    folds = [str(name) for name in index if str(name).startswith(FOLD_PREFIX)]
    nouns = {name: f"repeat {name.removeprefix(FOLD_PREFIX)}, fold" for name in folds}
    lines = [
        f"{lack}: the label cannot be learned or scored there"
        for column, noun in (nouns or {"split": "split"}).items()
        for lack in find_lacks(index, labels, column, noun)
    ]
    return [*lines, f"to mend this, {ADVICE}"] if lines else []
