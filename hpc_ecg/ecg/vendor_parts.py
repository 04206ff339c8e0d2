"""A file of several parts as several files of one part each, because ecgdatakit reads only the
first: DICOM's multiplex groups, MUSE's waveforms, the sequence sets of HL7 aECG.
"""

import base64
import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from hpc_ecg.ecg.recording import RecordError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Found = list[tuple[ElementTree.Element, ElementTree.Element, object]]
"""Of each part of an XML file: the element that holds it, its own, and when it begins."""
MAX_FILE_BYTES = 16 << 20
"""A resting ECG takes 0.1 MB to a few MB."""
MAX_PARTS = 32
_PLAIN = rb"""\s*[-+]?[\d.]+(?:[eE][-+]?\d+)?\s*["'<]"""
_ODD_NUMBER = re.compile(
    rb"""<(?:\w+:)?(?:scale|origin|increment)\b(?![^>]*\bvalue\s*=\s*["']%b)[^>]*"""
    rb"""|\b(?:samplespersecond|resolution|signaloffset|durationperchannel)="(?!%b)[^"]+"""
    rb"""|<(?:samplingrate|resolution|signalresolution|signaloffset)>(?!%b)[^<]+"""
    % ((_PLAIN,) * 3)
)
"""Numbers such as 2,5, for which ecgdatakit puts 0, 1 or another field's value."""
_SIERRA_DATA = re.compile(rb"<parsedwaveforms([^>]*)>([^<]*)<")
_SIERRA_LABELS = re.compile(rb'leadlabels="([^"]*)"')
_DICOM_GROUPS, _WAVEFORMS = (b"\x02\x00", b"\x08\x00"), b"\x00\x54\x00\x01"


class PartFile(NamedTuple):
    content: bytes | None = None
    """As a file; None: the whole file is one part."""
    start: object = 0.0
    delays_s: tuple[float, ...] = ()
    """When each channel begins after `start`."""

    @contextmanager
    def at(self, whole: Path) -> Iterator[Path]:
        """The path of a file with this part of the file `whole`."""
        if self.content is None:
            yield whole
            return
        with tempfile.TemporaryDirectory(prefix="hpc_ecg-") as folder:
            file = Path(folder) / "part"
            file.write_bytes(self.content)
            yield file


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM; also without the preamble and `DICM`, if it holds waveforms."""
    with path.open("rb") as file:
        head = file.read(132)
        if head[128:] == b"DICM" or not head.startswith(_DICOM_GROUPS):
            return head[128:] == b"DICM"
        return _WAVEFORMS in head + file.read(MAX_FILE_BYTES)


def split_dicom(path: Path) -> list[PartFile]:
    """A file per multiplex group, with nothing else in it."""
    import pydicom

    data = pydicom.dcmread(path, force=True)
    groups = data.get("WaveformSequence") or []
    if not 0 < len(groups) <= MAX_PARTS:
        raise RecordError("leads", f"{len(groups)} groups of waveforms; 1 to {MAX_PARTS} are read")
    return [_one_group(group, *data.original_encoding) for group in groups]


def _one_group(group: "Dataset", is_implicit: bool, is_little_endian: bool) -> PartFile:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    channels = group.get("ChannelDefinitionSequence") or []
    if len(channels) != (count := group.get("NumberOfWaveformChannels")):
        raise RecordError("leads", f"it states {count} channels and describes {len(channels)}")
    stated = (group.get("NumberOfWaveformSamples") or 0) * len(channels)
    held = len(group.get("WaveformData") or b"") * 8 // (group.get("WaveformBitsAllocated") or 8)
    if held > stated + 1:  # a byte may fill up
        raise RecordError("unreadable", f"it states {stated} samples and holds {held}")
    dataset, content = Dataset(), io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    little_endian = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = little_endian if is_little_endian else ExplicitVRBigEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.2", "1.2"
    dataset.WaveformSequence = [group]
    dataset.save_as(content, enforce_file_format=True)

    def number(data: "Dataset", name: str) -> float:
        return float(data.get(name) or 0)

    rate_hz = number(group, "SamplingFrequency") or 1.0
    start_ms = number(group, "MultiplexGroupTimeOffset") or number(group, "TriggerTimeOffset")
    delays_s = [
        number(channel, "ChannelSampleSkew") / rate_hz
        + number(channel, "ChannelTimeSkew")
        + number(channel, "ChannelOffset")
        for channel in channels
    ]
    return PartFile(content.getvalue(), f"{start_ms:g} ms" if start_ms else 0.0, tuple(delays_s))


def check_sierra(path: Path, samples: int, num_leads: int) -> None:
    """RecordError for more samples than the file states (whose would they be?), or a 2nd block."""
    from ecgdatakit.parsing.codecs.xli import xli_decode

    found = _SIERRA_DATA.findall(path.read_bytes().replace(b"\0", b""))
    if len(found) > 1:
        raise RecordError("leads", f"{len(found)} blocks of waveforms; save each as its own file")
    for attributes, text in found:
        if len((_SIERRA_LABELS.findall(attributes) or [b""])[0].split()) > num_leads:
            raise RecordError("leads", f"it states {num_leads} leads and names more")
        data = b"".join(text.split()).rstrip(b"=")
        held = len(data) * 3 // 8 if b"Base64" in attributes else len(text.split())
        if b"XLI" in attributes:
            held = len(xli_decode(base64.b64decode(text))[0]) * num_leads
        if held != samples * num_leads:
            message = f"it states {samples * num_leads} samples and holds {held}"
            raise RecordError("unreadable", message)


def split_xml(path: Path, kind: str) -> list[PartFile]:
    """A file per part if there are several; `kind` is ecgdatakit's name of the format."""
    from ecgdatakit.parsing.helpers.xml import parse_xml_root

    find = {"GE MUSE XML": _muse, "HL7 aECG": _aecg}.get(kind)
    content = path.read_bytes()
    if odd := _ODD_NUMBER.search(content.replace(b"\0", b"")):
        text = odd[0].decode("utf-8", "replace")[:80]
        raise RecordError("unreadable", f"no plain number, or none at all: {text}")
    root = parse_xml_root(content) if find else None
    if find is None or root is None or len(found := find(root)) < 2:
        return [PartFile()]
    if len(found) > MAX_PARTS or len(found) * len(content) > 4 * MAX_FILE_BYTES:
        most = f"at most {MAX_PARTS} are read"
        raise RecordError("leads", f"{len(found)} blocks of waveforms; {most}")
    for parent, part, _ in found:
        parent.remove(part)
    parent, files = found[0][0], []
    for _, part, start in found:
        parent.append(part)
        files.append(PartFile(ElementTree.tostring(root), start))
        parent.remove(part)
    return files


def _muse(root: ElementTree.Element) -> Found:
    """Every waveform but the median beat."""
    waves = [wave for wave in root.findall("Waveform") if _text(wave, "WaveformType") != "median"]
    for wave in waves:
        stated, listed = _text(wave, "NumberofLeads"), len(wave.findall("LeadData"))
        if stated and stated != str(listed):
            raise RecordError("leads", f"a waveform states {stated} leads and holds {listed}")
        for child in wave:
            if child.tag.lower() == "waveformtype":
                child.text = "Rhythm"
    return [(root, wave, _text(wave, "WaveformStartTime") or "0") for wave in waves]


def _aecg(root: ElementTree.Element) -> Found:
    """Every sequence set but the representative beat's."""
    found: Found = []
    for component in root.findall("component"):
        series = component.find("series")
        if series is None or _value(series, "code", "code").upper() == "REPRESENTATIVE_BEAT":
            continue
        if found:
            root.remove(component)
        for part in series.findall("component"):
            head = _value(part, ".//head", "value").removesuffix(".000")
            if part.find(".//code[@code='TIME_ABSOLUTE']") is None:
                head = f"{_value(series, './/low', 'value')} + {head or 0}"
            if len({step.get("value") for step in part.iterfind(".//increment")}) > 1:
                raise RecordError(
                    "rate", "its leads were not recorded together: several increments"
                )
            if part.find("sequenceSet") is not None:
                found.append((series, part, head))
    return found


def _text(parent: ElementTree.Element, tag: str) -> str:
    """What a child of this name holds, whatever their case."""
    texts = [child.text or "" for child in parent if child.tag.lower() == tag.lower()]
    return texts[0].strip().lower() if texts else ""


def _value(parent: ElementTree.Element, path: str, attribute: str) -> str:
    element = parent.find(path)
    return "" if element is None else (element.get(attribute) or "").strip()
