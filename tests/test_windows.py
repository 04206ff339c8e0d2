"""Which part of a recording becomes a record: windows, padding, derived and missing leads."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_ecg.ecg.preprocess import amplitude_factor, check_spec, prepare
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import LEADS, SignalSpec

SPEC = SignalSpec(sample_rate_hz=250, num_samples=500)


def steps_of(samples, rate=250.0, leads=LEADS):
    """Each sample says when it was: 1 µV a sample, with a beat that keeps leads from being flat."""
    signal_LS = np.tile(np.arange(samples) / 1000.0, (len(leads), 1))
    return Recording(signal_LS=signal_LS, leads=leads, sample_rate_hz=rate)


def starts_of(recording, spec):
    return [int(ecg.counts_LS[0, 0]) for ecg in prepare(recording, spec)]


@pytest.mark.parametrize(
    ("window", "samples", "starts"),
    [
        ("first", 1299, [0]),
        ("centre", 1299, [399]),
        ("centre", 500, [0]),
        ("all", 1299, [0, 500]),
        ("all", 1500, [0, 500, 1000]),
        ("all", 500, [0]),
        ("all+padded", 1499, [0, 500]),
    ],
)
def test_windows_begin_where_the_policy_says(window, samples, starts):
    assert starts_of(steps_of(samples), replace(SPEC, window=window)) == starts


@given(st.integers(500, 4000))
def test_all_windows_cover_the_recording_without_gap_or_overlap(samples):
    windows = prepare(steps_of(samples), replace(SPEC, window="all"))
    joined_LS = np.concatenate([ecg.counts_LS for ecg in windows], axis=1)
    np.testing.assert_array_equal(joined_LS[3], np.arange(samples // 500 * 500))
    assert [ecg.window for ecg in windows] == list(range(samples // 500))


def test_a_short_recording_is_left_out_unless_padding_is_asked_for():
    spec = SignalSpec()
    short = steps_of(1825)  # 7.3 s, as CODE-15 has them
    with pytest.raises(RecordError, match=r"7\.3 s at 250 Hz, the window is 10 s"):
        prepare(short, spec)
    (padded,) = prepare(short, replace(spec, window="first+padded"))
    assert padded.samples == 1825 and "padded" in padded.flags
    assert padded.counts_LS.shape == (12, 2500)
    np.testing.assert_array_equal(padded.counts_LS[5, :1825], np.arange(1825))
    assert not padded.counts_LS[:, 1825:].any()


def test_a_recording_shorter_than_a_column_of_a_print_is_not_padded():
    with pytest.raises(RecordError, match=r"2\.4 s; at least 2\.5 s are padded") as caught:
        prepare(steps_of(600), SignalSpec(window="first+padded"))
    assert caught.value.reason == "too short"


def test_the_amplitude_is_that_of_the_recorded_part():
    signal_LS = np.tile(np.sin(np.arange(1250) / 5.0), (12, 1))
    recording = Recording(signal_LS=signal_LS, leads=LEADS, sample_rate_hz=250.0)
    (padded,) = prepare(recording, SignalSpec(window="first+padded"))
    assert padded.amplitude_mv == pytest.approx(2.0, abs=0.01)


def test_unusable_windows_are_left_out_and_flagged_on_the_others():
    recording = steps_of(2000)
    recording.signal_LS[4, 500:1000] = 0.1
    windows = prepare(recording, replace(SPEC, window="all"))
    assert [ecg.window for ecg in windows] == [0, 2, 3]
    assert all("windows_left_out:1" in ecg.flags for ecg in windows)
    recording.signal_LS[4] = 0.1
    with pytest.raises(RecordError, match="in aVL"):
        prepare(recording, replace(SPEC, window="all"))


def test_flags_are_those_of_the_window():
    recording = steps_of(1500)
    recording.signal_LS[7, 700] = 12.0
    flags = [ecg.flags for ecg in prepare(recording, replace(SPEC, window="all"))]
    has_large = ["large_amplitude" in of_window for of_window in flags]
    assert has_large == [False, True, False]


def test_an_amplitude_factor_scales_the_signals():
    plain, scaled = (
        prepare(steps_of(500), replace(SPEC, amplitude=name))[0].counts_LS
        for name in ("calibrated", "calibrated*0.5")
    )
    np.testing.assert_array_equal(scaled, np.rint(plain * 0.5))


@pytest.mark.parametrize("name", ["calibrated*0", "calibrated*-1", "calibrated*nan", "mean*2"])
def test_an_invalid_amplitude_factor_is_refused(name):
    with pytest.raises(ValueError, match="amplitude factor must be a positive number"):
        amplitude_factor(name)


def test_a_spec_can_ask_for_decimation():
    spec = replace(SPEC, preprocessing="decimate/2")
    (ecg,) = prepare(steps_of(1000, rate=500.0), spec)
    np.testing.assert_array_equal(ecg.counts_LS[0], np.arange(0, 1000, 2))


def test_missing_leads_are_refused_or_zeros_on_request():
    signal_LS = np.random.default_rng(0).normal(0, 0.3, (11, 500))
    recording = Recording(signal_LS=signal_LS, leads=LEADS[:-1], sample_rate_hz=250.0)
    with pytest.raises(RecordError, match=r"^missing V6") as caught:
        prepare(recording, SPEC)
    assert caught.value.reason == "leads"
    (ecg,) = prepare(recording, SPEC, missing_leads="zero")
    assert "zero_filled:V6" in ecg.flags and not ecg.counts_LS[11].any()
    recording.signal_LS[10] = 0.0
    with pytest.raises(RecordError, match="in V5"):
        prepare(recording, SPEC, missing_leads="zero")


def test_a_window_beyond_the_range_is_left_out_or_clipped_and_flagged_on_request():
    signal_LS = np.random.default_rng(0).normal(0, 0.3, (12, 1000))
    signal_LS[6, 600], signal_LS[8, 700] = 40.0, -32.8  # V1 and V3, in the second of two windows
    recording = Recording(signal_LS=signal_LS, leads=LEADS, sample_rate_hz=250.0)
    spec = replace(SPEC, window="all")
    (first,) = prepare(recording, spec)
    assert "windows_left_out:1" in first.flags
    first, second = prepare(recording, spec, clip=True)
    assert not any("clipped" in flag for flag in first.flags) and "clipped:V1,V3" in second.flags
    assert (second.counts_LS[6, 100], second.counts_LS[8, 200]) == (32767, -32767)
    kept_LS = np.delete(second.counts_LS, [100, 200], axis=1)
    expected_LS = np.delete(np.rint(1000 * signal_LS[:, 500:]), [100, 200], axis=1)
    np.testing.assert_array_equal(kept_LS, expected_LS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": "last"}, "window must be one of first, centre, all, got 'last'"),
        ({"num_samples": 0}, r"window \(--seconds\) must be 1 to 600 s, got 0"),
        ({"num_samples": 25}, r"must be 1 to 600 s, got 0.1"),
        ({"num_samples": 250 * 86_400}, r"must be 1 to 600 s, got 86400"),
        ({"sample_rate_hz": 10}, "rate of the shards must be 50 to 10000 Hz, got 10"),
        ({"preprocessing": "resample_poly/notch-200/2"}, "notch must be 50 or 60 Hz"),
        ({"amplitude": "calibrated*x"}, "amplitude factor"),
    ],
)
def test_an_impossible_spec_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_spec(replace(SPEC, **changes))
