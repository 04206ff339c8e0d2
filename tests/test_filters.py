"""Rates and filters: what the name of a preprocessing means, and what it does to a signal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_ecg.ecg.filters import (
    Preprocessing,
    apply_filters,
    change_rate,
    parse_preprocessing,
)
from hpc_ecg.ecg.recording import RecordError

RATE = 250
HZ = st.none() | st.sampled_from([0.05, 0.5, 0.67, 50.0, 60.0]) | st.floats(1e-9, 1e3)


def tone(hz, seconds=20, rate=RATE):
    return np.sin(2 * np.pi * hz * np.arange(seconds * rate) / rate)[None]


def size(signal_LS):
    inner = signal_LS[:, 5 * RATE : -5 * RATE]
    return float(np.sqrt(2) * inner.std())


@given(st.sampled_from(["resample_poly", "decimate"]), HZ, HZ)
def test_a_name_describes_exactly_what_is_done(resampling, highpass, notch):
    steps = Preprocessing(resampling=resampling, highpass_hz=highpass, notch_hz=notch)
    assert parse_preprocessing(steps.name) == steps


@pytest.mark.parametrize("hz", [1e-5, 1.5e-7, 0.05, 0.1234567, 0.5, 2.5])
def test_small_and_long_frequencies_are_written_in_full(hz):
    name = Preprocessing(highpass_hz=hz, notch_hz=50).name
    assert "e-" not in name
    assert parse_preprocessing(name) == Preprocessing(highpass_hz=hz, notch_hz=50)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resample_poly",
        "resample_poly/1",
        "resample_poly/3",
        "resample_poly/notch/2",
        "resample_poly/notch-50/highpass-0.5/2",
        "resample_poly/lowpass-40/2",
        "x/y/z",
    ],
)
def test_a_name_of_another_version_or_order_is_not_guessed(name):
    with pytest.raises(ValueError, match=r"preprocessing .* is unknown to this version"):
        parse_preprocessing(name)


def test_the_high_pass_removes_wander_and_offset_and_keeps_the_rest():
    steps = Preprocessing(highpass_hz=0.5)
    assert size(apply_filters(tone(0.05) + 5, RATE, steps)) < 0.01
    for hz in (5, 20):
        assert size(apply_filters(tone(hz), RATE, steps)) == pytest.approx(1, abs=0.01)


def test_the_notch_removes_mains_hum_and_keeps_neighbouring_frequencies():
    steps = Preprocessing(notch_hz=50)
    assert size(apply_filters(tone(50), RATE, steps)) < 0.01
    for hz in (10, 45, 55):
        assert size(apply_filters(tone(hz), RATE, steps)) == pytest.approx(1, abs=0.03)


def test_filters_delay_nothing():
    peak_LS = np.zeros((1, 2500))
    peak_LS[0, 1000] = 1
    for steps in (Preprocessing(highpass_hz=0.5), Preprocessing(notch_hz=50)):
        assert apply_filters(peak_LS, RATE, steps).argmax() == 1000


@pytest.mark.parametrize("samples", [1, 2, 10, 700])
def test_filters_accept_recordings_of_any_length(samples):
    steps = Preprocessing(highpass_hz=0.05, notch_hz=50)
    assert apply_filters(np.ones((2, samples)), RATE, steps).shape == (2, samples)


def test_decimating_takes_every_kth_sample_and_nothing_else():
    signal_LS = np.arange(20.0).reshape(2, 10)
    np.testing.assert_array_equal(change_rate(signal_LS, 500, 250, "decimate"), signal_LS[:, ::2])
    with pytest.raises(RecordError, match="400 Hz is not a multiple of 250 Hz") as caught:
        change_rate(signal_LS, 400, 250, "decimate")
    assert caught.value.reason == "rate"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            Preprocessing(resampling="linear"),
            "resampling must be resample_poly or decimate, got 'linear'",
        ),
        (Preprocessing(highpass_hz=0), "high-pass must lie between 0 and 5 Hz, got 0"),
        (Preprocessing(highpass_hz=40), "high-pass must lie between 0 and 5 Hz, got 40"),
        (Preprocessing(highpass_hz=float("nan")), "high-pass must .* got nan"),
        (Preprocessing(notch_hz=125), r"notch must be 50 or 60 Hz \(mains\), got 125"),
        (Preprocessing(notch_hz=55), r"notch must be 50 or 60 Hz \(mains\), got 55"),
        (Preprocessing(notch_hz=float("nan")), "got nan"),
    ],
)
def test_impossible_filters_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        steps.check(RATE)
