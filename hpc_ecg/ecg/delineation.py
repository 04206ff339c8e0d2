"""Heartbeats of a 12-lead ECG, and classical measurements of its median beat.

Beats: sleepecg (Pan and Tompkins 1985, forwards and backwards) searches five leads; where half of
them agree is a beat, at the centre of its QRS energy. What has far less energy than the other beats
is dropped: a P or T wave, found while the thresholds were being learned.

Measurements: waves are found in the root mean square over the leads of one median beat. QRS is
where the spatial velocity exceeds a share of its maximum; P and T end where the steepest tangent
meets the baseline (Lepeschkin and Surawicz 1952). Median absolute differences to the devices'
values in nine recordings (MUSE, Philips, aECG, DICOM), on which the shares were set: PR 7, QRS 4
and QT 19 ms (tangents end earlier), axes 1 to 5 degrees.
"""

# C leads, S samples, B beats, W samples of a beat

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, find_peaks, sosfiltfilt

FloatArray = NDArray[np.float64]
Beats = NDArray[np.int64]
MEASUREMENTS: tuple[str, ...] = ("heart rate", "PR", "QRS", "QTc", "P duration", "P area")
MEASUREMENTS += ("P axis", "QRS axis", "T axis")
"""Beats a minute; ms; QTc by Fridericia; mean |mV ms| over leads; degrees in the frontal plane."""
VOTING = ("I", "II", "V1", "V3", "V5")
INDEPENDENT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
MIN_RATE_HZ, MIN_BEATS = 100, 3
VOTE_S, REFRACTORY_S, MIN_ENERGY = 0.12, 0.24, 0.06
BEFORE_S, AFTER_S = 0.4, 0.6
MIN_CORRELATION, MIN_P_CORRELATION = 0.8, 0.7
"""Of the QRS of a beat and the median beat (ectopy, noise); of P in odd and even beats (AF)."""
MIN_P_MV, MIN_T_MV = 0.015, 0.04
SEGMENTS = ("TP", "P", "QRS", "ST–T")
"""P with the PR segment; ST–T to the end of T; TP is the rest."""
USUAL = {"P": ("PR", 180.0), "ST–T": ("QTc", 410.0)}
"""ms, for what cannot be measured, as P in atrial fibrillation."""


def find_beats(ecg_CS: NDArray, leads: Sequence[str], rate_hz: float) -> Beats:
    """Positions of QRS complexes, in samples. ValueError: no lead of VOTING, or the rate is below
    MIN_RATE_HZ."""
    from sleepecg import detect_heartbeats

    ecg_CS = ecg_CS[[leads.index(name) for name in VOTING if name in leads]]
    if not len(ecg_CS) or rate_hz < MIN_RATE_HZ:
        needs, got = f"{', '.join(VOTING)} and {MIN_RATE_HZ} Hz", ", ".join(leads)
        raise ValueError(f"finding beats takes a lead of {needs}, got {got} at {rate_hz:g} Hz")
    ecg_CS = ecg_CS[np.ptp(ecg_CS, axis=1) > 0]
    votes_S = np.zeros(ecg_CS.shape[1])
    for lead_S in ecg_CS:
        votes_S[detect_heartbeats(lead_S, rate_hz)] += 1
    votes_S = np.convolve(votes_S, np.ones(round(VOTE_S * rate_hz)), "same")
    apart, reach = round(REFRACTORY_S * rate_hz), round(0.1 * rate_hz)
    found = find_peaks(np.r_[0, votes_S, 0], max(len(ecg_CS) / 2, 1), distance=apart)[0] - 1
    if not len(found):
        return found
    slope_CS = np.gradient(sosfiltfilt(_band(5, 30, rate_hz), ecg_CS), axis=1)
    energy_S = np.median(slope_CS**2 / np.mean(slope_CS**2, axis=1, keepdims=True), axis=0)
    energy_S = np.convolve(energy_S, np.hanning(3 * reach), "same")
    near = found[:, None] + np.arange(2 * reach + 1)
    beats = np.unique(found + np.pad(energy_S, reach)[near].argmax(axis=1) - reach)
    beats = beats[energy_S[beats] >= MIN_ENERGY * np.median(energy_S[found])]
    return beats[np.diff(beats, prepend=-apart) >= apart / 2]


def measure(ecg_CS: FloatArray, leads: Sequence[str], beats: Beats, rate_hz: float) -> FloatArray:
    """MEASUREMENTS of an ECG in mV [C, S]; NaN where one cannot be made."""
    found = dict.fromkeys(MEASUREMENTS, np.nan)
    if len(beats) >= MIN_BEATS:
        rr = np.diff(beats)
        found["heart rate"] = 60 * rate_hz / rr.mean()
        names = [name for name in INDEPENDENT if name in leads]
        beats_BCW = _similar_beats(ecg_CS[[leads.index(n) for n in names]], beats, rate_hz)
        if len(beats_BCW) >= MIN_BEATS:
            waves = _waves(beats_BCW, rate_hz, float(np.median(rr)))
            found |= {k: v for k, v in waves.items() if names[:2] == ["I", "II"] or "axis" not in k}
    return np.array(list(found.values()))


def segment(
    ecg_CS: FloatArray, leads: Sequence[str], rate_hz: float
) -> tuple[NDArray[np.int64], Beats, list[str]]:
    """The number in SEGMENTS of each sample of an ECG in mV [S], its beats, and the segments that
    could not be measured: they are at their USUAL place. ValueError: `find_beats`, or fewer than
    MIN_BEATS similar beats."""
    beats = find_beats(ecg_CS, leads, rate_hz)
    rows = [leads.index(name) for name in INDEPENDENT if name in leads]
    similar_BCW = _similar_beats(ecg_CS[rows], beats, rate_hz)
    if len(similar_BCW) < MIN_BEATS:
        raise ValueError(f"it has {len(similar_BCW)} similar heartbeats, {MIN_BEATS} are needed")
    found = dict(zip(MEASUREMENTS, measure(ecg_CS, leads, beats, rate_hz), strict=True))
    unmeasured = [name for name in USUAL if not np.isfinite(found[USUAL[name][0]])]
    pr, qt = (ms if name in unmeasured else found[key] for name, (key, ms) in USUAL.items())
    qt *= (np.median(np.diff(beats)) / rate_hz) ** (1 / 3)
    start, end = np.array(_qrs(np.median(similar_BCW, axis=0), rate_hz)) - round(BEFORE_S * rate_hz)
    segment_S, ms = np.zeros(ecg_CS.shape[1], np.int64), rate_hz / 1000
    spans = ((3, end, start + qt * ms), (1, start - pr * ms, start), (2, start, end))
    for number, first, last in spans:
        for beat in beats:
            segment_S[max(beat + round(first), 0) : max(beat + round(last), 0)] = number
    return segment_S, beats, unmeasured


def _similar_beats(ecg_CS: FloatArray, beats: Beats, rate_hz: float) -> FloatArray:
    """Beats [B, C, W], filtered, whose QRS resembles the median beat's."""
    ecg_CS = sosfiltfilt(_band(0.5, 40, rate_hz), ecg_CS)
    before, after, half = (round(seconds * rate_hz) for seconds in (BEFORE_S, AFTER_S, 0.08))
    beats = beats[(beats >= before) & (beats + after <= ecg_CS.shape[1])]
    beats_BCW = ecg_CS[:, beats[:, None] + np.arange(-before, after)].swapaxes(0, 1)
    if not len(beats):
        return beats_BCW
    qrs = beats_BCW[:, :, before - half : before + half]
    alike_B = _unit(qrs.reshape(len(beats), -1)) @ _unit(np.median(qrs, axis=0).ravel())
    return beats_BCW[alike_B >= MIN_CORRELATION]


def _waves(beats_BCW: FloatArray, rate_hz: float, rr: float) -> dict[str, float]:
    """Measurements of the median beat; the RR interval is in samples. P comes after the T wave of
    the beat before, and is much the same in odd and even beats."""
    ms, s_60, s_100 = 1000 / rate_hz, round(0.06 * rate_hz), round(0.1 * rate_hz)
    beat_CW = np.median(beats_BCW, axis=0)
    start, end = _qrs(beat_CW, rate_hz)
    beat_CW = beat_CW - np.median(beat_CW[:, max(start - 3, 0) : start + 1], axis=1)[:, None]
    found = {"QRS": (end - start) * ms, "QRS axis": _axis(beat_CW[:, start : end + 1])}
    size_W = _rms(beat_CW)[: start + round(max(0.8 * rr, 0.3 * rate_hz))]
    room = rr
    if len(size_W) > end + s_60 + s_100:
        top = end + s_60 + int(size_W[end + s_60 :].argmax())
        t_end = top + _tangent(size_W[top:])
        if size_W[top] >= MIN_T_MV and top > end + s_60 and t_end > top:
            found["QTc"] = (t_end - start) * ms / (rr / rate_hz) ** (1 / 3)
            found["T axis"] = _axis(beat_CW[:, end + s_60 : round(t_end) + 1])
            room = rr - t_end + start
    first = max(start - round(min(0.32 * rate_hz, room)), 0)
    before_CW = _level(beat_CW[:, first : start + 1])
    odd, even = (beats_BCW[half::2, :, first : start + 1].mean(axis=0) for half in (0, 1))
    size_W = _rms(before_CW)
    top = int(size_W.argmax())
    is_alike = _unit(_level(odd).ravel()) @ _unit(_level(even).ravel()) >= MIN_P_CORRELATION
    if len(size_W) > 1.2 * s_100 and size_W[top] >= MIN_P_MV and is_alike:
        onset = max(top - _tangent(size_W[max(top - s_100, 0) : top + 1][::-1]), 0)
        p_end = min(top + _tangent(size_W[top : top + s_100]), len(size_W) - 1)
        wave_CW = _level(before_CW[:, round(onset) : round(p_end) + 1])
        found |= {"PR": (start - first - onset) * ms, "P duration": (p_end - onset) * ms}
        found["P area"] = float(np.abs(wave_CW.sum(axis=1)).mean()) * ms
        found["P axis"] = _axis(wave_CW)
    return found


def _qrs(beat_CW: FloatArray, rate_hz: float) -> tuple[int, int]:
    """Start and end: the nearest quiet 16 ms around the largest velocity."""
    velocity_W = _rms(np.gradient(beat_CW, axis=1))
    middle, reach, length = (round(seconds * rate_hz) for seconds in (BEFORE_S, 0.1, 0.016))
    top = middle - reach + int(np.argmax(velocity_W[middle - reach : middle + reach]))
    noise = np.percentile(velocity_W, 20)
    is_quiet_W = velocity_W < noise + 0.05 * (velocity_W[top] - noise)
    quiet = np.flatnonzero(np.convolve(is_quiet_W, np.ones(length), "valid") == length)
    before, after = quiet[quiet + length <= top], quiet[quiet > top]
    start = int(before[-1]) + length - 1 if len(before) else top - reach
    return start, int(after[0]) if len(after) else top + reach


def _tangent(falling_W: FloatArray) -> float:
    """Where the steepest tangent meets the lowest level, in samples from the start; 0 if nothing
    falls."""
    slope_W = np.gradient(falling_W) if len(falling_W) > 2 else np.zeros(1)
    at = int(slope_W.argmin())
    return float(at + (falling_W.min() - falling_W[at]) / slope_W[at]) if slope_W[at] < 0 else 0.0


def _axis(wave_CW: FloatArray) -> float:
    one, two = wave_CW[[0, min(1, len(wave_CW) - 1)]].sum(axis=1)
    return float(np.degrees(np.arctan2((two - one / 2) * 2 / 3**0.5, one)))


def _level(part: FloatArray) -> FloatArray:
    return part - np.linspace(part[..., 0], part[..., -1], part.shape[-1], axis=-1)


def _unit(rows: FloatArray) -> FloatArray:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def _rms(beat_CW: FloatArray) -> FloatArray:
    return np.sqrt(np.mean(beat_CW**2, axis=0))


@cache
def _band(low_hz: float, high_hz: float, rate_hz: float) -> FloatArray:
    return butter(2, [low_hz, high_hz], btype="bandpass", output="sos", fs=rate_hz)
