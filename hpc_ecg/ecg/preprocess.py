"""A Recording in, a shard's int16 array out: leads in order, resampled, first window, 1 µV a count.

The result depends on the one record and the spec only, so any process may prepare any record.
A record that does not fit is refused with a reason; nothing is padded, filled or scaled to fit.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from hpc_ecg.ecg.leads import order_rows
from hpc_ecg.ecg.quality import check_amplitude, check_finite, check_not_flat, find_flags
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import SignalSpec

# L leads, S samples

MICROVOLTS_PER_COUNT = 1.0
MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 10_000.0
MAX_DENOMINATOR = 10_000
"""Ratios of rates are exact up to here; beyond, time is stretched by less than 1 in 10,000."""


@dataclass(frozen=True, kw_only=True)
class PreparedECG:
    counts_LS: np.ndarray
    """int16 [leads, num_samples], C order, MICROVOLTS_PER_COUNT a count."""
    flags: tuple[str, ...]
    """Quality remarks on a record that is kept."""


def prepare(recording: Recording, spec: SignalSpec) -> PreparedECG:
    """The recording as `spec` wants it.

    RecordError: "leads", "NaN" (anywhere in the recording), "rate", "too short", "flat lead",
    "amplitude" (the last two within the window).
    """
    rows = order_rows(recording.leads, spec.leads)
    signal_LS = recording.signal_LS[rows]
    check_finite(signal_LS, spec.leads)
    check_rate(recording.sample_rate_hz)
    window_LS = _first_window(signal_LS, recording.sample_rate_hz, spec)
    check_not_flat(window_LS, spec.leads)
    max_mv = np.iinfo(np.int16).max * MICROVOLTS_PER_COUNT / 1000
    check_amplitude(window_LS, spec.leads, max_mv)
    counts_LS = np.rint(window_LS * (1000 / MICROVOLTS_PER_COUNT)).astype(np.int16)
    return PreparedECG(counts_LS=np.ascontiguousarray(counts_LS), flags=find_flags(window_LS))


def check_rate(sample_rate_hz: float) -> None:
    """RecordError("rate") if no ECG was recorded at this rate."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise RecordError(
            "rate",
            f"the sampling rate must be {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz, "
            f"got {sample_rate_hz:g}",
        )


def resample(signal_LS: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
    """[leads, ⌈samples · to/from⌉] by scipy's polyphase filter, cut off below both Nyquist rates.

    The line from each lead's first to last sample is kept out of the filtering, so that neither an
    offset nor a drift leaves a transient at the ends or a ripple. (scipy's padtype="line" filters
    it: no transient, but the filter's phases differ in gain and 5 mV at 400 Hz ripple by 1 µV.)
    """
    ratio = (Fraction(to_hz) / Fraction(from_hz)).limit_denominator(MAX_DENOMINATOR)
    if ratio == 1:
        return signal_LS
    num_in = signal_LS.shape[1]
    num_out = -(-num_in * ratio.numerator // ratio.denominator)
    first_L1 = signal_LS[:, :1]
    slope_L1 = (signal_LS[:, -1:] - first_L1) / max(num_in - 1, 1)
    rest_LS = signal_LS - first_L1 - slope_L1 * np.arange(num_in)
    resampled_LS = resample_poly(rest_LS, ratio.numerator, ratio.denominator, axis=1)
    return resampled_LS + first_L1 + slope_L1 * (np.arange(num_out) / float(ratio))


def _first_window(signal_LS: np.ndarray, from_hz: float, spec: SignalSpec) -> np.ndarray:
    if signal_LS.shape[1] == 0:
        raise RecordError("too short", "the recording has no samples")
    resampled_LS = resample(signal_LS, from_hz, spec.sample_rate_hz)
    if resampled_LS.shape[1] < spec.num_samples:
        seconds, window = signal_LS.shape[1] / from_hz, spec.num_samples / spec.sample_rate_hz
        raise RecordError(
            "too short", f"{seconds:.4g} s at {from_hz:g} Hz, the window is {window:g} s"
        )
    return resampled_LS[:, : spec.num_samples]
