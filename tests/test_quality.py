"""Checks that leave a recording out, and flags that do not."""

from collections import Counter

import numpy as np
import pytest

from hpc_ecg.ecg.files import ArrayLayout, read_recording
from hpc_ecg.ecg.quality import check_amplitude, check_finite, check_not_flat, quality_flags
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


def test_exchanged_arm_electrodes_are_suspected(signal_LS):
    signal_LS[11] = signal_LS[0]  # V6 runs as I does
    assert quality_flags(signal_LS, LEADS, 500) == ()
    right_for_left = signal_LS.copy()
    right_for_left[0] *= -1
    right_for_left[1], right_for_left[2] = signal_LS[2], signal_LS[1]
    assert quality_flags(right_for_left, LEADS, 500) == ("lead_swap_suspected",)


def test_missing_leads_raise_no_flag(signal_LS):
    assert quality_flags(signal_LS[6:8], ["V1", "V2"], 500) == ()


@pytest.mark.slow
def test_few_real_recordings_are_flagged(real_data):
    """Bounds were set on these; the saturated ones and one I against V6 were looked at."""
    folder = real_data / "ecg" / "ptbxl"
    counts = Counter()
    for path in sorted(folder.rglob("*.hea")):
        recording = read_recording(path, ArrayLayout())
        counts.update(quality_flags(recording.signal_LS, LEADS, recording.sample_rate_hz))
    assert counts == {"saturated": 3, "lead_swap_suspected": 1}


@pytest.mark.parametrize("part", [slice(500), slice(-500, None)])
def test_a_recording_that_begins_late_or_stops_early_is_flagged(signal_LS, part):
    signal_LS[:, part] = 0.0
    assert quality_flags(signal_LS, LEADS, 500) == ("partly_flat",)
    signal_LS[3, part] = np.linspace(0, 1, 500)
    assert "partly_flat" not in quality_flags(signal_LS, LEADS, 500)
