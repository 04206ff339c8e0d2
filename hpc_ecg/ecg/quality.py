"""Which recordings are unusable, and which deserve a flag.

The `check_` functions raise a RecordError that names the leads; `quality_flags` only flags. Nothing
is repaired: a signal is used as recorded or not at all. `find_flaws` says where a flag shows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hpc_ecg.ecg.lead_swap import suspect_swap
from hpc_ecg.ecg.recording import RecordError

# L leads, S samples

Lead = dict[str, np.ndarray]  # signals in mV by name of the lead

FLAT_MV = 0.010
"""Peak-to-peak below which a lead is flat: recorders store 1 to 5 µV a count, a connected electrode
alone is noisier than 10 µV, and even a low-voltage QRS exceeds 100 µV."""
LARGE_MV = 10.0
"""Peak beyond which a record is flagged: QRS hardly ever exceeds 5 mV; pacing and artefacts do."""
# The bounds below were set on 340 real recordings (PTB-XL, Georgia, CPSC 2018, CODE-15): there the
# error of Einthoven's law is at most 0.012, plateaus last 8 ms or (3 recordings) over 100 ms.
SATURATED_S, SATURATED_MV = 0.04, 0.5
EINTHOVEN_ERROR = 0.2
QUIET_MV = 0.05
JOIN_S = 0.2


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
    """FLAGS of a recording that is kept, in mV and as recorded. `limb_leads_inconsistent`: leads
    are swapped, misnamed or not simultaneous. `lead_swap_suspected`: see lead_swap.py.
    `partly_flat`: the first or the last second is flat in all leads."""
    lead = dict(zip(leads, signal_LS, strict=True))
    return tuple(name for name in FLAGS if find_flaws(name, lead, sample_rate_hz))


class Flaw(NamedTuple):
    """Where a flag shows: in a lead ("": in all), at these samples (None: all the time)."""

    lead: str
    at: slice | None
    words: str


def find_flaws(name: str, lead: Lead, rate_hz: float) -> list[Flaw]:
    """Where a flag, or the reason of a RecordError, shows; [] if it has no place. Moments of a lead
    less than JOIN_S apart are one."""
    if name in RELATIONS:
        return [Flaw(about, None, words) for about, words in RELATIONS[name](lead, rate_hz)]
    if name not in MOMENTS:
        return _flat_ends(lead, rate_hz) if name == "partly_flat" else []
    flaws, (is_bad, describe) = [], MOMENTS[name]
    for about, mv_S in lead.items():
        at = np.flatnonzero(is_bad(mv_S, rate_hz))
        for part in np.split(at, np.flatnonzero(np.diff(at) > JOIN_S * rate_hz) + 1):
            if len(part):
                span = None if len(part) == len(mv_S) else slice(part[0], part[-1] + 1)
                flaws.append(Flaw(about, span, describe(mv_S[part])))
    return flaws


def _is_plateau(mv_S: np.ndarray, rate_hz: float) -> np.ndarray:
    """Where a lead stays at an extreme for SATURATED_S, over SATURATED_MV off its median."""
    length, is_plateau_S = round(SATURATED_S * rate_hz), np.zeros(len(mv_S), bool)
    for extreme in (mv_S.max(), mv_S.min()):
        is_extreme_S = mv_S == extreme
        if is_extreme_S.sum() >= length and abs(extreme - np.median(mv_S)) > SATURATED_MV:
            edges = np.flatnonzero(np.diff(is_extreme_S, prepend=False, append=False))
            for start, end in edges.reshape(-1, 2):
                is_plateau_S[start:end] |= end - start >= length
    return is_plateau_S


def _limb_error(lead: Lead, rate_hz: float) -> list[tuple[str, str]]:
    """Mean |II - I - III| is over EINTHOVEN_ERROR, relative to the mean deviation of II."""
    if not {"I", "II", "III"} <= lead.keys():
        return []
    one, two, three = (lead[name] for name in ("I", "II", "III"))
    orders = (two - one - three, one - two - three, three - one - two)
    error, *others = (np.abs(rest_S).mean() for rest_S in orders)
    bound = EINTHOVEN_ERROR * (np.abs(two - two.mean()).mean() + QUIET_MV)
    right = [pair for pair, e in zip(("I and II", "II and III"), others, strict=True) if e <= bound]
    hint = f"; {right[0]} seem to be exchanged" if right else ""
    words = f"differs from I + III by {error:.2g} mV on average{hint}"
    return [("II", words)] if error > bound else []


def _flat_ends(lead: Lead, rate_hz: float) -> list[Flaw]:
    signal_LS, second = np.array(list(lead.values())), round(rate_hz)
    starts = (0, max(signal_LS.shape[1] - second, 0))
    is_flat = [(np.ptp(signal_LS[:, n : n + second], axis=1) < FLAT_MV).all() for n in starts]
    return [Flaw("", slice(n, n + second), "flat") for n in np.array(starts)[is_flat]]


def _beyond(limit_mv: float) -> tuple[Callable[..., np.ndarray], Callable[..., str]]:
    return lambda mv_S, _: np.abs(mv_S) > limit_mv, lambda mv: f"{mv[np.abs(mv).argmax()]:+.3g} mV"


MAX_MV = 32.767  # of int16 at 1 µV a count
RELATIONS = {"limb_leads_inconsistent": _limb_error, "lead_swap_suspected": suspect_swap}
FLAGS = ("large_amplitude", "saturated", *RELATIONS, "partly_flat")
MOMENTS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., str]]] = {
    "large_amplitude": _beyond(LARGE_MV),
    "saturated": (_is_plateau, lambda mv: f"cut off at {mv[0]:+.3g} mV"),
    "amplitude": _beyond(MAX_MV),
    "clipped": _beyond(MAX_MV),
    "NaN": (lambda mv_S, _: ~np.isfinite(mv_S), lambda mv: f"{len(mv)} samples without a number"),
    "flat lead": (lambda mv_S, _: np.full(len(mv_S), np.ptp(mv_S) < FLAT_MV), lambda _: "flat"),
}


def _selected(leads: Sequence[str], is_selected_L: np.ndarray) -> str:
    return ", ".join(np.array(leads)[is_selected_L])
