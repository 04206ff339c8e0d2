"""Parts of a synthetic ECG: beat times, the heart's dipole, its projection to 12 leads, noise.

A beat is a sum of Gaussian bumps of a 3-D dipole (as in McSharry et al., IEEE TBME 2003, without
their differential equation). Dower's 8 x 3 matrix projects it to eight leads. The other limb leads
follow from I and II, so Einthoven's and Goldberger's equations hold exactly.
"""

from dataclasses import dataclass

import numpy as np

# B beats, L leads, S samples, W waves of a beat, D dipole (x left, y down, z back)

LEADS_FROM_DIPOLE_LD = np.array(  # Dower et al. 1980, in the order of leads I, II, V1 to V6
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
FWAVE_BY_LEAD_L = np.array([0.15, 0.5, 1.0, 0.55, 0.3, 0.2, 0.15, 0.12])
"""Relative size of f-waves in I, II, V1 to V6: V1 lies over the right atrium."""
LEAD_I, LEAD_II = 0, 1


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The waves of one patient's beat: P (right, left atrium), septum, free wall, base, T (2)."""

    onset_W: np.ndarray
    """Centre of each wave in seconds from the R peak."""
    width_W: np.ndarray
    """Standard deviation of each wave in seconds."""
    dipole_WD: np.ndarray
    """Peak dipole of each wave in mV."""


NUM_P_WAVES, NUM_T_WAVES = 2, 2
TYPICAL_BEAT = Beat(
    onset_W=np.array([-0.165, -0.140, -0.026, 0.000, 0.017, 0.036, 0.265, 0.305]),
    width_W=np.array([0.017, 0.019, 0.008, 0.010, 0.010, 0.008, 0.046, 0.028]),
    dipole_WD=np.array(
        [
            [0.04, 0.09, -0.05],
            [0.08, 0.07, 0.05],
            [-0.13, -0.05, -0.22],
            [1.00, 0.80, 0.10],
            [0.35, 0.10, 0.70],
            [-0.22, -0.12, 0.08],
            [0.18, 0.14, -0.10],
            [0.15, 0.12, -0.08],
        ]
    ),
)


def draw_sinus_beats(rng: np.random.Generator, seconds: float, heart_rate_bpm: float) -> np.ndarray:
    """Times [B] of R peaks in seconds, in sinus rhythm with mild respiratory variation of the rate;
    at least two lie before 0."""
    mean_s = 60 / heart_rate_bpm
    num_beats = int(seconds / mean_s * 1.2) + 8
    breath_s, phase = rng.uniform(3.0, 5.0), rng.uniform(0, 2 * np.pi)
    breathing_B = np.sin(2 * np.pi * mean_s * np.arange(num_beats) / breath_s + phase)
    jitter_B = rng.standard_normal(num_beats)
    rr_B = mean_s * (1 + rng.uniform(0.01, 0.04) * breathing_B + 0.008 * jitter_B)
    return np.cumsum(rr_B) - rng.uniform(3, 4) * mean_s


def draw_af_beats(rng: np.random.Generator, seconds: float, heart_rate_bpm: float) -> np.ndarray:
    """Times [B] of R peaks in seconds, in atrial fibrillation: independent gamma intervals with a
    coefficient of variation of 0.2 to 0.25, limited below by the AV node's refractory period.
    """
    mean_s = 60 / heart_rate_bpm
    num_beats = int(seconds / mean_s * 1.5) + 12
    shape = 1 / rng.uniform(0.20, 0.25) ** 2
    rr_B = np.maximum(rng.gamma(shape, mean_s / shape, num_beats), 0.3)
    return np.cumsum(rr_B) - rng.uniform(3, 4) * mean_s


def beats_to_dipole(time_S: np.ndarray, peaks_B: np.ndarray, beat: Beat) -> np.ndarray:
    """The dipole [D, S] in mV.

    Only two beats contribute to a sample: QRS and T of the last one, P and QRS of the next one. So
    the cost does not grow with the number of beats.
    """
    next_S = np.clip(np.searchsorted(peaks_B, time_S), 2, len(peaks_B) - 1)
    since_S, until_S = time_S - peaks_B[next_S - 1], time_S - peaks_B[next_S]
    # Repolarization is shorter at high rates: Bazett, with the RR interval before the beat.
    rr_S = np.clip(peaks_B[next_S - 1] - peaks_B[next_S - 2], 0.35, 1.6)
    first_t = len(beat.onset_W) - NUM_T_WAVES
    return (
        _bumps(until_S, beat, slice(0, first_t))
        + _bumps(since_S, beat, slice(NUM_P_WAVES, first_t))
        + _bumps(since_S / np.sqrt(rr_S), beat, slice(first_t, None))
    )


def p_waves(until_S: np.ndarray, beat: Beat) -> np.ndarray:
    """The dipole [D, S] in mV of one beat's P waves, at times in seconds from its R peak."""
    return _bumps(until_S, beat, slice(0, NUM_P_WAVES))


def _bumps(offset_S: np.ndarray, beat: Beat, waves: slice) -> np.ndarray:
    scaled_WS = (offset_S - beat.onset_W[waves, None]) / beat.width_W[waves, None]
    bump_WS = np.exp(-0.5 * scaled_WS**2)
    return beat.dipole_WD[waves].T @ bump_WS


def draw_fwaves(rng: np.random.Generator, time_S: np.ndarray, fwave_mv: float) -> np.ndarray:
    """Fibrillatory waves [8, S] in mV: 4 to 9 Hz, with drifting frequency and amplitude."""
    step_s = time_S[1] - time_S[0]
    knots = np.arange(time_S[0], time_S[-1] + 1.0, 0.5)
    frequency = np.clip(rng.uniform(5.0, 8.0) + rng.normal(0, 0.6, len(knots)), 4.0, 9.0)
    size = np.clip(rng.normal(1.0, 0.3, len(knots)), 0.4, 1.6)
    phase_S = 2 * np.pi * np.cumsum(np.interp(time_S, knots, frequency)) * step_s
    wave_S = np.sin(phase_S) + 0.3 * np.sin(2 * phase_S + rng.uniform(0, 2 * np.pi))
    return fwave_mv * FWAVE_BY_LEAD_L[:, None] * np.interp(time_S, knots, size) * wave_S


def draw_noise(
    rng: np.random.Generator, time_S: np.ndarray, *, noise_mv: float, wander_mv: float
) -> np.ndarray:
    """Noise [8, S] in mV: muscle (white, RMS noise_mv) and baseline wander (up to 0.5 Hz)."""
    noise_LS = noise_mv * rng.standard_normal((8, len(time_S)), dtype=np.float32)
    # three sines, each with its own amplitude in each lead
    frequency = rng.uniform([0.05, 0.15, 0.3], [0.15, 0.3, 0.5])
    wander_3S = np.sin(2 * np.pi * frequency[:, None] * time_S + rng.uniform(0, 6.28, (3, 1)))
    wander_LS = wander_mv * rng.normal(0, 1, (8, 3)) @ wander_3S
    return noise_LS + wander_LS


def draw_mains(
    rng: np.random.Generator, time_S: np.ndarray, powerline_mv: float, powerline_hz: float
) -> np.ndarray:
    """Powerline hum [8, S] in mV: the leads share its phase, but not its amplitude."""
    hum_S = np.sin(2 * np.pi * powerline_hz * time_S + rng.uniform(0, 2 * np.pi))
    return powerline_mv * rng.uniform(0.3, 1.7, (8, 1)) * hum_S


def complete_leads(eight_LS: np.ndarray) -> np.ndarray:
    """All 12 leads [12, S] in standard order, from I, II, V1 to V6."""
    one_S, two_S = eight_LS[LEAD_I], eight_LS[LEAD_II]
    limb = [one_S, two_S, two_S - one_S, -(one_S + two_S) / 2, one_S - two_S / 2, two_S - one_S / 2]
    return np.vstack([*limb, eight_LS[2:]])
