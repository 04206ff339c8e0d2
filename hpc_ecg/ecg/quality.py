"""What makes a recording unfit, and what is merely worth a flag.

`check_` functions raise a RecordError that names the leads; `find_flags` only remarks. Nothing is
repaired: a signal is used as recorded or not at all.
"""

from collections.abc import Sequence

import numpy as np

from hpc_ecg.ecg.recording import RecordError

# L leads, S samples

FLAT_MV = 0.010
"""Peak-to-peak below which a lead is flat: recorders store 1 to 5 µV a count and a connected
electrode alone is noisier than 10 µV, while even a low-voltage QRS exceeds 100 µV."""
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
        named = _name(leads, bad_LS.any(axis=1))
        raise RecordError("NaN", f"{int(bad_LS.sum())} samples are NaN or infinite, in {named}")


def check_not_flat(signal_LS: np.ndarray, leads: Sequence[str]) -> None:
    """RecordError("flat lead") if the peak-to-peak of a lead is below FLAT_MV."""
    is_flat_L = np.ptp(signal_LS, axis=1) < FLAT_MV
    if is_flat_L.any():
        hint = "; is the unit right?" if is_flat_L.all() and signal_LS.any() else ""
        named = _name(leads, is_flat_L)
        raise RecordError(
            "flat lead", f"less than {1e3 * FLAT_MV:g} µV peak to peak in {named}{hint}"
        )


def check_amplitude(signal_LS: np.ndarray, leads: Sequence[str], limit_mv: float) -> None:
    """RecordError("amplitude") if a sample is beyond ±limit_mv."""
    peak_L = np.abs(signal_LS).max(axis=1)
    if (peak_L > limit_mv).any():
        named = _name(leads, peak_L > limit_mv)
        raise RecordError(
            "amplitude",
            f"up to {peak_L.max():.6g} mV in {named}, at most {limit_mv:g} mV can be stored; "
            "is the unit right (µV taken for mV)?",
        )


def quality_flags(
    signal_LS: np.ndarray, leads: Sequence[str], sample_rate_hz: float
) -> tuple[str, ...]:
    """Remarks on a recording that is kept, in mV and as recorded:

    `large_amplitude`: a sample beyond ±LARGE_MV. `saturated`: a lead stays at its own extreme for
    SATURATED_S. `limb_leads_inconsistent`: II is not I + III, so leads are swapped, named wrongly
    or of several times. `lead_swap_suspected`: lead I runs against V6, as with exchanged arms.
    `partly_flat`: the first or the last second is flat in all leads.
    """
    found = {
        "large_amplitude": np.abs(signal_LS).max() > LARGE_MV,
        "saturated": _has_plateau(signal_LS, round(SATURATED_S * sample_rate_hz)),
        "limb_leads_inconsistent": _einthoven_error(signal_LS, leads) > EINTHOVEN_ERROR,
        "lead_swap_suspected": _agreement(signal_LS, leads, "I", "V6") < SWAP_CORRELATION,
        "partly_flat": _has_flat_end(signal_LS, round(sample_rate_hz)),
    }
    return tuple(name for name, is_found in found.items() if is_found)


def _has_plateau(signal_LS: np.ndarray, length: int) -> bool:
    """Whether a lead stays at its extreme that long, where that lies SATURATED_MV off."""
    for extreme_L in (signal_LS.max(axis=1), signal_LS.min(axis=1)):
        is_there_LS = signal_LS == extreme_L[:, None]
        for lead in np.flatnonzero(is_there_LS.sum(axis=1) >= length):
            edges = np.flatnonzero(np.diff(is_there_LS[lead], prepend=False, append=False))
            is_long = (edges[1::2] - edges[::2]).max() >= length
            if is_long and abs(extreme_L[lead] - np.median(signal_LS[lead])) > SATURATED_MV:
                return True
    return False


def _has_flat_end(signal_LS: np.ndarray, length: int) -> bool:
    ends = (signal_LS[:, :length], signal_LS[:, -length:])
    return any((np.ptp(end_LS, axis=1) < FLAT_MV).all() for end_LS in ends)


def _einthoven_error(signal_LS: np.ndarray, leads: Sequence[str]) -> float:
    """|II - I - III| against what II varies by, both as means over time."""
    if not {"I", "II", "III"} <= set(leads):
        return 0.0
    one_S, two_S, three_S = (signal_LS[leads.index(name)] for name in ("I", "II", "III"))
    error = np.abs(two_S - one_S - three_S).mean()
    return float(error / (np.abs(two_S - two_S.mean()).mean() + QUIET_MV))


def _agreement(signal_LS: np.ndarray, leads: Sequence[str], first: str, second: str) -> float:
    """Correlation over time; 0 where one of them is not there or has no variance."""
    if not {first, second} <= set(leads):
        return 0.0
    pair_2S = signal_LS[[leads.index(first), leads.index(second)]]
    if (np.ptp(pair_2S, axis=1) == 0).any():
        return 0.0
    return float(np.corrcoef(pair_2S)[0, 1])


def _name(leads: Sequence[str], is_meant_L: np.ndarray) -> str:
    return ", ".join(lead for lead, is_meant in zip(leads, is_meant_L, strict=True) if is_meant)
