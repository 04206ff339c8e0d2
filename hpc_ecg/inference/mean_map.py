"""The mean map of a sample of a cohort by outcome, beats aligned at their QRS complexes."""
# L leads, W samples of a beat

from typing import Any

import numpy as np

from hpc_ecg.data.dataset import Dataset, open_split
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.inference.attribution import DividedECG, LabelOutput, attribute
from hpc_ecg.inference.cohort_context import one_a_patient
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.log import progress_bar
from hpc_ecg.shards.remote import open_shard_set

SPLIT, CHECKED = "test", 2
"""Whom the sample is drawn from; of how many ECGs of each outcome the maps are checked."""
BEFORE_S, AFTER_S = 0.35, 0.65
Sample = tuple[Dataset, dict[int, np.ndarray]]
"""Rows of the dataset by outcome."""


def draw_sample(folder: str, model: ModelSource, label: str, num: int, seed: int) -> Sample:
    """Half of `num` of each outcome, one ECG a patient. ValueError: other signals than the model's,
    no such label, or an outcome that nobody in the split has."""
    shards = open_shard_set(folder)
    check_same_signal(shards.signal, model.signal, folder, model.name)
    if label not in shards.label_names:
        raise ValueError(f"{folder} has the labels {', '.join(shards.label_names)}, not {label}")
    dataset = open_split(shards, SPLIT, [label])
    order = one_a_patient(dataset, seed, np.isin(dataset.labels_NK[:, 0], (0, 1)))
    rows = {k: order[dataset.labels_NK[order, 0] == k][: num // 2] for k in (1, 0)}
    for outcome, found in rows.items():
        if not len(found):
            raise ValueError(f"split {SPLIT} of {folder} has no patient with {label} = {outcome}")
    return dataset, rows


def mean_map(
    network: LabelOutput, dataset: Dataset, outcome: int, rows: np.ndarray
) -> dict[str, Any]:
    """The mean map and the mean beat in mV [L, W], numbers of ECGs, and some ECGs with their maps
    by piece to be `checked`. ValueError: no ECG has enough similar heartbeats."""
    aligned, checked, signal = [], [], dataset.shards.signal
    samples_N, rate = dataset.samples(rows), signal.sample_rate_hz
    beat_W = np.arange(-round(BEFORE_S * rate), round(AFTER_S * rate))
    with progress_bar("maps", len(rows)) as advance:
        for n, row in enumerate(rows):
            advance()
            ecg_LS = dataset.read(np.array([row]))[0] * dataset.millivolts_per_count
            samples = signal.num_samples if samples_N is None else int(samples_N[n])
            try:
                ecg = DividedECG(ecg_LS, samples, signal)
            except ValueError:
                continue
            map_LS, _ = attribute(network, ecg)
            at = ecg.beats[:, None] + beat_W
            at = at[(at[:, 0] >= 0) & (at[:, -1] < samples)]
            aligned.append([values_LS[:, at].mean(axis=1) for values_LS in (map_LS, ecg.ecg_LS)])
            checked.append((ecg, ecg.sums(map_LS)))
    if not aligned:
        raise ValueError(f"no drawn ECG with outcome {outcome} has enough similar heartbeats")
    map_LW, beat_LW = np.mean(aligned, axis=0)
    numbers = {"outcome": outcome, "drawn": len(rows), "used": len(aligned)}
    return numbers | {"map_LW": map_LW, "beat_LW": beat_LW, "checked": checked[:CHECKED]}
