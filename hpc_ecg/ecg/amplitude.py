"""How large a cohort's signals are, beside what the weights expect: is the unit right?

One number a record comes in; what goes out is the ratio to the usual and, where the whole cohort is
off by a factor that a known mistake makes, the factor that undoes it.

The number is the median, over leads and thirds of the recording, of the peak-to-peak in mV. On
340 recordings at 250 Hz (median; 5th to 95th percentile):

    PTB-XL     1.21  0.78 to 1.87    (220)        CPSC 2018  1.25  0.65 to 1.77  (40)
    Georgia    1.02  0.70 to 1.48     (30)        CODE-15    2.03  1.26 to 3.30  (50)

Within a cohort its 95th percentile is 2.46 times the 5th; this is 2.60 for the 99th less the 1st
percentile of the samples, 2.82 for the plain peak-to-peak, 3.00 for the standard deviation. Between
the cohorts it is 2.0 for all of them: CODE-15 is larger by any measure, so ×2 is hard to tell.
DeepECG_Docker's spectral factor (3.003 / mean |FFT| of lead I over a batch) is 0.6 to 1.3 on these
cohorts: it cannot be seen in amplitudes and must be stated.
"""

import math
from dataclasses import dataclass

import numpy as np

# L leads, S samples, N records

EXPECTED_MV = 1.33
"""Geometric mean of the four medians."""
NORMAL_RATIO = (0.6, 2.0)
"""Ratios to EXPECTED_MV that call for nothing: the four cohorts have 0.77 to 1.53."""
SPREAD = 0.9
"""The median of n records is within exp(±SPREAD / √n) of its cohort's, 99 times in 100."""
MISTAKES = {
    1000.0: "µV taken for mV",
    1 / 0.00488: "MUSE counts (4.88 µV, or 5 µV: 200 a mV) taken for mV",
    10.0: "units of 0.1 mV taken for mV",
    4.88: "4.88 µV a count applied to what was µV already",
    2.0: "a gain of twice the true one",
    0.5: "a gain of half the true one",
    1 / 4.88: "counts of 4.88 µV taken for µV",
    0.1: "mV taken for units of 0.1 mV",
    0.00488: "MUSE's 0.00488 mV a count applied to what was mV already",
    0.001: "V taken for mV, or mV for µV",
}
"""How many times too large a known mistake makes the signals, and what it is."""


@dataclass(frozen=True, kw_only=True)
class AmplitudeFacts:
    median_mv: float
    low: float
    high: float
    """5th and 95th percentile of the cohort, mV."""
    ratio: float
    """Of the median to EXPECTED_MV."""
    suggested_factor: float | None
    """What to multiply the signals with; None: nothing is wrong, or no known mistake fits."""
    sentence: str


def amplitude_of(signal_LS: np.ndarray) -> float:
    """Median over leads and thirds of the peak-to-peak, in mV. A wandering baseline and a single
    artefact hardly move it, and a third of even 2.5 s mostly holds a QRS."""
    thirds = np.array_split(signal_LS, min(3, signal_LS.shape[1]), axis=1)
    return float(np.median([np.ptp(part_LS, axis=1) for part_LS in thirds]))


def compare_amplitudes(values_N: np.ndarray) -> AmplitudeFacts:
    """`amplitude_of` each record of a cohort in, at least one."""
    assert len(values_N) > 0
    low, median, high = np.percentile(values_N, [5, 50, 95])
    ratio = float(median) / EXPECTED_MV
    slack = math.exp(SPREAD / math.sqrt(len(values_N)))
    range_ = f"median {median:.3g} mV, 90 % of records {low:.3g} to {high:.3g} mV"
    sentence, factor = f"The amplitude is as expected: {range_}.", None
    if not NORMAL_RATIO[0] / slack <= ratio <= NORMAL_RATIO[1] * slack:
        sentence = (
            f"The amplitude is {ratio:.3g} times the expected {EXPECTED_MV:g} mV ({range_}): "
        )
        likely = _mistakes_behind(ratio, slack)
        if likely:
            factor = float(f"{1 / likely[0]:.3g}")
        named = [f"{MISTAKES[times]} (mended by × {1 / times:.3g})" for times in likely]
        sentence += ", or ".join(named) + "?" if named else "check the unit and the gain."
    return AmplitudeFacts(
        median_mv=round(float(median), 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        ratio=round(ratio, 6),
        suggested_factor=factor,
        sentence=sentence,
    )


def _mistakes_behind(ratio: float, slack: float) -> list[float]:
    """Those that leave a normal ratio when undone, the nearest to 1 first."""
    fitting = [
        m for m in MISTAKES if NORMAL_RATIO[0] / slack <= ratio / m <= NORMAL_RATIO[1] * slack
    ]
    return sorted(fitting, key=lambda times: abs(math.log(ratio / times)))
