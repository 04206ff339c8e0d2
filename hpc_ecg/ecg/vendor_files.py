"""Files of ECG machines, parsed by ecgdatakit and guarded by this file: XML (GE MUSE, Philips
Sierra, Mortara, HL7 aECG), DICOM, SCP-ECG, EDF, ISHNE, MFER and Kardia.

- Where ecgdatakit only warns about a damaged or incomplete file, we refuse it.
- It rounds rates to whole numbers: we recover the exact rate, or refuse the file.
- We refuse counts without a unit, and do not ask for formats whose scale it guesses.
- **Philips Sierra** stores 11 s, of which about the last 0.4 s are no ECG but zeros and a
  calibration pulse of 1 mV in all leads at once. We cut them off.
"""

import re
import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_ecg.ecg.array_stores import NEEDS_EXTRA
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation, check_num_samples

if TYPE_CHECKING:
    from ecgdatakit.models import ECGRecord, Lead

# L leads, S samples

MAX_FILE_BYTES = 16 << 20
"""A resting ECG takes 0.1 MB to a few MB."""
MAX_TAGS = 200_000
"""XML tags: if nested, more of them take a parser minutes. A resting ECG has some thousands."""
MAX_MEMORY_BYTES = 1 << 30
"""Memory for reading one file: packed XML can expand to far more than its size."""

SIERRA = "Philips Sierra XML"
XML = ("GE MUSE XML", SIERRA, "Mortara ELI (EL250/ELI280)", "HL7 aECG")
BINARY = ("DICOM Waveform", "SCP-ECG", "EDF/EDF+", "ISHNE Holter", "MFER")
FORMATS = (*XML, *BINARY, "AliveCor Kardia JSON")
_STATES_EXACT_DURATION = ("DICOM Waveform", "EDF/EDF+", "HL7 aECG", "MFER")
# SCP-ECG's section 1 describes the patient: anonymizing changes it and leaves the checksum
_DAMAGE = re.compile(
    "truncated|checksum|crc32|crc mismatch in.* section [2-6]|gaps between|without a gap|"
    "redefine the channels|missing sample|no waveform data|default of 1000 Hz",
    re.IGNORECASE,
)
_FRACTIONAL_RATE = re.compile(
    rb"""(?:samplespersecond\s*=\s*["']|SAMPLE_FREQ\s*=\s*["']|<samplingrate>|<SampleBase>"""
    rb"""|"frequency"\s*:)\s*(\d*\.\d*[1-9]\d*)|<SampleExponent>\s*(-\s*\d+)"""
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
    record = _parse(path)
    leads = [lead for lead in record.leads if normalize_lead(_bare(lead.label))] or record.leads
    _check_leads(leads)
    signal_LS = np.stack([np.asarray(lead.samples, np.float64) for lead in leads])
    if record.file_format.name == SIERRA:
        signal_LS = signal_LS[:, : _end_of_ecg(signal_LS)]
    return Recording(
        signal_LS=signal_LS,
        leads=tuple(_bare(lead.label) for lead in leads),
        sample_rate_hz=_exact_rate(record, leads[0], path),
    )


def _parse(path: Path) -> "ECGRecord":
    """The record in mV; RecordError if ecgdatakit warns of damage or does not know the format."""
    try:
        from ecgdatakit.parsing import FileParser

        with warnings.catch_warnings(record=True) as caught, _memory_limit(MAX_MEMORY_BYTES):
            warnings.simplefilter("always")
            kind = FileParser.detect_format(path)
            if kind is None or kind["name"] not in FORMATS:
                raise RecordError("unreadable", _describe_unknown(path))
            if kind["name"] in XML and path.read_bytes().count(b"<") > MAX_TAGS:
                raise RecordError("unreadable", "more XML tags than any resting ECG has")
            record = FileParser.parse(path)
    except ImportError:  # ecgdatakit or its own pydicom
        raise RecordError("unreadable", NEEDS_EXTRA) from None
    for warning in caught:
        if _DAMAGE.search(str(warning.message)):
            raise RecordError("unreadable", f"damaged or incomplete: {warning.message}")
    return record


@contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process grow by `more_bytes`, then raise MemoryError: better than a killed job."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _describe_unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    text = head.replace(b"\0", b"").decode("utf-8", "ignore").lstrip("\ufeff\ufffd \t\r\n")
    root = _ROOT.search(text) if text.startswith("<") else None
    what = f"an XML export of another kind, <{root[1][:80]}>" if root else "of no known format"
    return f"{what}; export it again as one of {', '.join(FORMATS)}, best as DICOM"


def _check_leads(leads: Sequence["Lead"]) -> None:
    """Raise RecordError unless the leads were recorded together and are calibrated."""
    if not leads:
        raise RecordError("leads", "the file holds no rhythm recording, at most a median beat")
    for reason, values in (
        ("rate", [f"{lead.sampling_rate} Hz" for lead in leads]),
        ("leads", [f"{len(lead.samples)} samples" for lead in leads]),
        ("leads", [f"start at {lead.annotations.get('start_sample', 1)}" for lead in leads]),
    ):
        if len(set(values)) > 1:
            listed = ", ".join(f"{lead.label} {v}" for lead, v in zip(leads, values, strict=True))
            raise RecordError(reason, f"its leads were not recorded together: {listed}")
    check_num_samples(len(leads[0].samples))
    raw = [lead.label for lead in leads if lead.is_raw or lead.units != "mV"]
    if raw:
        raise RecordError("amplitude", f"no voltage unit is stated for {', '.join(raw)}")


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
