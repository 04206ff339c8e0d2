"""Reading ECG files: real ones against stored checksums, broken ones against their error."""

import csv
import hashlib
import pickle
import shutil
import unicodedata

import numpy as np
import pytest
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_wfdb

from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.leads import complete_leads, normalize_lead, order_rows
from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import LEADS

LAYOUT = ArrayLayout(sample_rate_hz=500)
COUNTS_LS = np.random.default_rng(0).integers(-2000, 2000, (12, 5000)).astype(np.int16)


@pytest.fixture
def record(tmp_path):
    """A valid record rec.hea + rec.dat."""
    write_wfdb(tmp_path / "rec", COUNTS_LS, LEADS, 500)
    return tmp_path / "rec.hea"


def edit(header_path, old, new):
    text = header_path.read_text(encoding="utf-8")
    assert old in text
    header_path.write_text(text.replace(old, new), encoding="utf-8")
    return header_path


def refusal(path, layout=LAYOUT):
    with pytest.raises(RecordError) as caught:
        read_recording(path, layout)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    return caught.value.reason, message


# Real recordings


@pytest.mark.parametrize("dataset", ["ptbxl", "georgia", "cpsc2018", "code15"])
def test_real_recordings_read_to_the_last_bit(real_data, dataset):
    folder = real_data / "ecg" / dataset
    with (folder / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:40]
    for row in rows:
        recording = read_recording(find_recording(folder, row["file"]), LAYOUT)
        assert recording.sample_rate_hz == float(row["fs"])
        assert recording.signal_LS.shape == (12, int(row["n_samples"]))
        assert order_rows(recording.leads, LEADS) == list(range(12))
        counts_SL = np.rint(recording.signal_LS.T * 1000).astype("<i4")  # all four: 1000 per mV
        assert hashlib.sha256(counts_SL.tobytes()).hexdigest() == row["sha256"], row["record"]


def test_a_georgia_header_that_wfdb_refuses_is_read_under_any_of_its_names(real_data):
    folder = real_data / "ecg" / "georgia"
    with pytest.raises(ValueError, match="record line"):
        wfdb.rdrecord(str(folder / "E07500"))
    names = ("E07500", "E07500.hea", "E07500.mat")
    signals = [read_recording(find_recording(folder, n), LAYOUT).signal_LS for n in names]
    assert signals[0].shape == (12, 5000)
    np.testing.assert_array_equal(signals[0], signals[1])
    np.testing.assert_array_equal(signals[0], signals[2])


# WFDB, valid


def test_our_wfdb_writer_writes_the_same_bytes_as_wfdb(record, tmp_path):
    wfdb.wrsamp(
        "theirs",
        500,
        ["mV"] * 12,
        list(LEADS),
        d_signal=COUNTS_LS.T.astype(int),
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(tmp_path),
    )
    assert record.with_suffix(".dat").read_bytes() == (tmp_path / "theirs.dat").read_bytes()
    ours, theirs = wfdb.rdheader(str(tmp_path / "rec")), wfdb.rdheader(str(tmp_path / "theirs"))
    for field in ("checksum", "init_value", "adc_gain", "baseline", "units", "sig_name", "fs"):
        assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize(
    "header_unit, millivolts", [("mV", 1), ("uV", 1e-3), ("V", 1e3), ("mv", 1)]
)
def test_header_units_become_millivolts(record, header_unit, millivolts):
    recording = read_recording(edit(record, "/mV", f"/{header_unit}"), LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1000 * millivolts, rtol=1e-12)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_micro_sign_is_not_read_as_volt(record, encoding):
    text = record.read_text(encoding="ascii").replace("/mV", "/µV")
    record.write_text(text, encoding=encoding)
    assert wfdb.rdheader(str(record.with_suffix(""))).units[0] == "V"  # the trap in wfdb
    recording = read_recording(record, LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1e6, rtol=1e-12)


@pytest.mark.parametrize("fmt, most", [("212", 2047), ("24", 2**23 - 1), ("16", 2**15 - 1)])
def test_every_wfdb_format_gives_the_counts_that_were_written(tmp_path, fmt, most):
    counts_LS = np.random.default_rng(1).integers(-most, most, (12, 501), endpoint=True)
    wfdb.wrsamp(
        "rec",
        500,
        ["mV"] * 12,
        list(LEADS),
        d_signal=counts_LS.T,
        fmt=[fmt] * 12,
        adc_gain=[200.0] * 12,
        baseline=[0] * 12,
        write_dir=str(tmp_path),
    )
    recording = read_recording(tmp_path / "rec.hea", LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, counts_LS / 200, rtol=1e-12)


@pytest.mark.parametrize("gain", ["nan", "inf", "1e999", "1e-999", "-0.0", "nan(nan)", "x"])
def test_an_invalid_gain_is_not_replaced_by_200_counts_per_mv(record, gain):
    reason, message = refusal(edit(record, "1000(0)/mV", f"{gain}(0)/mV"))
    assert reason == "amplitude"
    assert "has no gain" in message


def test_the_gain_and_baseline_of_each_lead_are_applied(record):
    recording = read_recording(edit(record, "1000(0)/mV", "250(-40)/mV"), LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, (COUNTS_LS + 40.0) / 250, rtol=1e-12)


def test_a_date_that_wfdb_cannot_parse_does_not_cost_the_record(record):
    edit(record, "rec 12 500 5000", "rec 12 500 5000 2020-05-31 99:99:99")
    assert read_recording(record, LAYOUT).signal_LS.shape == (12, 5000)


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a::b *[c] {d}"
    folder.mkdir()
    write_wfdb(folder / "rec", COUNTS_LS, LEADS, 500)
    recording = read_recording(folder / "rec.hea", LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1000, rtol=1e-12)


def test_a_header_without_length_reads_the_whole_signal_file(record):
    edit(record, "rec 12 500 5000", "rec 12 500")
    assert read_recording(record, LAYOUT).signal_LS.shape == (12, 5000)


def test_invalid_samples_become_nan(tmp_path):
    counts_LS = COUNTS_LS.copy()
    counts_LS[3, 7] = -(2**15)
    write_wfdb(tmp_path / "rec", counts_LS, LEADS, 500)
    is_nan_LS = np.isnan(read_recording(tmp_path / "rec.hea", LAYOUT).signal_LS)
    assert np.argwhere(is_nan_LS).tolist() == [[3, 7]]


# WFDB, broken


@pytest.mark.parametrize(
    "old, new, reason, says",
    [
        ("rec 12 500 5000", "rec/3 12 500 5000", "unreadable", "several segments"),
        ("rec 12 500 5000", "rec 12", "rate", "no sampling rate"),
        ("rec 12 500 5000", "rec 12 fast 5000", "rate", "no sampling rate"),
        (
            "rec 12 500 5000",
            "rec 12 500Hz 5000",
            "rate",
            "no sampling rate like 500 or 499.5; got '500Hz'",
        ),
        (
            "rec 12 500 5000",
            "rec 12 1.234,5 5000",
            "rate",
            "no sampling rate like 500 or 499.5; got '1.234,5'",
        ),
        ("rec 12 500 5000", "rec 12 500 5e3", "unreadable", "whole number of samples, got '5e3'"),
        (
            "rec 12 500 5000",
            "rec 12 500 5,000",
            "unreadable",
            "whole number of samples, got '5,000'",
        ),
        ("rec 12 500 5000", "rec 11 500 5000", "unreadable", "announces 11 signals and lists 12"),
        ("rec 12 500 5000", "my rec 12 500 5000", "unreadable", "no blanks in the name; got 'my"),
        ("rec 12 500 5000", "rec 12 500 99999999", "unreadable", "at most 5000000"),
        ("rec 12 500 5000", "rec 12 500 1000000000000", "unreadable", "at most 5000000"),
        ("rec 12 500 5000", "rec 12 500 6000", "unreadable", ""),
        ("rec 12 500 5000", "", "unreadable", ""),
        ("rec.dat 16 ", "rec.dat 16x4 ", "unreadable", "1 sample a frame, got 16x4"),
        ("rec.dat 16 ", "rec.dat 16:99999999 ", "unreadable", "got 16:99999999"),
        ("rec.dat 16 ", "rec.dat 99 ", "unreadable", ""),
        ("rec.dat 16 ", "../rec.dat 16 ", "unreadable", "not a plain file name"),
        ("rec.dat 16 ", "other.dat 16 ", "not found", "other.dat"),
        ("1000(0)/mV", "0(0)/mV", "amplitude", "no gain"),
        ("1000(0)/mV", "1000(0)/mmHg", "amplitude", "one of mV, uV or V, got 'mmHg'"),
    ],
)
def test_a_header_that_cannot_be_trusted_is_refused(record, old, new, reason, says):
    got_reason, message = refusal(edit(record, old, new))
    assert got_reason == reason
    assert says in message


@pytest.mark.parametrize(
    ("text", "rate_hz"),
    [("500.5", 500.5), ("500.", 500), ("360/250.5(-3)", 360)],
)
def test_a_rate_is_read_whole(record, text, rate_hz):
    edit(record, "rec 12 500 5000", f"rec 12 {text} 5000")
    recording = read_recording(record, LAYOUT)
    assert recording.sample_rate_hz == rate_hz
    np.testing.assert_array_equal(recording.signal_LS, COUNTS_LS / 1000)


def test_a_message_never_passes_control_characters_of_a_file_to_the_terminal(record):
    message = refusal(edit(record, "rec.dat 16 ", "\x1b[31m\x07.dat 16 "))[1]
    assert message.isprintable()


def test_a_truncated_signal_file_is_refused(record):
    signal_path = record.with_suffix(".dat")
    signal_path.write_bytes(signal_path.read_bytes()[:50_001])
    assert refusal(record)[0] == "unreadable"


def test_an_empty_header_and_an_empty_signal_file_are_refused(record):
    record.with_suffix(".dat").write_bytes(b"")
    assert refusal(record) == ("unreadable", "rec.hea: its signal file rec.dat is empty")
    record.write_bytes(b"# only a comment\n")
    assert refusal(record) == ("unreadable", "rec.hea: the header is empty")


def test_a_signal_file_without_header_is_refused(record):
    record.unlink()
    reason, message = refusal(record.with_suffix(".dat"))
    assert reason == "not found"
    assert "rec.hea" in message


def test_files_of_an_unknown_format_are_refused_with_a_list_of_known_endings(tmp_path):
    reason, message = refusal(tmp_path / "ecg.pdf")
    assert reason == "unreadable"
    assert ".hea, .dat, .mat, .npy" in message


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_a_damaged_header_raises_nothing_but_a_record_error(record, data):
    write_wfdb(record.with_suffix(""), COUNTS_LS[:, :100], LEADS, 500)
    content = bytearray(record.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 8))
        content[start:end] = data.draw(st.binary(max_size=8) | st.sampled_from(NASTY))
    record.write_bytes(bytes(content))
    try:
        recording = read_recording(record, LAYOUT)
    except RecordError as error:
        assert "\n" not in str(error)
    else:
        assert recording.signal_LS.dtype == np.float64
        assert recording.signal_LS.shape[0] == len(recording.leads)


NASTY = [b"\n", b" ", b"/", b"-1", b"x9", b":5", b"+99", b"e999", b"0", b"#", b"~", b"999999999999"]


@FUZZ
@given(content=st.binary(max_size=400))
def test_an_npy_file_of_any_content_raises_nothing_but_a_record_error(tmp_path, content):
    path = tmp_path / "fuzz.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" * (len(content) % 2) + content)
    with pytest.raises(RecordError):
        read_recording(path, LAYOUT)


# Bare arrays


def save(path, array, **options):
    np.save(path, array, **options)
    return path


@pytest.mark.parametrize("dtype", ["int16", "<i4", "float32", ">f8"])
@pytest.mark.parametrize("axes", ["leads,samples", "samples,leads"])
def test_arrays_are_read_in_either_axis_order(tmp_path, dtype, axes):
    array_LS = COUNTS_LS.astype(dtype)
    path = save(tmp_path / "a.npy", array_LS if axes == "leads,samples" else array_LS.T)
    layout = ArrayLayout(axes=axes, unit="uV", sample_rate_hz=250)
    recording = read_recording(path, layout)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1000, rtol=1e-6)
    assert (recording.signal_LS.dtype, recording.sample_rate_hz) == (np.float64, 250.0)


def test_a_wrong_axis_order_is_reported_with_its_fix(tmp_path):
    path = save(tmp_path / "00123.npy", COUNTS_LS.T)
    assert refusal(path)[1] == (
        "00123.npy: expected 12 leads in the first axis, got (5000, 12); "
        "arrays stored as (samples, leads) need --axes samples,leads"
    )
    path = save(tmp_path / "8.npy", COUNTS_LS[:8])
    expected = "8.npy: expected 12 leads in the first axis, got (8, 5000)"
    assert refusal(path) == ("leads", expected)


def test_arrays_of_another_shape_or_type_are_refused(tmp_path):
    assert refusal(save(tmp_path / "3.npy", COUNTS_LS[None]))[0] == "leads"
    assert refusal(save(tmp_path / "c.npy", COUNTS_LS.astype(complex)))[0] == "unreadable"
    objects = COUNTS_LS[:, :5].astype(object)
    assert refusal(save(tmp_path / "o.npy", objects, allow_pickle=True))[0] == "unreadable"
    np.savez(tmp_path / "z.npz", COUNTS_LS)
    assert refusal(shutil.copy(tmp_path / "z.npz", tmp_path / "z.npy"))[0] == "unreadable"


def test_an_array_needs_a_sampling_rate_from_the_user(tmp_path):
    path = save(tmp_path / "a.npy", COUNTS_LS)
    assert refusal(path, ArrayLayout())[0] == "rate"


def test_an_invalid_layout_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="axes must be one of"):
        ArrayLayout(axes="leads")
    with pytest.raises(ValueError, match="unit must be one of mV, uV or V, got 'counts'"):
        ArrayLayout(unit="counts")


# Names


def test_a_name_means_the_file_itself_then_the_header_then_the_array(tmp_path):
    for name in ("a", "a.hea", "a.npy", "b.npy", "v1.2.hea"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c.hea").touch()
    files = [find_recording(tmp_path, name).path.name for name in ("a", "a.npy", "b", "v1.2", "c")]
    assert files == ["a", "a.npy", "b.npy", "v1.2.hea", "c.hea"]


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("ending", ["", ".hea", ".npy"])
def test_a_name_in_another_unicode_form_is_found(tmp_path, stored, asked, ending):
    folder = tmp_path / unicodedata.normalize("NFC", "Zürich")
    folder.mkdir()
    path = folder / (unicodedata.normalize(stored, "Müller é") + ending)
    path.touch()
    name = unicodedata.normalize(asked, "Zürich/Müller é")
    assert find_recording(tmp_path, name).path.samefile(path)
    assert find_recording(tmp_path, f"{name}::7").path.samefile(path)
    with pytest.raises(RecordError, match=r"\.npy, in any Unicode form"):
        find_recording(tmp_path, name + "x")


def test_of_two_unicode_forms_the_one_that_is_named_is_taken(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "é")).write_text(form)
    for form in ("NFC", "NFD"):
        path = find_recording(tmp_path, unicodedata.normalize(form, "é")).path
        assert path.read_text() == form


@pytest.mark.parametrize("name", ["nowhere", "", "x" * 5000, "nul\0l", "/".join("é" * 99)])
def test_a_name_without_a_file_is_not_found(tmp_path, name):
    with pytest.raises(RecordError, match=r"nor with the ending .hea or .npy") as caught:
        find_recording(tmp_path, name)
    assert caught.value.reason == "not found"


def test_a_record_error_survives_pickling_by_a_worker():
    error = pickle.loads(pickle.dumps(RecordError("rate", "no rate")))
    assert (type(error), error.reason, str(error)) == (RecordError, "rate", "no rate")


@pytest.mark.parametrize(
    "spelling, lead",
    [
        ("I", "I"),
        ("i", "I"),
        ("Lead I", "I"),
        ("LEAD_II", "II"),
        ("DIII", "III"),
        ("v1", "V1"),
        ("AVR", "aVR"),
        ("avr", "aVR"),
        ("aV L", "aVL"),
        ("a_V_F", "aVF"),
        ("MDC_ECG_LEAD_AVR", "aVR"),
        ("v6 ", "V6"),
        ("ECG Lead V2", "V2"),
        ("Lead I (Einthoven)", "I"),
        ("aVR, augmented", "aVR"),
        ("-aVR", None),
        ("Lead -aVR", None),
        ("aVR-", None),
        ("V3R", None),
        ("V7", None),
        ("", None),
        ("V1-V2", None),
        ("PLETH", None),
        ("IV", None),
        ("V12", None),
        ("Lead", None),
    ],
)
def test_every_spelling_of_a_lead_has_one_meaning(spelling, lead):
    assert normalize_lead(spelling) == lead


def test_rows_come_in_the_wanted_order_and_other_leads_are_ignored():
    names = ["PLETH", *[lead.upper() for lead in reversed(LEADS)], "vx"]
    assert order_rows(names, LEADS) == list(range(12, 0, -1))


LIMBS_LS = np.array([[1.0, 2.0], [4.0, 0.0], [3.0, -2.0], [-2.5, -1.0], [-1.0, 2.0], [3.5, -1.0]])


def recording_of(names, signal_LS):
    return Recording(signal_LS=np.array(signal_LS), leads=tuple(names), sample_rate_hz=500)


def test_missing_limb_leads_are_derived_from_i_and_ii_under_any_spelling():
    signal_LS, flags = complete_leads(recording_of(["ii", "Lead I"], LIMBS_LS[[1, 0]]), LEADS[:6])
    np.testing.assert_array_equal(signal_LS, LIMBS_LS)
    assert flags == ("derived:III,aVR,aVL,aVF",)
    as_stored = LIMBS_LS + np.arange(6)[:, None]  # recorded leads are kept, even if inconsistent
    signal_LS, flags = complete_leads(recording_of(LEADS[:6], as_stored), LEADS[:6])
    np.testing.assert_array_equal(signal_LS, as_stored)
    assert flags == ()


def test_missing_leads_are_zero_only_on_request():
    recording = recording_of(LEADS[:2], LIMBS_LS[:2])
    with pytest.raises(RecordError, match="missing V1, V2; its leads are named: I, II"):
        complete_leads(recording, ["V1", "aVR", "V2"])
    signal_LS, flags = complete_leads(recording, ["V1", "aVR", "V2"], "zero")
    np.testing.assert_array_equal(signal_LS, [[0, 0], [-2.5, -1], [0, 0]])
    assert flags == ("derived:aVR", "zero_filled:V1,V2")


def test_nothing_is_derived_from_a_single_or_duplicated_limb_lead():
    with pytest.raises(RecordError, match="missing III, aVR, aVL, aVF"):
        complete_leads(recording_of(["I", "V1"], LIMBS_LS[:2]), ["I", *LEADS[2:6], "V1"])
    with pytest.raises(RecordError, match="missing III"):
        complete_leads(recording_of(["I", "II", "II"], LIMBS_LS[:3]), ["I", "III"])
    _, flags = complete_leads(recording_of(["V1"], LIMBS_LS[:1]), LEADS[:7], "zero")
    assert flags == ("zero_filled:I,II,III,aVR,aVL,aVF",)


def test_missing_and_duplicated_leads_are_listed():
    with pytest.raises(
        RecordError, match=r"missing V5, V6 and more than one aVR; .*named: I, "
    ) as e:
        order_rows([*LEADS[:10], "AVR", ""], LEADS)
    assert e.value.reason == "leads"


@pytest.mark.parametrize("name", ["r1", "ä ö".replace(" ", "_"), "日本", "it's"])
def test_a_wfdb_record_of_any_name_is_read(tmp_path, name):
    write_wfdb(tmp_path / "r1", np.arange(24, dtype=np.int16).reshape(12, 2), LEADS, 500)
    header = (tmp_path / "r1.hea").read_text().replace("r1", name)
    (tmp_path / f"{name}.hea").write_text(header)
    (tmp_path / "r1.dat").rename(tmp_path / f"{name}.dat")
    recording = read_recording(find_recording(tmp_path, name), ArrayLayout())
    np.testing.assert_array_equal(recording.signal_LS[:, 1], np.arange(1, 24, 2) / 1000)


def test_wfdb_samples_that_contradict_their_checksum_are_refused(tmp_path):
    counts_LS = np.arange(24, dtype=np.int16).reshape(12, 2)
    write_wfdb(tmp_path / "r1", counts_LS, LEADS, 500)
    samples = np.fromfile(tmp_path / "r1.dat", "<i2")
    samples[5] += 1
    samples.tofile(tmp_path / "r1.dat")
    with pytest.raises(RecordError, match="signal 'aVF' is not what its checksum says") as caught:
        read_recording(find_recording(tmp_path, "r1"), ArrayLayout())
    assert caught.value.reason == "unreadable"


def test_a_recording_without_any_wanted_lead_is_not_filled_with_zeros():
    recording = recording_of(("ch0", "ch1"), LIMBS_LS[:2])
    with pytest.raises(RecordError, match="missing I, II"):
        complete_leads(recording, LEADS, "zero")
