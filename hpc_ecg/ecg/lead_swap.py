"""Whether electrodes of the limbs were exchanged, and which: by the P wave, not the axis.

Exchanged arm electrodes turn lead I over, P wave and all; a heart with an extreme QRS axis leaves P
upright in I. None of 340 real recordings (PTB-XL, Georgia, CPSC 2018, CODE-15) is suspected, though
19 have a QRS axis beyond ±100 degrees and in 5 lead I mirrors V6. With electrodes exchanged in them
67 % (arms) and 69 % (right arm and left leg) are. Nothing is said without a P wave.
"""

import numpy as np

from hpc_ecg.ecg.delineation import MEASUREMENTS, MIN_RATE_HZ, find_beats, measure

MIRRORED = -0.4  # correlation of I or II with V6; its 1st percentile there is -0.45
USUAL_P, SINUS_P = (-30, 100), (0, 90)  # degrees: as recorded, and with the exchange undone
SWAPS = {  # I and II with the exchange undone
    "right and left arm": lambda lead: (-lead["I"], lead["III"]),
    "right arm and left leg": lambda lead: (-lead["III"], -lead["II"]),
}


def suspect_swap(lead: dict[str, np.ndarray], rate_hz: float) -> list[tuple[str, str]]:
    """The lead that shows it, and in words the electrodes and the reasons; []: no suspicion, or
    one of I, II, III and V6 is missing. `lead`: signals in mV by name."""
    if not {"I", "II", "III", "V6"} <= lead.keys() or rate_hz < MIN_RATE_HZ:
        return []
    found = {name: _correlation(lead[name], lead["V6"]) for name in ("I", "II")}
    mirrored = min(found, key=lambda name: found[name])
    p_axis = _p_axis(lead, rate_hz) if found[mirrored] <= MIRRORED else np.nan
    if not np.isfinite(p_axis) or USUAL_P[0] <= p_axis <= USUAL_P[1]:
        return []
    for electrodes, rule in SWAPS.items():
        undone = lead | dict(zip(("I", "II"), rule(lead), strict=True))
        mended = _p_axis(undone, rate_hz)
        agreement = min(_correlation(undone[name], lead["V6"]) for name in ("I", "II"))
        if agreement > 0 and SINUS_P[0] <= mended <= SINUS_P[1]:
            words = (
                f"electrodes of {electrodes} exchanged? P is inverted (axis {p_axis:.0f}°), "
                f"{mirrored} mirrors V6 (correlation {found[mirrored]:.2f}); changed back, P has "
                f"an axis of {mended:.0f}°, both agree. An extreme QRS axis would leave P upright"
            )
            return [(mirrored, words.replace("-", "−"))]
    return []


def _p_axis(lead: dict[str, np.ndarray], rate_hz: float) -> float:
    """Degrees; NaN without a P wave that can be measured."""
    names, ecg_LS = list(lead), np.array(list(lead.values()))
    measured = measure(ecg_LS, names, find_beats(ecg_LS, names, rate_hz), rate_hz)
    return float(measured[MEASUREMENTS.index("P axis")])


def _correlation(first_S: np.ndarray, second_S: np.ndarray) -> float:
    """Over time; 0 if one of them is constant."""
    is_constant = np.ptp(first_S) == 0 or np.ptp(second_S) == 0
    return 0.0 if is_constant else float(np.corrcoef(first_S, second_S)[0, 1])
