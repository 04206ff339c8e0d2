"""A checkpoint counts when it is complete, and brings back weights, moments and progress."""

import pytest
import torch
from torch import nn

from hpc_ecg.training import checkpoint
from hpc_ecg.training.checkpoint import (
    Progress,
    complete_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    update_progress,
)


def load_newest(folder, model):
    path, progress = newest_checkpoint(folder)
    load_checkpoint(path, model)
    return progress


def save(folder, progress, model, keep=2):
    save_checkpoint(folder, progress, model, {"exp_avg/weight": torch.ones(2)}, keep)


def model_of(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_what_was_saved_comes_back(tmp_path):
    model, again = model_of(), model_of(seed=5)
    moments = {"exp_avg/weight": torch.randn(2, 3), "step/weight": torch.tensor(3.0)}
    average = {"weight": torch.randn(2, 3)}
    save_checkpoint(tmp_path, Progress(step=3, best_score=0.7), model, moments, 2, average)
    path, progress = newest_checkpoint(tmp_path)
    loaded = load_checkpoint(path, again)
    assert progress == Progress(step=3, best_score=0.7)
    assert torch.equal(model.weight, again.weight) and torch.equal(model.bias, again.bias)
    for ours, theirs in zip(loaded, (moments, average), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, Progress(step=step), model_of())
    names = [path.name for path in complete_checkpoints(tmp_path)]
    assert names == ["step-0000002", "step-0000010"]


def test_a_checkpoint_without_its_mark_does_not_count(tmp_path):
    for step in (1, 2):
        save(tmp_path, Progress(step=step), model_of())
    (tmp_path / "step-0000002" / "COMPLETE").unlink()
    assert load_newest(tmp_path, model_of()).step == 1
    # Nor does it take the place of a complete one when old ones are deleted.
    save(tmp_path, Progress(step=3), model_of(), keep=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        "step-0000001",
        "step-0000003",
    ]


def test_the_mark_is_written_last(tmp_path, monkeypatch):
    real, before_mark = checkpoint.write_json, []

    def write_json(path, value):
        if path.name == "COMPLETE":
            before_mark.extend(file.name for file in path.parent.iterdir())
        real(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_json)
    save(tmp_path, Progress(step=1), model_of())
    assert sorted([*before_mark, "COMPLETE"]) == sorted(PARTS)


def cut_off(data: bytes) -> bytes:
    return data[:-20]


def with_a_bit_flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


PARTS = ("model.safetensors", "optimizer.safetensors", "progress.json", "COMPLETE")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", [cut_off, with_a_bit_flipped])
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, caplog, name, damage):
    for step in (1, 2):
        save(tmp_path, Progress(step=step, best_score=0.5), model_of())
    file = tmp_path / "step-0000002" / name
    file.write_bytes(damage(file.read_bytes()))
    assert load_newest(tmp_path, model_of()).step == 1
    assert "step-0000002 is damaged" in caplog.text


def test_a_checkpoint_that_this_node_does_not_see_is_waited_for_and_named(tmp_path):
    with pytest.raises(ValueError, match=r"step-1.COMPLETE is not seen from .*; is it shared\?"):
        load_checkpoint(tmp_path / "step-1", model_of(), patience_s=0.2)


def test_nothing_saved_is_nothing_to_load(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_the_outcome_of_an_evaluation_is_noted_in_its_checkpoint(tmp_path):
    save(tmp_path, Progress(step=4), model_of())
    update_progress(tmp_path, Progress(step=4, evaluated_step=4, best_score=0.9, best_step=4))
    assert load_newest(tmp_path, model_of()).best_score == 0.9


def test_weights_of_another_shape_are_not_loaded(tmp_path):
    save(tmp_path, Progress(step=1), model_of(), keep=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_newest(tmp_path, nn.Linear(4, 2))


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    save(tmp_path, Progress(step=1), model_of())
    monkeypatch.setattr(checkpoint, "save_file", _no_space)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, Progress(step=2), model_of())
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


def _no_space(*_):
    raise OSError(28, "No space left on device")
