"""Manifests of fairseq-signals: each form becomes the table that it means, whatever its name."""

import numpy as np
import pandas as pd
import pytest
import scipy.io

from hpc_ecg.cohort.manifest import is_manifest, read_manifest
from hpc_ecg.cohort.table import Columns, read_cohort, read_table
from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording

X_NSL = np.random.default_rng(0).integers(-500, 500, (4, 2500, 12)).astype("i2")
Y_NK = np.array([[0, 1, 0.5], [1, 0, np.nan], [0, 0, 2], [1, 1, 3]])


@pytest.fixture
def mats(tmp_path):
    root = tmp_path / "mats"
    (root / "site").mkdir(parents=True)
    for row in range(3):
        content = {"feats": X_NSL[row].T / 1000, "curr_sample_rate": 250, "patient_id": 7 + row}
        content["label"] = np.array([row == 1, True])
        scipy.io.savemat(root / "site" / f"{row}.mat", content)
    return root


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    assert is_manifest(path)
    return path


def test_a_list_of_mat_files_takes_labels_and_patients_from_them(tmp_path, mats):
    lines = [f"site/{row}.mat\t2500" for row in range(3)]
    path = write(tmp_path / "valid.tsv", str(mats), *lines, "site/gone.mat\t2500")
    manifest = read_manifest(path, read_table)
    assert (manifest.root, manifest.axes, manifest.unit) == (mats, "leads,samples", "mV")
    table = manifest.table
    assert table["file"].tolist() == ["site/0.mat", "site/1.mat", "site/2.mat", "site/gone.mat"]
    assert table["label_0"].tolist() == ["0", "1", "0", ""]
    assert table["patient_id"].tolist() == ["7", "8", "9", ""]
    assert set(table["split"]) == {"valid"}
    recording = read_recording(find_recording(mats, table["file"][2]), ArrayLayout())
    np.testing.assert_allclose(recording.signal_LS, X_NSL[2].T / 1000)


def test_a_list_with_patients_keeps_them(tmp_path):
    path = write(tmp_path / "any.name", "/no/such/root", "a.mat\t2500\t17", "b.mat\t2500\t17")
    table = read_manifest(path, read_table).table
    assert table.to_dict("list") == {"file": ["a.mat", "b.mat"], "patient_id": ["17", "17"]}


@pytest.fixture
def arrays(tmp_path):
    np.save(tmp_path / "x.npy", X_NSL[..., None])
    np.save(tmp_path / "y.npy", Y_NK)
    return tmp_path


@pytest.mark.parametrize("between", [":", "\t"])
def test_one_array_of_all_recordings_is_addressed_by_row(arrays, between):
    pairs = {"x_path": arrays / "x.npy", "x_shape": "(4, 2500, 12)", "y_path": arrays / "y.npy"}
    pairs |= {"label_indexes": "[2, 0]", "scale": "0.00488"}
    path = write(arrays / "train.tsv", *(f"{key}{between}{value}" for key, value in pairs.items()))
    manifest = read_manifest(path, read_table)
    assert manifest.table["file"].tolist() == [f"x.npy::{row}" for row in range(4)]
    assert manifest.table["label_2"].tolist() == ["0.5", "", "2", "3"]
    assert manifest.table["label_0"].tolist() == ["0", "1", "0", "1"]
    layout = ArrayLayout(axes=manifest.axes, unit=manifest.unit, sample_rate_hz=250)
    recording = read_recording(find_recording(manifest.root, manifest.table["file"][3]), layout)
    np.testing.assert_allclose(recording.signal_LS, X_NSL[3].T * 0.00488)


def test_arrays_that_moved_are_found_beside_the_manifest(arrays):
    path = write(arrays / "train.tsv", "x_path:/elsewhere/x.npy", "y_path:/elsewhere/y.npy")
    manifest = read_manifest(path, read_table)
    assert manifest.root == arrays
    assert manifest.table.columns.tolist() == ["file", "label_0", "label_1", "label_2", "split"]


def test_a_table_of_arrays_keeps_its_columns(tmp_path):
    table = pd.DataFrame({"npy_path": ["a.npy", "b.npy"], "af": [1, 0], "mrn": ["p", "q"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    path = write(tmp_path / "test.tsv", f"x_path:{tmp_path / 't.csv'}", "y_labels:['af']")
    manifest = read_manifest(path, read_table)
    assert manifest.axes == "samples,leads"
    assert manifest.table.to_dict("list") == {
        "file": ["a.npy", "b.npy"],
        "af": ["1", "0"],
        "mrn": ["p", "q"],
        "split": ["test", "test"],
    }


def test_a_manifest_is_read_wherever_a_table_is(tmp_path, mats):
    path = write(tmp_path / "train.tsv", str(mats), "site/0.mat\t2500", "site/1.mat\t2500")
    cohort = read_cohort(path, Columns(labels=["label_0", "label_1"], patient="patient_id"))
    assert cohort.files.tolist() == ["site/0.mat", "site/1.mat"]
    assert cohort.labels_NK.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    "text",
    ["file\taf\na\t1\n", "file,af\na,1\n", "x_path,af\na,1\n", "", "\n", "file\n", "/root\n"],
)
def test_other_tables_are_not_manifests(tmp_path, text):
    (tmp_path / "train.tsv").write_text(text)
    assert not is_manifest(tmp_path / "train.tsv")


@pytest.mark.parametrize(
    "lines, says",
    [
        (["/root", "a.mat\t5", "b.mat"], "line 3: expected a file, a tab, a number of samples"),
        (["/root", "a.mat\t5", "b.mat\tx"], "line 3: expected a file, a tab"),
        (
            ["x_path:x.npy", "what:1"],
            "line 2: expected a colon between a value and one of aux_path",
        ),
        (["x_path:gone.npy"], "x_path gone.npy: no such file, nor beside the manifest"),
        (["y_path:y.npy"], "no line x_path:"),
        (["x_path:x.npy", "normalization:s.pkl"], "normalization is a pickle"),
        (["x_path:x.npy", "scale:__import__('os').getcwd()"], "scale must be a number or a list"),
        *(
            (["x_path:x.npy", line], f"{line.partition(':')[0]} must be a number or a list")
            for line in (
                *("label_indexes:5", "label_indexes:[True]", "label_indexes:[[0]]", "scale:[1]"),
                *("scale:'a'", "scale:True", "y_labels:5", "y_labels:[1]", "y_labels:'af'"),
            )
        ),
        (["x_path:x.npy", "y_path:y.npy", "label_indexes:[3]"], "the columns 0 to 2"),
        (["x_path:x.npy", "y_path:x.npy"], "expected (4, labels)"),
    ],
)
def test_an_invalid_manifest_is_refused_in_one_line(arrays, lines, says):
    path = write(arrays / "m.tsv", *lines)
    with pytest.raises(ValueError, match=r"m\.tsv") as caught:
        read_manifest(path, read_table)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
