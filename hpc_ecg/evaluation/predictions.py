"""The predictions file: parquet, one row per record, read and written only here.

Columns: `record`, `patient` (text), and per label L: `L.label` (NaN: missing), `L.logit`,
`L.probability`. For regression `L.logit` is the predicted value and there is no probability.
`group.<name>` are facts for subgroups: numbers, or text ('' where it is not known).
"""

# N records, K labels

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.evaluation.metrics import FloatArray

GROUP_PREFIX = "group."


@dataclass(frozen=True, kw_only=True)
class Predictions:
    record_N: NDArray
    patient_N: NDArray
    labels: list[str]
    label_NK: FloatArray
    logit_NK: FloatArray
    probability_NK: FloatArray | None
    """None for regression."""
    groups: dict[str, NDArray] = field(default_factory=dict)
    """Of each record, by name: age, sex, site, time and whatever else the index kept."""

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_unique(self.record_N)

    def __len__(self) -> int:
        return len(self.record_N)

    def sorted(self) -> "Predictions":
        """The same rows in the order of their record names."""
        order = np.argsort(self.record_N, kind="stable")
        probability = self.probability_NK
        return replace(
            self,
            record_N=self.record_N[order],
            patient_N=self.patient_N[order],
            label_NK=self.label_NK[order],
            logit_NK=self.logit_NK[order],
            probability_NK=None if probability is None else probability[order],
            groups={name: values_N[order] for name, values_N in self.groups.items()},
        )


def read_predictions(path: Path) -> Predictions:
    """Raises `ValueError` for no such file, missing columns, repeated records and records without
    patient."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    table = pd.read_parquet(path)
    groups = {c.removeprefix(GROUP_PREFIX): table.pop(c) for c in _group_columns(table)}
    labels = [c.removesuffix(".label") for c in table.columns if c.endswith(".label")]
    needed = ["record", "patient", *(f"{name}.logit" for name in labels)]
    missing = [c for c in needed if c not in table.columns]
    if missing or not labels:
        absent, seen = ", ".join(missing) or "<name>.label", ", ".join(table.columns)
        raise ValueError(f"{path}: no column {absent} among {seen}; use write_predictions")
    without = table[["record", "patient"]].isna().any(axis=1)
    if without.any():
        raise ValueError(
            f"{path}: {int(without.sum())} rows have no record or no patient; "
            "intervals are by patient, so every row needs both"
        )
    try:
        return Predictions(
            record_N=table["record"].astype(str).to_numpy(dtype=object),
            patient_N=table["patient"].astype(str).to_numpy(dtype=object),
            labels=labels,
            label_NK=_columns(table, labels, "label"),
            logit_NK=_columns(table, labels, "logit"),
            probability_NK=_probabilities(table, labels),
            groups={name: as_group(column) for name, column in groups.items()},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Written aside, flushed to disk, renamed: a reader sees the whole file or none."""
    columns: dict[str, NDArray] = {
        "record": predictions.record_N.astype(str).astype(object),
        "patient": predictions.patient_N.astype(str).astype(object),
    }
    for k, name in enumerate(predictions.labels):
        columns[f"{name}.label"] = predictions.label_NK[:, k]
        columns[f"{name}.logit"] = predictions.logit_NK[:, k]
        if predictions.probability_NK is not None:
            columns[f"{name}.probability"] = predictions.probability_NK[:, k]
    columns |= {f"{GROUP_PREFIX}{name}": group for name, group in predictions.groups.items()}
    table = pd.DataFrame(columns)
    write_atomically(path, lambda aside: table.to_parquet(aside, index=False))


def as_group(column: pd.Series) -> NDArray:
    """Numbers as float64, anything else as text."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.fillna("").astype(str).to_numpy(dtype=object)


def _group_columns(table: pd.DataFrame) -> list[str]:
    return [c for c in table.columns if c.startswith(GROUP_PREFIX)]


def _columns(table: pd.DataFrame, labels: list[str], kind: str) -> FloatArray:
    return table[[f"{name}.{kind}" for name in labels]].to_numpy(dtype=np.float64, na_value=np.nan)


def _probabilities(table: pd.DataFrame, labels: list[str]) -> FloatArray | None:
    found = [name for name in labels if f"{name}.probability" in table.columns]
    if found and found != labels:
        raise ValueError(f"probability columns for {', '.join(found)} only; all labels or none")
    return _columns(table, labels, "probability") if found else None


def _check_shapes(predictions: Predictions) -> None:
    shape = (len(predictions.record_N), len(predictions.labels))
    for name in ("label_NK", "logit_NK", "probability_NK"):
        array = getattr(predictions, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} (records, labels), got {array.shape}")
    if len(predictions.patient_N) != shape[0]:
        raise ValueError(
            f"{len(predictions.patient_N)} patients for {shape[0]} records; give each one"
        )
    for name, values_N in predictions.groups.items():
        if len(values_N) != shape[0]:
            raise ValueError(f"group {name}: {len(values_N)} values for {shape[0]} records")
    if not shape[0] or not shape[1]:
        raise ValueError(f"needs records and labels, got {shape[0]} records and {shape[1]} labels")


def _check_unique(record_N: NDArray) -> None:
    names, counts = np.unique(record_N.astype(str), return_counts=True)
    if (counts > 1).any():
        twice = names[counts > 1]
        raise ValueError(
            f"{len(twice)} records come more than once, such as {str(twice[0])!r}; "
            "each record must be predicted exactly once"
        )
