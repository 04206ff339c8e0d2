"""Any harmless file can be inspected, without torch; hostile files are refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import save_file

from hpc_ecg.cli import main
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import load_model
from hpc_ecg.weights.convert import convert, reset_head
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.inspect_file import describe, inspect

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"
PEOPLE = FIXTURES / "tiny_wcr_afib_5y_auc_numpy.pt"
SIZES = {
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "conv_feature_layers": "[(16, 2, 2)] * 4",
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "in_d": 12,
}


def changed(tmp_path, source=AFIB, **changes):
    """A copy of a file with some parts replaced; None removes a part."""
    content = torch.load(source, weights_only=False) | changes
    path = tmp_path / "changed.pt"
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def table(path) -> str:
    return "\n".join(describe(inspect(path)))


def test_inspecting_and_comparing_import_no_torch():
    code = (
        "import sys; from hpc_ecg.cli import main; a, b = sys.argv[1:]; "
        "main(['weights', 'inspect', a]); main(['weights', 'diff', a, b]); "
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(AFIB), str(BASE)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


@pytest.mark.parametrize(
    ("source", "kind", "tensors", "more"),
    [(BASE, "base_ssl", 55, 2404), (AFIB, "classifier", 49, 49)],
)
def test_a_foreign_file_is_described_by_its_tensors_and_its_cfg(
    capsys, source, kind, tensors, more
):
    assert main(["weights", "inspect", str(source), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["tensors"]) == (kind, tensors)
    assert facts["parameters"] == 45480 + more
    assert facts["sha256"] == sha256_of(source) and facts["bytes"] == source.stat().st_size
    for name, size in SIZES.items():
        assert facts["sizes"][name] == {"in_tensors": size, "stated": size}
    assert facts["sizes"]["encoder_attention_heads"] == {"in_tensors": None, "stated": 4}
    assert facts["labels"] is None and facts["signal"] is None and facts["can_start_a_run"]
    assert facts["optimizer_tensors"] > 80 and facts["dtypes"] == {"float32": tensors}
    assert {"cfg.model.data", "cfg.checkpoint.save_dir"} <= facts["machine_paths"].keys()
    text = table(source)
    for part in ("not stated; DeepECG-SSL saw", "its state is inside", "paths of the training's"):
        assert part in text


def test_patient_values_are_counted_and_cause_a_warning(tmp_path):
    assert sum(inspect(PEOPLE)["values_of_people"].values()) == 64
    assert "PRIVACY" in table(PEOPLE) and "64 values in 4 arrays" in table(PEOPLE)
    for held in ({"a": [[0.1] * 30]}, {"a": (torch.ones(5),)}, {"b": {"c": list(range(25))}}):
        assert inspect(changed(tmp_path, extra_state=held))["values_of_people"]
    assert not inspect(AFIB)["values_of_people"]
    convert(PEOPLE, tmp_path / "stripped.pt", strip=True)
    facts = inspect(tmp_path / "stripped.pt")
    assert not facts["values_of_people"] and not facts["optimizer_tensors"]
    assert "PRIVACY" not in table(tmp_path / "stripped.pt")


def test_our_files_state_labels_signal_and_provenance(tmp_path):
    model = load_model(AFIB)
    path = tmp_path / "model.safetensors"
    save_model(path, model, model.architecture, ["af"], SignalSpec(sample_rate_hz=500))
    facts = inspect(tmp_path)
    assert (facts["kind"], facts["labels"]) == ("hpc_ecg", ["af"])
    assert facts["signal"]["sample_rate_hz"] == 500
    assert "5 s at 500 Hz in mV, calibrated" in table(tmp_path)
    reset_head(path, tmp_path / "reset.pt", seed=5)
    (step,) = inspect(tmp_path / "reset.pt")["provenance"]
    assert step["seed"] == 5 and '"action": "reset-head"' in table(tmp_path / "reset.pt")


def test_the_names_of_upstream_are_recognized(tmp_path):
    model = torch.load(AFIB, weights_only=False)["model"]
    ending = {"weight_g": "original0", "weight_v": "original1"}
    for old, new in ending.items():
        model = {n.replace(old, f"parametrizations.weight.{new}"): t for n, t in model.items()}
    path = changed(tmp_path, model=model)
    assert inspect(path)["can_start_a_run"] and "upstream fairseq-signals" in table(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cfg": None}, "expected the original's layout"),
        ({"cfg": {"model": {}}}, "is missing; every size must be stated"),
        ({"model": {"a.weight": torch.ones(2, 3)}}, "weights of another model"),
    ],
)
def test_a_harmless_file_that_cannot_start_a_run_is_described_with_the_reason(
    capsys, tmp_path, changes, reason
):
    path = changed(tmp_path, **changes)
    assert main(["weights", "inspect", str(path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "cannot be used to start a run: " in last and reason in last
    assert inspect(path)["tensors"] == len(changes.get("model", range(49)))


def test_a_bare_state_dict_and_a_foreign_safetensors_are_described(tmp_path):
    model = torch.load(BASE, weights_only=False)["model"]
    torch.save(model, tmp_path / "bare.pt")
    save_file(model, tmp_path / "bare.safetensors")
    for name in ("bare.pt", "bare.safetensors"):
        facts = inspect(tmp_path / name)
        assert (facts["kind"], facts["tensors"]) == ("base_ssl", 55)
        assert facts["sizes"]["encoder_layers"] == {"in_tensors": 2, "stated": None}
        assert facts["problem"] and str(tmp_path) not in facts["problem"]


def test_a_cfg_that_contradicts_the_tensors_is_shown_next_to_them(tmp_path):
    cfg = torch.load(AFIB, weights_only=False)["cfg"]
    cfg["model"] |= {"encoder_ffn_embed_dim": 192, "conv_pos": "\x1b[31m" + "x" * 500}
    path = changed(tmp_path, cfg=cfg)
    text = table(path)
    assert "encoder_ffn_embed_dim = 96  (in the tensors; STATED AS 192)" in text
    assert "\x1b" not in text and "x" * 100 not in text
    assert "cannot be used to start a run" in text


def test_nan_is_reported_and_a_damaged_file_refused(capsys, tmp_path):
    model = torch.load(AFIB, weights_only=False)["model"]
    model["proj.bias"] = torch.tensor([float("nan")])
    assert "NaN" in inspect(changed(tmp_path, model=model))["problem"]
    data = bytearray(AFIB.read_bytes())
    at = data.index(torch.load(AFIB, weights_only=False)["model"]["proj.weight"].numpy().tobytes())
    data[at] ^= 1
    for broken in (bytes(data), AFIB.read_bytes()[:-3000], b"", b"hello"):
        (tmp_path / "broken.pt").write_bytes(broken)
        assert main(["weights", "inspect", str(tmp_path / "broken.pt")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "broken.pt" in line
    bare = changed(tmp_path, cfg=None)
    data = bytearray(bare.read_bytes())
    data[data.index(model["encoder.layer_norm.weight"].numpy().tobytes())] ^= 1
    bare.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="checksum"):
        inspect(bare)


def test_a_pickle_that_would_run_code_is_refused(capsys, tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ("executed",)

    path = changed(tmp_path, extra_state={"x": Hostile()})
    assert main(["weights", "inspect", str(path)]) == 2
    captured = capsys.readouterr()
    assert "executed" not in captured.out and "refused, nothing in it was run" in captured.err


def test_the_float16_grid_is_judged_value_by_value(tmp_path):
    on = [0.0, -0.0, 1.0, 2.0**-24, -3 * 2.0**-24, 65504.0, 2.0**-14, 1023 / 1024]
    off = [1 + 2.0**-11, 2.0**-25, 1.5 * 2.0**-24, 65536.0, 65505.0, 2.0**-14 + 2.0**-26, 1e-30]
    for value in on + off:
        with np.errstate(over="ignore"):
            exact = bool(np.float32(np.float16(value)) == np.float32(value))
        assert exact == (value in on)
        path = changed(tmp_path, model={"x": torch.tensor([1.0, value])}, cfg=None)
        assert inspect(path)["on_fp16_grid"] == exact, value
    for dtype, expected in ((torch.float16, True), (torch.float64, False), (torch.int64, False)):
        path = changed(tmp_path, model={"x": torch.tensor([0.1, 2]).to(dtype)}, cfg=None)
        assert inspect(path)["on_fp16_grid"] == expected


def test_weights_are_on_the_float16_grid_or_not_as_a_whole(tmp_path):
    assert inspect(AFIB)["on_fp16_grid"] and "such a copy loses nothing" in table(AFIB)
    assert not inspect(PEOPLE)["on_fp16_grid"] and "not all on the float16 grid" in table(PEOPLE)
