"""Reading checkpoints: the content of a good file, and one clear line for each bad one."""

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from hostile import members_of, zip_of

from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.model.transformer import build_on_meta
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import load_model
from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.mapping import deduce_sizes, expected_shapes
from hpc_ecg.weights.opcodes import Placeholder
from hpc_ecg.weights.reading import read_checkpoint

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"
AUC = FIXTURES / "tiny_wcr_afib_5y_auc_numpy.pt"


def content_of(path):
    return torch.load(path, weights_only=True)


def saved(content, path):
    torch.save(content, path)
    return path


def refusal(path):
    """The one line of the error that reading this file raises."""
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class Runs:
    """Pickled as a call, as in an attack."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_both_kinds_of_file_are_recognized_with_sizes_and_labels():
    base, afib = read_checkpoint(BASE), read_checkpoint(str(AFIB))
    assert (base.kind, base.num_labels, len(base.tensors)) == ("base_ssl", None, 55)
    assert (afib.kind, afib.num_labels, len(afib.tensors)) == ("classifier", 1, 49)
    assert base.architecture == afib.architecture
    assert base.architecture.encoder_attention_heads == 4
    assert base.architecture.conv_feature_layers == ((16, 2, 2),) * 4
    assert base.signal is None
    assert base.labels is None


def test_every_tensor_of_a_file_is_either_mapped_or_ignored_for_a_reason():
    for path, ignored in ((BASE, 8), (AFIB, 0)):
        checkpoint = read_checkpoint(path)
        mapped = {checkpoint.names[name] for name in checkpoint.parameters()}
        reasons = checkpoint.ignored()
        assert mapped | reasons.keys() == checkpoint.tensors.keys()
        assert not mapped & reasons.keys()
        assert len(reasons) == ignored
        assert all(reasons.values())


def test_the_two_norms_of_similar_name_are_not_confused():
    base, afib = read_checkpoint(BASE).names, read_checkpoint(AFIB).names
    assert base["backbone.layer_norm.weight"] == "layer_norm.weight"
    assert base["backbone.encoder.layer_norm.weight"] == "encoder.layer_norm.weight"
    assert afib["backbone.layer_norm.weight"] == "encoder.layer_norm.weight"
    assert afib["backbone.encoder.layer_norm.weight"] == "encoder.encoder.layer_norm.weight"


def leaves(value):
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return {kind for item in items for kind in leaves(item)}
    return {type(value)}


def test_a_file_with_numpy_scores_loads_with_inert_objects_in_their_place():
    with pytest.raises(pickle.UnpicklingError):
        content_of(AUC)
    kinds = leaves(read_archive(AUC)["extra_state"])
    assert Placeholder in kinds
    assert not any("numpy" in kind.__module__ for kind in kinds)
    assert read_checkpoint(AUC).num_labels == 1


def test_numpy_globals_that_others_registered_stay_registered():
    registered = [np.ndarray, np.dtype]
    with torch.serialization.safe_globals(registered):
        before = set(torch.serialization.get_safe_globals())
        assert read_checkpoint(AUC).num_labels == 1
        assert set(torch.serialization.get_safe_globals()) == before


def test_weight_norm_under_its_newer_names_gives_the_same_model(tmp_path):
    content, ecg_BCS = content_of(AFIB), torch.randn(2, 12, 500)
    stem = "encoder.conv_pos.pos_conv.0."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        content["model"][f"{stem}parametrizations.weight.{new}"] = content["model"].pop(stem + old)
    renamed = saved(content, tmp_path / "new_torch.pt")
    assert torch.equal(load_model(renamed)(ecg_BCS), load_model(AFIB)(ecg_BCS))
    content["model"][stem + "weight_g"] = torch.ones(1, 1, 8)
    message = refusal(saved(content, tmp_path / "both.pt"))
    assert "1 not in the model" in message


@pytest.mark.parametrize("where", ["top", "cfg", "model", "extra_state"])
def test_a_hostile_pickle_is_refused_and_nothing_in_it_runs(tmp_path, where):
    marker = tmp_path / "executed"
    for call in (
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(exec, f"open({str(marker)!r}, 'w')"),
        Runs(shutil.copy, str(AFIB), str(marker)),
        Runs(Path.touch, marker),
        Runs(np.ndarray.tofile, np.zeros(1), str(marker)),
    ):
        content = content_of(AFIB)
        if where == "top":
            content = call
        else:
            content[where]["x"] = call
        message = refusal(saved(content, tmp_path / "hostile.pt"))
        assert "refused, nothing in it was run" in message
        assert not marker.exists()


def test_the_refusal_names_what_the_pickle_asked_for(tmp_path):
    content = content_of(AFIB) | {"args": Runs(os.system, "true")}
    assert "posix.system" in refusal(saved(content, tmp_path / "hostile.pt"))


def test_a_conv_string_that_is_code_is_refused_and_not_evaluated(tmp_path):
    content, marker = content_of(AFIB), tmp_path / "executed"
    content["cfg"]["model"]["conv_feature_layers"] = f"[open({str(marker)!r}, 'w')]"
    message = refusal(saved(content, tmp_path / "code.pt"))
    assert "cfg.model.conv_feature_layers" in message
    assert not marker.exists()


def test_a_cfg_that_grows_without_end_is_named_by_its_type(tmp_path):
    content, nested = content_of(AFIB), []
    for _ in range(60):
        nested = [nested, nested]
    content["cfg"]["model"]["encoder_layers"] = nested
    assert "got a list" in refusal(saved(content, tmp_path / "nested.pt"))


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = AFIB.read_bytes()
    for kept in (10, 1000, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[:kept])
        assert "cut short or damaged" in refusal(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (
            b"<!DOCTYPE html><html>404",
            "not a torch file (no zip archive; it starts with b'<!DOCTYPE",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (pickle.dumps({"model": 1}), "an old torch file (before 1.6) or a bare pickle"),
    ],
)
def test_each_kind_of_other_file_has_its_own_message(tmp_path, content, message):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_missing_file_and_a_folder_without_a_model_have_different_messages(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pt")
    assert "a folder without model.safetensors" in refusal(tmp_path)


def test_a_zip_without_torch_content_is_damaged(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged torch file" in refusal(path)


def repacked(path, compression):
    with zipfile.ZipFile(AFIB) as old, zipfile.ZipFile(path, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return path


@pytest.mark.slow
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(200_000_000))
    assert bomb.stat().st_size < 300_000
    assert "is compressed" in refusal(bomb)
    assert "is compressed" in refusal(repacked(tmp_path / "small.pt", zipfile.ZIP_DEFLATED))


def test_an_archive_that_claims_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "claims.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 100)
        member = archive.infolist()[0]
        member.file_size = member.compress_size = 10**12
    assert "claim" in refusal(path)


def test_a_tensor_larger_than_the_memory_behind_it_is_refused(tmp_path):
    content = content_of(AFIB)
    content["model"]["proj.weight"] = torch.zeros(1).expand(2**40, 48)
    assert "claims shape (1099511627776, 48)" in refusal(saved(content, tmp_path / "huge.pt"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([float("nan")]), "proj.bias holds NaN or infinite values"),
        (torch.tensor([1]), "proj.bias must be a float tensor, got int64"),
        (torch.ones(0), "proj.bias holds no values"),
        (torch.ones(1).to_sparse(), "asks for torch._utils._rebuild_sparse_tensor"),
        (torch.ones(1, device="meta"), "asks for torch._utils._rebuild_meta_tensor_no_storage"),
        ([1.0], "must be a tensor, got list"),
    ],
)
def test_a_tensor_that_cannot_be_a_weight_is_named(tmp_path, value, message):
    content = content_of(AFIB)
    content["model"]["proj.bias"] = value
    assert message in refusal(saved(content, tmp_path / "x.pt"))


def test_missing_extra_and_misshapen_weights_are_all_listed(tmp_path):
    content = content_of(BASE)
    del content["model"]["encoder.layers.1.fc2.bias"]
    content["model"]["encoder.layers.0.adapter.weight"] = torch.ones(3)
    content["model"]["layer_norm.weight"] = torch.ones(17)
    message = refusal(saved(content, tmp_path / "x.pt"))
    assert "weights do not fit the model" in message
    assert "1 not in the file: backbone.encoder.layers.1.fc2.bias" in message
    assert "1 not in the model: backbone.encoder.layers.0.adapter.weight" in message
    assert "backbone.layer_norm.weight (file (17,), model (16,))" in message


def test_a_classifier_without_its_head_is_refused(tmp_path):
    content = content_of(AFIB)
    del content["model"]["proj.weight"], content["model"]["proj.bias"]
    assert "2 not in the file: head.bias, head.weight" in refusal(saved(content, tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer_norm_first", True, "must be False, got True: its layers normalize first"),
        ("extractor_mode", "layer_norm", "must be 'default', got 'layer_norm'"),
        ("conv_bias", True, "its conv stem has biases"),
        ("normalize", True, "normalized per lead"),
        ("encoder_layers", 3, "encoder_layers=3, but the weights do not fit: they have 2 layers"),
        ("encoder_embed_dim", 96, "of other shape"),
        ("encoder_attention_heads", 5, "encoder_attention_heads=5 must divide"),
        ("conv_pos", 0, "conv_pos must be between 1 and"),
        ("encoder_ffn_embed_dim", 10**30, "encoder_ffn_embed_dim must be between 1 and"),
    ],
)
def test_a_cfg_that_this_model_does_not_implement_is_refused_with_the_reason(
    tmp_path, name, value, message
):
    content = content_of(BASE)
    content["cfg"]["model"][name] = value
    assert message in refusal(saved(content, tmp_path / "x.pt"))


def test_a_number_of_attention_heads_that_is_not_stated_is_not_guessed(tmp_path):
    content = content_of(BASE)
    del content["cfg"]["model"]["encoder_attention_heads"]
    message = refusal(saved(content, tmp_path / "x.pt"))
    assert "cfg.model.encoder_attention_heads is missing" in message


def test_files_of_other_programs_are_refused_by_their_layout(tmp_path):
    message = refusal(saved({"state_dict": {"conv1.weight": torch.ones(1)}}, tmp_path / "x.pt"))
    assert "expected the original's layout" in message
    message = refusal(saved([1, 2], tmp_path / "x.pt"))
    assert "expected a dict at the top, got list" in message
    content = content_of(BASE) | {"model": {"conv1.weight": torch.ones(1)}}
    assert "weights of another model" in refusal(saved(content, tmp_path / "x.pt"))


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_of(path).startswith("ba7816bf")


def test_load_model_says_that_a_pretrained_file_has_no_head():
    with pytest.raises(ValueError, match="without a head; load_model"):
        load_model(BASE)
    with pytest.raises(ValueError, match="its head has 1 labels, not 3"):
        load_model(AFIB, num_labels=3)
    assert load_model(BASE, num_labels=3)(torch.randn(2, 12, 500)).shape == (2, 3)
    assert not load_model(AFIB).training


# Unusual files that must be readable.

NUMPY = [
    *(np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar),
    *(np.dtypes.Float16DType, np.dtypes.Float32DType, np.dtypes.Float64DType),
    np.dtypes.Int64DType,
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
]


def assert_reads_like_torch(path):
    """Every tensor of `model`, to the bit and in order."""
    with torch.serialization.safe_globals(NUMPY):
        plain = torch.load(path, weights_only=True)["model"]
    stored = read_checkpoint(path).tensors
    assert list(stored) == list(plain)
    for key, tensor in plain.items():
        ours = stored[key].to_torch()
        assert ours.dtype == tensor.dtype
        assert ours.is_contiguous()
        assert torch.equal(ours, tensor)
        assert np.array_equal(stored[key].array(), tensor.detach().float().numpy())
    load_model(path, num_labels=1)


def test_the_files_of_the_original_are_read_to_the_bit(real_data):
    files = sorted((real_data / "reference").glob("*.pt"))
    assert len(files) >= 5
    for file in files:
        assert_reads_like_torch(file)


def as_parameters(content):
    content["model"] = {k: torch.nn.Parameter(t) for k, t in content["model"].items()}


def as_state_dict(content):
    state = OrderedDict(content["model"])
    state._metadata = OrderedDict({"": {"version": 1}, "encoder": {"version": 1}})
    content["model"] = state


def transposed(content):
    for key in ("encoder.encoder.layers.0.fc1.weight", "encoder.conv_pos.pos_conv.0.weight_v"):
        tensor = content["model"][key]
        content["model"][key] = tensor.transpose(0, -1).contiguous().transpose(0, -1)
        assert not content["model"][key].is_contiguous()


def in_one_storage(content):
    flat = torch.cat([tensor.reshape(-1) for tensor in content["model"].values()])
    sizes = [tensor.numel() for tensor in content["model"].values()]
    parts = zip(content["model"].items(), flat.split(sizes), strict=True)
    content["model"] = {key: part.view(tensor.shape) for (key, tensor), part in parts}


def as_type(dtype):
    def convert(content):
        content["model"] = {k: t.to(dtype) for k, t in content["model"].items()}

    return convert


def with_numpy_scalars(content):
    metrics = {"auc": np.float64(0.5), "num": np.int64(3), "low": np.float32(0.25)}
    content["extra_state"]["metrics"] = metrics


@pytest.mark.parametrize(
    "change",
    [
        dict,
        as_parameters,
        as_state_dict,
        transposed,
        in_one_storage,
        with_numpy_scalars,
        *(as_type(t) for t in (torch.float16, torch.bfloat16, torch.float64)),
    ],
)
def test_files_saved_in_other_ways_are_read_to_the_bit(tmp_path, change):
    content = content_of(AFIB)
    change(content)
    assert_reads_like_torch(saved(content, tmp_path / "x.pt"))


def test_arrays_under_the_names_of_numpy_1_are_read(tmp_path):
    members = members_of(AUC)
    assert b"numpy._core.multiarray" in members["data.pkl"]
    members["data.pkl"] = members["data.pkl"].replace(b"numpy._core", b"numpy.core")
    old = tmp_path / "old.pt"
    old.write_bytes(zip_of((f"x/{name}", data) for name, data in members.items()))
    assert read_checkpoint(old).num_labels == 1
    assert_reads_like_torch(AUC)


def test_a_file_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(content_of(AFIB), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_reads_like_torch(path)


# Sizes.

SIZES = [
    Architecture(),
    replace(Architecture(), encoder_layers=1, in_d=3, conv_pos=16, conv_pos_groups=4),
    replace(Architecture(), encoder_layers=2, encoder_embed_dim=256, encoder_ffn_embed_dim=64),
    replace(Architecture(), conv_feature_layers=((16, 3, 3), (32, 2, 2)), encoder_layers=11),
    replace(Architecture(), conv_feature_layers=((16, 2, 2),) * 11 + ((32, 1, 1),)),
]


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("num_labels", [1, 77])
def test_the_expected_shapes_are_those_of_the_model_in_its_order(architecture, num_labels):
    model = build_on_meta(architecture, num_labels)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = expected_shapes(architecture, num_labels)
    assert expected == shapes
    assert list(expected) == list(shapes)
    headless = expected_shapes(architecture, None)
    assert headless == {name: shape for name, shape in shapes.items() if "head." not in name}


@pytest.mark.parametrize("architecture", SIZES)
def test_sizes_are_deduced_from_the_shapes(architecture):
    deduced = deduce_sizes(expected_shapes(architecture, 1))
    known = architecture_to_settings(architecture)
    del known["encoder_attention_heads"]  # leaves no trace
    assert deduced == known


@pytest.mark.parametrize("path", [BASE, AFIB, AUC])
def test_sizes_are_deduced_from_a_file_of_either_layout(path):
    checkpoint = read_checkpoint(path)
    shapes = {name: tensor.shape for name, tensor in checkpoint.parameters().items()}
    deduced = deduce_sizes(shapes)
    assert deduced.items() <= architecture_to_settings(checkpoint.architecture).items()
    assert len(deduced) == 7
    for name in shapes:
        assert isinstance(deduce_sizes({n: s for n, s in shapes.items() if n != name}), dict)
        assert isinstance(deduce_sizes(shapes | {name: ()}), dict)
        assert isinstance(deduce_sizes(shapes | {name: (0, 0, 0)}), dict)
