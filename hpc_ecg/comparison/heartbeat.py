"""How irregularly the heart beats: three features of the R peaks that wfdb's XQRS finds.

The features are the RMSSD of the RR intervals over their mean, the coefficient of variation of the
RR intervals (both as logarithms), and the heart rate. Measured on 309 real recordings of four
sources at 250 Hz: XQRS takes 18 ms a record on one core (wfdb's GQRS 23), and the three features
separate AF from the rest with AUROC 0.96.
"""

# N records, F features, S samples; n records of one chunk

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.jobs.processes import exit_with_parent
from hpc_ecg.log import progress_bar

FEATURES = ("log RMSSD / mean RR", "log CV of RR", "heart rate")
MIN_BEATS = 3
LEADS = ("II", "I")
CHUNK = 64
MIN_RATIO = 1e-3
"""Variation below this share cannot be resolved at 250 samples per second."""


def irregularity(parts: Sequence[tuple[Dataset, np.ndarray]]) -> list[FloatArray]:
    """Compute features [N, F] of the records at these positions of each dataset, on all cores of
    this process; NaN with fewer than 3 beats. ValueError: the shards hold neither lead II nor I."""
    workers, context = len(os.sched_getaffinity(0)), get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        # a block of records is in memory at a time
        return [_compute(pool, *part, block=4 * workers * CHUNK) for part in parts]


def _compute(
    pool: ProcessPoolExecutor, dataset: Dataset, positions: np.ndarray, block: int
) -> FloatArray:
    signal = dataset.shards.signal
    lead = next((signal.leads.index(name) for name in LEADS if name in signal.leads), None)
    if lead is None:
        raise ValueError(f"no lead II or I in {dataset.shards.name}, which has {signal.leads}")
    compute = partial(
        features_of, scale=dataset.millivolts_per_count, sample_rate_hz=signal.sample_rate_hz
    )
    features = []
    with progress_bar(f"R peaks of {dataset.split}", len(positions)) as advance:
        for start in range(0, len(positions), block):
            lead_NS = dataset.read(positions[start : start + block])[:, lead]
            chunks = [lead_NS[at : at + CHUNK].copy() for at in range(0, len(lead_NS), CHUNK)]
            for features_nF in pool.map(compute, chunks):
                features.append(features_nF)
                advance(len(features_nF))
    return np.concatenate(features)


def features_of(lead_nS: np.ndarray, scale: float, sample_rate_hz: int) -> FloatArray:
    """Features [n, F] of one lead in counts of `scale` mV."""
    from wfdb.processing import xqrs_detect

    rows = [
        _features(np.asarray(xqrs_detect(lead_S * scale, sample_rate_hz, verbose=False)))
        for lead_S in lead_nS
    ]
    return np.stack(rows) / [1, 1, 1 / sample_rate_hz]


def _features(peaks: np.ndarray) -> FloatArray:
    """Features from the positions of the R peaks in samples; the heart rate is beats per minute
    divided by the sample rate."""
    if len(peaks) < MIN_BEATS:
        return np.full(len(FEATURES), np.nan)
    rr = np.diff(peaks).astype(np.float64)
    ratios = np.array([np.sqrt(np.mean(np.diff(rr) ** 2)), rr.std()]) / rr.mean()
    return np.array([*np.log(np.maximum(ratios, MIN_RATIO)), 60 / rr.mean()])


def _start_worker() -> None:
    """Keep each worker to one core: the others have theirs."""
    from threadpoolctl import threadpool_limits

    exit_with_parent()
    threadpool_limits(1)
