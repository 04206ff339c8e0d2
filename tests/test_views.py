"""Folds and labels that a run chooses for itself."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import reseal

from hpc_ecg.data.dataset import DataConfig, open_shards
from hpc_ecg.data.views import choose_fold, replace_labels


@pytest.fixture
def index():
    return pd.DataFrame(
        {
            "key": ["00000000", "00000001", "00000002-000", "00000002-001"],
            "record": ["a", "b", "c-000", "c-001"],
            "split": ["train", "valid", "test", "test"],
            "fold.0": np.array([0, 1, 2, 2], np.int8),
            "fold.1": np.array([1, 2, 0, 0], np.int8),
            "label.af": [0.0, 1.0, np.nan, np.nan],
        }
    )


def test_each_fold_tests_once_and_the_next_one_validates(index):
    seen = [choose_fold(index, fold, 0)["split"].tolist() for fold in range(3)]
    assert seen == [
        ["test", "valid", "train", "train"],
        ["train", "test", "valid", "valid"],
        ["valid", "train", "test", "test"],
    ]
    assert choose_fold(index, 0, 1)["split"].tolist() == ["valid", "train", "test", "test"]
    assert index["split"].tolist() == ["train", "valid", "test", "test"]  # a copy was changed


def test_a_fold_that_is_not_there_is_refused_with_what_is(index):
    with pytest.raises(ValueError, match=r"data.fold=3: these shards have 3 folds"):
        choose_fold(index, 3, 0)
    with pytest.raises(ValueError, match=r"data.repeat=2: these shards have 2 repeats"):
        choose_fold(index, 0, 2)
    with pytest.raises(ValueError, match="these shards have no folds"):
        choose_fold(index.drop(columns=["fold.0", "fold.1"]), 0, 0)


def write(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_labels_of_a_table_take_the_place_of_the_shards_own(index, tmp_path, caplog):
    path = write(tmp_path, "record,flutter,other\nc,1,2\nb,,3\nunknown,0,4\n")
    changed, names = replace_labels(index, path, ["flutter"])
    assert names == ["flutter"] and "label.af" not in changed
    # not listed, listed without one, and both windows of a recording
    np.testing.assert_array_equal(changed["label.flutter"], [np.nan, np.nan, 1, 1])
    assert "does not list 1 of 4 records" in caplog.text
    assert replace_labels(index, path, [])[1] == ["flutter", "other"]


def test_a_table_of_labels_may_hold_a_sex_that_shards_would_refuse(index, tmp_path):
    path = write(tmp_path, "record,af,sex\na,1,M\nb,0,1\nc,1,W\n")
    changed, _ = replace_labels(index, path, ["af"])
    np.testing.assert_array_equal(changed["label.af"], [1, 0, 1, 1])


def test_a_table_of_labels_that_does_not_fit_is_refused_in_one_line(index, tmp_path):
    for text, names, expected in [
        ("record\na\n", [], "has no column but record"),
        ("record,af\nz,1\n", [], "lists no record of the shards; its column record must hold what"),
        ("record,af\na,1\na,0\n", [], "a"),
        ("record,af\na,yes\n", [], "yes"),
        ("record,af\na,1\n", ["flutter"], "flutter"),
        ("name,af\na,1\n", [], "record"),
    ]:
        with pytest.raises(ValueError, match=expected) as caught:
            replace_labels(index, write(tmp_path, text), names)
        assert "\n" not in str(caught.value)


def test_a_run_sees_the_folds_and_the_labels_and_knows_that_they_are_other_data(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "set")
    table = pd.read_parquet(folder / "index.parquet")
    codes = table["patient"].astype("category").cat.codes.to_numpy()
    table["fold.0"] = (codes % 3).astype(np.int8)
    reseal(folder, table)
    labels = tmp_path / "labels.csv"
    pd.DataFrame({"record": table["record"], "odd": np.arange(len(table)) % 2}).to_csv(
        labels, index=False
    )
    plain, _ = open_shards(DataConfig(shards=str(folder)))
    config = DataConfig(shards=str(folder), fold=1, label_table=str(labels))
    opened, names = open_shards(config)
    assert names == ["odd"] and opened.index["label.odd"].mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(opened.index["split"] == "test", table["fold.0"] == 1)
    assert opened.index_sha256 != plain.index_sha256
    labels.write_text(labels.read_text().replace(",1\n", ",0\n", 1))
    assert open_shards(config)[0].index_sha256 != opened.index_sha256
