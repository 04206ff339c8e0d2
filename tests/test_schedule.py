"""Samplings and streams: exactly once, whatever the ranks, the batches and the place of a start."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ecg.data.lanes import arrange_in_lanes
from hpc_ecg.data.sampler import (
    EpochSampler,
    RankSlice,
    balanced_epoch,
    hash_patients,
    one_per_patient,
    shuffled_epoch,
)
from hpc_ecg.data.settings import DataConfig

seeds = st.integers(0, 2**31)
READS, SAMPLINGS = ("map", "stream"), ("all", "balanced", "one_per_patient")
STREAM_FIRST = [9, 4, 8, 5, 11, 6, 10, 7, 0, 1, 3, 2]
BALANCED_FIRST = [5, 4, 0, 1, 4, 2, 1]
PATIENTS_FIRST = [[1, 3, 5], [2, 3, 4], [0, 3, 4]]


@st.composite
def schedules(draw, samplings=SAMPLINGS):
    """Splits of 2 to 120 records in a few uneven shards, with both classes and a few patients."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    num_records = max(sum(sizes), 2)
    rng = np.random.default_rng(draw(seeds))
    label_N = (rng.random(num_records) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(float)
    label_N[:2] = (0, 1)
    patient_N = rng.integers(0, draw(st.integers(1, num_records)), num_records)
    shard_N = np.sort(np.resize(np.repeat(np.arange(len(sizes)), sizes), num_records))
    read, stream = draw(st.sampled_from(READS)), {}
    if read == "stream":
        lanes, buffer = draw(st.sampled_from([12, 24])), draw(st.integers(1, 20))
        stream = {"stream_lanes": lanes, "stream_buffer": buffer}
    config = DataConfig(
        batch_size=draw(st.integers(1, 50)),
        sampling=draw(st.sampled_from(samplings)),
        read=read,
        **stream,
    )
    words = hash_patients([str(patient) for patient in patient_N])
    words = words if config.sampling == "one_per_patient" else None
    return EpochSampler(
        config=config, seed=draw(seeds), label_N=label_N, patient_N=words, shard_N=shard_N
    )


def records_of_step(schedule, step, world_size, micro_batch_size=None):
    """What all ranks read in a step, rank after rank."""
    batch = schedule.batch(step)
    shares = [
        RankSlice(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
        for rank in range(world_size)
    ]
    return [
        batch[places].tolist() for share in shares for places in schedule.micro_batches(step, share)
    ]


def expected_of_epoch(schedule, epoch):
    """How often an epoch must show each record, from the definition of the sampling."""
    kind = schedule.config.sampling
    everything = range(len(schedule.label_N))
    if kind == "all":
        return Counter(everything)
    if kind == "balanced":
        return Counter(balanced_epoch(schedule.label_N, schedule.seed, epoch).tolist())
    return Counter(one_per_patient(schedule.patient_N, schedule.seed, epoch).tolist())


@given(
    schedules(), st.sampled_from([1, 2, 3, 4, 6]), st.none() | st.integers(1, 9), st.integers(0, 2)
)
def test_an_epoch_shows_each_of_its_records_exactly_once(schedule, world_size, micro, epoch):
    steps = schedule.steps_per_epoch
    seen: Counter[int] = Counter()
    for step in range(epoch * steps, (epoch + 1) * steps):
        for piece in records_of_step(schedule, step, world_size, micro):
            seen.update(piece)
    assert seen == expected_of_epoch(schedule, epoch)


@given(schedules(), st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=6))
def test_other_ranks_in_mid_epoch_neither_repeat_nor_skip_a_record(schedule, world_sizes):
    """Every step may run on another number of processes."""
    seen: Counter[int] = Counter()
    for step in range(schedule.steps_per_epoch):
        pieces = records_of_step(schedule, step, world_sizes[step % len(world_sizes)])
        together = [record for piece in pieces for record in piece]
        assert Counter(together) == Counter(schedule.batch(step).tolist())
        seen.update(together)
    assert seen == expected_of_epoch(schedule, 0)


@given(schedules(), st.sampled_from([1, 2, 3, 4, 6]), st.none() | st.integers(1, 9), st.data())
def test_every_rank_has_as_many_forwards_of_no_more_than_its_part(schedule, world, micro, data):
    step = data.draw(st.integers(0, 2 * schedule.steps_per_epoch - 1))
    shares = [RankSlice(rank=r, world_size=world, micro_batch_size=micro) for r in range(world)]
    pieces = [schedule.micro_batches(step, share) for share in shares]
    assert len({len(of_rank) for of_rank in pieces}) == 1
    usual = -(-len(schedule.batch(step)) // world)
    assert max(len(piece) for of_rank in pieces for piece in of_rank) <= min(micro or usual, usual)
    rows = [sum(max(len(piece), 1) for piece in of_rank) for of_rank in pieces]
    assert max(rows) <= schedule.config.batch_size  # what a reader has room for


@given(schedules(samplings=["all"]), st.sampled_from([2, 3, 4]), st.integers(0, 30))
def test_a_rank_reads_its_own_lanes_or_its_own_slice(schedule, world_size, step):
    batch = schedule.batch(step)
    for rank in range(world_size):
        places = np.concatenate(
            schedule.micro_batches(step, RankSlice(rank=rank, world_size=world_size))
        )
        if schedule.config.read == "stream":
            order = schedule.lanes(step // schedule.steps_per_epoch)
            lane_of = dict(zip(order.positions_M, order.lane_M, strict=True))
            assert places.tolist() == [
                place for place, p in enumerate(batch) if lane_of[p] % world_size == rank
            ]
        else:
            first, last = (len(batch) * (rank + r) // world_size for r in (0, 1))
            assert places.tolist() == list(range(first, last))


@given(schedules(), st.integers(0, 50))
def test_a_step_is_the_same_when_nothing_came_before_it(schedule, step):
    """A restart knows the step's number and nothing else."""
    before = [schedule.batch(number).tolist() for number in range(step + 1)]
    fresh = EpochSampler(**vars(schedule))
    assert fresh.batch(step).tolist() == before[step]


# Streams


@settings(max_examples=50)
@given(schedules(samplings=["all", "balanced"]), st.integers(1, 6), st.integers(0, 3))
def test_in_a_lane_shards_come_whole_and_chunks_in_the_order_of_the_file(schedule, lanes, epoch):
    positions = np.array(list(expected_of_epoch(schedule, epoch).elements()))
    buffer = schedule.config.stream_buffer
    order = arrange_in_lanes(positions, schedule.shard_N, schedule.seed, epoch, lanes, buffer)
    assert sorted(order.positions_M.tolist()) == sorted(positions.tolist())
    for lane in range(lanes):
        mine = order.positions_M[order.lane_M == lane]
        chunks = order.chunk_M[order.lane_M == lane]
        shards = schedule.shard_N[mine]
        assert (np.diff(chunks) >= 0).all()
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        assert len(starts) == len(np.unique(shards))  # no shard is come back to
        last_of_shard: dict[int, int] = {}
        for chunk in np.unique(chunks):
            inside = np.unique(mine[chunks == chunk])
            shard = schedule.shard_N[inside[0]]
            assert len(inside) <= buffer and (schedule.shard_N[inside] == shard).all()
            assert inside[0] > last_of_shard.get(shard, -1)
            last_of_shard[shard] = inside[-1]


@given(schedules(samplings=["all"]), st.integers(1, 6))
def test_lanes_take_turns_and_end_within_a_shard_of_each_other(schedule, lanes):
    positions = np.arange(len(schedule.shard_N))
    order = arrange_in_lanes(positions, schedule.shard_N, 0, 0, lanes, 5)
    lengths = np.bincount(order.lane_M, minlength=lanes)
    assert lengths.max() - lengths.min() <= np.bincount(schedule.shard_N).max()
    turn = lengths.min() * lanes
    assert order.lane_M[:turn].tolist() == list(range(lanes)) * lengths.min()


def test_epochs_of_a_stream_differ_and_mix_the_records():
    shard_N = np.repeat(np.arange(10), 20)
    orders = [arrange_in_lanes(np.arange(200), shard_N, 3, epoch, 4, 10) for epoch in (0, 1)]
    first, second = (order.positions_M.tolist() for order in orders)
    assert first != second
    assert first != sorted(first)
    assert len(set(shard_N[first[:16]])) == 4  # of as many shards as there are lanes


def test_the_order_of_a_stream_never_changes_between_versions():
    """Fails if a run could not be repeated by a later version. Do not update the values."""
    order = arrange_in_lanes(np.arange(12), np.repeat([0, 1, 2], 4), 0, 1, 2, 2)
    assert order.positions_M.tolist() == STREAM_FIRST
    assert balanced_epoch(np.array([0, 1, 0, 0, 1, 0, 0]), 0, 1).tolist() == BALANCED_FIRST
    words = hash_patients(["a", "b", "a", "c", "b", "a"])
    assert [one_per_patient(words, 0, epoch).tolist() for epoch in range(3)] == PATIENTS_FIRST


def test_processes_that_do_not_divide_the_lanes_are_refused():
    config = DataConfig(read="stream", stream_lanes=8)
    zeros = np.zeros(3)
    schedule = EpochSampler(config=config, seed=0, label_N=zeros, patient_N=None, shard_N=zeros)
    schedule.check_world_size(4)
    with pytest.raises(ValueError, match=r"data.stream_lanes=8 cannot be shared by 3 processes"):
        schedule.check_world_size(3)


# Samplings


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), seeds, st.integers(1, 6))
def test_balanced_epochs_are_half_positive_and_use_records_equally_often(
    positives, negatives, unlabelled, seed, epochs
):
    label_N = np.repeat([1, 0, np.nan], [positives, negatives, unlabelled])
    shuffled = np.random.default_rng(seed).permutation(label_N)
    seen = [balanced_epoch(shuffled, seed, epoch) for epoch in range(epochs)]
    for epoch in seen:
        assert len(epoch) == positives + negatives
        assert (shuffled[epoch] == 1).sum() == -(-len(epoch) // 2)
    counts = np.bincount(np.concatenate(seen), minlength=len(label_N))
    for value in (0, 1):
        of_class = counts[shuffled == value]
        assert of_class.max() - of_class.min() <= 1
    assert counts[np.isnan(shuffled)].sum() == 0


def test_balanced_epochs_need_both_classes():
    with pytest.raises(
        ValueError, match=r"needs both classes in split train, got 3 negative and 0"
    ):
        balanced_epoch(np.array([0, 0, 0, np.nan]), 0, 0)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), seeds, st.integers(0, 99))
def test_each_patient_gives_one_record_to_an_epoch(patients, seed, epoch):
    names = [f"p{patient}" for patient in patients]
    chosen = one_per_patient(hash_patients(names), seed, epoch)
    assert sorted(names[position] for position in chosen) == sorted(set(names))
    others = [*names, "newcomer", "newcomer"]  # of another patient: nothing changes for these
    again = one_per_patient(hash_patients(others), seed, epoch)
    assert set(chosen) == {position for position in again if position < len(names)}


def test_a_patients_records_come_equally_often_in_the_long_run():
    words = hash_patients(["a"] * 4 + ["b"])
    counts = np.bincount(
        np.concatenate([one_per_patient(words, 5, epoch) for epoch in range(2000)]), minlength=5
    )
    assert counts[4] == 2000
    assert (np.abs(counts[:4] - 500) < 100).all()  # five standard deviations


def test_all_records_in_their_own_order_are_what_they_were(monkeypatch):
    zeros = np.zeros(10)
    schedule = EpochSampler(
        config=DataConfig(batch_size=4), seed=3, label_N=zeros, patient_N=None, shard_N=zeros
    )
    seen = np.concatenate([schedule.batch(step) for step in range(3, 6)])
    assert seen.tolist() == shuffled_epoch(10, 3, 1).tolist()
