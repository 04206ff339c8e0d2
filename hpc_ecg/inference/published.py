"""A folder as on model hubs: a network per fold, and Platt coefficients in one JSON file.

{"platt_coefficients": [{"slope": 1.1, "intercept": -2}, …]}, in the order of the numbers in the
files' names, or an object by these names. The risk is the mean of sigmoid(slope * logit +
intercept). `a` and `b` mean the same if a > 0, else 1 / (1 + exp(a * logit + b)) (Platt 1999).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_ecg.inference.model_source import ModelSource, open_model
from hpc_ecg.safe_reading import read_json

ENDINGS = (".safetensors", ".pt", ".pth")
OTHERS = (".h5", ".hdf5", ".keras", ".ckpt", ".bin", ".onnx", ".tflite", ".pkl", ".joblib")
PLATT = ("platt_coefficients", "platt")
KEYS = (("slope", "intercept"), ("slope", "offset"), ("a", "b"))
HOW, EQUATION = ("combination", "equation"), "mean(sigmoid(slope*logit+intercept))"


def is_published(path: Path) -> bool:
    """Whether a folder holds files of weights, and is none that this package wrote."""
    ours = ("config.yaml", "sweep.yaml", "model.json", "model.safetensors")
    files = path.iterdir() if path.is_dir() and not any((path / n).exists() for n in ours) else ()
    return any(file.suffix in (*ENDINGS, *OTHERS) for file in files)


def open_published(folder: Path) -> ModelSource:
    """The folds as one ensemble. ValueError: another network, folds that do not belong together, or
    coefficients or an equation that are missing or not understood."""
    files = [file for file in folder.iterdir() if file.suffix in ENDINGS]
    if not files:
        raise ValueError(f"{folder} holds no network of this package (.safetensors or .pt)")
    files.sort(key=lambda f: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", f.stem)])
    platt, models = _read_platt(folder, files), [open_model(file) for file in files]
    if len(models[0].labels) > 1 or any(m.labels != models[0].labels for m in models):
        raise ValueError(f"{folder}: expected folds with one label, the same in all")
    if any(model.signal != models[0].signal for model in models):
        raise ValueError(f"{folder}: its folds state different signals")
    paths = [model.files[0] for model in models]
    return replace(models[0], name=f"{len(files)} folds in {folder}", files=paths, platt=platt)


def _read_platt(folder: Path, files: Sequence[Path]) -> list[tuple[float, float]]:
    stored = [(j, s) for j in sorted(folder.glob("*.json")) if isinstance(s := read_json(j), dict)]
    stated = [(j, s, s[key]) for j, s in stored for key in PLATT if key in s]
    if len(stated) != 1:
        raise ValueError(
            f"{folder}: its JSON files have {len(stated)} lists {PLATT[0]}, expected one; for a "
            f"network without calibration give its file: {files[0]}"
        )
    path, content, fits = stated[0]
    for key in HOW:
        text = str(content.get(key, "mean")).replace(" ", "")
        if text not in ("mean", EQUATION):
            raise ValueError(f"{path}: {key} {text[:60]} is not understood; known is {EQUATION}")
    if isinstance(fits, dict) and len(fits) == len(files):
        fits = [fits.get(file.name, fits.get(file.stem)) for file in files]
    if not isinstance(fits, list) or len(fits) != len(files):
        raise ValueError(
            f"{path}: expected a slope and an intercept for each of {len(files)} files"
        )
    return [_read_fit(f"{path}, {file.name}", fit) for file, fit in zip(files, fits, strict=True)]


def _read_fit(name: str, fit: Any) -> tuple[float, float]:
    known = [keys for keys in KEYS if isinstance(fit, dict) and set(keys) <= set(fit)]
    values = [fit[key] for key in known[0]] if len(known) == 1 else []
    if not values or any(type(value) not in (int, float) for value in values):
        raise ValueError(f"{name}: expected slope and intercept as numbers, got {str(fit)[:60]}")
    slope, offset = map(float, values)
    if not slope or (slope < 0 and known[0][0] == "slope"):
        raise ValueError(
            f"{name}: a slope of {slope:g} would not rank patients as the network does"
        )
    if not 1e-3 <= abs(slope) <= 1e3 >= abs(offset):  # all risks would be alike
        raise ValueError(f"{name}: slope {slope:g} and intercept {offset:g} cannot be of a network")
    return (slope, offset) if slope > 0 else (-slope, -offset)
