"""Copies on the node's own disk: whole, checked, shared, within the quota, and gone at the end."""

import hashlib
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import words_for

from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.data.node_cache import NodeCache, resolve_stage_dir
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.data.source import ShardSource
from hpc_ecg.shards.format import shard_name
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def stage(shards, disk, opened=None, **changes):
    """A stage of this set; `opened` collects which shards were read from the source."""
    about = json.loads((shards / "dataset.json").read_text())

    def open_shard(shard):
        if opened is not None:
            opened.append(shard)
        return (shards / shard_name(shard)).open("rb")

    first_use = range(len(about["shards"]))
    return NodeCache(disk, about["index_sha256"], about["shards"], open_shard, first_use, **changes)


def staged(disk):
    return {path.name: path for path in disk.rglob("*.tar")}


def num_staged(disk):
    return len(list(disk.rglob("*.tar")))  # of all sets


def num_shards(shards):
    return len(list(shards.glob("*.tar")))


def test_all_shards_are_copied_whole_and_are_gone_at_the_end(shards, disk):
    ours = stage(shards, disk)
    ours.wait()
    assert sorted(ours.arrivals()) == list(range(num_shards(shards)))
    for shard in range(num_shards(shards)):
        assert ours.open(shard).read() == (shards / shard_name(shard)).read_bytes()
    assert ours.arrivals() == []
    ours.close()
    assert staged(disk) == {}
    assert not list(disk.rglob("*.partial"))


def test_a_reader_takes_the_copy_once_it_is_there(shards, disk, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "slow")
    config = DataConfig(shards=str(folder), stage_dir=str(disk))
    opened, names = open_shards(config)
    source = ShardSource(opened, config)
    train = open_split(opened, "train", names, source)
    everything = np.arange(len(train))
    before = train.read(everything)
    source.stage(range(len(opened.description["shards"])))
    source._node_cache.wait()
    for path in folder.glob("*.tar"):
        path.unlink()  # what is read from now on is read from the stage
    fresh = open_split(opened, "train", names, source)
    np.testing.assert_array_equal(fresh.read(everything), before)
    source.close()


def test_a_copy_that_somebody_deleted_is_read_from_the_source(shards, disk):
    config = DataConfig(shards=str(shards), stage_dir=str(disk))
    opened, names = open_shards(config)
    source = ShardSource(opened, config)
    train = open_split(opened, "train", names, source)
    source.stage([0, 1, 2, 3])
    source._node_cache.wait()
    source.files([])
    for path in disk.rglob("*.tar"):
        path.unlink()
    assert train.read(np.arange(len(train))).any()
    source.close()


def test_shards_are_copied_in_the_order_of_use(shards, disk):
    config = DataConfig(shards=str(shards), read="stream", stream_lanes=1)
    opened, names = open_shards(config)
    schedule = EpochSampler.for_split(open_split(opened, "train", names), config, 3)
    steps = range(schedule.steps_per_epoch)
    used = [int(schedule.shard_N[p]) for step in steps for p in schedule.batch(step)]
    assert schedule.shards_by_first_use() == list(dict.fromkeys(used)) != sorted(set(used))


def test_what_a_crash_left_is_copied_anew(shards, disk):
    index_sha256 = json.loads((shards / "dataset.json").read_text())["index_sha256"]
    left = disk / "hpc_ecg-stage" / index_sha256[:16]
    (left / "users").mkdir(parents=True)
    (left / "users" / "dead.lock").touch()
    (left / shard_name(1)).write_bytes(b"not checked by anyone who is alive")
    (left / f"{shard_name(2)}.partial").write_text("of a process that was killed")
    opened: list[int] = []
    ours = stage(shards, disk, opened)
    ours.wait()
    assert opened == list(range(num_shards(shards)))
    assert staged(disk)[shard_name(1)].read_bytes() == (shards / shard_name(1)).read_bytes()
    ours.close()
    assert staged(disk) == {} and not list(disk.rglob("*.partial"))


def test_two_jobs_share_a_stage_and_the_last_one_cleans_up(shards, disk):
    opened: list[int] = []
    one, two = stage(shards, disk, opened), stage(shards, disk, opened)
    one.wait()
    two.wait()
    assert sorted(opened) == list(range(num_shards(shards)))  # each of them once
    one.close()
    assert len(staged(disk)) == num_shards(shards)
    two.arrivals()
    assert two.open(0) is not None
    two.close()
    assert staged(disk) == {}


HOLD = """
import sys, time
from pathlib import Path
from hpc_ecg.data.node_cache import NodeCache
about = [{"name": "shard-000000.tar", "bytes": 3, "sha256": sys.argv[3]}]
stage = NodeCache(Path(sys.argv[1]), "feed" * 16, about, lambda shard: open(sys.argv[2], "rb"), [0])
stage.wait()
print("staged", flush=True)
time.sleep(60)
"""


def another_process(disk, tmp_path):
    """Stages a set of its own, and goes on living."""
    (tmp_path / "other").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    command = [sys.executable, "-c", HOLD, str(disk), str(tmp_path / "other"), digest]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "staged\n"
    return process


def test_what_a_living_process_uses_stays_and_what_a_killed_one_left_makes_room(
    shards, disk, tmp_path, caplog
):
    total = sum(path.stat().st_size for path in shards.glob("*.tar"))
    process = another_process(disk, tmp_path)
    theirs = disk / "hpc_ecg-stage" / "feedfeedfeedfeed" / shard_name(0)
    try:
        ours = stage(shards, disk, quota_gb=(total + 2) / 1e9)
        ours.wait()
        assert theirs.exists()
        assert num_staged(disk) == 1 + num_shards(shards) - 1  # one did not fit
        assert "data.stage_quota_gb is full" in caplog.text
        ours.close()
    finally:
        process.kill()
        process.wait()
    assert theirs.exists()
    ours = stage(shards, disk, quota_gb=(total + 2) / 1e9)
    ours.wait()
    assert not theirs.exists()
    assert len(staged(disk)) == num_shards(shards)
    ours.close()


def test_a_damaged_shard_is_never_staged_and_named(shards, disk, tmp_path, caplog):
    folder = shutil.copytree(shards, tmp_path / "damaged")
    path = folder / shard_name(1)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    ours = stage(folder, disk)
    ours.wait()
    assert shard_name(1) not in staged(disk) and len(staged(disk)) == num_shards(shards) - 1
    assert f"{shard_name(1)} is damaged" in caplog.text
    ours.close()


def test_closing_does_not_wait_for_the_rest_of_the_copying(shards, disk):
    def slowly(shard):
        time.sleep(0.2)
        return (shards / shard_name(shard)).open("rb")

    about = json.loads((shards / "dataset.json").read_text())
    many = [about["shards"][0] | {"name": f"shard-{n:06d}.tar"} for n in range(100)]
    ours = NodeCache(disk, "ab" * 32, many, slowly, range(100))
    began = time.monotonic()
    ours.close()
    assert time.monotonic() - began < 10
    assert staged(disk) == {}


def test_a_variable_that_is_not_set_and_a_folder_that_is_not_there_are_named(
    disk, monkeypatch, tmp_path
):
    monkeypatch.setenv("NODE_DISK", str(disk))
    assert resolve_stage_dir("$NODE_DISK") == disk
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ValueError, match=r"data.stage_dir=\$NODE_DISK: that variable is not set"):
        resolve_stage_dir("$NODE_DISK")
    with pytest.raises(ValueError, match=r"is not a folder that can be written"):
        resolve_stage_dir(str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_run_with_a_stage_gives_the_same_curve_and_leaves_nothing(shards, tmp_path, disk):
    curves = []
    for name, more in (("plain", ()), ("staged", (f"data.stage_dir={disk}",))):
        words = words_for(shards, tmp_path / name, "train.max_steps=3", *more)
        folder = finetune(load_config(FinetuneConfig, [], words))
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        curves.append([line["loss"] for line in lines if line["event"] == "step"])
    assert curves[0] == curves[1]
    assert staged(disk) == {}
