"""Arrays in .npy, .npz, HDF5 and .mat: the same recording from each, single rows of large arrays,
and files that claim more than they hold."""

import io
import os
import resource
import struct
import sys
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_ecg.ecg import array_files, array_stores
from hpc_ecg.ecg.files import ArrayLayout, find_recording, name_of_row, read_recording
from hpc_ecg.ecg.recording import RecordError, RecordLocation

LAYOUT = ArrayLayout(sample_rate_hz=500)
MANY_NLS = np.random.default_rng(0).normal(size=(5, 12, 300)).astype("f4")
ONE_LS = MANY_NLS[0]


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array


def write(folder, name, **arrays):
    """Write arrays in the format of the name's ending."""
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, *arrays.values())
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays, do_compression=True)
    else:
        write_hdf5(path, **arrays)
    return path


def read(folder, name, layout=LAYOUT):
    return read_recording(find_recording(folder, name), layout)


def refusal(folder, name, layout=LAYOUT):
    with pytest.raises(RecordError) as caught:
        read(folder, name, layout)
    message = str(caught.value)
    assert message.isprintable()
    return caught.value.reason, message


KINDS = ["a.npy", "a.npz", "a.h5", "a.HDF5", "a.mat"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("axes", ["leads,samples", "samples,leads"])
def test_every_file_format_gives_the_same_array(tmp_path, name, axes):
    write(tmp_path, name, x=ONE_LS if axes == "leads,samples" else ONE_LS.T)
    layout = ArrayLayout(axes=axes, unit="uV", sample_rate_hz=400)
    recording = read(tmp_path, name, layout)
    np.testing.assert_allclose(recording.signal_LS, ONE_LS / 1000, rtol=1e-6)
    assert (recording.signal_LS.dtype, recording.sample_rate_hz) == (np.float64, 400.0)


@pytest.mark.parametrize("name", KINDS)
def test_in_every_format_a_wrong_axis_order_is_reported_with_its_fix(tmp_path, name):
    write(tmp_path, name, x=ONE_LS.T)
    reason, message = refusal(tmp_path, name)
    assert reason == "leads"
    assert "got (300, 12); arrays stored as (samples, leads) need --axes samples,leads" in message


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.mat"])
def test_among_several_arrays_the_only_plausible_one_is_read(tmp_path, name):
    write(tmp_path, name, age=np.array([[60.0]]), ecg=ONE_LS, other=ONE_LS + 1)
    np.testing.assert_array_equal(read(tmp_path, name).signal_LS, ONE_LS)
    write(tmp_path, name, age=np.array([[60.0]]), other=ONE_LS)
    np.testing.assert_array_equal(read(tmp_path, name).signal_LS, ONE_LS)
    write(tmp_path, name, one=ONE_LS, two=ONE_LS + 1)
    reason, message = refusal(tmp_path, name)
    assert reason == "unreadable"
    assert f"which array? It holds one (12, 300), two (12, 300); write {name}::NAME" in message
    np.testing.assert_array_equal(read(tmp_path, f"{name}::two").signal_LS, ONE_LS + 1)
    assert refusal(tmp_path, f"{name}::three")[0] == "not found"


@pytest.mark.parametrize("shape", [(5, 12, 300), (5, 12, 300, 1)])
@pytest.mark.parametrize("name", ["X.npy", "X.h5"])
def test_a_row_of_an_array_of_many_is_one_recording(tmp_path, name, shape):
    write(tmp_path, name, tracings=MANY_NLS.reshape(shape), exam_id=np.arange(5))
    for row in range(5):
        recording = read(tmp_path, name_of_row(name, row))
        np.testing.assert_array_equal(recording.signal_LS, MANY_NLS[row])
    assert refusal(tmp_path, f"{name}::5") == (
        "not found",
        f"{name}: row 5 of an array with rows 0 to 4",
    )
    assert "of an array of many write FILE::ROW" in refusal(tmp_path, name)[1] or shape[3:]
    assert refusal(tmp_path, f"{name}::-1")[0] == "not found"


def test_a_name_may_combine_group_dataset_and_row(tmp_path):
    write_hdf5(tmp_path / "X.h5", g__x=MANY_NLS, y=MANY_NLS + 1)
    np.testing.assert_array_equal(read(tmp_path, "X.h5::g/x::2").signal_LS, MANY_NLS[2])
    np.testing.assert_array_equal(read(tmp_path, "X.h5::y::2").signal_LS, MANY_NLS[2] + 1)


@pytest.mark.slow
def test_rows_of_a_large_array_cost_no_memory(tmp_path):
    shape = (100_000, 12, 2500)
    with (tmp_path / "X.npy").open("wb") as file:
        header = {"descr": "<i2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * int(np.prod(shape)))  # 6 GB of zeros
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in range(0, 100_000, 997):
        assert read(tmp_path, f"X.npy::{row}").signal_LS.shape == (12, 2500)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_rows_of_packed_arrays_are_refused_because_each_would_unpack_the_whole(tmp_path):
    write(tmp_path, "X.npz", x=MANY_NLS)
    reason, message = refusal(tmp_path, "X.npz::1")
    assert reason == "unreadable"
    assert "save all as one .npy or HDF5 array" in message


def test_deepecgs_mat_files_state_their_rate(tmp_path):
    write(tmp_path, "a.mat", feats=ONE_LS, curr_sample_rate=250, label=np.zeros(12))
    recording = read(tmp_path, "a.mat", ArrayLayout())
    assert recording.sample_rate_hz == 250
    np.testing.assert_array_equal(recording.signal_LS, ONE_LS)
    assert read(tmp_path, "a.mat", LAYOUT).sample_rate_hz == 250  # the file overrides the layout


def test_a_challenge_mat_without_its_header_is_not_taken_for_millivolts(tmp_path):
    write(tmp_path, "a.mat", val=ONE_LS)
    assert refusal(tmp_path, "a.mat") == ("not found", "a.mat: its header a.hea is not beside it")


@pytest.mark.parametrize("unit, millivolts", [("4.88uV", 0.00488), ("0.00488 mV", 0.00488)])
def test_a_unit_may_give_the_size_of_a_count(tmp_path, unit, millivolts):
    write(tmp_path, "a.npy", x=ONE_LS)
    recording = read(tmp_path, "a.npy", ArrayLayout(unit=unit, sample_rate_hz=500))
    np.testing.assert_allclose(recording.signal_LS, ONE_LS * millivolts, rtol=1e-6)


@pytest.mark.parametrize("unit", ["0uV", "-1mV", "4.88", "uV4", "", "4.88mmHg"])
def test_a_unit_that_is_not_a_voltage_is_refused(unit):
    with pytest.raises(ValueError, match="unit must be one of mV, uV or V"):
        ArrayLayout(unit=unit)


# Hostile files


def npz_claiming(path, shape, content=b"", dtype="<f8"):
    member = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.npy", member.getvalue() + content)


def test_an_npz_that_claims_too_much_is_refused_before_it_is_unpacked(tmp_path):
    npz_claiming(tmp_path / "a.npz", (12, 10**12))
    reason, message = refusal(tmp_path, "a.npz")
    assert (reason, "at most 5000000 are read" in message) == ("unreadable", True)
    npz_claiming(tmp_path / "a.npz", (12, 10**5), bytes(100))
    assert refusal(tmp_path, "a.npz")[0] == "unreadable"


def test_a_mat_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_stores, "MAX_BYTES", 4 << 20)
    packed = zlib.compress(bytes((4 << 20) + 1), 9)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    content = head + struct.pack("<2I", 15, len(packed)) + packed
    (tmp_path / "a.mat").write_bytes(content)
    assert refusal(tmp_path, "a.mat") == ("unreadable", "a.mat: unpacks to more than 4 MB")


def test_nothing_is_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    objects = np.empty((12, 3), object)
    objects[:] = Harm()
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", ecg=objects)
    for name in ("a.npy", "b.npz"):
        assert refusal(tmp_path, name)[0] == "unreadable"
    assert not (tmp_path / "harm").exists()


def test_hdf5_whose_data_lie_in_other_files_is_refused(tmp_path):
    write_hdf5(tmp_path / "other.h5", x=ONE_LS)
    (tmp_path / "raw").write_bytes(ONE_LS.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        file.create_dataset("raw", ONE_LS.shape, "f4", external=[(str(tmp_path / "raw"), 0, 14400)])
        virtual = h5py.VirtualLayout(ONE_LS.shape, "f4")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", ONE_LS.shape)
        file.create_virtual_dataset("virtual", virtual)
    for name in ("linked", "raw", "virtual"):
        reason, message = refusal(tmp_path, f"a.h5::{name}")
        assert (reason, "its data lie in another file" in message) == ("unreadable", True)


def test_a_chunk_of_hdf5_that_unpacks_to_gigabytes_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "x", (10_000, 12, 300), "f8", chunks=(10_000, 12, 300), compression="gzip"
        )
    assert "are too large" in refusal(tmp_path, "a.h5::3")[1]


def test_matlab_7_3_is_refused_with_a_hint(tmp_path):
    content = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(content + bytes(400))
    assert "save it with -v7" in refusal(tmp_path, "a.mat")[1]


def test_without_h5py_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    write_hdf5(tmp_path / "a.h5", x=ONE_LS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'hpc-ecg[formats]'" in refusal(tmp_path, "a.h5")[1]


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(["a.npy", "a.npz", "a.mat"]))
def test_a_damaged_array_file_raises_nothing_but_a_record_error(tmp_path, data, name):
    path = write(tmp_path, name, ecg=ONE_LS[:, :20])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.sampled_from([0, 1, 4, 100]))
        content[start:end] = data.draw(st.binary(max_size=6) | st.just(b"9" * 9))
    path.write_bytes(bytes(content))
    try:
        recording = read(tmp_path, name)
    except RecordError as error:
        assert str(error).isprintable()
    else:
        assert recording.signal_LS.shape[0] == 12


def test_text_that_one_file_holds_once_and_names_often_is_not_read_a_thousand_times(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(array_files, "MAX_BYTES", 32 << 20)
    path, count = tmp_path / "x.h5", 1000
    with h5py.File(path, "w") as file:
        file["ecg"] = np.zeros((count, 12, 10), np.float32)
        file["id"] = np.array([f"p{n}" for n in range(count)], dtype=h5py.string_dtype())
        file["note"] = np.array(["x" * (1 << 20)] * 2 + [""] * (count - 2), h5py.string_dtype())
        start = file["note"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 16 * count] = content[start : start + 16] * count
    path.write_bytes(content)
    found = array_files.read_beside(RecordLocation(path=path), ArrayLayout())
    assert found == (count, {"id": [f"p{n}" for n in range(count)]})
    assert "x.h5: note takes over 32 MB: it is not compared with the table" in caplog.text


@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
def test_a_small_file_of_a_huge_recording_is_refused_by_its_size(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(array_files, "MAX_BYTES", 1 << 20)
    path = tmp_path / f"x.{ending}"
    for length, is_read in ((10_000, True), (11_000, False)):
        values = np.zeros((12, length), np.int8)
        if ending == "npy":
            np.save(path, values)
        elif ending == "npz":
            np.savez_compressed(path, ecg=values)
        else:
            with h5py.File(path, "w") as file:
                file.create_dataset("ecg", data=values, compression="gzip")
        layout = ArrayLayout(sample_rate_hz=500)
        if is_read:
            assert array_files.read_array(RecordLocation(path=path), layout).signal_LS.shape[1]
            continue
        with pytest.raises(RecordError, match="11000 samples of 12 leads are 1 MB; at most 1 MB"):
            array_files.read_array(RecordLocation(path=path), layout)
