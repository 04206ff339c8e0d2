"""Where an ECG stands among others: risks of validation by outcome, nearest members of a cohort."""
# N members, D width

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import torch

from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.hashing import read_record
from hpc_ecg.inference.attribution import BATCH, LabelOutput
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.log import describe_error
from hpc_ecg.training.run_folder import RunFolder

OUTCOMES = {"with the outcome": 1, "without the outcome": 0}
STEPS, BEHIND = (100, 20, 10, 5, 4, 2), 20
"""Steps between percentiles; patients behind each one, in a bundle."""
SHOWN = 5
Percentiles = dict[str, dict[str, Any]]
"""By outcome: number of `patients`, and their `risks`: pairs of percentile and risk."""


def risks_by_outcome(model: ModelSource, behind: int = BEHIND) -> dict[str, Percentiles]:
    """Percentiles of validation patients' risks, by label and outcome, as fine as `behind` allows.
    A patient counts once: the mean over the ECGs with that outcome."""
    runs = [RunFolder(file.parent.parent) for file in model.files]
    seeds = [read_predictions(run.predictions / "valid.parquet").sorted() for run in runs]
    found = [seed.probability_NK for seed in seeds if seed.probability_NK is not None]
    result: dict[str, Percentiles] = {label: {} for label in model.labels if found}
    for k, label in enumerate(result):
        for outcome, value in OUTCOMES.items():
            is_in_N = seeds[0].label_NK[:, k] == value
            risk_N = pd.Series(np.mean(found, axis=0)[is_in_N, k])
            risks = risk_N.groupby(seeds[0].patient_N[is_in_N]).mean()
            if steps := next((steps for steps in STEPS if len(risks) >= behind * steps), 0):
                percents = [100 * step // steps for step in range(1, steps)]
                pairs = zip(percents, np.percentile(risks, percents).tolist(), strict=True)
                result[label][outcome] = {"patients": len(risks), "risks": [*map(list, pairs)]}
    return result


def one_a_patient(dataset: Dataset, seed: int, is_kept_N: np.ndarray) -> np.ndarray:
    """Positions in random order, the first one of each patient."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[is_kept_N[order]]
    first = np.unique(np.array(dataset.patients)[order], return_index=True)[1]
    return order[np.sort(first)]


def nearest_members(
    model: ModelSource, network: LabelOutput, ecg: PreparedECG, label: str, num: int, seed: int
) -> pd.DataFrame | str:
    """Age, sex, label and distance (relative to the median) of the nearest of `num` training
    patients, drawn by `seed`, one ECG each, without any identifier; or why there are none."""
    if num == 0 or len(model.files) > 1 or not model.is_run:
        return "they are searched for one run, with --members above 0"
    try:
        shards, labels = open_shards(model.config.data)
        environment = read_record(RunFolder(model.files[0].parent.parent).environment)
        if shards.index_sha256 != environment.get("data_index_sha256"):
            return "data.shards is not what the run was trained on"
        dataset = open_split(shards, "train", labels)
        digest = hashlib.sha256(ecg.counts_LS.tobytes()).hexdigest()  # it is no other member
        rows = one_a_patient(dataset, seed, np.array(dataset.sha256_N) != digest)[:num]
        counts_NLS, samples_N = dataset.read(rows), dataset.samples(rows)
    except (ValueError, OSError) as error:
        return f"the run's shards cannot be read here: {describe_error(error)}"
    if samples_N is None:
        samples_N = np.full(len(rows), model.signal.num_samples)
    features_ND = _features(network, counts_NLS, samples_N)
    own_1D = _features(network, ecg.counts_LS[None], np.array([ecg.samples]))
    distance_N = np.linalg.norm(features_ND - own_1D, axis=1)
    nearest = np.argsort(distance_N, kind="stable")[:SHOWN]
    table = shards.index[shards.index["split"] == "train"].iloc[rows[nearest]]
    table = table.reindex(columns=["age", "sex"])
    table["label"] = dataset.labels_NK[rows[nearest], labels.index(label)]
    table["distance"] = distance_N[nearest] / max(float(np.median(distance_N)), 1e-12)
    return table


@torch.no_grad()
def _features(network: LabelOutput, counts_NLS: np.ndarray, samples_N: np.ndarray) -> np.ndarray:
    """What `hpc-ecg embed` gives for its last layer [N, D]."""
    found: list[np.ndarray] = []
    for start in range(0, len(counts_NLS), BATCH):
        some = slice(start, start + BATCH)
        ecg_NLS = counts_NLS[some] * (MICROVOLTS_PER_COUNT / 1000)
        features: Any = network.members[0].features
        found.append(features(*network.inputs(ecg_NLS, samples_N[some])).double().cpu().numpy())
    return np.concatenate(found)
