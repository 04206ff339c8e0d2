"""Manifests of fairseq-signals and DeepECG-SSL-finetune: a `train.tsv` in, a table out.

Three forms, as the code that reads them there has them:
- *mat*: a line with the root folder, then `file.mat<TAB>samples` a line, for patient identification
  with a third column, the patient. The labels lie in the .mat, as `label`. The form with label_file
  (an .npy beside the configuration, rows by `idx` in the .mat) names it in no manifest: not read.
- *npy* (`npy_dataset`): lines `key:value`, or with a tab, in the older program: x_path [N, 2500,
  12(, 1)], y_path [N, K], label_indexes, scale (mV a count).
- *df* (`df_dataset`): the same lines; x_path is a csv or parquet with a column npy_path and the
  columns y_labels.
The values are Python code there; here they are literals, and `normalization`, a pickle, is refused.
Manifests for pre-training (pairs of segments) are not read. All this is from the published source;
files made by the authors were not at hand.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.ecg.array_stores import read_mat
from hpc_ecg.ecg.files import name_of_row

_PAIR = re.compile(r"([a-z_]+)[:\t](.+)")
_KEYS = {"x_path", "x_shape", "y_path", "y_labels", "label_indexes", "scale", "normalization"}
_KEYS |= {"aux_path"}
_FILE = re.compile(r"([^\t]+)\t(\d+)(?:\t([^\t]+))?")


@dataclass(frozen=True, kw_only=True)
class ManifestTable:
    table: pd.DataFrame
    """As text: file, a column a label (`label_3`, or its name), patient_id and split if known."""
    root: Path
    """Folder of the files."""
    axes: str
    unit: str
    """As in ArrayLayout: `0.00488mV` where the manifest states a scale."""


def is_manifest(path: Path) -> bool:
    """By its form, whatever its name."""
    try:
        with path.open("rb") as file:
            lines = file.read(65_536).decode("utf-8", "replace").lstrip("\ufeff").splitlines()
    except OSError:
        return False
    return _is_list(lines) or _is_pairs(lines)


@lru_cache(maxsize=1)  # asked for what it says of the files, and again for its table
def read_manifest(path: Path, read_table: Callable[[Path], pd.DataFrame]) -> ManifestTable:
    """ValueError for a line or a value that does not belong there."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if _is_list(lines):
        root = Path(lines[0].strip())
        table, axes, unit = _read_list(path, lines[1:], root), "leads,samples", "mV"
    else:
        values = _read_pairs(path, lines)
        x_path = _there(path, values, "x_path")
        is_npy = x_path.suffix == ".npy"
        table = _rows_of(path, x_path, values) if is_npy else _files_of(read_table(x_path), values)
        root, axes, unit = x_path.parent, "samples,leads", f"{values.get('scale', 1)}mV"
    if path.stem in ("train", "valid", "test") and "split" not in table:
        table["split"] = path.stem
    return ManifestTable(table=table, root=root, axes=axes, unit=unit)


def _is_list(lines: list[str]) -> bool:
    return len(lines) > 1 and "\t" not in lines[0] and bool(_FILE.fullmatch(lines[1]))


def _is_pairs(lines: list[str]) -> bool:
    pair = _PAIR.fullmatch(lines[0]) if lines else None
    return pair is not None and pair[1] in _KEYS


def _read_list(path: Path, lines: list[str], root: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines, 2):
        match = _FILE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(
                f"{path}: line {number}: expected a file, a tab, a number of samples, got {line!r}"
            )
        row = {"file": match[1]} | ({"patient_id": match[3]} if match[3] else {})
        rows.append(_written_in(root / match[1]) | row)
    return pd.DataFrame(rows, dtype=object).fillna("")


def _written_in(mat: Path) -> dict[str, str]:
    """Labels and patient that a .mat itself holds; nothing of a file that cannot be read: it will
    be left out with its reason later."""
    try:
        found = read_mat(mat, ("label", "patient_id"))
    except (OSError, ValueError):
        return {}
    row = {f"label_{n}": f"{x:g}" for n, x in enumerate(found.get("label", np.empty(0)).ravel())}
    patient = found.get("patient_id", np.empty(0)).ravel()
    return row | ({"patient_id": f"{patient[0]:.0f}"} if patient.size else {})


def _read_pairs(path: Path, lines: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        pair = _PAIR.fullmatch(line.strip())
        if line.strip() and (pair is None or pair[1] not in _KEYS):
            raise ValueError(
                f"{path}: line {number}: expected a colon between a value and one of "
                f"{', '.join(sorted(_KEYS))}, got {line!r}"
            )
        if pair:
            values[pair[1]] = pair[2].strip()
    if "normalization" in values:
        raise ValueError(
            f"{path}: normalization is a pickle, which could run anything; give arrays in mV, or "
            "`scale:` with the mV of a count"
        )
    for name in {"scale", "y_labels", "label_indexes"} & set(values):
        try:
            values[name] = ast.literal_eval(values[name])
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{path}: {name} must be a number or a list, got {values[name]!r}"
            ) from None
    return values


def _there(path: Path, values: dict[str, Any], name: str) -> Path:
    """The file that the manifest names; where that is not, the one beside the manifest."""
    if name not in values:
        raise ValueError(f"{path}: no line {name}:")
    stated = Path(values[name])
    found = stated if stated.is_file() else path.parent / stated.name
    if not found.is_file():
        raise ValueError(f"{path}: {name} {stated}: no such file, nor beside the manifest")
    return found


def _rows_of(path: Path, x_path: Path, values: dict[str, Any]) -> pd.DataFrame:
    """The npy form: row i of x_path has the labels in row i of y_path."""
    records = len(_array(path, x_path))
    table = pd.DataFrame({"file": [name_of_row(x_path.name, row) for row in range(records)]})
    if "y_path" not in values:
        return table
    y_path = _there(path, values, "y_path")
    labels_NK = _array(path, y_path)
    if labels_NK.ndim != 2 or len(labels_NK) != records:
        raise ValueError(
            f"{path}: {y_path.name} has shape {labels_NK.shape}, expected ({records}, labels)"
        )
    for column in values.get("label_indexes", range(labels_NK.shape[1])):
        if not (isinstance(column, int) and 0 <= column < labels_NK.shape[1]):
            raise ValueError(
                f"{path}: label_indexes has {column!r}, {y_path.name} the columns 0 to "
                f"{labels_NK.shape[1] - 1}"
            )
        table[f"label_{column}"] = [
            "" if np.isnan(x) else f"{x:g}" for x in labels_NK[:, column].astype(float)
        ]
    return table


def _array(path: Path, npy: Path) -> np.ndarray:
    try:
        return np.load(npy, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {npy}: {error}") from None


def _files_of(table: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """The df form: one .npy a row."""
    missing = [name for name in ("npy_path", *values.get("y_labels", [])) if name not in table]
    if missing:
        raise ValueError(f"{values['x_path']}: no column {', '.join(missing)}")
    return table.rename(columns={"npy_path": "file"})
