"""A bundle is a model to hand over; the Python API gives what the commands give."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_predict import command, read, run, sweep  # noqa: F401  # fixtures

import hpc_ecg
from hpc_ecg.cli.command import main
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.files import read_recording
from hpc_ecg.ecg.recording import RecordLocation
from hpc_ecg.hashing import SHA256, sha256_of_value

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("bundle") / "af"
    assert main(["bundle", str(run), str(out), "--onnx"]) == 0
    return out


def test_a_bundle_gives_the_risks_of_its_run(bundle, run, shards, tmp_path, capsys):  # noqa: F811
    names = {path.name for path in bundle.iterdir()}
    assert names == {
        *("model.safetensors", "model.onnx", "model.json", "self-test.npy"),
        *("CARD.md", "README.md"),
    }
    assert main(["predict", str(bundle), "--self-test"]) == 0
    assert "self-test passed: logits of 3 ECGs are within 0.0e+00" in capsys.readouterr().out
    for model, out in ((bundle, "a.parquet"), (run, "b.parquet")):
        assert command(model, shards, "--out", tmp_path / out) == 0
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet"))
    assert len((bundle / "README.md").read_text().splitlines()) <= 20


def test_an_ensemble_travels_whole(sweep, shards, tmp_path):  # noqa: F811
    out = tmp_path / "both"
    assert main(["bundle", str(sweep), str(out), "--ensemble"]) == 0
    assert {path.name for path in out.glob("model*")} == {
        *("model-1.safetensors", "model-2.safetensors", "model.json"),
    }
    assert command(out, shards, "--out", tmp_path / "a.parquet") == 0
    assert command(sweep, "--ensemble", shards, "--out", tmp_path / "b.parquet") == 0
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet"))


def test_a_bundle_names_no_person_and_no_path(bundle, run, cohort, tmp_path):  # noqa: F811
    table = pd.read_csv(cohort)
    texts = [path.read_bytes().decode("latin-1") for path in bundle.iterdir()]
    places = {str(run), str(cohort.parent), "seed-0", "checkpoints"}
    people = {*table["record"], *table["patient_id"].astype(str)}
    for text in texts:
        assert not [place for place in places if place in text]
        assert not [name for name in people if re.search(rf"\b{re.escape(name)}\b", text)]


@pytest.mark.parametrize("name", ["model.safetensors", "self-test.npy", "CARD.md", "model.json"])
def test_a_changed_byte_is_refused_by_name(bundle, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert main(["predict", str(copy), "--self-test"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "hpc_ecg/bundle/9"}, "its format is 'hpc_ecg/bundle/9', known is"),
        ({"weights": ["../model.safetensors"]}, "it has no digest of its weights"),
        ({"weights": []}, "it has no digest of its weights"),
        ({"labels": ["stroke"]}, "state other labels"),
        ({"settings": {"engine.precision": "fp4"}}, "engine.precision"),
        ({"settings": {"data.batch_size": "${oc.env:HOME}"}}, "data.batch_size"),
        ({"thresholds": {"af": {"youden": {"threshold": "x", "fitted_on": "valid"}}}}, "threshold"),
        ({"thresholds": {"af": {"youden": {"threshold": 0.5, "fitted_on": "test"}}}}, "'test'"),
        ({"self_test": {"logits": [[1.0]]}}, "the logits of its self-test do not fit"),
        ({"self_test": {"logits": [[[9.0]], [[9.0]], [[9.0]]]}}, "logits are off by"),
        ({"labels": None}, "labels cannot be 'None'"),
    ],
)
def test_an_edited_description_is_one_line(bundle, tmp_path, capsys, change, message):
    """Also if somebody computed its digest anew."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = json.loads((copy / "model.json").read_text()) | change
    content.pop(SHA256)
    content[SHA256] = sha256_of_value(content)
    (copy / "model.json").write_text(json.dumps(content))
    assert main(["predict", str(copy), "--self-test"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "THERE"), "exists; give the name of a new folder"),
        (("BUNDLE", "NEW"), "a bundle is made of a run or a sweep"),
        (("SWEEP", "NEW", "--ensemble", "--onnx"), "--onnx holds one model"),
        (("nowhere", "NEW"), "nowhere: no such file"),
    ],
)
def test_a_mistake_is_one_line(bundle, run, sweep, tmp_path, capsys, words, message):  # noqa: F811
    places = {"RUN": run, "SWEEP": sweep, "BUNDLE": bundle / "model.safetensors"}
    places |= {"THERE": tmp_path, "NEW": tmp_path / "new"}
    assert main(["bundle", *(str(places.get(word, word)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_python_gives_what_the_command_gives(bundle, cohort, shards, tmp_path):
    records = cohort.parent / "records"
    assert command(bundle, records, "--out", tmp_path / "risks.parquet") == 3
    with hpc_ecg.load_predictor(bundle) as model:
        table = model.predict(records)
        few = model.predict([next(records.glob("*.hea"))])
        assert model.labels == ["af"] and set(model.thresholds["af"]) >= {"youden"}
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "risks.parquet"))
    assert len(few) == 1
    ecgs = hpc_ecg.open_shards(shards, "valid")
    ecg_LS, label_K = ecgs[0]
    assert ecg_LS.shape == (12, 2500) and ecg_LS.dtype == torch.float32
    assert ecgs.labels == ["af"] and label_K.shape == (1,)
    assert 0.2 < float(ecg_LS.abs().max()) < 10, "mV"
    assert torch.equal(ecgs[-1][0], ecgs[len(ecgs) - 1][0])
    with pytest.raises(IndexError):
        ecgs[len(ecgs)]
    with pytest.raises(ValueError, match="has the labels"):
        hpc_ecg.open_shards(shards, labels=["stroke"])


def test_a_recording_shows_itself(cohort):
    path = next((cohort.parent / "records").glob("*.hea"))
    ecg = hpc_ecg.read_recording(path)
    expected = read_recording(RecordLocation(path=path), ArrayLayout())
    assert np.array_equal(ecg.signal_LS, expected.signal_LS, equal_nan=True)
    assert ecg.leads[:3] == ("I", "II", "III")
    svg = ecg._repr_svg_()
    assert svg.startswith("<svg") and path.name in svg and "25 mm/s, 10 mm/mV" in svg


def test_evaluate_from_python(run, shards, tmp_path):  # noqa: F811
    stored = json.loads((run / "evaluation.json").read_text())
    result = hpc_ecg.evaluate(run)
    assert result["labels"] == stored["labels"]


def test_the_public_names_are_these_and_cost_nothing_until_used():
    assert hpc_ecg.__all__ == [
        *("__version__", "evaluate", "load_predictor", "open_shards", "read_recording"),
    ]
    code = "import sys, hpc_ecg; assert 'torch' not in sys.modules; hpc_ecg.read_recording"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = hpc_ecg.predict
