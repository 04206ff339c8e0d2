"""Outputs stay on the device until several batches are done, and are the same as one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc_ecg.data.dataset import open_split
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.training import predict as predicting
from hpc_ecg.training.predict import predict


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_outputs_are_copied_a_few_batches_at_a_time_and_in_order(
    monkeypatch, shards, at_once, batch_size
):
    dataset = open_split(read_shard_set(shards), "train", ["af"])
    expected = dataset.read(np.arange(len(dataset))).sum((1, 2)).astype(np.float32)[:, None]
    waited, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: waited.append(1) or real(tensor))
    monkeypatch.setattr(predicting, "AT_ONCE", at_once)

    def infer(micro, factor):
        assert len(micro.counts_nCS) == batch_size, "always the same shape"
        return torch.from_numpy(micro.counts_nCS.sum((1, 2)).astype(np.float32))[:, None]

    engine = SimpleNamespace(
        rank=0, world_size=1, is_rank_zero=True, collective_forward=False, infer=infer
    )
    np.testing.assert_array_equal(predict(engine, dataset, batch_size), expected)
    batches = -(-len(dataset) // batch_size)
    assert len(waited) == -(-batches // at_once)
