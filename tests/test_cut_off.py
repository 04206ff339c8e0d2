"""A file that is cut off while it is mapped into memory ends the process with a line that names it,
not with SIGBUS and silence."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FIXTURES
from forks import fork, wait_for
from recorded import V0_1

from hpc_ecg.data.source import ShardSource
from hpc_ecg.ecg.array_stores import OPENERS
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.training.features import FeatureDataset
from hpc_ecg.weights.reading import open_weights


def shard(folder):
    """The path of a file, and a function that reads it to its end."""
    source = ShardSource(read_shard_set(shutil.copytree(V0_1 / "shards", folder / "set")))
    counts = source.files([0])[0]
    return source.name(0), lambda: counts[100_000:].sum()


def features(folder):
    dataset = _features(folder)
    return folder / "x.npy", lambda: np.asarray(dataset._features_ND).sum()


def _features(folder):
    np.save(folder / "x.npy", np.zeros((1000, 100), np.float32))
    return FeatureDataset(SimpleNamespace(), np.load(folder / "x.npy", mmap_mode="r"))


def array(folder):
    np.save(folder / "x.npy", np.zeros((12, 10_000)))
    opened = OPENERS[".npy"](folder / "x.npy", "")
    stored = opened.__enter__()[""]
    return folder / "x.npy", lambda: np.asarray(stored.read(())).sum()


def weights(folder):
    path = shutil.copy(FIXTURES / "tiny_base_ssl.pt", folder)
    tensors = open_weights(path).tensors.values()
    return path, lambda: [tensor.array().sum() for tensor in tensors]


@pytest.mark.parametrize("kind", [shard, features, array, weights])
def test_a_file_that_is_cut_off_while_it_is_read_is_named(kind, tmp_path):
    def read():
        path, to_the_end = kind(tmp_path)
        os.truncate(path, 4096)
        to_the_end()
        return 0

    log = tmp_path / "log"
    assert wait_for([fork(read, log)]) == [2]
    [line] = log.read_text().splitlines()
    assert line.startswith(f"hpc-ecg: {tmp_path}/") and "was cut off while it was in use" in line


def test_features_that_were_cut_off_are_an_error_before_they_are_read(tmp_path):
    dataset = _features(tmp_path)
    everything = np.arange(1000)
    assert dataset.read(everything).sum() == 0
    os.truncate(tmp_path / "x.npy", 4096)
    with pytest.raises(ValueError, match=r"x.npy was cut off while it was in use"):
        dataset.read(everything)
