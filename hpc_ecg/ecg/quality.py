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


def find_flags(signal_LS: np.ndarray) -> tuple[str, ...]:
    """Remarks on a signal that is kept: `large_amplitude` if a sample is beyond ±LARGE_MV."""
    return ("large_amplitude",) if np.abs(signal_LS).max() > LARGE_MV else ()


def _name(leads: Sequence[str], is_meant_L: np.ndarray) -> str:
    return ", ".join(lead for lead, is_meant in zip(leads, is_meant_L, strict=True) if is_meant)
