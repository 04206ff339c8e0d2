"""Micro-batches: what a rank reads, and the thread that reads ahead of it."""

import threading
import time

import numpy as np
import pytest

from hpc_ecg.data import loader
from hpc_ecg.data.dataset import DataConfig, open_split
from hpc_ecg.data.loader import AHEAD, collate_step, prefetch, prefetch_in_order
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.shards.format import read_shard_set

SEED = 5


@pytest.fixture(scope="module")
def train(shards):
    return open_split(read_shard_set(shards), "train", ["af"])


def schedule_of(train, batch_size=12, **settings):
    return EpochSampler.for_split(train, DataConfig(batch_size=batch_size, **settings), SEED)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("reading")]


def join(step_batches):
    """Arrays and labels of all pieces that count, rank after rank."""
    pieces = [p for batch in step_batches for p in batch.micro_batches if p.weight]
    return (
        np.concatenate([p.counts_nCS for p in pieces]),
        np.concatenate([p.labels_nK for p in pieces]),
    )


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, None), (1, 5), (3, 2), (4, None)])
@pytest.mark.parametrize("step", [0, 3])
def test_all_ranks_together_read_the_batch_of_the_step(train, world_size, micro_batch_size, step):
    positions = schedule_of(train).batch(step)
    shares = [
        RankSlice(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
        for rank in range(world_size)
    ]
    read = [collate_step(train, step, schedule_of(train), share) for share in shares]
    counts_NCS, labels_NK = join(read)
    np.testing.assert_array_equal(counts_NCS, train.read(positions))
    np.testing.assert_array_equal(labels_NK, train.labels_NK[positions])
    for batch in read:
        assert batch.step == step
        np.testing.assert_array_equal(batch.positions, positions)
        np.testing.assert_array_equal(batch.global_labels_BK, train.labels_NK[positions])


def test_an_empty_piece_is_one_dummy_record_of_weight_zero(train):
    share = RankSlice(rank=0, world_size=3, micro_batch_size=1)
    batch = collate_step(train, 0, schedule_of(train, 2), share)  # two records for three ranks
    (piece,) = batch.micro_batches
    assert piece.weight == 0
    assert piece.counts_nCS.shape == (1, 12, 2500) and piece.counts_nCS.dtype == np.int16
    assert piece.labels_nK.shape == (1, 1)
    others = [
        collate_step(train, 0, schedule_of(train, 2), RankSlice(rank=r, world_size=3))
        for r in (1, 2)
    ]
    assert [b.micro_batches[0].weight for b in others] == [1, 1]


def test_reading_ahead_gives_what_reading_step_by_step_gives(train):
    share = RankSlice(rank=1, world_size=2, micro_batch_size=4)
    steps = [2, 3, 4, 9, 10, 11, 12]
    seen = []
    for batch in prefetch(train, steps, schedule_of(train), share):
        time.sleep(0.01)  # what is read ahead meanwhile must not touch this batch
        seen.append(batch.step)
        plain = collate_step(train, batch.step, schedule_of(train), share)
        for ours, theirs in zip(batch.micro_batches, plain.micro_batches, strict=True):
            np.testing.assert_array_equal(ours.counts_nCS, theirs.counts_nCS)
            np.testing.assert_array_equal(ours.labels_nK, theirs.labels_nK)
            assert ours.weight == theirs.weight
    assert seen == steps
    assert list(prefetch(train, [], schedule_of(train), share)) == []


def test_batches_are_read_into_the_same_memory_again(train):
    steps = range(3 * (AHEAD + 1))
    batches = prefetch(train, steps, schedule_of(train), RankSlice())
    where = [batch.micro_batches[0].counts_nCS.ctypes.data for batch in batches]
    assert len(set(where)) == AHEAD + 1


@pytest.mark.parametrize("part", [slice(0, 30), slice(7, 8), slice(20, 20)])
def test_a_part_of_a_split_is_read_in_its_own_order(train, part):
    counts_NCS = [m.counts_nCS.copy() for m in prefetch_in_order(train, part, 8)]
    expected = train.read(np.arange(part.start, part.stop))
    assert sum(map(len, counts_NCS)) == len(expected)
    if counts_NCS:
        np.testing.assert_array_equal(np.concatenate(counts_NCS), expected)


def test_the_next_step_is_read_while_this_one_is_worked_on(train, monkeypatch):
    started = []

    def noting(dataset, step, *more):
        started.append(step)
        return step

    monkeypatch.setattr(loader, "collate_step", noting)
    reading = prefetch(train, range(100), schedule_of(train), RankSlice())
    assert next(reading) == 0
    time.sleep(0.1)
    assert started == [0, *range(1, AHEAD + 1)]  # and no more: memory stays small
    reading.close()


def test_closing_early_leaves_no_thread_behind(train):
    reading = prefetch(train, range(1000), schedule_of(train), RankSlice())
    next(reading)
    assert len(reading_threads()) == 1
    reading.close()
    assert reading_threads() == []


def test_an_error_while_reading_reaches_the_caller_at_its_step(train, monkeypatch):
    def failing(dataset, step, *more):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    monkeypatch.setattr(loader, "collate_step", failing)
    reading = prefetch(train, range(9), schedule_of(train), RankSlice())
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(reading)
    assert reading_threads() == []
