"""Shards read from front to back: the same records as by position, and damage that is named."""

import ast
import io
import shutil
import tarfile
import threading

import fsspec
import numpy as np
import pytest
from conftest import words_for
from fsspec.registry import known_implementations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.data.loader import prefetch, prefetch_in_order
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.source import ShardSource
from hpc_ecg.shards.format import parse_array, shard_name
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig

STREAM = {"stream_lanes": 6, "stream_buffer": 5}


def opened(folder, split="train", **changes):
    settings = {"read": "stream", "batch_size": 7} | changes
    if settings["read"] == "stream":
        settings = STREAM | settings
    config = DataConfig(shards=str(folder), **settings)
    shards, names = open_shards(config)
    dataset = open_split(shards, split, names, ShardSource(shards, config))
    return dataset, EpochSampler.for_split(dataset, config, 5)


def signals_of(dataset, schedule, steps, share):
    """Position -> signal of all records of these steps that a rank reads, with how often."""
    seen = []
    for batch in prefetch(dataset, steps, schedule, share):
        for micro in batch.micro_batches:
            if micro.weight:
                seen += zip(micro.positions.tolist(), micro.counts_nCS.copy(), strict=True)
    return seen


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    world_size=st.sampled_from([1, 2, 3]),
    micro=st.none() | st.integers(1, 4),
    sampling=st.sampled_from(["all", "balanced", "one_per_patient"]),
    start=st.integers(0, 12),
)
def test_a_stream_gives_each_record_of_its_steps_with_its_own_signal(
    shards, world_size, micro, sampling, start
):
    """From any step on, over the end of an epoch, whatever the ranks."""
    dataset, schedule = opened(shards, sampling=sampling)
    by_position, _ = opened(shards, read="map")
    steps = range(start, start + 5)
    shares = [
        RankSlice(rank=r, world_size=world_size, micro_batch_size=micro) for r in range(world_size)
    ]
    seen = [item for share in shares for item in signals_of(dataset, schedule, steps, share)]
    expected = [position for step in steps for position in schedule.batch(step).tolist()]
    assert sorted(position for position, _ in seen) == sorted(expected)
    for position, counts_CS in seen:
        np.testing.assert_array_equal(counts_CS, by_position.read(np.array([position]))[0])


def test_a_split_is_streamed_in_its_own_order(shards):
    dataset, _ = opened(shards, "valid")
    by_position, _ = opened(shards, "valid", read="map")
    parts = [m.counts_nCS.copy() for m in prefetch_in_order(dataset, slice(3, 20), 4)]
    np.testing.assert_array_equal(np.concatenate(parts), by_position.read(np.arange(3, 20)))


def test_a_stream_begins_at_the_shard_in_which_the_step_lies(shards, monkeypatch):
    dataset, schedule = opened(shards, stream_lanes=1)
    asked = []
    real = dataset.source.open
    monkeypatch.setattr(dataset.source, "open", lambda shard: asked.append(shard) or real(shard))
    last = schedule.steps_per_epoch - 1
    assert signals_of(dataset, schedule, [last], RankSlice())
    assert asked == [int(dataset.shard_N[schedule.batch(last)[-1]])]


def test_a_stream_that_is_left_early_leaves_no_thread_behind(shards):
    dataset, schedule = opened(shards)
    before = threading.active_count()
    reading = prefetch(dataset, range(100), schedule, RankSlice())
    next(reading)
    assert threading.active_count() > before
    reading.close()
    assert threading.active_count() == before


def test_a_record_is_what_numpy_reads_and_anything_else_is_refused(rng):
    counts = rng.integers(-9, 9, (12, 25), dtype=np.int16)

    def npy(array, **options):
        np.lib.format.write_array(file := io.BytesIO(), array, **options)
        return file.getvalue()

    np.testing.assert_array_equal(parse_array(npy(counts), (12, 25)), counts)
    header, _, rest = npy(counts).partition(b" " * 9)
    other_numpy = bytearray(header + rest)  # with fewer spaces at the end
    other_numpy[8] -= 9
    np.testing.assert_array_equal(parse_array(bytes(other_numpy), (12, 25)), counts)
    for wrong in (
        npy(counts.T),
        npy(np.asfortranarray(counts)),
        npy(counts.view(np.uint16)),
        npy(counts.astype(">i2")),
        npy(counts, version=(2, 0)),
        npy(counts)[:-2],
        npy(counts) + b"..",
        b"",
    ):
        with pytest.raises(ValueError, match=r"a record is not an int16 array of shape \(12, 25\)"):
            parse_array(wrong, (12, 25))


def test_no_lane_parses_python(shards, monkeypatch):
    """Which numpy's reader does, and Python 3.11.7 cannot do in threads."""
    monkeypatch.setattr(ast, "parse", lambda *_, **__: pytest.fail("parsed"))
    dataset, schedule = opened(shards)
    assert signals_of(dataset, schedule, range(schedule.steps_per_epoch), RankSlice())


# Damage: by both readers, at the read or before


def flip(path, other):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_header(path, other):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def cut_off(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_at_a_member(path, other):
    with tarfile.open(path) as tar:
        end = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:end] + bytes(1024))


def swap(path, other):
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def remove(path, other):
    path.unlink()


def fill_with_noise(path, other):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


DAMAGES = [flip, flip_in_header, cut_off, cut_at_a_member, swap, remove, fill_with_noise]


@pytest.mark.parametrize("when", ["before", "after it was opened"])
@pytest.mark.parametrize("read", ["map", "stream"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_in_one_line(shards, tmp_path, damage, read, when):
    folder = shutil.copytree(shards, tmp_path / "damaged")
    path, other = folder / shard_name(0), folder / shard_name(1)
    if when == "before":
        damage(path, other)
    if damage is flip_in_header and read == "map":
        return  # no record is touched, and none is read through a header
    with pytest.raises(ValueError) as caught:
        for split in ("train", "valid", "test"):  # one of them holds the record
            dataset, schedule = opened(folder, split, read=read)
            if when != "before" and split == "train":
                damage(path, other)
            signals_of(dataset, schedule, range(schedule.steps_per_epoch), RankSlice())
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message or (damage is swap and other.name in message)


# Elsewhere than in a folder


@pytest.fixture
def in_memory(shards):
    """The shards in fsspec's file system in memory, which stands for an object store."""
    url = "memory://bucket/set"
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{shards}/", "/bucket/set", recursive=True)
    yield url
    filesystem.rm("/bucket", recursive=True)


@pytest.mark.parametrize("read", ["map", "stream"])
def test_shards_are_read_from_a_url_as_from_a_folder(shards, in_memory, read):
    near, schedule = opened(shards, read=read)
    far, _ = opened(in_memory, read=read)
    assert far.shards.name == in_memory
    steps = range(schedule.steps_per_epoch)
    for a, b in zip(
        signals_of(near, schedule, steps, RankSlice()),
        signals_of(far, schedule, steps, RankSlice()),
        strict=True,
    ):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("read", ["map", "stream"])
@pytest.mark.parametrize("damage", ["flip", "remove", "cut"])
def test_damage_far_away_is_named_in_one_line(in_memory, read, damage):
    filesystem = fsspec.filesystem("memory")
    dataset, schedule = opened(in_memory, read=read)
    path = f"/bucket/set/{shard_name(0)}"
    content = bytearray(filesystem.cat(path))
    row = int(np.flatnonzero(dataset.shard_N == 0)[0])
    content[int(dataset.shards.index.query("split == 'train'")["offset"].iloc[row]) + 9] ^= 1
    filesystem.rm(path)
    if damage != "remove":
        filesystem.pipe(path, bytes(content[:5000] if damage == "cut" else content))
    with pytest.raises(ValueError, match=shard_name(0)) as caught:
        signals_of(dataset, schedule, range(schedule.steps_per_epoch), RankSlice())
    assert "\n" not in str(caught.value)


def refusal(**settings):
    with pytest.raises(ValueError) as caught:
        open_shards(DataConfig(**settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_url_that_cannot_be_read_is_refused_with_what_is_missing(monkeypatch):
    assert "dataset.json is missing" in refusal(shards="memory://nothing/here")
    for url in (
        *("nonsense://bucket/set", "http://host/set", "https://host/set", "github://a:b@c/set"),
        *("reference://x", "generic://x", "zip://a.zip::memory://bucket", "data://x"),
        *("simplecache::memory://bucket/set", "filecache::s3://b/set", "memory://x::s3://b"),
        *("ftp://host/set", "sftp://host/set", "ssh://host/set", "hdfs://host/set", "root://x"),
    ):
        assert f"data.shards={url}: shards are read from a folder or from s3" in refusal(shards=url)
    monkeypatch.setitem(
        known_implementations,
        "s3",
        {"class": "s3fs_that_is_not_there.S3FileSystem", "err": "Install s3fs to access S3"},
    )
    assert "pip install s3fs" in refusal(shards="s3://bucket/set")


def test_a_command_is_refused_unless_it_is_allowed(shards, tmp_path):
    ran = tmp_path / "ran"
    command = f"pipe:touch {ran}; cat {shards}/{{name}}"
    assert "would run a shell command" in refusal(shards=command)
    assert not ran.exists()
    dataset, schedule = opened(command, allow_pipe=True)
    near, _ = opened(shards)
    ours = signals_of(dataset, schedule, range(3), RankSlice())
    theirs = signals_of(near, schedule, range(3), RankSlice())
    assert ran.exists() and len(ours) == 21
    assert all((a[1] == b[1]).all() for a, b in zip(ours, theirs, strict=True))
    by_position, _ = opened(command, allow_pipe=True, read="map")
    with pytest.raises(ValueError, match=r"a command writes whole files; use data.read=stream"):
        by_position.read(np.array([0]))
    assert "must hold {name}" in refusal(shards="pipe:cat x", allow_pipe=True)


def test_a_description_that_names_files_elsewhere_is_refused(shards, in_memory):
    filesystem = fsspec.filesystem("memory")
    text = filesystem.cat("/bucket/set/dataset.json").decode()
    changed = text.replace(shard_name(0), "../../etc/passwd").encode()
    filesystem.pipe("/bucket/set/dataset.json", changed)
    assert "shards[0].name is '../../etc/passwd'" in refusal(shards=in_memory)


@pytest.mark.slow
def test_a_run_trains_from_a_url(in_memory, tmp_path):
    words = words_for(in_memory, tmp_path / "run", "train.max_steps=2", "train.freeze=backbone")
    folder = finetune(load_config(FinetuneConfig, [], words))
    assert folder.is_finished() and list((folder.path / "features").iterdir())
