"""Files of ECG machines: real ones against stored digests, synthetic ones against each other,
damaged ones against the reason they are refused for."""

import base64
import hashlib
import resource
import struct
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from hostile import nothing_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vendor_samples import LEADS, WRITERS, aecg, dicom, edf, muse, sierra

from hpc_ecg.ecg import vendor_files
from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.guards import memory_limit
from hpc_ecg.ecg.leads import complete_leads
from hpc_ecg.ecg.recording import RecordError

LAYOUT = ArrayLayout()
COUNTS_LS = np.random.default_rng(0).integers(-300, 300, (12, 5000))
LIMBS = "derived:III,aVR,aVL,aVF"


def refusal(path, content=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_recording(path, LAYOUT)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ")
    assert message.isprintable()
    return caught.value.reason, message


def read(path, content=None):
    if content is not None:
        path.write_bytes(content)
    return read_recording(path, LAYOUT)


# Real files. The digests are of microvolts as int32.

AECG, DICOM = "0f8daef55012", "ac7490f79cde"
PHILIPS_A, PHILIPS_B = "d6c7549497a6", "2520158800f5"
REAL = {
    "aecg_FDA/Example aECG.xml": (12, 5000, 500, AECG),
    "aecg_FDA/subject1_0.xml": (12, 5000, 500, AECG),
    "cardio_tests/A00001.hea": (1, 9000, 300, "a264ee4b49c0"),
    "cardio_tests/A00001.mat": (1, 9000, 300, "a264ee4b49c0"),
    "cardio_tests/A00002.hea": (1, 9000, 300, "09c9d33f251e"),
    "cardio_tests/A00002.mat": (1, 9000, 300, "09c9d33f251e"),
    "cardio_tests/sample.dcm": (12, 5000, 500, "26048cd4a2fd"),
    "cardio_tests/sample.edf": (1, 12000, 300, "d78657fa186c"),
    "dicom_marcodebe/anonymous_ecg.dcm": (12, 10000, 1000, DICOM),
    "dicom_pydicom/waveform_ecg.dcm": (12, 10000, 1000, DICOM),
    "muse_xml_easyRecg/muse_ecg1.xml": (8, 5000, 500, "d913f3ca78f9"),
    "muse_xml_easyRecg/muse_ecg2.xml": (8, 5000, 500, "aa833558216e"),
    "muse_xml_easyRecg/muse_ecg3.xml": (8, 5000, 500, "ca4cad55ac09"),
    "philips_xml_sierra/129DYPRG.XML": (12, 5264, 500, PHILIPS_A),
    "philips_xml_sierra/2020-5-18_15-48-11.xml": (12, 5300, 500, "adcad542f0bb"),
    "philips_xml_sierra/3191723_ZZDEMOPTONLY_1-04_orig.xml": (12, 5300, 500, "f167cb2235e5"),
    "philips_xml_sierra/ad4d3d80-d165_1-04_orig.xml": (12, 5300, 500, PHILIPS_B),
    "philips_xml_sierra/repbeats_example.xml": (12, 5264, 500, PHILIPS_A),
    "philips_xml_tbj128/ecg-example.xml": (12, 5300, 500, PHILIPS_B),
    "scp_SCP-Tools/example_full_anon.SCP": (6, 6000, 600, "fcedeee6beb1"),
}
REFUSED = {"cardio_tests/sample.xml": "an XML export of another kind, <com.xiriuz.sema.xml.schill"}


def test_every_real_file_has_an_expected_outcome(real_data):
    folder = real_data / "ecg" / "formats"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*REAL, *REFUSED}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_read_to_the_last_microvolt(real_data, name):
    num_leads, samples, rate, digest = REAL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recording = read(real_data / "ecg" / "formats" / name)
    assert recording.signal_LS.shape == (num_leads, samples)
    assert recording.sample_rate_hz == rate
    microvolts = np.rint(recording.signal_LS * 1000).astype("<i4").tobytes()
    assert hashlib.sha256(microvolts).hexdigest()[:12] == digest


def test_the_same_recording_in_two_files_is_the_same_signal(real_data):
    """Pairs by their digests above: two aECG files, the same DICOM from two projects, two Philips
    files twice. No real recording comes in two formats; synthetic ones do, below."""
    digests = [outcome[-1] for outcome in REAL.values()]
    assert all(digests.count(pair) == 2 for pair in (AECG, DICOM, PHILIPS_A, PHILIPS_B))


@pytest.mark.parametrize("name", [n for n, outcome in REAL.items() if outcome[0] == 12])
def test_limb_leads_of_real_files_obey_einthoven_and_goldberger(real_data, name):
    recording = read(real_data / "ecg" / "formats" / name)
    lead = dict(zip(recording.leads, recording.signal_LS, strict=True))
    one, two = lead["I"], lead["II"]
    limbs = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    for limb, expected in limbs.items():  # each stored lead is rounded by itself: 5 uV a count
        assert np.abs(lead[limb] - expected).max() <= 0.0101


@pytest.mark.parametrize("name", [n for n in REAL if "muse" in n])
def test_eight_leads_of_muse_become_twelve(real_data, name):
    signal_LS, flags = complete_leads(read(real_data / "ecg" / "formats" / name), LEADS)
    assert (signal_LS.shape, flags) == ((12, 5000), (LIMBS,))


@pytest.mark.parametrize("name", REFUSED)
def test_another_makers_export_is_refused_and_named(real_data, name):
    reason, message = refusal(real_data / "ecg" / "formats" / name)
    assert reason == "unreadable"
    for text in (REFUSED[name], "GE MUSE XML", "best as DICOM"):
        assert text in message


# Synthetic files


@pytest.mark.parametrize("name", [*WRITERS, "dicom.dcm", "1.2.840.17"])
def test_one_recording_is_the_same_signal_in_every_format(tmp_path, name):
    if name in WRITERS:
        (tmp_path / name).write_bytes(WRITERS[name](COUNTS_LS))
    else:
        dicom(tmp_path / name, COUNTS_LS)
    recording = read_recording(find_recording(tmp_path, name), LAYOUT)
    assert (recording.leads, recording.sample_rate_hz) == (LEADS, 500.0)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS * 0.005, rtol=0, atol=1e-9)


@pytest.mark.parametrize("beat_first", [False, True])
def test_a_dicom_file_gives_its_rhythm_not_its_median_beat(tmp_path, beat_first):
    recording = read(dicom(tmp_path / "x.dcm", COUNTS_LS, beat_first=beat_first))
    assert recording.signal_LS.shape == (12, 5000)
    assert recording.sample_rate_hz == 500


def test_fractional_rates_are_kept_or_refused(tmp_path):
    assert read(dicom(tmp_path / "x.dcm", COUNTS_LS, rate="499.5")).sample_rate_hz == 499.5
    assert read(tmp_path / "x.edf", edf(COUNTS_LS, seconds="10.01")).sample_rate_hz == 499.5
    assert read(tmp_path / "x.xml", aecg(COUNTS_LS, step="0.002002")).sample_rate_hz == 499.5
    for content in (
        muse(COUNTS_LS, rate="499.5"),
        muse(COUNTS_LS, rate="4995", exponent="-1"),
        sierra(COUNTS_LS, rate="500.4"),
        sierra(COUNTS_LS, rate="500.4").decode().encode("utf-16"),
    ):
        assert refusal(tmp_path / "x.xml", content)[0] == "rate"


def test_counts_without_a_unit_are_refused(tmp_path):
    for path in (
        dicom(tmp_path / "a.dcm", COUNTS_LS, unit=""),
        dicom(tmp_path / "b.dcm", COUNTS_LS, unit="mm[Hg]"),
    ):
        assert refusal(path)[0] == "amplitude"
    reason, message = refusal(tmp_path / "x.xml", muse(COUNTS_LS, unit="SOMETHING"))
    assert reason == "amplitude"
    assert "no voltage unit is stated for I, II, " in message
    assert refusal(tmp_path / "x.edf", edf(COUNTS_LS, unit=""))[0] == "amplitude"


def test_a_wrong_checksum_and_a_file_cut_short_are_refused(tmp_path):
    reason, message = refusal(tmp_path / "x.xml", muse(COUNTS_LS, crc=1))
    assert reason == "unreadable"
    assert "CRC32 mismatch" in message
    two_records = edf(COUNTS_LS).replace(b"1       10  ", b"2       10  ")
    reason, message = refusal(tmp_path / "x.edf", two_records)
    assert reason == "unreadable"
    assert "truncated" in message


def test_an_scp_file_may_be_anonymized_but_its_signal_must_be_intact(tmp_path, real_data):
    content = (real_data / "ecg/formats/scp_SCP-Tools/example_full_anon.SCP").read_bytes()
    pointers = [struct.unpack_from("<HII", content, 22 + 10 * n) for n in range(12)]
    starts = {number: index - 1 for number, length, index in pointers if length}
    for section, is_read in ((1, True), (3, False), (6, False)):
        changed = bytearray(content)
        changed[starts[section]] ^= 1  # its checksum
        if is_read:
            assert read(tmp_path / "x.scp", changed).signal_LS.shape == (6, 6000)
        else:
            assert (
                f"CRC mismatch in: record, Section {section}"
                in refusal(tmp_path / "x.scp", changed)[1]
            )


def test_leads_that_do_not_belong_together_are_refused(tmp_path):
    content = aecg(COUNTS_LS)
    start = content.index(b"<digits>") + len(b"<digits>")
    short = content[:start] + content[content.index(b" ", start) + 1 :]
    reason, message = refusal(tmp_path / "x.xml", short)
    assert reason == "leads"
    assert "I 4999 samples, II 5000 samples" in message


def test_a_duplicated_lead_is_refused_rather_than_chosen(tmp_path):
    names = (*LEADS[:11], "V1")
    recording = read(tmp_path / "x.xml", muse(COUNTS_LS, leads=names))
    with pytest.raises(RecordError, match="more than one V1"):
        complete_leads(recording, LEADS[:11])


def test_other_channels_are_ignored(tmp_path):
    recording = read(tmp_path / "x.edf", edf(COUNTS_LS, labels=(*LEADS[:11], "SpO2")))
    assert recording.leads == LEADS[:11]


def test_the_calibration_at_the_end_of_a_philips_file_is_cut_off(tmp_path):
    counts_LS = np.concatenate([COUNTS_LS, np.zeros((12, 500), int)], axis=1)
    uncut = read(tmp_path / "x.xml", sierra(counts_LS))
    assert uncut.signal_LS.shape == (12, 5500)  # zeros alone may be leads that came off
    counts_LS[:, 5100:5200] = 200
    np.testing.assert_allclose(
        read(tmp_path / "x.xml", sierra(counts_LS)).signal_LS, COUNTS_LS * 0.005, atol=1e-9
    )
    counts_LS[3, 5300] = 1  # ECG goes on: nothing is cut but what follows
    assert read(tmp_path / "x.xml", sierra(counts_LS)).signal_LS.shape == (12, 5500)
    everything = np.where(np.arange(500) < 250, 0, 200)[None].repeat(12, axis=0)
    assert read(tmp_path / "x.xml", sierra(everything)).signal_LS.shape == (12, 0)


def test_without_ecgdatakit_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ecgdatakit.parsing", None)
    reason, message = refusal(tmp_path / "x.xml", muse(COUNTS_LS))
    assert (reason, message) == (
        "unreadable",
        "x.xml: to read it, `pip install 'hpc-ecg[formats]'`",
    )


def test_a_row_of_a_file_that_holds_one_recording_is_not_found(tmp_path):
    (tmp_path / "x.xml").write_bytes(muse(COUNTS_LS))
    with pytest.raises(RecordError, match=r"x.xml: it holds one recording") as caught:
        read_recording(find_recording(tmp_path, "x.xml::3"), LAYOUT)
    assert caught.value.reason == "not found"


# Hostile files


def bombs():
    entity = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(20))
    declared = f'<!DOCTYPE x [<!ENTITY a0 "ha">{entity}]>'
    for root in ("RestingECG", "restingecgdata", "AnnotatedECG", "ECG ELI='MORTARA'"):
        name = root.split()[0]
        yield f'<?xml version="1.0"?>{declared}<{root}>&a20;</{name}>'
        yield (
            '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
            f"<{root}>&f;</{name}>"
        )
        yield f"<{root}>" + "<a>" * 50_000
        yield f"<{root}>" + "<a>" * 50_000 + "</a>" * 50_000 + f"</{name}>"


@pytest.mark.slow
def test_xml_bombs_are_refused(tmp_path):
    path = tmp_path / "x.xml"
    read(path, muse(COUNTS_LS))  # imports what is imported late
    for bomb in bombs():
        path.write_text(bomb)
        with nothing_runs():
            assert refusal(path)[0] == "unreadable", bomb[:300]


def test_deep_xml_is_counted_not_parsed(tmp_path):
    deep = b"<restingecgdata>" + b"<a>" * 2_000_000 + b"</a>" * 2_000_000
    assert refusal(tmp_path / "x.xml", deep)[1] == "x.xml: more XML tags than any resting ECG has"


def test_formats_whose_scale_the_library_guesses_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(vendor_files, "FORMATS", ("HL7 aECG",))
    read(tmp_path / "x.xml", aecg(COUNTS_LS))
    assert "<RestingECG>" in refusal(tmp_path / "x.xml", muse(COUNTS_LS))[1]
    assert not any("EDAN" in name or "XLE" in name for name in vendor_files.BINARY)


def test_a_file_too_large_for_a_resting_ecg_is_not_parsed(tmp_path):
    path = tmp_path / "x.xml"
    with path.open("wb") as file:
        file.write(b"<RestingECG>")
        file.truncate(1 << 30)
    assert refusal(path) == ("unreadable", "x.xml: 1024 MB; a resting ECG has at most 16 MB")


@pytest.mark.slow
def test_packed_xml_that_claims_gigabytes_uses_at_most_one(tmp_path):
    """LZW of Philips' XLI: codes that repeat the longest string, 600 times their size."""
    codes = "".join(f"{code:010b}" for code in [0, *range(256, 1022), *[1021] * 1_700_000])
    chunk = int(codes.ljust(-len(codes) % 8 + len(codes), "0"), 2).to_bytes((len(codes) + 7) // 8)
    xli = len(chunk).to_bytes(4, "little") + bytes(4) + chunk
    content = sierra(COUNTS_LS).replace(
        b'dataencoding="Base64"', b'dataencoding="Base64" compression="XLI"'
    )
    start, end = content.index(b'="500">') + 7, content.index(b"</parsedwaveforms>")
    path = tmp_path / "x.xml"
    path.write_bytes(content[:start] + base64.b64encode(xli) + content[end:])
    script = """
        import resource, sys
        from pathlib import Path
        from hpc_ecg.ecg.files import ArrayLayout, read_recording
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_recording(Path(sys.argv[1]), ArrayLayout())
        except ValueError as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    line, kilobytes = done.stdout.splitlines()
    assert "MemoryError" in line
    assert int(kilobytes) < 1_200_000
    assert done.stderr == ""


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NASTY = [b"\0", b"<", b"&", b"999999999999", b"-1", b"NaN", b"inf", b"1e999", b"\xff" * 4, b'"']


def damage(data, content: bytes) -> bytes:
    """A few cuts, splices and changed bytes, mostly near the start where headers are."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 5))):
        near = data.draw(st.sampled_from([300, 4000, len(changed)]))
        start = data.draw(st.integers(0, min(near, len(changed))))
        end = start + data.draw(st.sampled_from([0, 1, 2, 4, 8, 300, len(changed)]))
        changed[start:end] = data.draw(st.sampled_from(NASTY) | st.binary(max_size=8))
    return bytes(changed)


def outcome_of(path, content):
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            recording = read_recording(path, LAYOUT)
        except RecordError as error:
            message = str(error)
            assert message.isprintable() and len(message) <= 400
        else:
            assert recording.signal_LS.dtype == np.float64
            assert recording.signal_LS.shape[0] == len(recording.leads)
            assert 0 < recording.sample_rate_hz < np.inf


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Short files of each format."""
    folder = tmp_path_factory.mktemp("small")
    for name, write in WRITERS.items():
        (folder / name).write_bytes(write(COUNTS_LS[:, :500]))
    dicom(folder / "dicom.dcm", COUNTS_LS[:, :500])
    return sorted(folder.iterdir())


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_a_damaged_vendor_file_raises_nothing_but_a_record_error(tmp_path, small, data):
    original = data.draw(st.sampled_from(small))
    outcome_of(tmp_path / original.name, damage(data, original.read_bytes()))


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_a_damaged_real_file_raises_nothing_but_a_record_error(tmp_path, real_data, data):
    names = sorted(name for name in {*REAL, *REFUSED} if not name.endswith((".hea", ".mat")))
    original = real_data / "ecg" / "formats" / data.draw(st.sampled_from(names))
    outcome_of(tmp_path / original.name, damage(data, original.read_bytes()))


def test_the_memory_limit_is_lifted_afterwards():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_limit(1 << 26):
        np.ones(1 << 26)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
