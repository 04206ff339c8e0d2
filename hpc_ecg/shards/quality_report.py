"""What was left out of the shards or carries a flag in them: `quality.html` and `quality.csv`.

The table has a line for each record, so its counts add up to the rows of the user's table. The page
explains each reason and draws a sample of the records.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from hpc_ecg.atomic_io import write_text
from hpc_ecg.ecg.amplitude import EXPECTED_MV, NORMAL_RATIO, AmplitudeFacts
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.recording import Recording
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.reporting.ecg_paper import COMPACT, draw_ecg
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.plots import histogram
from hpc_ecg.shards.format import key_of_row, rows_of_keys
from hpc_ecg.shards.index import LeftOut, count_flag_kinds, flag_kinds

NUM_PICTURES = 12
NOT_DRAWABLE = ("not found", "unreadable")


@dataclass(frozen=True, kw_only=True)
class QualityFacts:
    records: int
    """Rows of the user's table."""
    index: pd.DataFrame
    """key, split, flags (`a;b`), amplitude_mv of each record, or window, in the shards."""
    left_out: list[LeftOut]
    amplitude: AmplitudeFacts | None
    read_source: Callable[[int], Recording | None]
    """Reads the recording of a row again; None if that fails."""
    remarks: Sequence[str] = ()
    """How much of each column about people was understood."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    caption: str
    svg: Markup | None


def write_quality_report(out: Path, report: QualityFacts) -> Path:
    """Write both files into the folder `out`; returns the path of the page."""
    table = quality_table(report)
    assert table["row"].nunique() == report.records, "a row of the table is in no list"
    write_text(out / "quality.csv", csv_text(table), about_people=True)
    is_kept_N, amplitude_mv = table["status"] == "kept", report.index["amplitude_mv"]
    left_out = table[~is_kept_N]
    flagged = table[is_kept_N & (table["reason_or_flags"] != "")]
    drawable = left_out[~left_out["reason_or_flags"].isin(NOT_DRAWABLE)]
    page = render_page(
        "quality_report.html.jinja",
        num_rows=report.records,
        num_kept=table["row"][is_kept_N].nunique(),
        num_left_out=len(left_out),
        num_records=len(report.index),
        num_flagged=len(flagged),
        remarks=report.remarks,
        amplitude=report.amplitude,
        reasons=most_frequent(Counter(left_out["reason_or_flags"])),
        flags=most_frequent(count_flag_kinds(flagged["reason_or_flags"])),
        histogram=draw_amplitudes(amplitude_mv) if len(amplitude_mv) else None,
        left_out_pictures=_draw_sample(
            report, drawable, drawable["reason_or_flags"].to_numpy(object)
        ),
        flagged_pictures=_draw_sample(report, flagged, rarest_kinds(flagged["reason_or_flags"])),
    )
    write_text(out / "quality.html", page, about_people=True)
    return out / "quality.html"


def quality_table(report: QualityFacts) -> pd.DataFrame:
    """A line for each record or window, kept or left out; rows count from 1."""
    key, flags = report.index["key"], report.index["flags"]
    kept = pd.DataFrame({"row": rows_of_keys(key) + 1, "key": key, "status": "kept"})
    kept = kept.assign(reason_or_flags=flags, message="")
    left_out = [
        (item.row + 1, key_of_row(item.row), "left_out", item.reason, item.message)
        for item in report.left_out
    ]
    table = pd.concat([kept, pd.DataFrame(left_out, columns=kept.columns).astype(kept.dtypes)])
    return table.sort_values("row", kind="stable", ignore_index=True)


def rarest_kinds(flags: pd.Series) -> np.ndarray:
    """For each record, its kind of flag that the fewest records have; "" if it has no flag."""
    count = count_flag_kinds(flags)
    codes, distinct = pd.factorize(flags)
    rarest = [min(flag_kinds(f), key=lambda k: (count[k], k), default="") for f in distinct]
    return np.array(rarest, object)[codes]


def most_frequent(count: Counter[str]) -> list[tuple[str, int]]:
    """The items in falling order of their counts; equal counts in the order of their names."""
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))


def sample_evenly(
    names: Iterable[str], group_N: np.ndarray, count: int, seed: int = 0
) -> list[int]:
    """Positions of up to `count` items, taken from each group in turn, in the order of groups.

    A hash of seed and name chooses the items of a group, so that other records do not change the
    choice.
    """
    hashes = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names)
    digest_N = np.fromiter((int.from_bytes(digest[:8]) for digest in hashes), np.uint64)
    items = pd.DataFrame({"group": pd.factorize(group_N)[0], "digest": digest_N})
    items = items.sort_values("digest").groupby("group").head(count)
    items["turn"] = items.groupby("group").cumcount()
    chosen = items.sort_values(["turn", "digest"]).index[:count]
    return sorted(chosen.tolist(), key=lambda n: (group_N[n], n))


def draw_amplitudes(amplitude_mv: pd.Series) -> Markup:
    """A histogram with a logarithmic axis, since wrong amplitudes are wrong by a factor."""
    svg = histogram(
        np.maximum(amplitude_mv.to_numpy(), 1e-3),
        expected=(NORMAL_RATIO[0] * EXPECTED_MV, NORMAL_RATIO[1] * EXPECTED_MV),
        name="amplitudes",
        xlabel="amplitude of a record, mV",
        ylabel="records",
    )
    return inline_svg(svg, "Histogram of the records’ amplitudes; the text gives the numbers")


def _draw_sample(report: QualityFacts, rows: pd.DataFrame, group_N: np.ndarray) -> list[Picture]:
    """Draw a sample of these rows of the table; those that cannot be drawn come last."""
    pictures = []
    for position in sample_evenly(rows["key"], group_N, NUM_PICTURES):
        line = rows.iloc[position]
        reason = line["reason_or_flags"].replace(";", ", ")
        caption = f"Row {line['row']}: {reason}"
        if line["message"]:
            caption += f": {line['message']}"
        pictures.append(_draw_row(report, int(line["row"]), caption))
    return sorted(pictures, key=lambda picture: picture.svg is None)


def _draw_row(report: QualityFacts, row: int, caption: str) -> Picture:
    recording = report.read_source(row - 1)
    leads = [normalize_lead(name) or name for name in recording.leads] if recording else []
    if recording is None or not 0 < recording.sample_rate_hz < np.inf or not {*leads} & {*LEADS}:
        return Picture(caption=f"{caption} (cannot be drawn)", svg=None)
    rate_hz = recording.sample_rate_hz
    svg = draw_ecg(recording.signal_LS, leads, rate_hz, f"Row {row}", COMPACT)
    return Picture(caption=caption, svg=inline_svg(svg, caption))
