"""Change of rate and filters: what `SignalSpec.preprocessing` names, done with scipy.

`resample_poly/2` is the default. `decimate/2` is DeepECG_Docker's x[::k], without an anti-alias
filter, for results that must agree with it. `highpass-0.5` and `notch-50` go between name and
version, in this order; both run forwards and backwards, so that nothing is delayed.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.signal import butter, filtfilt, iirnotch, resample_poly, sosfiltfilt

from hpc_ecg.ecg.recording import RecordError

# L leads, S samples

VERSION = "2"
RESAMPLING = ("resample_poly", "decimate")
MAX_DENOMINATOR = 10_000
"""Ratios of rates are exact up to here; beyond, time is stretched by less than 1 in 10,000."""
HIGHPASS_ORDER = 2  # Butterworth; twice that, as it runs both ways
NOTCH_QUALITY = 30.0  # 50 Hz: 1.7 Hz wide


@dataclass(frozen=True, kw_only=True)
class Steps:
    resampling: str = "resample_poly"
    highpass_hz: float | None = None
    notch_hz: float | None = None

    def check(self, sample_rate_hz: float) -> None:
        """ValueError unless these filters exist at this rate."""
        if self.resampling not in RESAMPLING:
            allowed = " or ".join(RESAMPLING)
            raise ValueError(f"the resampling must be {allowed}, got {self.resampling!r}")
        for name, hz in (("high-pass", self.highpass_hz), ("notch", self.notch_hz)):
            if hz is not None and not 0 < hz < sample_rate_hz / 2:
                raise ValueError(
                    f"the {name} must lie between 0 and {sample_rate_hz / 2:g} Hz "
                    f"(half the rate of the shards), got {hz:g}"
                )


def name_steps(steps: Steps) -> str:
    """What `SignalSpec.preprocessing` holds for these steps."""
    parts = [steps.resampling]
    parts += [f"highpass-{steps.highpass_hz:g}"] if steps.highpass_hz is not None else []
    parts += [f"notch-{steps.notch_hz:g}"] if steps.notch_hz is not None else []
    return "/".join([*parts, VERSION])


def parse_steps(name: str) -> Steps:
    """The other way round; ValueError for a name that this version does not make."""
    resampling, *more = name.split("/")
    values = dict(part.rpartition("-")[::2] for part in more[:-1])
    try:
        steps = Steps(
            resampling=resampling,
            highpass_hz=float(values["highpass"]) if "highpass" in values else None,
            notch_hz=float(values["notch"]) if "notch" in values else None,
        )
    except ValueError:
        steps = Steps()
    if name_steps(steps) != name:
        raise ValueError(
            f"preprocessing {name!r} is not made here; it is like {name_steps(Steps())!r} or "
            f"{name_steps(Steps(highpass_hz=0.5, notch_hz=50))!r}"
        )
    return steps


def change_rate(signal_LS: np.ndarray, from_hz: float, to_hz: float, resampling: str) -> np.ndarray:
    """[leads, ⌈samples · to/from⌉]; RecordError("rate") if decimating is not possible."""
    if resampling == "resample_poly":
        return resample(signal_LS, from_hz, to_hz)
    step = from_hz / to_hz
    if step != round(step):
        raise RecordError("rate", f"{from_hz:g} Hz is no multiple of {to_hz:g} Hz: not decimated")
    return signal_LS[:, :: round(step)]


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


def apply_filters(signal_LS: np.ndarray, rate_hz: float, steps: Steps) -> np.ndarray:
    """The whole recording, filtered forwards and backwards along time."""
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
