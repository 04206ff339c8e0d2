"""What stands beside the shards: the index, the list of what was left out, and dataset.json.

Here all records are seen together for the first time, so leaks and duplicates are found here.
"""

# N records, R repeats

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.atomic_io import check_may_write, write_atomically, write_json, write_text
from hpc_ecg.cohort.splits import SPLITS, Assignment, check_no_leakage
from hpc_ecg.cohort.table import WEIGHT_PREFIX, Cohort
from hpc_ecg.ecg.amplitude import AmplitudeFacts, compare_amplitudes
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, amplitude_factor
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.description import (
    DESCRIPTION_SHA256,
    FORMAT,
    count_label,
    digest_of_description,
)
from hpc_ecg.shards.format import FOLD_PREFIX, LABEL_PREFIX, rows_of_keys
from hpc_ecg.version import __version__

OUTLIER_FACTOR = 10.0
"""Flag an amplitude that is this many times larger or smaller than the cohort's median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A row of the table that is in no shard."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What all shards hold together."""

    shards: list[dict[str, Any]]
    """Name, number of records, bytes and SHA-256 of each shard."""
    records: pd.DataFrame
    left_out: list[LeftOut]


def read_notes(paths: Iterable[Path]) -> WrittenShards:
    """Combine the notes that were written with the shards, in the order of the shards."""
    shards, parts, left_out = [], [], []
    for path in paths:
        note = json.loads(path.read_text())
        shards.append({name: note[name] for name in ("name", "records", "bytes", "sha256")})
        left_out += [LeftOut(**item) for item in note["left_out"]]
        if note["rows"]:
            parts.append(pd.DataFrame(note["rows"]))
    records = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return WrittenShards(shards=shards, records=records, left_out=left_out)


def build_index(
    records: pd.DataFrame, cohort: Cohort, assignment: Assignment, duplicates_csv: Path
) -> pd.DataFrame:
    """A row per record, in the order of the shards. `cohort` holds only what may be published.

    Raises ValueError if two splits share an identical signal, and lists all such records in
    `duplicates_csv`.
    """
    rows = rows_of_keys(records["key"])
    index = records[["key", "shard", "offset"]]
    windows = records["key"].str.replace("^[0-9]+", "", regex=True)
    index["record"] = cohort.records.iloc[rows].array + windows
    index["patient"] = cohort.patients.iloc[rows].array
    index["split"] = np.array(assignment.splits, dtype=object)[rows]
    if assignment.folds_NR is not None:
        for repeat, fold_N in enumerate(assignment.folds_NR[rows].T):
            index[f"{FOLD_PREFIX}{repeat}"] = fold_N
    for k, name in enumerate(cohort.label_names):
        index[LABEL_PREFIX + name] = cohort.labels_NK[rows, k]
    for extra in cohort.extra:
        values = cohort.extra[extra].iloc[rows].reset_index(drop=True)
        is_number = extra == "age" or str(extra).startswith(WEIGHT_PREFIX)
        index[extra] = pd.to_numeric(values, errors="coerce") if is_number else values
    index[["samples", "amplitude_mv", "sha256"]] = records[["samples", "amplitude_mv", "sha256"]]
    index["flags"] = _add_cohort_flags(records, np.isin(rows, cohort.capped_ages))
    _check_no_signal_in_two_splits(index, rows, duplicates_csv)
    return index


def _add_cohort_flags(records: pd.DataFrame, age_capped: np.ndarray) -> pd.Series:
    """Each record's flags, and those that only a look at the whole cohort can give."""
    flags = records["flags"]
    ratio_N = records["amplitude_mv"] / records["amplitude_mv"].median()
    added = {
        "amplitude_unlike_cohort": (ratio_N > OUTLIER_FACTOR) | (ratio_N < 1 / OUTLIER_FACTOR),
        "duplicate_signal": records["sha256"].duplicated(keep=False),
        "age_capped": pd.Series(age_capped),
    }
    for name, is_flagged_N in added.items():
        flags = flags.mask(is_flagged_N, (flags + f";{name}").str.removeprefix(";"))
    return flags


def _check_no_signal_in_two_splits(
    index: pd.DataFrame, rows: np.ndarray, duplicates_csv: Path
) -> None:
    """Check the split and the folds of every repeat."""
    signal = index["sha256"]
    for name in ["split", *index.columns[index.columns.str.startswith(FOLD_PREFIX)]]:
        split_N = index[name] if name == "split" else "fold " + index[name].astype(str)
        try:
            check_no_leakage(signal, split_N, rows, "an identical signal")
        except ValueError as error:
            table = pd.DataFrame({"row": rows + 1, "split": split_N, "sha256": signal})
            table = table[split_N.groupby(signal).transform("nunique") > 1]
            is_ours = duplicates_csv.exists() and "row,split," in duplicates_csv.read_text()[:99]
            check_may_write(duplicates_csv, is_ours)
            write_text(duplicates_csv, csv_text(table.sort_values(["sha256", "row"])), True)
            raise ValueError(f"{error}; all of them are listed in {duplicates_csv}") from None


def build_description(
    index: pd.DataFrame,
    written: WrittenShards,
    signal: SignalSpec,
    label_names: Sequence[str],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The content of dataset.json, without the digest of the index."""
    records = index["split"].value_counts()
    patients = index.groupby("split")["patient"].nunique()
    return {
        "format": FORMAT,
        "tool": f"hpc_ecg {__version__}",
        "signal": asdict(signal),
        "microvolts_per_count": MICROVOLTS_PER_COUNT,
        "labels": list(label_names),
        "records": {name: int(records.get(name, 0)) for name in SPLITS},
        "patients": {name: int(patients.get(name, 0)) for name in SPLITS},
        "label_counts": {name: count_label(index, name) for name in label_names},
        "flags": dict(count_flag_kinds(index["flags"]).most_common()),
        "left_out": dict(Counter(item.reason for item in written.left_out).most_common()),
        "amplitude": asdict(amplitude_of_cohort(index, signal)),
        **provenance,
        "shards": written.shards,
    }


def amplitude_of_cohort(index: pd.DataFrame, signal: SignalSpec) -> AmplitudeFacts:
    """The amplitude as recorded, before a factor that the user asked for."""
    return compare_amplitudes(index["amplitude_mv"].to_numpy() / amplitude_factor(signal.amplitude))


def flag_kinds(flags: str) -> list[str]:
    """The kinds in a record's flags: `derived:III,aVF;padded` gives derived and padded."""
    return list(dict.fromkeys(flag.partition(":")[0] for flag in flags.split(";") if flag))


def count_flag_kinds(flags: pd.Series) -> Counter[str]:
    """Kind of flag -> number of records that carry it."""
    count: Counter[str] = Counter()
    for combination, number in flags.value_counts(sort=False).items():
        count.update(dict.fromkeys(flag_kinds(str(combination)), number))
    return count


def write_metadata(
    folder: Path,
    index: pd.DataFrame,
    description: dict[str, Any],
    left_out: Sequence[LeftOut],
    cohort: Cohort,
) -> dict[str, Any]:
    """Write left_out.csv, index.parquet and dataset.json; returns what dataset.json holds."""
    lines = [(i.row + 1, cohort.records.iloc[i.row], i.reason, i.message) for i in left_out]
    table = pd.DataFrame(lines, columns=["row", "record", "reason", "message"])
    write_text(folder / "left_out.csv", csv_text(table, "\r\n"), about_people=True)
    description = json.loads(json.dumps(description))  # as it is read
    index.attrs[DESCRIPTION_SHA256] = digest_of_description(description)
    path = folder / "index.parquet"
    write_atomically(path, lambda file: index.to_parquet(file, index=False), about_people=True)
    description = description | {"index_sha256": sha256_of(folder / "index.parquet")}
    write_json(folder / "dataset.json", description)
    return description


def describe_outcome(description: dict[str, Any], out: Path) -> list[str]:
    """Lines for a terminal: what is in the shards, and what was left out or flagged and why."""
    labels = description["label_counts"].items()
    lines = [
        f"{split}: {description['records'][split]} records of {patients} patients"
        + "".join(f"; {name}: {_format_counts(counts[split])}" for name, counts in labels)
        for split, patients in description["patients"].items()
    ]
    for key, file in (("left_out", "left_out.csv"), ("flags", "quality.html")):
        counts = description[key]
        if counts:
            named = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            total, title = sum(counts.values()), key.replace("_", " ")
            lines.append(f"{title}: {total} ({named}); see {out}/{file}")
    if description["amplitude"]["suggested_factor"] is not None:
        lines.append(description["amplitude"]["sentence"])
    return [*lines, f"written: {out}, number of shards: {len(description['shards'])}"]


def _format_counts(counts: dict[str, Any]) -> str:
    if "positive" in counts:
        values = f"{counts['positive']} positive"
    else:
        values = "no mean" if counts["mean"] is None else f"mean {counts['mean']:.4g}"
    return f"{values}, {counts['missing']} missing"
