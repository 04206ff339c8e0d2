"""What lies beside the shards: the index, the lists of what was left out, and dataset.json.

The notes of all shards and the table come in; a set of shards that `read_shard_set` opens goes
out. Here, where all records are seen together, leaks and duplicates are found.
"""

# N records, R repeats

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import hpc_ecg
from hpc_ecg.atomic_io import sha256_of, write_json, write_text
from hpc_ecg.cohort import splits
from hpc_ecg.cohort.table import Cohort
from hpc_ecg.ecg.amplitude import AmplitudeFacts, compare_amplitudes
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, amplitude_factor
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.shards.format import FOLD_PREFIX, FORMAT, LABEL_PREFIX, rows_of_keys

UNLIKE_FACTOR = 10.0
"""A record whose amplitude is that many times the cohort's median, or a part of it, is flagged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    row: int
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Written:
    """All shards together: their descriptions, a column per fact of the records, what is not in."""

    shards: list[dict[str, Any]]
    records: pd.DataFrame
    left_out: list[LeftOut]


def read_notes(paths: Iterable[Path]) -> Written:
    """The notes that the writers of shards left, in the order of the shards."""
    shards, parts, left_out = [], [], []
    for path in paths:
        note = json.loads(path.read_text())
        shards.append({name: note[name] for name in ("name", "records", "bytes", "sha256")})
        left_out += [LeftOut(**item) for item in note["left_out"]]
        if note["rows"]:
            parts.append(pd.DataFrame(note["rows"]))
    records = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return Written(shards=shards, records=records, left_out=left_out)


def build_index(
    records: pd.DataFrame, cohort: Cohort, assignment: splits.Assignment, twins: Path
) -> pd.DataFrame:
    """A row per record, in the order of the shards. `cohort` is as the index may show it.

    Raises ValueError if identical signals lie in two splits; all of them are listed in `twins`.
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
        index[extra] = pd.to_numeric(values, errors="coerce") if extra == "age" else values
    index[["samples", "amplitude_mv", "sha256"]] = records[["samples", "amplitude_mv", "sha256"]]
    index["flags"] = _all_flags(records)
    _check_signals_apart(index, rows, twins)
    return index


def _all_flags(records: pd.DataFrame) -> pd.Series:
    """Those of the record, and those that only the whole cohort shows."""
    flags = records["flags"]
    amplitude_N = records["amplitude_mv"].to_numpy()
    ratio_N = amplitude_N / np.median(amplitude_N)
    is_unlike_N = (ratio_N > UNLIKE_FACTOR) | (ratio_N < 1 / UNLIKE_FACTOR)
    is_twin_N = records["sha256"].duplicated(keep=False).to_numpy()
    more = {"amplitude_unlike_cohort": is_unlike_N, "duplicate_signal": is_twin_N}
    for name, is_N in more.items():
        flags = flags.mask(is_N, (flags + f";{name}").str.removeprefix(";"))
    return flags


def _check_signals_apart(index: pd.DataFrame, rows: np.ndarray, twins: Path) -> None:
    """In no repeat of the folds either."""
    folds = [name for name in map(str, index) if name.startswith(FOLD_PREFIX)]
    for name in ["split", *folds]:
        place_N = index[name] if name == "split" else "fold " + index[name].astype(str)
        try:
            splits.check_no_leakage(index["sha256"], place_N, rows, "an identical signal")
        except ValueError as error:
            is_spread_N = place_N.groupby(index["sha256"]).transform("nunique") > 1
            table = pd.DataFrame({"row": rows + 1, "split": place_N, "sha256": index["sha256"]})
            table = table[is_spread_N].sort_values(["sha256", "row"])
            write_text(twins, table.to_csv(index=False))
            raise ValueError(f"{error}; all of them are listed in {twins}") from None


def describe(
    index: pd.DataFrame,
    written: Written,
    signal: SignalSpec,
    label_names: Sequence[str],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What dataset.json holds, but for the index's digest."""
    return {
        "format": FORMAT,
        "tool": f"hpc_ecg {hpc_ecg.__version__}",
        "signal": asdict(signal),
        "microvolts_per_count": MICROVOLTS_PER_COUNT,
        "labels": list(label_names),
        "records": {name: int((index["split"] == name).sum()) for name in splits.SPLITS},
        "patients": {
            name: int(index["patient"][index["split"] == name].nunique()) for name in splits.SPLITS
        },
        "label_counts": {name: _count_label(index, name) for name in label_names},
        "flags": dict(count_kinds(index["flags"]).most_common()),
        "left_out": dict(Counter(item.reason for item in written.left_out).most_common()),
        "amplitude": asdict(amplitude_of_cohort(index, signal)),
        **provenance,
        "shards": written.shards,
    }


def amplitude_of_cohort(index: pd.DataFrame, signal: SignalSpec) -> AmplitudeFacts:
    """As recorded: a factor that was asked for is no mistake."""
    return compare_amplitudes(index["amplitude_mv"].to_numpy() / amplitude_factor(signal.amplitude))


def kinds_of(flags: str) -> list[str]:
    """`derived:III,aVF;padded` is of the kinds derived and padded."""
    return list(dict.fromkeys(flag.partition(":")[0] for flag in flags.split(";") if flag))


def count_kinds(flags: pd.Series) -> Counter[str]:
    """How many records have which."""
    count: Counter[str] = Counter()
    for of_some, number in flags.value_counts(sort=False).items():
        count.update(dict.fromkeys(kinds_of(str(of_some)), number))
    return count


def _count_label(index: pd.DataFrame, name: str) -> dict[str, dict[str, Any]]:
    """By split: how many records are 1, or the mean of other numbers; how many have no label."""
    column = index[LABEL_PREFIX + name]
    is_binary = column.dropna().isin([0, 1]).all()
    counts = {}
    for split in splits.SPLITS:
        part = column[index["split"] == split]
        mean = None if part.isna().all() else float(part.mean())
        value = {"positive": int((part == 1).sum())} if is_binary else {"mean": mean}
        counts[split] = value | {"missing": int(part.isna().sum())}
    return counts


def write_beside_shards(
    folder: Path,
    index: pd.DataFrame,
    description: dict[str, Any],
    left_out: Sequence[LeftOut],
    cohort: Cohort,
) -> dict[str, Any]:
    """Write the three files; returns the description with the index's digest in it."""
    with (folder / "left_out.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "record", "reason", "message"])
        for item in left_out:
            writer.writerow(
                [item.row + 1, cohort.records.iloc[item.row], item.reason, item.message]
            )
    index.to_parquet(folder / "index.parquet", index=False)
    description = description | {"index_sha256": sha256_of(folder / "index.parquet")}
    write_json(folder / "dataset.json", description)
    return description


def _say(counts: dict[str, Any]) -> str:
    if "positive" in counts:
        return f"{counts['positive']} positive"
    return "no mean" if counts["mean"] is None else f"mean {counts['mean']:.4g}"


def describe_outcome(description: dict[str, Any], out: Path) -> list[str]:
    """What was taken, what was left out or flagged and why, for a terminal."""
    lines = [
        f"{split}: {description['records'][split]} records of {patients} patients"
        + "".join(
            f"; {name}: {_say(counts[split])}, {counts[split]['missing']} missing"
            for name, counts in description["label_counts"].items()
        )
        for split, patients in description["patients"].items()
    ]
    for what, file in (("left out", "left_out.csv"), ("flags", "quality.html")):
        counts = description[what.replace(" ", "_")]
        if counts:
            named = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            lines.append(f"{what}: {sum(counts.values())} ({named}); see {out}/{file}")
    if description["amplitude"]["suggested_factor"] is not None:
        lines.append(description["amplitude"]["sentence"])
    return [*lines, f"written: {out}, number of shards: {len(description['shards'])}"]
