"""Arms: strategies with a grid's values, whose names are folders."""

import pytest

from hpc_ecg.config.dotted_keys import nest
from hpc_ecg.sweep.arms import arms_of
from hpc_ecg.sweep.grid import load_sweep


def names(grid):
    return [arm.name for arm in arms_of(["a", "b"], grid)]


def test_without_a_grid_an_arm_is_its_strategy():
    assert names({}) == ["a", "b"]


def test_each_strategy_runs_with_each_combination_however_the_key_is_written():
    expected = ["a,lr=1e-05,label_fraction=0.1", "a,lr=1e-05,label_fraction=1"]
    expected += [name.replace("1e-05", "0.001") for name in expected]
    grid = {"optim.lr": [1e-5, 1e-3], "data": {"label_fraction": [0.1, 1]}}
    assert names(grid)[:4] == expected and len(names(grid)) == 8
    assert arms_of(["a"], grid)[0].varied == {"optim.lr": 1e-5, "data.label_fraction": 0.1}


def test_an_arms_name_is_a_valid_folder_and_distinguishes_its_keys():
    grid = {"a.lr": [1], "b.lr": [2], "c": [[3, 4]]}
    assert names(grid)[0] == "a,a.lr=1,b.lr=2,c=3-4"


def test_dotted_keys_become_nested_sections():
    assert nest({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"optim.lr": 1e-5}, r"grid.optim.lr must be a list of values, got 1e-05"),
        ({"optim.lr": []}, "must be a list"),
        ({"optim.lr": [1, 1]}, "has an entry twice"),
        ({"seed": [1]}, "grid.seed is set by the sweep for each run"),
        ({"a": ["x y", "x/y"]}, "two arms would be called a,a=x-y"),
    ],
)
def test_a_malformed_grid_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        arms_of(["a", "b"], grid)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("grid.optim.lrr=[1]", r"unknown setting optim.lrr .*grid.*did you mean optim.lr"),
        ("grid.optim.lr=[-1]", "optim.lr must be positive"),
        ("tune_trials=3", "tune_trials has no effect without tune"),
        ("tune.optim.lr=[1,2] tune_seed=0", "tune_seed=0 must be a seed outside of"),
        ("tune.optim.lr=[1,2] grid.optim.lr=[1,2]", "grid and tune both set optim.lr"),
        ("slurm.nodes=0", "slurm.nodes must be at least 1, got 0"),
        ("slurm.partitio=x", "unknown setting slurm.partitio .*did you mean slurm.partition"),
    ],
)
def test_a_mistake_shows_when_the_settings_are_read(word, message):
    words = ["sweep_dir=s", "run.data.shards=d", "strategies=[random]"]
    with pytest.raises(ValueError, match=message):
        load_sweep([], [*words, "strategy_dir=configs/strategies", *word.split()])
