"""The output of `predict`: a row per recording, with its risk or the reason why it has none."""

# N rows, M members of an ensemble, K labels

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.ecg.amplitude import compare_amplitudes
from hpc_ecg.evaluation.abstention import DISTANCE, spreads
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.log import logger
from hpc_ecg.reporting.escape import csv_text

FEATURES = "features"


def columns_of(model: ModelSource) -> dict[str, NDArray[Any]]:
    """The columns of the risks without rows, in their order; of features, the one column."""
    return risks(model, np.empty((0, len(model.files), len(model.labels)), np.float32))


def risks(model: ModelSource, logits_NMK: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The columns for these logits.

    Of an ensemble: the mean probability, its logit, and the standard deviation of the members'
    probabilities (n - 1). `L_at_METHOD` is 1 where the probability reaches the threshold,
    `abstained` 1 where the risk, which stays, should not be relied on. Of features [N, 1, D], the
    column `features` of lists.
    """
    if model.layer is not None:
        return {FEATURES: logits_NMK[:, 0]}
    columns: dict[str, NDArray[Any]] = {}
    logits = logits_NMK.astype(np.float64)
    if model.platt:
        slope_M, offset_M = np.array(model.platt).T
        logits = logits * slope_M[:, None] + offset_M[:, None]
    values_NMK = logits if model.is_regression else expit(logits)
    for k, label in enumerate(model.labels):
        values_NM = values_NMK[:, :, k]
        mean_N = values_NM.mean(axis=1)
        if model.is_regression:
            columns[f"{label}_value"] = mean_N
        else:
            is_one = len(model.files) == 1
            with np.errstate(divide="ignore"):
                logit_N = logits[:, 0, k] if is_one else np.log(mean_N) - np.log1p(-mean_N)
            columns |= {f"{label}_probability": mean_N, f"{label}_logit": logit_N}
        if len(model.files) > 1:
            columns[f"{label}_sd"] = values_NM.std(axis=1, ddof=1)
        for method, point in model.points.get(label, {}).items():
            columns[f"{label}_at_{method}"] = (mean_N >= point["threshold"]).astype(np.int64)
    if model.abstains:
        score = model.abstention["score"]
        doubt_N = logits[:, 0, -1] if score == DISTANCE else spreads(logits)[score]
        columns["abstained"] = (doubt_N > model.abstention["cut"]).astype(np.int64)
    return columns


def write_table(path: Path, parts: Sequence[pd.DataFrame], model: ModelSource) -> pd.DataFrame:
    """Join the parts in the order of the sources, and write them as CSV or Parquet."""
    table = pd.concat(parts, ignore_index=True).sort_values(["source", "window"], kind="stable")
    table = table.drop(columns=["source", "window"]).reset_index(drop=True)
    for name, empty in columns_of(model).items():
        if empty.dtype == np.int64:
            table[name] = table[name].astype("Int64")

    def write(partial: Path) -> object:
        if path.suffix == ".parquet":
            return table.to_parquet(partial, index=False)
        return partial.write_text(csv_text(table), encoding="utf-8")

    write_atomically(path, write, about_people=True)
    return table


def describe_outcome(table: pd.DataFrame, out: Path) -> list[str]:
    """The last lines: how many were predicted, and why the others were not."""
    refused = Counter(reason for reason in table["reason"] if reason)
    num_predicted = len(table) - sum(refused.values())
    lines = [f"{num_predicted} of {len(table)} recordings predicted: {out}"]
    if refused:
        reasons = ", ".join(f"{n} {reason}" for reason, n in refused.most_common())
        lines.append(f"not predicted: {reasons} (columns reason and message)")
    if lacking := Counter(reason for reason in table.get("combined_reason", []) if reason):
        reasons = ", ".join(f"{n} {reason}" for reason, n in lacking.most_common(3))
        lines.append(f"no combined probability: {reasons} (column combined_reason)")
    return lines


def warn_of_amplitude(values: Sequence[float]) -> None:
    """Say that the unit seems wrong, if it does."""
    facts = compare_amplitudes(np.array(values))
    if not facts.is_normal:
        logger.warning(f"{facts.sentence} The risks are not to be believed until this is settled.")
