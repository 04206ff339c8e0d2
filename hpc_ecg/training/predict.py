"""Predict a whole split, each record exactly once, on any number of ranks."""

# N records, K labels

from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import collate, empty_rows, fill_up, prefetch_in_order
from hpc_ecg.data.sampler import slice_of_rank
from hpc_ecg.evaluation.predictions import Predictions, as_group
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import loss_sum, normalizer
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.shards.description import COLUMNS, FOLD_PREFIX, LABEL_PREFIX
from hpc_ecg.training.engine import Engine

AT_ONCE = 16
"""Batches whose outputs are copied together: a copy waits until a GPU has computed them."""


def predict(
    engine: Engine, dataset: Dataset, batch_size: int, width: int | None = None
) -> np.ndarray:
    """The output of the engine's model for every record of the split, float32 [N, K], on all ranks.

    `width` is the number of outputs K, by default one per label. Collective.
    """
    mine = slice_of_rank(len(dataset), engine.rank, engine.world_size)
    per_count = dataset.millivolts_per_count
    outputs, waiting, title = list[Tensor](), list[Tensor](), f"ECGs of {dataset.split}"
    with progress_bar(title, mine.stop - mine.start, 0, engine.is_rank_zero, 1) as advance:
        for micro in prefetch_in_order(dataset, mine, batch_size):
            waiting.append(engine.infer(fill_up(micro, batch_size), per_count))
            if len(waiting) == AT_ONCE or micro.positions[-1] + 1 == mine.stop:
                outputs.append(torch.cat(waiting).cpu())
                waiting = []
            advance(len(micro.positions))
    rows = -(-len(dataset) // engine.world_size)
    if engine.collective_forward:  # a rank with fewer batches must join the others' last ones
        blank, no_positions = empty_rows(dataset, 1), np.zeros(0, np.int64)
        for _ in range(-(-rows // batch_size) - -(-(mine.stop - mine.start) // batch_size)):
            engine.infer(collate(dataset, no_positions, blank, dataset), per_count)
    empty = torch.zeros(0, width or len(dataset.label_names))
    local_nK = torch.cat(outputs)[: mine.stop - mine.start] if outputs else empty
    if engine.world_size == 1:
        return local_nK.numpy()
    gathered = engine.gather(F.pad(local_nK, (0, 0, 0, rows - len(local_nK))))
    parts = []
    for rank, part in enumerate(gathered.split(rows)):
        records = slice_of_rank(len(dataset), rank, engine.world_size)
        parts.append(part[: records.stop - records.start])
    return torch.cat(parts).numpy()


def as_predictions(dataset: Dataset, logits_NK: np.ndarray, task: str) -> Predictions:
    """Logits [N, K] with labels, patients and groups, as predictions/*.parquet stores them."""
    logits_NK = logits_NK.astype(np.float64)
    return Predictions(
        record_N=np.array(dataset.records, dtype=object),
        patient_N=np.array(dataset.patients, dtype=object),
        labels=dataset.label_names,
        label_NK=dataset.labels_NK.astype(np.float64),
        logit_NK=logits_NK,
        # torch's sigmoid differs in the last bit between the middle and the end of an array
        probability_NK=None if task == "regression" else expit(logits_NK),
        groups=_groups_of(dataset),
    )


def _groups_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """The columns of the index that describe records, such as age, sex and site: arrays [N]."""
    index = dataset.shards.index.set_index("record").loc[dataset.records]
    prefixes = (LABEL_PREFIX, FOLD_PREFIX)
    columns = map(str, index)
    names = [n for n in columns if n not in COLUMNS and not n.startswith(prefixes)]
    return {name: as_group(index[name]) for name in names}


def score_validation(
    dataset: Dataset, logits_NK: np.ndarray, task: str, loss: LossConfig
) -> dict[str, float]:
    """Loss and, for classification, AUROC and AUPRC (means over the labels with both classes).

    Missing labels are ignored. torchmetrics guesses from the values whether they are logits or
    probabilities, so it always gets probabilities, in float64, because many would be equal near 1
    in float32.
    """
    logits, targets = torch.from_numpy(logits_NK), torch.from_numpy(dataset.labels_NK)
    weights = torch.from_numpy(dataset.weights_NK)
    total = float(loss_sum(logits, targets, loss, weights))
    scores = {"loss": total / normalizer(targets, loss, weights)}
    if task == "regression":
        return scores
    by_label: list[tuple[Any, ...]] = []
    for k in range(logits.shape[1]):
        known = ~torch.isnan(targets[:, k])
        truth = targets[known, k].long()
        if not 0 < int(truth.sum()) < len(truth):
            continue
        if (dataset.weights_NK != 1).any():  # torchmetrics takes no weights
            data, w = (truth.numpy(), logits[known, k].numpy()), weights[known, k].numpy()
            metrics = roc_auc_score, average_precision_score
            by_label.append(tuple(metric(*data, sample_weight=w) for metric in metrics))
        else:
            probability = torch.sigmoid(logits[known, k].double())
            by_label.append(
                (binary_auroc(probability, truth), binary_average_precision(probability, truth))
            )
    means = torch.tensor(by_label, dtype=torch.float64).mean(0).tolist()
    return scores | dict(zip(("auroc", "auprc"), means, strict=True))
