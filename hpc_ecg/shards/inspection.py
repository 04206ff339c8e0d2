"""`hpc-ecg data inspect`: what a set of shards holds, and which shards are damaged: as numbers, and
as a page with plots on standard ECG paper.

The numbers come from the index, and shards are digested as streams, so memory does not grow with
the signals. No record or patient is named: a plot shows the key, which is the row of the table.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.atomic_io import write_text
from hpc_ecg.cohort.splits import SPLITS
from hpc_ecg.ecg.signal import SignalSpec, describe_signal
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_percent
from hpc_ecg.shards.classes import describe_lacks
from hpc_ecg.shards.format import LABEL_PREFIX, ShardSet
from hpc_ecg.shards.index import amplitude_of_cohort, count_flag_kinds
from hpc_ecg.shards.integrity import find_damage
from hpc_ecg.shards.quality_report import Picture, draw_amplitudes, most_frequent, sample_evenly
from hpc_ecg.shards.remote import open_shard_set, read_part

REMOTE_REPAIR = "hpc-ecg data repair where the shards were written; then copy them again"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    shards: ShardSet
    index: pd.DataFrame
    """The records of the split that was asked for."""
    damage: dict[int, str]
    """Number of a damaged shard -> what is wrong; empty if not verified."""
    facts: dict[str, Any]
    """All numbers, ready for JSON."""


def inspect_shards(
    location: str | Path, split: str | None = None, verify: bool = True
) -> Inspection:
    """Count what a set of shards holds, and verify its digests.

    `facts["damaged"]` has a line for each damaged shard, or is None if not verified. Raises
    ValueError if description or index are missing or damaged, or the split has no record.
    """
    shards = open_shard_set(location, check_sizes=False)
    index = shards.index
    if split is not None:
        index = index[index["split"] == split]
    if index.empty:
        splits = ", ".join(shards.index["split"].unique())
        raise ValueError(f"{location} has no records in split {split}; there are {splits}")
    damage = find_damage(shards) if verify else {}
    description = shards.description
    facts = {
        "folder": shards.name,
        "tool": description.get("tool"),
        "signal": asdict(shards.signal),
        "shards": len(description["shards"]),
        "splits": [_describe_people(name, part) for name, part in _by_split(index)],
        "labels": [
            _describe_label(label, name, part[LABEL_PREFIX + label])
            for label in shards.label_names
            for name, part in _by_split(index)
        ],
        "lacks": describe_lacks(index, shards.label_names),
        "amplitude": asdict(amplitude_of_cohort(index, shards.signal)),
        "flags": dict(most_frequent(count_flag_kinds(index["flags"]))),
        "left_out": description.get("left_out", {}),
        "split_policy": description.get("split"),
        "damaged": list(damage.values()) if verify else None,
        "mend": REMOTE_REPAIR if shards.url else f"hpc-ecg data repair {shards.name}",
    }
    return Inspection(shards=shards, index=index, damage=damage, facts=facts)


def describe_inspection(facts: dict[str, Any]) -> list[str]:
    """The numbers as lines for a terminal."""
    signal = describe_signal(SignalSpec(**facts["signal"]))
    lines = [f"{facts['folder']}: {facts['shards']} shards; {signal}"]
    for people in facts["splits"]:
        parts = [f"{people['split']}: {people['records']} records of {people['patients']} patients"]
        if "age" in people:
            parts.append(f"age {_format_quantiles(people['age'])}")
        if "sex" in people:
            parts.append(f"sex {_format_counts(people['sex'])}")
        lines.append("; ".join(parts))
        for label in facts["labels"]:
            if label["split"] == people["split"]:
                values = f"{_format_label(label)}, {label['missing']} missing"
                lines.append(f"  {label['label']}: {values}")
    lines += [
        *facts["lacks"],
        facts["amplitude"]["sentence"],
        f"flags: {_format_counts(facts['flags']) or 'none'}",
        f"left out: {_format_counts(facts['left_out']) or 'none'}",
        f"split: {_format_policy(facts['split_policy'] or {})}",
    ]
    if facts["damaged"]:
        lines += [f"damaged: {line}" for line in facts["damaged"]]
        return [*lines, f"repair with: {facts['mend']}"]
    verified = "not verified" if facts["damaged"] is None else "all shards are intact"
    return [*lines, f"digests: {verified}"]


def write_page(out: Path, inspection: Inspection, num_plots: int, seed: int = 0) -> None:
    """Write the page with plots of `num_plots` records that `seed` chooses."""
    path = inspection.shards.folder / "dataset.json"
    page = render_page(
        "inspection.html.jinja",
        facts=inspection.facts,
        title=Path(inspection.shards.url or inspection.shards.folder.resolve()).name,
        written=f", {date.fromtimestamp(path.stat().st_mtime)}" if path.is_file() else "",
        histogram=draw_amplitudes(inspection.index["amplitude_mv"]),
        pictures=_draw_sample(inspection, num_plots, seed),
        signal=describe_signal(inspection.shards.signal),
        format_label=_format_label,
        format_quantiles=_format_quantiles,
        format_counts=_format_counts,
        format_policy=_format_policy,
    )
    write_text(out, page, about_people=True)


def _by_split(index: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each split, then all records together if there are several splits."""
    names = index["split"].unique().tolist()
    for name in sorted(names, key=[*SPLITS, *names].index):
        yield name, index[index["split"] == name]
    if len(names) > 1:
        yield "all", index


def _describe_people(split: str, part: pd.DataFrame) -> dict[str, Any]:
    people: dict[str, Any] = {"split": split, "records": len(part)}
    people["patients"] = int(part["patient"].nunique())
    if "age" in part:
        people["age"] = _quantiles(part["age"])
    if "sex" in part:
        sex = part["sex"].fillna("").astype(str).replace("", "missing")
        people["sex"] = dict(sorted(sex.value_counts().to_dict().items()))
    return people


def _describe_label(label: str, split: str, values: pd.Series) -> dict[str, Any]:
    """Positives and prevalence of a binary label, quantiles of any other."""
    known = values.dropna()
    facts: dict[str, Any] = {"label": label, "split": split, "missing": len(values) - len(known)}
    if not known.isin([0, 1]).all():
        return facts | {"values": _quantiles(values)}
    prevalence = float(known.mean()) if len(known) else None
    return facts | {"positive": int(known.sum()), "prevalence": prevalence}


def _quantiles(values: pd.Series) -> dict[str, Any] | None:
    known = values.dropna().to_numpy(float)
    if not len(known):
        return None
    low, median, high = np.percentile(known, [5, 50, 95]).tolist()
    return {"median": median, "low": low, "high": high, "missing": len(values) - len(known)}


def _format_label(label: dict[str, Any]) -> str:
    if "values" in label:
        return _format_quantiles(label["values"])
    prevalence = label["prevalence"]
    percent = "" if prevalence is None else f" ({format_percent(prevalence)})"
    return f"{label['positive']} positive{percent}"


def _format_quantiles(values: dict[str, Any] | None) -> str:
    if values is None:
        return "unknown"
    missing = f", {values['missing']} missing" if values["missing"] else ""
    return f"{values['median']:.3g} (90 %: {values['low']:.3g} to {values['high']:.3g}{missing})"


def _format_counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())


def _format_policy(policy: dict[str, Any]) -> str:
    """Such as `hash of patient, fractions 0.7 0.1 0.2, seed 0`."""
    shown = {n: " ".join(map(str, v)) if isinstance(v, list) else v for n, v in policy.items()}
    return _format_counts({name.replace("_", " "): value for name, value in shown.items()})


def _draw_sample(inspection: Inspection, num_plots: int, seed: int) -> list[Picture]:
    """Records of shards not known to be damaged, spread over the values of the first label."""
    shards = inspection.shards
    index = inspection.index[~inspection.index["shard"].isin(list(inspection.damage))]
    values = [str(x) for x in index[LABEL_PREFIX + shards.label_names[0]]]
    chosen = sample_evenly(index["key"], np.array(values, object), num_plots, seed)
    return [_draw(shards, index.iloc[n]) for n in chosen]


def _draw(shards: ShardSet, record: pd.Series) -> Picture:
    labels = [f"{name} {record[LABEL_PREFIX + name]:g}" for name in shards.label_names]
    flags = record["flags"].split(";") if record["flags"] else []
    caption = ", ".join([f"Key {record['key']}", record["split"], *labels, *flags])
    ecg_LS = read_mv(shards, record)
    svg = draw_ecg(ecg_LS, shards.signal.leads, shards.signal.sample_rate_hz, caption)
    return Picture(caption=caption, svg=inline_svg(svg, caption))


def read_mv(shards: ShardSet, record: pd.Series) -> np.ndarray:
    """One record of the index as [L, S] in mV; NaN after the end of a padded one. ValueError if
    it is damaged."""
    shard, shape = int(record["shard"]), (len(shards.signal.leads), shards.signal.num_samples)
    data = read_part(shards, shard, int(record["offset"]), 2 * shape[0] * shape[1])
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        name = f"{shards.name}/{shards.shard_path(shard).name}"
        raise ValueError(
            f"{name} is damaged (key {record['key']}); run without --no-verify to see all damage"
        )
    ecg_LS = np.frombuffer(data, "<i2").reshape(shape) * (shards.microvolts_per_count / 1000)
    ecg_LS[:, int(record["samples"]) :] = np.nan
    return ecg_LS
