"""From a Recording to a shard's array: order, rate, window, unit, and each way of being refused."""

import numpy as np
import pytest

from hpc_ecg.ecg.files import ArrayLayout, read_recording
from hpc_ecg.ecg.filters import resample
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import LEADS, SignalSpec

SPEC = SignalSpec()


def recording_of(signal_LS, rate=500.0, leads=LEADS):
    return Recording(signal_LS=np.asarray(signal_LS, float), leads=leads, sample_rate_hz=rate)


def sines(rate, seconds=10.0, frequency=7.0):
    """12 leads of sizes that obey Einthoven, in tenths of a millivolt."""
    time_S = np.arange(round(rate * seconds)) / rate
    return (
        0.1 * np.array([1, 2, 1, *range(4, 13)])[:, None] * np.sin(2 * np.pi * frequency * time_S)
    )


def refusal(recording, spec=SPEC):
    with pytest.raises(RecordError) as caught:
        prepare(recording, spec)
    assert "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


RATES = [50, 100, 240, 250, 257, 360, 400, 499.52, 500, 976.5625, 1000, 2000, 10_000]


@pytest.mark.parametrize("rate", RATES)
def test_a_sine_arrives_as_the_same_sine_from_any_rate(rate):
    (prepared,) = prepare(recording_of(sines(rate, 11), rate), SPEC)
    wanted_LS = sines(250) * 1000
    inner = slice(125, -125)
    assert np.abs(prepared.counts_LS - wanted_LS)[:, inner].max() < 3.6  # µV of 1200
    assert prepared.flags == ()


def test_the_result_is_int16_in_c_order_and_the_same_each_time():
    first, second = (prepare(recording_of(sines(500)), SPEC)[0].counts_LS for _ in range(2))
    assert (first.dtype, first.shape) == (np.int16, (12, 2500))
    assert first.flags.c_contiguous
    assert first.tobytes() == second.tobytes()


def test_a_tone_above_the_new_nyquist_rate_is_gone():
    aliased = resample(sines(500, frequency=200.0), 500, 250)[:, 100:-100]
    assert np.abs(aliased).max() < 0.001 * 1.2
    decimated = sines(500, frequency=200.0)[:, ::2]
    assert np.abs(decimated).max() > 1.1  # what x[::2] makes of it: 50 Hz at full size


@pytest.mark.parametrize("rate", [400, 500, 1000])
def test_an_offset_or_a_drift_causes_no_transient_at_the_ends(rate):
    samples = rate * 10
    offset_LS = 5 + np.linspace(0, 3, samples) * np.ones((12, 1))
    line_LS = 5 + 3 * np.arange(2500) * (rate / 250) / (samples - 1) * np.ones((12, 1))
    np.testing.assert_allclose(resample(offset_LS, rate, 250), line_LS, atol=1e-9)


def test_an_equal_rate_changes_nothing():
    counts_LS = np.random.default_rng(0).integers(-30000, 30000, (12, 2500))
    (prepared,) = prepare(recording_of(counts_LS / 1000, 250), SPEC)
    np.testing.assert_array_equal(prepared.counts_LS, counts_LS)
    assert "large_amplitude" in prepared.flags


def test_only_the_first_window_is_kept():
    signal_LS = sines(250, 30)
    signal_LS[:, 2500:] = 40.0  # what lies behind it may be as large as it likes
    wanted_LS = np.rint(1000 * sines(250))
    np.testing.assert_array_equal(
        prepare(recording_of(signal_LS, 250), SPEC)[0].counts_LS, wanted_LS
    )


def test_leads_are_put_in_order_and_extra_ones_left_out():
    shuffled = np.random.default_rng(0).permutation(12)
    signal_LS = np.vstack([np.full((1, 2500), np.nan), sines(250)[shuffled]])
    names = ("PLETH", *(LEADS[k].lower() for k in shuffled))
    (prepared,) = prepare(recording_of(signal_LS, 250, names), SPEC)
    np.testing.assert_array_equal(prepared.counts_LS, np.rint(1000 * sines(250)))


def test_a_spec_with_fewer_leads_and_another_rate_is_followed():
    spec = SignalSpec(leads=["V1", "II"], sample_rate_hz=500, num_samples=2500)
    (prepared,) = prepare(recording_of(sines(500)), spec)
    np.testing.assert_array_equal(prepared.counts_LS, np.rint(1000 * sines(500)[[6, 1], :2500]))


def test_a_short_recording_is_refused_with_its_length():
    expected = ("too short", "7.335 s at 400 Hz, the window is 10 s")
    assert refusal(recording_of(sines(400, 7.335), 400)) == expected
    assert refusal(recording_of(np.zeros((12, 0))))[0] == "too short"


def test_a_recording_short_of_a_fraction_of_an_output_sample_is_long_enough():
    assert prepare(recording_of(sines(500)[:, :4999]), SPEC)[0].counts_LS.shape == (12, 2500)
    assert refusal(recording_of(sines(500)[:, :4998]))[0] == "too short"


@pytest.mark.parametrize("rate", [0, -500, 49.9, 10_001, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(rate):
    assert refusal(recording_of(sines(500), rate))[0] == "rate"


def test_an_awkward_rate_costs_neither_memory_nor_accuracy():
    (prepared,) = prepare(recording_of(sines(487.3331, 11), 487.3331), SPEC)
    assert np.abs(prepared.counts_LS - sines(250) * 1000)[:, 125:-125].max() < 2.5


def test_an_invalid_sample_after_the_window_still_rules_the_recording_out():
    signal_LS = sines(250, 20)
    signal_LS[4, 4000] = np.nan
    expected = ("NaN", "1 samples are NaN or infinite, in aVL")
    assert refusal(recording_of(signal_LS, 250)) == expected


def test_a_lead_that_is_flat_in_the_window_is_refused():
    signal_LS = sines(500, 20)
    signal_LS[8, :5200] = 2.0
    reason, message = refusal(recording_of(signal_LS))
    assert reason == "flat lead"
    assert message.endswith("in V3")


def test_an_amplitude_beyond_int16_is_refused_and_the_largest_is_kept():
    assert refusal(recording_of(sines(250) * 1000, 250))[0] == "amplitude"
    signal_LS = sines(250)
    signal_LS[0, 0], signal_LS[0, 1] = 32.767, -32.767
    counts_LS = prepare(recording_of(signal_LS, 250), SPEC)[0].counts_LS
    assert (counts_LS[0, 0], counts_LS[0, 1]) == (32767, -32767)


def test_real_recordings_are_prepared_and_short_ones_refused(real_data):
    reasons = []
    for path in sorted((real_data / "ecg" / "code15").glob("*.hea"))[:20]:
        recording = read_recording(path, ArrayLayout())
        if recording.signal_LS.shape[1] < 4000:
            reasons.append(refusal(recording)[0])
        else:
            assert prepare(recording, SPEC)[0].counts_LS.shape == (12, 2500)
    assert reasons
    assert set(reasons) == {"too short"}
