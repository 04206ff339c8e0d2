"""What a file claims is checked before anything is read: headers, types, shapes and counts."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from synthetic import write_wfdb

from hpc_ecg.ecg import wfdb_files
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.array_stores import RATE
from hpc_ecg.ecg.files import find_recording, read_recording
from hpc_ecg.ecg.guards import memory_limit
from hpc_ecg.ecg.recording import RecordError, RecordLocation
from hpc_ecg.ecg.signal import LEADS

LAYOUT = ArrayLayout(sample_rate_hz=250)
COUNTS_LS = np.random.default_rng(0).integers(-2000, 2000, (12, 5000)).astype(np.int16)
MOST = 64 << 20
"""Memory that a refusal may take."""


def refusal(path, row=None):
    """Reason and message; MemoryError, which is no reason, if reading takes more than MOST."""
    with pytest.raises(RecordError) as caught, memory_limit(MOST):
        read_recording(RecordLocation(path=path, row=row), LAYOUT)
    assert "MemoryError" not in str(caught.value)
    return caught.value.reason, str(caught.value)


@pytest.fixture
def record(tmp_path):
    write_wfdb(tmp_path / "rec", COUNTS_LS, LEADS, 500)
    return tmp_path / "rec.hea"


# Headers


def test_a_header_of_200_mb_is_not_read(record, monkeypatch):
    with record.open("r+b") as file:
        file.truncate(200 << 20)
    monkeypatch.delattr(Path, "read_bytes")
    expected = "rec.hea: a header of 204800 kB; at most 1024 kB are read"
    assert refusal(record) == ("unreadable", expected)


@pytest.mark.parametrize("count", [257, 100_000])
def test_signal_lines_are_counted_before_they_are_checked(record, monkeypatch, count):
    monkeypatch.delattr(wfdb_files, "_signal_file")
    record.write_text(f"rec {count} 500\n" + "a 16 1\n" * count)
    assert f"lists {count} signals; at most 256 are read" in refusal(record)[1]


@pytest.mark.parametrize("length", [" 5000001", "", " 0"], ids=["stated", "not stated", "zero"])
def test_no_more_samples_than_an_hour_are_read_whether_stated_or_not(record, length):
    record.write_text(record.read_text().replace("rec 12 500 5000", f"rec 12 500{length}"))
    with record.with_suffix(".dat").open("r+b") as file:
        file.truncate(5_000_001 * 24)
    assert "5000001 samples per lead; at most 5000000" in refusal(record)[1]


def test_the_number_of_all_values_is_bounded(record):
    lines = record.read_text().splitlines()
    record.write_text("\n".join(["rec 20 500 5000000", *(lines[1:] * 2)[:20]]))
    with record.with_suffix(".dat").open("r+b") as file:
        file.truncate(5_000_000 * 40)
    assert "more than 80000000 values" in refusal(record)[1]


def npy_header(text, version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_an_array_header_of_hundreds_of_mb_is_not_read(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    content = npy_header(" " * (80 << 20), version=2)
    if ending == ".npz":
        zipped(path, ecg=content)
    else:
        path.write_bytes(content)
    assert refusal(path) == (
        "unreadable",
        f"x{ending}: an array header of 83886080 bytes; at most 64 kB are read",
    )


# Rates

HOSTILE = ["S2000000000", "V1000000000", "U200000000", "O", "c16", "M8[s]"]


@pytest.mark.parametrize("dtype", HOSTILE)
def test_a_rate_of_an_npz_has_the_type_of_a_number(tmp_path, dtype):
    described = npy_header(f"{{'descr': '|{dtype}', 'fortran_order': False, 'shape': ()}}\n")
    members = {RATE: described + bytes(1 << 20), "ecg": npy(COUNTS_LS)}
    reason, message = refusal(zipped(tmp_path / "x.npz", **members))
    assert reason in ("rate", "unreadable")
    assert f"{RATE} must be a number" in message or "descr" in message or "Object" in message


@pytest.mark.parametrize("dtype", ["S2000000000", "S9", "f8"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 3), (100_000_000,)])
def test_a_rate_of_an_hdf5_file_is_one_number(tmp_path, dtype, shape):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["ecg"] = COUNTS_LS
        rate = file.create_dataset(RATE, shape, dtype)  # takes no space until it is written to
        if dtype == "f8" and rate.size == 1:
            rate[...] = 400
    if dtype == "f8" and np.prod(shape) == 1:
        assert read_recording(tmp_path / "x.h5", LAYOUT).sample_rate_hz == 400
        return
    reason, message = refusal(tmp_path / "x.h5")
    assert reason == "rate"
    assert f"{RATE} must be a number, or one for each row; got " in message
    assert str(shape) in message


def test_rows_of_an_array_may_have_rates_of_their_own(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["tracings"] = np.stack([COUNTS_LS] * 3)
        file[RATE] = [400, 500, 600]
    rates = [
        read_recording(find_recording(tmp_path, f"x.h5::tracings::{row}"), LAYOUT).sample_rate_hz
        for row in range(3)
    ]
    assert rates == [400, 500, 600]
    with h5py.File(path, "a") as file:
        del file[RATE]
        file[RATE] = [400, 500]
    assert refusal(path, row=1)[0] == "rate"


# Counts


def test_files_of_thousands_of_arrays_are_not_listed(tmp_path):
    small = npy(np.zeros(1))
    says = "at most 1000 arrays of a file are read"
    assert says in refusal(zipped(tmp_path / "x.npz", **{f"a{n}": small for n in range(1001)}))[1]
    scipy.io.savemat(tmp_path / "x.mat", {f"a{n}": 1.0 for n in range(1001)})
    assert says in refusal(tmp_path / "x.mat")[1]
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for n in range(1001):
            file.create_group(f"a{n % 10}/b{n}")
    assert says in refusal(tmp_path / "x.h5")[1]


# What a header says is read as it is written, or not at all


@pytest.mark.parametrize("rate", ["499,98", "5e2", "0x1F4", "500Hz", "1,000", "５００"])
def test_a_rate_is_never_read_in_part(record, rate):
    record.write_text(record.read_text().replace("rec 12 500 ", f"rec 12 {rate} "))
    reason, message = refusal(record)
    assert reason == "rate"
    assert f"no sampling rate like 500 or 499.5; got {rate!r}" in message


@pytest.mark.parametrize(
    ("rate", "hz"), [("500", 500), ("499.98", 499.98), ("500/1000(0)", 500), ("500.", 500)]
)
def test_the_usual_forms_of_a_rate_are_read(record, rate, hz):
    record.write_text(record.read_text().replace("rec 12 500 ", f"rec 12 {rate} "))
    assert read_recording(record, LAYOUT).sample_rate_hz == hz


@pytest.mark.parametrize("gain", ["1,000(0)/mV", "1000(0.5)/mV", "1000(x)/mV", "1000mV", "0x10/mV"])
def test_a_gain_is_never_read_in_part(record, gain):
    record.write_text(record.read_text().replace("1000(0)/mV", gain))
    reason, message = refusal(record)
    assert reason == "amplitude"
    assert f"got {gain!r}" in message


def test_a_length_is_never_read_in_part(record):
    record.write_text(record.read_text().replace("rec 12 500 5000", "rec 12 500 5,000"))
    assert "expected a whole number of samples, got '5,000'" in refusal(record)[1]


def test_signal_files_longer_than_the_header_says_are_flagged(tmp_path):
    write_wfdb(tmp_path / "a", COUNTS_LS[:6], LEADS[:6], 500)
    write_wfdb(tmp_path / "b", COUNTS_LS[6:], LEADS[6:], 500)
    signals = [(tmp_path / f"{n}.hea").read_text().splitlines()[1:] for n in "ab"]
    header = tmp_path / "rec.hea"
    header.write_text("\n".join(["rec 12 500 5000", *signals[0], *signals[1]]))
    assert read_recording(header, LAYOUT).flags == ()
    header.write_text("\n".join(["rec 12 500", *signals[0], *signals[1]]))
    recording = read_recording(header, LAYOUT)
    assert recording.flags == ()
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1000, rtol=1e-12)
    with (tmp_path / "b.dat").open("ab") as file:
        file.write(bytes(11))
    assert read_recording(header, LAYOUT).flags == ()  # less than one sample of each signal
    with (tmp_path / "b.dat").open("ab") as file:
        file.write(bytes(1))
    assert read_recording(header, LAYOUT).flags == ("partly_read:1",)
    (tmp_path / "b.dat").write_bytes(bytes(600))
    assert refusal(header)[0] == "unreadable"


def test_signals_of_one_file_in_different_formats_are_refused(record):
    record.write_text(record.read_text().replace("rec.dat 16 ", "rec.dat 16+24 ", 1))
    assert "rec.dat in several formats: 16, 16+24" in refusal(record)[1]


def test_skewed_signals_are_aligned(record):
    record.write_text(record.read_text().replace("rec.dat 16 ", "rec.dat 16:2 ", 1))
    signal_LS = read_recording(record, LAYOUT).signal_LS
    np.testing.assert_allclose(signal_LS[0, :-2], COUNTS_LS[0, 2:] / 1000, rtol=1e-12)
    assert np.isnan(signal_LS[0, -2:]).all()
    np.testing.assert_allclose(signal_LS[1:], COUNTS_LS[1:] / 1000, rtol=1e-12)


# Upper case


@pytest.mark.parametrize("name", ["A1", "A1.HEA", "A1.hea", "A1.DAT", "A1.dat"])
@pytest.mark.parametrize("inside", ["A1.DAT", "A1.dat", "a1.dat"])
def test_wfdb_files_of_a_dos_disk_are_read(tmp_path, name, inside):
    write_wfdb(tmp_path / "rec", COUNTS_LS, LEADS, 500)
    header = (tmp_path / "rec.hea").read_text().replace("rec.dat", inside)
    (tmp_path / "rec.hea").unlink()
    (tmp_path / "A1.HEA").write_text(header.replace("rec ", "A1 "))
    (tmp_path / "rec.dat").rename(tmp_path / "A1.DAT")
    recording = read_recording(find_recording(tmp_path, name), LAYOUT)
    np.testing.assert_allclose(recording.signal_LS, COUNTS_LS / 1000, rtol=1e-12)


@pytest.mark.parametrize("ending", [".NPY", ".NPZ", ".H5", ".HDF5", ".MAT"])
@pytest.mark.parametrize("named", [str.upper, str.lower])
def test_array_files_may_end_in_upper_case(tmp_path, ending, named):
    path = tmp_path / f"a{ending}"
    if ending == ".NPY":
        path.write_bytes(npy(COUNTS_LS))
    elif ending == ".NPZ":
        zipped(path, ecg=npy(COUNTS_LS))
    elif ending == ".MAT":
        scipy.io.savemat(path, {"ecg": COUNTS_LS}, appendmat=False)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["ecg"] = COUNTS_LS
    recording = read_recording(find_recording(tmp_path, f"a{named(ending)}"), LAYOUT)
    np.testing.assert_array_equal(recording.signal_LS, COUNTS_LS)


def test_two_files_that_differ_in_case_alone_stay_two(tmp_path):
    for name, value in (("a.npy", 1), ("a.NPY", 2)):
        (tmp_path / name).write_bytes(npy(COUNTS_LS * 0 + value))
    for name, value in (("a.npy", 1), ("a.NPY", 2), ("a", 1)):
        recording = read_recording(find_recording(tmp_path, name), LAYOUT)
        assert recording.signal_LS.max() == value
