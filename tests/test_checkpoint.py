"""A checkpoint counts when it is complete, and brings back weights, moments and progress."""

import logging

import pytest
import torch
from torch import nn

from hpc_ecg.training.checkpoint import (
    Progress,
    complete_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    update_progress,
)


def load_newest(folder, model, optimizer):
    path, progress = newest_checkpoint(folder)
    load_checkpoint(path, model, optimizer)
    return progress


def trained(steps: int, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_what_was_saved_comes_back_and_goes_on_the_same(tmp_path):
    model, optimizer = trained(3)
    save_checkpoint(tmp_path, Progress(step=3, best_score=0.7), model, optimizer, keep=2)
    again, other = trained(1, seed=5)
    assert load_newest(tmp_path, again, other) == Progress(step=3, best_score=0.7)
    for m, o in ((model, optimizer), (again, other)):
        m(torch.ones(1, 3)).square().sum().backward()
        o.step()
    assert torch.equal(model.weight, again.weight) and torch.equal(model.bias, again.bias)


def test_only_the_newest_stay(tmp_path):
    model, optimizer = trained(1)
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, Progress(step=step), model, optimizer, keep=2)
    names = [path.name for path in complete_checkpoints(tmp_path)]
    assert names == ["step-0000002", "step-0000010"]


def test_a_checkpoint_without_its_mark_does_not_count(tmp_path):
    model, optimizer = trained(1)
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step=step), model, optimizer, keep=2)
    (tmp_path / "step-0000002" / "COMPLETE").unlink()
    assert load_newest(tmp_path, *trained(1)).step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_checkpoint_that_was_cut_off_is_passed_over_and_said(tmp_path, caplog, name):
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step=step), *trained(1), keep=2)
    file = tmp_path / "step-0000002" / name
    file.write_bytes(file.read_bytes()[:-20])
    logging.getLogger("hpc_ecg").propagate = True
    assert load_newest(tmp_path, *trained(1)).step == 1
    assert "step-0000002 is damaged" in caplog.text


def test_a_checkpoint_that_this_node_does_not_see_is_waited_for_and_named(tmp_path):
    with pytest.raises(ValueError, match=r"step-1.COMPLETE is not seen from .*; is it shared\?"):
        load_checkpoint(tmp_path / "step-1", *trained(1), patience_s=0.2)


def test_nothing_saved_is_nothing_to_load(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_the_outcome_of_an_evaluation_is_noted_in_its_checkpoint(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, Progress(step=4), model, optimizer, keep=2)
    update_progress(tmp_path, Progress(step=4, evaluated_step=4, best_score=0.9, best_step=4))
    assert load_newest(tmp_path, *trained(1)).best_score == 0.9


def test_weights_of_another_shape_are_not_loaded(tmp_path):
    save_checkpoint(tmp_path, Progress(step=1), *trained(1), keep=1)
    other = nn.Linear(4, 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_newest(tmp_path, other, torch.optim.AdamW(other.parameters()))
