"""The predictions file: parquet, one row per record, read and written only here.

Columns: `record`, `patient` (text), and per label L: `L.label` (NaN: missing), `L.logit`,
`L.probability`. For regression `L.logit` is the predicted value and there is no probability.
`group.<name>` are facts for subgroups: numbers, or text ('' where unknown).
"""

# N records, K labels

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_ecg.atomic_io import check_may_write, write_atomically
from hpc_ecg.cohort.table import WEIGHT_PREFIX
from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.log import first_line
from hpc_ecg.reporting.numbers import count

GROUP_PREFIX = "group."
MAX_RECORDS = 1 << 26
"""A file of kilobytes can state any number of equal rows."""


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
    """Facts of each record by name: age, sex, site, time and whatever else the index kept."""

    def __post_init__(self) -> None:
        shape = (len(self.record_N), len(self.labels))
        for name in ("label_NK", "logit_NK", "probability_NK"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape} (records, labels), got {array.shape}"
                )
        if len(self.patient_N) != shape[0]:
            patients, records = count(len(self.patient_N), "patient"), count(shape[0], "record")
            raise ValueError(f"{patients} for {records}; give one each")
        for name, values_N in self.groups.items():
            if len(values_N) != shape[0]:
                values, records = count(len(values_N), "value"), count(shape[0], "record")
                raise ValueError(f"group {name}: {values} for {records}")
        if 0 in shape:
            records, labels = count(shape[0], "record"), count(shape[1], "label")
            raise ValueError(f"needs records and labels, got {records} and {labels}")
        names, counts = np.unique(self.record_N.astype(str), return_counts=True)
        repeated = names[counts > 1]
        if len(repeated):
            raise ValueError(
                f"{count(len(repeated), 'record')} with two rows or more, such as "
                f"{str(repeated[0])!r}; each record must be predicted exactly once"
            )

    def __len__(self) -> int:
        return len(self.record_N)

    def weights(self, k: int) -> FloatArray:
        """What each record counts for label k: its weight against censoring, or 1."""
        weight_N = self.groups.get(WEIGHT_PREFIX + self.labels[k])
        return (
            np.ones(len(self)) if weight_N is None else np.nan_to_num(weight_N.astype(np.float64))
        )

    def sorted(self) -> "Predictions":
        """The same rows in the order of their record names."""
        return self.rows(np.argsort(self.record_N, kind="stable"))

    def rows(self, order: NDArray[np.int64]) -> "Predictions":
        """Some of the rows, in this order."""
        names = ("record_N", "patient_N", "label_NK", "logit_NK", "probability_NK")
        arrays = {name: getattr(self, name) for name in names}
        arrays = {name: None if array is None else array[order] for name, array in arrays.items()}
        groups = {name: values_N[order] for name, values_N in self.groups.items()}
        return replace(self, **arrays, groups=groups)


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote. ValueError: no such file, missing columns, repeated
    records, or records without patient."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        if pq.read_metadata(path).num_rows > MAX_RECORDS:
            raise ValueError(f"more than {MAX_RECORDS:,} records")
        table = pq.read_table(path).to_pandas(ignore_metadata=True)
        if not table.columns.is_unique:
            raise ValueError("a column comes twice")
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{path} is damaged or no parquet file: {first_line(error)}") from None
    group_columns = [c for c in table.columns if c.startswith(GROUP_PREFIX)]
    groups = {c.removeprefix(GROUP_PREFIX): as_group(table.pop(c)) for c in group_columns}
    labels = [c.removesuffix(".label") for c in table.columns if c.endswith(".label")]
    needed = ["record", "patient", *(f"{name}.logit" for name in labels)]
    missing = [c for c in needed if c not in table.columns]
    if missing or not labels:
        absent, seen = ", ".join(missing) or "<name>.label", ", ".join(table.columns)
        raise ValueError(f"{path}: no column {absent} among {seen}; use write_predictions")
    incomplete = int(table[["record", "patient"]].isna().any(axis=1).sum())
    if incomplete:
        raise ValueError(
            f"{path}: {count(incomplete, 'row')} without record or patient; "
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
            groups=groups,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def check_evaluation_folder(out: Path) -> None:
    """ValueError unless predictions and scores may be written into the folder `out`: those of an
    earlier evaluation are replaced, files of others are not."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    predictions = out / "predictions.parquet"
    for path in (predictions, out / "evaluation.json"):
        try:
            check_may_write(path, not path.exists() or bool(read_predictions(predictions).labels))
        except (ValueError, OSError):
            check_may_write(path, replace=False)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write aside, flush to disk and rename: a reader sees the whole file or none."""
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
    write_atomically(path, lambda aside: table.to_parquet(aside, index=False), about_people=True)


def as_group(column: pd.Series) -> NDArray:
    """Numbers as float64, anything else as text."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.fillna("").astype(str).to_numpy(dtype=object)


def _columns(table: pd.DataFrame, labels: list[str], kind: str) -> FloatArray:
    return table[[f"{name}.{kind}" for name in labels]].to_numpy(dtype=np.float64, na_value=np.nan)


def _probabilities(table: pd.DataFrame, labels: list[str]) -> FloatArray | None:
    present = [name for name in labels if f"{name}.probability" in table.columns]
    if present and present != labels:
        raise ValueError(f"probability columns for {', '.join(present)} only; all labels or none")
    return _columns(table, labels, "probability") if present else None
