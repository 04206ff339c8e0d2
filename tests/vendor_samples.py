"""Write one recording in several vendors' formats, each as complete as a reader needs."""

import base64
import zlib

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
UV = 5  # µV per count


def as_base64(counts) -> str:
    return base64.b64encode(np.ascontiguousarray(counts, "<i2").tobytes()).decode()


def muse(counts_LS, leads=LEADS, rate="500", unit="MICROVOLTS", crc=None, exponent="0") -> bytes:
    data = [
        f"<LeadData><LeadID>{lead}</LeadID><LeadAmplitudeUnitsPerBit>{UV}"
        f"</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits>"
        f"<LeadSampleSize>2</LeadSampleSize><LeadDataCRC32>"
        f"{zlib.crc32(counts_S.astype('<i2').tobytes()) if crc is None else crc}</LeadDataCRC32>"
        f"<WaveFormData>{as_base64(counts_S)}</WaveFormData></LeadData>"
        for lead, counts_S in zip(leads, counts_LS, strict=True)
    ]
    beat = f"<SampleBase>{rate}</SampleBase><SampleExponent>{exponent}</SampleExponent>"
    waveforms = [
        f"<Waveform><WaveformType>{kind}</WaveformType>{beat}{''.join(data)}</Waveform>"
        for kind in ("Median", "Rhythm")
    ]
    return f'<?xml version="1.0"?><RestingECG>{"".join(waveforms)}</RestingECG>'.encode()


def sierra(counts_LS, rate="500", resolution=UV) -> bytes:
    ms = round(1000 * counts_LS.shape[1] / float(rate))
    return (
        '<?xml version="1.0"?><restingecgdata><documentinfo><documenttype>SierraECG</documenttype>'
        "<documentversion>1.04</documentversion></documentinfo><dataacquisition>"
        f"<signalcharacteristics><resolution>{resolution}</resolution></signalcharacteristics>"
        '</dataacquisition><waveforms><parsedwaveforms dataencoding="Base64" '
        f'leadlabels="{" ".join(LEADS)}" durationperchannel="{ms}" samplespersecond="{rate}">'
        f"{as_base64(counts_LS)}</parsedwaveforms></waveforms></restingecgdata>"
    ).encode()


def aecg(counts_LS, step="0.002", leads=LEADS) -> bytes:
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value><origin value="0" '
        f'unit="uV"/><scale value="{UV}" unit="uV"/><digits>{" ".join(map(str, counts_S))}</digits>'
        "</value></sequence></component>"
        for lead, counts_S in zip(leads, counts_LS, strict=True)
    )
    return (
        '<?xml version="1.0"?><AnnotatedECG xmlns="urn:hl7-org:v3"><component><series>'
        '<code code="RHYTHM"/><component><sequenceSet><component><sequence>'
        '<code code="TIME_ABSOLUTE"/><value><head value="20200101000000"/>'
        f'<increment value="{step}" unit="s"/></value></sequence></component>{sequences}'
        "</sequenceSet></component></series></component></AnnotatedECG>"
    ).encode()


def edf(counts_LS, seconds="10", unit="uV", labels=LEADS) -> bytes:
    count, samples = counts_LS.shape

    def fields(width, *values):
        return b"".join(str(value).ljust(width).encode() for value in values)

    header = fields(8, 0) + fields(80, "X", "X") + fields(8, "01.01.20", "00.00.00")
    header += fields(8, 256 * (count + 1)) + fields(44, "") + fields(8, 1, seconds)
    header += fields(4, count)
    for width, value in ((80, ""), (8, unit), (8, -32768 * UV), (8, 32767 * UV), (8, -32768)):
        header += (fields(16, *labels) if width == 80 else b"") + fields(width, *[value] * count)
    header += fields(8, *[32767] * count) + fields(80, *[""] * count)
    header += fields(8, *[samples] * count) + fields(32, *[""] * count)
    return header + np.ascontiguousarray(counts_LS, "<i2").tobytes()


def dicom(path, counts_LS, rate="500", beat_first=False, unit="uV"):
    """A rhythm at `rate` and a median beat at 1000 Hz."""
    groups = [
        dicom_group("RHYTHM", rate, counts_LS, unit=unit),
        dicom_group("MEDIAN BEAT", "1000", counts_LS[:, :600] * 3, unit=unit),
    ]
    return dicom_of(path, *(groups[::-1] if beat_first else groups))


def dicom_group(label, hz, values_LS, leads=LEADS, start_ms=None, unit="uV", channel=()):
    """One multiplex group; `channel` holds more elements for each channel (a list: its own)."""
    from pydicom.dataset import Dataset

    def code(value, scheme, meaning):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return [item]

    item = Dataset()
    item.MultiplexGroupLabel = label
    if start_ms is not None:
        item.MultiplexGroupTimeOffset = str(start_ms)
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = values_LS.shape
    item.SamplingFrequency = hz
    item.WaveformBitsAllocated, item.WaveformSampleInterpretation = 16, "SS"
    item.ChannelDefinitionSequence = []
    for number, lead in enumerate(leads):
        definition = Dataset()
        source = code(f"MDC_ECG_LEAD_{lead.upper()}", "SCPECG", lead)
        definition.ChannelSourceSequence = source
        if unit:
            definition.ChannelSensitivity, definition.ChannelBaseline = str(UV), "0"
            definition.ChannelSensitivityUnitsSequence = code(unit, "UCUM", unit)
        for name, value in dict(channel).items():
            setattr(definition, name, value[number] if isinstance(value, list) else value)
        item.ChannelDefinitionSequence.append(definition)
    item.WaveformData = np.ascontiguousarray(values_LS.T, "<i2").tobytes()
    return item


def dicom_of(path, *groups):
    """A file of these multiplex groups."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = TwelveLeadECGWaveformStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SOPClassUID, data.Modality = TwelveLeadECGWaveformStorage, "ECG"
    data.WaveformSequence = list(groups)
    data.save_as(path, enforce_file_format=True)
    return path


def muse_of(*blocks) -> bytes:
    """Waveforms, each given by (counts_LS, leads, and what stands in the place of LeadID's end)."""
    waveforms = []
    for counts_LS, leads, fields in blocks:
        text = muse(counts_LS, leads).decode()
        rhythm = text[text.index("<Waveform><WaveformType>Rhythm") : text.index("</RestingECG>")]
        for number, lead in enumerate(leads):
            more = fields(number) if callable(fields) else fields
            rhythm = rhythm.replace(f"<LeadID>{lead}</LeadID>", f"<LeadID>{lead}</LeadID>{more}")
        waveforms.append(rhythm)
    return f"<?xml version='1.0'?><RestingECG>{''.join(waveforms)}</RestingECG>".encode()


def aecg_of(*sets, in_series=False) -> bytes:
    """Sequence sets, each given by (counts_LS, leads, time); of one series or of several."""
    parts = []
    for counts_LS, leads, time in sets:
        text = aecg(counts_LS, leads=leads).decode().replace("20200101000000", time)
        start, end = (text.index(tag) for tag in ("<component><sequenceSet>", "</series>"))
        parts.append(text[start:end])
    head, tail = text[: text.index("<component><series>")], "</AnnotatedECG>"
    code = '<component><series><code code="RHYTHM"/>'
    between = f"</series></component>{code}" if in_series else ""
    return f"{head}{code}{between.join(parts)}</series></component>{tail}".encode()


WRITERS = {"muse.xml": muse, "sierra.XML": sierra, "aecg.xml": aecg, "edf.EDF": edf}
