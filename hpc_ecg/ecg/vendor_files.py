"""Files of ECG machines: XML (GE MUSE, Philips Sierra, Mortara, HL7 aECG), DICOM, SCP-ECG, EDF,
ISHNE, MFER or Kardia in, a Recording in mV out. ecgdatakit reads; this file guards it.

- It warns and goes on where a file is damaged or silent: such a file is refused here.
- It rounds rates to whole numbers: the exact rate is found again, or the file refused.
- Counts without a unit stay counts: refused. Formats whose scale it guesses are not asked for.
- **Philips Sierra** stores 11 s, of which the last 0.4 s or so are no ECG: zeros and a calibration
  pulse of 1 mV in all leads at once. They are cut off.
"""

import re
import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.ecg.array_stores import NEEDS_EXTRA
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.recording import MAX_SAMPLES, RecordError, Recording, RecordLocation

# L leads, S samples

MAX_FILE_BYTES = 16 << 20
"""A resting ECG takes a tenth of a MB to a few."""
MAX_TAGS = 200_000
"""Of XML: nested, more of them take a parser minutes. A resting ECG has some thousands."""
MAX_MEMORY_BYTES = 1 << 30
"""What reading one file may take: packed XML can claim far more than its size."""

SIERRA = "Philips Sierra XML"
XML = ("GE MUSE XML", SIERRA, "Mortara ELI (EL250/ELI280)", "HL7 aECG")
BINARY = ("DICOM Waveform", "SCP-ECG", "EDF/EDF+", "ISHNE Holter", "MFER")
FORMATS = (*XML, *BINARY, "AliveCor Kardia JSON")
_SAYS_EXACT_DURATION = ("DICOM Waveform", "EDF/EDF+", "HL7 aECG", "MFER")
# SCP-ECG's section 1 is the patient: anonymizing changes it and leaves the checksum
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
    """The rhythm recording, not the median beat; leads that it does not have stay absent.

    RecordError: "unreadable", "leads", "rate", "amplitude" (no unit).
    """
    path = location.path
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        most = MAX_FILE_BYTES >> 20
        raise RecordError("unreadable", f"{size >> 20} MB; a resting ECG has at most {most} MB")
    record = _parse(path)
    leads = [lead for lead in record.leads if normalize_lead(_bare(lead.label))] or record.leads
    _check_leads(leads)
    rate = _exact_rate(record, leads[0], path)
    signal_LS = np.stack([np.asarray(lead.samples, np.float64) for lead in leads])
    if record.file_format.name == SIERRA:
        signal_LS = signal_LS[:, : _end_of_ecg(signal_LS)]
    names = tuple(_bare(lead.label) for lead in leads)
    return Recording(signal_LS=signal_LS, leads=names, sample_rate_hz=rate)


def _parse(path: Path) -> Any:
    """What ecgdatakit makes of it, in mV; RecordError for what it reads with a warning only."""
    try:
        from ecgdatakit.parsing import FileParser

        with warnings.catch_warnings(record=True) as caught, _memory_limit(MAX_MEMORY_BYTES):
            warnings.simplefilter("always")
            kind = FileParser.detect_format(path)
            if kind is None or kind["name"] not in FORMATS:
                raise RecordError("unreadable", _unknown(path))
            if kind["name"] in XML and path.read_bytes().count(b"<") > MAX_TAGS:
                raise RecordError("unreadable", "more XML tags than any resting ECG has")
            record = FileParser.parse(path)
    except ImportError:  # of pydicom, too
        raise RecordError("unreadable", NEEDS_EXTRA) from None
    for warning in caught:
        if _DAMAGE.search(str(warning.message)):
            raise RecordError("unreadable", f"damaged or incomplete: {warning.message}")
    return record


@contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """No more memory than there is now and `more_bytes`: MemoryError then, not a killed job."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = in_use + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft < 0 else min(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    text = head.replace(b"\0", b"").decode("utf-8", "ignore").lstrip("\ufeff\ufffd \t\r\n")
    root = _ROOT.search(text) if text.startswith("<") else None
    what = f"an XML export of another kind, <{root[1][:80]}>" if root else "of no known format"
    return f"{what}; read are {', '.join(FORMATS)}: export it again as one of these, best as DICOM"


def _check_leads(leads: Sequence[Any]) -> None:
    """RecordError unless the leads were recorded together and are calibrated."""
    if not leads:
        raise RecordError("leads", "it holds no rhythm recording (a median beat at the most)")
    for what, values in (
        ("rate", [f"{lead.sampling_rate} Hz" for lead in leads]),
        ("leads", [f"{len(lead.samples)} samples" for lead in leads]),
        ("leads", [f"start at {lead.annotations.get('start_sample', 1)}" for lead in leads]),
    ):
        if len(set(values)) > 1:
            listed = ", ".join(f"{lead.label} {v}" for lead, v in zip(leads, values, strict=True))
            raise RecordError(what, f"its leads were not recorded together: {listed}")
    if len(leads[0].samples) > MAX_SAMPLES:
        raise RecordError(
            "unreadable", f"more than {MAX_SAMPLES} samples a lead; not a resting ECG"
        )
    raw = [lead.label for lead in leads if lead.is_raw or lead.units != "mV"]
    if raw:
        raise RecordError("amplitude", f"no voltage unit is stated for {', '.join(raw)}")


def _bare(label: str) -> str:
    """The name of a lead that is there twice: ecgdatakit calls the second `II_2`."""
    return re.sub(r"_\d+$", "", label)


def _exact_rate(record: Any, lead: Any, path: Path) -> float:
    """Samples per second, where need be from what ecgdatakit did not round."""
    whole, interval_us = lead.sampling_rate, record.raw_metadata.get("rhythm_sample_interval_us")
    if interval_us:  # SCP-ECG states whole microseconds: 1667 means 600 Hz
        return float(whole if round(1e6 / whole) == interval_us else round(1e6 / interval_us, 3))
    name, duration = record.file_format.name, record.recording.duration
    if name in _SAYS_EXACT_DURATION and duration:
        return round(len(lead.samples) / duration.total_seconds(), 3)
    stated = _FRACTIONAL_RATE.search(path.read_bytes().replace(b"\0", b""))
    if stated and name != "ISHNE Holter":
        odd = (stated[1] or b"a power of 10").decode()
        raise RecordError("rate", f"its sampling rate is no whole number ({odd})")
    return float(whole)


def _end_of_ecg(signal_LS: np.ndarray) -> int:
    """Where Philips' calibration begins: from there all leads are equal, 0 or 1 mV, and both."""
    first_S = signal_LS[0]
    is_pulse_S = np.abs(first_S - 1) < 0.02
    is_same_S = (signal_LS == first_S).all(axis=0) & (is_pulse_S | (first_S == 0))
    length = len(first_S)
    start = length - (int(np.argmin(is_same_S[::-1])) if not is_same_S.all() else length)
    return start if is_pulse_S[start:].any() else length
