"""What a file of weights holds: `inspect` makes plain data of it, `describe` a table.

No torch here, tensors stay in the file: a full-size file takes a second.
"""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.model.architecture import SIZE_NAMES, architecture_to_settings, show_value
from hpc_ecg.weights import original
from hpc_ecg.weights.look import CHUNK, Look, look
from hpc_ecg.weights.mapping import KEPT, deduce_sizes
from hpc_ecg.weights.reading import file_of
from hpc_ecg.weights.stored import FLOATS, StoredTensor
from hpc_ecg.writing import sha256_of

KINDS = {
    "base_ssl": "base_ssl: pre-trained, without a head (the original's layout)",
    "classifier": "classifier: with a head (the original's layout)",
    "hpc_ecg": "hpc_ecg: written by this package",
    "unknown": "weights of another model",
}
SEEN = "not stated; DeepECG-SSL saw 12 leads, 10 s at 250 Hz (2500 samples), in mV"


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain data for `--json`. ValueError as in `look`."""
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(sha256_of, file_of(Path(path)))
        seen = look(path)
        on_grid = all(is_on_fp16_grid(tensor) for tensor in seen.tensors.values())
    head = seen.tensors.get(seen.names.get("head.weight", ""))
    num_labels = head.shape[0] if head and head.shape else None
    counts = {name: seen.tensors[key].numel for name, key in seen.names.items()}
    checkpoint = seen.checkpoint
    paths = original.machine_paths(seen.content.get("cfg"))
    return {
        "file": str(seen.path),
        "bytes": seen.path.stat().st_size,
        "sha256": digest.result(),
        "kind": seen.kind,
        "can_start_a_run": checkpoint is not None,
        "problem": seen.problem,
        "tensors": len(seen.tensors),
        "parameters": sum(counts.values()),
        "parameters_by_part": {
            part: sum(n for name, n in counts.items() if name.startswith(f"{part}."))
            for part in ("backbone", "head", KEPT[:-1])
        },
        "dtypes": dict(Counter(tensor.dtype for tensor in seen.tensors.values())),
        "on_fp16_grid": on_grid,
        "weight_norm_is_parametrized": any(".parametrizations." in key for key in seen.tensors),
        "sizes": _sizes(seen, num_labels),
        "num_labels": num_labels,
        "labels": checkpoint.labels if checkpoint else None,
        "signal": asdict(checkpoint.signal) if checkpoint and checkpoint.signal else None,
        "provenance": checkpoint.provenance if checkpoint else [],
        "trained_with": _history(seen.content),
        "optimizer_tensors": original.num_tensors(seen.content.get(original.OPTIMIZER)),
        "values_of_people": original.scores_of_people(seen.content),
        "machine_paths": {place: show_value(text) for place, text in paths.items()},
    }


def is_on_fp16_grid(tensor: StoredTensor) -> bool:
    """Whether a float16 copy of the tensor would lose nothing."""
    if tensor.dtype not in FLOATS:
        return False
    flat = tensor.array().reshape(-1)
    found = all(_fits_fp16(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK))
    tensor.block.file.drop()
    return found


def _fits_fp16(values: NDArray[Any]) -> bool:
    if values.dtype == np.float32 and values.size:
        bits = values.view(np.uint32)
        if np.bitwise_or.reduce(bits) & 0x1FFF:  # a fraction of more than 10 bits
            return False
        ordinary = bits & 0x7FFFFFFF  # by size: 2^-14 is where float16 gets coarser
        values = values[(ordinary < 0x38800000) | (ordinary > 0x477FE000)]
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((values == values.astype(np.float16)).all())


def _sizes(seen: Look, num_labels: int | None) -> dict[str, dict[str, Any]]:
    """Per size what the tensors tell and what the file states."""
    cfg = seen.content.get("cfg")
    stated = cfg.get("model") if isinstance(cfg, dict) else None
    stated = stated if isinstance(stated, dict) else {}
    if seen.checkpoint:
        stated = stated | architecture_to_settings(seen.checkpoint.architecture)
    deduced = deduce_sizes({name: seen.tensors[key].shape for name, key in seen.names.items()})
    return {
        name: {"in_tensors": found, "stated": _plain(stated.get(name))}
        for name, found in [(n, deduced.get(n)) for n in SIZE_NAMES] + [("num_labels", num_labels)]
    }


def _plain(value: object) -> Any:
    is_short = value is None or type(value) is int or (type(value) is str and len(value) <= 80)
    return value if is_short else show_value(value)


def _history(content: Mapping[str, Any]) -> str | None:
    history = content.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    if not isinstance(last, dict) or not last.get("num_updates"):
        return None
    names = ("criterion_name", "optimizer_name", "num_updates")
    return ", ".join(f"{name}={show_value(last.get(name))}" for name in names)


def describe(facts: Mapping[str, Any]) -> list[str]:
    """What `inspect` found, as the lines of a table."""
    parts = facts["parameters_by_part"]
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in facts["dtypes"].items())
    grid = "all on the float16 grid: such a copy loses nothing"
    kind = KINDS[facts["kind"]]
    if facts["weight_norm_is_parametrized"]:
        kind += "; weight norm named as by upstream fairseq-signals"
    rows = [
        ("file", f"{facts['file']} ({facts['bytes']:,} bytes)"),
        ("sha256", facts["sha256"]),
        ("kind", kind),
        ("tensors", dtypes),
        ("values", grid if facts["on_fp16_grid"] else "not all on the float16 grid"),
        (
            "parameters",
            f"{facts['parameters']:,}: backbone {parts['backbone']:,}, head {parts['head']:,}, "
            f"only for pre-training {parts[KEPT[:-1]]:,}",
        ),
        *(("", line) for line in _describe_sizes(facts["sizes"])),
        ("labels", _describe_labels(facts)),
        ("signal", _describe_signal(facts["signal"])),
        *(("trained with", line) for line in [facts["trained_with"]] if line),
        *(("made by", json.dumps(step)) for step in facts["provenance"]),
    ]
    if facts["optimizer_tensors"]:
        rows.append(("optimizer", f"its state is inside, {facts['optimizer_tensors']} tensors"))
    if people := facts["values_of_people"]:
        text = f"{sum(people.values()):,} values in {len(people)} arrays or lists, the first in "
        text += f"{next(iter(people))}: scores and labels of people; publish a --strip copy"
        rows.append(("PRIVACY", text))
    if paths := facts["machine_paths"]:
        place, text = next(iter(paths.items()))
        rows.append(("PRIVACY", f"{len(paths)} paths of the training's machine: {place}={text} …"))
    can = (
        "yes" if facts["can_start_a_run"] else f"cannot be used to start a run: {facts['problem']}"
    )
    return [f"{name:<12}  {text}" for name, text in [*rows, ("start a run", can)]]


def _describe_sizes(sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, size in sizes.items():
        found, stated = size["in_tensors"], size["stated"]
        if found is None and stated is None:
            continue
        if found == stated:
            says = ""
        elif found is None:
            says = "stated; the tensors do not tell"
        else:
            says = f"in the tensors; {'not stated' if stated is None else f'STATED AS {stated}'}"
        value = stated if found is None else found
        lines.append(f"{name} = {value}  {f'({says})' if says else ''}".rstrip())
    return lines


def _describe_labels(facts: Mapping[str, Any]) -> str:
    if facts["labels"]:
        return ", ".join(facts["labels"])
    return f"{facts['num_labels']}, not named" if facts["num_labels"] else "none: no head"


def _describe_signal(signal: Mapping[str, Any] | None) -> str:
    if signal is None:
        return SEEN
    return (
        f"{len(signal['leads'])} leads ({', '.join(signal['leads'])}), {signal['num_samples']} "
        f"samples at {signal['sample_rate_hz']} Hz, in {signal['unit']}, amplitude "
        f"{signal['amplitude']}, {signal['preprocessing']}"
    )
