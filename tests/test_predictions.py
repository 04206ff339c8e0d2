"""The predictions file: what is written is read back, and a broken one is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import words_for
from test_metrics import make_predictions

from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.evaluation.predictions import read_predictions, write_predictions
from hpc_ecg.training.predict import as_predictions
from hpc_ecg.training.settings import FinetuneConfig


def test_predictions_survive_the_file(tmp_path):
    path = tmp_path / "predictions" / "test.parquet"
    predictions = make_predictions(labels=("afib", "afib.5y"), missing=3)
    write_predictions(path, predictions)
    back = read_predictions(path)
    assert back.labels == predictions.labels
    assert [p.name for p in path.parent.iterdir()] == ["test.parquet"]
    for name in ("record_N", "patient_N", "label_NK", "logit_NK", "probability_NK"):
        np.testing.assert_array_equal(getattr(back, name), getattr(predictions, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t[:1]]), "1 records appear more than once, such as 'r00000'"),
        (lambda t: t.drop(columns="afib.logit"), "no column afib.logit among"),
        (lambda t: t.drop(columns="afib.label"), "no column <name>.label among"),
        (lambda t: t.assign(patient=[None, *t["patient"][1:]]), "1 rows have no record or no pat"),
    ],
)
def test_a_broken_predictions_file_is_refused(tmp_path, change, message):
    path = tmp_path / "test.parquet"
    write_predictions(path, make_predictions(num=10))
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_groups_survive_the_file_and_follow_their_records(tmp_path):
    predictions = make_predictions(num=6)
    groups = {
        "age": np.array([70.0, np.nan, 40, 55, 81, 62]),
        "site": np.array([*"aab"] + [""] * 3),
    }
    shuffled = np.array([3, 1, 5, 0, 2, 4])
    mixed = replace(
        predictions,
        record_N=predictions.record_N[shuffled],
        groups={name: values_N[shuffled] for name, values_N in groups.items()},
    )
    write_predictions(tmp_path / "valid.parquet", mixed)
    back = read_predictions(tmp_path / "valid.parquet").sorted()
    np.testing.assert_array_equal(back.groups["age"], groups["age"])
    assert back.groups["site"].tolist() == groups["site"].tolist()
    assert back.labels == ["afib"]


def test_a_file_without_groups_is_read(tmp_path):
    write_predictions(tmp_path / "test.parquet", make_predictions(num=10))
    assert read_predictions(tmp_path / "test.parquet").groups == {}


def test_a_group_of_another_length_is_refused():
    with pytest.raises(ValueError, match="group age: 3 values for 10 records"):
        replace(make_predictions(num=10), groups={"age": np.zeros(3)})


def test_the_index_gives_groups_and_no_identifiers(shards, tmp_path):
    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path))
    opened, labels = open_shards(config.data)
    test = open_split(opened, "test", labels)
    predictions = as_predictions(test, np.zeros((len(test), 1)), "binary")
    assert {"age", "sex"} <= set(predictions.groups)
    assert not {"record", "patient", "key", "sha256", "label.af"} & set(predictions.groups)
    index = opened.index.set_index("record")
    assert predictions.groups["age"].tolist() == index.loc[test.records, "age"].tolist()
