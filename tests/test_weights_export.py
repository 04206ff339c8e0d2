"""What we write can be read again, bit for bit, by us and by plain torch."""

import json
import random

import pytest
import torch
from conftest import FIXTURES
from original_files import export_original, pretraining_tensors
from safetensors import safe_open

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.transformer import Architecture, build_on_meta
from hpc_ecg.weights import load_model
from hpc_ecg.weights.convert import convert
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.mapping import file_key
from hpc_ecg.weights.original import build_cfg
from hpc_ecg.weights.reading import read_checkpoint

AFIB = FIXTURES / "tiny_wcr_afib_5y.pt"


@pytest.fixture
def model():
    return load_model(AFIB)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_our_file_round_trips_bit_for_bit_with_its_metadata(tmp_path, model):
    signal = SignalSpec(sample_rate_hz=500)
    save_model(tmp_path / "model.safetensors", model, model.architecture, ["af"], signal)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        assert (checkpoint.kind, checkpoint.labels, checkpoint.signal) == (
            "hpc_ecg",
            ["af"],
            signal,
        )
        assert checkpoint.architecture == model.architecture
        assert same(load_model(path).state_dict(), model.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1, "as readable for colleagues as any other file"


def test_a_state_dict_gathered_from_ranks_can_be_saved_as_well(tmp_path, model):
    path = tmp_path / "m.safetensors"
    save_model(path, model.state_dict(), model.architecture, ["af"], SignalSpec())
    assert same(load_model(path).state_dict(), model.state_dict())
    incomplete = model.state_dict()
    del incomplete["head.bias"]
    with pytest.raises(ValueError, match=r"1 not in the file: head.bias"):
        save_model(path, incomplete, model.architecture, ["af"], SignalSpec())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, model, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, model, model.architecture, ["af"], SignalSpec())
    before = path.read_bytes()

    def full_disk(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("hpc_ecg.weights.export.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(path, model, model.architecture, ["af"], SignalSpec())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("layout", "total"), [("classifier", 49), ("base_ssl", 55)])
def test_the_originals_layouts_round_trip_bit_for_bit(tmp_path, model, layout, total):
    path = tmp_path / "x.pt"
    export_original(path, model, layout)
    plain, original = (
        torch.load(path, weights_only=True),
        torch.load(
            FIXTURES / ("tiny_base_ssl.pt" if layout == "base_ssl" else AFIB.name),
            weights_only=True,
        ),
    )
    assert list(plain) == list(original)[: len(plain)]
    assert list(plain["model"]) == list(original["model"])
    assert len(plain["model"]) == total
    for part in ("cfg", "extra_state"):
        assert list(plain[part]) == [key for key in original[part] if key != "best"]
    assert list(plain["optimizer_history"][-1]) == list(original["optimizer_history"][-1])
    other = set()
    for section, settings in original["cfg"].items():
        assert type(plain["cfg"][section]) is type(settings)
        if isinstance(settings, dict):
            assert list(plain["cfg"][section]) == list(settings)
            other |= {n for n, value in settings.items() if plain["cfg"][section][n] != value}
    of_the_run = {"batch_size", "batch_size_valid", "max_epoch", "max_update", "latent_vars"}
    of_the_run |= {"no_epoch_checkpoints", "no_save_optimizer_state", "final_dim"}
    assert other - of_the_run <= {"save_dir", "data", "model_path"}
    again = load_model(path, num_labels=1).state_dict()
    heads = () if layout == "classifier" else ("head.weight", "head.bias")
    state = {n: t for n, t in model.state_dict().items() if n not in heads}
    assert same({n: again[n] for n in state}, state)


def test_the_pretraining_tensors_have_the_published_shapes_and_are_seeded():
    keys = json.loads((FIXTURES / "keys_base_ssl.json").read_text())
    seeded = pretraining_tensors(Architecture(), 0)
    extra = {file_key(name, "base_ssl"): tensor for name, tensor in seeded.items()}
    assert {name: list(tensor.shape) for name, tensor in extra.items()} == {
        name: shape for name, shape in keys.items() if name in extra
    }
    assert same(seeded, pretraining_tensors(Architecture(), 0))
    backbone = [n for n in build_on_meta(Architecture(), 1).state_dict() if n[:5] != "head."]
    assert len(backbone) + len(extra) == len(keys) == 215
    assert {file_key(n, "base_ssl") for n in backbone} | extra.keys() == keys.keys()
    cfg = build_cfg("base_ssl", extra, Architecture(), None)["model"]
    assert (cfg["final_dim"], cfg["latent_vars"], cfg["latent_groups"]) == (256, 320, 2)


def test_an_unknown_layout_is_named(tmp_path, model):
    with pytest.raises(ValueError, match="layout must be one of base_ssl, classifier, got 'onnx'"):
        export_original(tmp_path / "x.pt", model, "onnx")


def test_a_wrong_number_of_label_names_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match="2 label names for a head of 1"):
        save_model(tmp_path / "x", model, model.architecture, ["a", "b"], SignalSpec())


def test_a_damaged_or_foreign_safetensors_file_is_refused(tmp_path, model):
    path = tmp_path / "x.safetensors"
    save_model(path, model, model.architecture, ["af"], SignalSpec())
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"format", "architecture", "labels", "signal", "sha256"}
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged safetensors file"):
        read_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not written by hpc_ecg"):
        read_checkpoint(path)
    save_file({"a": torch.ones(1)}, path, {"format": "hpc_ecg/1", "architecture": "[]"})
    with pytest.raises(ValueError, match="metadata `architecture` must be a JSON dict"):
        read_checkpoint(path)


def test_a_written_file_states_its_own_digest_and_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "moved.safetensors"
    convert(FIXTURES / "tiny_base_ssl.pt", path)
    before = path.read_bytes()
    draw = random.Random(0)
    header = 8 + int.from_bytes(before[:8], "little")
    bits = [draw.randrange(8 * len(before)) for _ in range(30)]
    for bit in bits + [draw.randrange(8 * header) for _ in range(30)]:
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"moved\.safetensors: "):
            read_checkpoint(path)
            pytest.fail(f"bit {bit}")
    path.write_bytes(before.replace(b'"sha256":"', b'"sha25?":"', 1))  # as older versions wrote it
    read_checkpoint(path)


def test_a_label_that_looks_like_the_digest_changes_nothing(tmp_path):
    label = f'"sha256":"{"0" * 64}"'
    convert(AFIB, tmp_path / "x.safetensors", labels=[label])
    assert read_checkpoint(tmp_path / "x.safetensors").labels == [label]
