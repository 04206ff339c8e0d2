"""Checks that leave a recording out, and flags that do not."""

from collections import Counter

import numpy as np
import pytest

from hpc_ecg.ecg.files import ArrayLayout, read_recording
from hpc_ecg.ecg.quality import (
    check_amplitude,
    check_finite,
    check_not_flat,
    find_flaws,
    quality_flags,
)
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import LEADS


@pytest.fixture(name="signal_LS")
def sound():
    signal_LS = np.random.default_rng(0).normal(0, 0.3, (12, 1000))
    signal_LS[2] = signal_LS[1] - signal_LS[0]  # Einthoven: III = II - I
    return signal_LS


def test_a_sound_signal_passes_without_flags(signal_LS):
    check_finite(signal_LS, LEADS)
    check_not_flat(signal_LS, LEADS)
    check_amplitude(signal_LS, LEADS, 32.767)
    assert quality_flags(signal_LS, LEADS, 500) == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_leads_of_nan_and_infinite_samples_are_named(signal_LS, value):
    signal_LS[[7, 11], 3] = value
    with pytest.raises(RecordError, match="2 samples are NaN or infinite, in V2, V6") as caught:
        check_finite(signal_LS, LEADS)
    assert caught.value.reason == "NaN"


def test_a_lead_with_only_an_offset_is_flat(signal_LS):
    signal_LS[3] = 1.5 + 0.004 * np.sin(np.arange(1000))
    with pytest.raises(RecordError, match=r"less than 10 µV peak to peak in aVR$") as caught:
        check_not_flat(signal_LS, LEADS)
    assert caught.value.reason == "flat lead"


def test_a_low_voltage_lead_is_not_flat(signal_LS):
    check_not_flat(signal_LS / signal_LS.max() * 0.05, LEADS)


def test_a_record_in_volts_read_as_millivolts_gets_a_hint(signal_LS):
    with pytest.raises(RecordError, match="is the unit right"):
        check_not_flat(signal_LS / 1000, LEADS)


def test_a_record_in_microvolts_read_as_millivolts_gets_a_hint(signal_LS):
    with pytest.raises(RecordError, match=r"I, II.*at most 32.767 mV.*unit right \(µV") as caught:
        check_amplitude(signal_LS * 1000, LEADS, 32.767)
    assert caught.value.reason == "amplitude"


@pytest.mark.parametrize("peak", [10.5, -10.5])
def test_a_large_peak_of_either_sign_is_kept_and_flagged(signal_LS, peak):
    signal_LS[7, 0] = peak
    check_amplitude(signal_LS, LEADS, 32.767)
    assert quality_flags(signal_LS, LEADS, 500) == ("large_amplitude",)


@pytest.mark.parametrize(("samples", "flags"), [(19, ()), (20, ("saturated",))])
def test_a_lead_that_stays_at_its_extreme_is_saturated(signal_LS, samples, flags):
    signal_LS[7, 100 : 100 + samples] = 2.5
    assert quality_flags(signal_LS, LEADS, 500) == flags


def test_a_flat_stretch_at_the_middle_of_a_lead_is_not_saturation(signal_LS):
    signal_LS[7, 100:200] = 0.0
    assert quality_flags(signal_LS, LEADS, 500) == ()


def test_limb_leads_in_the_wrong_order_are_flagged(signal_LS):
    swapped = signal_LS[[1, 0, *range(2, 12)]]
    assert quality_flags(swapped, LEADS, 500) == ("limb_leads_inconsistent",)


def beating(p_axis, qrs_axis):
    """The twelve leads of beats whose waves have these axes, in degrees, at 250 Hz."""
    ecg_LS, time_s = np.zeros((12, 2500)), np.arange(2500) / 250
    waves = ((-0.16, 0.02, 0.15, p_axis), (0, 0.012, 1.0, qrs_axis), (0.27, 0.04, 0.3, qrs_axis))
    for delay, width, height, axis in waves:
        towards = [height * np.cos(np.radians(axis - at)) for at in (0, 60, 120)]
        shape_S = sum(np.exp(-(((time_s - n - 0.5 - delay) / width) ** 2) / 2) for n in range(10))
        ecg_LS[:3] += np.outer(towards, shape_S)
        ecg_LS[6:] += height * shape_S
    ecg_LS[3:6] = [
        -(ecg_LS[0] + ecg_LS[1]) / 2,
        ecg_LS[0] - ecg_LS[1] / 2,
        ecg_LS[1] - ecg_LS[0] / 2,
    ]
    return ecg_LS + np.random.default_rng(0).normal(0, 0.002, ecg_LS.shape)


def exchanged(ecg_LS, first, second):
    """The ECG with two of the electrodes R, L and F exchanged."""
    one, two = ecg_LS[:2]
    at = {"R": -(one + two) / 3, "L": (2 * one - two) / 3, "F": (2 * two - one) / 3}
    at[first], at[second] = at[second], at[first]
    leads = [at["L"] - at["R"], at["F"] - at["R"], at["F"] - at["L"]]
    return np.stack([*leads, *(1.5 * at[name] for name in "RLF"), *ecg_LS[6:]])


@pytest.mark.parametrize(
    ("pair", "electrodes", "lead"),
    [("RL", "right and left arm", "I"), ("RF", "right arm and left leg", "II")],
)
def test_exchanged_electrodes_are_named_with_the_reason(pair, electrodes, lead):
    swapped_LS = exchanged(beating(50, 30), *pair)
    assert quality_flags(swapped_LS, LEADS, 250) == ("lead_swap_suspected",)
    (flaw,) = find_flaws("lead_swap_suspected", dict(zip(LEADS, swapped_LS, strict=True)), 250)
    assert (flaw.lead, flaw.at) == (lead, None)
    assert f"electrodes of {electrodes} exchanged?" in flaw.words
    assert f"{lead} mirrors V6" in flaw.words and "P is inverted" in flaw.words


@pytest.mark.parametrize("qrs_axis", [-150, -120, -90, 0, 60, 120, 150, 180])
def test_an_extreme_axis_alone_is_no_exchange_of_electrodes(qrs_axis):
    assert quality_flags(beating(50, qrs_axis), LEADS, 250) == ()


def test_without_a_p_wave_no_exchange_is_suspected(signal_LS):
    signal_LS[11] = -signal_LS[0]
    assert quality_flags(signal_LS, LEADS, 500) == ()


def put(lead, at, value):
    def change(signal_LS):
        signal_LS[LEADS.index(lead), at] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "lead", "at", "words"),
    [
        ("large_amplitude", put("V2", 700, -10.5), "V2", slice(700, 701), "-10.5 mV"),
        ("saturated", put("V3", slice(300, 330), 2.5), "V3", slice(300, 330), "cut off at +2.5 mV"),
        ("amplitude", put("aVF", slice(9, 12), 40), "aVF", slice(9, 12), "+40 mV"),
        ("clipped", put("V1", 4, 33), "V1", slice(4, 5), "+33 mV"),
        ("NaN", put("I", slice(5, 8), np.nan), "I", slice(5, 8), "3 samples without a number"),
        ("flat lead", put("V6", slice(None), 0.3), "V6", None, "flat"),
        ("partly_flat", lambda x: x[:, 500:].fill(0), "", slice(500, 1000), "flat"),
    ],
)
def test_a_flag_or_reason_says_in_which_lead_and_when(signal_LS, name, change, lead, at, words):
    change(signal_LS)
    found = find_flaws(name, dict(zip(LEADS, signal_LS, strict=True)), 500)
    assert found == [(lead, at, words)]


def test_leads_in_the_wrong_order_are_named(signal_LS):
    wrong = dict(zip(LEADS, signal_LS[[1, 0, *range(2, 12)]], strict=True))
    ((lead, at, words),) = find_flaws("limb_leads_inconsistent", wrong, 500)
    assert (lead, at) == ("II", None) and words.endswith("I and II seem to be exchanged")


@pytest.mark.parametrize("name", ["padded", "duplicate_signal", "rate", "no patient"])
def test_what_has_no_place_is_nowhere(signal_LS, name):
    assert find_flaws(name, dict(zip(LEADS, signal_LS, strict=True)), 500) == []


def test_missing_leads_raise_no_flag(signal_LS):
    assert quality_flags(signal_LS[6:8], ["V1", "V2"], 500) == ()


@pytest.mark.slow
def test_few_real_recordings_are_flagged(real_data):
    """Bounds were set on these; the saturated ones were looked at."""
    folder = real_data / "ecg" / "ptbxl"
    counts = Counter()
    for path in sorted(folder.rglob("*.hea")):
        recording = read_recording(path, ArrayLayout())
        counts.update(quality_flags(recording.signal_LS, LEADS, recording.sample_rate_hz))
    assert counts == {"saturated": 3}


@pytest.mark.parametrize("part", [slice(500), slice(-500, None)])
def test_a_recording_that_begins_late_or_stops_early_is_flagged(signal_LS, part):
    signal_LS[:, part] = 0.0
    assert quality_flags(signal_LS, LEADS, 500) == ("partly_flat",)
    signal_LS[3, part] = np.linspace(0, 1, 500)
    assert "partly_flat" not in quality_flags(signal_LS, LEADS, 500)
