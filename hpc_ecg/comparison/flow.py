"""The cohort's flow from the table to the splits, as a paper reports it, read from the shards.

There is no flow if the shards cannot be read on the machine that makes the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.cohort.censoring import describe_censoring
from hpc_ecg.cohort.rules import Count, Flow
from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.data.views import as_split
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.hashing import read_record
from hpc_ecg.log import describe_error
from hpc_ecg.reporting.numbers import count
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.format import LABEL_PREFIX, ShardSet
from hpc_ecg.shards.remote import open_shard_set

COUNT = {"text": str, "ecgs": int, "patients": int}
FLOW = {"start": COUNT, "left_out": [COUNT], "labelled": COUNT, "labels": [COUNT]}


@dataclass(frozen=True, kw_only=True)
class CohortFlow:
    in_table: int
    left_out: dict[str, int]
    """Records by reason."""
    splits: list[dict[str, Any]]
    """By split: records, patients, age, sex, and positive and missing labels."""
    labels: list[str]
    flags: dict[str, int]
    """Records that were kept, by what is remarkable about them."""
    signal: str
    index_sha256: str
    selection: Flow | None = None
    """From all ECGs to the labelled table, as `hpc-ecg cohort` counted them; None if not known."""
    dates: str = "keep"
    """`shift` where each patient's dates were moved by up to a year."""
    on_censoring: str = ""


def read_flow(settings: Mapping[str, Any], allow_pipe: bool = False) -> CohortFlow | str:
    """Read the flow of one run's data, or say why it cannot be read. `settings` by dotted key."""
    try:
        shards = open_shard_set(str(settings["data.shards"]), allow_pipe)
        by = {str(key).removeprefix("data."): value for key, value in settings.items()}
        shards = replace(shards, index=as_split(shards.index, by))
    except (ValueError, OSError) as error:
        return f"the shards cannot be read here: {describe_error(error)}"
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
        selection=_read_selection(shards.description),
        dates=str(shards.description.get("dates", "keep")),
        on_censoring=describe_censoring(shards.description.get("censoring")),
    )


def _read_selection(description: Mapping[str, Any]) -> Flow | None:
    """The flow that lies beside the table that the shards were made from, if it is of that table.

    ValueError for a flow that is damaged."""
    table = Path(str(description.get("made_from", {}).get("table", "")))
    path = table.with_suffix(".flow.json") if table.name else table
    if not (path.is_file() and table.is_file()):
        return None
    about = read_record(path, {"table": dict, "flow": FLOW})
    if about["table"].get("sha256") != sha256_of(table):
        return None
    flow = about["flow"]
    lists = {part: [*map(_count, flow[part])] for part in ("left_out", "labels")}
    return Flow(start=_count(flow["start"]), labelled=_count(flow["labelled"]), **lists)


def _count(value: Mapping[str, Any]) -> Count:
    return Count(**{name: value[name] for name in COUNT})


def describe_signal(signal: SignalSpec) -> str:
    seconds = signal.num_samples / signal.sample_rate_hz
    return (
        f"{count(len(signal.leads), 'lead')} ({', '.join(signal.leads)}), {seconds:g} s at "
        f"{signal.sample_rate_hz} Hz in {signal.unit}, {signal.amplitude}, {signal.preprocessing}, "
        f"window: {signal.window}"
    )


def _split(shards: ShardSet, split: str, labels: list[str], has_classes: bool) -> dict[str, Any]:
    rows = shards.index[shards.index["split"] == split]
    facts: dict[str, Any] = {"split": split, "records": len(rows)}
    facts["patients"] = int(rows["patient"].nunique())
    if "age" in rows and rows["age"].notna().any():
        low, median, high = rows["age"].quantile([0.25, 0.5, 0.75])
        facts["age"] = f"{median:.0f} ({low:.0f}–{high:.0f})"
    if "sex" in rows and rows["sex"].notna().any():
        facts["sex"] = _percentages(rows["sex"])
    for name in labels:
        values = rows.get(LABEL_PREFIX + name)
        if values is not None:
            facts[name] = {"positive": int((values == 1).sum())} if has_classes else {}
            facts[name]["missing"] = int(values.isna().sum())
    return facts


def _percentages(values: pd.Series) -> str:
    shares = values.dropna().astype(str).value_counts(normalize=True).sort_index()
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
