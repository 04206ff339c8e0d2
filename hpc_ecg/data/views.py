"""Change splits or labels in the index: the fold to test on, other labels, fewer patients.

Each function returns a changed copy of the index; signals are not needed.
"""

# N records of the index, K folds

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.cohort.identifiers import check_spellings
from hpc_ecg.cohort.splits import split_by_hash
from hpc_ecg.cohort.table import WEIGHT_PREFIX, Columns, read_cohort
from hpc_ecg.cohort.table_files import read_table
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.log import logger
from hpc_ecg.shards.format import FOLD_PREFIX, LABEL_PREFIX, rows_of_keys


def choose_fold(index: pd.DataFrame, fold: int, repeat: int) -> pd.DataFrame:
    """Assign splits: `fold` for test, the next fold for validation, all others for training.

    ValueError if the shards have no such fold or repeat.
    """
    column = f"{FOLD_PREFIX}{repeat}"
    if column not in index:
        repeats = sum(str(name).startswith(FOLD_PREFIX) for name in index)
        has = f"{repeats} repeats, counted from 0" if repeats else "no folds (--folds)"
        raise ValueError(f"data.fold={fold} data.repeat={repeat}: these shards have {has}")
    fold_N = index[column].to_numpy()
    folds = int(fold_N.max()) + 1
    if fold >= folds:
        raise ValueError(f"data.fold={fold}: these shards have {folds} folds, counted from 0")
    is_test_N, is_valid_N = fold_N == fold, fold_N == (fold + 1) % folds
    split_N = np.select([is_test_N, is_valid_N], ["test", "valid"], "train")
    return index.assign(split=split_N.astype(object))


def site_names(index: pd.DataFrame, column: str | None) -> pd.Series:
    """The site of each record, "" where it is not known; the column is `site` unless it is given.
    ValueError without such a column."""
    column = column or "site"
    if column not in index or column.startswith((LABEL_PREFIX, FOLD_PREFIX)):
        text = f"data.site_column={column}: the index has no such column"
        near = did_you_mean(column, [str(name) for name in index])
        raise ValueError(f"{text}; keep it with data shard --site or --keep{near}")
    return index[column].astype(object).where(index[column].notna(), "").map(str)


def leave_out_site(index: pd.DataFrame, site: str, column: str | None) -> pd.DataFrame:
    """Assign splits: `site` for test; the others keep train and valid. The split `left_out` gets
    their test, and all other ECGs of patients who were at `site` or in an unknown place.

    ValueError without such a column or site.
    """
    site_N = site_names(index, column)
    is_test_N, is_unknown_N = site_N == site, site_N == ""
    if not site or not is_test_N.any():
        known = sorted(set(site_N) - {""})
        has = f"{', '.join(known[:20])}{', …' * (len(known) > 20)}"
        raise ValueError(
            f"data.left_out_site={site}: column {column or 'site'} has {has or 'no site'}"
        )
    apart = set(index["patient"][is_test_N | is_unknown_N])
    is_out_N = (index["patient"].isin(apart) | (index["split"] == "test")) & ~is_test_N
    split_N = index["split"].astype(object).mask(is_out_N, "left_out").mask(is_test_N, "test")
    return index.assign(split=split_N)


def as_split(index: pd.DataFrame, by: Mapping[str, Any]) -> pd.DataFrame:
    """The index with the splits that these settings of section `data` ask for."""
    if by.get("fold") is not None:
        index = choose_fold(index, by["fold"], by.get("repeat", 0))
    if site := by.get("left_out_site"):
        index = leave_out_site(index, site, by.get("site_column"))
    if share := by.get("held_out"):
        fractions = (0.8 * (1 - share), 0.2 * (1 - share), share)
        index = index.assign(split=split_by_hash(index["patient"], fractions, seed=0))
    if by.get("all_validate"):
        index = index.assign(split=index["split"].replace({"train": "valid"}))
    return index


def replace_labels(
    index: pd.DataFrame, path: Path, names: list[str], ids_as_written: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Replace the labels by those of a table; returns the index and the names of the labels.

    The table's column `record` holds names of records; for shards without names (--key), `row`
    holds rows of the table that they were made from. Records that are not listed have no label; a
    warning says how many. All windows of a recording get its label. ValueError if the table lacks
    such a column or a label, lists no record of the shards, or writes one in another way.
    """
    columns = [str(name) for name in read_table(path)]
    by = "row" if "row" in columns and "record" not in columns else "record"
    names = names or [n for n in columns if n != by and not n.startswith(WEIGHT_PREFIX)]
    if not names:
        raise ValueError(f"data.label_table={path} has no column but {by}; add the labels")
    chosen = Columns(labels=names, patient=None, file=by, record=by, ids_as_written=True)
    table, wanted = read_cohort(path, chosen, needs_people=False), pd.Series(_names_of(index, by))
    both = {"the shards": wanted, f"{path.name}, column {by}": table.records}
    check_spellings(both, ids_as_written, "data.ids_as_written=true")
    row_of = {record: row for row, record in enumerate(table.records)}
    rows = np.array([row_of.get(name, -1) for name in wanted])
    unlisted = int((rows < 0).sum())
    if unlisted == len(index):
        raise ValueError(
            f"data.label_table={path} lists no record of the shards; its column {by} must hold "
            "what index.parquet has as record, or rows of the table that they were made from"
        )
    if unlisted:
        logger.warning(f"{path} does not list {unlisted} of {len(index)} records: no label")
    labels_NK = np.where(rows[:, None] < 0, np.nan, table.labels_NK[rows])
    replaced = (LABEL_PREFIX, WEIGHT_PREFIX)
    index = index.drop(columns=[name for name in index if str(name).startswith(replaced)])
    for name in filter(lambda name: str(name).startswith(WEIGHT_PREFIX), table.extra):
        index[name] = pd.to_numeric(table.extra[name]).to_numpy()[rows] * (rows >= 0)
    return index.assign(**{LABEL_PREFIX + n: labels_NK[:, k] for k, n in enumerate(names)}), names


def keep_label_fraction(
    index: pd.DataFrame, names: list[str], fraction: float, needs_positives: bool, seed: int = 0
) -> pd.DataFrame:
    """Keep this share of the labelled training patients, ordered by a hash of patient and seed.

    The other training records get the split `left_out`. ValueError if `needs_positives` and a label
    loses all its positive records.
    """
    labels = index[[LABEL_PREFIX + name for name in names]]
    is_train = index["split"] == "train"
    patients = index["patient"][is_train & labels.notna().any(axis=1)].unique()
    prefix = f"label {seed} " if seed else "label "  # 0: the draw of versions without seeds
    ranked = sorted(patients, key=lambda name: hashlib.sha256((prefix + name).encode()).digest())
    kept = ranked[: math.ceil(fraction * len(ranked))]
    is_kept = is_train & index["patient"].isin(kept)
    had, has = ((labels[rows] > 0).any() for rows in (is_train, is_kept))
    without = [name for name in names if had[LABEL_PREFIX + name] and not has[LABEL_PREFIX + name]]
    if needs_positives and without:
        raise ValueError(
            f"data.label_fraction={fraction:g} leaves {len(kept)} of {len(ranked)} training "
            f"patients, and none that is positive for {', '.join(without)}; give a larger share"
        )
    return index.assign(split=index["split"].where(is_kept | ~is_train, "left_out"))


def _names_of(index: pd.DataFrame, by: str) -> list[str]:
    """The name or row by which a table of labels refers to each record."""
    if by == "row":
        return [str(row + 1) for row in rows_of_keys(index["key"])]
    windows = ["".join(key.partition("-")[1:]) for key in index["key"]]
    pairs = zip(index["record"], windows, strict=True)
    return [record.removesuffix(window) for record, window in pairs]
