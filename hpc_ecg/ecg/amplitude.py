"""Compare a cohort's amplitudes with those that the weights expect: is the unit right?

If a known mistake explains the ratio, `compare_amplitudes` suggests the factor that undoes it. A
recording's amplitude is the median, over its leads and thirds, of the peak-to-peak in mV. On 340
recordings at 250 Hz (median; 5th to 95th percentile):

    PTB-XL     1.21  0.78 to 1.87    (220)        CPSC 2018  1.25  0.65 to 1.77  (40)
    Georgia    1.02  0.70 to 1.48     (30)        CODE-15    2.03  1.26 to 3.30  (50)

Within a cohort the 95th percentile is 2.46 times the 5th; for the 99th minus the 1st percentile of
the samples this ratio is 2.60, for the plain peak-to-peak 2.82, for the standard deviation 3.00.
Cohorts differ by a factor of 2.0 in all four measures (CODE-15 is the largest), so ×2 is hard to
detect. DeepECG_Docker's spectral factor (3.003 / mean |FFT| of lead I over a batch) is 0.6 to 1.3
on these cohorts: amplitudes cannot reveal it, so it must be stated.
"""

import math
from dataclasses import dataclass

import numpy as np

# L leads, S samples, N records

EXPECTED_MV = 1.33
"""Geometric mean of the four medians."""
NORMAL_RATIO = (0.6, 2.0)
"""Ratios to EXPECTED_MV that raise no question: the four cohorts have 0.77 to 1.53."""
MEDIAN_LOG_ERROR = 0.9
"""In 99 of 100 samples, the median of n records is within exp(±0.9 / √n) of its cohort's median."""
AS_EXPECTED = "The amplitude is as expected"
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
"""Known mistakes, by the factor by which they enlarge the signals."""


@dataclass(frozen=True, kw_only=True)
class AmplitudeFacts:
    median_mv: float
    low: float
    high: float
    """5th and 95th percentile of the cohort, mV."""
    ratio: float
    """median_mv / EXPECTED_MV."""
    suggested_factor: float | None
    """Multiply the signals by it; None if nothing is wrong or no known mistake fits."""
    sentence: str

    @property
    def is_normal(self) -> bool:
        return self.sentence.startswith(AS_EXPECTED)


def amplitude_of(signal_LS: np.ndarray) -> float:
    """Median over leads and thirds of the peak-to-peak, in mV. Baseline wander and a single
    artefact hardly move it, and even a third of 2.5 s usually holds a QRS."""
    thirds = np.array_split(signal_LS, min(3, signal_LS.shape[1]), axis=1)
    return float(np.median([np.ptp(part_LS, axis=1) for part_LS in thirds]))


def compare_amplitudes(values_N: np.ndarray) -> AmplitudeFacts:
    """Compare a cohort with EXPECTED_MV, given `amplitude_of` each record (at least one)."""
    assert len(values_N) > 0
    low, median, high = (float(v) for v in np.percentile(values_N, [5, 50, 95]))
    ratio, slack = median / EXPECTED_MV, math.exp(MEDIAN_LOG_ERROR / math.sqrt(len(values_N)))
    spread = f"median {median:.3g} mV, 90 % of records {low:.3g} to {high:.3g} mV"
    factor = None
    if _is_normal(ratio, slack):
        sentence = f"{AS_EXPECTED}: {spread}."
    else:
        sentence = (
            f"The amplitude is {ratio:.3g} times the expected {EXPECTED_MV:g} mV ({spread}): "
        )
        likely = [times for times in MISTAKES if _is_normal(ratio / times, slack)]
        likely.sort(key=lambda times: abs(math.log(ratio / times)))
        if likely:
            factor = float(f"{1 / likely[0]:.3g}")
        named = [f"{MISTAKES[times]} (mended by × {1 / times:.3g})" for times in likely]
        sentence += ", or ".join(named) + "?" if named else "check the unit and the gain."
    return AmplitudeFacts(
        median_mv=round(median, 4),
        low=round(low, 4),
        high=round(high, 4),
        ratio=round(ratio, 6),
        suggested_factor=factor,
        sentence=sentence,
    )


def _is_normal(ratio: float, slack: float) -> bool:
    return NORMAL_RATIO[0] / slack <= ratio <= NORMAL_RATIO[1] * slack
