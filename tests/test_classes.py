"""A class that a split lacks is said where shards are made and looked at, and stops a training."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for, words_for

from hpc_ecg.cli import main
from hpc_ecg.data.dataset import check_classes, open_shards
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.shards.classes import describe_lacks, find_lacks
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.inspection import inspect_shards, write_page
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.launch import prepare_sweep

NO_POSITIVE, NO_NEGATIVE, NOTHING = "no positive", "no negative", "no record with label"
VALUES = {NO_POSITIVE: 0.0, NO_NEGATIVE: 1.0, NOTHING: np.nan}


def index_of(**labels):
    """Ten records of each split; each label is 0, 1, 0, 1 … but where (split, value) says more."""
    split = np.repeat(["train", "valid", "test"], 10).astype(object)
    index = pd.DataFrame({"split": split, "patient": [f"p{n}" for n in range(30)]})
    for name, changed in labels.items():
        values = np.resize([0.0, 1.0], 30)
        for where, value in changed.items():
            values[split == where] = value
        index[f"label.{name}"] = values
    return index


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("missing", VALUES)
def test_what_a_split_lacks_is_named_with_its_count(split, missing):
    index = index_of(af={split: VALUES[missing]}, fine={})
    (lack,) = find_lacks(index, ["af", "fine"])
    assert str(lack).startswith(f"split {split} has {missing}")
    line, remedy = describe_lacks(index, ["af", "fine"])
    assert line.startswith(str(lack)) and "--stratify" in remedy
    assert ("(of 10)" in line) == (missing != NOTHING)


def test_a_label_of_other_numbers_has_no_classes_and_may_lack_only_values():
    index = index_of(age={"valid": 63.0}, other={"train": 0.5, "test": np.nan})
    assert [str(lack) for lack in find_lacks(index, ["age", "other"])] == [
        "split test has no record with label other"
    ]
    assert describe_lacks(index_of(af={}), ["af"]) == []


def test_each_fold_of_each_repeat_is_looked_at():
    index = index_of(af={"valid": 0.0})
    folds = {"train": 0, "valid": 1, "test": 2}
    index["fold.0"] = index["split"].map(folds)
    index["fold.1"] = np.arange(30) // 2 % 3
    line, _ = describe_lacks(index, ["af"])
    assert line.startswith("repeat 0, fold 1 has no positive record of label af (of 10)")


@pytest.fixture(scope="module")
def rare(cohort, tmp_path_factory):
    """The cohort with a second label that one patient has: shards, and what `data shard` said."""
    folder = tmp_path_factory.mktemp("rare")
    table = pd.read_csv(cohort)
    train = read_shard_set(_sharded(cohort, folder / "first")).index
    patient = train.loc[(train["split"] == "train"), "record"].iloc[0]
    owner = table.loc[table["record"] == patient, "patient_id"].iloc[0]
    table["rare"] = (table["patient_id"] == owner).astype(int)
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv", cohort.parent


def _sharded(table, out):
    shard_ecgs(plan_for(table, out))
    return out


def shard(table, signals, out, *more):
    words = [table, "--signals", signals, "--out", out, "--patient", "patient_id", "--workers", "1"]
    return main(["data", "shard", *map(str, words), "--fractions", "0.5,0.25,0.25", *more])


def test_shard_and_inspect_say_it_and_name_stratify(rare, tmp_path, capsys):
    table, signals = rare
    assert shard(table, signals, tmp_path / "set", "--label", "af", "--label", "rare") == 0
    said = capsys.readouterr().out
    expected = [
        f"split {split} has no positive record of label rare" for split in ("valid", "test")
    ]
    for line in (*expected, "make the shards with --stratify"):
        assert line in said
    assert "of label af" not in said
    assert main(["data", "inspect", str(tmp_path / "set"), "--no-verify"]) == 0
    said = capsys.readouterr().out
    for line in (*expected, "make the shards with --stratify"):
        assert line in said
    assert main(["data", "inspect", str(tmp_path / "set"), "--no-verify", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["lacks"]) == 3
    write_page(tmp_path / "x.html", inspect_shards(tmp_path / "set"), 0)
    warning = (tmp_path / "x.html").read_text().split('<ul class="warning"')[1].split("</ul>")[0]
    assert all(line in warning for line in expected) and "--stratify" in warning


def test_nothing_is_said_of_splits_that_hold_both_classes(shards, tmp_path):
    inspection = inspect_shards(shards, verify=False)
    assert inspection.facts["lacks"] == []
    write_page(tmp_path / "x.html", inspection, 0)
    assert "--stratify" not in (tmp_path / "x.html").read_text()


def table_of(shards, path, **labels):
    """A table of labels; `(split, value)` overwrites a label there."""
    index = read_shard_set(shards).index
    table = index[["record"]].copy()
    for name, changed in labels.items():
        table[name] = index["label.af"]
        for split, value in changed.items():
            table.loc[index["split"] == split, name] = value
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("missing", VALUES)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_a_class_stops_run_doctor_and_sweep(
    shards, tmp_path, capsys, split, missing
):
    table = table_of(shards, tmp_path / "labels.csv", af={split: VALUES[missing]})
    words = words_for(shards, tmp_path / "run", f"data.label_table={table}")
    reason = f"split {split} has {missing}"
    assert main(["finetune", *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert reason in line and "--stratify" in line
    assert main(["doctor", *words]) == 2
    assert reason in capsys.readouterr().out
    of_runs = [f"run.{word}" for word in words if not word.startswith("run_dir")]
    sweep = [*of_runs, f"sweep_dir={tmp_path / 's'}", "strategies=[random]"]
    with pytest.raises(ValueError, match=reason):
        prepare_sweep(load_sweep([], sweep))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv"]


def test_a_train_split_without_a_class_is_no_fault_where_nothing_trains(shards, tmp_path):
    table = table_of(shards, tmp_path / "labels.csv", af={"train": 0.0})
    words = words_for(shards, tmp_path / "run", f"data.label_table={table}", "train.max_epochs=0")
    assert main(["finetune", *words]) == 0


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_all_labels_of_several_must_be_missing_to_stop(split):
    def lines(**labels):
        shards = type("Shards", (), {"index": index_of(**labels), "name": "set"})
        return check_classes(
            shards, list(labels), DataConfig(shards="set", task="multilabel"), True
        )

    (line,) = lines(af={split: 0.0}, other={})
    assert line.startswith(f"split {split} has no positive record of label af (of 10)")
    with pytest.raises(ValueError, match=f"split {split} has no positive .* other"):
        lines(af={split: 0.0}, other={split: 1.0})


def test_a_run_without_a_test_split_is_not_stopped_for_it():
    index = index_of(af={"test": 0.0})
    shards = type("Shards", (), {"index": index[index["split"] != "test"], "name": "set"})
    assert check_classes(shards, ["af"], DataConfig(shards="set"), True) == []


def test_a_label_fraction_that_leaves_one_class_stops(shards, tmp_path):
    index = read_shard_set(shards).index
    train = index[index["split"] == "train"]
    opened, _ = open_shards(DataConfig(shards=str(shards), label_fraction=0.1))
    kept = opened.index.loc[opened.index["split"] == "train", "record"]
    table = index[["record"]].assign(af=index["label.af"])
    table.loc[index["record"].isin(kept), "af"] = 1.0
    assert len(kept) < len(train)
    table.to_csv(tmp_path / "labels.csv", index=False)
    config = DataConfig(
        shards=str(shards), label_table=str(tmp_path / "labels.csv"), label_fraction=0.1
    )
    opened, names = open_shards(config)
    with pytest.raises(ValueError, match="split train has no negative record of label af"):
        check_classes(opened, names, config, True)


@pytest.mark.parametrize("missing", VALUES)
def test_one_of_several_labels_is_left_out_of_the_scores_and_still_predicted(
    shards, tmp_path, caplog, capsys, missing
):
    value = VALUES[missing]
    lacking = {"valid": value, "test": value}
    table = table_of(shards, tmp_path / "labels.csv", af={}, other=lacking)
    more = (f"data.label_table={table}", "data.task=multilabel", "train.max_epochs=1")
    words = words_for(shards, tmp_path / "run", *more)
    with caplog.at_level(logging.WARNING, "hpc_ecg"):
        assert main(["finetune", *words]) == 0
    said = capsys.readouterr().err
    for split in ("valid", "test"):
        assert said.count(f"split {split} has {missing}") == 1
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(result["labels"]) == ["af"] and list(result["not_scored"]) == ["other"]
    assert result["macro"]["auroc"]["value"] == result["labels"]["af"]["auroc"]["value"]
    for split in ("valid", "test"):
        predictions = pd.read_parquet(tmp_path / "run" / "predictions" / f"{split}.parquet")
        assert predictions["other.probability"].notna().all()
    assert main(["doctor", *words_for(shards, tmp_path / "new", *more)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"warning data: split valid has {missing}") for line in lines)
