"""Resampling and filtering with scipy, as `SignalSpec.preprocessing` names them.

`resample_poly/2` is the default. `decimate/2` is DeepECG_Docker's x[::k], without an anti-alias
filter, for results that must agree with it. `highpass-0.5` and `notch-50` stand between method and
version, in this order. Both filters run forwards and backwards, so they delay nothing.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.signal import butter, filtfilt, iirnotch, resample_poly, sosfiltfilt

from hpc_ecg.ecg.recording import RecordError

# L leads, S samples

VERSION = "2"
RESAMPLING = ("resample_poly", "decimate")
MAX_DENOMINATOR = 10_000
"""Rate ratios are exact up to this denominator; beyond it, time stretches by under 1 in 10,000."""
HIGHPASS_ORDER = 2  # Butterworth; effectively 4, as it runs both ways
NOTCH_QUALITY = 30.0  # at 50 Hz: 1.7 Hz wide
MAX_HIGHPASS_HZ = 5.0
"""Above it, waves of the ECG itself go."""
MAINS_HZ = (50, 60)
_HZ = r"(\d+(?:\.\d+)?)"
_NAME = re.compile(rf"([^/]*)(?:/highpass-{_HZ})?(?:/notch-{_HZ})?/{VERSION}")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    resampling: str = "resample_poly"
    highpass_hz: float | None = None
    notch_hz: float | None = None

    @property
    def name(self) -> str:
        """The value of `SignalSpec.preprocessing`, such as `resample_poly/notch-50/2`."""
        steps = (("highpass", self.highpass_hz), ("notch", self.notch_hz))
        # `:g` would round, and write 1e-05
        named = [
            f"/{n}-{np.format_float_positional(hz, trim='-')}" for n, hz in steps if hz is not None
        ]
        return f"{self.resampling}{''.join(named)}/{VERSION}"

    def check(self, sample_rate_hz: float) -> None:
        """Raise ValueError unless these filters exist at this rate."""
        if self.resampling not in RESAMPLING:
            allowed = " or ".join(RESAMPLING)
            raise ValueError(f"the resampling must be {allowed}, got {self.resampling!r}")
        if self.highpass_hz is not None and not 0 < self.highpass_hz <= MAX_HIGHPASS_HZ:
            allowed = f"lie between 0 and {MAX_HIGHPASS_HZ:g} Hz"
            raise ValueError(f"the high-pass must {allowed}, got {self.highpass_hz:g}")
        if self.notch_hz is not None and self.notch_hz not in MAINS_HZ:
            raise ValueError(f"the notch must be 50 or 60 Hz (mains), got {self.notch_hz:g}")
        hz = max(self.highpass_hz or 0, self.notch_hz or 0)
        if hz >= sample_rate_hz / 2:
            half = f"{sample_rate_hz / 2:g} Hz (half the rate of the shards)"
            raise ValueError(f"a filter must lie below {half}, got {hz:g}")


def parse_preprocessing(name: str) -> Preprocessing:
    """The inverse of `Preprocessing.name`; ValueError for a name that this version never writes."""
    if match := _NAME.fullmatch(name):
        highpass_hz, notch_hz = (float(hz) if hz else None for hz in match.group(2, 3))
        steps = Preprocessing(resampling=match[1], highpass_hz=highpass_hz, notch_hz=notch_hz)
        if steps.name == name:
            return steps
    example = Preprocessing(highpass_hz=0.5, notch_hz=50)
    raise ValueError(
        f"preprocessing {name!r} is unknown to this version; expected a name like "
        f"{Preprocessing().name!r} or {example.name!r}"
    )


def change_rate(signal_LS: np.ndarray, from_hz: float, to_hz: float, resampling: str) -> np.ndarray:
    """[leads, ⌈samples · to/from⌉]; RecordError("rate") if the rates do not allow decimating."""
    if resampling == "resample_poly":
        return resample(signal_LS, from_hz, to_hz)
    step = from_hz / to_hz
    if step != round(step):
        raise RecordError(
            "rate", f"cannot decimate: {from_hz:g} Hz is not a multiple of {to_hz:g} Hz"
        )
    return signal_LS[:, :: round(step)]


def resample(signal_LS: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
    """[leads, ⌈samples · to/from⌉] by scipy's polyphase filter, cut off below both Nyquist rates.

    The filter does not see the line from each lead's first to its last sample, so an offset or a
    drift causes neither transients at the ends nor ripple. (scipy's padtype="line" does filter it:
    the filter's phases differ in gain, and 5 mV at 400 Hz ripple by 1 µV.)
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


def apply_filters(signal_LS: np.ndarray, rate_hz: float, steps: Preprocessing) -> np.ndarray:
    num_samples = signal_LS.shape[1]
    if steps.highpass_hz is not None:
        sections = butter(HIGHPASS_ORDER, steps.highpass_hz, "highpass", fs=rate_hz, output="sos")
        padding = min(num_samples - 1, round(3 * rate_hz / steps.highpass_hz))
        signal_LS = sosfiltfilt(sections, signal_LS, axis=1, padlen=padding)
    if steps.notch_hz is not None:
        b, a = iirnotch(steps.notch_hz, NOTCH_QUALITY, fs=rate_hz)
        padding = min(num_samples - 1, round(NOTCH_QUALITY * rate_hz / steps.notch_hz))
        signal_LS = filtfilt(b, a, signal_LS, axis=1, padlen=padding)
    return signal_LS
