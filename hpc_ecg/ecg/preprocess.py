"""From a Recording to int16 arrays for a shard: the leads, rate, window and unit of a SignalSpec.

The result depends on the one recording and the spec alone, so any process may prepare any record.
A recording that does not fit is refused with a reason. Flags name what was added (derived leads,
zeros).
"""

from dataclasses import dataclass, replace

import numpy as np

from hpc_ecg.ecg.amplitude import amplitude_of
from hpc_ecg.ecg.filters import Preprocessing, apply_filters, change_rate, parse_preprocessing
from hpc_ecg.ecg.leads import complete_leads
from hpc_ecg.ecg.quality import MAX_MV, check_amplitude, check_finite, check_not_flat, quality_flags
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import SignalSpec

# L leads, S samples

MICROVOLTS_PER_COUNT = 1.0
MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 10_000.0
RATES = f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
MIN_WINDOW_S, MAX_WINDOW_S = 1.0, 600.0
WINDOWS = ("first", "centre", "all")
PADDED = "+padded"
MIN_PADDED_S = 2.5
"""Shorter recordings are left out even if padding is on. A column of a 3 x 4 print has 2.5 s."""
CALIBRATED = "calibrated"
ZERO_FILLED = "zero_filled:"


@dataclass(frozen=True, kw_only=True)
class PreparedECG:
    counts_LS: np.ndarray
    """int16 [leads, num_samples], C order, MICROVOLTS_PER_COUNT a count."""
    flags: tuple[str, ...]
    samples: int
    """Recorded samples; zeros follow them."""
    amplitude_mv: float
    """`amplitude_of` the recorded part."""
    window: int = 0
    """Index among the recording's windows."""


def prepare(
    recording: Recording, spec: SignalSpec, missing_leads: str = "leave_out", clip: bool = False
) -> list[PreparedECG]:
    """The windows that `spec` selects: one or, with `all`, every usable one, flagged
    `windows_left_out:n` if n others are not usable. A window beyond ±MAX_MV is not usable; with
    `clip` it is clipped there and flagged `clipped:V1,V2`.

    RecordError: "leads", "NaN" (anywhere in the recording), "rate", "too short"; if no window is
    usable, "flat lead" or "amplitude".
    """
    steps, rate_hz = parse_preprocessing(spec.preprocessing), recording.sample_rate_hz
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise RecordError("rate", f"the sampling rate must be {RATES}, got {rate_hz:g}")
    signal_LS, lead_flags = complete_leads(recording, spec.leads, missing_leads)
    lead_flags += recording.flags
    check_finite(signal_LS, spec.leads)
    resampled_LS = _resample_and_filter(signal_LS, rate_hz, spec, steps)
    resampled_LS = resampled_LS * amplitude_factor(spec.amplitude)
    original_samples = round(spec.num_samples / spec.sample_rate_hz * rate_hz)
    recorded_rows = _recorded_rows(spec.leads, lead_flags)
    recorded_leads = [spec.leads[row] for row in recorded_rows]
    prepared: list[PreparedECG] = []
    errors: list[RecordError] = []
    for number, start in enumerate(_window_starts(resampled_LS.shape[1], spec)):
        window_LS = resampled_LS[:, start : start + spec.num_samples]
        try:
            if not clip:
                check_amplitude(window_LS, spec.leads, MAX_MV)
            check_not_flat(window_LS[recorded_rows], recorded_leads)
        except RecordError as error:
            errors.append(error)
            continue
        first = round(start / spec.sample_rate_hz * rate_hz)
        original_LS = signal_LS[:, first : first + original_samples]
        counts_LS, storage_flags = _to_counts(window_LS, spec)
        ecg = PreparedECG(
            counts_LS=counts_LS,
            flags=lead_flags + quality_flags(original_LS, spec.leads, rate_hz) + storage_flags,
            samples=window_LS.shape[1],
            amplitude_mv=amplitude_of(window_LS[recorded_rows]),
            window=number,
        )
        prepared.append(ecg)
    if not prepared:
        raise errors[0]
    left_out = (f"windows_left_out:{len(errors)}",) if errors else ()
    return [replace(ecg, flags=ecg.flags + left_out) for ecg in prepared]


def check_spec(spec: SignalSpec) -> None:
    """Raise ValueError if `prepare` could not make what this spec describes."""
    policy = spec.window.removesuffix(PADDED)
    if policy not in WINDOWS:
        raise ValueError(f"the window must be one of {', '.join(WINDOWS)}, got {policy!r}")
    if not MIN_RATE_HZ <= spec.sample_rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"the rate of the shards must be {RATES}, got {spec.sample_rate_hz:g}")
    seconds = spec.num_samples / spec.sample_rate_hz
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        allowed = f"{MIN_WINDOW_S:g} to {MAX_WINDOW_S:g} s"
        raise ValueError(f"the window (--seconds) must be {allowed}, got {seconds:g}")
    parse_preprocessing(spec.preprocessing).check(spec.sample_rate_hz)
    amplitude_factor(spec.amplitude)


def amplitude_factor(amplitude: str) -> float:
    """1 for `calibrated`, F for `calibrated*F`; ValueError for any other convention."""
    name, _, factor = amplitude.partition("*")
    try:
        value = float(factor or 1)
    except ValueError:
        value = 0.0
    if name != CALIBRATED or not 0 < value < np.inf:
        raise ValueError(f"the amplitude factor must be a positive number, got {amplitude!r}")
    return value


def _resample_and_filter(
    signal_LS: np.ndarray, from_hz: float, spec: SignalSpec, steps: Preprocessing
) -> np.ndarray:
    """The whole recording at the spec's rate, filtered; "too short" if it holds no window."""
    if signal_LS.shape[1] == 0:
        raise RecordError("too short", "the recording has no samples")
    resampled_LS = change_rate(signal_LS, from_hz, spec.sample_rate_hz, steps.resampling)
    if resampled_LS.shape[1] < spec.num_samples:
        seconds, window_s = signal_LS.shape[1] / from_hz, spec.num_samples / spec.sample_rate_hz
        if not spec.window.endswith(PADDED):
            text = f"{seconds:.4g} s at {from_hz:g} Hz, the window is {window_s:g} s"
            raise RecordError("too short", text)
        if seconds < min(MIN_PADDED_S, window_s):
            text = f"{seconds:.4g} s; at least {MIN_PADDED_S:g} s are padded"
            raise RecordError("too short", text)
    return apply_filters(resampled_LS, spec.sample_rate_hz, steps)


def _window_starts(num_samples: int, spec: SignalSpec) -> list[int]:
    """First sample of each window; `all` ignores a remainder at the end."""
    policy = spec.window.removesuffix(PADDED)
    spare = max(num_samples - spec.num_samples, 0)
    if policy == "all":
        return list(range(0, spare + 1, spec.num_samples))
    return [spare // 2 if policy == "centre" else 0]


def window_of(recording: Recording, spec: SignalSpec, number: int) -> slice:
    """The samples, as recorded, of a window of `prepare`."""
    ratio = recording.sample_rate_hz / spec.sample_rate_hz
    first = _window_starts(round(recording.signal_LS.shape[1] / ratio), spec)[0]
    start = first + number * spec.num_samples
    return slice(round(start * ratio), round((start + spec.num_samples) * ratio))


def _recorded_rows(leads: list[str], flags: tuple[str, ...]) -> list[int]:
    """The rows that are not zero-filled."""
    filled = [flag.removeprefix(ZERO_FILLED) for flag in flags if flag.startswith(ZERO_FILLED)]
    absent = ",".join(filled).split(",")
    return [row for row, lead in enumerate(leads) if lead not in absent]


def _to_counts(window_LS: np.ndarray, spec: SignalSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """int16 counts, clipped to ±MAX_MV and padded with zeros, and the flags for both."""
    samples = window_LS.shape[1]
    clipped_LS = np.clip(window_LS, -MAX_MV, MAX_MV)
    counts_LS = np.zeros((len(spec.leads), spec.num_samples), np.int16)
    counts_LS[:, :samples] = np.rint(clipped_LS * (1000 / MICROVOLTS_PER_COUNT))
    clipped = ",".join(np.array(spec.leads)[(clipped_LS != window_LS).any(axis=1)])
    flags = [f"clipped:{clipped}"] if clipped else []
    flags += ["padded"] if samples < spec.num_samples else []
    return counts_LS, tuple(flags)
