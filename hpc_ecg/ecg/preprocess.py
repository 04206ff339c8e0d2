"""A Recording in, int16 arrays for a shard out, as the SignalSpec says: leads, rate, window, unit.

The result depends on the one record and the spec only, so any process may prepare any record.
What does not fit is refused with a reason. What was added (derived leads, zeros) stands in flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpc_ecg.ecg.amplitude import amplitude_of
from hpc_ecg.ecg.filters import Preprocessing, apply_filters, change_rate, parse_preprocessing
from hpc_ecg.ecg.leads import complete_leads
from hpc_ecg.ecg.quality import check_amplitude, check_finite, check_not_flat, quality_flags
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import SignalSpec

# L leads, S samples

MICROVOLTS_PER_COUNT = 1.0
MAX_MV = np.iinfo(np.int16).max * MICROVOLTS_PER_COUNT / 1000
MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 10_000.0
WINDOWS = ("first", "centre", "all")
PADDED = "+padded"
MIN_PADDED_S = 2.5
"""Shorter recordings are left out even where padding is asked for: a column of a 3 x 4 print."""
CALIBRATED = "calibrated"
ZERO_FILLED = "zero_filled:"


@dataclass(frozen=True, kw_only=True)
class PreparedECG:
    counts_LS: np.ndarray
    """int16 [leads, num_samples], C order, MICROVOLTS_PER_COUNT a count."""
    flags: tuple[str, ...]
    """Remarks on a window that is kept."""
    samples: int
    """Samples that were recorded; what follows them is zeros."""
    amplitude_mv: float
    """`amplitude_of` the recorded part."""
    window: int = 0
    """Position among the recording's windows."""


def prepare(
    recording: Recording,
    spec: SignalSpec,
    missing_leads: str = "leave_out",
    clip: bool = False,
) -> list[PreparedECG]:
    """The recording as `spec` wants it: one window, or all of them. Of several windows those that
    are unfit are left out, and the others flagged `windows_left_out:n`. Beyond ±MAX_MV a window is
    unfit, or on request clipped there and flagged `clipped:V1,V2`.

    RecordError: "leads", "NaN" (anywhere in the recording), "rate", "too short", "flat lead",
    "amplitude" (the last two within the window).
    """
    steps = parse_preprocessing(spec.preprocessing)
    check_rate(recording.sample_rate_hz)
    signal_LS, lead_flags = complete_leads(recording, spec.leads, missing_leads)
    check_finite(signal_LS, spec.leads)
    resampled_LS = _resampled(signal_LS, recording.sample_rate_hz, spec, steps)
    resampled_LS = resampled_LS * amplitude_factor(spec.amplitude)
    there = _recorded_leads(spec.leads, lead_flags)
    prepared, refused = [], []
    for number, start in enumerate(_starts(resampled_LS.shape[1], spec)):
        window_LS = resampled_LS[:, start : start + spec.num_samples]
        recorded_LS = _same_time(signal_LS, start, recording.sample_rate_hz, spec)
        try:
            if not clip:
                check_amplitude(window_LS, spec.leads, MAX_MV)
            ecg = _finish(window_LS, recorded_LS, recording.sample_rate_hz, spec, there)
        except RecordError as error:
            refused.append(error)
        else:
            prepared.append(replace(ecg, flags=(*lead_flags, *ecg.flags), window=number))
    if not prepared:
        raise refused[0]
    lost = (f"windows_left_out:{len(refused)}",) * bool(refused)
    return [replace(ecg, flags=ecg.flags + lost) for ecg in prepared]


def check_rate(sample_rate_hz: float) -> None:
    """RecordError("rate") if no ECG was recorded at this rate."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise RecordError(
            "rate",
            f"the sampling rate must be {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz, "
            f"got {sample_rate_hz:g}",
        )


def check_spec(spec: SignalSpec) -> None:
    """ValueError if `prepare` could not make what this spec says."""
    policy = spec.window.removesuffix(PADDED)
    if policy not in WINDOWS:
        raise ValueError(f"the window must be one of {', '.join(WINDOWS)}, got {policy!r}")
    if spec.num_samples < 1 or spec.sample_rate_hz < 1:
        raise ValueError("the rate and the seconds of the shards must be positive")
    parse_preprocessing(spec.preprocessing).check(spec.sample_rate_hz)
    amplitude_factor(spec.amplitude)


def amplitude_factor(amplitude: str) -> float:
    """1 for `calibrated`, F for `calibrated*F`; ValueError for another convention."""
    name, _, factor = amplitude.partition("*")
    try:
        value = float(factor or 1)
    except ValueError:
        value = 0.0
    if name != CALIBRATED or not 0 < value < np.inf:
        raise ValueError(f"the amplitude factor must be a positive number, got {amplitude!r}")
    return value


def _resampled(
    signal_LS: np.ndarray, from_hz: float, spec: SignalSpec, steps: Preprocessing
) -> np.ndarray:
    """All of the recording at the spec's rate, filtered; "too short" if no window fits in it."""
    if signal_LS.shape[1] == 0:
        raise RecordError("too short", "the recording has no samples")
    resampled_LS = change_rate(signal_LS, from_hz, spec.sample_rate_hz, steps.resampling)
    seconds, window_s = signal_LS.shape[1] / from_hz, spec.num_samples / spec.sample_rate_hz
    is_short = resampled_LS.shape[1] < spec.num_samples
    if is_short and not spec.window.endswith(PADDED):
        raise RecordError(
            "too short", f"{seconds:.4g} s at {from_hz:g} Hz, the window is {window_s:g} s"
        )
    if is_short and seconds < min(MIN_PADDED_S, window_s):
        raise RecordError("too short", f"{seconds:.4g} s; at least {MIN_PADDED_S:g} s are padded")
    return apply_filters(resampled_LS, spec.sample_rate_hz, steps)


def _starts(num_samples: int, spec: SignalSpec) -> list[int]:
    """Where the windows begin. Of all windows, what is left at the end is no window."""
    policy, size = spec.window.removesuffix(PADDED), spec.num_samples
    spare = max(num_samples - size, 0)
    return {
        "first": [0],
        "centre": [spare // 2],
        "all": list(range(0, spare + 1, size)),
    }[policy]


def _same_time(signal_LS: np.ndarray, start: int, from_hz: float, spec: SignalSpec) -> np.ndarray:
    """The samples as recorded that a window beginning at `start` was made of."""
    first = round(start / spec.sample_rate_hz * from_hz)
    return signal_LS[:, first : first + round(spec.num_samples / spec.sample_rate_hz * from_hz)]


def _recorded_leads(leads: Sequence[str], flags: Sequence[str]) -> list[int]:
    """The rows that are not zero-filled."""
    filled = [flag.removeprefix(ZERO_FILLED) for flag in flags if flag.startswith(ZERO_FILLED)]
    absent = ",".join(filled).split(",")
    return [row for row, lead in enumerate(leads) if lead not in absent]


def _finish(
    window_LS: np.ndarray,
    recorded_LS: np.ndarray,
    recorded_hz: float,
    spec: SignalSpec,
    there: Sequence[int],
) -> PreparedECG:
    check_not_flat(window_LS[there], [spec.leads[row] for row in there])
    counts_LS = np.zeros((len(spec.leads), spec.num_samples), np.int16)
    samples = window_LS.shape[1]
    stored_LS = np.clip(window_LS, -MAX_MV, MAX_MV)
    counts_LS[:, :samples] = np.rint(stored_LS * (1000 / MICROVOLTS_PER_COUNT))
    is_clipped_L = (stored_LS != window_LS).any(axis=1)
    clipped = ",".join(np.array(spec.leads)[is_clipped_L])
    flags = quality_flags(recorded_LS, spec.leads, recorded_hz)
    return PreparedECG(
        counts_LS=counts_LS,
        flags=flags
        + (f"clipped:{clipped}",) * bool(clipped)
        + ("padded",) * (samples < spec.num_samples),
        samples=samples,
        amplitude_mv=amplitude_of(window_LS[there]),
    )
