"""What a file of weights holds: `inspect` makes plain data of it, `describe` a table.

No torch here, tensors stay in the file: a full-size file takes a second.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.atomic_io import sha256_of
from hpc_ecg.model.architecture import SIZE_NAMES, architecture_to_settings, show_value
from hpc_ecg.weights import original
from hpc_ecg.weights.mapping import deduce_sizes
from hpc_ecg.weights.reading import Checkpoint, OpenFile, check, file_of, open_file
from hpc_ecg.weights.stored import CHUNK, FLOATS, StoredTensor

KINDS = {
    "base_ssl": "base_ssl: pre-trained, without a head (the original's layout)",
    "classifier": "classifier: with a head (the original's layout)",
    "hpc_ecg": "hpc_ecg: written by this package",
    "unknown": "weights of another model",
}


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain data for `--json`. ValueError: the file is hostile or damaged, or holds no tensors."""
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(sha256_of, file_of(Path(path)))
        file = open_file(path)
        on_grid = all(is_on_fp16_grid(tensor) for tensor in file.tensors.values())
    checkpoint, problem = None, None
    try:
        checkpoint = check(file)
    except ValueError as error:
        problem = str(error).removeprefix(f"{file.path}: ")
    head = file.tensors.get(file.names.ours.get("head.weight", ""))
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
        "optimizer_tensors": original.num_tensors(file.content.get(original.OPTIMIZER)),
        "values_of_people": original.scores_of_people(file.content),
        "machine_paths": {place: show_value(text) for place, text in paths.items()},
    }


def is_on_fp16_grid(tensor: StoredTensor) -> bool:
    """Whether a float16 copy of the tensor would lose nothing."""
    if tensor.dtype not in FLOATS:
        return False
    flat = tensor.array().reshape(-1)
    chunks = (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
    with np.errstate(over="ignore", invalid="ignore"):
        found = all((chunk == chunk.astype(np.float16)).all() for chunk in chunks)
    tensor.block.file.drop()
    return found


def _sizes(
    file: OpenFile, checkpoint: Checkpoint | None, num_labels: int | None
) -> dict[str, dict[str, Any]]:
    """Per size what the tensors tell and what the file states."""
    cfg = file.content.get("cfg")
    stated = cfg.get("model") if isinstance(cfg, dict) else None
    stated = stated if isinstance(stated, dict) else {}
    if checkpoint:
        stated = stated | architecture_to_settings(checkpoint.architecture)
    shapes = {name: file.tensors[key].shape for name, key in file.names.ours.items()}
    found = {**deduce_sizes(shapes), "num_labels": num_labels}
    return {
        name: {"in_tensors": found.get(name), "stated": _plain(stated.get(name))}
        for name in (*SIZE_NAMES, "num_labels")
    }


def _plain(value: object) -> Any:
    is_short = value is None or type(value) is int or (type(value) is str and len(value) <= 80)
    return value if is_short else show_value(value)


def describe(facts: Mapping[str, Any]) -> list[str]:
    """What `inspect` found, as the lines of a table."""
    return [f"{name:<12}  {text}" for name, text in _rows(facts)]


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", f"{facts['file']} ({facts['bytes']:,} bytes)"
    yield "sha256", facts["sha256"]
    upstream = "; weight norm named as by upstream fairseq-signals"
    yield "kind", KINDS[facts["kind"]] + upstream * facts["weight_norm_is_parametrized"]
    yield "tensors", ", ".join(f"{number} {dtype}" for dtype, number in facts["dtypes"].items())
    grid = "all on the float16 grid: such a copy loses nothing"
    yield "values", grid if facts["on_fp16_grid"] else "not all on the float16 grid"
    yield "parameters", f"{facts['parameters']:,}"
    for name, size in facts["sizes"].items():
        found, stated = size["in_tensors"], size["stated"]
        if found is None and stated is not None:
            yield "", f"{name} = {stated}  (stated; the tensors do not tell)"
        elif found is not None:
            other = "not stated" if stated is None else f"STATED AS {stated}"
            yield "", f"{name} = {found}" + f"  (in the tensors; {other})" * (found != stated)
    unnamed = f"{facts['num_labels']}, not named" if facts["num_labels"] else "none: no head"
    yield "labels", ", ".join(facts["labels"] or [unnamed])
    yield "signal", _describe_signal(facts["signal"])
    for step in facts["provenance"]:
        yield "made by", json.dumps(step)
    if facts["optimizer_tensors"]:
        yield "optimizer", f"its state is inside, {facts['optimizer_tensors']} tensors"
    if people := facts["values_of_people"]:
        text = f"{sum(people.values()):,} values in {len(people)} arrays or lists, the first in "
        text += f"{next(iter(people))}: scores and labels of people; publish a --strip copy"
        yield "PRIVACY", text
    if paths := facts["machine_paths"]:
        place, text = next(iter(paths.items()))
        yield "PRIVACY", f"{len(paths)} paths of the training's machine: {place}={text} …"
    problem = f"cannot be used to start a run: {facts['problem']}"
    yield "start a run", "yes" if facts["can_start_a_run"] else problem


def _describe_signal(signal: Mapping[str, Any] | None) -> str:
    if signal is None:
        return "not stated; DeepECG-SSL saw 12 leads, 10 s at 250 Hz (2500 samples), in mV"
    return (
        f"{len(signal['leads'])} leads ({', '.join(signal['leads'])}), {signal['num_samples']} "
        f"samples at {signal['sample_rate_hz']} Hz, in {signal['unit']}, amplitude "
        f"{signal['amplitude']}, {signal['preprocessing']}"
    )
