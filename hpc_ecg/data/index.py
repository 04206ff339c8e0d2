"""What lies beside the shards: the index, the list of what was left out, and dataset.json."""

import csv
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import hpc_ecg
from hpc_ecg.data import splits
from hpc_ecg.data.cohort import Cohort
from hpc_ecg.data.shards import FORMAT, LABEL_PREFIX, key_of_row
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.writing import sha256_of, write_json


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    row: int
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What a worker says of the shard it wrote: a row (position, offset, …) for each record."""

    name: str
    records: list[dict[str, Any]]
    left_out: list[LeftOut]
    sha256: str
    num_bytes: int


def build_index(records: pd.DataFrame, cohort: Cohort, row_splits: list[str]) -> pd.DataFrame:
    """A row per record. The pseudonym is the patient's first row: nothing to reverse.

    Raises ValueError if identical signals lie in two splits.
    """
    first_row: dict[str, int] = {}
    for row, patient in enumerate(cohort.patients):
        first_row.setdefault(patient, row)
    rows = records["row"].tolist()
    index = pd.DataFrame({"key": [key_of_row(row) for row in rows]})
    index[["shard", "offset"]] = records[["shard", "offset"]].astype("int64")
    index["record"] = [cohort.records[row] for row in rows]
    index["patient"] = [f"p{first_row[cohort.patients[row]]:08d}" for row in rows]
    index["split"] = [row_splits[row] for row in rows]
    for k, name in enumerate(cohort.label_names):
        index[LABEL_PREFIX + name] = cohort.labels_NK[rows, k]
    for extra in cohort.extra:
        values = cohort.extra[extra].iloc[rows].reset_index(drop=True)
        index[extra] = pd.to_numeric(values, errors="coerce") if extra == "age" else values
    index[["flags", "sha256"]] = records[["flags", "sha256"]]
    signals, of_signals = index["sha256"].tolist(), index["split"].tolist()
    splits.check_apart(signals, of_signals, rows, "an identical signal")
    return index


def describe(
    index: pd.DataFrame,
    shards: list[WrittenShard],
    signal: SignalSpec,
    label_names: list[str],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What dataset.json holds, but for the index's digest."""
    left_out = Counter(item.reason for shard in shards for item in shard.left_out)
    return {
        "format": FORMAT,
        "tool": f"hpc_ecg {hpc_ecg.__version__}",
        "signal": asdict(signal),
        "microvolts_per_count": MICROVOLTS_PER_COUNT,
        "labels": label_names,
        "records": {name: int((index["split"] == name).sum()) for name in splits.SPLITS},
        "patients": {
            name: int(index[index["split"] == name]["patient"].nunique()) for name in splits.SPLITS
        },
        "label_counts": {name: _count_label(index, name) for name in label_names},
        "left_out": dict(left_out.most_common()),
        **provenance,
        "shards": [
            {"name": s.name, "records": len(s.records), "bytes": s.num_bytes, "sha256": s.sha256}
            for s in shards
        ],
    }


def _count_label(index: pd.DataFrame, name: str) -> dict[str, dict[str, int]]:
    """By split: how many records are 1, and how many have no label."""
    column = index[LABEL_PREFIX + name]
    return {
        split: {"positive": int((part == 1).sum()), "missing": int(part.isna().sum())}
        for split in splits.SPLITS
        for part in [column[index["split"] == split]]
    }


def write_beside_shards(
    folder: Path,
    index: pd.DataFrame,
    description: dict[str, Any],
    left_out: list[LeftOut],
    cohort: Cohort,
) -> dict[str, Any]:
    """Write the three files; returns the description with the index's digest in it."""
    with (folder / "left_out.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "record", "reason", "message"])
        for item in left_out:
            writer.writerow([item.row + 1, cohort.records[item.row], item.reason, item.message])
    index.to_parquet(folder / "index.parquet", index=False)
    description = description | {"index_sha256": sha256_of(folder / "index.parquet")}
    write_json(folder / "dataset.json", description)
    return description
