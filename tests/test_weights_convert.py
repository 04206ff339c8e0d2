"""Conversion keeps weights bit for bit, resets heads, averages runs, reports what it leaves out,
and removes everything private on request."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FIXTURES

from hpc_ecg.cli import main
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import load_model, original
from hpc_ecg.weights.convert import convert, reset_head, soup
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.initialize import initialize
from hpc_ecg.weights.mapping import PRETRAINING, expected_shapes, file_key
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.weights.settings import InitConfig

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"
PEOPLE = FIXTURES / "tiny_wcr_afib_5y_auc_numpy.pt"


def weights_of(path):
    return torch.load(path, weights_only=False)["model"]


def same(first, second):
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


@pytest.mark.parametrize("source", [BASE, AFIB, PEOPLE], ids=lambda path: path.stem)
@pytest.mark.parametrize("strip", [False, True], ids=["whole", "strip"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_converting_there_and_back_keeps_bits_and_names(tmp_path, source, strip, ending):
    there, back = tmp_path / f"there{ending}", tmp_path / "back.pt"
    convert(source, there, strip=strip)
    convert(there, back, strip=strip)
    assert same(weights_of(source), weights_of(back))
    assert read_checkpoint(back).kind == read_checkpoint(source).kind
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_their_type_in_safetensors_and_pt(tmp_path, dtype):
    content = torch.load(BASE, weights_only=False)
    content["model"] = {name: tensor.to(dtype) for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "there.safetensors")
    convert(tmp_path / "there.safetensors", tmp_path / "back.pt")
    convert(tmp_path / "in.pt", tmp_path / "direct.pt", strip=True)
    for name in ("back.pt", "direct.pt"):
        assert same(content["model"], weights_of(tmp_path / name))


def test_the_names_of_a_newer_torch_are_kept(tmp_path):
    content = torch.load(AFIB, weights_only=False)
    newer = {"weight_g": "parametrizations.weight.original0"}
    newer["weight_v"] = "parametrizations.weight.original1"
    for old, new in newer.items():
        content["model"] = {
            name.replace(old, new): tensor for name, tensor in content["model"].items()
        }
    torch.save(content, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.pt")
    assert same(content["model"], weights_of(tmp_path / "out.pt"))
    assert any(name.endswith("weight.original0") for name in content["model"])
    convert(tmp_path / "in.pt", tmp_path / "ours.safetensors")
    assert torch.equal(
        load_model(tmp_path / "ours.safetensors").state_dict()["head.weight"],
        content["model"]["proj.weight"],
    )


def test_pt_to_pt_is_a_copy_with_a_warning_about_patient_values(tmp_path):
    lines = convert(PEOPLE, tmp_path / "out.pt")
    assert any("64 scores and labels of people" in line and "--strip" in line for line in lines)
    assert (tmp_path / "out.pt").read_bytes() == PEOPLE.read_bytes()
    (line,) = convert(AFIB, tmp_path / "plain.pt")
    assert line.startswith("written: ") and "a copy" in line


def test_pt_to_pt_with_labels_keeps_cfg_and_tensors_and_reports_what_is_left_out(tmp_path):
    lines = convert(PEOPLE, tmp_path / "out.pt", labels=["af"])
    for part in ("optimizer", "people", "meters"):
        assert any(line.startswith("left out") and part in line for line in lines), part
    before = torch.load(PEOPLE, weights_only=False)
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(after) == [key for key in before if key != "last_optimizer_state"]
    assert before["cfg"] == after["cfg"]
    assert same(before["model"], after["model"]) and list(before["model"]) == list(after["model"])
    assert read_checkpoint(tmp_path / "out.pt").labels == ["af"]


def test_stripped_files_hold_no_path_no_patient_value_and_no_training_state(tmp_path):
    lines = convert(PEOPLE, tmp_path / "out.pt", strip=True)
    for part in ("optimizer", "people", "meters", "4 paths"):
        assert any(part in line for line in lines), part
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    assert b"/data/deepecg" not in (tmp_path / "out.pt").read_bytes()
    assert "last_optimizer_state" not in after
    assert set(after["extra_state"]) == set(
        original.build_content("classifier", {}, {})["extra_state"]
    )
    assert after["extra_state"]["metrics"] == {}
    before = torch.load(PEOPLE, weights_only=False)["cfg"]
    assert list(after["cfg"]) == list(before)
    assert after["cfg"]["criterion"] == before["criterion"], "its own cfg, not a template"
    # needed by the original's loader
    assert after["optimizer_history"][-1]["num_updates"] == 0
    assert "lr_scheduler_state" in after["optimizer_history"][-1]
    assert after["extra_state"]["train_iterator"]["epoch"] == 1


def test_what_safetensors_cannot_hold_is_reported(tmp_path):
    report = "\n".join(convert(AFIB, tmp_path / "out.safetensors", labels=["af"]))
    for part in ("optimizer's state (86 tensors)", "meters", "settings of the training (cfg)"):
        assert part in report
    checkpoint = read_checkpoint(tmp_path / "out.safetensors")
    assert (checkpoint.labels, checkpoint.signal) == (["af"], None)
    assert checkpoint.provenance[0]["sha256"] == sha256_of(AFIB)
    assert str(FIXTURES) not in json.dumps(checkpoint.provenance)


def test_labels_signal_and_provenance_survive_conversion_to_pt(tmp_path):
    model, signal = load_model(AFIB), SignalSpec(sample_rate_hz=500)
    save_model(tmp_path / "model.safetensors", model, model.architecture, ["af"], signal)
    (tmp_path / "operating_point.json").write_text("{}")
    lines = convert(tmp_path, tmp_path / "out.pt")
    assert any("operating_point.json" in line for line in lines)
    for strip, steps in ((False, 1), (True, 0)):
        convert(tmp_path / "out.pt", tmp_path / f"{strip}.pt", strip=strip)
        checkpoint = read_checkpoint(tmp_path / f"{strip}.pt")
        assert (checkpoint.labels, checkpoint.signal) == (["af"], signal)
        assert [step["action"] for step in checkpoint.provenance] == ["convert"] * steps


@pytest.mark.parametrize(
    ("name", "layout"), [("base_ssl", "base_ssl"), ("wcr_afib_5y", "classifier")]
)
def test_a_new_full_size_file_has_every_key_of_the_originals_in_order(real_data, name, layout):
    text = (real_data / f"reference/full_{name}_skeleton.json").read_text()
    theirs, shapes = (json.loads(text)[part] for part in ("skeleton", "shapes"))
    rows = 1 if layout == "classifier" else None
    keys = [file_key(n, layout) for n in expected_shapes(Architecture(), rows)]
    if layout == "base_ssl":
        mask, *others = (file_key(name, layout) for name in PRETRAINING)
        keys = [mask, *keys, *others]
    model = {key: SimpleNamespace(shape=tuple(shapes[key])) for key in keys}
    cfg = original.build_cfg(layout, model, Architecture(), rows)
    ours = original.build_content(layout, cfg, model)
    assert keys == list(shapes)
    assert [key for key in ours if key != "model"] == list(theirs)
    assert list(ours["extra_state"]) == [key for key in theirs["extra_state"] if key != "best"]
    assert list(ours["cfg"]) == list(theirs["cfg"])
    other = {
        f"{section}.{key}"
        for section, settings in theirs["cfg"].items()
        for key in settings or ()
        if ours["cfg"][section][key] != settings[key]
    }
    assert other <= {"checkpoint.save_dir", "model.data", "task.data", "model.model_path"}
    orders = [[list(s or ()) for s in cfg.values()] for cfg in (ours["cfg"], theirs["cfg"])]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("source", [BASE, AFIB], ids=lambda path: path.stem)
def test_a_reset_head_is_the_one_that_training_would_make(tmp_path, source, ending):
    out, labels = tmp_path / f"out{ending}", ["af", "flutter"]
    reset_head(source, out, seed=7, labels=labels)
    init = InitConfig(checkpoint=str(source), head="new")
    trained = initialize(init, ModelConfig(), 2, labels, "none", 7).model
    assert same(dict(trained.state_dict()), dict(load_model(out).state_dict()))
    checkpoint = read_checkpoint(out)
    assert checkpoint.labels == labels and checkpoint.num_labels == 2
    (step,) = checkpoint.provenance
    assert (step["action"], step["seed"], step["sha256"]) == ("reset-head", 7, sha256_of(source))
    assert step["version"]


def test_resetting_the_head_of_a_pt_removes_the_optimizer_and_keeps_its_cfg(tmp_path):
    reset_head(PEOPLE, tmp_path / "out.pt", seed=1, num_labels=3)
    before = torch.load(PEOPLE, weights_only=False)
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    assert "last_optimizer_state" not in after and after["extra_state"]["metrics"] == {}
    assert after["cfg"]["model"] == before["cfg"]["model"] | {"num_labels": 3}
    assert list(after["model"]) == list(before["model"])
    assert after["model"]["proj.weight"].shape == (3, 48)
    backbone = [name for name in before["model"] if name.startswith("encoder.")]
    assert all(torch.equal(before["model"][n], after["model"][n]) for n in backbone)


def test_a_soup_is_the_mean_and_states_its_parts(tmp_path):
    for seed in (1, 2, 3):
        best = tmp_path / f"run-{seed}" / "best"
        best.mkdir(parents=True)
        reset_head(AFIB, best / "model.safetensors", seed=seed, labels=["af"])
    runs = [tmp_path / f"run-{seed}" for seed in (1, 2, 3)]
    assert main(["weights", "soup", str(tmp_path / "mean.safetensors"), *map(str, runs)]) == 0
    states = [load_model(run / "best").state_dict() for run in runs]
    mean = load_model(tmp_path / "mean.safetensors").state_dict()
    for name, tensor in mean.items():
        expected = np.mean([state[name].double().numpy() for state in states], axis=0)
        assert torch.equal(tensor, torch.from_numpy(expected).float())
    (step,) = read_checkpoint(tmp_path / "mean.safetensors").provenance
    digests = [sha256_of(run / "best/model.safetensors") for run in runs]
    assert [part["sha256"] for part in step["sources"]] == digests
    assert step["sources"][0]["provenance"][0]["seed"] == 1


def test_a_soup_of_pre_trained_files_is_a_pre_trained_file(tmp_path):
    convert(BASE, tmp_path / "again.pt", strip=True)  # the same weights in another file
    soup([BASE, tmp_path / "again.pt"], tmp_path / "mean.pt")
    assert same(weights_of(BASE), weights_of(tmp_path / "mean.pt"))


def test_a_soup_of_duplicate_files_or_different_starts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the same file is given twice"):
        soup([BASE, BASE], tmp_path / "mean.pt")
    model = load_model(AFIB)
    for name, sha256 in (("a", "1" * 64), ("b", "2" * 64)):
        done = [{"action": "finetune", "sha256": sha256, "seed": 0}]
        folder = tmp_path / name / "best"
        folder.mkdir(parents=True)
        file = folder / "model.safetensors"
        save_model(file, model, model.architecture, ["af"], SignalSpec(), done)
    with pytest.raises(ValueError, match="differ in the file that they started from"):
        soup([tmp_path / "a", tmp_path / "b"], tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_thresholds_are_mentioned_only_where_they_are_still_valid(tmp_path):
    for seed in (0, 1):
        best = tmp_path / f"run-{seed}" / "best"
        best.mkdir(parents=True)
        reset_head(AFIB, best / "model.safetensors", seed=seed, labels=["af"])
        (best / "operating_point.json").write_text("{}")
    lines = convert(tmp_path / "run-0", tmp_path / "kept.pt")  # from a run's folder
    assert any("take" in line and "operating_point.json" in line for line in lines)
    lines = reset_head(tmp_path / "run-0", tmp_path / "new.pt", seed=5)
    assert not any("operating_point" in line for line in lines)
    lines = soup([tmp_path / "run-0", tmp_path / "run-1"], tmp_path / "mean.pt")
    assert "left out: thresholds of the runs; fit them anew for the mean" in lines


@pytest.mark.parametrize("place", ["extra_state", "cfg"])
def test_files_that_refer_to_themselves_do_not_hang(tmp_path, place):
    content = torch.load(AFIB, weights_only=False)
    laughs, loop = ["ha"], []
    for _ in range(60):
        laughs = [laughs, laughs]
    loop.append(loop)
    for name, value in (("laughs", laughs), ("loop", loop)):
        content[place]["odd"] = value
        torch.save(content, tmp_path / f"{name}.pt")
        convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
        if place == "extra_state":
            convert(tmp_path / f"{name}.pt", tmp_path / f"{name}-out.pt", strip=True)
            continue
        with pytest.raises(ValueError, match="not a tree of plain settings"):
            convert(tmp_path / f"{name}.pt", tmp_path / f"{name}-out.pt", strip=True)
        assert not (tmp_path / f"{name}-out.pt").exists()


def test_a_tensor_beside_the_weights_takes_no_memory(tmp_path):
    content = torch.load(AFIB, weights_only=False)
    content["extra_state"]["big"] = torch.zeros(1).expand(10**9)
    torch.save(content, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.pt", labels=["af"])
    assert (tmp_path / "out.pt").stat().st_size < 10**6


def test_our_files_keep_pretraining_tensors_by_name(tmp_path):
    convert(BASE, tmp_path / "ours.safetensors")
    names = set(read_checkpoint(tmp_path / "ours.safetensors").tensors)
    assert PRETRAINING.keys() <= names
    lines = reset_head(tmp_path / "ours.safetensors", tmp_path / "out.pt", seed=0, num_labels=1)
    assert "left out: 8 tensors that only pre-training uses" in lines


def test_the_head_of_a_classifier_with_pretraining_tensors_can_be_reset(tmp_path):
    content = torch.load(AFIB, weights_only=False)
    content["model"]["encoder.mask_emb"] = torch.ones(48)
    torch.save(content, tmp_path / "in.pt")
    lines = reset_head(tmp_path / "in.pt", tmp_path / "out.pt", seed=0)
    assert "left out: 1 tensors that only pre-training uses" in lines
    assert len(weights_of(tmp_path / "out.pt")) == len(content["model"]) - 1


def failure(capsys, *words) -> str:
    assert main(["weights", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_each_mistake_gets_one_line_and_writes_nothing(capsys, tmp_path):
    out, there = tmp_path / "out.pt", tmp_path / "there.pt"
    there.write_bytes(AFIB.read_bytes())
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    cases = {
        ("convert", "none.pt", out): "none.pt: no such file",
        ("convert", tmp_path / "text.pt", out): "not a torch file",
        ("convert", "x.onnx", out): "can be written, not read",
        ("convert", AFIB, tmp_path / "out.bin"): "ending must be one of .pt, .safetensors, .onnx",
        ("convert", AFIB, there): "exists; give --force",
        ("convert", there, there, "--force"): "is also the source",
        ("convert", AFIB, tmp_path / "folder.pt"): "is a folder",
        ("convert", AFIB, out, "--labels", "a,b"): "2 label names for a head of 1",
        ("convert", AFIB, out, "--labels", "a,,b"): "--labels must be different names",
        ("convert", BASE, out, "--labels", "a"): "weights without a head",
        ("reset-head", BASE, out, "--seed", "1"): "has no head; give --labels or --num-labels",
        ("reset-head", AFIB, out, "--seed", "-1"): "--seed must be between 0",
        ("reset-head", AFIB, out, "--seed", "1", "--num-labels", "0"): "--num-labels must be",
        ("soup", out, AFIB): "at least two files",
        ("soup", out, AFIB, BASE): "cannot be averaged, they differ in number of labels",
        ("soup", out, AFIB, tmp_path / "no"): "no: no such file",
    }
    for words, expected in cases.items():
        assert expected in failure(capsys, *words), words
    assert {path.name for path in tmp_path.iterdir()} == {"there.pt", "folder.pt", "text.pt"}
    assert main(["weights", "convert", str(AFIB), str(there), "--force"]) == 0


def test_soups_of_different_labels_or_signals_are_refused(tmp_path):
    model, changes = load_model(AFIB), {"a": (["af"], 250), "b": (["mi"], 250), "c": (["af"], 500)}
    paths = {}
    for name, (labels, rate) in changes.items():
        paths[name] = tmp_path / f"{name}.safetensors"
        signal = SignalSpec(sample_rate_hz=rate)
        save_model(paths[name], model, model.architecture, labels, signal)
    for other, what in (("b", r"labels: \['af'\] and \['mi'\]"), ("c", "signal")):
        with pytest.raises(ValueError, match=f"differ in {what}"):
            soup([paths["a"], paths[other]], tmp_path / "x.pt")
    assert not Path(tmp_path / "x.pt").exists()
