"""A share of the training patients: nested, by patient alone, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
from test_sweep import words_of_sweep

from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.data.views import keep_label_fraction
from hpc_ecg.sweep.grid import load_sweep

SHARES = (0.01, 0.1, 0.5, 1.0)


@pytest.fixture
def index(rng):
    """3,000 records of 1,000 patients; a tenth of the training patients has no label."""
    patient = np.repeat([f"p{i:04d}" for i in range(1000)], 3)
    split = np.repeat(["train"] * 600 + ["valid"] * 200 + ["test"] * 200, 3).astype(object)
    label = rng.integers(0, 2, 3000).astype(float)
    label[:180] = np.nan
    return pd.DataFrame({"patient": patient, "split": split, "label.af": label})


def patients(index, split="train"):
    return set(index["patient"][index["split"] == split])


def test_a_share_is_of_the_patients_with_a_label_and_a_smaller_one_is_part_of_it(index):
    kept = [patients(keep_label_fraction(index, ["af"], share, True)) for share in SHARES]
    assert [len(own) for own in kept] == [6, 54, 270, 540]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    assert not kept[3] & {f"p{i:04d}" for i in range(60)}, "those have no label"


def test_who_is_kept_depends_on_the_patient_alone(index, rng):
    shuffled = index.iloc[rng.permutation(len(index))]
    assert patients(keep_label_fraction(index, ["af"], 0.1, True)) == patients(
        keep_label_fraction(shuffled, ["af"], 0.1, True)
    )
    first = [int(name[1:]) for name in patients(keep_label_fraction(index, ["af"], 0.1, True))]
    assert 250 < np.mean(first) < 410, "and not on where they stand"


def test_the_other_splits_are_whole(index):
    changed = keep_label_fraction(index, ["af"], 0.01, True)
    for split in ("valid", "test"):
        assert (changed["split"] == split).sum() == 600
    assert patients(changed, "left_out") == patients(index) - patients(changed)
    assert (index["split"] == "left_out").sum() == 0, "a copy was changed"


def test_a_share_without_a_positive_patient_is_refused(index):
    one = index.assign(**{"label.af": 0.0})
    one.loc[one["patient"] == "p0100", "label.af"] = 1.0
    with pytest.raises(ValueError, match=r"=0.01 leaves 6 of 600 .* none that is positive for af"):
        keep_label_fraction(one, ["af"], 0.01, True)
    keep_label_fraction(one, ["af"], 0.01, False)  # regression


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_above_0_and_up_to_1(share):
    with pytest.raises(ValueError, match=r"data.label_fraction must be in \(0, 1\]"):
        DataConfig(shards="s", label_fraction=share)


def test_runs_of_all_seeds_and_strategies_train_on_the_same_patients(shards, tmp_path):
    names = "strategies=[ssl_new_head,afib_keep_head]"
    words = words_of_sweep(shards, tmp_path, names, "grid.data.label_fraction=[0.5,1]")
    cells = load_sweep([], [*words, "seeds=[0,1]"]).cells
    assert len(cells) == 8
    seen = {}
    for cell in cells:
        opened, labels = open_shards(cell.run.data)
        trained = open_split(opened, "train", labels).records
        assert seen.setdefault(cell.arm.varied["data.label_fraction"], trained) == trained
    assert set(seen[0.5]) < set(seen[1])
