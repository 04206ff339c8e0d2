"""An ECG among others: risks of validation by outcome, nearest members of a cohort, mean maps."""
# N members, D width, L leads, W samples of a beat

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import torch

from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.hashing import read_record
from hpc_ecg.inference.attribution import BATCH, DividedECG, LabelOutput, attribute
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.log import Advance, describe_error, progress_bar
from hpc_ecg.shards.remote import open_shard_set

OUTCOMES = {"with the outcome": 1, "without the outcome": 0}
STEPS, BEHIND = (100, 20, 10, 5, 4, 2), 20
"""Steps between percentiles; patients behind each one, in a bundle."""
MEMBERS, SHOWN = 200, 5
"""Among how many patients the nearest are searched, and how many are shown."""
SPLIT, CHECKED, BEFORE_S, AFTER_S = "test", 2, 0.35, 0.65
"""Of a sample: where it is drawn from, maps of each outcome that are checked, span of a beat."""
Percentiles = dict[str, dict[str, Any]]
"""By outcome: number of `patients`, and their `risks`: pairs of percentile and risk."""


def risks_by_outcome(model: ModelSource, behind: int = BEHIND) -> dict[str, Percentiles]:
    """Percentiles of validation patients' risks, by label and outcome, as fine as `behind` allows.
    A patient counts once: the mean over the ECGs with that outcome."""
    files = [run.predictions / "valid.parquet" for run in model.runs]
    seeds = [read_predictions(file).sorted() for file in files]
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
    return order[np.sort(np.unique(np.array(dataset.patients)[order], return_index=True)[1])]


def nearest_members(
    model: ModelSource, network: LabelOutput, ecg: PreparedECG, seed: int
) -> pd.DataFrame | str:
    """Age, sex, label and distance (relative to the median) of the nearest of MEMBERS training
    patients, drawn by `seed`, one ECG each, without any identifier; or why there are none."""
    if len(model.files) > 1 or not model.is_run:
        return "a run and its shards are needed"
    try:
        shards, labels = open_shards(model.config.data)
        environment = read_record(model.runs[0].environment)
        if shards.index_sha256 != environment.get("data_index_sha256"):
            return "data.shards is not what the run was trained on"
        dataset = open_split(shards, "train", labels)
        digest = hashlib.sha256(ecg.counts_LS.tobytes()).hexdigest()  # it is no other member
        rows = one_a_patient(dataset, seed, np.array(dataset.sha256_N) != digest)[:MEMBERS]
        ecg_NLS = dataset.read(rows) * dataset.millivolts_per_count
        features_ND = _features(network, ecg_NLS, _samples(dataset, rows))
    except (ValueError, OSError) as error:
        return f"the run's shards cannot be read here: {describe_error(error)}"
    ecg_1LS = ecg.counts_LS[None] * (MICROVOLTS_PER_COUNT / 1000)
    own_1D = _features(network, ecg_1LS, np.array([ecg.samples]))
    distance_N = np.linalg.norm(features_ND - own_1D, axis=1)
    nearest = np.argsort(distance_N, kind="stable")[:SHOWN]
    index = shards.index[shards.index["split"] == "train"]
    table = index.iloc[rows[nearest]].reindex(columns=["age", "sex"])
    table["label"] = dataset.labels_NK[rows[nearest], labels.index(model.labels[network.label])]
    table["distance"] = distance_N[nearest] / max(float(np.median(distance_N)), 1e-12)
    return table


@torch.no_grad()
def _features(network: LabelOutput, ecg_NLS: np.ndarray, samples_N: np.ndarray) -> np.ndarray:
    """What `hpc-ecg embed` gives for its last layer [N, D]."""
    member: Any = network.members[0]
    parts = [slice(start, start + BATCH) for start in range(0, len(ecg_NLS), BATCH)]
    inputs = [network.inputs(ecg_NLS[part], samples_N[part]) for part in parts]
    return np.concatenate([member.features(*some).double().cpu().numpy() for some in inputs])


def _samples(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    samples_N = dataset.samples(rows)
    return np.full(len(rows), dataset.record_shape[1]) if samples_N is None else samples_N


def mean_maps(
    network: LabelOutput, folder: str, model: ModelSource, label: str, num: int, seed: int
) -> list[dict[str, Any]]:
    """The mean maps over beats, aligned at their QRS complexes, of ECGs of the split SPLIT: half of
    `num` of each outcome, one ECG a patient.

    By outcome: `map` and mean `beat` in mV [L, W]; the numbers `drawn` and `used`, without those of
    too few similar beats; some ECGs with their maps by piece, to be `checked`. ValueError: other
    signals than the model's, no such label, or an outcome without an ECG."""
    if model.is_regression:
        raise ValueError(f"mean maps are by outcome, and {model.name} predicts a value")
    shards = open_shard_set(folder)
    check_same_signal(shards.signal, model.signal, folder, model.name)
    if label not in shards.label_names:
        raise ValueError(f"{folder} has the labels {', '.join(shards.label_names)}, not {label}")
    dataset = open_split(shards, SPLIT, [label])
    order, results = one_a_patient(dataset, seed, np.isin(dataset.labels_NK[:, 0], (0, 1))), []
    for outcome in (1, 0):
        rows = order[dataset.labels_NK[order, 0] == outcome][: num // 2]
        with progress_bar(f"maps of {label} = {outcome}", len(rows)) as advance:
            used = [one for row in rows if (one := _aligned(network, dataset, row, advance))]
        if not used:
            who = f"no ECG with {label} = {outcome} and enough similar beats"
            raise ValueError(f"split {SPLIT} of {folder} has {who}, of {len(rows)} drawn")
        beat_LW, map_LW = np.mean([pair for pair, _ in used], axis=0)
        numbers = {"outcome": outcome, "drawn": len(rows), "used": len(used)}
        checked = [pair for _, pair in used[:CHECKED]]
        results.append(numbers | {"beat": beat_LW, "map": map_LW, "checked": checked})
    return results


def _aligned(network: LabelOutput, dataset: Dataset, row: int, advance: Advance) -> Any:
    """Mean beat and map of an ECG [L, W], and the ECG with its map; None: too few beats."""
    advance()
    samples, rate = int(_samples(dataset, np.array([row]))[0]), dataset.shards.signal.sample_rate_hz
    ecg_LS = dataset.read(np.array([row]))[0] * dataset.millivolts_per_count
    try:
        ecg = DividedECG(ecg_LS, samples, dataset.shards.signal)
    except ValueError:
        return None
    map_LS, _ = attribute(network, ecg)
    at = ecg.beats[:, None] + np.arange(-round(BEFORE_S * rate), round(AFTER_S * rate))
    at = at[(at[:, 0] >= 0) & (at[:, -1] < samples)]
    pair = [values_LS[:, at].mean(axis=1) for values_LS in (ecg.ecg_LS, map_LS)]
    return pair, (ecg, ecg.sums(map_LS))
