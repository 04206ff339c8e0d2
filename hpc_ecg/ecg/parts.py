"""Parts of a recording: groups of leads, each recorded at its own time, rate or length.

Parts of the same time, rate and length are one recording. Of several, the one that covers every
lead in the file is read and flagged `partly_read:N`; leads of different times are never mixed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hpc_ecg.ecg.leads import covered_leads
from hpc_ecg.ecg.recording import RecordError, Recording

BEAT_S, RHYTHM_S = 2.0, 5.0
"""A part shorter than BEAT_S is a median beat, if there is a longer one. Of several complete parts,
the only one of at least RHYTHM_S is read."""
PARTLY_READ = "partly_read"


class Part(NamedTuple):
    recording: Recording
    start: object = 0.0
    """When it begins; equal values mean the same time."""


def choose_part(parts: Sequence[Part]) -> Recording:
    """The recording that holds every lead of the file; RecordError("leads") if there is not exactly
    one."""
    rhythm = [part for part in parts if _seconds(part) >= BEAT_S] or parts
    joined = _join([part for part in rhythm if covered_leads(part.recording.leads)] or rhythm)
    covered = [covered_leads(part.recording.leads) for part in joined]
    whole = [p for p, leads in zip(joined, covered, strict=True) if leads >= set.union(*covered)]
    if len(whole) > 1:
        whole = [part for part in whole if _seconds(part) >= RHYTHM_S] or whole
    if len(whole) != 1:
        several = "it holds several recordings; save each as a file of its own: "
        fault = several if whole else "its leads were not recorded together: "
        raise RecordError("leads", fault + "; ".join(_describe(part) for part in joined))
    recording, others = whole[0].recording, len(joined) - 1
    return replace(recording, flags=(*recording.flags, *[f"{PARTLY_READ}:{others}"][:others]))


def _join(parts: Sequence[Part]) -> list[Part]:
    """Parts of one time, rate and length as one, unless they hold the same lead."""
    joined: list[Part] = []
    for part in sorted(parts, key=lambda part: -len(part.recording.leads)):
        new = part.recording
        for number, (old, start) in enumerate(joined):
            times = [(r.sample_rate_hz, r.signal_LS.shape[1]) for r in (old, new)]
            names = [covered_leads(r.leads, derive=False) for r in (old, new)]
            if start == part.start and times[0] == times[1] and not names[0] & names[1]:
                both = replace(
                    old,
                    signal_LS=np.concatenate([old.signal_LS, new.signal_LS]),
                    leads=old.leads + new.leads,
                    flags=tuple(dict.fromkeys(old.flags + new.flags)),
                )
                joined[number] = Part(both, start)
                break
        else:
            joined.append(part)
    return joined


def _seconds(part: Part) -> float:
    return part.recording.signal_LS.shape[1] / part.recording.sample_rate_hz


def _describe(part: Part) -> str:
    leads, rate_hz = ", ".join(part.recording.leads), part.recording.sample_rate_hz
    start = f", from {part.start}" if part.start else ""
    return f"{leads} ({_seconds(part):.4g} s at {rate_hz:g} Hz{start})"
