"""`combine`: covariates that tell something add it, others nothing; a risk needs all covariates."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import words_for
from scipy.special import expit
from simulate_covariates import simulate
from sklearn.linear_model import LogisticRegression

import hpc_ecg
from hpc_ecg.cli.command import main
from hpc_ecg.config.load import load_config
from hpc_ecg.evaluation import covariates as module
from hpc_ecg.evaluation.covariates import combine_label, encode, learn_covariate, read_combined
from hpc_ecg.hashing import SHA256, sha256_of_value
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    """A finished run, not yet tested."""
    folder = tmp_path_factory.mktemp("combine") / "sweep" / "ssl" / "seed-0"
    finetune(load_config(FinetuneConfig, [], words_for(shards, folder)))
    return folder


@pytest.fixture
def copied(run, tmp_path, few_events_suffice) -> Path:
    folder = tmp_path / "sweep" / "ssl" / "seed-0"
    shutil.copytree(run, folder)
    return folder


def command(*words: object) -> int:
    return main([*map(str, words)])


def test_end_to_end(copied, shards, cohort, tmp_path, capsys):
    assert command("combine", copied, "--covariates", "age,sex") == 0
    print(capsys.readouterr().out)
    from hpc_ecg.training.open_run import load_run
    evaluate(load_run(str(copied), []))
    assert command("combine", copied, "--covariates", "age,sex") == 0
    print(capsys.readouterr().out)
    assert command("predict", copied, shards, "--out", tmp_path/"a.csv") == 0
    print(pd.read_csv(tmp_path/"a.csv").to_string()[:1500])
    assert command("predict", copied, cohort, "--out", tmp_path/"b.csv") == 3
    print(pd.read_csv(tmp_path/"b.csv").to_string()[:1500])
    assert command("bundle", copied, tmp_path/"bundle") == 0
    assert command("predict", tmp_path/"bundle", cohort, "--out", tmp_path/"c.csv") == 3
    print((tmp_path/"bundle"/"CARD.md").read_text())
    assert command("report", copied) == 0
    shutil.copytree(copied/"report", "/tmp/w/combine_report", dirs_exist_ok=True)
    print(capsys.readouterr().out)
