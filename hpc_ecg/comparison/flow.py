"""From the table to the splits: what a paper says of its cohort, from the shards' own description.

The shards must be readable where the report is made; where they are not, there is no flow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.shards.format import LABEL_PREFIX, ShardSet
from hpc_ecg.shards.remote import open_shard_set


@dataclass(frozen=True, kw_only=True)
class CohortFlow:
    in_table: int
    left_out: dict[str, int]
    """Records by reason."""
    splits: list[dict[str, Any]]
    """Of each split: records, patients, age, women, and positive and missing labels."""
    labels: list[str]
    flags: dict[str, int]
    """Records that are in, but remarkable."""
    signal: str
    index_sha256: str


def read_flow(settings: Mapping[str, Any]) -> CohortFlow | str:
    """`settings` of one run, by dotted key. A text that says why, where it cannot be had."""
    try:
        allow_pipe = bool(settings.get("data.allow_pipe"))
        shards = open_shard_set(str(settings["data.shards"]), allow_pipe)
    except (ValueError, OSError) as error:
        return f"the shards cannot be read here: {error}"
    left_out = {str(k): int(n) for k, n in shards.description["left_out"].items()}
    labels = list(settings.get("data.labels") or shards.label_names)
    has_classes = settings.get("data.task") != "regression"
    return CohortFlow(
        in_table=len(shards.index) + sum(left_out.values()),
        left_out=left_out,
        splits=[_split(shards, split, labels, has_classes) for split in SPLITS],
        labels=[name for name in labels if LABEL_PREFIX + name in shards.index],
        flags={str(k): int(n) for k, n in shards.description.get("flags", {}).items()},
        signal=describe_signal(shards.signal),
        index_sha256=shards.index_sha256,
    )


def describe_signal(signal: SignalSpec) -> str:
    seconds = signal.num_samples / signal.sample_rate_hz
    return (
        f"{len(signal.leads)} leads ({', '.join(signal.leads)}), {seconds:g} s at "
        f"{signal.sample_rate_hz} Hz in {signal.unit}, {signal.amplitude}, {signal.preprocessing}, "
        f"window: {signal.window}"
    )


def _split(shards: ShardSet, split: str, labels: list[str], has_classes: bool) -> dict[str, Any]:
    rows = shards.index[shards.index["split"] == split]
    found: dict[str, Any] = {"split": split, "records": len(rows)}
    found["patients"] = int(rows["patient"].nunique())
    if "age" in rows and rows["age"].notna().any():
        low, middle, high = rows["age"].quantile([0.25, 0.5, 0.75])
        found["age"] = f"{middle:.0f} ({low:.0f}–{high:.0f})"
    if "sex" in rows and rows["sex"].notna().any():
        found["sex"] = _shares(rows["sex"])
    for name in labels:
        values = rows.get(LABEL_PREFIX + name)
        if values is not None:
            found[name] = {"positive": int((values == 1).sum())} if has_classes else {}
            found[name]["missing"] = int(values.isna().sum())
    return found


def _shares(values: pd.Series) -> str:
    counts = values.astype(str).where(values.notna()).value_counts(normalize=True).sort_index()
    return ", ".join(f"{name} {100 * part:.0f} %" for name, part in counts.items())
