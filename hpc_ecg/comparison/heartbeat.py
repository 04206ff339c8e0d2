"""What the baselines know of an ECG: how irregularly the heart beats, and classical measurements.

What is measured is kept by the record's SHA-256 in features/ beside the shards (if that cannot be
written: beside the baselines), signed by this user: later reports and other sweeps use it. One core
takes 1.5 to 2 ms a record for the beats and 1.2 to 1.7 for the rest (XQRS: 5.8 for one lead, and
an AUROC for AF of 0.977 where docs/explanation/report.md gives 0.992).
"""

# N records of a split, n records of a chunk, F features, C leads, S samples

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.ecg.delineation import MEASUREMENTS, MIN_BEATS, FloatArray, find_beats, measure
from hpc_ecg.jobs.processes import map_in_processes
from hpc_ecg.log import progress_bar
from hpc_ecg.training.user_key import sign

RHYTHM = (
    *("log RMSSD / mean RR", "log CV of RR", "log median change / median RR"),
    *("share of changes above 10 %", "sample entropy of RR"),
)
FEATURES = RHYTHM + MEASUREMENTS
IRREGULARITY = (*RHYTHM, "heart rate")
VERSION = 1
"""Raise it when the features change, so that older files are no longer found."""
MIN_RATIO, TOLERANCE = 1e-3, 0.1
"""Variation below this share cannot be resolved at 250 Hz; intervals are similar within this."""
MIN_TRAINING_RECORDS, MAX_TRAINING_RECORDS = 1000, 20_000
CHUNK, MAX_IN_ONE_PROCESS = 64, 256
KIND = [("key", "S64"), ("x", "f8", len(FEATURES))]
Chunk = tuple[NDArray[np.bytes_], Dataset, NDArray[np.int64]]
Measured = tuple[dict[str, NDArray[np.int64]], dict[str, FloatArray]]
"""By split: positions of the measured records, and their FEATURES [N, F]."""


def measure_splits(splits: Mapping[str, Dataset], folder: Path, minutes: float) -> Measured | str:
    """Measure all of valid and test, and at most MAX_TRAINING_RECORDS of train, drawn at random. A
    text says why there is nothing: time, leads, or a shard that cannot be read."""
    from hpc_ecg.training.features import write_signed  # imports torch: workers need none

    wanted = {split: np.arange(len(data)) for split, data in splits.items() if split != "train"}
    drawn = np.random.default_rng(0).permutation(len(splits["train"]))
    wanted["train"] = drawn[:MAX_TRAINING_RECORDS]
    keys = {split: np.array(dataset.sha256_N, "S64") for split, dataset in splits.items()}
    known, path, digest = _read(splits["train"], folder)
    todo: list[Chunk] = []
    for s, rows in wanted.items():
        left = rows[[key not in known for key in keys[s][rows]]]
        parts = [left[start : start + CHUNK] for start in range(0, len(left), CHUNK)]
        todo += [(keys[s][part], splits[s], part) for part in parts]
    if todo:
        try:
            _measure(todo, known, time.monotonic() + 60 * minutes)
        except ValueError as error:
            return str(error)
        finally:  # Ctrl-C, too
            write_signed(path, np.array(list(known.items()), KIND), {}, digest)
    found = {s: rows[[key in known for key in keys[s][rows]]] for s, rows in wanted.items()}
    needed = {s: len(rows) for s, rows in wanted.items()}
    needed["train"] = min(needed["train"], MIN_TRAINING_RECORDS)
    if any(len(found[s]) < needed[s] for s in splits):
        done, total = (sum(len(rows) for rows in parts.values()) for parts in (found, wanted))
        return (
            f"{minutes:g} minutes sufficed for {done:,} of {total:,} ECGs, which are kept: make "
            "the report again to go on, or give more with --baseline-minutes"
        )
    return found, {s: np.array([known[key] for key in keys[s][rows]]) for s, rows in found.items()}


def _measure(todo: Sequence[Chunk], known: dict[bytes, FloatArray], deadline: float) -> None:
    """Add the features of chunks (keys, dataset, positions) to those known, until the deadline."""
    total = sum(len(keys) for keys, _, _ in todo)
    signal, scale = todo[0][1].shards.signal, todo[0][1].millivolts_per_count
    compute = partial(_features_of_chunk, scale, signal.leads, signal.sample_rate_hz)
    chunks = ((keys, data.read(rows), data.samples(rows)) for keys, data, rows in todo)
    workers = len(os.sched_getaffinity(0)) if total > MAX_IN_ONE_PROCESS else 1
    with progress_bar("baselines, ECGs measured", total, ecgs_per_step=1) as advance:
        for keys, x_nF in map_in_processes(compute, chunks, workers):
            known.update(zip(keys.tolist(), x_nF, strict=True))
            advance(len(keys))
            if time.monotonic() > deadline:
                return


def _features_of_chunk(
    scale: float, leads: Sequence[str], rate_hz: float, chunk: Sequence[NDArray]
) -> tuple[NDArray, FloatArray]:
    """From the keys, counts and samples of some records: keys and features [n, F]."""
    keys, counts_nCS, samples_n = chunk
    ends = np.full(len(keys), counts_nCS.shape[2]) if samples_n is None else samples_n
    pairs = zip(counts_nCS, ends, strict=True)
    with threadpool_limits(1):  # the other cores have their own chunks
        rows = [features_of(counts_CS[:, :end] * scale, leads, rate_hz) for counts_CS, end in pairs]
    return keys, np.stack(rows)


def features_of(ecg_CS: FloatArray, leads: Sequence[str], rate_hz: float) -> FloatArray:
    """FEATURES [F] of an ECG in mV; NaN where one cannot be measured. ValueError: `find_beats`."""
    beats = find_beats(ecg_CS, leads, rate_hz)
    return np.r_[rhythm_of(beats), measure(ecg_CS, leads, beats, rate_hz)]


def rhythm_of(beats: NDArray[np.int64]) -> FloatArray:
    """RHYTHM from the positions of the beats; NaN with fewer than MIN_BEATS. Sample entropy as
    Richman and Moorman (2000), m = 1."""
    if len(beats) < MIN_BEATS:
        return np.full(len(RHYTHM), np.nan)
    rr = np.diff(beats).astype(np.float64)
    changes, mean, median = np.abs(np.diff(rr)), rr.mean(), np.median(rr)
    spreads = [np.sqrt(np.mean(changes**2)) / mean, rr.std() / mean, np.median(changes) / median]
    is_similar = np.abs(rr[:, None] - rr) <= TOLERANCE * median
    pairs = np.triu(is_similar[:-1, :-1], 1)
    both = max((pairs & is_similar[1:, 1:]).sum(), 1)
    entropy = np.log(max(pairs.sum(), 1) / both)
    share = np.mean(changes > TOLERANCE * mean)
    return np.array([*np.log(np.maximum(spreads, MIN_RATIO)), share, entropy])


def _read(dataset: Dataset, folder: Path) -> tuple[dict[bytes, FloatArray], Path, str]:
    """What is known; its file, and a digest of what the features depend on."""
    from hpc_ecg.training.features import is_signed, make_writable

    shards = dataset.shards
    inputs = [VERSION, FEATURES, version("sleepecg"), asdict(shards.signal)]
    digest = sign(json.dumps([*inputs, dataset.millivolts_per_count], sort_keys=True))
    parent = shards.folder if not shards.url and os.access(shards.folder, os.W_OK) else folder
    path = make_writable(parent / "features") / f"measured-{digest[:32]}.npy"
    table = np.load(path) if is_signed(path, digest) else np.empty(0, KIND)
    return dict(zip(table["key"].tolist(), table["x"], strict=True)), path, digest
