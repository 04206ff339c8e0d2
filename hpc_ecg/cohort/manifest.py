"""Manifests of fairseq-signals and DeepECG-SSL-finetune: from a `train.tsv` to a table.

Three forms, as the published code reads them (we had no files made by its authors):
- *mat*: a line with the root folder, then `file.mat<TAB>samples` per line; for patient
  identification the patient is a third column. The .mat itself holds the `label`. We do not read
  the form with a label_file (an .npy named in the configuration, not in the manifest).
- *npy* (`npy_dataset`): lines `key:value` (a tab in older versions): x_path [N, 2500, 12(, 1)],
  y_path [N, K], label_indexes, scale (mV a count).
- *df* (`df_dataset`): the same lines, but x_path is a csv or parquet with a column npy_path and the
  columns y_labels.
The published code evaluates the values as Python; here they must be literals, and `normalization`,
a pickle, is refused. Manifests for pre-training (pairs of segments) are not read.
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
_LITERALS: dict[str, tuple[type, ...]] = {"scale": (int, float), "y_labels": (str,)}
_LITERALS["label_indexes"] = (int,)
_FILE = re.compile(r"([^\t]+)\t(\d+)(?:\t([^\t]+))?")


@dataclass(frozen=True, kw_only=True)
class ManifestTable:
    table: pd.DataFrame
    """As text: file, a column per label (`label_3` or its name); patient_id and split if known."""
    root: Path
    """Folder of the files."""
    axes: str
    unit: str
    """As in ArrayLayout: `0.00488mV` if the manifest states a scale."""


def is_manifest(path: Path) -> bool:
    """Recognize a manifest by its first lines, whatever its name."""
    try:
        with path.open("rb") as file:
            lines = file.read(65_536).decode("utf-8", "replace").lstrip("\ufeff").splitlines()
    except OSError:
        return False
    pair = _PAIR.fullmatch(lines[0]) if lines else None
    return _lists_files(lines) or (pair is not None and pair[1] in _KEYS)


@lru_cache(maxsize=1)  # called first for axes and unit, then for the table
def read_manifest(path: Path, read_table: Callable[[Path], pd.DataFrame]) -> ManifestTable:
    """Read a manifest of any form. ValueError: an unexpected line or value, a missing file."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if _lists_files(lines):
        root, axes, unit = Path(lines[0].strip()), "leads,samples", "mV"
        table = _read_file_list(path, lines[1:], root)
    else:
        values = _read_pairs(path, lines)
        x_path = _find_file(path, values, "x_path")
        root, axes, unit = x_path.parent, "samples,leads", f"{values.get('scale', 1)}mV"
        if x_path.suffix == ".npy":
            table = _rows_of_array(path, x_path, values)
        else:
            table = _rows_of_table(read_table(x_path), values)
    if path.stem in ("train", "valid", "test") and "split" not in table:
        table["split"] = path.stem
    return ManifestTable(table=table, root=root, axes=axes, unit=unit)


def _lists_files(lines: list[str]) -> bool:
    return len(lines) > 1 and "\t" not in lines[0] and bool(_FILE.fullmatch(lines[1]))


def _read_file_list(path: Path, lines: list[str], root: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines, 2):
        match = _FILE.fullmatch(line.rstrip())
        if match is None:
            expected = "expected a file, a tab, a number of samples"
            raise ValueError(f"{path}: line {number}: {expected}, got {line!r}")
        patient = {"patient_id": match[3]} if match[3] else {}
        rows.append({"file": match[1]} | _labels_and_patient(root / match[1]) | patient)
    return pd.DataFrame(rows, dtype=object).fillna("")


def _labels_and_patient(mat: Path) -> dict[str, str]:
    """What a .mat itself states; nothing for an unreadable file, which is left out later."""
    try:
        arrays = read_mat(mat, ("label", "patient_id"))
    except (OSError, ValueError):
        return {}
    labels, patient = (arrays.get(n, np.empty(0)).ravel() for n in ("label", "patient_id"))
    row = {f"label_{n}": f"{label:g}" for n, label in enumerate(labels)}
    return row | ({"patient_id": f"{patient[0]:.0f}"} if patient.size else {})


def _read_pairs(path: Path, lines: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        pair = _PAIR.fullmatch(line.strip())
        if pair and pair[1] in _KEYS:
            values[pair[1]] = pair[2].strip()
        elif line.strip():
            raise ValueError(
                f"{path}: line {number}: expected a colon between a value and one of "
                f"{', '.join(sorted(_KEYS))}, got {line!r}"
            )
    if "normalization" in values:
        raise ValueError(
            f"{path}: normalization is a pickle, which could run any code; give arrays in mV, or "
            "`scale:` with the mV of a count"
        )
    for name in _LITERALS.keys() & values.keys():
        try:
            value = ast.literal_eval(values[name])
            items = [value] if name == "scale" else [*value] if isinstance(value, list) else [None]
            if not all(type(item) in _LITERALS[name] for item in items):
                raise ValueError
            values[name] = value
        except (ValueError, SyntaxError):
            text = f"{name} must be a number or a list of its kind, got {values[name]!r:.80}"
            raise ValueError(f"{path}: {text}") from None
    return values


def _find_file(path: Path, values: dict[str, Any], name: str) -> Path:
    """The file that the manifest names or, if it has moved, its namesake beside the manifest."""
    if name not in values:
        raise ValueError(f"{path}: no line {name}:")
    stated = Path(values[name])
    file = stated if stated.is_file() else path.parent / stated.name
    if not file.is_file():
        raise ValueError(f"{path}: {name} {stated}: no such file, nor beside the manifest")
    return file


def _rows_of_array(path: Path, x_path: Path, values: dict[str, Any]) -> pd.DataFrame:
    """The npy form: row i of x_path has the labels in row i of y_path."""
    num_records = len(_load(path, x_path))
    table = pd.DataFrame({"file": [name_of_row(x_path.name, row) for row in range(num_records)]})
    if "y_path" not in values:
        return table
    y_path = _find_file(path, values, "y_path")
    labels_NK = _load(path, y_path)
    if labels_NK.ndim != 2 or len(labels_NK) != num_records:
        expected = f"expected ({num_records}, labels)"
        raise ValueError(f"{path}: {y_path.name} has shape {labels_NK.shape}, {expected}")
    last = labels_NK.shape[1] - 1
    for column in values.get("label_indexes", range(last + 1)):
        if not (isinstance(column, int) and 0 <= column <= last):
            columns = f"{y_path.name} has the columns 0 to {last}"
            raise ValueError(f"{path}: label_indexes names {column!r}, but {columns}")
        numbers_N = labels_NK[:, column].astype(float)
        table[f"label_{column}"] = ["" if np.isnan(x) else f"{x:g}" for x in numbers_N]
    return table


def _load(path: Path, npy: Path) -> np.ndarray:
    try:
        return np.load(npy, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {npy}: {error}") from None


def _rows_of_table(table: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """The df form: each row names an .npy file."""
    missing = [name for name in ("npy_path", *values.get("y_labels", [])) if name not in table]
    if missing:
        raise ValueError(f"{values['x_path']}: no column {', '.join(missing)}")
    return table.rename(columns={"npy_path": "file"})
