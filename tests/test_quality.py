"""Checks that leave a recording out, and flags that do not."""

import numpy as np
import pytest

from hpc_ecg.ecg.quality import check_amplitude, check_finite, check_not_flat, find_flags
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import LEADS


@pytest.fixture(name="signal_LS")
def sound():
    return np.random.default_rng(0).normal(0, 0.3, (12, 1000))


def test_a_sound_signal_passes_without_flags(signal_LS):
    check_finite(signal_LS, LEADS)
    check_not_flat(signal_LS, LEADS)
    check_amplitude(signal_LS, LEADS, 32.767)
    assert find_flags(signal_LS) == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_names_its_lead(signal_LS, value):
    signal_LS[[7, 11], 3] = value
    with pytest.raises(RecordError, match="2 samples are NaN or infinite, in V2, V6") as caught:
        check_finite(signal_LS, LEADS)
    assert caught.value.reason == "NaN"


def test_a_lead_with_an_offset_and_nothing_else_is_flat(signal_LS):
    signal_LS[3] = 1.5 + 0.004 * np.sin(np.arange(1000))
    with pytest.raises(RecordError, match=r"less than 10 µV peak to peak in aVR$") as caught:
        check_not_flat(signal_LS, LEADS)
    assert caught.value.reason == "flat lead"


def test_a_low_voltage_lead_is_not_flat(signal_LS):
    check_not_flat(signal_LS / signal_LS.max() * 0.05, LEADS)


def test_a_record_in_volts_taken_for_millivolts_is_told_so(signal_LS):
    with pytest.raises(RecordError, match="is the unit right"):
        check_not_flat(signal_LS / 1000, LEADS)


def test_a_record_in_microvolts_taken_for_millivolts_is_told_so(signal_LS):
    with pytest.raises(RecordError, match=r"I, II.*at most 32.767 mV.*unit right \(µV") as caught:
        check_amplitude(signal_LS * 1000, LEADS, 32.767)
    assert caught.value.reason == "amplitude"


@pytest.mark.parametrize("peak", [10.5, -10.5])
def test_a_large_peak_of_either_sign_is_kept_and_flagged(signal_LS, peak):
    signal_LS[0, 0] = peak
    check_amplitude(signal_LS, LEADS, 32.767)
    assert find_flags(signal_LS) == ("large_amplitude",)
