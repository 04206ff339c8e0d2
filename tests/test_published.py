"""Folders as model hubs hold them: several networks and Platt coefficients, by their meaning."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FIXTURES
from scipy.special import expit

from hpc_ecg.cli.command import main
from hpc_ecg.inference.published import EQUATION

ECG = "ecg.npy"


def published(
    folder: Path, content: object, names: tuple[str, ...] = ("fold_2", "fold_10")
) -> Path:
    """Networks that differ in the bias of their head."""
    folder.mkdir()
    for number, name in enumerate(names):
        source = folder / f"{name}.pt"
        shutil.copy(FIXTURES / "tiny_wcr_afib_5y.pt", source)
        if number % 2 == 0:
            out = folder / f"{name}.safetensors"
            assert main(["weights", "convert", str(source), str(out)]) == 0
            source.unlink()
    (folder / "calibration.json").write_text(json.dumps(content))
    (folder / "config.json").write_text('{"architecture": "of the reference"}')
    return folder


def predict(model: Path, tmp_path: Path) -> pd.Series:
    ecg, out = tmp_path / ECG, tmp_path / "risks.parquet"
    np.save(ecg, np.random.default_rng(0).normal(0, 0.2, (12, 2500)).astype(np.float32))
    words = [str(model), str(ecg), "--rate", "250", "--out", str(out), "--force", "--workers", "1"]
    assert main(["predict", *words]) == 0
    return pd.read_parquet(out).iloc[0]


@pytest.mark.parametrize(
    "platt",
    [
        [{"slope": 0.5, "intercept": -1}, {"slope": 2, "intercept": 0.25}],
        [{"a": 0.5, "b": -1}, {"a": -2.0, "b": -0.25}],
        {"fold_10": {"slope": 2, "offset": 0.25}, "fold_2": {"slope": 0.5, "offset": -1.0}},
        {"fold_10.pt": {"a": 2, "b": 0.25}, "fold_2.safetensors": {"a": 0.5, "b": -1, "n": 9}},
    ],
)
def test_folds_are_calibrated_each_by_its_own_coefficients_and_averaged(tmp_path, platt):
    content = {"platt_coefficients": platt, "equation": "mean(sigmoid(slope * logit + intercept))"}
    found = predict(published(tmp_path / "hub", content), tmp_path)
    alone = predict(FIXTURES / "tiny_wcr_afib_5y.pt", tmp_path)
    logit = alone.filter(like="_logit").iloc[0]
    risks = expit([0.5 * logit - 1, 2 * logit + 0.25])
    assert found.filter(like="_probability").iloc[0] == pytest.approx(risks.mean(), rel=1e-6)
    assert found.filter(like="_sd").iloc[0] == pytest.approx(risks.std(ddof=1), rel=1e-6)


TWO = [{"slope": 1, "intercept": 0}] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"platt": TWO[:1]}, "expected a slope and an intercept for each of 2 files"),
        ({"platt": {"fold_2": TWO[0], "fold_3": TWO[0]}}, "fold_10.pt: expected slope and interce"),
        (
            {"platt": [TWO[0], {"slope": "1", "intercept": 0}]},
            "expected slope and intercept as num",
        ),
        (
            {"platt": [TWO[0], {"slope": True, "intercept": 0}]},
            "expected slope and intercept as nu",
        ),
        ({"platt": [TWO[0], [1, 0]]}, "expected slope and intercept as numbers, got [1, 0]"),
        ({"platt": [TWO[0], TWO[0] | {"a": 1, "b": 0}]}, "expected slope and intercept as numbers"),
        ({"platt": [TWO[0], {"slope": -1, "intercept": 0}]}, "a slope of -1 would not rank"),
        ({"platt": [TWO[0], {"slope": 1e308, "intercept": 0}]}, "cannot be of a network"),
        ({"platt": [TWO[0], {"slope": 1, "intercept": 1e9}]}, "cannot be of a network"),
        ({"platt": TWO, "equation": "max(sigmoid(logit))"}, f"not understood; known is {EQUATION}"),
        ({"platt": TWO, "combination": "median"}, "combination median is not understood"),
        (
            {"platt": TWO, "platt_coefficients": TWO},
            "have 2 lists platt_coefficients, expected one",
        ),
        ({"threshold": 0.3}, "have 0 lists platt_coefficients, expected one"),
    ],
)
def test_what_is_not_understood_is_one_line(tmp_path, capsys, content, message):
    hub = published(tmp_path / "hub", content)
    capsys.readouterr()
    assert main(["predict", str(hub), "x.npy", "--out", str(tmp_path / "risks.csv")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("model.h5", lambda path: path.write_bytes(b"HDF"), "holds no network of this package"),
        ("fold_3.pt", lambda p: shutil.copy(FIXTURES / "tiny_base_ssl.pt", p), "without a head"),
        ("fold_3.pt", lambda path: path.write_bytes(b"PK"), "fold_3.pt"),
    ],
)
def test_another_network_is_named(tmp_path, capsys, name, write, message):
    hub = published(tmp_path / "hub", {"platt": TWO * 2}, names=())
    if name != "model.h5":
        shutil.rmtree(hub)
        hub = published(tmp_path / "hub", {"platt": [*TWO, TWO[0]]})
    write(hub / name)
    capsys.readouterr()
    assert main(["predict", str(hub), "x.npy", "--out", str(tmp_path / "risks.csv")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and str(hub) in error
