"""What was left out of the shards or carries a flag in them: `quality.html` and `quality.csv`.

The table has a line for each record, so its counts add up to the rows of the user's table. The page
explains each reason and draws a sample of the records.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from hpc_ecg.atomic_io import write_text
from hpc_ecg.ecg.amplitude import EXPECTED_MV, NORMAL_RATIO, AmplitudeFacts
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.preprocess import window_of
from hpc_ecg.ecg.quality import Flaw, find_flaws
from hpc_ecg.ecg.recording import Recording
from hpc_ecg.ecg.signal import LEADS, SignalSpec
from hpc_ecg.reporting.ecg_paper import COMPACT, FULL, SECONDS, draw_ecg
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.plots import histogram
from hpc_ecg.shards.format import key_of_row, rows_of_keys
from hpc_ecg.shards.index import LeftOut, count_flag_kinds, flag_kinds

NUM_PICTURES, WIDEN_S = 12, 0.05
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
    cohort: str = ""  # the table's name and date
    signal: SignalSpec | None = None


@dataclass(frozen=True)
class Picture:
    caption: str
    svg: Markup | None = None
    large: Markup | None = None  # at 25 mm/s and 10 mm/mV
    marked: Sequence[str] = ()


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
        cohort=report.cohort,
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
        left_out_pictures=_draw_sample(report, drawable, drawable["reason_or_flags"].to_numpy()),
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
    chosen = sample_evenly(rows["key"], group_N, NUM_PICTURES)
    pictures = [_draw_row(report, rows.iloc[position]) for position in chosen]
    return sorted(pictures, key=lambda picture: picture.svg is None)


def _draw_row(report: QualityFacts, line: pd.Series) -> Picture:
    """The recording, or the window of it that was kept: the first 10 s, or those of a flaw."""
    names = line["reason_or_flags"].split(";")
    caption = f"Row {line['row']}: {', '.join(names)}"
    caption += f": {line['message']}" if line["message"] else ""
    recording = report.read_source(int(line["row"]) - 1)
    leads = [normalize_lead(name) or name for name in recording.leads] if recording else []
    if recording is None or not 0 < recording.sample_rate_hz < np.inf or not {*leads} & {*LEADS}:
        return Picture(f"{caption} (cannot be drawn)")
    rate_hz, window = recording.sample_rate_hz, slice(0, None)
    if line["status"] == "kept" and report.signal:
        window = window_of(recording, report.signal, int(line["key"].partition("-")[2] or 0))
    ecg_LS = recording.signal_LS[:, window]
    lead = dict(zip(leads, ecg_LS, strict=True))
    flaws = [f for name in names for f in find_flaws(name.partition(":")[0], lead, rate_hz)]
    page = int(SECONDS * rate_hz)
    first = min((flaw.at.start for flaw in flaws if flaw.at), default=0) // page * page
    shade_LS = _shade(flaws, leads, ecg_LS.shape, round(WIDEN_S * rate_hz))[:, first:]
    start = window.start + first
    title = f"Row {line['row']}" + (f", from {start / rate_hz:.4g} s" if start else "")
    below = next((flaw.lead for flaw in flaws if flaw.lead in LEADS), None)
    small, large = (
        draw_ecg(ecg_LS[:, first:], leads, rate_hz, title, on, shade_LS)
        for on in (replace(paper, rhythm=below or paper.rhythm) for paper in (COMPACT, FULL))
    )
    times = [f" at {(window.start + f.at.start) / rate_hz:.2f} s" if f.at else "" for f in flaws]
    lines = [f"{f.lead or 'All leads'}{t}: {f.words}" for f, t in zip(flaws, times, strict=True)]
    return Picture(caption, inline_svg(small, caption), inline_svg(large, caption), lines)


def _shade(flaws: list[Flaw], leads: list[str], shape: tuple[int, ...], widen: int) -> np.ndarray:
    """1 at moments, which are widened by this many samples; 0.4 where a flaw has no moment."""
    shade_LS = np.zeros(shape)
    for about, at, _ in flaws:
        span = slice(max(at.start - widen, 0), at.stop + widen) if at else slice(None)
        shade_LS[[about in ("", name) for name in leads], span] = 1 if at else 0.4
    return shade_LS
