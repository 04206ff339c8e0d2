"""What a user finds on disk stays: names of files, keys of JSON and YAML, columns of tables.

Short commands run on a copy of the folders of version 0.1. The files of a plain run are held in
test_finetune too, those of a converted .pt in test_weights_convert, the page of a report in
test_report; numbers stand in test_unchanged_numbers. Lists of JSON count as one item with the keys
of all. Only commands and files are used.
"""

import json
import shutil

import pandas as pd
import pytest
import yaml
from recorded import WORDS, copy_of_0_1, hpc_ecg, same_as_recorded
from safetensors import safe_open

pytestmark = pytest.mark.slow

RUN = [
    *WORDS["run"],
    "init.checkpoint=random",
    "train.max_epochs=1",
    "train.calibration=platt",
    "run_dir=run/one",
]
SHARD = [
    *("data", "shard", "cohort/table.csv", "--signals", "cohort", "--patient", "patient_id"),
    *("--label", "af", "--to-rate", "100", "--seconds", "5", "--workers", "1", "--folds", "3"),
    *("--repeats", "2", "--key", "key", "--keep", "old", "--out", "sharding/shards"),
]
RANDOM = ["sweep", *WORDS["sweep"], "strategies=[random]", "run.train.max_epochs=1"]
SEEDS = [f"sweeps/finished/random/seed-{seed}" for seed in (0, 1)]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder in which all these commands were given, a folder in it for each kind."""
    folder = copy_of_0_1(tmp_path_factory.mktemp("left"))
    (folder / "strategies/random.yaml").write_text(
        "init: {checkpoint: random}\ntrain: {freeze: none}\n"
    )
    (folder / "key").write_text("a key of thirty-two or more letters")
    for name in ("cohort_table", "weights"):
        (folder / name).mkdir()
    shutil.copytree(folder / "sweeps/finished/random", folder / "souped/random")
    shutil.copy(folder / "sweeps/finished/sweep.yaml", folder / "souped")

    def do(*words):
        assert hpc_ecg(folder, *words) == 0, words

    do("finetune", *RUN, "train.average=ema")
    do("evaluate", "run/one")
    do("evaluate", "run/one", "--split", "valid", "--sensitivity", "0.95")
    do("evaluate", "run/one", "--out", "run/elsewhere")
    do(*WORDS["cohort"], "--out", "cohort_table/cohort.csv")
    do(*SHARD)
    do("weights", "soup", "weights/soup.safetensors", *SEEDS)
    do("weights", "convert", "run/one", "weights/one.safetensors")
    do("weights", "convert", "run/one", "weights/stripped.safetensors", "--strip")
    do("weights", "reset-head", "run/one", "weights/fresh.safetensors", "--seed", "0")
    do("weights", "convert", "run/one", "weights/original.pt")
    do(*RANDOM, "sweep_dir=tuned", "seeds=[0]", "tune.optim.lr=[0.001]")
    do(
        "sweep",
        *WORDS["sweep"],
        "strategies=[random]",
        "sweep_dir=souped",
        "soup=true",
        "seeds=[0,1]",
    )
    do("report", "souped", "--replicates", "200")
    return folder


def keys_of(value):
    """Nested keys; None stands for a plain value."""
    if isinstance(value, dict):
        return {key: keys_of(below) for key, below in value.items()}
    if isinstance(value, list):
        below = [tree for item in value if (tree := keys_of(item)) is not None]
        return [joined(below)] if below else None
    return None


def joined(trees):
    """The keys of all of them."""
    if not all(isinstance(tree, dict) for tree in trees):
        return trees[0]
    of_key = {}
    for tree in trees:
        for key, below in tree.items():
            of_key.setdefault(key, []).append(below)
    return {
        key: joined(known) if (known := [tree for tree in below if tree is not None]) else None
        for key, below in of_key.items()
    }


def inside_of(path):
    """What is stored about a file: keys, columns, names of tensors; None for other files."""
    if path.suffix == ".json":
        return keys_of(json.loads(path.read_text()))
    if path.suffix == ".yaml":
        return keys_of(yaml.safe_load(path.read_text()))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kinds = dict.fromkeys(line["event"] for line in lines)
        return {kind: joined([keys_of(x) for x in lines if x["event"] == kind]) for kind in kinds}
    if path.suffix == ".csv":
        return path.read_text().partition("\n")[0]
    if path.suffix == ".parquet":
        return {name: str(kind) for name, kind in pd.read_parquet(path).dtypes.items()}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {"tensors": list(file.keys()), "metadata": sorted(file.metadata() or {})}
    return None


@pytest.mark.parametrize("kind", ["run", "cohort_table", "sharding", "weights", "tuned", "souped"])
def test_these_files_are_left_and_hold_these_keys(left, kind):
    paths = sorted(path for path in (left / kind).rglob("*") if path.is_file())
    named = {str(path.relative_to(left)): path for path in paths if "submitit" not in path.parts}
    found = {name: inside_of(path) for name, path in named.items()}
    same_as_recorded(f"files_{kind}", found)


@pytest.mark.parametrize(
    "words",
    [
        ["data", "inspect", "shards", "--json"],
        ["weights", "inspect", "weights/original.pt", "--json"],
        ["weights", "inspect", "run/one", "--json"],
        ["weights", "diff", *SEEDS, "--json"],
    ],
    ids=["inspect_shards", "inspect_original", "inspect_run", "diff"],
)
def test_what_is_said_for_programs_has_these_keys(left, capsys, request, words):
    assert hpc_ecg(left, *words) == 0
    found = keys_of(json.loads(capsys.readouterr().out))
    same_as_recorded(f"said_{request.node.callspec.id}", found)
