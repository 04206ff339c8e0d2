"""Differences between two files: by tensor, by part, and as a verdict."""

import json

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import save_file

from hpc_ecg.cli import main
from hpc_ecg.weights.convert import convert, reset_head
from hpc_ecg.weights.diff import describe, diff, part_of

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"


def changed(tmp_path, **changes):
    content = torch.load(AFIB, weights_only=False)
    for name, change in changes.items():
        key = name.replace("__", ".")
        content["model"][key] = change(content["model"][key])
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_the_same_weights_in_another_layout_are_identical(tmp_path, capsys):
    for source in (AFIB, BASE):
        convert(source, tmp_path / "x.safetensors", force=True)
        result = diff(source, tmp_path / "x.safetensors")
        assert result["identical"] and not result["only_in_first"] and not result["only_in_second"]
        assert describe(result)[-1] == "identical"
    assert main(["weights", "diff", str(BASE), str(tmp_path / "x.safetensors"), "--exit-code"]) == 0


def test_a_fresh_head_leaves_the_backbone_identical(tmp_path, capsys):
    reset_head(AFIB, tmp_path / "x.safetensors", seed=1)
    words = ["weights", "diff", str(AFIB), str(tmp_path / "x.safetensors")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "backbone: identical; head: changed"
    assert any(line.split() == ["conv", "stem", "identical"] for line in lines)
    assert any(line.startswith("head.weight") for line in lines)
    assert main([*words, "--exit-code"]) == 1


def test_sizes_of_changes_are_exact(tmp_path, capsys):
    path = changed(
        tmp_path,
        encoder__encoder__layers__1__fc1__bias=lambda t: t * 1.5,
        encoder__post_extract_proj__bias=lambda t: t + torch.eye(1, 48)[0] * 0.25,
    )
    assert main(["weights", "diff", str(AFIB), str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert not result["identical"]
    tensors = {name: t for name, t in result["tensors"].items() if t["changed"]}
    assert len(tensors) == 2
    scaled = tensors["backbone.encoder.layers.1.fc1.bias"]
    assert scaled["relative_l2"] == pytest.approx(0.5, rel=1e-6)
    assert tensors["backbone.post_extract_proj.bias"]["max_abs"] == pytest.approx(0.25, rel=1e-6)
    parts = {name: part["changed"] for name, part in result["parts"].items() if part["changed"]}
    assert parts == {"backbone in all": 2, "projection": 1, "encoder layer 1": 1}
    assert list(result["parts"])[:4] == ["backbone in all", "conv stem", "projection", "positions"]


def test_tensors_in_one_file_only_or_of_another_shape_are_listed(tmp_path):
    result = diff(BASE, AFIB)
    assert len(result["only_in_first"]) == 8 and "pretraining.mask_emb" in result["only_in_first"]
    assert result["only_in_second"] == ["head.bias", "head.weight"]
    reset_head(AFIB, tmp_path / "x.pt", seed=1, num_labels=2)
    result = diff(AFIB, tmp_path / "x.pt")
    assert result["other_shape"] == {"head.bias": [[1], [2]], "head.weight": [[1, 48], [2, 48]]}
    assert not result["identical"] and "head: not in both" in describe(result)[-1]


def test_equal_values_of_another_type_are_no_change(tmp_path):
    content = torch.load(AFIB, weights_only=False)
    content["model"] = {name: tensor.double() for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "x.pt")
    assert diff(AFIB, tmp_path / "x.pt")["identical"]


def test_nan_and_files_without_cfg_can_be_compared(tmp_path):
    path = changed(tmp_path, proj__bias=lambda t: t * float("nan"))
    result = diff(AFIB, path)
    assert result["tensors"]["head.bias"]["relative_l2"] is None
    assert json.loads(json.dumps(result)) and describe(result)
    assert diff(path, path)["identical"]
    save_file(torch.load(BASE, weights_only=False)["model"], tmp_path / "bare.safetensors")
    assert diff(BASE, tmp_path / "bare.safetensors")["identical"]


def test_the_table_shows_the_largest_changes_and_json_shows_all(capsys):
    lines = describe(diff(BASE, AFIB))
    assert any(line == "and 35 more: --json lists all" for line in lines)
    assert len(diff(BASE, AFIB)["tensors"]) == 47
    assert main(["weights", "diff", str(BASE), "none.pt"]) == 2
    assert "none.pt: no such file" in capsys.readouterr().err


def test_every_tensor_of_the_model_belongs_to_a_part():
    parts = {part_of(name) for name in diff(AFIB, AFIB)["tensors"]}
    assert parts == {
        "conv stem",
        "projection",
        "positions",
        "encoder layer 0",
        "encoder layer 1",
        "head",
    }
