"""Files that hold more than one recording's worth of leads: joined, the complete part taken, or
refused with what else the file holds."""

import binascii
import json
import logging
import struct
import warnings

import numpy as np
import pytest
from vendor_samples import (
    LEADS,
    UV,
    aecg,
    aecg_of,
    dicom_group,
    dicom_of,
    edf,
    muse,
    muse_of,
    sierra,
)

from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.leads import complete_leads
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import SignalSpec

COUNTS_LS = np.random.default_rng(0).integers(-300, 300, (12, 5000))
LIMB, CHEST, STRIP = (0, 6), (6, 12), (1, 2)
ONE_AFTER_ANOTHER = "not recorded together"


def read(path, content=None):
    if content is not None:
        path.write_bytes(content)
    return read_recording(path, ArrayLayout())


def refusal(path, content=None):
    with pytest.raises(RecordError) as caught:
        read(path, content)
    return caught.value.reason, str(caught.value)


def rows(span, samples=5000, first=0):
    """The counts and the names of some leads, from sample `first`."""
    return COUNTS_LS[slice(*span), first : first + samples], LEADS[slice(*span)]


def check_exact(recording, flags=(), samples=5000):
    """All 12 leads, whatever their order, to the last count."""
    signal_LS, lead_flags = complete_leads(recording, LEADS)
    np.testing.assert_allclose(signal_LS, COUNTS_LS[:, :samples] * 0.005, rtol=0, atol=1e-9)
    assert (lead_flags, recording.flags, recording.sample_rate_hz) == ((), flags, 500)


# DICOM


def group(span, label="RHYTHM", hz="500", start_ms=None, samples=5000, first=0, **channel):
    values_LS, leads = rows(span, samples, first)
    return dicom_group(label, hz, values_LS, leads, start_ms, channel=channel)


ALL, BEAT = (0, 12), {"samples": 600, "label": ""}
TAKEN = {
    "limb and chest leads": ([(LIMB, {}), (CHEST, {})], ()),
    "in another order, with equal offsets": (
        [(CHEST, {"start_ms": 5}), (LIMB, {"start_ms": "5.0"})],
        (),
    ),
    "three groups": ([((0, 3), {}), ((3, 8), {}), ((8, 12), {})], ()),
    "a strip in front": ([(STRIP, {}), (ALL, {})], ("partly_read:1",)),
    "a strip in front of two groups": ([(STRIP, {}), (LIMB, {}), (CHEST, {})], ("partly_read:1",)),
    "a strip of another rate": ([(ALL, {}), (STRIP, {"hz": "250"})], ("partly_read:1",)),
    "a beat without a label": ([(ALL, BEAT), (ALL, {})], ()),
    "a beat with a label": ([(ALL, {"label": "MEDIAN BEAT"}), (ALL, {})], ()),
    "2.5 s of all leads": ([(ALL, {"samples": 1250}), (ALL, {})], ("partly_read:1",)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_dicom_groups_are_joined_or_the_complete_one_is_taken(tmp_path, name):
    groups, flags = TAKEN[name]
    path = dicom_of(tmp_path / "x.dcm", *(group(span, **more) for span, more in groups))
    check_exact(read(path), flags)


COLUMNS = [
    ((k, k + 3), {"samples": 1250, "start_ms": 2500 * n}) for n, k in enumerate((0, 3, 6, 9))
]
APART = {
    "4 columns of 2.5 s and a strip": ([*COLUMNS, (STRIP, {})], "I, II, III (2.5 s at 500 Hz); "),
    "other offsets": ([(LIMB, {}), (CHEST, {"start_ms": 2500})], "at 500 Hz, from 2500 ms)"),
    "other rates": ([(LIMB, {}), (CHEST, {"hz": "1000"})], "V1, V2, V3, V4, V5, V6 (5 s at 1000"),
    "other lengths": ([(LIMB, {}), (CHEST, {"samples": 4999})], "(9.998 s at 500 Hz)"),
    "I and II apart": ([((0, 1), {}), ((1, 12), {"start_ms": 10})], "I (10 s at 500 Hz)"),
}


@pytest.mark.parametrize("missing", ["leave_out", "zero"])
@pytest.mark.parametrize("name", APART)
def test_leads_of_different_times_are_never_mixed_nor_filled_with_zeros(tmp_path, name, missing):
    groups, says = APART[name]
    path = dicom_of(tmp_path / "x.dcm", *(group(span, **more) for span, more in groups))
    with pytest.raises(RecordError, match=ONE_AFTER_ANOTHER) as caught:
        prepare(read(path), SignalSpec(), missing)
    assert caught.value.reason == "leads"
    assert says in str(caught.value)


def test_two_complete_recordings_in_one_file_are_refused(tmp_path):
    reason, message = refusal(dicom_of(tmp_path / "x.dcm", group(ALL), group(ALL, start_ms=60_000)))
    assert reason == "leads"
    assert "holds several recordings; save each as a file of its own: I, II, III" in message
    assert "from 60000 ms" in message


def test_a_missing_lead_is_filled_only_if_no_part_holds_it(tmp_path):
    path = dicom_of(tmp_path / "x.dcm", group((0, 8)), group(STRIP))
    signal_LS, flags = complete_leads(read(path), LEADS, "zero")
    assert flags == ("zero_filled:V3,V4,V5,V6",)
    np.testing.assert_allclose(signal_LS[:8], COUNTS_LS[:8] * 0.005, atol=1e-9)


@pytest.mark.parametrize(
    ("field", "late", "is_read"),
    [
        ("ChannelSampleSkew", "3", False),
        ("ChannelSampleSkew", "0.9", True),
        ("ChannelTimeSkew", "0.01", False),
        ("ChannelTimeSkew", "0.0015", True),
        ("ChannelOffset", "2.5", False),
    ],
)
def test_a_channel_that_begins_a_sample_later_is_not_simultaneous(tmp_path, field, late, is_read):
    skews = ["0"] * 11 + [late]
    path = dicom_of(tmp_path / "x.dcm", group(ALL, **{field: skews}))
    if is_read:
        check_exact(read(path))
    else:
        assert ONE_AFTER_ANOTHER in refusal(path)[1]
    check_exact(read(dicom_of(path, group(ALL, **{field: late}))))  # all leads late alike


def test_a_channels_baseline_and_correction_factor_are_applied(tmp_path):
    more = {"ChannelBaseline": "-40", "ChannelSensitivityCorrectionFactor": "1.25"}
    recording = read(dicom_of(tmp_path / "x.dcm", group(LIMB, **more), group(CHEST)))
    signal_LS = complete_leads(recording, LEADS)[0]
    expected_LS = COUNTS_LS * UV / 1000
    expected_LS[:6] = expected_LS[:6] * 1.25 - 0.04
    np.testing.assert_allclose(signal_LS, expected_LS, rtol=0, atol=1e-9)


def test_a_channel_without_description_is_refused(tmp_path):
    item = group(ALL)
    del item.ChannelDefinitionSequence[11]
    assert "states 12 channels and describes 11" in refusal(dicom_of(tmp_path / "x.dcm", item))[1]


@pytest.mark.parametrize("name", ["x.dcm", "1.2.840.17", "X.DCM"])
@pytest.mark.parametrize("start", [132, "dataset"], ids=["file meta first", "data set alone"])
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
def test_dicom_without_its_preamble_is_read(tmp_path, name, start, syntax):
    import pydicom

    content = write_as(tmp_path / "whole.dcm", syntax).read_bytes()
    if start == "dataset":
        meta = pydicom.dcmread(tmp_path / "whole.dcm").file_meta
        start = 132 + 12 + meta.FileMetaInformationGroupLength
    (tmp_path / name).write_bytes(content[start:])
    check_exact(read_recording(find_recording(tmp_path, name), ArrayLayout()))


def write_as(path, syntax):
    import pydicom

    data = pydicom.dcmread(dicom_of(path, group(LIMB), group(CHEST)))
    uid = data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    if not uid.is_little_endian:
        for item in data.WaveformSequence:
            item["WaveformData"].VR = "OW"
            item.WaveformData = np.frombuffer(item.WaveformData, "<i2").astype(">i2").tobytes()
    encoding = {"implicit_vr": uid.is_implicit_VR, "little_endian": uid.is_little_endian}
    pydicom.dcmwrite(path, data, force_encoding=True, **encoding)
    return path


@pytest.mark.parametrize(
    "syntax",
    ["ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian"],
)
def test_dicom_in_any_transfer_syntax_is_read(tmp_path, syntax):
    check_exact(read(write_as(tmp_path / "x.dcm", syntax)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_dicom_cut_short_is_refused(tmp_path, share):
    content = dicom_of(tmp_path / "x.dcm", group(LIMB), group(CHEST)).read_bytes()
    assert refusal(tmp_path / "x.dcm", content[: int(share * len(content))])[0] == "unreadable"


def test_a_file_that_begins_like_dicom_is_not_taken_for_it(tmp_path):
    reason, message = refusal(tmp_path / "17", b"\x08\x00" + bytes(5000))
    assert (reason, "ending must be one of" in message) == ("unreadable", True)
    assert "of no known format" in refusal(tmp_path / "x.dcm", b"\x08\x00" + bytes(5000))[1]


# XML

OFFSETS = "LeadTimeOffset", "LeadOffsetFirstSample"


def field(name, value):
    return f"<{name}>{value}</{name}>"


@pytest.mark.parametrize("tag", OFFSETS)
@pytest.mark.parametrize("late", [range(0, 8), range(1, 8), range(2, 8), range(7, 8)])
def test_muse_leads_of_different_times_are_refused_nothing_is_derived(tmp_path, tag, late):
    eight = COUNTS_LS[[0, 1, *range(6, 12)]], (*LEADS[:2], *LEADS[6:])
    content = muse_of((*eight, lambda number: field(tag, 2500 if number in late else 0)))
    if late == range(0, 8):
        recording = read(tmp_path / "x.xml", content)
        assert recording.flags == ((f"not_applied:{tag}",) if tag == OFFSETS[1] else ())
        return
    reason, message = refusal(tmp_path / "x.xml", content)
    assert (reason, ONE_AFTER_ANOTHER in message) == ("leads", True)


def test_muse_waveforms_are_joined_unless_they_hold_the_same_or_later_leads(tmp_path):
    path, limb, chest, strip = tmp_path / "x.xml", rows(LIMB), rows(CHEST), rows(STRIP)
    check_exact(read(path, muse_of((*limb, ""), (*chest, ""))))
    check_exact(read(path, muse_of((*strip, ""), (*limb, ""), (*chest, ""))), ("partly_read:1",))
    another_kind = muse_of((*limb, ""), (*chest, "")).replace(b">Rhythm<", b">Other<", 1)
    check_exact(read(path, another_kind))
    later = muse_of((*limb, ""), (*chest, field("LeadTimeOffset", 2500)))
    assert "V6 (10 s at 500 Hz, from 0 + 2.5 s)" in refusal(path, later)[1]
    later = muse_of((*limb, ""), (*chest, "")).replace(
        b"<Waveform>", b"<Waveform><WaveformStartTime>7</WaveformStartTime>", 1
    )
    assert ONE_AFTER_ANOTHER in refusal(path, later)[1]
    two = refusal(path, muse_of((*rows(ALL), ""), (*rows(ALL), "")))[1]
    assert "holds several recordings" in two


def test_a_muse_baseline_that_is_not_applied_is_flagged(tmp_path):
    recording = read(tmp_path / "x.xml", muse_of((*rows(ALL), field("FirstSampleBaseline", 9))))
    check_exact(recording, ("not_applied:FirstSampleBaseline",))
    [prepared] = prepare(recording, SignalSpec())
    assert "not_applied:FirstSampleBaseline" in prepared.flags


def test_a_muse_waveform_with_fewer_leads_than_it_states_is_refused(tmp_path):
    stated = muse(*rows(LIMB)).replace(
        b"<WaveformType>", b"<NumberofLeads>8</NumberofLeads>" * 1 + b"<WaveformType>"
    )
    assert "states 8 leads and holds 6" in refusal(tmp_path / "x.xml", stated)[1]


NOON, LATER = "20200101120000", "20200101120010"


@pytest.mark.parametrize("in_series", [False, True], ids=["one series", "two series"])
def test_sequence_sets_of_one_time_are_joined_and_others_are_not(tmp_path, in_series):
    def sets(*given):
        return aecg_of(*((*rows(span), time) for span, time in given), in_series=in_series)

    path = tmp_path / "x.xml"
    check_exact(read(path, sets((LIMB, NOON), (CHEST, NOON))))
    check_exact(read(path, sets((LIMB, NOON), (CHEST, f"{NOON}.000"))))
    check_exact(read(path, sets((STRIP, LATER), (ALL, NOON))), ("partly_read:1",))
    message = refusal(path, sets((LIMB, NOON), (CHEST, LATER)))[1]
    assert f"V6 (10 s at 500 Hz, from {LATER})" in message
    assert "holds several recordings" in refusal(path, sets((ALL, NOON), (ALL, LATER)))[1]


def test_relative_times_of_two_series_need_the_same_beginning(tmp_path):
    content = aecg_of((*rows(LIMB), "0"), (*rows(CHEST), "0"), in_series=True)
    content = content.replace(b"TIME_ABSOLUTE", b"TIME_RELATIVE")
    check_exact(read(tmp_path / "x.xml", content))
    low = f'<effectiveTime><low value="{NOON}"/></effectiveTime>'.encode()
    content = content.replace(b"<component><series>", b"<component><series>" + low, 1)
    assert ONE_AFTER_ANOTHER in refusal(tmp_path / "x.xml", content)[1]


def test_the_rate_of_an_aecg_is_its_increment_not_its_rounded_duration(tmp_path):
    high = f'<effectiveTime><low value="{NOON}"/><high value="20200101120011"/></effectiveTime>'
    series = b"<component><series>"
    content = aecg(COUNTS_LS).replace(series, high.encode() + series, 1)
    check_exact(read(tmp_path / "x.xml", content))


def test_a_sequence_set_with_two_increments_is_refused(tmp_path):
    content = aecg(COUNTS_LS)
    start = content.index(b"<component><sequence><code")
    end = content.index(b"</component>", start) + len(b"</component>")
    second = content[start:end].replace(b'"0.002"', b'"0.004"')
    reason, message = refusal(tmp_path / "x.xml", content[:end] + second + content[end:])
    assert (reason, ONE_AFTER_ANOTHER in message) == ("rate", True)


@pytest.mark.parametrize("late", ["nan", "inf", "later"])
def test_a_start_that_is_no_number_is_refused(tmp_path, late):
    content = muse_of((*rows(ALL), lambda n: field("LeadTimeOffset", late if n else 0)))
    assert refusal(tmp_path / "x.xml", content)[0] in ("leads", "unreadable")


def test_a_sequence_of_unknown_name_may_be_a_lead(tmp_path):
    unknown = aecg(COUNTS_LS).replace(b"MDC_ECG_LEAD_V6", b"VENDOR_V6")
    assert "Unrecognised sequences" in refusal(tmp_path / "x.xml", unknown)[1]
    beat = unknown.replace(b'"RHYTHM"', b'"REPRESENTATIVE_BEAT"')
    series = beat[beat.index(b"<component><series>") : beat.index(b"</AnnotatedECG>")]
    both = aecg(COUNTS_LS).replace(b"</AnnotatedECG>", series + b"</AnnotatedECG>")
    check_exact(read(tmp_path / "x.xml", both))
    more = aecg(COUNTS_LS[[*range(12), 0]], leads=(*LEADS, "RESP")).replace(
        b"MDC_ECG_LEAD_RESP", b"RESP"
    )
    check_exact(read(tmp_path / "x.xml", more), ("partly_read:1",))


def test_philips_data_beyond_what_is_stated_are_refused(tmp_path):
    content = sierra(COUNTS_LS)
    shorter = content.replace(b'durationperchannel="10000"', b'durationperchannel="5000"')
    assert "states 30000 samples and holds 60000" in refusal(tmp_path / "x.xml", shorter)[1]
    block = content[content.index(b"<parsedwaveforms") : content.index(b"</waveforms>")]
    twice = content.replace(b"</waveforms>", block + b"</waveforms>")
    assert "2 blocks of waveforms" in refusal(tmp_path / "x.xml", twice)[1]


def test_philips_leads_beyond_the_number_stated_are_not_missing(tmp_path):
    fewer = sierra(COUNTS_LS).replace(b"leadlabels=", b'numberofleads="8" leadlabels=')
    reason, message = refusal(tmp_path / "x.xml", fewer)
    assert reason == "leads" and "it states 8 leads and names more" in message


def test_dicom_samples_beyond_the_number_stated_are_refused(tmp_path):
    part = group((0, 12))
    part.NumberOfWaveformSamples = 2500
    reason, message = refusal(dicom_of(tmp_path / "x.dcm", part))
    assert (reason, "states 30000 samples and holds 60000" in message) == ("unreadable", True)


@pytest.mark.parametrize(
    ("made", "old", "new"),
    [
        (aecg, f'scale value="{UV}"', 'scale value="4,88"'),
        (aecg, f'scale value="{UV}"', "scale"),
        (aecg, 'origin value="0"', 'origin value="1,5"'),
        (aecg, 'increment value="0.002"', 'increment value="2 ms"'),
        (sierra, 'samplespersecond="500"', 'samplespersecond="499,98"'),
        (sierra, f"<resolution>{UV}", "<resolution>4,88"),
    ],
)
def test_a_number_that_the_library_would_replace_is_refused(tmp_path, made, old, new):
    check_exact(read(tmp_path / "whole.xml", made(COUNTS_LS)))
    content = made(COUNTS_LS)
    assert old.encode() in content
    reason, message = refusal(tmp_path / "x.xml", content.replace(old.encode(), new.encode()))
    assert reason == "unreadable" and "no plain number, or none at all" in message


def test_a_muse_rate_with_a_comma_is_not_rounded(tmp_path):
    content = muse(COUNTS_LS).replace(b"<SampleBase>500", b"<SampleBase>499,98")
    reason, message = refusal(tmp_path / "x.xml", content)
    assert reason == "rate" and "499,98" in message


def test_more_parts_than_any_ecg_has_are_not_parsed(tmp_path):
    content = muse_of(*[(*rows(STRIP, 10), "")] * 33)
    assert "33 blocks of waveforms; at most 32" in refusal(tmp_path / "x.xml", content)[1]
    many = dicom_of(tmp_path / "x.dcm", *[group(STRIP, samples=10)] * 33)
    assert "33 groups of waveforms; 1 to 32" in refusal(many)[1]


# Other formats


def test_edf_data_that_are_not_read_are_flagged_or_refused(tmp_path):
    path, content = tmp_path / "x.edf", edf(COUNTS_LS)
    check_exact(read(path, content + bytes(48_000)), ("partly_read:1",))
    reason, message = refusal(path, edf(COUNTS_LS[:3], labels=LEADS[:3]) + bytes(48_000))
    assert (reason, "after the last data record" in message) == ("unreadable", True)
    elsewhere = content.replace(b"3328    ", b"3584    ", 1)
    assert "header size field is 3584" in refusal(path, elsewhere)[1]


def scp_with(content, section, at, value):
    """A real SCP-ECG file with some bytes of a section changed and its checksums right."""
    content = bytearray(content)
    pointers = [struct.unpack_from("<HII", content, 22 + 10 * n) for n in range(12)]
    start, length = next((i - 1, n) for number, n, i in pointers if number == section)
    content[start + 16 + at : start + 16 + at + len(value)] = value
    for begin, end in ((start, start + length), (0, len(content))):
        crc = binascii.crc_hqx(bytes(content[begin + 2 : end]), 0xFFFF)
        content[begin : begin + 2] = struct.pack("<H", crc)
    return bytes(content)


@pytest.mark.parametrize(
    ("at", "value"), [(1, bytes([3 << 3])), (2, struct.pack("<II", 101, 6100))]
)
def test_scp_leads_that_are_not_simultaneous_are_refused(tmp_path, real_data, at, value):
    content = (real_data / "ecg/formats/scp_SCP-Tools/example_full_anon.SCP").read_bytes()
    assert read(tmp_path / "x.scp", content).signal_LS.shape == (6, 6000)
    reason, message = refusal(tmp_path / "x.scp", scp_with(content, 3, at, value))
    assert (reason, ONE_AFTER_ANOTHER in message) == ("leads", True), message


def test_a_kardia_file_with_fewer_leads_than_it_states_is_refused(tmp_path):
    samples = {"leadI": COUNTS_LS[0].tolist(), "leadII": COUNTS_LS[1].tolist()}
    raw = {"frequency": 500, "amplitudeResolution": 5000, "samples": samples, "numLeads": 2}
    kardia = {"recordedAt": "2020-01-01T00:00:00Z", "patientID": "p", "data": {"raw": raw}}
    recording = read(tmp_path / "x.json", json.dumps(kardia).encode())
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS[:2] * 0.005, atol=1e-9)
    raw["numLeads"] = 6
    assert "numLeads is 6 but 2" in refusal(tmp_path / "x.json", json.dumps(kardia).encode())[1]


def ishne(ecg_offset=522, spec=range(5, 17)):
    header = bytearray(522)
    header[:8] = b"ISHNE1.0"
    struct.pack_into("<iiii", header, 10, 0, 5000, 522, ecg_offset)
    struct.pack_into("<h12h12h12h", header, 156, 12, *spec, *[0] * 12, *[5000] * 12)
    struct.pack_into("<h", header, 272, 500)
    return bytes(header) + np.ascontiguousarray(COUNTS_LS.T, "<i2").tobytes()


def test_an_ishne_file_whose_data_may_begin_elsewhere_is_refused(tmp_path):
    assert read(tmp_path / "x.ecg", ishne()).signal_LS.shape == (12, 5000)
    assert "ECG block offset is 600" in refusal(tmp_path / "x.ecg", ishne(ecg_offset=600))[1]


def mfer(skew_ns=None):
    """500 Hz, 5 µV a count; the last lead begins `skew_ns` later."""

    def tag(code, value):
        return bytes([code, len(value)]) + value

    leads = [1, 2, 61, 62, 63, 64, *range(3, 9)]
    content = tag(0x40, b"MFR ECG ".ljust(32)) + tag(0x01, b"\x01")
    content += tag(0x0B, bytes([1, 0xFD, 2, 0])) + tag(0x0C, bytes([0, 0xFA, 5, 0]))
    content += tag(0x05, bytes([12])) + tag(0x04, struct.pack("<H", 5000)) + tag(0x06, b"\x01")
    for number, code in enumerate(leads):
        more = tag(0x43, struct.pack("<I", skew_ns)) if skew_ns and number == 11 else b""
        value = tag(0x09, bytes([code])) + more
        content += bytes([0x3F, number, len(value)]) + value
    data = np.ascontiguousarray(COUNTS_LS, "<i2").tobytes()
    return content + bytes([0x1E, 0x84]) + struct.pack(">I", len(data)) + data


def test_mfer_channels_that_begin_a_sample_later_are_refused(tmp_path):
    check_exact(read(tmp_path / "x.mwf", mfer()))
    check_exact(read(tmp_path / "x.mwf", mfer(skew_ns=1_999_999)))
    reason, message = refusal(tmp_path / "x.mwf", mfer(skew_ns=2_000_000))
    assert (reason, ONE_AFTER_ANOTHER in message) == ("leads", True)


@pytest.mark.parametrize("source", ["warning", "log"])
def test_what_a_library_says_for_the_first_time_is_a_refusal(tmp_path, monkeypatch, source):
    from ecgdatakit.parsing import FileParser

    real = FileParser.parse

    def parse(path):
        if source == "warning":
            warnings.warn("something about the signal", stacklevel=1)
        else:
            logging.getLogger("pydicom").warning("something about the signal")
        return real(path)

    monkeypatch.setattr(FileParser, "parse", parse)
    reason, message = refusal(tmp_path / "x.xml", muse(COUNTS_LS))
    assert reason == "unreadable"
    assert "perhaps not read as it is meant: something about the signal" in message
