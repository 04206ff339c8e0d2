"""A run of a GPU predicts, is evaluated, explained and exported as on a CPU."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from gpu_runs import SLOWLY, start
from synthetic import Population, draw_patient, synthesize

import hpc_ecg
from hpc_ecg.cli import main
from hpc_ecg.config.load import load_config
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model

pytestmark = pytest.mark.gpu
CLOSE = {"rtol": 0.01, "atol": 0.005}
"""Of logits in fp32, whose convolutions may use TF32."""


@pytest.fixture(scope="module")
def run(gpu, shards, tmp_path_factory):
    """A finished, evaluated run in fp32; `engine.device` is auto, so any machine can use it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ("engine.precision=fp32", SLOWLY, "engine.device=auto")
    evaluate(load_config(FinetuneConfig, [str(start(shards, folder, gpu, *words).config)], []))
    return folder


@pytest.fixture
def without_gpu(monkeypatch):
    """Call it: from then on this machine has no GPU."""
    return lambda: monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def both(command, without_gpu):
    """The results of a command here, and on a machine without a GPU."""
    found = command()
    without_gpu()
    return found, command()


def test_predictions_of_files_are_those_of_a_cpu(run, cohort, without_gpu):
    names = sorted((cohort.parent / "records").glob("*.hea"))

    def predict():
        with hpc_ecg.load_predictor(run) as model:
            return model.predict(names)

    ours, theirs = both(predict, without_gpu)
    assert list(ours["record"]) == list(theirs["record"]) and len(ours) > 50
    assert list(ours["reason"]) == list(theirs["reason"])
    np.testing.assert_allclose(ours["af_logit"], theirs["af_logit"], **CLOSE)


def test_predictions_do_not_depend_on_the_batch(run, cohort):
    names = sorted((cohort.parent / "records").glob("*.hea"))[:9]
    with hpc_ecg.load_predictor(run) as model:
        together = model.predict(names).set_index("record")["af_logit"]
        alone = model.predict(names[4:5]).set_index("record")["af_logit"]
    assert alone.iloc[0] == together[alone.index[0]], "to the bit: batches have one size"


def test_features_are_those_of_a_cpu(run, shards, tmp_path, without_gpu):
    def embed():
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        assert main(["embed", str(run), str(shards), "--out", str(out)]) == 0
        return pd.read_parquet(out).set_index("record")

    ours, theirs = both(embed, without_gpu)
    assert list(ours.index) == list(theirs.index) and list(ours["flags"]) == list(theirs["flags"])
    found, expected = (np.stack(table["features"]) for table in (ours, theirs))
    assert found.shape == (len(ours), 48)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_an_evaluation_is_that_of_a_cpu(run, tmp_path, without_gpu):
    def again():
        folder = shutil.copytree(run, tmp_path / str(len(list(tmp_path.iterdir()))))
        words = [f"run_dir={folder}"]
        scores = evaluate(load_config(FinetuneConfig, [str(folder / "config.yaml")], words))
        return read_predictions(folder / "predictions" / "test.parquet").logit_NK, scores

    (ours, scores), (theirs, others) = both(again, without_gpu)
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert scores.keys() == others.keys()


@pytest.fixture(scope="module")
def ecg():
    from hpc_ecg.inference.attribution import DividedECG

    rng, population = np.random.default_rng(3), Population(af_prevalence=0)
    about = {"af": False, "patient": draw_patient(rng, population), "population": population}
    signal_LS = synthesize(rng, **about, sample_rate_hz=250)
    return DividedECG(signal_LS, signal_LS.shape[1], SignalSpec())


def test_an_explanation_runs_on_the_gpu_and_is_that_of_a_cpu(gpu, run, ecg, without_gpu):
    pytest.importorskip("captum")
    from hpc_ecg.inference.attribution import attribute, occlude
    from hpc_ecg.inference.explain import open_explainer

    def explain():
        network = open_explainer(run, None, None, 0).network
        devices.append(next(network.parameters()).device.type)
        return attribute(network, ecg)[0], occlude(network, ecg)

    devices = []
    (map_LS, table), (other_LS, other_table) = both(explain, without_gpu)
    if gpu.type == "cuda":
        assert devices == ["cuda", "cpu"]
    assert np.corrcoef(map_LS.ravel(), other_LS.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(table, other_table, **CLOSE)


def test_an_onnx_file_computes_what_the_gpu_computes(gpu, run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from hpc_ecg.weights.convert import convert

    convert(run / "best" / "model.safetensors", tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    ecg_BCS = 0.3 * torch.randn(4, 12, 2500, generator=torch.Generator().manual_seed(0))
    (logits_BK,) = session.run(None, {"ecg": ecg_BCS.numpy()})
    with torch.no_grad():
        ours_BK = load_model(run / "best").to(gpu)(ecg_BCS.to(gpu))
    np.testing.assert_allclose(ours_BK.cpu().numpy(), logits_BK, **CLOSE)
