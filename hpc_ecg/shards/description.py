"""What dataset.json and index.parquet may hold: the type and bounds of each field, and how the two
must agree. A fault is one line that names the field."""

# N records

import hashlib
import json
import re
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.cohort.table import WEIGHT_PREFIX

FORMAT = "hpc_ecg-shards/2"
HEAD = 512 + 128
"""Bytes of the headers of tar and npy before a record's counts; a tar has blocks of 512."""
MAX_RECORDS = 1 << 24
"""A file of kilobytes can state any number of equal rows."""
LABEL_PREFIX = "label."
FOLD_PREFIX = "fold."
REQUIRED = ("signal", "microvolts_per_count", "labels", "records", "shards", "index_sha256")
HOW_TO_RESTORE = (
    "copy it again from where the shards were written, or write the shards again "
    "(hpc-ecg data repair needs this file)"
)
DESCRIPTION_SHA256 = "description_sha256"
NOT_DIGESTED = ("index_sha256", "tool", "made_from")
DIGEST = "[0-9a-f]{64}"
WHOLE, NUMBER, TEXT = "whole numbers", "numbers", "text"
COLUMNS = {"key": TEXT, "shard": WHOLE, "offset": WHOLE, "record": TEXT, "patient": TEXT}
COLUMNS |= {"split": TEXT, "samples": WHOLE, "amplitude_mv": NUMBER, "sha256": TEXT, "flags": TEXT}
OPTIONAL = {"age": NUMBER, "sex": TEXT, "site": TEXT, "time": TEXT}


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def digest_of_description(about: dict[str, Any]) -> str:
    """SHA-256 of what dataset.json says of the shards. The index holds it, so an edit of either is
    noticed; left out are the index's digest and what equal shards may differ in."""
    facts = {key: value for key, value in about.items() if key not in NOT_DIGESTED}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_description(about: dict[str, Any]) -> None:
    """ValueError for a field of another type or out of bounds; `signal` is read elsewhere."""
    missing = [name for name in REQUIRED if name not in about]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; write the shards again")
    scale, labels, shards = about["microvolts_per_count"], about["labels"], about["shards"]
    is_scale = type(scale) in (int, float) and 0 < scale <= 1e6
    _check_field("microvolts_per_count", scale, is_scale, "a number between 0 and a million")
    is_list = isinstance(labels, list) and all(isinstance(name, str) and name for name in labels)
    is_list = is_list and 0 < len(set(labels)) == len(labels)
    _check_field("labels", labels, is_list, "a list of different names")
    for name in ("records", "patients", "flags", "left_out"):
        counts = about.get(name, {})
        is_right = isinstance(counts, dict) and all(map(_is_count, counts.values()))
        _check_field(name, counts, is_right, "counts by name")
    for name in ("split", "label_counts", "censoring"):
        _check_field(name, about.get(name), isinstance(about.get(name, {}), dict), "an object")
    is_list = isinstance(shards, list) and {type(shard) for shard in shards} == {dict}
    _check_field("shards", shards, is_list, "a list with an entry for each shard")
    for number, shard in enumerate(shards):
        name, sha256, entry = shard.get("name"), shard.get("sha256"), f"shards[{number}]"
        _check_field(f"{entry}.name", name, name == shard_name(number), shard_name(number))
        _check_field(f"{entry}.sha256", sha256, re.fullmatch(DIGEST, str(sha256)), "a SHA-256")
        for key in ("records", "bytes"):
            _check_field(f"{entry}.{key}", shard.get(key), _is_count(shard.get(key)), "a count")


def check_index(index: pd.DataFrame, about: dict[str, Any], record_bytes: int, length: int) -> None:
    """ValueError for a column that is missing, of another type or out of bounds, and for records
    that are not where dataset.json says; a record takes `record_bytes`, of `length` samples."""
    labels = {LABEL_PREFIX + name: NUMBER for name in about["labels"]}
    folds = {str(name): WHOLE for name in index if str(name).startswith(FOLD_PREFIX)}
    for name, kind in (COLUMNS | labels | folds).items():
        if name not in index:
            raise ValueError(f"column {name} is missing; {HOW_TO_RESTORE}")
        _check_kind(index.loc[:, name], kind, has_gaps=name in labels)
    optional = OPTIONAL | {WEIGHT_PREFIX + name: NUMBER for name in about["labels"]}
    for name in optional.keys() & set(index):
        _check_kind(index.loc[:, name], optional[name], has_gaps=True)
    shards = about["shards"]
    shard_N, offset_N = index["shard"], index["offset"]
    _check(shard_N, shard_N.between(0, len(shards) - 1), f"a shard below {len(shards)}")
    size_N = np.array([shard["bytes"] for shard in shards])[shard_N]
    is_inside_N = (offset_N >= HEAD) & (offset_N % 512 == HEAD % 512)
    is_inside_N &= offset_N <= size_N - record_bytes
    _check(offset_N, is_inside_N, f"{HEAD} + 512 n, with the whole record inside its shard")
    step_N, gap_N = shard_N.diff().fillna(1), offset_N.diff().fillna(record_bytes)
    _check(shard_N, step_N >= 0, "the order of the shards")
    _check(offset_N, (step_N > 0) | (gap_N >= record_bytes), "one record after another")
    for name, pattern in (("key", r"\d{8,}(-\d{3,})?"), ("sha256", DIGEST), ("patient", r"(?s).+")):
        _check(index[name], index[name].str.fullmatch(pattern), f"text like {pattern}")
    for name in ("key", "record"):
        _check(index[name], ~index[name].duplicated(), "each value once")
    _check(index["split"], index["split"].isin(SPLITS), f"one of {', '.join(SPLITS)}")
    _check(index["samples"], index["samples"].between(1, length), f"1 to {length}")
    for name in ("amplitude_mv", *folds):
        _check(index[name], index[name] >= 0, "no negative number")
    _check_counts(index, about)


def _check_counts(index: pd.DataFrame, about: dict[str, Any]) -> None:
    patients = index.groupby("split")["patient"]
    counted: dict[str, Any] = {"records": patients.size(), "patients": patients.nunique()}
    found = {name: {s: int(n.get(s, 0)) for s in SPLITS} for name, n in counted.items()}
    in_shards = np.bincount(index["shard"], minlength=len(about["shards"])).tolist()
    pairs: list[Any] = [(f"{name} by split", n, about.get(name, n)) for name, n in found.items()]
    pairs += [("records by shard", in_shards, [shard["records"] for shard in about["shards"]])]
    for name, stated in about.get("label_counts", {}).items():
        pairs.append((f"label {name}", count_label(index, name), stated))
    for what, counts, stated in map(_rounded, pairs):
        if counts != stated:
            raise ValueError(f"{what}: {counts}, but {stated} in dataset.json; {HOW_TO_RESTORE}")


def _rounded(value: Any) -> Any:
    """Equal on any machine, though means may differ in their last bits."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 6))


def count_label(index: pd.DataFrame, name: str) -> dict[str, dict[str, Any]]:
    """For each split: the positives (or the mean, if not binary) and the missing labels."""
    column = index[LABEL_PREFIX + name]
    is_binary = column.dropna().isin([0, 1]).all()
    counts = {}
    for split in SPLITS:
        part = column[index["split"] == split]
        mean = None if part.isna().all() else float(part.mean())
        value = {"positive": int((part == 1).sum())} if is_binary else {"mean": mean}
        counts[split] = value | {"missing": int(part.isna().sum())}
    return counts


def _check_kind(column: pd.Series, kind: str, has_gaps: bool) -> None:
    if kind == TEXT:
        is_kind = types.infer_dtype(column, skipna=True) in ("string", "empty")
    else:
        is_kind = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
        is_kind = is_kind and (kind == NUMBER or types.is_integer_dtype(column))
    if not is_kind:
        raise ValueError(f"column {column.name} holds {column.dtype}, not {kind}; {HOW_TO_RESTORE}")
    _check(column, ~column.isna() | has_gaps, "a value")
    if kind == NUMBER:
        _check(column, ~np.isinf(column), "a finite number")


def _check(column: pd.Series, is_right_N: pd.Series, expected: str) -> None:
    if not is_right_N.all():
        row = int(np.argmin(is_right_N))
        _check_field(f"row {row + 1}: {column.name}", column.iloc[row], False, expected)


def _check_field(field: str, value: Any, is_right: object, expected: str) -> None:
    if not is_right:
        seen = repr(value)[:60]
        raise ValueError(f"{field} is {seen}, expected {expected}; {HOW_TO_RESTORE}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**50
