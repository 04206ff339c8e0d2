"""The sample order: a pure function of seed and epoch, whatever the number of processes."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st

from hpc_ecg.data.sampler import EpochSampler, cut_micro_batches, shuffled_epoch, slice_of_rank
from hpc_ecg.data.settings import DataConfig

FIRST = [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
SECOND_EPOCH = [5, 3, 7, 8, 11, 2, 4, 1, 10, 0, 6, 9]
SECOND_SEED = [3, 5, 2, 9, 7, 10, 0, 8, 6, 11, 1, 4]
DIGEST = "bed16978ae5ebca6f03bfa9e4a9258e89618fef68f605a64267cebabffd70156"

num_records = st.integers(1, 200)
batch_sizes = st.integers(1, 70)
world_sizes = st.integers(1, 9)
micro_batch_sizes = st.none() | st.integers(1, 40)
seeds = st.integers(0, 2**31)


def batch_of_step(step, records, batch_size, seed, kind="shuffled"):
    """As a run has it."""
    config, zeros = DataConfig(batch_size=batch_size, order=kind), np.zeros(records)
    schedule = EpochSampler(config=config, seed=seed, label_N=zeros, patient_N=None, shard_N=zeros)
    return schedule.batch(step)


def seen_in_step(step, records, batch_size, seed, world_size, micro_batch_size):
    """Records of one step, rank after rank and piece after piece, as the ranks would read them."""
    batch = batch_of_step(step, records, batch_size, seed)
    pieces = [
        batch[piece]
        for rank in range(world_size)
        for piece in cut_micro_batches(len(batch), rank, world_size, micro_batch_size)
    ]
    return np.concatenate(pieces).tolist()


@given(num_records, batch_sizes, world_sizes, micro_batch_sizes, seeds, st.integers(0, 3))
def test_each_record_is_seen_exactly_once_per_epoch(
    records, batch_size, world_size, micro_batch_size, seed, epoch
):
    steps = -(-records // batch_size)
    seen = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        seen += seen_in_step(step, records, batch_size, seed, world_size, micro_batch_size)
    assert sorted(seen) == list(range(records))
    assert seen == shuffled_epoch(records, seed, epoch).tolist()


@given(num_records, batch_sizes, world_sizes, micro_batch_sizes, seeds, st.integers(0, 500))
def test_a_step_holds_the_same_records_in_the_same_order_whatever_the_ranks(
    records, batch_size, world_size, micro_batch_size, seed, step
):
    alone = batch_of_step(step, records, batch_size, seed).tolist()
    shared = seen_in_step(step, records, batch_size, seed, world_size, micro_batch_size)
    assert shared == alone


@given(st.integers(1, 500), world_sizes, micro_batch_sizes)
def test_every_rank_has_as_many_pieces_and_none_is_larger_than_asked(
    num_items, world_size, micro_batch_size
):
    pieces = [
        cut_micro_batches(num_items, r, world_size, micro_batch_size) for r in range(world_size)
    ]
    assert len({len(of_rank) for of_rank in pieces}) == 1
    sizes = [piece.stop - piece.start for of_rank in pieces for piece in of_rank]
    assert sum(sizes) == num_items
    assert min(sizes) >= 0 and max(sizes) <= (micro_batch_size or num_items)
    # no forward more than the busiest rank needs
    largest = -(-num_items // world_size)
    assert len(pieces[0]) == -(-largest // min(micro_batch_size or largest, largest))


@given(st.integers(0, 1000), world_sizes)
def test_shares_of_ranks_are_contiguous_and_differ_by_one_at_most(num_items, world_size):
    slices = [slice_of_rank(num_items, rank, world_size) for rank in range(world_size)]
    assert slices[0].start == 0 and slices[-1].stop == num_items
    assert all(a.stop == b.start for a, b in pairwise(slices))
    sizes = {s.stop - s.start for s in slices}
    assert sizes <= {num_items // world_size, -(-num_items // world_size)}


def test_all_batches_are_full_but_the_last():
    assert [len(batch_of_step(step, 10, 4, 0)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [-(-n // 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_the_order_never_changes_between_versions():
    """Fails if a run could not be repeated by a later version. Do not update the values."""
    assert shuffled_epoch(12, 0, 0).tolist() == FIRST
    assert shuffled_epoch(12, 0, 1).tolist() == SECOND_EPOCH
    assert shuffled_epoch(12, 1, 0).tolist() == SECOND_SEED
    digest = hashlib.sha256(shuffled_epoch(100_000, 7, 3).astype("<i8").tobytes()).hexdigest()
    assert digest == DIGEST


@given(st.integers(50, 300), seeds, st.integers(0, 100))
def test_epochs_and_seeds_differ_and_none_is_the_order_of_the_table(records, seed, epoch):
    order = shuffled_epoch(records, seed, epoch).tolist()
    assert order != shuffled_epoch(records, seed, epoch + 1).tolist()
    assert order != shuffled_epoch(records, seed + 1, epoch).tolist()
    assert order != list(range(records))


def test_a_record_comes_at_every_place_of_an_epoch_about_as_often():
    places = np.array(
        [np.flatnonzero(shuffled_epoch(20, 0, epoch) == 0)[0] for epoch in range(2000)]
    )
    counts = np.bincount(places, minlength=20)
    assert (np.abs(counts - 100) < 50).all()  # five standard deviations


def test_no_caller_can_change_the_order_of_the_others():
    with pytest.raises(ValueError, match="read-only"):
        batch_of_step(0, 10, 4, 0)[0] = 3


def test_fixed_batches_are_the_ones_that_the_original_program_saw():
    seen = np.load(FIXTURES / "traj_bce_lr5e-5.npz")["ids"]  # its log: 5 epochs of 4 batches of 8
    ours = [batch_of_step(step, 32, 8, seed=1, kind="fixed_batches") for step in range(20)]
    assert np.array_equal(ours, seen)


def test_fixed_batches_keep_their_members_and_cover_each_record_once():
    epochs = [
        [batch_of_step(4 * epoch + k, 14, 4, 7, "fixed_batches").tolist() for k in range(4)]
        for epoch in range(6)
    ]
    members = [sorted(map(tuple, epoch)) for epoch in epochs]
    assert all(epoch == members[0] for epoch in members)
    assert sorted(record for batch in epochs[0] for record in batch) == list(range(14))
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) > 1
