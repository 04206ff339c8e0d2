"""One split of a set of shards: the checks before a training, and the signals by position."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import reseal

from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.shards.format import read_shard_set, shard_name


@pytest.fixture
def doctored(shards, tmp_path):
    """A function that edits the index of a copy, as somebody who also mends the digest would."""

    def edit(change, labels=("af",)):
        folder = shutil.copytree(shards, tmp_path / "doctored")
        index = pd.read_parquet(folder / "index.parquet")
        change(index)
        reseal(folder, index, labels=list(labels))
        return folder

    return edit


def with_label(name, values):
    def change(index):
        index[f"label.{name}"] = np.resize(np.array(values, float), len(index))

    return change


def config(folder, **settings):
    return DataConfig(shards=str(folder), **settings)


def refusal(folder, **settings):
    with pytest.raises(ValueError) as caught:
        open_shards(config(folder, **settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Settings


def test_a_task_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match=r"data.task must be one of binary, multilabel, regression"
    ):
        DataConfig(shards="x", task="survival")


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"data.batch_size must be at least 1, got 0"):
        DataConfig(shards="x", batch_size=0)


# Labels and task


def test_all_labels_are_used_unless_some_are_named(doctored):
    folder = doctored(with_label("flutter", [0, 1, np.nan]), labels=["af", "flutter"])
    assert open_shards(config(folder, task="multilabel"))[1] == ["af", "flutter"]
    assert open_shards(config(folder, labels=["flutter"]))[1] == ["flutter"]
    names = open_shards(config(folder, task="multilabel", labels=["flutter", "af"]))[1]
    assert names == ["flutter", "af"]
    dataset = open_split(read_shard_set(folder), "train", names)
    index = pd.read_parquet(folder / "index.parquet").query("split == 'train'")
    np.testing.assert_array_equal(dataset.labels_NK, index[["label.flutter", "label.af"]])


def test_a_binary_task_needs_one_label(doctored):
    folder = doctored(with_label("flutter", [0, 1]), labels=["af", "flutter"])
    assert "data.task=binary needs one label, got 2 (af, flutter)" in refusal(folder)


def test_an_unknown_label_is_named_with_those_that_there_are(shards):
    assert "data.labels: flutter not in" in refusal(shards, labels=["flutter"])
    assert "which has af" in refusal(shards, labels=["af", "flutter"])


def test_a_label_named_twice_is_refused(shards):
    assert "has a label twice" in refusal(shards, labels=["af", "af"], task="multilabel")


@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("value", [2, 0.5, -1])
def test_a_class_label_is_zero_one_or_missing(doctored, task, value):
    def change(index):
        index.loc[3, "label.af"] = value

    message = refusal(doctored(change), task=task)
    assert (
        f"label af does not fit data.task={task}: row 4 has {value:g} (1 such records)" in message
    )


def test_a_regression_takes_any_number(doctored):
    folder = doctored(with_label("lvef", [61.5, -3, np.nan]), labels=["lvef"])
    shards, names = open_shards(config(folder, task="regression"))
    assert open_split(shards, "valid", names).labels_NK.dtype == np.float32


def test_a_wrong_value_in_a_label_that_is_not_used_does_no_harm(doctored):
    folder = doctored(with_label("lvef", [61.5]), labels=["af", "lvef"])
    assert open_shards(config(folder, labels=["af"]))[1] == ["af"]


# Splits


def test_an_empty_split_is_refused_with_the_counts(doctored):
    def change(index):
        index.loc[index["split"] == "valid", "split"] = "train"

    shards, names = open_shards(config(doctored(change)))
    with pytest.raises(ValueError, match=r"split valid of .* is empty"):
        open_split(shards, "valid", names)


def test_a_label_that_is_missing_throughout_a_split_is_refused(doctored):
    def change(index):
        index.loc[index["split"] == "test", "label.af"] = np.nan

    shards, names = open_shards(config(doctored(change)))
    open_split(shards, "train", names)
    with pytest.raises(ValueError, match="label af is missing in every record of split test"):
        open_split(shards, "test", names)


def test_a_patient_in_two_splits_stops_the_training_too(doctored):
    def change(index):
        train, test = (index.index[index["split"] == split][0] for split in ("train", "test"))
        index.loc[test, "patient"] = index.loc[train, "patient"]

    assert "one patient in two splits: row " in refusal(doctored(change))


def test_an_identical_signal_in_two_splits_stops_the_training_too(doctored):
    def change(index):
        train, test = (index.index[index["split"] == split][0] for split in ("train", "test"))
        index.loc[test, "sha256"] = index.loc[train, "sha256"]

    assert "an identical signal in two splits: row " in refusal(doctored(change))


# Reading


def test_a_split_holds_its_records_and_no_others(shards):
    found = read_shard_set(shards)
    splits = {split: open_split(found, split, ["af"]) for split in ("train", "valid", "test")}
    assert sum(len(dataset) for dataset in splits.values()) == len(found.index)
    for split, dataset in splits.items():
        rows = found.index[found.index["split"] == split]
        assert dataset.records == rows["record"].tolist()
        assert dataset.patients == rows["patient"].tolist()


def test_signals_are_read_by_position_in_any_order(shards):
    found = read_shard_set(shards)
    dataset = open_split(found, "train", ["af"])
    rows = found.index[found.index["split"] == "train"].reset_index(drop=True)
    assert rows["shard"].nunique() > 1
    positions = np.array([len(dataset) - 1, 0, 7, 0])
    counts_NCS = dataset.read(positions)
    assert counts_NCS.shape == (4, 12, 2500) and counts_NCS.dtype == np.int16
    for counts_CS, position in zip(counts_NCS, positions, strict=True):
        row = rows.iloc[position]
        path = shards / shard_name(row["shard"])
        expected = np.fromfile(path, "<i2", 30_000, offset=row["offset"])
        np.testing.assert_array_equal(counts_CS.ravel(), expected)
    counts_NCS[0] = 0  # the caller's own, not the file's
    assert dataset.read(positions[:1]).any()
