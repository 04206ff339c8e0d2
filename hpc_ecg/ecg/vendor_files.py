"""Files of ECG machines, parsed by ecgdatakit and guarded by this file: XML (GE MUSE, Philips
Sierra, Mortara, HL7 aECG), DICOM, SCP-ECG, EDF, ISHNE, MFER and Kardia.

- Where ecgdatakit only warns about a damaged or incomplete file, we refuse it.
- It rounds rates to whole numbers: we recover the exact rate, or refuse the file.
- We refuse counts without a unit, and do not ask for formats whose scale it guesses.
- **Philips Sierra** stores 11 s, of which about the last 0.4 s are no ECG but zeros and a
  calibration pulse of 1 mV in all leads at once. We cut them off.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_ecg.ecg.array_stores import NEEDS_EXTRA
from hpc_ecg.ecg.guards import listening, memory_limit
from hpc_ecg.ecg.leads import covered_leads, normalize_lead
from hpc_ecg.ecg.parts import PARTLY_READ, Part, choose_part
from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation, check_num_samples
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.ecg.vendor_parts import (
    MAX_FILE_BYTES,
    PartFile,
    check_sierra,
    is_dicom,
    split_dicom,
    split_xml,
)

if TYPE_CHECKING:
    from ecgdatakit.models import ECGRecord, Lead

# L leads, S samples

MAX_TAGS = 200_000
"""XML tags: if nested, more of them take a parser minutes. A resting ECG has some thousands."""
MAX_MEMORY_BYTES = 1 << 30
"""Memory for reading one file: packed XML can expand to far more than its size."""

SIERRA = "Philips Sierra XML"
XML = ("GE MUSE XML", SIERRA, "Mortara ELI (EL250/ELI280)", "HL7 aECG")
BINARY = ("DICOM Waveform", "SCP-ECG", "EDF/EDF+", "ISHNE Holter", "MFER")
FORMATS = (*XML, *BINARY, "AliveCor Kardia JSON")
_STATES_EXACT_DURATION = ("DICOM Waveform", "EDF/EDF+", "MFER")
# SCP-ECG's section 1 describes the patient: anonymizing changes it and leaves the checksum
_DAMAGE = re.compile(
    "truncated|checksum|crc32|crc mismatch in.* section [2-6]|gaps between|without a gap|"
    "redefine the channels|missing sample|no waveform data|default of 1000 Hz",
    re.IGNORECASE,
)
_PASSED_OVER = re.compile("ignored|not loaded|left out|numLeads", re.IGNORECASE)
"""Warnings about what the file holds beside the recording."""
_NOT_APPLIED = re.compile(r"(FirstSampleBaseline|LeadOffsetFirstSample|OFFSET) is non-zero")
_HARMLESS = re.compile(
    # about median beats, the patient, the date, or statements
    r"\bmedian|representative beat|repbeat|reference beat|typical_cycle|crc mismatch in: record"
    r"|section (1|7|8|9|10|11)\b|birth date|measurement time|recordedat|variable block offset"
    # checked below: a lead without unit, a rounded rate, the bytes that follow the last record
    r"|raw ADC|raw counts|uncalibrated|voltage unit|rounded to|records is -1"
    # pydicom's about the form of a text
    r"|invalid value for vr|exceeds the maximum length|character set|encoding",
    re.IGNORECASE,
)
_FRACTIONAL_RATE = re.compile(
    rb"""(?:samplespersecond\s*=\s*["']|SAMPLE_FREQ\s*=\s*["']|<samplingrate>|<SampleBase>"""
    rb"""|"frequency"\s*:)\s*(\d*[.,]\d*[1-9]\d*)|<SampleExponent>\s*(-\s*\d+)"""
)
_ROOT = re.compile(r"<([A-Za-z_][^\s/>]*)")


def read_vendor(location: RecordLocation, _layout: object = None) -> Recording:
    """Read the rhythm recording, not the median beat, with the leads that the file has.

    RecordError: "unreadable", "leads", "rate", "amplitude" (no unit).
    """
    path = location.path
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES >> 20
        raise RecordError("unreadable", f"{size >> 20} MB; a resting ECG has at most {limit} MB")
    try:
        parts = []
        for part in _split(path):
            with part.at(path) as file:
                parts.append(_read_part(part, file))
    except ImportError:  # ecgdatakit or its own pydicom
        raise RecordError("unreadable", NEEDS_EXTRA) from None
    rhythm = [part for part in parts if part]
    if not rhythm:
        raise RecordError("leads", "the file holds no rhythm recording, at most a median beat")
    return choose_part(rhythm)


def _split(path: Path) -> list[PartFile]:
    """Files of one part each; RecordError if the format is unknown."""
    from ecgdatakit.parsing import FileParser

    # a quarter is plenty for DICOM, and stops millions of elements after seconds
    with listening() as messages, memory_limit(MAX_MEMORY_BYTES // 4):
        parts = split_dicom(path) if is_dicom(path) else None
    if parts is not None:
        _flags(messages, LEADS)
        return parts
    with memory_limit(MAX_MEMORY_BYTES):
        kind = FileParser.detect_format(path)
        if kind is None or kind["name"] not in FORMATS:
            raise RecordError("unreadable", _describe_unknown(path))
        if kind["name"] in XML and path.read_bytes().count(b"<") > MAX_TAGS:
            raise RecordError("unreadable", "more XML tags than any resting ECG has")
        return split_xml(path, kind["name"])


def _read_part(part: PartFile, path: Path) -> Part | None:
    """One part in mV, without leads of other names if it has standard ones; None if it is a median
    beat."""
    from ecgdatakit.parsing import FileParser

    with listening() as messages, memory_limit(MAX_MEMORY_BYTES):
        record = FileParser.parse(path)
    for lead, delay_s in zip(record.leads, part.delays_s, strict=False):
        lead.annotations["delay_s"] = str(delay_s)
    leads = [lead for lead in record.leads if normalize_lead(_bare(lead.label))] or record.leads
    if not leads:
        return None
    _check_together(record)
    start_s = _check_leads(leads)
    flags = _flags(messages, [_bare(lead.label) for lead in leads])
    rate_hz = _exact_rate(record, leads[0], path)
    signal_LS = np.stack([np.asarray(lead.samples, np.float64) for lead in leads])
    if record.file_format.name == SIERRA:
        check_sierra(path, len(record.leads[0].samples), len(record.leads))
        signal_LS = signal_LS[:, : _end_of_ecg(signal_LS)]
    recording = Recording(
        signal_LS=signal_LS,
        leads=tuple(_bare(lead.label) for lead in leads),
        sample_rate_hz=rate_hz,
        flags=flags,
    )
    return Part(recording, f"{part.start or ''} + {start_s:g} s" if start_s else part.start)


def _flags(messages: Sequence[str], leads: Sequence[str]) -> tuple[str, ...]:
    """The flags for what the library noticed; RecordError if that is, or may be, damage or a lead
    that was passed over."""
    flags = []
    for message in messages:
        if _DAMAGE.search(message):
            raise RecordError("unreadable", f"damaged or incomplete: {message}")
        if field := _NOT_APPLIED.search(message):
            is_rhythm = "(rhythm)" in message or "Mortara" in message
            flags += [f"not_applied:{field[1]}"] if is_rhythm else []
        elif not _HARMLESS.search(message):
            if not _PASSED_OVER.search(message) or not covered_leads(leads) >= set(LEADS):
                raise RecordError("unreadable", f"perhaps not read as it is meant: {message}")
            flags.append(f"{PARTLY_READ}:1")
    return tuple(dict.fromkeys(flags))


def _describe_unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    text = head.replace(b"\0", b"").decode("utf-8", "ignore").lstrip("\ufeff\ufffd \t\r\n")
    root = _ROOT.search(text) if text.startswith("<") else None
    what = f"an XML export of another kind, <{root[1][:80]}>" if root else "of no known format"
    return f"{what}; export it again as one of {', '.join(FORMATS)}, best as DICOM"


def _check_leads(leads: Sequence["Lead"]) -> float:
    """When the leads begin, in s; RecordError unless they were recorded together and are
    calibrated."""
    starts = [_start_s(lead) for lead in leads]
    late = not np.ptp(starts) * leads[0].sampling_rate < 1 - 1e-6  # NaN is late
    for reason, values in (
        ("rate", [f"{lead.sampling_rate} Hz" for lead in leads]),
        ("leads", [f"{len(lead.samples)} samples" for lead in leads]),
        ("leads", [f"from {start:g} s" if late else "" for start in starts]),
        ("leads", [lead.annotations.get("LeadOffsetFirstSample", "") for lead in leads]),
    ):
        if len(set(values)) > 1:
            listed = ", ".join(f"{lead.label} {v}" for lead, v in zip(leads, values, strict=True))
            raise RecordError(reason, f"its leads were not recorded together: {listed}")
    check_num_samples(len(leads[0].samples))
    raw = [lead.label for lead in leads if lead.is_raw or lead.units != "mV"]
    if raw:
        raise RecordError("amplitude", f"no voltage unit is stated for {', '.join(raw)}")
    return starts[0] if starts[0] * leads[0].sampling_rate >= 1 else 0.0


def _check_together(record: "ECGRecord") -> None:
    """RecordError if SCP-ECG or MFER says that the leads were not recorded at the same time."""
    facts, rate_hz = record.raw_metadata, max(lead.sampling_rate for lead in record.leads)
    together = facts.get("simultaneous_leads") or len(record.leads)
    if together < len(record.leads) or max(facts.get("sample_skew_ns", [0])) * rate_hz >= 1e9:
        raise RecordError("leads", "the file says that its leads were not recorded together")


def _start_s(lead: "Lead") -> float:
    """When a lead begins, in s after its part."""
    notes = lead.annotations
    samples, ms = float(notes.get("start_sample", 1)) - 1, float(notes.get("LeadTimeOffset", 0))
    return samples / lead.sampling_rate + ms / 1000 + float(notes.get("delay_s", 0))


def _bare(label: str) -> str:
    """The lead's name: ecgdatakit calls a second lead II `II_2`."""
    return re.sub(r"_\d+$", "", label)


def _exact_rate(record: "ECGRecord", lead: "Lead", path: Path) -> float:
    """Samples per second, from the parts of the record that ecgdatakit does not round."""
    rounded, interval_us = lead.sampling_rate, record.raw_metadata.get("rhythm_sample_interval_us")
    if interval_us:  # SCP-ECG states whole microseconds: 1667 means 600 Hz
        is_same = round(1e6 / rounded) == interval_us
        return float(rounded) if is_same else round(1e6 / interval_us, 3)
    name, duration = record.file_format.name, record.recording.duration
    if name in _STATES_EXACT_DURATION and duration:
        return round(len(lead.samples) / duration.total_seconds(), 3)
    if name == "HL7 aECG":
        return round(record.raw_metadata["rhythm_time"]["sampling_rate_exact"], 3)
    stated = _FRACTIONAL_RATE.search(path.read_bytes().replace(b"\0", b""))
    if stated and name != "ISHNE Holter":
        text = (stated[1] or b"a power of 10").decode()
        raise RecordError("rate", f"its sampling rate is not a whole number ({text})")
    return float(rounded)


def _end_of_ecg(signal_LS: np.ndarray) -> int:
    """Where Philips' calibration begins: from there on all leads are equal and 0 or 1 mV; if it
    holds no 1 mV, nothing is cut."""
    first_S = signal_LS[0]
    is_pulse_S = np.abs(first_S - 1) < 0.02
    is_same_S = (signal_LS == first_S).all(axis=0) & (is_pulse_S | (first_S == 0))
    length = len(first_S)
    start = 0 if is_same_S.all() else length - int(np.argmin(is_same_S[::-1]))
    return start if is_pulse_S[start:].any() else length
