"""What `hpc-ecg data inspect` says on a terminal, and its page of plots on standard ECG paper.

An Inspection comes in. Plots are of single records, read by their place in the shard and verified;
they are named by their key, the row of the user's table.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.data.inspection import Inspection
from hpc_ecg.data.quality_report import Picture, choose_evenly, draw_amplitudes
from hpc_ecg.data.shards import LABEL_PREFIX, ShardSet
from hpc_ecg.ecg_paper import draw_ecg
from hpc_ecg.page import inline_svg, render_page
from hpc_ecg.writing import write_text


def describe_inspection(facts: dict[str, Any]) -> list[str]:
    """The numbers for a terminal."""
    lines = [f"{facts['folder']}: {facts['shards']} shards; {show_signal(facts['signal'])}"]
    for people in facts["splits"]:
        words = [f"{people['split']}: {people['records']} records of {people['patients']} patients"]
        words += [f"age {show_quantiles(people['age'])}"] if "age" in people else []
        words += [f"sex {show_list(people['sex'])}"] if "sex" in people else []
        lines.append("; ".join(words))
        of_split = [about for about in facts["labels"] if about["split"] == people["split"]]
        lines += [f"  {a['label']}: {show_label(a)}, {a['missing']} missing" for a in of_split]
    lines.append(facts["amplitude"]["sentence"])
    for what in ("flags", "left_out"):
        lines.append(f"{what.replace('_', ' ')}: {show_list(facts[what]) or 'none'}")
    lines.append(f"split: {show_list(facts['split_policy'] or {})}")
    if facts["damaged"]:
        lines += [f"damaged: {line}" for line in facts["damaged"]]
        return [*lines, f"mend with: hpc-ecg data repair {facts['folder']}"]
    verified = "not verified" if facts["damaged"] is None else "all shards are as written"
    return [*lines, f"digests: {verified}"]


def show_signal(signal: dict[str, Any]) -> str:
    rest = [str(signal[name]) for name in ("unit", "amplitude", "preprocessing")]
    size = f"{len(signal['leads'])} leads, {signal['num_samples']} samples"
    return ", ".join(
        [f"{size} at {signal['sample_rate_hz']} Hz", *rest, f"window {signal['window']}"]
    )


def show_label(about: dict[str, Any]) -> str:
    if "values" in about:
        return show_quantiles(about["values"])
    share = "" if about["prevalence"] is None else f" ({100 * about['prevalence']:.1f} %)"
    return f"{about['positive']} positive{share}"


def show_quantiles(values: dict[str, Any] | None) -> str:
    if values is None:
        return "unknown"
    missing = f", {values['missing']} missing" if values["missing"] else ""
    return f"{values['median']:.3g} (90 %: {values['low']:.3g} to {values['high']:.3g}{missing})"


def show_list(named: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def write_page(path: Path, inspection: Inspection, num_plots: int, seed: int = 0) -> None:
    page = render_page(
        "inspection.html.jinja",
        facts=inspection.facts,
        title=inspection.shards.folder.resolve().name,
        histogram=draw_amplitudes(inspection.index["amplitude_mv"]),
        pictures=_draw_sample(inspection, num_plots, seed),
        show_signal=show_signal,
        show_label=show_label,
        show_quantiles=show_quantiles,
        show_list=show_list,
    )
    write_text(path, page)


def _draw_sample(inspection: Inspection, num_plots: int, seed: int) -> list[Picture]:
    """From shards that are whole, as far as is known; the values of the first label in turn."""
    damaged = {line.partition(" ")[0] for line in inspection.facts["damaged"] or []}
    about = inspection.shards.description["shards"]
    whole = [number for number, shard in enumerate(about) if shard["name"] not in damaged]
    index = inspection.index[inspection.index["shard"].isin(whole)]
    values = [str(x) for x in index[LABEL_PREFIX + inspection.shards.label_names[0]]]
    chosen = choose_evenly(index["key"].tolist(), values, num_plots, seed)
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
    path, signal = shards.shard_path(int(record["shard"])), shards.signal
    shape = len(signal.leads), signal.num_samples
    counts = np.fromfile(path, "<i2", count=shape[0] * shape[1], offset=int(record["offset"]))
    if hashlib.sha256(counts.tobytes()).hexdigest() != record["sha256"]:
        raise ValueError(
            f"{path} is damaged (key {record['key']}); leave out --no-verify to see all"
        )
    ecg_LS = counts.reshape(shape) * (shards.microvolts_per_count / 1000)
    ecg_LS[:, int(record["samples"]) :] = np.nan
    return ecg_LS
