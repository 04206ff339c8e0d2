"""An ECG on paper: what is measured on the drawing is what the array holds."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.reporting.ecg_paper import COMPACT, CUT, FULL, UNITS_PER_MM, draw_ecg
from hpc_ecg.reporting.html import inline_svg
from hpc_ecg.reporting.plots import INK

RATE_HZ = 250


@pytest.fixture(name="ecg_LS")
def quiet():
    return np.random.default_rng(0).normal(0, 0.05, (12, 10 * RATE_HZ))


def curves_of(svg, color=INK):
    """For each path of the curves: a list of gapless parts, each [points, (x, y)] in mm."""
    tree = ElementTree.fromstring(svg)
    paths = [path for path in tree.findall(".//{*}path") if "transform" in path.attrib]
    assert {path.attrib["transform"] for path in paths} <= {f"scale({1 / UNITS_PER_MM:g})"}
    return [_parts(path.attrib["d"]) for path in paths if path.attrib["stroke"] == color]


def _parts(data):
    parts = []
    for part in data.split("M")[1:]:
        start, _, steps = part.partition("h0" if part.endswith("h0") else "l")
        numbers = [int(n) for n in re.findall(r"-?\d+", f"{start} {steps}")]
        parts.append(np.cumsum(np.reshape(numbers, (-1, 2)), axis=0) / UNITS_PER_MM)
    return parts


def texts_of(svg):
    return [text.text for text in ElementTree.fromstring(svg).findall(".//{*}text")]


@pytest.mark.parametrize("paper", [FULL, COMPACT])
def test_the_drawing_is_as_large_as_it_states(ecg_LS, paper):
    svg = ElementTree.fromstring(draw_ecg(ecg_LS, LEADS, RATE_HZ, "x", paper))
    width, height = svg.attrib["width"], svg.attrib["height"]
    assert svg.attrib["viewBox"] == f"0 0 {width.removesuffix('mm')} {height.removesuffix('mm')}"
    assert 10 * paper.mm_per_s < float(width.removesuffix("mm")) < 260  # A4 and Letter, landscape


@pytest.mark.parametrize("paper", [FULL, COMPACT])
@settings(max_examples=40, deadline=None)
@given(
    sample=st.integers(0, 2499),
    peak_mv=st.floats(-1.4, 1.4),
    rate_hz=st.sampled_from([100, 250, 257, 500, 1000]),
)
def test_every_peak_is_drawn_at_its_height_and_its_time(paper, sample, peak_mv, rate_hz):
    second = sample / 250
    ecg_LS = np.zeros((12, 10 * rate_hz))
    at = int(second * rate_hz)
    ecg_LS[:, at] = peak_mv
    curves = curves_of(draw_ecg(ecg_LS, LEADS, rate_hz, "x", paper))
    column = next(c for c in range(4) if at < round((c + 1) * 2.5 * rate_hz))
    for row in range(3):
        ((points,),) = [curves[4 * row + column]]
        assert points[0, 0] == pytest.approx(curves[0][0][0, 0] + column * 2.5 * paper.mm_per_s)
        up = points[0, 1] - points[:, 1] if at % (2.5 * rate_hz) else points[-1, 1] - points[:, 1]
        highest = np.abs(up).argmax()
        assert up[highest] == pytest.approx(peak_mv * paper.mm_per_mv, abs=0.06)
        if abs(peak_mv) > 0.02:
            x = points[highest, 0] - curves[0][0][0, 0]
            # a column begins with a whole sample, at half a sample from its time at the most
            half_a_sample = paper.mm_per_s / rate_hz / 2 if 2.5 * rate_hz % 1 else 0.0
            assert x == pytest.approx(at / rate_hz * paper.mm_per_s, abs=0.06 + half_a_sample)


def test_no_part_of_a_fast_signal_is_lost_where_several_samples_share_a_column(rng):
    ecg_LS = rng.normal(0, 0.3, (12, 10_000))
    (points,) = curves_of(draw_ecg(ecg_LS, LEADS, 1000, "x"))[-1]
    drawn_mv = (np.median(points[:, 1]) - points[:, 1]) / 10
    assert len(points) <= 2 * 1002 + 2
    assert np.ptp(drawn_mv) == pytest.approx(np.ptp(ecg_LS[1]), abs=0.01)
    columns = np.array_split(ecg_LS[1], 250)  # a millimetre each
    for mm, column in enumerate(columns[1:-1], 1):
        inside = drawn_mv[(points[:, 0] >= 7 + mm - 0.06) & (points[:, 0] <= 8 + mm + 0.06)]
        assert np.ptp(inside) >= np.ptp(column) - 0.02


def test_samples_that_are_not_finite_leave_a_gap_and_a_single_sample_is_a_dot(ecg_LS):
    ecg_LS[1, 1000:1200] = np.nan
    ecg_LS[1, 1100] = 0.1
    ecg_LS[7] = np.inf
    svg = draw_ecg(ecg_LS, LEADS, RATE_HZ, "x")
    parts = curves_of(svg)[-1]
    assert [len(part) == 1 for part in parts] == [False, True, False]
    assert parts[0][-1, 0] == 7 + 99.9 and parts[2][0, 0] == 7 + 120
    assert "V2: no samples" in texts_of(svg)


def test_a_curve_that_leaves_the_paper_is_cut_off_and_marked(ecg_LS):
    ecg_LS[6, 1300:1310] = 9
    ecg_LS[6, 1400] = -7
    svg = draw_ecg(ecg_LS, LEADS, RATE_HZ, "x")
    (cut,) = curves_of(svg, CUT)
    assert [len(part) for part in cut] == [8, 1]
    assert "V1 cut: −7 to 9 mV" in texts_of(svg)
    height = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])
    for parts in curves_of(svg):
        for points in parts:
            assert (points[:, 1] > 0).all() and (points[:, 1] < height).all()


def test_an_offset_is_stated_not_drawn(ecg_LS):
    moved = ecg_LS.copy()
    moved[6] += 3
    first, second = (draw_ecg(x, LEADS, RATE_HZ, "x") for x in (ecg_LS, moved))
    assert "V1 at +3 mV" in texts_of(second) and "V1" in texts_of(first)
    (curve,), (moved_curve,) = curves_of(first)[2], curves_of(second)[2]
    assert np.abs(curve - moved_curve).max() <= 0.051


def test_leads_that_are_absent_or_unknown_are_named(ecg_LS):
    names = [*LEADS[:5], "Vx"]
    texts = texts_of(draw_ecg(ecg_LS[:6], names, RATE_HZ, "few"))
    assert "few; not drawn: Vx" in texts
    assert {f"{lead}: absent" for lead in LEADS[5:]} <= set(texts)
    assert texts.count("II") == 2  # the rhythm strip


@pytest.mark.parametrize("samples", [0, 1, 700, 20_000])
def test_any_length_can_be_drawn(samples):
    svg = draw_ecg(np.zeros((12, samples)), LEADS, RATE_HZ, "x")
    assert all(0 < points[:, 0].max() < 260 for parts in curves_of(svg) for points in parts)


def test_the_same_input_gives_the_same_small_file_and_text_is_escaped(ecg_LS):
    svg = draw_ecg(ecg_LS, LEADS, RATE_HZ, "<b> & co")
    assert svg == draw_ecg(ecg_LS.copy(), LEADS, RATE_HZ, "<b> & co")
    assert "<b> & co" in texts_of(svg) and len(svg) < 60_000
    page = inline_svg(svg, "an ECG")
    assert INK not in page and "currentColor" in page and "xmlns" not in page


@pytest.mark.parametrize("paper", [FULL, COMPACT, replace(COMPACT, rhythm="V2")])
@pytest.mark.parametrize("amplitude_mv", [0.2, 1, 3])
def test_no_text_lies_on_a_curve(paper, amplitude_mv):
    """Beats of many sizes, with baselines that wander; the title is long."""
    rng, time_s = np.random.default_rng(1), np.arange(10 * RATE_HZ) / RATE_HZ
    beats_S = sum(np.exp(-(((time_s - n * 0.8) / 0.02) ** 2)) for n in range(13))
    ecg_LS = np.outer(rng.uniform(-amplitude_mv, amplitude_mv, 12), beats_S)
    ecg_LS += 0.3 * np.sin(time_s + rng.uniform(0, 6, (12, 1)))
    svg = draw_ecg(ecg_LS, LEADS, RATE_HZ, "Key 00000012, train, " + "af 1, " * 20, paper)
    parts = [part for parts in curves_of(svg) + curves_of(svg, CUT) for part in parts]
    pairs = np.concatenate([np.stack([part[:-1], part[1:]]) for part in parts], axis=1)
    low, high = pairs.min(axis=0), pairs.max(axis=0)
    for text in ElementTree.fromstring(svg).findall(".//{*}text"):
        x, y, em = float(text.get("x")), float(text.get("y")), paper.text_mm
        width = 0.6 * em * len(text.text)
        x -= width * (text.get("text-anchor") == "end")
        is_over = (low < [x + width, y + 0.2 * em]) & (high > [x, y - 0.75 * em])
        assert not is_over.all(axis=1).any(), text.text
        assert x + width < float(ElementTree.fromstring(svg).get("viewBox").split()[2]) + 0.1
