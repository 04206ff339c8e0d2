"""The flow diagram: numbers that add up, in text; in the picture no text over a frame or text."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from hpc_ecg.cohort.flow_diagram import flow_svg, flow_text
from hpc_ecg.cohort.rules import Count, Flow

REASON = "prevalent: an event at or before the ECG, or up to 30d after it"
SVG = "{http://www.w3.org/2000/svg}"


def flow_of(steps, unit):
    """`steps` steps, each of `unit` ECGs and patients out of enough."""
    start, left = unit * (steps + 2), unit * 2
    return Flow(
        start=Count(text="in the table", ecgs=start, patients=start),
        left_out=[Count(text=REASON, ecgs=unit, patients=unit) for _ in range(steps)],
        labelled=Count(text="in the cohort", ecgs=left, patients=left),
        labels=[
            Count(text="positive: an event within 5y", ecgs=unit, patients=unit),
            Count(text="negative", ecgs=unit, patients=unit),
        ],
    )


def test_the_text_is_a_table_that_adds_up():
    assert flow_text(flow_of(1, 1000), ["a note"]).splitlines() == [
        "  ECGs  patients",
        " 3,000     3,000  in the table",
        f"-1,000    -1,000  {REASON}",
        " 2,000     2,000  in the cohort",
        " 1,000     1,000    positive: an event within 5y",
        " 1,000     1,000    negative",
        "",
        "a note",
    ]


def test_a_step_that_leaves_nothing_out_shows_zero():
    assert flow_text(flow_of(1, 0), []).splitlines()[2] == f"   0         0  {REASON}"


def boxes_of(svg):
    """Frames with the texts in each, texts without a frame, the canvas: x, y, right, bottom."""
    root = ET.fromstring(svg)
    frames, bare = [], []
    for group in root.iter(f"{SVG}g"):
        texts = [text_box(text) for text in group.findall(f"{SVG}text")]
        if not re.fullmatch(r"flow-text_\d+", group.get("id", "")):
            continue
        path = group.find(f"{SVG}g/{SVG}path")
        if path is None:
            bare += texts
        else:
            numbers = [float(n) for n in re.findall(r"[\d.]+", path.get("d"))]
            xs, ys = numbers[::2], numbers[1::2]
            frames.append(((min(xs), min(ys), max(xs), max(ys)), texts))
    _, _, width, height = map(float, root.get("viewBox").split())
    return frames, bare, (0, 0, width, height)


def text_box(text):
    x, y = map(float, re.search(r"translate\(([\d.]+) ([\d.]+)\)", text.get("transform")).groups())
    size = float(re.search(r"font-size: ([\d.]+)px", text.get("style"))[1])
    font = FontProperties(family="DejaVu Sans", size=size)
    width, height, descent = TextToPath().get_text_width_height_descent(text.text, font, False)
    return x, y - height + descent, x + width, y + descent


def is_inside(inner, outer):
    return all(i >= o for i, o in zip(inner[:2], outer[:2], strict=True)) and all(
        i <= o for i, o in zip(inner[2:], outer[2:], strict=True)
    )


def is_apart(one, other):
    return one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


@pytest.mark.parametrize("unit", [1, 12_345, 123_456_789])
@pytest.mark.parametrize("steps", [1, 10])
def test_in_the_picture_every_text_fits_its_frame_and_frames_do_not_touch(steps, unit):
    frames, bare, canvas = boxes_of(flow_svg(flow_of(steps, unit)))
    assert len(frames) == steps + 4 and len(bare) == 2 * (steps - 1)
    for frame, texts in frames:
        assert texts and all(is_inside(text, frame) for text in texts)
    areas = [frame for frame, _ in frames] + bare
    assert all(is_inside(area, canvas) for area in areas)
    assert all(itertools.starmap(is_apart, itertools.combinations(areas, 2)))


def test_the_numbers_left_after_each_step_stand_between_the_steps():
    svg = flow_svg(flow_of(3, 100))
    assert re.findall(r">(\d+) ECGs<", svg) == ["400", "300"]
    assert svg == flow_svg(flow_of(3, 100))


def words_of(svg):
    return " ".join(re.findall(r">([^<>]+)</text>", svg))


def test_what_counts_nothing_has_no_box_and_is_said_below():
    flow = flow_of(2, 100)
    nobody = Count(text="no readable date", ecgs=0, patients=0)
    unborn = Count(text="missing, censored", ecgs=0, patients=0)
    more = replace(flow, left_out=[nobody, *flow.left_out], labels=[*flow.labels, unborn])
    text, before = words_of(flow_svg(more)), words_of(flow_svg(flow))
    assert re.findall(r"\d+ ECGs", text) == re.findall(r"\d+ ECGs", before)
    assert "Not drawn, as no ECG is in them: no readable date; missing, censored." in text
    assert not re.search(r"\b0 (ECGs|patients)", text)
    assert "Not drawn" not in before


def test_numbers_that_do_not_add_up_are_explained():
    flow = flow_of(1, 100)
    assert not re.search("add up|last of their", words_of(flow_svg(flow)))
    both = [replace(label, patients=150) for label in flow.labels]
    lost = [replace(step, patients=40) for step in flow.left_out]
    text = words_of(flow_svg(replace(flow, labels=both, left_out=lost)))
    assert "so those numbers add up to 100 more than are in the cohort" in text
    assert "A patient is lost with the last of their ECGs." in text
    nobody = [replace(step, patients=0) for step in flow.left_out]
    assert "0 patients" not in words_of(flow_svg(replace(flow, left_out=nobody))).replace("00", "")
