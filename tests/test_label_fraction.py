"""A share of the training patients: nested, by patient alone, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
from test_sweep import words_of_sweep

from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.data.views import keep_label_fraction
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.training.open_run import with_start
from hpc_ecg.training.settings import FinetuneConfig

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


def trained_on(cells):
    """The training records of each share, seed and strategy."""
    found = {}
    for cell in cells:
        opened, labels = open_shards(cell.run.data)
        own = open_split(opened, "train", labels).records
        found[cell.arm.varied["data.label_fraction"], cell.seed, cell.arm.base] = own
    return found


def words_of_shares(shards, folder):
    names = "strategies=[ssl_new_head,afib_keep_head]"
    return words_of_sweep(shards, folder, names, "grid.data.label_fraction=[0.3,0.6,1]")


def test_each_seed_draws_nested_shares_that_strategies_have_in_common(shards, tmp_path):
    cells = load_sweep([], [*words_of_shares(shards, tmp_path), "seeds=[0,1,2]"]).cells
    seen = trained_on(cells)
    for seed in (0, 1, 2):
        small, large, whole = (set(seen[f, seed, "ssl_new_head"]) for f in (0.3, 0.6, 1))
        assert small < large < whole
        for share in (0.3, 0.6, 1):
            assert seen[share, seed, "ssl_new_head"] == seen[share, seed, "afib_keep_head"]
    assert len({tuple(seen[0.3, seed, "ssl_new_head"]) for seed in (0, 1, 2)}) > 1
    assert {cell.run.data.label_seed for cell in cells if cell.seed == 2} == {2, None}


def test_a_folder_of_an_older_version_keeps_its_draw(shards, tmp_path):
    """Its config.yaml knows no label_seed: all seeds train on one draw, also those that follow."""
    (tmp_path / "ssl_new_head,label_fraction=0.3/seed-0").mkdir(parents=True)
    old = tmp_path / "ssl_new_head,label_fraction=0.3/seed-0/config.yaml"
    old.write_text("data: {label_fraction: 0.3}\ninit: {checkpoint: random}\n")
    cells = load_sweep([], [*words_of_shares(shards, tmp_path), "seeds=[0,1]"]).cells
    seen = {k: v for k, v in trained_on(cells).items() if k[0] == 0.3 and k[2] == "ssl_new_head"}
    assert len({tuple(own) for own in seen.values()}) == 1


def test_a_run_resumes_with_its_draw_and_says_so(shards, tmp_path, caplog):
    config = FinetuneConfig(
        run_dir=str(tmp_path), seed=3, data=DataConfig(shards=str(shards), label_fraction=0.5)
    )
    assert with_start(config).data.label_seed == 3
    (tmp_path / "config.yaml").write_text("data: {label_fraction: 0.5, label_seed: 3}\n")
    assert with_start(config).data.label_seed == 3
    (tmp_path / "config.yaml").write_text("data: {label_fraction: 0.5}\n")
    with caplog.at_level("INFO", "hpc_ecg"):
        assert with_start(config).data.label_seed is None
    assert "keeps its training patients, the same for all seeds" in caplog.text


def test_a_seed_without_a_share_is_refused():
    with pytest.raises(ValueError, match=r"data.label_seed=1 has no effect without data.label_fra"):
        DataConfig(shards="s", label_seed=1)
