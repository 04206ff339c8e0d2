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

BEAT_S = 2.0
"""A shorter part is a median beat, if there is a longer one."""
RHYTHM_S = 5.0
"""Of several complete parts, the only one of at least this length is read."""
PARTLY_READ = "partly_read"


class Part(NamedTuple):
    recording: Recording
    start: object = 0.0
    """When it begins; equal values mean the same time."""

    @property
    def seconds(self) -> float:
        return self.recording.signal_LS.shape[1] / self.recording.sample_rate_hz

    @property
    def covered(self) -> set[str]:
        return covered_leads(self.recording.leads)


def choose_part(parts: Sequence[Part]) -> Recording:
    """The recording that holds every lead of the file; RecordError("leads") if there is not exactly
    one."""
    beats_aside = [part for part in parts if part.seconds >= BEAT_S] or list(parts)
    named = [part for part in beats_aside if part.covered] or beats_aside
    joined = _join(named)
    every = set[str]().union(*(part.covered for part in joined))
    whole = [part for part in joined if part.covered >= every]
    if len(whole) > 1:
        whole = [part for part in whole if part.seconds >= RHYTHM_S] or whole
    if len(whole) != 1:
        fault = "it holds several recordings; save each as a file of its own: "
        fault = fault if whole else "its leads were not recorded together: "
        raise RecordError("leads", fault + "; ".join(_describe(part) for part in joined))
    recording = whole[0].recording
    others = len(joined) - 1
    return replace(recording, flags=(*recording.flags, *[f"{PARTLY_READ}:{others}"][:others]))


def _join(parts: Sequence[Part]) -> list[Part]:
    """Parts of one time, rate and length as one, unless they hold the same lead."""
    joined: list[Part] = []
    for part in sorted(parts, key=lambda part: -len(part.recording.leads)):
        for number, other in enumerate(joined):
            if _key(part) == _key(other) and not _names(part) & _names(other):
                joined[number] = Part(_both(other.recording, part.recording), other.start)
                break
        else:
            joined.append(part)
    return joined


def _key(part: Part) -> tuple[object, ...]:
    recording = part.recording
    return part.start, recording.sample_rate_hz, recording.signal_LS.shape[1]


def _names(part: Part) -> set[str]:
    """The leads that it holds itself, not those that it allows to derive."""
    return covered_leads(part.recording.leads, derive=False)


def _both(one: Recording, other: Recording) -> Recording:
    return replace(
        one,
        signal_LS=np.concatenate([one.signal_LS, other.signal_LS]),
        leads=one.leads + other.leads,
        flags=tuple(dict.fromkeys(one.flags + other.flags)),
    )


def _describe(part: Part) -> str:
    recording = part.recording
    start = f", from {part.start}" if part.start else ""
    rate_hz = recording.sample_rate_hz
    return f"{', '.join(recording.leads)} ({part.seconds:.4g} s at {rate_hz:g} Hz{start})"
