"""An ONNX file computes what torch computes, or is not written."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FIXTURES

from hpc_ecg.cli import main
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import load_model, onnx_export
from hpc_ecg.weights.convert import convert, reset_head

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with two.pt and x.onnx, made from it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    reset_head(AFIB, folder / "two.pt", seed=1, labels=["af", "mi"])
    lines = convert(folder / "two.pt", folder / "x.onnx")
    assert "differ from torch by at most" in lines[0] and "(allowed 1e-04)" in lines[0]
    assert {path.name for path in folder.iterdir()} == {"two.pt", "x.onnx"}
    return folder


@pytest.mark.slow
def test_onnx_gives_the_logits_of_torch_for_any_batch_and_length(exported, rng):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported / "x.onnx", providers=["CPUExecutionProvider"])
    model = load_model(exported / "two.pt")
    for shape in ((1, 12, 2500), (5, 12, 1250), (2, 12, 5001)):
        ecg_BCS = rng.standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            expected_BK = model(torch.from_numpy(ecg_BCS)).numpy()
        (logits_BK,) = session.run(["logits"], {"ecg": ecg_BCS})
        np.testing.assert_allclose(logits_BK, expected_BK, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["af", "mi"] and metadata["unit"] == "mV"
    assert json.loads(metadata["provenance"])[-1]["sha256"] == sha256_of(exported / "two.pt")


@pytest.mark.slow
def test_a_file_that_disagrees_is_deleted(exported, tmp_path, monkeypatch):
    def export(model, path, metadata):
        shutil.copy(exported / "x.onnx", path)

    monkeypatch.setattr(onnx_export, "_export", export)  # another one takes seconds
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="logits of the ONNX file differ"):
        convert(exported / "two.pt", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_without_a_head_or_the_extra_there_is_one_line(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    assert main(["weights", "convert", str(BASE), str(tmp_path / "x.onnx")]) == 2
    assert "weights without a head have no logits" in capsys.readouterr().err
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx", "no_such_library"))
    assert main(["weights", "convert", str(AFIB), str(tmp_path / "x.onnx")]) == 2
    assert "ONNX needs no_such_library; pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
