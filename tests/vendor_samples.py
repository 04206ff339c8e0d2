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


def aecg(counts_LS, step="0.002") -> bytes:
    leads = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value><origin value="0" '
        f'unit="uV"/><scale value="{UV}" unit="uV"/><digits>{" ".join(map(str, counts_S))}</digits>'
        "</value></sequence></component>"
        for lead, counts_S in zip(LEADS, counts_LS, strict=True)
    )
    return (
        '<?xml version="1.0"?><AnnotatedECG xmlns="urn:hl7-org:v3"><component><series>'
        '<code code="RHYTHM"/><component><sequenceSet><component><sequence>'
        '<code code="TIME_ABSOLUTE"/><value><head value="20200101000000"/>'
        f'<increment value="{step}" unit="s"/></value></sequence></component>{leads}'
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
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

    def code(value, scheme, meaning):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return [item]

    def group(label, hz, values_LS):
        item = Dataset()
        item.MultiplexGroupLabel = label
        item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = values_LS.shape
        item.SamplingFrequency = hz
        item.WaveformBitsAllocated, item.WaveformSampleInterpretation = 16, "SS"
        item.ChannelDefinitionSequence = []
        for lead in LEADS:
            channel = Dataset()
            channel.ChannelSourceSequence = code("5.6.3-9-1", "SCPECG", lead)
            del channel.ChannelSourceSequence[0].CodeValue
            channel.ChannelSourceSequence[0].CodeValue = f"MDC_ECG_LEAD_{lead.upper()}"
            if unit:
                channel.ChannelSensitivity, channel.ChannelBaseline = str(UV), "0"
                channel.ChannelSensitivityUnitsSequence = code(unit, "UCUM", unit)
            item.ChannelDefinitionSequence.append(channel)
        item.WaveformData = np.ascontiguousarray(values_LS.T, "<i2").tobytes()
        return item

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = TwelveLeadECGWaveformStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SOPClassUID, data.Modality = TwelveLeadECGWaveformStorage, "ECG"
    groups = [
        group("RHYTHM", rate, counts_LS),
        group("MEDIAN BEAT", "1000", counts_LS[:, :600] * 3),
    ]
    data.WaveformSequence = groups[::-1] if beat_first else groups
    data.save_as(path, enforce_file_format=True)
    return path


WRITERS = {"muse.xml": muse, "sierra.XML": sierra, "aecg.xml": aecg, "edf.EDF": edf}
