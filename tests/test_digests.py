"""Damage of what results rest on is noticed, whichever bit it is, and named in one line."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from recorded import WORDS, copy_of_0_1, hpc_ecg
from safetensors import safe_open
from safetensors.torch import load_file

from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.reference_models import read_baselines, read_soups
from hpc_ecg.comparison.results import read_results
from hpc_ecg.hashing import check_file, check_record, read_record, write_record
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.training.open_run import finished_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow

FLIPS = 100
CHANGED = "has changed since it was written"


@pytest.fixture(scope="module")
def made(made_sweep, tmp_path_factory):
    """A folder with a sweep of two evaluated runs, its soup and its baselines."""
    return shutil.copytree(made_sweep, tmp_path_factory.mktemp("digests") / "made")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flipped(path, seed):
    """Flip single bits at random, one after another; each is put back."""
    draw = random.Random(seed)
    before = path.read_bytes()
    for _ in range(FLIPS):
        bit = draw.randrange(8 * len(before))
        flip(path, bit)
        yield bit
        path.write_bytes(before)


def test_a_new_run_vouches_for_all_that_results_rest_on(made):
    run = RunFolder(made / "s/a/seed-0")
    recorded = read_record(run.finished)["digests"]
    names = {"environment.json", "init_report.json", "metrics.jsonl", "predictions/valid.parquet"}
    names |= {f"best/{name}" for name in ("model.safetensors", "operating_point.json")}
    assert names | {"best/calibration.json"} == recorded.keys()
    assert all(sha256_of(run.path / name) == digest for name, digest in recorded.items())
    test = {"predictions/test.parquet": sha256_of(run.predictions / "test.parquet")}
    assert read_record(run.evaluation)["digests"] == test
    assert run.check_unchanged() and check_record(run.finished)
    soup = made / "s/a/soup"
    assert read_record(soup / "soup.json")["digests"].keys() == {"model.safetensors"}
    assert read_record(soup / "evaluation.json")["digests"].keys() == {"predictions.parquet"}
    assert check_record(made / "s/baselines/baselines.json")


@pytest.mark.parametrize("weights", ["seed-0/best", "soup"])
def test_every_flipped_bit_of_weights_is_noticed(copy, weights):
    path = copy / "s/a" / weights / "model.safetensors"
    read_checkpoint(path.parent if weights == "seed-0/best" else path)
    for bit in flipped(path, seed=1):
        with pytest.raises(ValueError, match=rf"model.safetensors {CHANGED}"):
            read_checkpoint(path)
            pytest.fail(f"bit {bit}")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_flipped_bit_of_predictions_is_noticed(copy, split):
    run = RunFolder(copy / "s/a/seed-0")
    for bit in flipped(run.predictions / f"{split}.parquet", seed=2):
        with pytest.raises(ValueError, match=rf"{split}.parquet {CHANGED}"):
            run.check_unchanged()
            pytest.fail(f"bit {bit}")


PARTS = [
    "environment.json",
    "init_report.json",
    "finished.json",
    "evaluation.json",
    "metrics.jsonl",
]
PARTS += ["predictions/valid.parquet", "predictions/test.parquet", "best/operating_point.json"]


@pytest.mark.parametrize("name", PARTS)
def test_a_changed_part_leaves_the_run_out_of_the_report_and_names_it(copy, name):
    path = copy / "s/a/seed-0" / name
    flip(path, 8 * (path.stat().st_size // 2))
    runs, problems = read_results(copy / "s")
    assert [run.name for run in runs] == ["a/seed-1"]
    assert [problem.name for problem in problems] == ["a/seed-0"]
    assert str(path) in problems[0].reason and "\n" not in problems[0].reason


@pytest.mark.parametrize("name", [*PARTS[:3], *PARTS[5:]])
def test_a_changed_part_is_refused_by_evaluate(copy, name, capsys):
    path = copy / "s/a/seed-0" / name
    flip(path, 8 * (path.stat().st_size // 2))
    assert hpc_ecg(copy, "evaluate", "s/a/seed-0") == 2
    said = capsys.readouterr().err
    assert name in said and said.count("\n") == 1


def test_settings_that_count_may_not_change_and_paths_may(copy):
    run = RunFolder(copy / "s/a/seed-0")
    text = run.config.read_text()
    run.config.write_text(text.replace("shards: shards", f"shards: {copy}/shards"))
    assert finished_run(str(run.path)).check_unchanged()
    run.config.write_text(text.replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(ValueError, match=rf"config.yaml {CHANGED}"):
        finished_run(str(run.path))


VERBS = {
    "evaluate": ["evaluate", "s/a/seed-0"],
    "evaluate on others": ["evaluate", "s/a/seed-0", "--shards", "shards"],
    "convert": ["weights", "convert", "s/a/seed-0", "out.safetensors"],
    "to onnx": ["weights", "convert", "s/a/seed-0/best", "out.pt"],
    "reset-head": ["weights", "reset-head", "s/a/seed-0", "out.pt", "--seed", "1"],
    "soup": ["weights", "soup", "out.safetensors", "s/a/seed-0", "s/a/seed-1"],
    "inspect": ["weights", "inspect", "s/a/seed-0/best/model.safetensors"],
    "diff": ["weights", "diff", "s/a/seed-1", "s/a/seed-0"],
    "finetune": ["finetune", *WORDS["run"][7:], "init.checkpoint=s/a/seed-0/best", "run_dir=new"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_changed_weights_are_refused_by_each_verb_that_reads_them(copy, verb, capsys):
    path = copy / "s/a/seed-0/best/model.safetensors"
    flip(path, 8 * path.stat().st_size - 12)
    assert hpc_ecg(copy, *VERBS[verb]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "best/model.safetensors has changed" in said[-1]
    assert not list(copy.glob("out.*")) and not (copy / "new").exists()


@pytest.mark.parametrize(
    "name", ["baselines.json", "age_sex/valid.parquet", "age_sex/test.parquet"]
)
def test_changed_baselines_are_refused(copy, name):
    path = copy / "s/baselines" / name
    test = read_results(copy / "s")[0][0].test
    assert "age_sex" in read_baselines(copy / "s/baselines", test).test
    flip(path, 8 * (path.stat().st_size // 2))
    with pytest.raises(ValueError, match=name):
        read_baselines(copy / "s/baselines", test)


def test_a_changed_soup_is_refused(copy):
    runs, _ = read_results(copy / "s")
    assert list(read_soups(runs, copy / "s")) == ["a"]
    path = copy / "s/a/soup/predictions.parquet"
    flip(path, 8 * (path.stat().st_size // 2))
    with pytest.raises(ValueError, match=rf"soup/predictions.parquet {CHANGED}"):
        read_soups(runs, copy / "s")


def test_folders_of_version_0_1_are_read_and_said_to_be_unverified(tmp_path, caplog):
    old = copy_of_0_1(tmp_path)
    assert not finished_run(str(old / "runs/finished")).check_unchanged()
    compare(old / "sweeps/finished", 20)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "random/seed-0" in said[0] and "not verified" in said[0]


def test_another_cause_of_no_digests_is_not_taken_for_version_0_1(tmp_path):
    (tmp_path / "a").write_text("a")
    write_record(tmp_path / "r.json", {"x": 1, "y": {"2": 3.5}}, [tmp_path / "a"])
    assert check_file(tmp_path / "a", tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    for key in content:
        edited = {k: v for k, v in content.items() if k != key}
        (tmp_path / "r.json").write_text(json.dumps(edited))
        with pytest.raises(ValueError, match=rf"r.json {CHANGED}"):
            read_record(tmp_path / "r.json")


SAVE = """
import sys, torch
from pathlib import Path
from hpc_ecg.weights.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), labels=["Vorhofflimmern", "af"][:1])
"""


def test_equal_weights_are_equal_bytes_in_every_process(made, tmp_path):
    digests = set()
    for seed in (0, 1):
        out = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        words = [sys.executable, "-c", SAVE, made / "s/a/seed-0/best", out]
        subprocess.run(words, check=True, env=environment)
        digests.add(sha256_of(out))
    assert len(digests) == 1
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["labels"]) == ["Vorhofflimmern"]
    ours, theirs = load_file(out), load_file(made / "s/a/seed-0/best/model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_equal_runs_end_with_equal_digests(made, tmp_path):
    words = [
        *WORDS["run"],
        "init.checkpoint=random",
        "train.max_epochs=1",
        "seed=0",
        f"run_dir={tmp_path}/again",
    ]
    assert hpc_ecg(made, "finetune", *words) == 0
    names = ("best/model.safetensors", "best/operating_point.json", "predictions/valid.parquet")
    first, again = (
        read_record(path / "finished.json")["digests"]
        for path in (made / "s/a/seed-0", tmp_path / "again")
    )
    assert {name: first[name] for name in names} == {name: again[name] for name in names}
