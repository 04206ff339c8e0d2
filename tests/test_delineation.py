"""Beats and measurements are those of ECGs that were drawn with known intervals, and of devices."""

import numpy as np
import pytest

from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.delineation import MEASUREMENTS, find_beats, measure
from hpc_ecg.ecg.files import read_recording
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.signal import LEADS, SignalSpec

ANGLES = dict(zip(LEADS, (0, 60, 120, -150, -30, 90, 100, 60, 45, 30, 15, 0), strict=True))
"""Degrees; the frontal plane's are those of the hexaxial system, V1 to V6 stand for themselves."""
QRS_MV = 1.2
WITHOUT_P = ("PR", "P duration", "P area", "P axis")


def draw(
    rr_s=0.8, pr=160, qrs=96, qt=400, p_ms=100, axes=(50, 40, 45), hz=250, p_mv=0.15, t_mv=0.3
):
    """An ECG with these intervals (ms) and axes (degrees), and its beats. P and T are triangles,
    QRS is a raised cosine."""
    time_S = np.arange(10 * hz) / hz
    ecg_LS = np.zeros((len(LEADS), len(time_S)))
    starts = np.arange(0.45, 9.5, rr_s)
    waves = [(-pr, p_ms, p_mv, axes[0]), (0, qrs, QRS_MV, axes[1]), (qt - 160, 160, t_mv, axes[2])]
    for start in starts:
        for onset, width, size, axis in waves:
            middle = start + (onset + width / 2) / 1000
            bump_S = np.clip(1 - np.abs(time_S - middle) / (width / 2000), 0, None)
            if size == QRS_MV:
                bump_S = (1 - np.cos(np.pi * bump_S)) / 2
            cosines = np.cos(np.radians([axis - ANGLES[lead] for lead in LEADS]))
            ecg_LS += size * cosines[:, None] * bump_S
    noise_LS = np.random.default_rng(0).normal(0, 0.004, ecg_LS.shape)
    return ecg_LS + noise_LS, np.rint((starts + qrs / 2000) * hz)


def measured(ecg_LS, hz=250, leads=LEADS):
    return dict(
        zip(MEASUREMENTS, measure(ecg_LS, leads, find_beats(ecg_LS, leads, hz), hz), strict=True)
    )


@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"hz": 500},
        {"rr_s": 1.2, "pr": 220, "qt": 440},
        {"rr_s": 0.6, "pr": 130, "qt": 320},
        {"qrs": 150, "axes": (60, -60, 120)},
        {"p_ms": 130, "pr": 200, "axes": (-20, 160, 10)},
    ],
    ids=str,
)
def test_measurements_are_those_that_the_ecg_was_drawn_with(drawn):
    ecg_LS, beats = draw(**drawn)
    hz, rr_s = drawn.get("hz", 250), drawn.get("rr_s", 0.8)
    found = find_beats(ecg_LS, LEADS, hz)
    assert len(found) == len(beats) and np.abs(found - beats).max() <= 0.02 * hz
    values = measured(ecg_LS, hz)
    assert values["heart rate"] == pytest.approx(60 / rr_s, abs=0.5)
    assert values["PR"] == pytest.approx(drawn.get("pr", 160), abs=12)
    assert values["QRS"] == pytest.approx(drawn.get("qrs", 96), abs=16)
    assert values["QTc"] == pytest.approx(drawn.get("qt", 400) / rr_s ** (1 / 3), abs=16)
    assert values["P duration"] == pytest.approx(drawn.get("p_ms", 100), abs=14)
    for name, axis in zip(("P", "QRS", "T"), drawn.get("axes", (50, 40, 45)), strict=True):
        assert values[f"{name} axis"] == pytest.approx(axis, abs=5), name
    area = 0.5 * 0.15 * drawn.get("p_ms", 100)  # of the lead along the axis
    assert 0.3 * area < values["P area"] < area


def test_what_is_not_there_is_missing():
    assert {n for n, v in measured(draw(p_mv=0)[0]).items() if np.isnan(v)} == set(WITHOUT_P)
    assert {n for n, v in measured(draw(t_mv=0)[0]).items() if np.isnan(v)} == {"QTc", "T axis"}
    chest = [lead for lead in LEADS if lead[0] == "V"]
    values = measured(draw()[0][6:], leads=chest)
    assert {n for n, v in values.items() if np.isnan(v)} == {"P axis", "QRS axis", "T axis"}
    assert np.isnan(list(measured(draw()[0][:, :400]).values())).all()  # two beats
    for nothing in (np.zeros((12, 2500)), draw()[0][:, :250]):
        assert np.isnan(list(measured(nothing).values())).all()


def test_waves_that_do_not_repeat_from_beat_to_beat_are_no_p_wave():
    ecg_LS = draw(p_mv=0)[0]
    time_S = np.arange(2500) / 250
    ecg_LS += 0.1 * np.sin(2 * np.pi * (6 * time_S + np.sin(1.1 * time_S)))  # fibrillation
    assert {n for n, v in measured(ecg_LS).items() if np.isnan(v)} >= set(WITHOUT_P)


@pytest.mark.parametrize("hidden", [("V1", "V5"), ("I", "II"), ("II", "V3")])
@pytest.mark.parametrize("kind", ["noise", "flat", "pacing"])
def test_two_bad_leads_of_five_are_outvoted(hidden, kind, rng):
    ecg_LS, beats = draw()
    rows = [LEADS.index(lead) for lead in hidden]
    if kind == "flat":
        ecg_LS[rows] = 0.1
    elif kind == "noise":
        ecg_LS[rows] += rng.normal(0, 0.4, (2, 2500))
    else:
        ecg_LS[np.ix_(rows, range(60, 2500, 140))] += 3
    found = find_beats(ecg_LS, LEADS, 250)
    assert len(found) == len(beats)
    assert np.abs(found - beats).max() <= (6 if kind == "flat" else 15)


def test_an_ectopic_beat_is_a_beat_but_not_part_of_the_median_beat():
    ecg_LS, beats = draw()
    other, _ = draw(qrs=180, axes=(50, -120, -120), p_mv=0, hz=250)
    at = int(beats[5])
    ecg_LS[:, at - 60 : at + 140] = other[:, at - 60 : at + 140]
    assert len(find_beats(ecg_LS, LEADS, 250)) == len(beats)
    assert measured(ecg_LS)["QRS"] == pytest.approx(measured(draw()[0])["QRS"], abs=4)


def test_without_a_lead_that_is_searched_or_at_too_low_a_rate_the_message_says_what_it_takes():
    ecg_LS, _ = draw()
    with pytest.raises(ValueError, match="a lead of I, II, V1, V3, V5 and 100 Hz, got aVR"):
        find_beats(ecg_LS[3:4], ["aVR"], 250)
    with pytest.raises(ValueError, match="at 50 Hz"):
        find_beats(ecg_LS, LEADS, 50)


DEVICES = {  # heart rate, PR, QRS, QT, axes of P, QRS, T as the device printed them
    "muse_xml_easyRecg/muse_ecg1.xml": (60, 158, 78, 364, 49, 54, 46),
    "muse_xml_easyRecg/muse_ecg2.xml": (60, 158, 80, 366, 49, 55, 48),
    "philips_xml_sierra/129DYPRG.XML": (41, 151, 135, 476, 66, -21, 59),
    "philips_xml_sierra/2020-5-18_15-48-11.xml": (64, 164, 102, 399, 27, 22, 80),
    "philips_xml_sierra/3191723_ZZDEMOPTONLY_1-04_orig.xml": (84, 144, 84, 352, 81, 78, 67),
    "philips_xml_sierra/ad4d3d80-d165_1-04_orig.xml": (41, 144, 102, 564, 19, 85, 53),
    "aecg_FDA/Example aECG.xml": (72, 148, 120, 420, 44, -61, 86),
    "dicom_marcodebe/anonymous_ecg.dcm": (61, 161, 75, 368, 74, 52, 57),
    "cardio_tests/sample.dcm": (80, 156, 86, 398, 53, 44, 60),
}
AT_MOST = (1.5, 10, 8, 28, 6, 5, 5)
"""Median absolute difference, in beats per minute, ms and degrees."""


def test_measurements_are_near_those_of_the_devices(real_data):
    differences = []
    for name, stated in DEVICES.items():
        recording = read_recording(real_data / "ecg" / "formats" / name, ArrayLayout())
        (ecg,) = prepare(recording, SignalSpec(), "zero")
        values = measured(ecg.counts_LS / 1000)
        names = ("heart rate", "PR", "QRS", "QTc", "P axis", "QRS axis", "T axis")
        qt = stated[3] / (60 / stated[0]) ** (1 / 3)
        against = [*stated[:3], qt, *stated[4:]]
        differences.append([abs(values[n] - v) for n, v in zip(names, against, strict=True)])
    assert (np.median(differences, axis=0) <= AT_MOST).all(), np.median(differences, axis=0)
