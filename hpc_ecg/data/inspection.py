"""`hpc-ecg data inspect`: a set of shards in, the numbers of what is in it and its damage out.

The numbers come from the index and shards are digested as streams, so memory does not grow with
the signals. Nothing here names a record or a patient.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.data.quality_report import count_names, kinds_of
from hpc_ecg.data.shards import LABEL_PREFIX, ShardSet, read_shard_set
from hpc_ecg.ecg.amplitude import compare_amplitudes
from hpc_ecg.log import progress_bar
from hpc_ecg.writing import sha256_of


@dataclass(frozen=True, kw_only=True)
class Inspection:
    shards: ShardSet
    index: pd.DataFrame
    """Of the split that was asked for."""
    facts: dict[str, Any]
    """All numbers, ready for JSON."""


def inspect_shards(folder: Path, split: str | None = None, verify: bool = True) -> Inspection:
    """`facts["damaged"]` holds a line for each shard that is not as written, None if not verified.

    ValueError if description or index are missing or damaged, or the split has no record.
    """
    shards = read_shard_set(folder, check_sizes=False)
    index = shards.index
    if split is not None:
        index = index[index["split"] == split]
    if index.empty:
        found = ", ".join(shards.index["split"].unique())
        raise ValueError(f"{folder} has no records in split {split}; there are {found}")
    about = shards.description
    facts = {
        "folder": str(folder),
        "tool": about.get("tool"),
        "signal": asdict(shards.signal),
        "shards": len(about["shards"]),
        "splits": [_describe_people(name, part) for name, part in _parts(index)],
        "labels": [
            _describe_label(label, name, part[LABEL_PREFIX + label])
            for label in shards.label_names
            for name, part in _parts(index)
        ],
        "amplitude": asdict(compare_amplitudes(index["amplitude_mv"].to_numpy())),
        "flags": dict(count_names(kind for flags in index["flags"] for kind in kinds_of(flags))),
        "left_out": about.get("left_out", {}),
        "split_policy": about.get("split"),
        "damaged": find_damage(shards) if verify else None,
    }
    return Inspection(shards=shards, index=index, facts=facts)


def find_damage(shards: ShardSet) -> list[str]:
    """A line for each shard that is missing, cut off, swapped or changed; all bytes are read."""
    about = shards.description["shards"]
    check = partial(_check_shard, shards)
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool, progress_bar("digests", len(about)) as advance:
        lines = []
        for line in pool.map(check, range(len(about))):
            lines += [line] if line else []
            advance()
    return lines


def _check_shard(shards: ShardSet, number: int) -> str | None:
    about, path = shards.description["shards"], shards.shard_path(number)
    name, size = about[number]["name"], about[number]["bytes"]
    if not path.is_file():
        return f"{name} is missing"
    digest = sha256_of(path)
    twins = [other["name"] for other in about if other["sha256"] == digest]
    if name in twins:
        return None
    if twins:
        return f"{name} is swapped: it holds {twins[0]}"
    if path.stat().st_size < size:
        return f"{name} is cut off: {path.stat().st_size} of {size} bytes"
    return f"{name} is damaged (its SHA-256)"


def _parts(index: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each split in the index's order, then all together if there are several."""
    names = index["split"].unique().tolist()
    for name in sorted(names, key=["train", "valid", "test", *names].index):
        yield name, index[index["split"] == name]
    if len(names) > 1:
        yield "all", index


def _describe_people(name: str, part: pd.DataFrame) -> dict[str, Any]:
    patients = int(part["patient"].nunique())
    people: dict[str, Any] = {"split": name, "records": len(part), "patients": patients}
    if "age" in part:
        people["age"] = _quantiles(part["age"])
    if "sex" in part:
        sexes = part["sex"].fillna("").astype(str).replace("", "missing")
        people["sex"] = dict(sorted(count_names(sexes)))
    return people


def _describe_label(label: str, split: str, values: pd.Series) -> dict[str, Any]:
    """Positive and prevalence of what is 0 or 1, quantiles of other numbers."""
    there = values.dropna()
    about: dict[str, Any] = {"label": label, "split": split, "missing": len(values) - len(there)}
    if not there.isin([0, 1]).all():
        return about | {"values": _quantiles(values)}
    prevalence = float(there.mean()) if len(there) else None
    return about | {"positive": int(there.sum()), "prevalence": prevalence}


def _quantiles(values: pd.Series) -> dict[str, Any] | None:
    there = values.dropna().to_numpy(float)
    if not len(there):
        return None
    low, median, high = np.percentile(there, [5, 50, 95]).tolist()
    return {"median": median, "low": low, "high": high, "missing": len(values) - len(there)}
