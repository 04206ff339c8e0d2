"""Runs of one strategy are one configuration; strategies are compared on the same data."""

import pytest

from hpc_ecg.comparison.run_settings import check_comparable, compare_settings

BASE = {
    "seed": 0,
    "data.batch_size": 8,
    "optim.lr": 0.1,
    "init.head": "new",
    "loss.pos_weight": None,
}
BASE["data_index_sha256"] = "ab"


def run(strategy, seed, **changes):
    settings = BASE | {"seed": seed} | {key.replace("__", "."): v for key, v in changes.items()}
    return f"{strategy}/seed-{seed}", strategy, settings


def test_seeds_and_neutral_settings_may_differ():
    others = run("a", 1, engine__cpu_threads=3), run("b", 0, data__batch_size=9)
    check_comparable([run("a", 0), *others])


def test_a_strategy_of_two_configurations_is_refused_with_both_names():
    with pytest.raises(ValueError, match=r"a/seed-0 and a/seed-2 .* optim.lr: 0.1 and 0.3"):
        check_comparable([run("a", 0), run("a", 2, optim__lr=0.3)])


@pytest.mark.parametrize("change", [{"data_index_sha256": "cd"}, {"data__labels": ["af"]}])
def test_strategies_trained_on_other_data_are_refused(change):
    with pytest.raises(ValueError, match=r"a/seed-0 and b/seed-0 were trained on other data"):
        check_comparable([run("a", 0), run("b", 0, **change)])


def test_settings_are_listed_where_they_differ_and_where_they_agree():
    rows, shared = compare_settings({"a": BASE, "b": BASE | {"init.head": "keep"}})
    assert rows == [("init.head", ["new", "keep"])]
    staged, _ = compare_settings(
        {"a": BASE | {"train.stages": {}}, "b": BASE | {"train.stages.probe.lr": 0.1}}
    )
    assert staged == [("train.stages.probe.lr", ["–", "0.1"])]  # only the second one has it
    assert shared == ["data.batch_size = 8", "optim.lr = 0.1"]
