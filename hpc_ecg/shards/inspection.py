"""`hpc-ecg data inspect`: a set of shards in, what is in it and its damage out: numbers, and a page
of plots on standard ECG paper.

The numbers come from the index and shards are digested as streams, so memory does not grow with
the signals. Nothing here names a record or a patient: a plot has its key, the row of the table.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.atomic_io import write_text
from hpc_ecg.log import progress_bar
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.shards.format import LABEL_PREFIX, ShardSet
from hpc_ecg.shards.index import amplitude_of_cohort, count_flag_kinds
from hpc_ecg.shards.quality_report import (
    Picture,
    draw_amplitudes,
    most_frequent,
    sample_evenly,
)
from hpc_ecg.shards.remote import digest_shard, open_shard_set, read_part

COPY_AGAIN = "a copy of the shards that hpc-ecg data repair has mended in their folder"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    shards: ShardSet
    index: pd.DataFrame
    """Of the split that was asked for."""
    facts: dict[str, Any]
    """All numbers, ready for JSON."""


def inspect_shards(place: str | Path, split: str | None = None, verify: bool = True) -> Inspection:
    """`facts["damaged"]` holds a line for each shard that is not as written, None if not verified.

    ValueError if description or index are missing or damaged, or the split has no record.
    """
    shards = open_shard_set(place, check_sizes=False)
    index = shards.index
    if split is not None:
        index = index[index["split"] == split]
    if index.empty:
        found = ", ".join(shards.index["split"].unique())
        raise ValueError(f"{place} has no records in split {split}; there are {found}")
    about = shards.description
    facts = {
        "folder": shards.name,
        "tool": about.get("tool"),
        "signal": asdict(shards.signal),
        "shards": len(about["shards"]),
        "splits": [_describe_people(name, part) for name, part in _parts(index)],
        "labels": [
            _describe_label(label, name, part[LABEL_PREFIX + label])
            for label in shards.label_names
            for name, part in _parts(index)
        ],
        "amplitude": asdict(amplitude_of_cohort(index, shards.signal)),
        "flags": dict(most_frequent(count_flag_kinds(index["flags"]))),
        "left_out": about.get("left_out", {}),
        "split_policy": about.get("split"),
        "damaged": find_damage(shards) if verify else None,
        "mend": f"hpc-ecg data repair {shards.name}" if shards.url is None else COPY_AGAIN,
    }
    return Inspection(shards=shards, index=index, facts=facts)


def describe_inspection(facts: dict[str, Any]) -> list[str]:
    """The numbers for a terminal."""
    lines = [f"{facts['folder']}: {facts['shards']} shards; {_show_signal(facts['signal'])}"]
    for people in facts["splits"]:
        words = [f"{people['split']}: {people['records']} records of {people['patients']} patients"]
        words += [f"age {_show_quantiles(people['age'])}"] if "age" in people else []
        words += [f"sex {_show_list(people['sex'])}"] if "sex" in people else []
        lines.append("; ".join(words))
        of_split = [about for about in facts["labels"] if about["split"] == people["split"]]
        lines += [f"  {a['label']}: {_show_label(a)}, {a['missing']} missing" for a in of_split]
    lines.append(facts["amplitude"]["sentence"])
    for what in ("flags", "left_out"):
        lines.append(f"{what.replace('_', ' ')}: {_show_list(facts[what]) or 'none'}")
    lines.append(f"split: {_show_list(facts['split_policy'] or {})}")
    if facts["damaged"]:
        lines += [f"damaged: {line}" for line in facts["damaged"]]
        return [*lines, f"mend with: {facts['mend']}"]
    verified = "not verified" if facts["damaged"] is None else "all shards are as written"
    return [*lines, f"digests: {verified}"]


def write_page(path: Path, inspection: Inspection, num_plots: int, seed: int = 0) -> None:
    page = render_page(
        "inspection.html.jinja",
        facts=inspection.facts,
        title=Path(inspection.shards.url or inspection.shards.folder.resolve()).name,
        histogram=draw_amplitudes(inspection.index["amplitude_mv"]),
        pictures=_draw_sample(inspection, num_plots, seed),
        show_signal=_show_signal,
        show_label=_show_label,
        show_quantiles=_show_quantiles,
        show_list=_show_list,
    )
    write_text(path, page)


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
    about = shards.description["shards"]
    name, expected = about[number]["name"], about[number]["bytes"]
    try:
        digest, size = digest_shard(shards, number)
    except ValueError as error:
        return str(error).removeprefix(f"{shards.name}: ")
    twins = [other["name"] for other in about if other["sha256"] == digest]
    if name in twins:
        return None
    if twins:
        return f"{name} is swapped: it holds {twins[0]}"
    if size < expected:
        return f"{name} is cut off: {size} of {expected} bytes"
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
        people["sex"] = dict(sorted(sexes.value_counts().to_dict().items()))
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


def _show_signal(signal: dict[str, Any]) -> str:
    rest = [str(signal[name]) for name in ("unit", "amplitude", "preprocessing")]
    size = f"{len(signal['leads'])} leads, {signal['num_samples']} samples"
    return ", ".join(
        [f"{size} at {signal['sample_rate_hz']} Hz", *rest, f"window {signal['window']}"]
    )


def _show_label(about: dict[str, Any]) -> str:
    if "values" in about:
        return _show_quantiles(about["values"])
    share = "" if about["prevalence"] is None else f" ({100 * about['prevalence']:.1f} %)"
    return f"{about['positive']} positive{share}"


def _show_quantiles(values: dict[str, Any] | None) -> str:
    if values is None:
        return "unknown"
    missing = f", {values['missing']} missing" if values["missing"] else ""
    return f"{values['median']:.3g} (90 %: {values['low']:.3g} to {values['high']:.3g}{missing})"


def _show_list(named: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _draw_sample(inspection: Inspection, num_plots: int, seed: int) -> list[Picture]:
    """From shards that are whole, as far as is known; the values of the first label in turn."""
    damaged = {line.partition(" ")[0] for line in inspection.facts["damaged"] or []}
    about = inspection.shards.description["shards"]
    whole = [number for number, shard in enumerate(about) if shard["name"] not in damaged]
    index = inspection.index[inspection.index["shard"].isin(whole)]
    values = [str(x) for x in index[LABEL_PREFIX + inspection.shards.label_names[0]]]
    chosen = sample_evenly(index["key"], np.array(values, object), num_plots, seed)
    return [_draw(inspection.shards, index.iloc[n]) for n in chosen]


def _draw(shards: ShardSet, record: pd.Series) -> Picture:
    labels = [f"{name} {record[LABEL_PREFIX + name]:g}" for name in shards.label_names]
    flags = record["flags"].split(";") if record["flags"] else []
    caption = ", ".join([f"Key {record['key']}", record["split"], *labels, *flags])
    ecg_LS = _read_mv(shards, record)
    svg = draw_ecg(ecg_LS, shards.signal.leads, shards.signal.sample_rate_hz, caption)
    return Picture(caption=caption, svg=inline_svg(svg, caption))


def _read_mv(shards: ShardSet, record: pd.Series) -> np.ndarray:
    """[L, S]; NaN where a padded record has no samples."""
    shard, shape = int(record["shard"]), (len(shards.signal.leads), shards.signal.num_samples)
    data = read_part(shards, shard, int(record["offset"]), 2 * shape[0] * shape[1])
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        name = f"{shards.name}/{shards.shard_path(shard).name}"
        raise ValueError(
            f"{name} is damaged (key {record['key']}); leave out --no-verify to see all"
        )
    ecg_LS = np.frombuffer(data, "<i2").reshape(shape) * (shards.microvolts_per_count / 1000)
    ecg_LS[:, int(record["samples"]) :] = np.nan
    return ecg_LS
