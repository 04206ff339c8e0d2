"""What a file of weights holds: `inspect` returns plain data, `describe` the lines of a table.

No torch here, and tensors stay in the file: a full-size file takes a second.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.ecg.signal import SignalSpec, describe_signal
from hpc_ecg.model.architecture import SIZE_NAMES, architecture_to_settings, show_value
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import original
from hpc_ecg.weights.mapping import deduce_sizes
from hpc_ecg.weights.reading import (
    Checkpoint,
    WeightsFile,
    open_weights,
    resolve_file,
    to_checkpoint,
)
from hpc_ecg.weights.stored_tensor import FLOATS, StoredTensor

KINDS = {
    "base_ssl": "base_ssl: pre-trained, without a head (the original's layout)",
    "classifier": "classifier: with a head (the original's layout)",
    "hpc_ecg": "hpc_ecg: written by this package",
    "unknown": "weights of another model",
}


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain data for `--json`. ValueError: the file is hostile or damaged, or holds no tensors."""
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, resolve_file(Path(path)))
        file = open_weights(path)
        on_grid = all(is_on_fp16_grid(tensor) for tensor in file.tensors.values())
    checkpoint, problem = None, None
    try:
        checkpoint = to_checkpoint(file)
    except ValueError as error:
        problem = str(error).removeprefix(f"{file.path}: ")
    head = file.parameters().get("head.weight")
    num_labels = head.shape[0] if head and head.shape else None
    paths = original.machine_paths(file.content.get("cfg"))
    return {
        "file": file.path,
        "bytes": Path(file.path).stat().st_size,
        "sha256": digest.result(),
        "kind": file.kind,
        "weight_norm_is_parametrized": any(".parametrizations." in key for key in file.tensors),
        "can_start_a_run": checkpoint is not None,
        "problem": problem,
        "tensors": len(file.tensors),
        "parameters": sum(tensor.numel for tensor in file.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in file.tensors.values())),
        "on_fp16_grid": on_grid,
        "sizes": _sizes(file, checkpoint, num_labels),
        "num_labels": num_labels,
        "labels": checkpoint.labels if checkpoint else None,
        "signal": asdict(checkpoint.signal) if checkpoint and checkpoint.signal else None,
        "provenance": checkpoint.provenance if checkpoint else [],
        "optimizer_tensors": original.count_tensors(file.content.get(original.OPTIMIZER)),
        "values_of_people": original.patient_values(file.content),
        "machine_paths": {key: show_value(text) for key, text in paths.items()},
    }


def is_on_fp16_grid(tensor: StoredTensor) -> bool:
    """Whether a float16 copy of the tensor would lose nothing."""
    if tensor.dtype not in FLOATS:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        is_exact = all((chunk == chunk.astype(np.float16)).all() for chunk in tensor.chunks())
    tensor.drop_pages()
    return is_exact


def _sizes(
    file: WeightsFile, checkpoint: Checkpoint | None, num_labels: int | None
) -> dict[str, dict[str, Any]]:
    """Each size as the tensors imply it and as the file states it."""
    cfg = file.content.get("cfg")
    stated = cfg.get("model") if isinstance(cfg, dict) else None
    stated = stated if isinstance(stated, dict) else {}
    if checkpoint:
        stated = stated | architecture_to_settings(checkpoint.architecture)
    shapes = {name: tensor.shape for name, tensor in file.parameters().items()}
    deduced = {**deduce_sizes(shapes), "num_labels": num_labels}
    return {
        name: {"in_tensors": deduced.get(name), "stated": _plain(stated.get(name))}
        for name in (*SIZE_NAMES, "num_labels")
    }


def _plain(value: object) -> Any:
    is_short = value is None or type(value) is int or (type(value) is str and len(value) <= 80)
    return value if is_short else show_value(value)


def describe(facts: Mapping[str, Any]) -> list[str]:
    """The result of `inspect` as the lines of a table."""
    return [f"{name:<12}  {text}" for name, text in _rows(facts)]


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", f"{facts['file']} ({facts['bytes']:,} bytes)"
    yield "sha256", facts["sha256"]
    is_upstream = facts["weight_norm_is_parametrized"]
    upstream = "; weight norm named as by upstream fairseq-signals" if is_upstream else ""
    yield "kind", KINDS[facts["kind"]] + upstream
    yield "tensors", ", ".join(f"{number} {dtype}" for dtype, number in facts["dtypes"].items())
    grid = "all on the float16 grid: such a copy loses nothing"
    yield "values", grid if facts["on_fp16_grid"] else "not all on the float16 grid"
    yield "parameters", f"{facts['parameters']:,}"
    for name, size in facts["sizes"].items():
        deduced, stated = size["in_tensors"], size["stated"]
        if deduced is None and stated is not None:
            yield "", f"{name} = {stated}  (stated; the tensors do not tell)"
        elif deduced is not None:
            other = "not stated" if stated is None else f"STATED AS {stated}"
            note = "" if deduced == stated else f"  (in the tensors; {other})"
            yield "", f"{name} = {deduced}{note}"
    unnamed = f"{facts['num_labels']}, not named" if facts["num_labels"] else "none: no head"
    yield "labels", ", ".join(facts["labels"] or [unnamed])
    unstated = "not stated; DeepECG-SSL saw 12 leads, 10 s at 250 Hz (2500 samples), in mV"
    signal = facts["signal"] and describe_signal(SignalSpec(**facts["signal"]))
    yield "signal", signal or unstated
    for step in facts["provenance"]:
        yield "made by", json.dumps(step)
    if facts["optimizer_tensors"]:
        yield "optimizer", f"its state is inside, {facts['optimizer_tensors']} tensors"
    if counts := facts["values_of_people"]:
        text = f"{sum(counts.values()):,} values in {len(counts)} arrays or lists, the first in "
        text += f"{next(iter(counts))}: scores and labels of people; publish a --strip copy"
        yield "PRIVACY", text
    if paths := facts["machine_paths"]:
        key, path = next(iter(paths.items()))
        yield "PRIVACY", f"{len(paths)} paths of the training's machine: {key}={path} …"
    problem = f"cannot be used to start a run: {facts['problem']}"
    yield "start a run", "yes" if facts["can_start_a_run"] else problem
