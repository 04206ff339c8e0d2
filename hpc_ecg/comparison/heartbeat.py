"""How irregularly the heart beats: R peaks by wfdb's XQRS, three numbers for each record.

RMSSD of the RR intervals over their mean, their coefficient of variation (both as logarithms), and
the heart rate. Measured on 309 real recordings of four sources at 250 Hz: XQRS takes 18 ms a record
on one core (wfdb's GQRS 23), and the three features tell AF from the rest with AUROC 0.96.
"""

# N records, F features, S samples; n records of one piece

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
FEWEST_BEATS = 3
LEADS = ("II", "I")
PIECE = 64
LEAST = 1e-3
"""Below this share, irregularity is that of 250 samples a second."""


def irregularity(parts: Sequence[tuple[Dataset, np.ndarray]]) -> list[FloatArray]:
    """[N, F] for the records at these positions of each data set, on all cores of this process; NaN
    with fewer than 3 beats. ValueError: the shards hold neither lead II nor lead I."""
    workers, context = len(os.sched_getaffinity(0)), get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_alone) as pool:
        # so many records are in memory at once
        return [_of_part(pool, *part, block=4 * workers * PIECE) for part in parts]


def _of_part(
    pool: ProcessPoolExecutor, dataset: Dataset, positions: np.ndarray, block: int
) -> FloatArray:
    signal, scale = dataset.shards.signal, dataset.millivolts_per_count
    lead = next((signal.leads.index(name) for name in LEADS if name in signal.leads), None)
    if lead is None:
        raise ValueError(f"no lead II or I in {dataset.shards.name}, which has {signal.leads}")
    of_piece = partial(features_of, scale=scale, sample_rate_hz=signal.sample_rate_hz)
    found = []
    with progress_bar(f"R peaks of {dataset.split}", len(positions)) as advance:
        for start in range(0, len(positions), block):
            lead_NS = dataset.read(positions[start : start + block])[:, lead]
            pieces = [lead_NS[at : at + PIECE].copy() for at in range(0, len(lead_NS), PIECE)]
            for features_nF in pool.map(of_piece, pieces):
                found.append(features_nF)
                advance(len(features_nF))
    return np.concatenate(found)


def features_of(lead_nS: np.ndarray, scale: float, sample_rate_hz: int) -> FloatArray:
    """[n, F] of one lead in counts of `scale` mV."""
    from wfdb.processing import xqrs_detect

    rows = [
        _features(np.asarray(xqrs_detect(lead_S * scale, sample_rate_hz, verbose=False)))
        for lead_S in lead_nS
    ]
    return np.stack(rows) / [1, 1, 1 / sample_rate_hz]


def _features(peaks: np.ndarray) -> FloatArray:
    """From the samples of the R peaks; the heart rate as beats per minute and sample rate."""
    if len(peaks) < FEWEST_BEATS:
        return np.full(len(FEATURES), np.nan)
    rr = np.diff(peaks).astype(np.float64)
    ratios = np.array([np.sqrt(np.mean(np.diff(rr) ** 2)), rr.std()]) / rr.mean()
    return np.array([*np.log(np.maximum(ratios, LEAST)), 60 / rr.mean()])


def _alone() -> None:
    """A worker works on one core: the others have theirs."""
    from threadpoolctl import threadpool_limits

    exit_with_parent()
    threadpool_limits(1)
