"""A file of several parts as several files of one part each, because ecgdatakit reads only the
first: DICOM's multiplex groups, MUSE's and Philips' waveforms, the sequence sets of HL7 aECG.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from hpc_ecg.ecg.recording import RecordError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Found = list[tuple[ElementTree.Element, ElementTree.Element]]
"""Each part of an XML file, after the element that holds it."""
MAX_FILE_BYTES = 16 << 20
"""A resting ECG takes 0.1 MB to a few MB."""
_DICOM_GROUPS, _WAVEFORMS = (b"\x02\x00", b"\x08\x00"), b"\x00\x54\x00\x01"
_NO_ECG = ("TEST DATA", "DISCONNECTED", "INVALID", "UNCALIBRATED")
"""Values of DICOM's Channel Status."""


class PartFile(NamedTuple):
    """A file with one part of a recording."""

    content: bytes | None = None
    """None: the file itself, which holds one part."""
    start: object = 0.0
    delays_s: tuple[float, ...] = ()
    """Of each channel, where they are not among ecgdatakit's annotations."""


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM; also without the preamble and `DICM`, if it holds waveforms."""
    with path.open("rb") as file:
        head = file.read(132)
        if head[128:] == b"DICM" or not head.startswith(_DICOM_GROUPS):
            return head[128:] == b"DICM"
        return _WAVEFORMS in head + file.read(MAX_FILE_BYTES)


@contextmanager
def part_path(part: PartFile, path: Path) -> Iterator[Path]:
    """The path of the part's content, or of the whole file at `path`."""
    if part.content is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="hpc_ecg-") as folder:
        file = Path(folder) / "part"
        file.write_bytes(part.content)
        yield file


def split_dicom(path: Path) -> list[PartFile]:
    """A file per multiplex group, with nothing else in it."""
    import pydicom

    data = pydicom.dcmread(path, force=True)
    groups = data.get("WaveformSequence") or []
    if not groups:
        raise RecordError("leads", "a DICOM file without waveforms")
    return [_one_group(data, group) for group in groups]


def _one_group(data: "Dataset", group: "Dataset") -> PartFile:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    channels = group.get("ChannelDefinitionSequence") or []
    if len(channels) != group.get("NumberOfWaveformChannels"):
        stated = group.get("NumberOfWaveformChannels")
        raise RecordError("leads", f"it states {stated} channels and describes {len(channels)}")
    for channel in channels:
        status = str(channel.get("ChannelStatus") or "")
        if any(word in status for word in _NO_ECG):
            raise RecordError("unreadable", f"the file marks a channel as {status}")
    alone, (is_implicit, is_little) = Dataset(), data.original_encoding
    alone.file_meta = FileMetaDataset()
    little = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    alone.file_meta.TransferSyntaxUID = little if is_little else ExplicitVRBigEndian
    alone.SOPClassUID, alone.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.2", "1.2"
    alone.WaveformSequence = [group]
    content = io.BytesIO()
    alone.save_as(content, enforce_file_format=True)
    rate_hz = _number(group, "SamplingFrequency") or 1.0
    start_ms = _number(group, "MultiplexGroupTimeOffset") or _number(group, "TriggerTimeOffset")
    return PartFile(
        content=content.getvalue(),
        start=f"{start_ms:g} ms" if start_ms else 0.0,
        delays_s=tuple(
            _number(channel, "ChannelSampleSkew") / rate_hz
            + _number(channel, "ChannelTimeSkew")
            + _number(channel, "ChannelOffset")
            for channel in channels
        ),
    )


def _number(data: "Dataset", name: str) -> float:
    return float(data.get(name) or 0)


def split_xml(path: Path, kind: str) -> list[PartFile]:
    """A file per part if there are several; `kind` is ecgdatakit's name of the format."""
    from ecgdatakit.parsing.helpers.xml import parse_xml_root

    find = {"GE MUSE XML": _muse, "HL7 aECG": _aecg, "Philips Sierra XML": _sierra}.get(kind)
    if find is None:
        return [PartFile()]
    root = parse_xml_root(path.read_bytes())
    found, starts = find(root)
    if len(found) < 2:
        return [PartFile()]
    for parent, part in found:
        parent.remove(part)
    files = []
    for (_, part), start in zip(found, starts, strict=True):
        found[0][0].append(part)
        files.append(PartFile(ElementTree.tostring(root), start))
        found[0][0].remove(part)
    return files


def _muse(root: ElementTree.Element) -> tuple[Found, list[object]]:
    """Every waveform but the median beat."""
    waves = [wave for wave in root.findall("Waveform") if _text(wave, "WaveformType") != "median"]
    for wave in waves:
        stated, listed = _text(wave, "NumberofLeads"), len(wave.findall("LeadData"))
        if stated and stated != str(listed):
            raise RecordError("leads", f"a waveform states {stated} leads and holds {listed}")
        for child in wave:
            if child.tag.lower() == "waveformtype":
                child.text = "Rhythm"
    return [(root, wave) for wave in waves], [_text(w, "WaveformStartTime") or "0" for w in waves]


def _aecg(root: ElementTree.Element) -> tuple[Found, list[object]]:
    """Every sequence set but the representative beat's."""
    found: Found = []
    starts: list[object] = []
    for component in root.findall("component"):
        series = component.find("series")
        if series is None or _value(series, "code", "code") == "REPRESENTATIVE_BEAT":
            continue
        parts = [part for part in series.findall("component") if part.find("sequenceSet")]
        if found:
            root.remove(component)
        for part in parts:
            head = _value(part, ".//head", "value").removesuffix(".000")
            is_absolute = part.find(".//code[@code='TIME_ABSOLUTE']") is not None
            starts.append(head if is_absolute else (_value(series, ".//low", "value"), head))
        found += [(series, part) for part in parts]
    return found, starts


def _sierra(root: ElementTree.Element) -> tuple[Found, list[object]]:
    """Every set of waveforms; the file does not say when they begin."""
    found = [(up, part) for up in root.iter() for part in up if part.tag == "parsedwaveforms"]
    return found, [f"block {number + 1}" for number in range(len(found))]


def _text(parent: ElementTree.Element, tag: str) -> str:
    """What a child of this name holds, whatever their case."""
    texts = [child.text or "" for child in parent if child.tag.lower() == tag.lower()]
    return texts[0].strip().lower() if texts else ""


def _value(parent: ElementTree.Element, path: str, attribute: str) -> str:
    element = parent.find(path)
    return "" if element is None else (element.get(attribute) or "").strip()
