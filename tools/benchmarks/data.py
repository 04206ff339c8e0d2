"""Reading and writing shards compared with simpler ways, in one process, on synthetic ECGs.

Reading: shuffled batches of 64 as int16 tensors, two epochs in a row (one if cold), with the
repeats of all peers interleaved. Peers: webdataset's pipeline; one .npy or .mat file per ECG (the
latter is the reference's way); and as the limit, the same random gather from one array in memory
into a reused buffer. Warm: everything is in the page cache. Cold: files are dropped from it before
each epoch. Our reader verifies each record's SHA-256 on first read; that time is measured
separately. All read in one thread. `read_ahead` is our reader as in a run, with a second thread; in
this benchmark, where batches are not used, handing them over takes time and saves none.

Sharding: WFDB to shards with one worker, against only `wfdb.rdrecord` + `resample_poly`.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import wfdb
from _peers import (
    BATCH,
    Batches,
    drop_from_cache,
    file_batches,
    load_mat,
    load_npy,
    memory_batches,
    webdataset_batches,
    write_files,
)
from scipy.signal import resample_poly
from synthetic import Population, write_cohort

from hpc_ecg.cohort.table import Columns
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import collate_step, empty_rows, prefetch
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.shards.sharding_plan import ShardingPlan

AT_LEAST = {
    "ratio_to_webdataset": 20.0,
    "ratio_to_memory_limit": 0.6,
    "ratio_sharding_to_wfdb": 0.7,
}
TARGETS: dict[str, float] = {}
EPOCHS = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=4000, help="60 kB each (default 4000)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each peer (default 5)")
    parser.add_argument("--wfdb", type=int, default=600, help="recordings to shard (default 600)")
    parser.add_argument(
        "--folder", type=Path, help="folder on the disk to measure (default: TMPDIR)"
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        table = write_cohort(
            folder / "ecgs",
            num_patients=round(options.records / 2.35),  # mean ECGs per patient
            seed=1,
            population=Population(af_prevalence=0.4),
        )
        shards = _shard(table, folder / "shards")
        return _reading(folder, shards, options.repeats) | _sharding(
            folder, table, options.wfdb, options.repeats
        )


def _shard(table: Path, out: Path) -> Path:
    plan = ShardingPlan(
        table=table,
        out=out,
        columns=Columns(labels=["af"], patient="patient_id"),
        recordings=Recordings(signals=table.parent),
    )
    shard_ecgs(plan)
    return out


# Reading


def _reading(folder: Path, shards: Path, repeats: int) -> dict[str, float]:
    dataset = _open(shards)
    seconds_verifying = _seconds_of_digests(dataset)
    counts_NCS = dataset.read(np.arange(len(dataset)))
    write_files(folder, counts_NCS)
    peers: dict[str, Callable[[int], Batches]] = {
        "ours": lambda epoch: _ours(_open_verified(shards), epoch),
        "read_ahead": lambda epoch: _prefetched(_open_verified(shards), epoch),
        "webdataset": lambda epoch: webdataset_batches(shards),
        "npy": lambda epoch: file_batches(folder, len(counts_NCS), epoch, load_npy),
        "mat": lambda epoch: file_batches(folder, len(counts_NCS), epoch, load_mat),
    }
    cold: dict[str, list[float]] = {name: [] for name in peers}
    del dataset  # mapped pages cannot be dropped from the page cache
    for epoch in range(repeats):
        for name, reference in peers.items():
            drop_from_cache(folder)
            cold[name].append(_rate(reference(epoch), len(counts_NCS)))
    dataset = _open_verified(shards)
    peers = {
        "memory_limit": lambda epoch: memory_batches(counts_NCS, epoch),
        **peers,
    }
    peers["ours"] = lambda epoch: _ours(dataset, epoch)
    peers["read_ahead"] = lambda epoch: _prefetched(dataset, epoch)
    warm: dict[str, list[float]] = {name: [] for name in peers}
    for epoch in range(0, EPOCHS * (repeats + 1), EPOCHS):
        for name, reference in peers.items():
            batches = itertools.chain.from_iterable(map(reference, range(epoch, epoch + EPOCHS)))
            warm[name].append(_rate(batches, EPOCHS * len(counts_NCS)))
    # the first round warmed the cache
    rates = {name: statistics.median(measured[1:]) for name, measured in warm.items()}
    cold_rates = {name: statistics.median(measured) for name, measured in cold.items()}
    # of consecutive measurements, because the machine may be shared
    ratios = {
        name: statistics.median(o / r for o, r in zip(warm["ours"][1:], measured[1:], strict=True))
        for name, measured in warm.items()
    }
    return {
        "records": len(counts_NCS),
        "digests_seconds": seconds_verifying,
        "digests_ecg_per_s": len(counts_NCS) / seconds_verifying,
        **{f"{name}_ecg_per_s": rate for name, rate in rates.items()},
        **{f"cold_{name}_ecg_per_s": rate for name, rate in cold_rates.items()},
        **{f"ratio_to_{name}": ratios[name] for name in ("webdataset", "npy", "mat")},
        "ratio_to_memory_limit": ratios["memory_limit"],
        "read_ahead_ratio_to_memory_limit": ratios["memory_limit"] / ratios["read_ahead"],
        "cold_ratio_to_webdataset": cold_rates["ours"] / cold_rates["webdataset"],
        "cold_ratio_to_npy": cold_rates["ours"] / cold_rates["npy"],
    }


def _open(shards: Path) -> Dataset:
    """Open a shard set with all splits as one."""
    opened = read_shard_set(shards)
    return Dataset(replace(opened, index=opened.index.assign(split="all")), "all", ["af"])


def _open_verified(shards: Path) -> Dataset:
    dataset = _open(shards)
    dataset._verified_N[:] = True  # digests are timed separately
    return dataset


def _seconds_of_digests(dataset: Dataset) -> float:
    """Extra seconds of the first read of all records over the second."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for start in range(0, len(dataset), BATCH):
            dataset.read(np.arange(start, min(start + BATCH, len(dataset))))
        seconds.append(time.perf_counter() - began)
    return seconds[0] - seconds[1]


def _rate(batches: Batches, num_records: int) -> float:
    """ECG/s over all batches. Each batch is accessed, so that no lazy reader skips the work."""
    seen, began = 0, time.perf_counter()
    for batch in batches:
        assert batch.dtype == torch.int16 and batch.shape[1:] == (12, 2500)
        seen += len(batch) + int(batch[0, 0, 0]) * 0
    assert seen == num_records
    return seen / (time.perf_counter() - began)


def _ours(dataset: Dataset, epoch: int) -> Batches:
    schedule = EpochSampler.for_split(dataset, DataConfig(batch_size=BATCH), seed=0)
    out = empty_rows(dataset, BATCH)
    for step in _steps(schedule, epoch):
        batch = collate_step(dataset, step, schedule, RankSlice(), out=out)
        yield torch.from_numpy(batch.micro_batches[0].counts_nCS)


def _prefetched(dataset: Dataset, epoch: int) -> Batches:
    schedule = EpochSampler.for_split(dataset, DataConfig(batch_size=BATCH), seed=0)
    for batch in prefetch(dataset, _steps(schedule, epoch), schedule, RankSlice()):
        yield torch.from_numpy(batch.micro_batches[0].counts_nCS)


def _steps(schedule: EpochSampler, epoch: int) -> range:
    return range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)


# Sharding


def _sharding(folder: Path, table: Path, num_records: int, repeats: int) -> dict[str, float]:
    few = table.with_name("few.csv")
    pd.read_csv(table, nrows=num_records).to_csv(few, index=False)
    files = [table.parent / file for file in pd.read_csv(few)["file"]]
    seconds: dict[str, list[float]] = {"sharding": [], "wfdb": []}
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        _shard(few, folder / f"few-{repeat}")
        seconds["sharding"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for file in files:
            recording = wfdb.rdrecord(str(file))
            resample_poly(recording.p_signal.T, 250, recording.fs, axis=1)
        seconds["wfdb"].append(time.perf_counter() - began)
    rates = {
        name: len(files) / statistics.median(measured[1:]) for name, measured in seconds.items()
    }
    pairs = zip(seconds["wfdb"][1:], seconds["sharding"][1:], strict=True)
    return {
        **{f"{name}_ecg_per_s": rate for name, rate in rates.items()},
        "ratio_sharding_to_wfdb": statistics.median(plain / ours for plain, ours in pairs),
    }
