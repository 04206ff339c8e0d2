"""Which recordings are unusable, and which deserve a flag.

The `check_` functions raise a RecordError that names the leads; `quality_flags` only flags. Nothing
is repaired: a signal is used as recorded or not at all.
"""

from collections.abc import Sequence

import numpy as np

from hpc_ecg.ecg.recording import RecordError

# L leads, S samples

FLAT_MV = 0.010
"""Peak-to-peak below which a lead is flat: recorders store 1 to 5 µV a count, a connected electrode
alone is noisier than 10 µV, and even a low-voltage QRS exceeds 100 µV."""
LARGE_MV = 10.0
"""Peak beyond which a record is flagged: QRS hardly ever exceeds 5 mV; pacing and artefacts do."""
# The bounds below were set on 340 real recordings (PTB-XL, Georgia, CPSC 2018, CODE-15): there the
# error of Einthoven's law is at most 0.012, plateaus last 8 ms or (3 recordings) over 100 ms, and
# the correlation of I and V6 has its 1st percentile at -0.45.
SATURATED_S, SATURATED_MV = 0.04, 0.5
EINTHOVEN_ERROR = 0.2
QUIET_MV = 0.05
SWAP_CORRELATION = -0.4


def check_finite(signal_LS: np.ndarray, leads: Sequence[str]) -> None:
    """RecordError("NaN") if a sample is NaN (invalid in its file) or infinite."""
    bad_LS = ~np.isfinite(signal_LS)
    if bad_LS.any():
        names = _selected(leads, bad_LS.any(axis=1))
        raise RecordError("NaN", f"{int(bad_LS.sum())} samples are NaN or infinite, in {names}")


def check_not_flat(signal_LS: np.ndarray, leads: Sequence[str]) -> None:
    """RecordError("flat lead") if the peak-to-peak of a lead is below FLAT_MV."""
    is_flat_L = np.ptp(signal_LS, axis=1) < FLAT_MV
    if is_flat_L.any():
        hint = "; is the unit right?" if is_flat_L.all() and signal_LS.any() else ""
        text = f"less than {1e3 * FLAT_MV:g} µV peak to peak in {_selected(leads, is_flat_L)}{hint}"
        raise RecordError("flat lead", text)


def check_amplitude(signal_LS: np.ndarray, leads: Sequence[str], limit_mv: float) -> None:
    """RecordError("amplitude") if a sample is beyond ±limit_mv."""
    peak_L = np.abs(signal_LS).max(axis=1)
    if (peak_L > limit_mv).any():
        raise RecordError(
            "amplitude",
            f"up to {peak_L.max():.6g} mV in {_selected(leads, peak_L > limit_mv)}, at most "
            f"{limit_mv:g} mV can be stored; is the unit right (µV taken for mV)?",
        )


def quality_flags(
    signal_LS: np.ndarray, leads: Sequence[str], sample_rate_hz: float
) -> tuple[str, ...]:
    """Flags of a recording that is kept, in mV and as recorded:

    `large_amplitude`: a sample beyond ±LARGE_MV. `saturated`: a lead stays at its own extreme for
    SATURATED_S. `limb_leads_inconsistent`: II is not I + III, so leads are swapped, misnamed or not
    simultaneous. `lead_swap_suspected`: lead I mirrors V6, as with exchanged arm electrodes.
    `partly_flat`: the first or the last second is flat in all leads.
    """
    lead = dict(zip(leads, signal_LS, strict=True))
    second = round(sample_rate_hz)
    ends = (signal_LS[:, :second], signal_LS[:, -second:])
    flags = {
        "large_amplitude": np.abs(signal_LS).max() > LARGE_MV,
        "saturated": _has_plateau(signal_LS, round(SATURATED_S * sample_rate_hz)),
        "limb_leads_inconsistent": _einthoven_error(lead) > EINTHOVEN_ERROR,
        "lead_swap_suspected": _correlation(lead, "I", "V6") < SWAP_CORRELATION,
        "partly_flat": any((np.ptp(end_LS, axis=1) < FLAT_MV).all() for end_LS in ends),
    }
    return tuple(name for name, is_set in flags.items() if is_set)


def _has_plateau(signal_LS: np.ndarray, length: int) -> bool:
    """Whether a lead stays at an extreme for `length` samples, over SATURATED_MV off its median."""
    for extreme_L in (signal_LS.max(axis=1), signal_LS.min(axis=1)):
        is_extreme_LS = signal_LS == extreme_L[:, None]
        for lead in np.flatnonzero(is_extreme_LS.sum(axis=1) >= length):
            edges = np.flatnonzero(np.diff(is_extreme_LS[lead], prepend=False, append=False))
            is_long = (edges[1::2] - edges[::2]).max() >= length
            if is_long and abs(extreme_L[lead] - np.median(signal_LS[lead])) > SATURATED_MV:
                return True
    return False


def _einthoven_error(lead: dict[str, np.ndarray]) -> float:
    """Mean |II - I - III|, relative to the mean deviation of II; 0 if one of them is absent."""
    if not {"I", "II", "III"} <= lead.keys():
        return 0.0
    error = np.abs(lead["II"] - lead["I"] - lead["III"]).mean()
    return float(error / (np.abs(lead["II"] - lead["II"].mean()).mean() + QUIET_MV))


def _correlation(lead: dict[str, np.ndarray], first: str, second: str) -> float:
    """Correlation of two leads over time; 0 if one of them is absent or constant."""
    pair = [lead[name] for name in (first, second) if name in lead]
    if len(pair) < 2 or any(np.ptp(signal_S) == 0 for signal_S in pair):
        return 0.0
    return float(np.corrcoef(pair)[0, 1])


def _selected(leads: Sequence[str], is_selected_L: np.ndarray) -> str:
    return ", ".join(np.array(leads)[is_selected_L])
