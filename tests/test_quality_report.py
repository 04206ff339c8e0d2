"""The quality report: its numbers add up to the table, and each reason has words and a picture."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ecg.ecg.amplitude import compare_amplitudes
from hpc_ecg.ecg.recording import Recording
from hpc_ecg.ecg.signal import LEADS, SignalSpec
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.index import LeftOut
from hpc_ecg.shards.quality_report import (
    NUM_PICTURES,
    QualityFacts,
    quality_table,
    sample_evenly,
    write_quality_report,
)

REASONS = ["not found", "unreadable", "leads", "rate", "too short", "NaN", "flat lead"]
REASONS += ["amplitude", "no patient", "other period"]
FLAGS = ["large_amplitude", "derived:III,aVF", "zero_filled:V3", "padded", "saturated"]
FLAGS += ["lead_swap_suspected", "limb_leads_inconsistent", "duplicate_signal"]
FLAGS += ["clipped:V1", "amplitude_unlike_cohort", "windows_left_out:2"]
FLAGS += ["partly_read:2", "not_applied:FirstSampleBaseline", "age_capped"]


class Page(HTMLParser):
    """Rows of cells by table id, captions, and how many pictures there are."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.captions, self.num_svgs, self._into, self._id = {}, [], 0, None, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self._id = dict(attrs)["id"]
            self.tables[self._id] = []
        elif tag == "tr":
            self.tables[self._id].append([])
        elif tag in ("td", "th"):
            self.tables[self._id][-1].append("")
            self._into = self.tables[self._id][-1]
        elif tag == "figcaption":
            self.captions.append("")
            self._into = self.captions
        self.num_svgs += tag == "svg"

    def handle_endtag(self, tag):
        if tag in ("td", "th", "figcaption"):
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


def counts_of(page, table):
    return {row[0]: int(row[1]) for row in page.tables[table][1:]}


def words_of(page, table):
    return {row[0]: row[3:] for row in page.tables[table][1:]}


def facts_of(left_out, flags, **changes):
    """Rows 0, 1, 2 …: first those left out, then a kept one for each of `flags`."""
    rows = range(len(left_out), len(left_out) + len(flags))
    index = pd.DataFrame(
        {
            "key": [f"{row:08d}" for row in rows],
            "split": "train",
            "flags": flags,
            "amplitude_mv": np.linspace(0.8, 2, len(flags)),
        }
    ).astype({"key": str, "flags": str})
    facts = {
        "records": len(left_out) + len(flags),
        "index": index,
        "left_out": [
            LeftOut(row=row, reason=reason, message=f"because of {row}")
            for row, reason in enumerate(left_out)
        ],
        "amplitude": compare_amplitudes(index["amplitude_mv"].to_numpy()) if len(flags) else None,
        "read_source": picture_of,
    }
    return QualityFacts(**(facts | changes))


def picture_of(row):
    signal_LS = np.random.default_rng(row).normal(0, 0.1, (12, 500))
    return Recording(signal_LS=signal_LS, leads=LEADS, sample_rate_hz=100.0)


def read(folder):
    return Page((folder / "quality.html").read_text()), pd.read_csv(
        folder / "quality.csv", dtype={"key": str}, keep_default_na=False
    )


def test_each_reason_and_flag_is_explained_and_unknown_ones_are_shown(tmp_path):
    facts = facts_of([*REASONS, "eaten"], [*FLAGS, "never_heard:of", ""])
    assert write_quality_report(tmp_path, facts) == tmp_path / "quality.html"
    page, _ = read(tmp_path)
    assert "quality.html" not in (tmp_path / "quality.html").read_text()
    assert set(counts_of(page, "left-out")) == {*REASONS, "eaten"}
    assert set(counts_of(page, "flags")) == {f.partition(":")[0] for f in FLAGS} | {"never_heard"}
    for table, unknown in (("left-out", "eaten"), ("flags", "never_heard")):
        words = words_of(page, table)
        lost = words.pop(unknown)
        assert lost == ["This page has no explanation for it.", "See quality.csv."]
        assert all(means and to_do and [means, to_do] != lost for means, to_do in words.values())


@settings(deadline=None, max_examples=50)
@given(
    left_out=st.lists(st.sampled_from([*REASONS, "eaten"]), max_size=30),
    flags=st.lists(
        st.lists(st.sampled_from([*FLAGS, "new"]), unique=True, max_size=3).map(";".join),
        max_size=30,
    ),
)
def test_the_table_holds_every_row_once_with_what_became_of_it(left_out, flags):
    facts = facts_of(left_out, flags)
    table = quality_table(facts)
    assert table["row"].tolist() == list(range(1, facts.records + 1))
    assert (table["status"] == "kept").tolist() == [False] * len(left_out) + [True] * len(flags)
    assert table["reason_or_flags"].tolist() == left_out + flags


def test_the_numbers_of_the_page_are_those_of_the_table(tmp_path):
    reasons = ["leads"] * 5 + ["NaN"] * 3 + ["eaten"]
    write_quality_report(tmp_path, facts_of(reasons, ["", "padded", "padded;saturated"] * 4))
    page, table = read(tmp_path)
    left_out = table[table["status"] == "left_out"]
    assert counts_of(page, "left-out") == left_out["reason_or_flags"].value_counts().to_dict()
    assert counts_of(page, "flags") == {"padded": 8, "saturated": 4}
    text = (tmp_path / "quality.html").read_text()
    assert "21 rows of the table: 12 are in the shards, 9 were left out." in text
    assert "8 of the 12 records" in text
    assert table["message"][0] == "because of 0" and table["row"][0] == 1


def test_sharding_accounts_for_every_row_of_the_users_table(cohort, shards):
    page, table = read(shards)
    assert table["row"].tolist() == list(range(1, len(pd.read_csv(cohort)) + 1))
    description = read_shard_set(shards).description
    assert (table["status"] == "kept").sum() == sum(description["records"].values())
    assert counts_of(page, "left-out") == description["left_out"] != {}
    assert page.num_svgs > 1


def test_windows_of_one_recording_are_one_row_of_the_table(tmp_path):
    facts = facts_of(["NaN"], ["", "", "padded"])
    facts.index["key"] = ["00000001-000", "00000001-002", "00000002-000"]
    write_quality_report(tmp_path, facts_of(["NaN"], ["", "", ""], index=facts.index, records=3))
    text, (page, table) = (tmp_path / "quality.html").read_text(), read(tmp_path)
    assert "3 rows of the table: 2 are in the shards, 1 were left out." in text
    assert "1 of the 3 records" in text and table["row"].tolist() == [1, 2, 2, 3]
    assert page.captions[-1].startswith("Row 3: padded")


def test_a_row_that_is_in_no_list_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="in no list"):
        write_quality_report(tmp_path, facts_of(["NaN"], [""], records=3))


def test_pictures_take_turns_over_the_reasons_and_those_that_failed_come_last(tmp_path):
    reasons = ["too short"] * 50 + ["NaN", "not found", "flat lead"]
    flags = ["padded"] * 40 + ["padded;saturated"]
    facts = facts_of(reasons, flags, read_source=lambda row: picture_of(row) if row != 50 else None)
    write_quality_report(tmp_path, facts)
    page, _ = read(tmp_path)
    _amplitude, *captions = page.captions
    left_out, flagged = captions[:NUM_PICTURES], captions[NUM_PICTURES:]
    assert page.num_svgs == 1 + 2 * (2 * NUM_PICTURES - 1)  # small, and at 25 mm/s
    assert sum("too short" in caption for caption in left_out) == NUM_PICTURES - 2
    assert "Row 53: flat lead: because of 52" in left_out
    assert left_out[-1] == "Row 51: NaN: because of 50 (cannot be drawn)"
    assert not any("not found" in caption for caption in captions)
    assert sum("padded, saturated" in caption for caption in flagged) == 1


@pytest.mark.parametrize(
    ("leads", "rate_hz"),
    [(("I", "?"), 0.0), (("I", "?"), np.nan), (("I", "?"), np.inf), (("ECG", "?"), 250.0)],
)
def test_what_cannot_be_drawn_does_not_stop_the_report(tmp_path, leads, rate_hz):
    odd = Recording(signal_LS=np.zeros((2, 10)), leads=leads, sample_rate_hz=rate_hz)
    write_quality_report(tmp_path, facts_of(["rate"], [""], read_source=lambda row: odd))
    assert "(cannot be drawn)" in (tmp_path / "quality.html").read_text()


def test_what_a_file_says_is_escaped_and_the_page_needs_no_network(tmp_path):
    facts = facts_of(["<i>odd</i>"], ["<u>x</u>"])
    write_quality_report(tmp_path, facts)
    text = (tmp_path / "quality.html").read_text()
    assert "<i>" not in text and "<u>" not in text and "&lt;u&gt;x" in text
    assert not re.search(r"src=|href=\"[^#]|https?://|@import", text)


def test_a_wrong_unit_is_a_warning_with_its_factor(tmp_path):
    facts = facts_of([], ["", "", ""])
    index = facts.index.assign(amplitude_mv=1000 * facts.index["amplitude_mv"])
    amplitude = compare_amplitudes(index["amplitude_mv"].to_numpy())
    write_quality_report(tmp_path, facts_of([], ["", "", ""], index=index, amplitude=amplitude))
    (warning,) = re.findall(
        r'class="warning"><li>(.*?)</li>', (tmp_path / "quality.html").read_text()
    )
    assert "µV taken for mV (mended by × 0.001)" in warning


def test_a_cohort_without_a_usable_record_is_reported_too(tmp_path):
    write_quality_report(tmp_path, facts_of(["NaN"] * 3, []))
    assert "0 are in the shards, 3 were left out" in (tmp_path / "quality.html").read_text()


def test_the_report_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write_quality_report(tmp_path / name, facts_of(["NaN", "leads"] * 9, ["padded"] * 20))
    for name in ("quality.html", "quality.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@settings(deadline=None, max_examples=50)
@given(
    groups=st.lists(st.sampled_from("abcd"), max_size=40),
    count=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_a_sample_is_spread_evenly_over_the_groups(groups, count, seed):
    names = [str(n) for n in range(len(groups))]
    chosen = sample_evenly(names, np.array(groups, object), count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(groups))
    taken = {g: sum(groups[n] == g for n in chosen) for g in set(groups)}
    for group, number in taken.items():  # fewer than another only if it has no more
        assert number >= max(taken.values()) - 1 or number == groups.count(group)
    assert sample_evenly(names, np.array(groups, object), count, seed) == chosen


def test_another_seed_chooses_others_and_more_records_elsewhere_change_nothing():
    names = [str(n) for n in range(100)]
    groups = np.array(["a"] * 50 + ["b"] * 50, object)
    assert sample_evenly(names, groups, 6, seed=0) != sample_evenly(names, groups, 6, seed=1)
    grown = np.append(groups, "b")
    assert sample_evenly([*names, "100"], grown, 6)[:3] == sample_evenly(names, groups, 6)[:3]


def shades_of(svg):
    """x in mm of the marks on a drawing, and their rows (y)."""
    boxes = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)" y="([\d.]+)"', svg)
    return [tuple(map(float, box)) for box in boxes]


@pytest.mark.parametrize(
    ("seconds", "start_s", "title"), [(10, 6.0, "Row 1"), (30, 26.0, "Row 1, from 20 s")]
)
def test_clipped_samples_are_marked_and_named_wherever_they_are(tmp_path, seconds, start_s, title):
    """V1 is drawn from 5 to 7.5 s in its own place, and below over the whole time."""
    signal_LS = np.random.default_rng(0).normal(0, 0.05, (12, 100 * seconds))
    at = round(100 * start_s)
    signal_LS[LEADS.index("V1"), at : at + 20] = 1.2
    recording = Recording(signal_LS=signal_LS, leads=LEADS, sample_rate_hz=100.0)
    write_quality_report(tmp_path, facts_of([], ["saturated"], read_source=lambda row: recording))
    text = (tmp_path / "quality.html").read_text()
    assert f"V1 at {start_s:.2f} s: cut off at +1.2 mV" in text
    small, large = re.findall(r"<svg[^>]*Row 1.*?</svg>", text, re.DOTALL)
    for svg, mm_per_s in ((small, 12.5), (large, 25)):
        assert f">{title}</text>" in svg and svg.count(">V1</text>") == 2
        marks = shades_of(svg)
        assert len(marks) == 2 and marks[0][2] != marks[1][2]
        begin = (0.28 + start_s % 10 - 0.05) * mm_per_s
        assert marks[1][:2] == pytest.approx((begin, 0.3 * mm_per_s), abs=0.02)
    assert "25 mm/s, 10 mm/mV" in large and "12.5 mm/s, 5 mm/mV" in small


def test_a_window_is_drawn_alone_and_its_times_count_from_the_start_of_the_recording(tmp_path):
    signal_LS = np.random.default_rng(0).normal(0, 0.05, (12, 3000))
    signal_LS[7, [500, 2600]] = 12
    recording = Recording(signal_LS=signal_LS, leads=LEADS, sample_rate_hz=100.0)
    facts = facts_of([], ["large_amplitude"], read_source=lambda row: recording)
    facts.index["key"] = "00000000-002"
    signal = SignalSpec(window="all")
    facts = replace(facts, signal=signal, cohort="af.csv, 2026-11-30")
    write_quality_report(tmp_path, facts)
    text = (tmp_path / "quality.html").read_text()
    assert "V2 at 26.00 s: +12 mV" in text and "V2 at 5.00 s" not in text
    assert text.count(">Row 1, from 20 s</text>") == 2
    assert "<h1>Quality of the recordings: af.csv, 2026-11-30</h1>" in text
